"""Beam search: by hand, against every caption there is, and against the greedy choice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.steppers import (
    CAPTIONER_IDS,
    END,
    IDS,
    NULL,
    START,
    A,
    B,
    C,
    TableStepper,
    beam_search,
    captioner,
    greedy,
    images,
    rows,
    teacher_forced,
)
from torch_caption.decoding import Decoded
from torch_caption.decoding.options import LengthPenalty
from torch_caption.model.cells import CELLS


def spoken(beams: Decoded, row: int = 0) -> list[list[int]]:
    """The captions of a row, without what is past their length."""
    words, lengths = beams.words[row].tolist(), beams.lengths[row].tolist()
    return [caption[:length] for caption, length in zip(words, lengths, strict=True)]


def equal(one: Decoded, other: Decoded) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


# By hand --------------------------------------------------------------------------------------------------------------

# Greedy says a (.6), b (.35), <END> (.9); but b (.4), <END> (.9) is likelier.
#         NULL  START END   a     b     c
GARDEN_PATH = [
    [0.00, 0.00, 0.00, 0.00, 0.00, 1.00],
    [0.00, 0.00, 0.00, 0.60, 0.40, 0.00],  # after <START>
    [0.00, 0.00, 0.00, 0.00, 0.00, 1.00],
    [0.15, 0.10, 0.20, 0.20, 0.35, 0.00],  # after a
    [0.00, 0.00, 0.90, 0.05, 0.05, 0.00],  # after b
    [0.00, 0.00, 0.00, 0.00, 0.00, 1.00],
]


def test_the_best_is_found_where_greedy_does_not() -> None:
    stepper = TableStepper(GARDEN_PATH)
    assert greedy(stepper, rows(1), **IDS, max_length=3).words.tolist() == [[A, B, END]]
    beams = beam_search(stepper, rows(1), **IDS, beam_size=2, max_length=3)
    assert spoken(beams) == [[B, END], [A, B, END]]
    assert beams.words.dtype == torch.int64
    assert beams.words.tolist() == [[[B, END, NULL], [A, B, END]]]
    expected = torch.tensor([[0.4 * 0.9, 0.6 * 0.35 * 0.9]], dtype=torch.float64)
    torch.testing.assert_close(beams.log_probs.exp(), expected)
    assert torch.equal(beams.scores, beams.log_probs)
    assert beams.ended.all()


def test_a_hypothesis_that_ended_keeps_its_place() -> None:
    """Two places: b <END> takes one at the second step, and a b continues alone."""
    stepper = TableStepper(GARDEN_PATH)
    beam_search(stepper, rows(1), **IDS, beam_size=2, max_length=9)
    assert stepper.rows == [1, 2, 1]


def test_unfinished_captions_are_returned_as_such() -> None:
    features = rows(2)
    features[0, END] = -math.inf
    beams = beam_search(TableStepper(GARDEN_PATH), features, **IDS, beam_size=3, max_length=4)
    assert not beams.ended[0].any()
    assert beams.lengths[0].tolist() == [4, 4, 4]
    assert NULL not in beams.words[0]
    assert beams.log_probs[0].isfinite().all()
    assert beams.ended[1].all()


@pytest.mark.parametrize("end", [None, 99])
def test_without_an_end_every_caption_has_max_length(end: int | None) -> None:
    beams = beam_search(TableStepper(GARDEN_PATH), rows(1), start=START, end=end, null=NULL, beam_size=2, max_length=3)
    assert spoken(beams) == [[B, END, C], [A, B, END]]
    assert not beams.ended.any()


def test_fewer_words_than_places() -> None:
    """Six captions of at most two words can be said, of ten places."""
    beams = beam_search(TableStepper(GARDEN_PATH), rows(1), **IDS, beam_size=10, max_length=2)
    assert spoken(beams) == [[B, END], [A, B], [A, END], [A, A], [B, A], [B, B], [], [], [], []]
    assert beams.words[0, 6:].unique().tolist() == [NULL]
    assert beams.log_probs[0, 6:].tolist() == beams.scores[0, 6:].tolist() == [-math.inf] * 4
    assert beams.ended[0].tolist() == [True, False, True, *[False] * 7]


def test_of_equals_the_first_stand_first() -> None:
    """By the hypothesis continued, then by the word, in every run; of captions by when they ended."""
    stepper = TableStepper([[1 / 6] * 6] * 6)
    beams = beam_search(stepper, rows(2), **IDS, beam_size=3, max_length=2)
    assert spoken(beams) == spoken(beams, 1) == [[END], [A, END], [A, A]]
    assert equal(beams, beam_search(stepper, rows(2), **IDS, beam_size=3, max_length=2))


# Against every caption there is ---------------------------------------------------------------------------------------


def every_caption(V: int, max_length: int, forbidden: set[int]) -> list[list[int]]:
    """All sequences of words that end, or have max_length words."""
    words = [word for word in range(V) if word not in forbidden]
    return [
        list(caption)
        for length in range(1, max_length + 1)
        for caption in itertools.product(words, repeat=length)
        if END not in caption[:-1] and (caption[-1] == END or length == max_length)
    ]


class Tables(TableStepper):
    """A random table for each step: no two captions are equally likely."""

    def __init__(self, V: int, seed: int) -> None:
        super().__init__()
        self.scores = 3 * torch.randn(8, V, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def step(self, words: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        features, count = state
        self.steps += 1
        self.rows.append(len(words))
        return self.scores[count, words] + features, (features, count + 1)


def ranked(
    stepper: Tables, features: Tensor, captions: list[list[int]], penalty: Callable[[int], float]
) -> list[tuple[float, list[int]]]:
    """Captions with their scores, best first."""
    scored = []
    for caption in captions:
        total = 0.0
        for t, (last, word) in enumerate(zip([START, *caption], caption, strict=False)):
            total += torch.log_softmax(stepper.scores[t, last] + features, 0)[word].item()
        scored.append((total / penalty(len(caption)), caption))
    return sorted(scored, key=lambda pair: -pair[0])


PENALTIES: dict[LengthPenalty, Callable[[int], float]] = {
    0.0: lambda n: 1.0,
    0.7: lambda n: ((5 + n) / 6) ** 0.7,
    2: lambda n: ((5 + n) / 6) ** 2,
    "mean": float,
}


@pytest.mark.parametrize("length_penalty", PENALTIES)
@given(V=st.integers(4, 6), max_length=st.integers(1, 4), seed=st.integers(0, 9999))
def test_a_wide_beam_finds_them_all_in_order(length_penalty: LengthPenalty, V: int, max_length: int, seed: int) -> None:
    stepper = Tables(V, seed)
    features = torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = ranked(stepper, features, every_caption(V, max_length, {NULL, START}), PENALTIES[length_penalty])
    beams = beam_search(
        stepper,
        features.unsqueeze(0),
        **IDS,
        beam_size=len(expected) + 2,
        max_length=max_length,
        length_penalty=length_penalty,
    )
    assert spoken(beams)[:-2] == [caption for _, caption in expected]
    torch.testing.assert_close(
        beams.scores[0, :-2], torch.tensor([score for score, _ in expected], dtype=torch.float64)
    )
    assert beams.ended[0, :-2].tolist() == [caption[-1] == END for _, caption in expected]
    assert beams.lengths[0, -2:].tolist() == [0, 0]


@pytest.mark.parametrize("n", [1, 2, 3])
@given(V=st.integers(5, 6), max_length=st.integers(1, 4), seed=st.integers(0, 9999))
def test_no_ngram_is_repeated(n: int, V: int, max_length: int, seed: int) -> None:
    stepper, features = Tables(V, seed), torch.zeros(V, dtype=torch.float64)

    def is_clean(caption: list[int]) -> bool:
        grams = [tuple(caption[k : k + n]) for k in range(len(caption) - n + 1)]
        return len(grams) == len(set(grams))

    captions = [caption for caption in every_caption(V, max_length, {NULL, START}) if is_clean(caption)]
    expected = ranked(stepper, features, captions, PENALTIES[0.0])
    options = {"beam_size": len(captions), "max_length": max_length, "no_repeat_ngram": n}
    beams = beam_search(stepper, features.unsqueeze(0), **IDS, **options)
    assert spoken(beams) == [caption for _, caption in expected]


@pytest.mark.parametrize("length_penalty", PENALTIES)
@settings(max_examples=40)
@given(seed=st.integers(0, 9999), beam_size=st.integers(2, 6), n_best=st.integers(1, 5))
def test_stopping_early_loses_nothing(length_penalty: LengthPenalty, seed: int, beam_size: int, n_best: int) -> None:
    """The best of all beams, and the few that are asked for, which may be found sooner."""
    n_best = min(n_best, beam_size)
    features = torch.randn(7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    options = {**IDS, "beam_size": beam_size, "max_length": 8, "length_penalty": length_penalty}
    whole, few = Tables(7, seed), Tables(7, seed)
    all_beams = beam_search(whole, features, **options)
    best = beam_search(few, features, **options, n_best=n_best)
    for name in vars(best):
        assert torch.equal(getattr(best, name), getattr(all_beams, name)[:, :n_best])
    assert few.steps <= whole.steps
    assert sum(few.rows) <= sum(whole.rows)


def test_images_that_are_done_cost_nothing() -> None:
    features = rows(3)
    features[0, END] = -math.inf  # never ends; the best of the others ends at the second step
    features[1, A] = -math.inf  # has one word to begin with
    stepper = TableStepper(GARDEN_PATH)
    beam_search(stepper, features, **IDS, beam_size=2, max_length=6, n_best=1)
    assert stepper.rows == [3, 5, 2, 2, 2, 2]


# Against greedy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell_type", CELLS)
@given(
    N=st.integers(0, 7),
    V=st.integers(4, 30),
    H=st.integers(1, 8),
    seed=st.integers(0, 999),
    length_penalty=st.sampled_from([*PENALTIES]),
    avoid=st.sampled_from([(), (3,)]),
)
def test_width_one_is_greedy(
    cell_type: str, N: int, V: int, H: int, seed: int, length_penalty: LengthPenalty, avoid: tuple[int, ...]
) -> None:
    model = captioner(cell_type, V=V, H=H)
    features = images(cell_type, N, seed)
    expected = greedy(model.stepper(0), features, **CAPTIONER_IDS, max_length=12, avoid=avoid)
    for stepper in (model.stepper(0), model.stepper(10**6), model):
        beams = beam_search(
            stepper,
            features,
            **CAPTIONER_IDS,
            beam_size=1,
            max_length=12,
            length_penalty=length_penalty,
            avoid=avoid,
        )
        assert torch.equal(beams.words[:, 0], expected.words)
        torch.testing.assert_close(beams.log_probs[:, 0], expected.log_probs.double(), rtol=1e-12, atol=1e-12)
        assert torch.equal(beams.ended[:, 0], (expected.words == 2).any(1))


def test_null_and_start_are_never_generated() -> None:
    """After b the model of the table likes <NULL> best."""
    beams = beam_search(TableStepper(), rows(1), **IDS, beam_size=5, max_length=7)
    for caption in spoken(beams):
        assert not {NULL, START} & set(caption)
    as_end = beam_search(TableStepper(), rows(1), start=START, end=NULL, null=NULL, beam_size=5, max_length=7)
    assert any(caption[-1] == NULL for caption in spoken(as_end))  # greedy says it too where it is the end
    assert as_end.ended.any()


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell_type", CELLS)
@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    beam_size=st.integers(1, 5),
    n_best=st.integers(1, 5),
    repeat=st.sampled_from([None, 1, 2]),
)
def test_an_image_alone_and_in_any_batch(
    cell_type: str, seed: int, beam_size: int, n_best: int, repeat: int | None
) -> None:
    model = captioner(cell_type)
    generator = torch.Generator().manual_seed(seed)
    features = images(cell_type, 6, seed)
    options = {"beam_size": beam_size, "max_length": 9, "n_best": min(n_best, beam_size), "no_repeat_ngram": repeat}
    options |= {"length_penalty": 0.7, **CAPTIONER_IDS}
    together = beam_search(model.stepper(0), features, **options)
    order = torch.randperm(6, generator=generator)
    shuffled = beam_search(model.stepper(0), features[order], **options)
    for place, row in enumerate(order.tolist()):
        alone = beam_search(model.stepper(0), features[row : row + 1], **options)
        for other in (alone.words[0], shuffled.words[place]):
            assert torch.equal(other, together.words[row])
        torch.testing.assert_close(alone.scores[0], together.scores[row], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(shuffled.scores[place], together.scores[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell_type", CELLS)
def test_log_probabilities_are_the_models(cell_type: str) -> None:
    """Recomputed word by word; captions differ, and are in order."""
    model = captioner(cell_type)
    features = images(cell_type, 9, 2)
    beams = beam_search(model.stepper(0), features, **CAPTIONER_IDS, beam_size=4, max_length=7, length_penalty=1.0)
    for row in range(9):
        expected = teacher_forced(model, features[[row] * 4], beams.words[row], 2)
        torch.testing.assert_close(beams.log_probs[row], expected, rtol=1e-12, atol=1e-12)
        assert (beams.scores[row].diff() <= 0).all()
        assert beams.words[row].unique(dim=0).shape[0] == 4
    assert torch.equal(beams.ended, (beams.words == 2).any(2))
    assert torch.equal(beams.lengths, (beams.words != 0).sum(2))
    assert beams.ended.any()
    assert not beams.ended.all()


@pytest.mark.parametrize("cell_type", CELLS)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_which_parts_of_a_captioners_state_are_constant(cell_type: str, num_layers: int) -> None:
    model = captioner(cell_type, num_layers=num_layers)
    stepper = model.stepper(0)
    state = stepper.begin(images(cell_type, 3))
    before = [part.clone() for part in state]
    _, after = stepper.step(torch.tensor([4, 5, 6]), state)
    stayed = [torch.equal(part, old) for part, old in zip(after, before, strict=True)]
    assert stayed == [False] * (len(state) - stepper.constant) + [True] * stepper.constant


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_are_float64(dtype: torch.dtype) -> None:
    class Half(TableStepper):
        def step(self, words: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            scores, state = super().step(words, state)
            return scores.to(dtype), state

    beams = beam_search(Half(GARDEN_PATH), rows(1), **IDS, beam_size=2, max_length=3)
    assert beams.log_probs.dtype == beams.scores.dtype == torch.float64
    assert beams.log_probs[0, 0].item() == pytest.approx(math.log(0.4 * 0.9), abs=0.02)


# Errors ---------------------------------------------------------------------------------------------------------------


def test_non_finite_scores_at_a_later_step() -> None:
    table = [row.copy() for row in GARDEN_PATH]
    table[B] = [math.nan] * 6
    with pytest.raises(ValueError, match="row 0 has no word to choose at step 1"):
        beam_search(TableStepper(table), rows(1), **IDS, beam_size=2)


def test_a_row_without_words_at_a_later_step() -> None:
    with pytest.raises(ValueError, match="row 0 has no word to choose at step 2"):  # a, b, and no other word
        beam_search(TableStepper(), rows(1), **IDS | {"end": None}, beam_size=1, avoid=[END, C], no_repeat_ngram=1)


def test_a_hypothesis_that_cannot_continue_leaves_the_others() -> None:
    """After a nothing can be said; after b there is <END>."""
    table = [row.copy() for row in GARDEN_PATH]
    table[A] = [1.0, 0, 0, 0, 0, 0]
    beams = beam_search(TableStepper(table), rows(1), **IDS, beam_size=2, max_length=3)
    assert spoken(beams) == [[B, END], []]
