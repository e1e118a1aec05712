"""Captions of a split's images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.tiny_data import D, write_tiny
from tests.helpers.training import model_of
from torch_caption.data.dataset import Split, open_data
from torch_caption.decoding import DecodingOptions
from torch_caption.inference.captions import attention_maps, caption_images
from torch_caption.model.captioner import CaptioningRNN


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return open_data(write_tiny(tmp_path_factory.mktemp("data") / "tiny"))["val"]


@pytest.fixture(scope="module")
def model(split: Split) -> CaptioningRNN:
    """An untrained one in float64, which gives the same in batches of any size."""
    torch.manual_seed(0)
    model = CaptioningRNN(split.vocabulary.word_to_idx, D, 6, 8, "rnn").double()
    with torch.no_grad():
        model.W_embed.mul_(100)
        model.W_vocab.mul_(3)
        model.b_vocab[split.vocabulary.word_to_idx["<END>"]] = 1  # some captions end
    return model


def test_the_best_caption_of_a_beam_is_the_first_of_the_n_best(model: CaptioningRNN, split: Split) -> None:
    """In batches of any size, by default with a length penalty."""
    images = [7, 0, 11, 3, 5]
    four = DecodingOptions(beam_size=4, max_length=6)
    found = caption_images(model, split, images, four)
    assert [*found] == images
    assert all(len(captions) == 4 for captions in found.values())
    by_twos = caption_images(model, split, iter(images), replace(four, length_penalty=0.7), batch_size=2)
    for idx, captions in found.items():
        assert [caption.text for caption in captions] == [caption.text for caption in by_twos[idx]]
        scores = [caption.score for caption in by_twos[idx]]
        assert [caption.score for caption in captions] == pytest.approx(scores, rel=1e-12)
    best = caption_images(model, split, images, replace(four, n_best=1))
    assert best == {idx: captions[:1] for idx, captions in found.items()}
    likeliest = caption_images(model, split, images, replace(four, length_penalty=0.0, n_best=1))
    for (caption,) in likeliest.values():
        assert caption.score == caption.log_prob
    for (caption,) in best.values():
        length = len(caption.text.split()) + caption.ended
        assert caption.score == pytest.approx(caption.log_prob / ((5 + length) / 6) ** 0.7)


def test_a_beam_of_one_is_greedy(model: CaptioningRNN, split: Split) -> None:
    greedy = caption_images(model, split, range(12), DecodingOptions(max_length=6))
    beams = caption_images(model, split, range(12), DecodingOptions("beam", max_length=6))
    for idx, (caption,) in greedy.items():
        assert caption.score is None
        assert (caption.text, caption.ended) == (beams[idx][0].text, beams[idx][0].ended)
        assert caption.log_prob == pytest.approx(beams[idx][0].log_prob, rel=1e-12)
    assert len({caption.ended for (caption,) in greedy.values()}) == 2


def test_no_images(model: CaptioningRNN, split: Split) -> None:
    assert caption_images(model, split, [], DecodingOptions(beam_size=3)) == caption_images(model, split, []) == {}


def test_a_beam_wider_than_the_vocabulary_gives_fewer_captions(model: CaptioningRNN, split: Split) -> None:
    (captions,) = caption_images(model, split, [0], DecodingOptions(beam_size=50, max_length=1)).values()
    assert len(captions) == model.vocab_size - 2


def test_attention_depends_on_the_words_of_its_caption_alone(tmp_path: Path) -> None:
    """One image has several captions, of several lengths."""
    data = open_data(write_tiny(tmp_path / "grids", grids=True), grids=True)
    split, model = data["val"], model_of(data, cell_type="attention").eval()
    texts = ["a red circle", "", "one red circle is here", "dragon"]  # <UNK> where the vocabulary has no dragon
    features = split.features_of([3, 3, 5, 3])
    together = attention_maps(model, split.vocabulary, features, texts)
    assert [weights.shape for weights in together] == [(3, 3, 2), (0, 3, 2), (5, 3, 2), (1, 3, 2)]
    for k, text in enumerate(texts):
        (alone,) = attention_maps(model, split.vocabulary, features[k : k + 1], [text])
        np.testing.assert_allclose(alone, together[k], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(alone.sum((1, 2)), 1, rtol=1e-5)


def test_sampled_captions_depend_on_the_seed_and_the_image_alone(split: Split, model: CaptioningRNN) -> None:
    four = DecodingOptions(samples=4, max_length=6)
    drawn = caption_images(model, split, [2, 5, 7], four, seed=1)
    assert caption_images(model, split, [7], four, seed=1)[7] == drawn[7]
    assert caption_images(model, split, [7], four, seed=2)[7] != drawn[7]
    assert len({caption.text for caption in drawn[2]}) > 1
    greedy = caption_images(model, split, [2, 5, 7], DecodingOptions(max_length=6))
    for idx, (caption,) in caption_images(model, split, [2, 5, 7], DecodingOptions(top_k=1, max_length=6)).items():
        assert caption.text == greedy[idx][0].text
        assert caption.log_prob == pytest.approx(greedy[idx][0].log_prob, rel=1e-5)
