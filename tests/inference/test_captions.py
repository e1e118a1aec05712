"""Captions of a split's images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.tiny_data import D, write_tiny
from torch_caption.data.dataset import Split, open_data
from torch_caption.decoding import DecodingOptions
from torch_caption.inference.captions import caption_images
from torch_caption.model.captioner import CaptioningRNN


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return open_data(write_tiny(tmp_path_factory.mktemp("data") / "tiny"))["val"]


@pytest.fixture(scope="module")
def model(split: Split) -> CaptioningRNN:
    """An untrained one, in float64, so that batches of any size give the same."""
    torch.manual_seed(0)
    model = CaptioningRNN(split.vocabulary.word_to_idx, D, 6, 8, "rnn").double()
    with torch.no_grad():
        model.W_embed.mul_(100)
        model.W_vocab.mul_(3)
        model.b_vocab[split.vocabulary.word_to_idx["<END>"]] = 1  # some captions end
    return model


def test_the_best_caption_of_a_beam_is_the_first_of_the_n_best(model: CaptioningRNN, split: Split) -> None:
    """Whatever the batches, with a length penalty unless told otherwise."""
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


def test_captions_that_there_are_not_are_left_out(model: CaptioningRNN, split: Split) -> None:
    """Of one word there are as many captions as words that may be said."""
    (captions,) = caption_images(model, split, [0], DecodingOptions(beam_size=50, max_length=1)).values()
    assert len(captions) == model.vocab_size - 2
