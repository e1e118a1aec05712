"""Ensembles: the mean of the members' log-probabilities, by every method of decoding."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.helpers.steppers import CAPTIONER_IDS, captioner, images
from torch_caption.decoding import DecodingOptions, TokenIds, decode, select
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS
from torch_caption.model.ensemble import Ensemble, EnsembleStepper

N, V, LENGTH = 7, 23, 8
METHODS = {
    "greedy": DecodingOptions(max_length=LENGTH, no_repeat_ngram=2, min_length=2),
    "beam": DecodingOptions(max_length=LENGTH, beam_size=4, n_best=2, avoid=("w5",)),
    "sampling": DecodingOptions(max_length=LENGTH, samples=3, temperature=0.8, top_k=9, no_unk=True),
}


def members() -> tuple[list[CaptioningRNN], list[Tensor]]:
    """Models of different cells, sizes, layers and dtypes, with features of each."""
    kinds = [("lstm", {"H": 9}), ("attention", {}), ("gru", {"num_layers": 2}), ("rnn", {"dtype": torch.float32})]
    models = [captioner(cell_type, **options) for cell_type, options in kinds]
    return models, [images(model.cell_type, N, seed, model.dtype) for seed, model in enumerate(models)]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cell_type", CELLS)
def test_a_model_with_itself_captions_as_alone(cell_type: str, method: str) -> None:
    model, features = captioner(cell_type, dtype=torch.float32), images(cell_type, N, dtype=torch.float32)
    alone = model.decode(features, METHODS[method], seeded())
    for given in (features, [features] * 3):
        both = Ensemble([model] * 3).decode(given, METHODS[method], seeded())
        assert torch.equal(both.words, alone.words)
        torch.testing.assert_close(both.log_probs, alone.log_probs, rtol=0, atol=1e-6 * LENGTH)
        assert torch.equal(both.lengths, alone.lengths)


def test_a_step_is_the_mean_of_log_softmax() -> None:
    models, features = members()
    stepper = EnsembleStepper([model.stepper(1) for model in models], features)
    rows = torch.tensor([4, 0, 4])
    state, states = stepper.begin(rows), [model.begin(x[rows]) for model, x in zip(models, features, strict=True)]
    for words in torch.tensor([[1, 1, 1], [5, 6, 7], [8, 8, 9]]):
        found, state = stepper.step(words, state)
        by_hand = torch.zeros(3, V, dtype=torch.float64)
        for m, model in enumerate(models):
            logits, states[m] = model.step(words, states[m])
            by_hand += torch.log_softmax(logits, 1) / len(models)
        torch.testing.assert_close(found, by_hand.detach(), rtol=0, atol=1e-6)


def test_rows_of_every_members_state_are_selected() -> None:
    """In another order, as in beam search, each row continues as if it were alone."""
    models, features = members()

    def stepper() -> EnsembleStepper:
        return EnsembleStepper([model.stepper(1) for model in models], features)

    def continued(image: int, words: list[int]) -> Tensor:
        alone = stepper()
        state = alone.begin(torch.tensor([image]))
        for word in words:
            logits, state = alone.step(torch.tensor([word]), state)
        return logits

    whole = stepper()
    assert whole.constant == 1
    _, state = whole.step(torch.tensor([1, 1, 1]), whole.begin(torch.arange(3)))
    state = select(state, torch.tensor([2, 0, 0, 1]))
    found, _ = whole.step(torch.tensor([5, 6, 7, 8]), state)
    for row, (image, word) in enumerate([(2, 5), (0, 6), (0, 7), (1, 8)]):
        torch.testing.assert_close(found[row : row + 1], continued(image, [1, word]), rtol=0, atol=1e-6)


def test_beam_search_finds_the_best_captions_of_the_mean() -> None:
    """With as many beams as there are captions, those are the best of all."""
    torch.manual_seed(0)
    words = {word: k for k, word in enumerate(["<NULL>", "<START>", "<END>", "<UNK>", "a", "b"])}
    models = [CaptioningRNN(words, 5, 4, 6, cell).double() for cell in ("lstm", "attention", "rnn")]
    features = [images(model.cell_type, 2, seed) for seed, model in enumerate(models)]
    options = DecodingOptions(max_length=3, beam_size=40, n_best=1, length_penalty=0.0)
    found = Ensemble(models).decode(features, options)

    def log_prob(image: int, caption: tuple[int, ...]) -> float:
        stepper = EnsembleStepper([model.stepper(1) for model in models], features)
        state, total, last = stepper.begin(torch.tensor([image])), 0.0, 1
        for word in caption:
            logits, state = stepper.step(torch.tensor([last]), state)
            total, last = total + float(torch.log_softmax(logits, 1)[0, word]), word
        return total

    short = [(2,), (3, 2), (4, 2), (5, 2)]
    captions = [*short, *itertools.product((3, 4, 5), (3, 4, 5), (2, 3, 4, 5))]
    for image in range(2):
        best = max(captions, key=lambda caption: log_prob(image, caption))
        assert found.words[image, 0].tolist() == [*best, *[0] * (3 - len(best))]
        assert float(found.log_probs[image, 0]) == pytest.approx(log_prob(image, best), abs=1e-6)


def test_any_steppers_can_be_members() -> None:
    models, features = members()
    ids = TokenIds(CAPTIONER_IDS["start"], CAPTIONER_IDS["end"], CAPTIONER_IDS["null"])
    stepper = EnsembleStepper([model.double() for model in models], [x.double() for x in features])
    found = decode(stepper, torch.arange(N), ids, DecodingOptions(max_length=LENGTH))
    assert torch.equal(found.words, Ensemble(models).decode(features, DecodingOptions(max_length=LENGTH)).words)


def test_members_that_do_not_fit() -> None:
    one, other = captioner("rnn"), captioner("rnn", V=24)
    with pytest.raises(ValueError, match="the same words with the same ids"):
        Ensemble([one, other])
    with pytest.raises(ValueError, match="the same images, not of 2, 3"):
        Ensemble([one, one]).decode([images("rnn", 2), images("rnn", 3)])
    with pytest.raises(ValueError, match="one for each of 2 models, not 1"):
        Ensemble([one, one]).decode([images("rnn", 2)])
    with pytest.raises(ValueError, match=r"features must be \(N, 5\)"):
        Ensemble([one, one]).decode(torch.zeros(2, 6))
