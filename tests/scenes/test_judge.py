"""Positions, pictures and captions of scenes, and the judge of captions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.small_scenes import TWO, name
from torch_caption.scenes.dataset import Group, Scene, Verdict, judge, tell
from torch_caption.scenes.draw import COLOURS, MARGIN, PALETTE, SHAPES, SIDE, draw
from torch_caption.scenes.phrases import (
    LONGEST,
    NUMBERS,
    OPPOSITE,
    PLACE_WORDS,
    PLURAL,
    RELATION_WORDS,
    SIZE_WORDS,
    lexicon,
)

# Positions and pictures


def box(group: Group) -> np.ndarray:
    """((left, top), (right, bottom)) of the discs that hold a group's shapes."""
    places = np.array(group.places)
    return np.stack([(places[:, :2] - places[:, 2:3]).min(0), (places[:, :2] + places[:, 2:3]).max(0)])


def holds(relation: str, a: Group, b: Group) -> bool:
    """Whether all of a lies beyond all of b on that side, by the positions of the shapes."""
    axis = 0 if relation in ("left of", "right of") else 1
    first, second = (box(a), box(b)) if relation in ("left of", "above") else (box(b), box(a))
    return bool(first[1, axis] < second[0, axis])


def test_the_judge_agrees_with_the_positions(placed: list[Scene]) -> None:
    for scene in placed:
        assert [r for r in RELATION_WORDS if holds(r, *scene.groups)] == [scene.relation]
        a, b = scene.groups
        for relation, ways in RELATION_WORDS.items():
            for one, other in ((a, b), (b, a)):
                said = f"{name(one)} {ways[0]} {name(other)}"
                assert judge(said, scene).right == holds(relation, one, other), (said, scene)


def test_shapes_do_not_overlap_and_lie_inside(placed: list[Scene]) -> None:
    for scene in placed:
        discs = np.array([row for group in scene.groups for row in group.places])
        assert ((discs[:, :2] - discs[:, 2:3]) >= MARGIN - 0.02).all()
        assert ((discs[:, :2] + discs[:, 2:3]) <= SIDE - MARGIN + 0.02).all()
        apart = np.hypot(*(discs[:, None, :2] - discs[None, :, :2]).transpose(2, 0, 1))
        assert (apart - discs[:, 2] - discs[:, 2:3] > 1)[~np.eye(len(discs), dtype=bool)].all()


def test_pictures_have_light_paper_and_the_colours_of_the_palette(placed: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    for scene in placed[:60]:
        picture = draw(scene, rng)
        assert picture.shape == (SIDE, SIDE, 3)
        assert picture.dtype == np.uint8
        assert np.median(picture, axis=(0, 1)).min() > 215
        for group in (group for group in scene.groups if group.shape != "moon"):
            for x, y, *_ in group.places:
                ink = picture[round(y - 0.5), round(x - 0.5)].astype(int)
                assert np.abs(ink - PALETTE[group.colour]).max() <= 15


# Captions


def test_five_captions_in_different_words(composed: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    for scene in composed:
        told = tell(scene, rng)
        assert len(set(told)) == len(told) == 5
        assert max(len(caption.split()) for caption in told) <= LONGEST


def test_captions_use_all_of_the_lexicon_and_no_other_word(captions: list[tuple[Scene, str]]) -> None:
    assert {word for _, caption in captions for word in caption.split()} == set(lexicon())


def test_captions_are_right_and_complete(captions: list[tuple[Scene, str]]) -> None:
    for scene, caption in captions:
        assert judge(caption, scene).right, caption
        words = caption.split()
        for group in scene.groups:
            assert group.colour in words
            assert {group.shape, PLURAL[group.shape]} & set(words)
            assert {NUMBERS[group.count], *(("a", "an") if group.count == 1 else ())} & set(words)


# The judge

SIZE_OF = {word: size for size, ways in SIZE_WORDS.items() for word in ways}
NOUNS = {*SHAPES, *PLURAL.values()}
MORE = {"a": "two", "an": "two", "one": "two", "two": "three", "three": "four", "four": "two"}
TURNED = {w: v for k, ways in RELATION_WORDS.items() for w, v in zip(ways, RELATION_WORDS[OPPOSITE[k]], strict=False)}
TURNED |= {"beneath": "above"} | {words: PLACE_WORDS[OPPOSITE[k]] for k, words in PLACE_WORDS.items()}
TURNED |= {"above": "under", "over": "below"}


def indices_of(words: list[str], kind: set[str] | dict[str, str]) -> list[int]:
    return [at for at, word in enumerate(words) if word in kind]


def swapped(words: list[str], at: int, word: str) -> str:
    return " ".join([*words[:at], word, *words[at + 1 :]])


def other_colour(words: list[str], rng: np.random.Generator) -> str:
    at = int(rng.choice(indices_of(words, PALETTE)))
    return swapped(words, at, str(rng.choice([c for c in COLOURS if c != words[at]])))


def other_shape(words: list[str], rng: np.random.Generator) -> str:
    at = int(rng.choice(indices_of(words, NOUNS)))
    kind = SHAPES if words[at] in SHAPES else tuple(PLURAL.values())
    return swapped(words, at, str(rng.choice([s for s in kind if s != words[at]])))


def other_count(words: list[str], rng: np.random.Generator) -> str:
    """Another count, with a noun of that number."""
    noun = int(rng.choice(indices_of(words, NOUNS)))
    at = max(i for i in indices_of(words, MORE) if i < noun)
    words = [*words[:noun], PLURAL.get(words[noun], words[noun]), *words[noun + 1 :]]
    return swapped(words, at, MORE[words[at]])


def other_size(words: list[str], rng: np.random.Generator) -> str | None:
    at = indices_of(words, SIZE_OF)
    return swapped(words, at[0], "big" if SIZE_OF[words[at[0]]] == "small" else "tiny") if at else None


def other_relation(words: list[str], rng: np.random.Generator) -> str:
    text = " ".join(words)
    said = max((way for way in TURNED if f" {way} " in f" {text} "), key=len)
    return f" {text} ".replace(f" {said} ", f" {TURNED[said]} ").strip()


def object_dropped(words: list[str], rng: np.random.Generator) -> str:
    noun = int(rng.choice(indices_of(words, NOUNS)))
    start = max(i for i in indices_of(words, MORE) if i < noun)
    return " ".join([*words[:start], *words[noun + 1 :]])


MUTATIONS = {
    other_colour: "wrong colour",
    other_shape: "wrong shape",
    other_count: "wrong count",
    other_size: "wrong size",
    other_relation: "wrong relation",
    object_dropped: "object left out",
}


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_one_error_is_found_and_named(mutate: Callable, captions: list[tuple[Scene, str]]) -> None:
    rng = np.random.default_rng(1)
    judged = 0
    for scene, caption in captions[::6]:
        changed = mutate(caption.split(), rng)
        if changed is None:
            continue
        assert changed != caption
        verdict = judge(changed, scene)
        assert not verdict.right, (caption, changed)
        assert any(fault.startswith(MUTATIONS[mutate]) for fault in verdict.faults), (changed, verdict)
        judged += 1
    assert judged


@pytest.mark.parametrize(
    "caption",
    [
        "Two small red circles above a blue square.",
        "there is a blue square below two little red circles",
        "two red circles are over one big blue square",
        "below two red circles there is a blue square",
        "beneath two red circles is a blue square",
        "a large blue square with two red circles above it",
        "a blue square and above it two red circles",
        "i see two red small circles above one blue square",
        "at the top two red circles and at the bottom a blue square",
        "two red circles are at the top and a blue square is at the bottom",
    ],
)
def test_a_right_caption_is_accepted_in_many_forms(caption: str) -> None:
    assert judge(caption, TWO) == Verdict()


@pytest.mark.parametrize(
    ("caption", "faults"),
    [
        (
            "",
            [
                "no sentence: it is empty",
                "object left out: two small red circles",
                "object left out: one large blue square",
            ],
        ),
        ("two red circles", ["no relation: none is stated", "object left out: one large blue square"]),
        ("two red circles above", ["no sentence: two red circles above", "object left out: one large blue square"]),
        ("two green circles above a blue square", ["wrong colour: two green circles for two small red circles"]),
        ("two red circles under a blue square", ["wrong relation: under"]),
        ("two red circles left of a blue square", ["wrong relation: left of"]),
        ("two red circles above a tiny blue square", ["wrong size: a tiny blue square for one large blue square"]),
        ("two red circles above two red circles", None),
        ("two red circles above a blue square and a green star", None),
        ("two circles above a blue square", ["colour left out: two circles"]),
        ("two red circle above a blue square", ["number disagrees: two red circle"]),
        ("two red circles is above a blue square", ["number disagrees: is for two red circles"]),
        ("there are a blue square below two red circles", ["number disagrees: there are for a blue square"]),
        ("a blue square with two red circles above them", ["number disagrees: them for a blue square"]),
        ("two red circles above a blue square <UNK>", ["word out of place: <unk>"]),
        ("two red circles above a blue square below two red circles", None),
        ("two red circles at the top and a blue square at the top", ["wrong relation: at the top"]),
        ("two red red circles above a blue square", None),
        ("two one red circles above a blue square", None),
        ("red circles above the blue square", None),
    ],
)
def test_faults_are_named(caption: str, faults: list[str] | None) -> None:
    verdict = judge(caption, TWO)
    assert not verdict.right
    assert faults is None or list(verdict.faults) == faults


@settings(max_examples=200)
@given(st.text() | st.lists(st.sampled_from([*lexicon(), "<UNK>", "<START>", "dog"]), max_size=25).map(" ".join))
def test_any_other_text_is_wrong(caption: str) -> None:
    verdict = judge(caption, TWO)
    assert not verdict.right
    assert all(isinstance(fault, str) and fault for fault in verdict.faults)


def test_a_very_long_caption_is_wrong() -> None:
    assert not judge("a red circle above " * 10_000, TWO).right
