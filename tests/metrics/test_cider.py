"""CIDEr-D as a reward: the numbers of pycocoevalcap, whatever is scored together."""

from __future__ import annotations

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from tests.helpers.random_captions import random_captions
from torch_caption.data.tokenizer import tokenize
from torch_caption.metrics.cider import CiderReward, cider_weighs
from torch_caption.metrics.scores import score


@pytest.mark.parametrize(
    ("references", "weighs"),
    [
        ([["a red bus", "the bus stands"]], False),
        ([["a red bus", "a red car"], ["a red car", "a red bus"]], False),
        ([["a red bus"], ["a red bus", "a red bus"]], False),
        ([["a red bus"], ["a red car"]], True),
        ([["a red bus"], ["red a bus"]], True),  # the same words in other pairs
        ([["a red bus"], ["a red bus"], ["a bus"]], True),
    ],
)
def test_where_cider_can_be_positive(references: list[list[str]], weighs: bool) -> None:
    tokens = {image: [text.split() for text in texts] for image, texts in enumerate(references)}
    assert cider_weighs(tokens.values()) is weighs
    rewards = [CiderReward(tokens)([image], [text])[0] for image, texts in tokens.items() for text in texts]
    assert bool(max(rewards) > 0) is weighs
    best = {image: texts[0] for image, texts in enumerate(references)}
    assert bool(score(best, dict(enumerate(references)))["CIDEr"] > 0) is weighs


@pytest.mark.parametrize("unknown", ["", "zebra zoo", "zebra zoo zoom zig zag"])
def test_the_reward_is_cider_of_pycocoevalcap(unknown: str) -> None:
    """Also of images named more than once, in any order: document frequencies are those of all references."""
    references, first = random_captions(1, 40, unknown)
    _, second = random_captions(2, 40, unknown)
    joined = {image: [" ".join(caption) for caption in captions] for image, captions in references.items()}
    expected = [
        Cider().compute_score(joined, {image: [" ".join(caption)] for image, caption in enumerate(candidates)})[1]
        for candidates in (first, second)
    ]
    reward = CiderReward(references)
    images = [*range(40), *range(39, -1, -1)]
    rewards = reward(images, first + second[::-1])
    assert rewards == pytest.approx(np.concatenate([expected[0], expected[1][::-1]]), rel=1e-12, abs=1e-14)
    assert rewards.max() > 1
    assert reward([7], [second[7]])[0] == pytest.approx(expected[1][7], rel=1e-12)


def test_the_reward_takes_ids_as_it_takes_words() -> None:
    references, candidates = random_captions(3, 20)
    vocabulary = {word: 5 * place for place, word in enumerate({w for r in references.values() for c in r for w in c})}

    def ids(caption: list[str]) -> tuple[int, ...]:
        return tuple(vocabulary[word] for word in caption)

    numbered = {f"image {image}": [ids(c) for c in captions] for image, captions in references.items()}
    rewards = CiderReward(numbered)(list(numbered), [ids(caption) for caption in candidates])
    assert rewards == pytest.approx(CiderReward(references)(list(references), candidates), rel=1e-12, abs=1e-14)


def test_with_an_end_the_reward_of_an_unfinished_caption_is_lower() -> None:
    whole = tokenize("a red cat sleeps on the mat <end>")
    reward = CiderReward({0: [whole], 1: [tokenize("two dogs run <end>")]})
    ended, broken = reward([0, 0], [whole, whole[:-1]])
    assert ended > broken > 0


def test_the_reward_does_not_remember_tokens() -> None:
    references, candidates = random_captions(4, 20)
    reward = CiderReward(references)
    before = reward([3], [candidates[3]])
    reward([3], [["unknown", "to", "all", "references"]])
    assert reward([3], [candidates[3]]) == before
    assert reward([], []).shape == (0,)


@pytest.mark.parametrize(
    ("references", "images", "captions", "message"),
    [
        ({}, [], [], "there are no references"),
        ({7: []}, [], [], "image 7 has no references"),
        ({7: ["a cat"]}, [], [], "not the string 'a cat'; split it"),
        ({7: [["a"]]}, [7], ["a"], "not the string 'a'; split it"),
        ({7: [["a"]]}, [7, 8], [["a"], ["a"]], "image 8 has no references"),
        ({7: [["a"]]}, [7], [], "there are 1 images and 0 captions"),
    ],
)
def test_wrong_rewards_are_refused(references: dict, images: list, captions: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CiderReward(references)(images, captions)
