"""Captions of scenes: lexicon and templates."""

from __future__ import annotations

import numpy as np

from torch_caption.scenes.draw import COLOURS, SHAPES, Group, Scene

PLURAL = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
RELATION_WORDS = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
POSITION_WORDS = {"left of": "on the left", "right of": "on the right", "above": "at the top", "below": "at the bottom"}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# a is the left or upper group, b the other; is_a, it_a agree with a. The first two words determine their order.
TEMPLATES = (
    "{a} {a_to_b} {b}",
    "{a} {is_a} {a_to_b} {b}",
    "{a} {a_here} and {b} {b_here}",
    "{a} with {b} {b_to_a} {it_a}",
    "there {is_a} {a} {a_to_b} {b}",
    "a picture of {a} {a_to_b} {b}",
    "you can see {b} {b_to_a} {a}",
    "{b_to_a} {a} there {is_b} {b}",
    "{a_to_b} {b} there {is_a} {a}",
)
CAPTIONS = 5  # of each scene, from different templates
LONGEST = 15  # maximum number of words of a caption
SIZE_PROBABILITY = 0.75  # of naming the size of a group


def make_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five captions of a scene in different words, lower case, at most LONGEST words each.

    Each names the shape, colour and count of both groups and one relation; most name sizes.
    """
    return [_word(scene, TEMPLATES[i], rng) for i in rng.permutation(len(TEMPLATES))[:CAPTIONS]]


def _word(scene: Scene, template: str, rng: np.random.Generator) -> str:
    a, b, a_to_b = scene.first, scene.second, scene.relation
    b_to_a = OPPOSITE[a_to_b]
    return template.format(
        a=_name(a, rng),
        b=_name(b, rng),
        a_to_b=_choose(RELATION_WORDS[a_to_b], rng),
        b_to_a=_choose(RELATION_WORDS[b_to_a], rng),
        a_here=POSITION_WORDS[a_to_b],
        b_here=POSITION_WORDS[b_to_a],
        is_a="is" if a.count == 1 else "are",
        is_b="is" if b.count == 1 else "are",
        it_a="it" if a.count == 1 else "them",
    )


def _name(group: Group, rng: np.random.Generator) -> str:
    words = [group.colour, group.shape if group.count == 1 else PLURAL[group.shape]]
    if rng.random() < SIZE_PROBABILITY:
        words.insert(0, _choose(SIZE_WORDS[group.size], rng))
    article = "an" if words[0][0] in "aeiou" else "a"
    number = article if group.count == 1 and rng.random() < 0.8 else NUMBERS[group.count]
    return " ".join([number, *words])


def _choose(words: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of the words, each with half the probability of the previous one."""
    total = 2 ** len(words) - 1
    return words[len(words) - (total - int(rng.integers(total))).bit_length()]


def lexicon() -> list[str]:
    """All words of captions, in alphabetical order."""
    fixed = [word for template in TEMPLATES for word in template.split() if not word.startswith("{")]
    phrases = [*fixed, "a", "an", "is", "are", "it", "them", *NUMBERS.values(), *COLOURS, *SHAPES, *PLURAL.values()]
    for ways in (*SIZE_WORDS.values(), *RELATION_WORDS.values()):
        phrases += ways
    return sorted({word for phrase in (*phrases, *POSITION_WORDS.values()) for word in phrase.split()})
