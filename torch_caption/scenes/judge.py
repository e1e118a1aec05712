"""A judge of captions: parses a sentence and compares it with the scene.

It has the lexicon of `phrases`, but a grammar of its own instead of the templates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from torch_caption.scenes.draw import COLOURS, SHAPES, Group, Scene
from torch_caption.scenes.phrases import NUMBERS, OPPOSITE, PLURAL, POSITION_WORDS, RELATION_WORDS, SIZE_WORDS


@dataclass(frozen=True)
class Verdict:
    """The result of the judge: `faults`, each "kind: details"; empty if the caption is correct."""

    faults: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        return not self.faults


@dataclass(frozen=True)
class Named:
    """An object in a caption; omitted attributes are None."""

    words: str
    shape: str
    plural: bool
    colour: str | None = None
    size: str | None = None
    count: int | None = None


@dataclass(frozen=True)
class Phrase:
    """A piece of a sentence; `kind` is its letter in SENTENCES."""

    kind: str
    words: str
    named: Named | None = None


NOUNS = {shape: (shape, False) for shape in SHAPES} | {PLURAL[shape]: (shape, True) for shape in SHAPES}
COUNT_OF = {word: count for count, word in NUMBERS.items()} | {"a": 1, "an": 1}
SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in words}
RELATION_OF = {words: relation for relation, ways in RELATION_WORDS.items() for words in ways}
POSITION_OF = {words: relation for relation, words in POSITION_WORDS.items()}
# Capitals are plural: there are, are, them. An object is N, an unknown word is ?.
KIND_OF = dict.fromkeys(RELATION_OF, "r") | dict.fromkeys(POSITION_OF, "p") | {"with": "w", "and": "&"}
KIND_OF |= {"there is": "e", "there are": "E", "is": "v", "are": "V", "it": "j", "them": "J"}
KIND_OF |= dict.fromkeys(("a picture of", "the picture shows", "you can see", "i see"), "l")
REACH = 4  # words of the longest phrases: "to the left of", "two small red circles"
# Each form of sentence, and the index of its subject, which has the relation to the other object.
SENTENCES = {
    "[leE]?NrN": 0,  # two red circles above a star
    "N[vV]rN": 0,  # two red circles are above a star
    "rN[eEvV]?N": 1,  # above a star there are two red circles
    "[leE]?NwNr[jJ]": 1,  # a star with two red circles above it
    "[leE]?N&r[jJ][eEvV]?N": 1,  # a star and above it two red circles
    "[leE]?N[vV]?p&N[vV]?p": 0,  # two red circles at the top and a star at the bottom
    "p[eEvV]?N&p[eEvV]?N": 0,  # at the top two red circles and at the bottom a star
}


def judge(caption: str, scene: Scene) -> Verdict:
    """Whether a caption describes a scene completely and without an error. Never raises an error."""
    phrases = _phrases(re.findall(r"[^\s.,;:!?\"]+", caption.lower()))
    named = [phrase.named for phrase in phrases if phrase.named is not None]
    subject, faults = _form(phrases, named)
    claims = [] if subject is None else _claims(phrases, subject)
    groups = _match(named[:2], claims, scene)
    for name, group in zip(named[:2], groups, strict=True):
        faults += _wrong_name(name, group)
    faults += [f"object left out: {noun_phrase(group)}" for group in scene.groups if group not in groups]
    faults += [f"wrong relation: {words}" for words in _untrue(claims, groups, scene)]
    if subject is not None:
        faults += _disagreements(phrases)
    return Verdict(tuple(dict.fromkeys(faults)))


def noun_phrase(group: Group) -> str:
    """A complete description of a group: "two small red circles"."""
    noun = group.shape if group.count == 1 else PLURAL[group.shape]
    return f"{NUMBERS[group.count]} {group.size} {group.colour} {noun}"


def _phrases(words: Sequence[str]) -> list[Phrase]:
    """The words as phrases, at each position the longest possible one."""
    phrases = []
    at = 0
    while at < len(words):
        phrase = _fixed(words[at : at + REACH]) or _object(words[at : at + REACH]) or Phrase("?", words[at])
        phrases.append(phrase)
        at += phrase.words.count(" ") + 1
    return phrases


def _fixed(words: Sequence[str]) -> Phrase | None:
    texts = (" ".join(words[:length]) for length in range(len(words), 0, -1))
    return next((Phrase(KIND_OF[text], text) for text in texts if text in KIND_OF), None)


def _object(words: Sequence[str]) -> Phrase | None:
    """The object at the beginning of the words: a count, sizes and colours in any order, a shape."""
    found: dict[str, list] = {"count": [], "size": [], "colour": []}
    for end, word in enumerate(words, 1):
        if word in NOUNS:
            if any(len(values) > 1 for values in found.values()):
                return None
            text = " ".join(words[:end])
            return Phrase("N", text, Named(text, *NOUNS[word], **{key: v[0] for key, v in found.items() if v}))
        if word in COUNT_OF:
            found["count"].append(COUNT_OF[word])
        elif word in SIZE_OF:
            found["size"].append(SIZE_OF[word])
        elif word in COLOURS:
            found["colour"].append(word)
        else:
            return None
    return None


def _form(phrases: Sequence[Phrase], named: Sequence[Named]) -> tuple[int | None, list[str]]:
    """The index of the subject, None unless the sentence states a relation of two objects; and the faults."""
    if not phrases:
        return None, ["no sentence: it is empty"]
    form = "".join(phrase.kind for phrase in phrases)
    for sentence, subject in SENTENCES.items():
        if re.fullmatch(sentence, form):
            return subject, []
    faults = [f"word out of place: {phrase.words}" for phrase in phrases if phrase.kind == "?"]
    if len(named) > 2:
        faults.append(f"object too many: {named[2].words}")
    if not set(form) & set("rp"):
        faults.append("no relation: none is stated")
    return None, faults or ["no sentence: " + " ".join(phrase.words for phrase in phrases)]


def _claims(phrases: Sequence[Phrase], subject: int) -> list[tuple[int, str, str]]:
    """The stated relations: (object, its relation to the other object, the words)."""
    relations = [(RELATION_OF[p.words], p.words) for p in phrases if p.kind == "r"]
    if relations:
        return [(subject, *relations[0])]
    return [(i, POSITION_OF[p.words], p.words) for i, p in enumerate(q for q in phrases if q.kind == "p")]


def _match(named: Sequence[Named], claims: Sequence[tuple[int, str, str]], scene: Scene) -> tuple[Group, ...]:
    """The group of each named object: the assignment with the smallest number of faults."""

    def faults(groups: tuple[Group, ...]) -> int:
        wrong = sum(len(_wrong_name(name, group)) for name, group in zip(named, groups, strict=True))
        return 2 * wrong + len(_untrue(claims, groups, scene))

    return min(permutations(scene.groups, len(named)), key=faults)


def _wrong_name(name: Named, group: Group) -> list[str]:
    faults = []
    for key in ("shape", "colour", "count"):
        stated, true = getattr(name, key), getattr(group, key)
        if stated is None:
            faults.append(f"{key} left out: {name.words}")
        elif stated != true:
            faults.append(f"wrong {key}: {name.words} for {noun_phrase(group)}")
    if name.size not in (None, group.size):
        faults.append(f"wrong size: {name.words} for {noun_phrase(group)}")
    if name.count is not None and (name.count > 1) != name.plural:
        faults.append(f"number disagrees: {name.words}")
    return faults


def _untrue(claims: Sequence[tuple[int, str, str]], groups: Sequence[Group], scene: Scene) -> list[str]:
    """The words of the false relations."""
    true = (scene.relation, OPPOSITE[scene.relation])
    return [words for i, relation, words in claims if relation != true[scene.groups.index(groups[i])]]


def _disagreements(phrases: Sequence[Phrase]) -> list[str]:
    """Verbs and pronouns that disagree with their object in number: "two stars is", "a star with a moon above them"."""
    faults = []
    for at, phrase in enumerate(phrases):
        before = [p.named for p in phrases[:at] if p.named is not None]
        after = [p.named for p in phrases[at + 1 :] if p.named is not None]
        if phrase.kind in "eE" or (phrase.kind in "vV" and phrases[at + 1].kind == "N"):
            name = after[0]
        elif phrase.kind in "vV":
            name = before[-1]
        elif phrase.kind in "jJ":
            name = before[0]
        else:
            continue
        if name.plural != phrase.kind.isupper():
            faults.append(f"number disagrees: {phrase.words} for {name.words}")
    return faults
