"""Objectives of training: scheduled sampling, and self-critical training with its rewards."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.rings import ringed
from tests.helpers.tiny_data import write_tiny
from tests.helpers.training import data_for
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData, batches, open_data
from torch_caption.decoding import DecodingOptions, decode
from torch_caption.errors import ConfigError
from torch_caption.metrics.cider import CiderReward
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS
from torch_caption.training import objectives
from torch_caption.training.non_finite import rows_of_captions
from torch_caption.training.objectives import (
    CaptionedImages,
    Likelihood,
    SelfCritical,
    Targets,
    make_objective,
    sample_inputs,
)

SCST = TrainConfig(objective="scst", init_from=Path("somewhere"), max_length=6)


@pytest.fixture(params=ringed(CELLS, ["attention"]))
def cell_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def data(request: pytest.FixtureRequest, directory: Path) -> CocoData:
    """With the features that the test's cell attends to."""
    cell_type = request.getfixturevalue("cell_type") if "cell_type" in request.fixturenames else "rnn"
    return data_for(cell_type, directory)


def model_of(data: CocoData, cell_type: str = "rnn", **options: Any) -> CaptioningRNN:
    """A float64 model whose weights are larger than the initial ones, so that all of them matter."""
    torch.manual_seed(0)
    model = CaptioningRNN(data.vocabulary.word_to_idx, 8, 6, 16, cell_type, **options).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(1.5 * torch.randn_like(p) / p.shape[0] ** 0.5)
    return model


def whole_batch(data: CocoData) -> tuple[Tensor, Tensor]:
    features, captions = next(iter(batches(data["train"], 100, shuffle=False)))
    return features.double(), captions


# Scheduled sampling ---------------------------------------------------------------------------------------------------


def test_probability_0_reads_the_captions(data: CocoData) -> None:
    features, captions = whole_batch(data)
    assert torch.equal(sample_inputs(model_of(data), features, captions, 0.0), captions[:, :-1])


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_sampled_tokens_replace_words_with_the_probability(data: CocoData, probability: float) -> None:
    """Never <START> or padding, nor by <START> or <NULL>."""
    model, (features, captions) = model_of(data), whole_batch(data)
    given = captions.clone()
    places = captions[:, 1:-1].ne(model.null) & captions[:, 2:].ne(model.null)
    different, drawn = 0, 0
    for seed in range(30):
        torch.manual_seed(seed)
        read = sample_inputs(model, features, captions, probability)
        assert torch.equal(read[:, 0], captions[:, 0])
        assert torch.equal(read[:, 1:][~places], captions[:, 1:-1][~places])
        assert not ((read[:, 1:] == model.start) | (read[:, 1:] == model.null))[places].any()
        different += int((read[:, 1:] != captions[:, 1:-1])[places].sum())
        drawn += int(places.sum())
    assert torch.equal(captions, given)
    assert 0 < different <= drawn
    if probability < 1:  # some sampled tokens equal the reference's
        error = (drawn * probability * (1 - probability)) ** 0.5
        assert 0.6 * drawn * probability < different < drawn * probability + 4 * error


def test_sampled_tokens_are_inputs_of_the_next_step(data: CocoData) -> None:
    """With a model that is certain of the next word."""
    model, (features, captions) = model_of(data), whole_batch(data)
    with torch.no_grad():
        model.W_vocab.mul_(10_000)
    read = sample_inputs(model, features, captions, 1.0)
    state = model.begin(features)
    word = captions[:, 0]
    for t in range(1, read.shape[1]):
        scores, state = model.step(word, state)
        scores[:, [model.null, model.start]] = -math.inf
        going = captions[:, t + 1] != model.null
        word = torch.where(going, scores.argmax(1), captions[:, t])
        assert torch.equal(read[:, t], word)


def test_tokens_are_sampled_from_the_models_distribution(data: CocoData) -> None:
    """Of the token after <START>, over many rows of one image."""
    model, (features, captions) = model_of(data), whole_batch(data)
    n = 20_000
    pictures, rows = features[:1].expand(n, -1), captions[1:2].expand(n, -1)
    torch.manual_seed(0)
    counts = torch.bincount(sample_inputs(model, pictures, rows, 1.0)[:, 1], minlength=model.vocab_size) / n
    scores, _ = model.step(rows[:1, 0], model.begin(features[:1]))
    scores[:, [model.null, model.start]] = -math.inf
    p = scores.softmax(1)[0].detach()
    assert ((counts - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_the_sampling_probability_rises_epoch_by_epoch(data: CocoData, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(scheduled_sampling=0.5, epochs=5)
    model, (features, captions) = model_of(data), whole_batch(data)
    probabilities: list[float] = []
    monkeypatch.setattr(objectives, "sample_inputs", lambda *args: probabilities.append(args[3]))
    objective = Likelihood(config, data["train"])
    for epoch in (0, 1, 2, 4, 9):
        objective.targets(model, features, captions, epoch)
    assert probabilities == [0.125, 0.25, 0.5, 0.5]  # none in the first epoch
    for other in (replace(config, scheduled_sampling=0.0), replace(config, epochs=1)):
        assert Likelihood(other, data["train"]).targets(model, features, captions, 0).inputs is None


# Self-critical training -----------------------------------------------------------------------------------------------


def targets_of(objective: SelfCritical, model: CaptioningRNN, data: CocoData, images: Tensor, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return objective.targets(model, data["train"].features_of(images).double(), images, 0)


def test_an_epoch_goes_through_the_images_once(data: CocoData) -> None:
    objective = make_objective(SCST, data["train"])
    assert isinstance(objective, SelfCritical)
    loader = batches(objective.rows, 5, seed=3)
    seen = [(features, images) for features, images in loader]
    assert [len(images) for _, images in seen] == [5, 5, 2]
    assert sorted(torch.cat([images for _, images in seen]).tolist()) == list(range(12))
    for features, images in seen:
        assert torch.equal(features, data["train"].features_of(images))
    features, image = CaptionedImages(data["train"])[4]
    assert (int(image), features.shape) == (4, (8,))


def test_images_without_captions_are_left_out(data: CocoData, tmp_path: Path) -> None:
    few = open_data(write_tiny(tmp_path / "few"), max_train=3)
    images = few["train"].image_idxs.unique()
    assert len(images) < 12
    rows = CaptionedImages(few["train"])
    assert torch.equal(rows.__getitems__(list(range(len(rows))))[1], images)


def test_sampled_captions_are_weighted_by_their_advantage(data: CocoData, cell_type: str) -> None:
    """Reward and baseline are CIDEr-D over the training captions, in which <END> is a token."""
    model, objective = model_of(data, cell_type), SelfCritical(SCST, data["train"])
    images = torch.tensor([7, 0, 3, 3])
    targets = targets_of(objective, model, data, images)
    features = data["train"].features_of(images).double()
    assert torch.equal(targets.features, features.repeat_interleave(SCST.samples, 0))
    torch.manual_seed(0)
    options = DecodingOptions("sampling", max_length=6, samples=SCST.samples)
    drawn = decode(model.stepper(10**6), features, model.token_ids(), options).words
    assert torch.equal(targets.captions[:, 1:], drawn.flatten(0, 1))
    assert (targets.captions[:, 0] == model.start).all()
    references = {image: [[*text.split(), "<END>"] for text in data["train"].references(image)] for image in range(12)}
    reward = CiderReward(references)

    def scored(words: Tensor) -> np.ndarray:
        texts = [data.vocabulary.decode(row).split() for row in words.tolist()]
        ended = [model.end in row for row in words.tolist()]
        return reward(images.tolist(), [[*t, *["<END>"] * e] for t, e in zip(texts, ended, strict=True)])

    rewards = np.stack([scored(drawn[:, k]) for k in range(SCST.samples)], axis=1)
    others = np.stack([np.delete(rewards, k, axis=1).mean(1) for k in range(SCST.samples)], axis=1)
    advantages = (rewards - others).flatten()
    assert len(set(advantages.tolist())) > 1
    assert targets.weights.dtype == torch.float64
    for column in targets.weights.T:
        np.testing.assert_allclose(column.numpy(), advantages, rtol=1e-9)
    np.testing.assert_allclose(targets.rewards.numpy(), rewards.flatten(), rtol=1e-12)


def test_the_image_of_a_sample_without_a_finite_loss_is_found(data: CocoData, cell_type: str) -> None:
    """Also where the last rank has no images."""
    model, objective = model_of(data, cell_type), SelfCritical(SCST, data["train"])
    targets = targets_of(objective, model, data, torch.arange(4))
    for samples, rows in (([], []), ([7], [1]), ([5, 9, 19], [1, 3])):
        weights = targets.weights.clone()
        weights[samples] = torch.nan
        assert rows_of_captions(model, replace(targets, weights=weights), 4, "none") == rows
    none = Targets(targets.features[:0], targets.captions[:0])
    assert rows_of_captions(model, none, 0, "none") == []


def test_a_truncated_caption_has_a_lower_reward(data: CocoData) -> None:
    objective, vocabulary = SelfCritical(SCST, data["train"]), data.vocabulary
    text = data["train"].references(5)[1]
    whole = vocabulary.encode(text.split())[1:]
    rows = [whole, whole[:-1], whole[:-2]]
    words = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
    rewards = objective.reward([5, 5, 5], words)
    assert rewards.dtype == torch.float64
    assert rewards[0] > rewards[1] > rewards[2] > 0


def test_rewards_that_would_all_be_0_are_refused(tmp_path: Path) -> None:
    one = open_data(write_tiny(tmp_path / "one"), max_train=1)["train"]
    with pytest.raises(ConfigError, match="train has captions of only one image, so all rewards would be 0"):
        SelfCritical(SCST, one)
    same = open_data(tmp_path / "one")["train"]
    same.captions[:] = same.captions[0]
    with pytest.raises(ConfigError, match="the same captions for all 12 images, so all rewards would be 0"):
        SelfCritical(SCST, same)


def test_an_unknown_word_has_no_reward(tmp_path: Path) -> None:
    data = open_data(write_tiny(tmp_path / "tiny"))
    split, unknown = data["train"], data.vocabulary.word_to_idx["<UNK>"]
    red = data.vocabulary.word_to_idx["red"]
    split.captions[split.captions == red] = unknown
    objective = SelfCritical(SCST, split)
    row = split.captions[split.image_idxs == 0][0]
    assert unknown in row
    caption = row[1:].unsqueeze(0)
    strange = torch.where(caption == unknown, 999, caption)
    assert objective.reward([0], caption) == objective.reward([0], strange)
    matching = CiderReward({image: [[*t.split(), "<END>"] for t in split.references(image)] for image in range(12)})
    assert objective.reward([0], caption).item() < matching([0], [[*split.references(0)[0].split(), "<END>"]])[0]


def test_the_gradient_is_that_of_reinforce(data: CocoData, cell_type: str) -> None:
    """The gradient by torch.autograd of -(r - b) log p of the sampled captions, step by step."""
    model, objective = model_of(data, cell_type, dropout=0.5, label_smoothing=0.1), SelfCritical(SCST, data["train"])
    images = torch.arange(12)
    targets = targets_of(objective, model, data, images)
    names, params = zip(*model.named_parameters(), strict=True)
    model.train(objective.drops)  # as training has it
    loss = model(targets.features, targets.captions, weights=targets.weights)
    found = torch.autograd.grad(loss, params)

    auto = model_of(data, cell_type, gradients="auto")
    expected_loss = torch.zeros((), dtype=torch.float64)
    rows = len(targets.captions)
    assert rows == 12 * SCST.samples
    for n in range(rows):
        state, log_p = auto.begin(targets.features[n : n + 1]), torch.zeros((), dtype=torch.float64)
        for t in range(targets.captions.shape[1] - 1):
            scores, state = auto.step(targets.captions[n : n + 1, t], state)
            word = targets.captions[n, t + 1]
            if word == auto.null:
                break
            log_p = log_p + scores.log_softmax(1)[0, word]
        expected_loss = expected_loss - targets.weights[n, 0] * log_p / rows
    expected = torch.autograd.grad(expected_loss, tuple(auto.parameters()))
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-12)
    for name, ours, theirs in zip(names, found, expected, strict=True):
        assert theirs.abs().max() > 0, name
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()), msg=name)


def test_the_mean_gradient_is_that_of_the_expected_reward(data: CocoData) -> None:
    """For captions of at most two words, all of which can be enumerated."""
    model = model_of(data)
    with torch.no_grad():  # <START> and <NULL> cannot be drawn: let them have no probability
        model.b_vocab[[model.null, model.start]] = -60
    objective = SelfCritical(replace(SCST, max_length=2), data["train"])
    features = data["train"].features_of([4]).double()
    words = [w for w in range(model.vocab_size) if w not in (model.null, model.start)]
    both = [[w, v] for w in words if w != model.end for v in words] + [[model.end, model.null]]
    rewards = objective.reward([4] * len(both), torch.tensor(both))
    captions = torch.tensor([[model.start, *pair] for pair in both])
    log_p = torch.stack([-model(features, row.unsqueeze(0)) for row in captions])
    assert log_p.exp().sum().item() == pytest.approx(1, rel=1e-12)
    params = tuple(model.parameters())
    exact = torch.autograd.grad((log_p.exp() * rewards).sum(), params)
    n = 40_000 // SCST.samples
    torch.manual_seed(1)
    targets = objective.targets(model, features.expand(n, -1), torch.full((n,), 4), 0)
    drawn = torch.autograd.grad(-model(targets.features, targets.captions, weights=targets.weights), params)
    assert targets.rewards.mean().item() == pytest.approx((log_p.exp() * rewards).sum().item(), rel=0.05)
    whole, estimate = (torch.cat([g.flatten() for g in gradients]) for gradients in (exact, drawn))
    assert torch.nn.functional.cosine_similarity(whole, estimate, dim=0) > 0.98
    assert (estimate.norm() / whole.norm()).item() == pytest.approx(1, abs=0.1)
