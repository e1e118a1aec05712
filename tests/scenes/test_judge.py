"""Positions, pictures and captions of scenes, and the judge of captions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.small_scenes import TWO, name
from torch_caption.scenes.dataset import Group, Verdict, judge, make_captions
from torch_caption.scenes.draw import COLOURS, MARGIN, PALETTE, SHAPES, SIDE, draw
from torch_caption.scenes.phrases import (
    LONGEST,
    NUMBERS,
    OPPOSITE,
    PLURAL,
    POSITION_WORDS,
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


def test_the_judge_agrees_with_the_positions(placed):
    for scene in placed:
        assert [r for r in RELATION_WORDS if holds(r, *scene.groups)] == [scene.relation]
        a, b = scene.groups
        for relation, ways in RELATION_WORDS.items():
            for one, other in ((a, b), (b, a)):
                caption = f"{name(one)} {ways[0]} {name(other)}"
                assert judge(caption, scene).right == holds(relation, one, other), (caption, scene)


def test_shapes_do_not_overlap_and_lie_inside(placed):
    for scene in placed:
        discs = np.array([row for group in scene.groups for row in group.places])
        assert ((discs[:, :2] - discs[:, 2:3]) >= MARGIN - 0.02).all()
        assert ((discs[:, :2] + discs[:, 2:3]) <= SIDE - MARGIN + 0.02).all()
        apart = np.hypot(*(discs[:, None, :2] - discs[None, :, :2]).transpose(2, 0, 1))
        assert (apart - discs[:, 2] - discs[:, 2:3] > 1)[~np.eye(len(discs), dtype=bool)].all()


def test_pictures_have_light_paper_and_the_colours_of_the_palette(placed):
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


def test_five_captions_in_different_words(composed):
    rng = np.random.default_rng(0)
    for scene in composed:
        captions = make_captions(scene, rng)
        assert len(set(captions)) == len(captions) == 5
        assert max(len(caption.split()) for caption in captions) <= LONGEST


def test_captions_use_all_of_the_lexicon_and_no_other_word(captions):
    assert {word for _, caption in captions for word in caption.split()} == set(lexicon())


def test_captions_are_right_and_complete(captions):
    for scene, caption in captions:
        assert judge(caption, scene).right, caption
        words = caption.split()
        for group in scene.groups:
            assert group.colour in words
            assert {group.shape, PLURAL[group.shape]} & set(words)
            assert {NUMBERS[group.count], *(("a", "an") if group.count == 1 else ())} & set(words)


# The judge

RELATIONS = {
    w: v for k, ways in RELATION_WORDS.items() for w, v in zip(ways, RELATION_WORDS[OPPOSITE[k]], strict=False)
}
RELATIONS |= {"beneath": "above"} | {words: POSITION_WORDS[OPPOSITE[k]] for k, words in POSITION_WORDS.items()}
RELATIONS |= {"above": "under", "over": "below"}
OTHER_SHAPE = dict(zip(SHAPES, SHAPES[1:] + SHAPES[:1], strict=True))
WRONG = {
    "wrong colour": dict(zip(COLOURS, COLOURS[1:] + COLOURS[:1], strict=True)),
    "wrong shape": OTHER_SHAPE | {PLURAL[shape]: PLURAL[other] for shape, other in OTHER_SHAPE.items()},
    "wrong count": {"two": "three", "three": "four", "four": "two"},
    "wrong size": {word: "big" if size == "small" else "tiny" for size, ways in SIZE_WORDS.items() for word in ways},
    "wrong relation": RELATIONS,
}


@pytest.mark.parametrize("kind", WRONG)
def test_one_error_is_found_and_named(kind, captions):
    for scene, caption in captions[::6]:
        found = [words for words in WRONG[kind] if f" {words} " in f" {caption} "]
        if found:
            words = max(found, key=len)
            changed = f" {caption} ".replace(f" {words} ", f" {WRONG[kind][words]} ", 1)
            faults = judge(changed, scene).faults
            assert any(fault.startswith(kind) for fault in faults), (changed, faults)


@pytest.mark.parametrize(
    "caption",
    [
        "Two small red circles above a blue square.",
        "below two red circles there is a blue square",
        "beneath two red circles is a blue square",
        "a large blue square with two red circles above it",
        "a blue square and above it two red circles",
        "at the top two red circles and at the bottom a blue square",
        "two red circles are at the top and a blue square is at the bottom",
    ],
)
def test_a_right_caption_is_accepted_in_many_forms(caption):
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
        ("red circles above the blue square", None),
    ],
)
def test_faults_are_named(caption, faults):
    verdict = judge(caption, TWO)
    assert not verdict.right
    assert faults is None or list(verdict.faults) == faults


@settings(max_examples=200)
@given(st.text() | st.lists(st.sampled_from([*lexicon(), "<UNK>", "<START>", "dog"]), max_size=25).map(" ".join))
def test_any_other_text_is_wrong(caption):
    verdict = judge(caption, TWO)
    assert not verdict.right
    assert all(isinstance(fault, str) and fault for fault in verdict.faults)


def test_a_very_long_caption_is_wrong():
    assert not judge("a red circle above " * 10_000, TWO).right
