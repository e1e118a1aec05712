"""The explanation of one picture: captions, words and alternatives against those of decoding."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.demo_page import CELLS, explainer
from torch_caption.inference.explain import BEST_FIVE, Explanation, explain

EIGHT = replace(BEST_FIVE, max_length=8)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))


def described(cell_type: str, alternatives: int = 5, **options: int) -> Explanation:
    made = explainer(cell_type)
    features = made._extractor.make([made._extractor.prepare(PICTURE)])[0]
    return explain(made.model, made.vocabulary, features, replace(EIGHT, **options), alternatives)


@pytest.mark.parametrize("cell_type", CELLS)
def test_captions_are_those_of_beam_search(cell_type: str) -> None:
    made = explainer(cell_type)
    features = made._extractor.make([made._extractor.prepare(PICTURE)])
    beams = made.model.beam_search(features, 5, 8)
    explanation = made(PICTURE)
    assert [guess.text for guess in explanation.captions] == [
        made.vocabulary.decode(words) for words in beams.words[0].tolist()
    ]
    probabilities = [guess.probability for guess in explanation.captions]
    assert probabilities == pytest.approx(beams.log_probs[0].exp().tolist())
    assert all(0 < probability < 1 for probability in probabilities)


@pytest.mark.parametrize("cell_type", CELLS)
def test_the_words_make_up_the_first_caption(cell_type: str) -> None:
    explanation = described(cell_type)
    texts = [word.guess.text for word in explanation.words]
    assert " ".join(text for text in texts if text != "<END>") == explanation.captions[0].text
    product = math.prod(word.guess.probability for word in explanation.words)
    assert product == pytest.approx(explanation.captions[0].probability, rel=1e-5)


def test_alternatives_are_the_likeliest_words() -> None:
    explanation = described("lstm", alternatives=3)
    for word in explanation.words:
        probabilities = [other.probability for other in word.alternatives]
        assert probabilities == sorted(probabilities, reverse=True)
        assert len(probabilities) == 3
        among = [other for other in word.alternatives if other.text == word.guess.text]
        assert [other.probability for other in among] == pytest.approx([word.guess.probability] * len(among))
        assert among or word.guess.probability <= probabilities[-1]
    everything = described("lstm", alternatives=100).words[0].alternatives
    assert sum(other.probability for other in everything) <= 1 + 1e-6
    assert {other.text for other in everything}.isdisjoint({"<NULL>", "<START>"})


def test_a_truncated_caption_has_no_end() -> None:
    words = described("lstm", max_length=2).words
    assert len(words) == 2
    assert "<END>" not in [word.guess.text for word in words]


def test_attention_is_over_the_picture() -> None:
    explanation = described("attention")
    weights = np.stack([word.attention for word in explanation.words])
    assert weights.shape[1:] == (3, 3)
    assert weights.sum((1, 2)) == pytest.approx(1, rel=1e-5)
    assert weights.std() > 0
    assert all(word.attention is None for word in described("lstm").words)


def test_places_without_rows_and_columns_are_not_drawn() -> None:
    made = explainer("attention")
    words = explain(made.model, made.vocabulary, torch.randn(3, 9), EIGHT).words
    assert all(word.attention is None for word in words)


def test_fewer_captions_on_request() -> None:
    assert len(described("lstm", beam_size=2).captions) == 2
    with pytest.raises(ValueError, match="beam_size"):
        described("lstm", beam_size=0)
