"""Options and filters that greedy decoding, sampling and beam search share."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any, get_args, get_type_hints

import pytest
import torch

from tests.helpers.steppers import (
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
    decoded_by,
    first,
    greedy,
    images,
    rows,
    sample,
)
from torch_caption.decoding import METHODS, DecodingOptions, TokenIds, decode
from torch_caption.decoding import options as module

WAYS = {  # each finds the likeliest caption of a table
    "greedy": greedy,
    "sampling": lambda *args, **options: sample(*args, **options, top_k=1),
    "beam": lambda *args, **options: first(beam_search(*args, **options, beam_size=1)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"avoid": [A]}, [B, END, NULL, NULL, NULL]),
        ({"min_length": 3}, [A, B, A, B, END]),  # after the second word <END> is the likeliest
        ({"min_length": 4}, [A, B, A, B, END]),
        ({"no_repeat_ngram": 1, "avoid": [END]}, [A, B, C, NULL, NULL]),
        ({"no_repeat_ngram": 2, "avoid": [END]}, [A, B, A, A, NULL]),
    ],
)
def test_every_method_filters(way: str, options: dict[str, Any], words: list[int]) -> None:
    """The log-probability stays the model's."""
    length = len([word for word in words if word != NULL])
    features = rows(1)
    found = WAYS[way](TableStepper(), features, **IDS, max_length=length, **options)
    assert found.words[0].tolist() == words[:length]
    free = decoded_by("greedy", TableStepper(), features, **IDS, max_length=length)
    assert free.words[0, 0].tolist() != words[:length]
    before = [START, *words]
    pairs = zip(before, words[:length], strict=False)
    p = math.prod(TableStepper().scores.exp()[last, word].item() for last, word in pairs)
    assert found.log_probs.exp().item() == pytest.approx(p)


@pytest.mark.parametrize("method", METHODS)
def test_the_minimum_length_is_that_before_the_end(method: str) -> None:
    options = {"samples": 3} if method == "sampling" else {"beam_size": 3} if method == "beam" else {}
    found = decoded_by(method, TableStepper(), rows(50), **IDS, min_length=4, max_length=9, **options)
    words = found.words.flatten(0, 1)[found.lengths.flatten() > 0]
    assert (words == END).any()
    assert not (words[:, :4] == END).any()


def test_min_p_is_relative_to_the_likeliest_word() -> None:
    """After <START> a has .5, b .3, <END> .1: .6 of .5 is .3, which is kept as it is no less."""
    for min_p, kept in ((0.2, {A, B, END}), (0.21, {A, B}), (0.59, {A, B}), (0.61, {A}), (1.0, {A})):
        drawn = sample(TableStepper(), rows(999), **IDS, max_length=1, min_p=min_p, generator=torch.Generator())
        assert set(drawn.words.flatten().tolist()) == kept


def test_samples_stand_side_by_side() -> None:
    features = rows(2)
    features[1, END] = 20.0
    found = decode(TableStepper(), features, TokenIds(**IDS), DecodingOptions(samples=40, max_length=6))
    assert found.words.shape == (2, 40, 6)
    assert found.words[0].unique(dim=0).shape[0] > 1
    assert (found.words[1, :, 0] == END).all()
    assert torch.equal(found.lengths, (found.words != NULL).sum(2))
    assert torch.equal(found.ended, (found.words == END).any(2))
    assert torch.equal(found.scores, found.log_probs)
    features[1, A] = math.nan
    with pytest.raises(ValueError, match=r"^row 1 has no word to choose at step 0"):
        decode(TableStepper(), features, TokenIds(**IDS), DecodingOptions(samples=40))


def test_words_to_avoid_are_of_the_vocabulary() -> None:
    ids = TokenIds(START, END, NULL, unk=C, words={"a": A})
    assert decode(TableStepper(), rows(1), ids, DecodingOptions(avoid=("a",))).words[0, 0, 0] == B
    for options in (DecodingOptions(avoid=("a", "dog")), DecodingOptions(avoid=("dog",), beam_size=2)):
        with pytest.raises(ValueError, match=r"^avoid: the vocabulary has no word 'dog'$"):
            decode(TableStepper(), rows(1), ids, options)
    features = rows(1)
    features[0, C] = math.inf
    with pytest.raises(ValueError, match="row 0 has no word"):
        decode(TableStepper(), features, ids, DecodingOptions(no_unk=True))


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({}, "greedy"),
        ({"n_best": 1, "max_length": 9, "no_repeat_ngram": 2}, "greedy"),
        ({"beam_size": 2}, "beam"),
        ({"length_penalty": "mean"}, "beam"),
        ({"beam_size": 3, "n_best": 2}, "beam"),
        ({"samples": 2}, "sampling"),
        ({"temperature": 1.0}, "sampling"),
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.1}, "sampling"),
        ({"method": "sampling"}, "sampling"),
        ({"method": "beam", "length_penalty": 0.0}, "beam"),
    ],
)
def test_the_method_is_that_of_the_options(options: dict[str, Any], method: str) -> None:
    assert DecodingOptions(**options).resolve() == method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "^method must be auto, greedy, beam, sampling, not best$"),
        ({"beam_size": 5, "top_k": 3}, "^top_k 3 is an option of sampling, but beam_size 5 of beam: use one of them$"),
        ({"method": "greedy", "samples": 2}, "^samples 2 is an option of sampling, but method greedy of greedy: "),
        ({"min_length": 30}, "^min_length must be below max_length, which is 30 and counts <END>, not 30$"),
        ({"min_length": -1}, "^min_length must be an integer of at least 0, not -1$"),
        ({"min_p": 0.0}, "^min_p must be above 0 and at most 1, not 0.0$"),
        ({"min_p": 1.1}, "^min_p must be above 0 and at most 1, not 1.1$"),
        ({"max_length": 0}, "^max_length must be an integer of at least 1, not 0$"),
        ({"temperature": 0.0}, "^temperature must be a positive number, not 0.0$"),
        ({"temperature": math.nan}, "^temperature must be a positive number, not nan$"),
        ({"temperature": math.inf}, "^temperature must be a positive number, not inf$"),
        ({"top_k": 0}, "^top_k must be an integer of at least 1, not 0$"),
        ({"top_k": 2.5}, "^top_k must be an integer of at least 1, not 2.5$"),
        ({"top_p": 0.0}, "^top_p must be above 0 and at most 1, not 0.0$"),
        ({"top_p": 1.01}, "^top_p must be above 0 and at most 1, not 1.01$"),
        ({"beam_size": 0}, "^beam_size must be an integer of at least 1, not 0$"),
        ({"beam_size": 3, "n_best": 0}, "^n_best must be an integer of at least 1, not 0$"),
        ({"beam_size": 3, "n_best": 4}, "^n_best must be at most beam_size, which is 3, not 4$"),
        ({"no_repeat_ngram": 0}, "^no_repeat_ngram must be an integer of at least 1, not 0$"),
        ({"length_penalty": -0.1}, "^length_penalty must be 0, a positive number or mean, not -0.1$"),
        ({"length_penalty": math.nan}, "^length_penalty must be 0, a positive number or mean, not nan$"),
        ({"length_penalty": "none"}, "^length_penalty must be 0, a positive number or mean, not none$"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodingOptions(**options).resolve()
    with pytest.raises(ValueError, match="^--" + message[1:].split(maxsplit=1)[0].replace("_", "-")):
        DecodingOptions(**options).resolve(lambda name: f"--{name.replace('_', '-')}")


def test_the_methods_of_the_flag_are_those_that_there_are() -> None:
    assert [*METHODS] == [*module.METHODS]
    assert get_args(get_type_hints(DecodingOptions)["method"]) == ("auto", *METHODS)


def test_options_and_results_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        DecodingOptions().beam_size = 2  # type: ignore[misc]
    decoded = greedy(TableStepper(), rows(1), **IDS)
    with pytest.raises(FrozenInstanceError):
        decoded.words = decoded.words  # type: ignore[misc]


@pytest.mark.parametrize("way", WAYS)
def test_no_rows(way: str) -> None:
    decoded = WAYS[way](TableStepper(), rows(0), **IDS)
    assert decoded.words.shape == (0, 30)
    assert decoded.log_probs.shape == decoded.scores.shape == decoded.lengths.shape == decoded.ended.shape == (0,)


@pytest.mark.parametrize("way", WAYS)
def test_no_graph_is_built(way: str) -> None:
    features = rows(2).requires_grad_()
    assert not WAYS[way](TableStepper(), features, **IDS).log_probs.requires_grad
    assert torch.equal(features, rows(2))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_scores_name_the_row(way: str, bad: float) -> None:
    features = rows(3)
    features[2, A] = bad
    with pytest.raises(ValueError, match="row 2 has no word to choose at step 0"):
        WAYS[way](TableStepper(), features, **IDS)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_with_only_forbidden_words_is_an_error(way: str) -> None:
    with pytest.raises(ValueError, match="row 0 has no word to choose at step 0"):
        WAYS[way](TableStepper([[1.0, 0, 0, 0, 0, 0]] * 6), rows(1), **IDS)


@pytest.mark.parametrize("method", METHODS)
def test_a_captioner_decodes_as_its_stepper(method: str) -> None:
    model, features = captioner("lstm"), images("lstm", 4)
    options = DecodingOptions(method, max_length=7, no_unk=True, avoid=("w20",))
    found = model.decode(features, options, torch.Generator().manual_seed(3))
    ids = TokenIds(1, 2, 0, 3, {"w20": 20})
    expected = decode(model.stepper(0), features, ids, options, torch.Generator().manual_seed(3))
    for part, other in zip(vars(found).values(), vars(expected).values(), strict=True):
        torch.testing.assert_close(part, other, rtol=1e-12, atol=1e-12)
    assert not torch.isin(found.words, torch.tensor([3, 20])).any()
    plain = model.decode(features, replace(options, no_unk=False, avoid=()), torch.Generator().manual_seed(3))
    assert not torch.equal(plain.words, found.words)
