"""References and candidates of random words."""

from __future__ import annotations

import random

from torch_caption.data.tokenizer import tokenize


def random_captions(seed: int, images: int, unknown: str = "") -> tuple[dict[int, list[list[str]]], list[list[str]]]:
    """References of images, one of them without a word, and a candidate an image, one without a word."""
    draw = random.Random(seed)
    words = tokenize("a the man dog cat red blue small on under")

    def caption(words: list[str]) -> list[str]:
        return draw.choices(words, k=draw.randint(1, 12))

    references = {image: [caption(words) for _ in range(draw.randint(1, 6))] for image in range(images)}
    references[0] = [[], *references[0]]
    candidates = [draw.choice([*references[image], caption([*words, *unknown.split()])]) for image in references]
    candidates[1] = []
    return references, candidates
