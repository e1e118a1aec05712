"""How likely given words are, and what else might have stood there."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.steppers import (
    CAPTIONER_IDS,
    END,
    IDS,
    NULL,
    A,
    B,
    C,
    TableStepper,
    captioner,
    greedy,
    images,
    rows,
    teacher_forced,
)
from torch_caption.decoding import TokenIds, alternatives
from torch_caption.model.cells import CELLS


def test_by_hand() -> None:
    """a, b, <END>: after <START> a .5, b .3, <END> .1; after a b .6, <END> .25, a .1; after b <NULL> .4 is left out."""
    words = torch.tensor([[A, B, END, NULL]])
    found = alternatives(TableStepper(), rows(1), words, TokenIds(**IDS), k=3)
    assert found.words.tolist() == [[[A, B, END], [B, END, A], [END, A, C], [NULL, NULL, NULL]]]
    expected = [[[0.5, 0.3, 0.1], [0.6, 0.25, 0.1], [0.35, 0.15, 0.1], [0, 0, 0]]]
    torch.testing.assert_close(found.probs, torch.tensor(expected, dtype=torch.float64))
    own = [[math.log(0.5), math.log(0.6), math.log(0.35), 0.0]]
    torch.testing.assert_close(found.log_probs, torch.tensor(own, dtype=torch.float64))


def test_fewer_words_than_asked_for() -> None:
    found = alternatives(TableStepper(), rows(1), torch.tensor([[B]]), TokenIds(**IDS), k=9)
    assert found.words.tolist() == [[[A, B, END, *[NULL] * 6]]]
    assert found.probs[0, 0, 3:].tolist() == [0.0] * 6


def test_given_captions_of_different_lengths() -> None:
    """The words need not be likely; a caption is over at its first <NULL> too, and empty ones cost nothing."""
    stepper = TableStepper()
    words = torch.tensor([[B, A, NULL, A], [END, A, A, A], [A, A, A, A], [NULL] * 4], dtype=torch.int32)
    found = alternatives(stepper, rows(4), words, TokenIds(**IDS), k=1)
    assert found.words.squeeze(2).tolist() == [[A, END, NULL, NULL], [A, NULL, NULL, NULL], [A, B, B, B], [NULL] * 4]
    assert stepper.rows == [3, 2, 1, 1]
    torch.testing.assert_close(found.log_probs.exp()[2], torch.tensor([0.5, 0.1, 0.1, 0.1], dtype=torch.float64))


@pytest.mark.parametrize("cell_type", CELLS)
def test_the_sum_is_the_log_probability_of_the_caption(cell_type: str) -> None:
    model = captioner(cell_type)
    features = images(cell_type, 20, 0)
    decoded = greedy(model.stepper(0), features, **CAPTIONER_IDS, max_length=9)
    found = model.alternatives(features, decoded.words)
    torch.testing.assert_close(found.log_probs.sum(1), decoded.log_probs, rtol=1e-12, atol=1e-12)
    spoken = decoded.words != 0
    assert torch.equal(found.words[:, :, 0], decoded.words)  # the greedy word is the likeliest
    torch.testing.assert_close(found.probs[:, :, 0][spoken].log(), found.log_probs[spoken])
    assert (found.probs.diff(dim=2) <= 0).all()
    beams = model.beam_search(features[:3], 4, 9)
    repeated = features[:3].repeat_interleave(4, 0)
    sums = model.alternatives(repeated, beams.words.flatten(0, 1)).log_probs.sum(1)
    torch.testing.assert_close(sums, beams.log_probs.flatten(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sums, teacher_forced(model, repeated, beams.words.flatten(0, 1), 2))


def test_no_captions() -> None:
    found = alternatives(TableStepper(), rows(0), torch.zeros(0, 4, dtype=torch.int64), TokenIds(**IDS), k=2)
    assert found.words.shape == found.probs.shape == (0, 4, 2)


@pytest.mark.parametrize(
    ("words", "k", "message"),
    [
        ([[A, 6]], 5, r"^words\[0, 1\] is 6, but there are 6 words \(0 to 5\)$"),
        ([[-1, A]], 5, r"^words\[0, 0\] is -1, but there are 6 words \(0 to 5\)$"),
        ([A, B], 5, r"^words must be \(1, T\), one caption per row, but are \(2,\)$"),
        ([[A], [B]], 5, r"^words must be \(1, T\), one caption per row, but are \(2, 1\)$"),
        ([[A]], 0, "^k must be at least 1, not 0$"),
    ],
)
def test_arguments_are_checked(words: list, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alternatives(TableStepper(), rows(1), torch.tensor(words), TokenIds(**IDS), k=k)
