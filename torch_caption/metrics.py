"""How good captions are: BLEU-1 to 4, ROUGE-L and CIDEr over pycocoevalcap, the code of the COCO captions challenge.

No Java: COCO's own tokeniser, Stanford's PTB, is replaced by `tokenize`. On the same tokens the numbers are those of
pycocoevalcap; a score from other tokens may differ in the third digit, so compare scores of one tokeniser only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

Image = TypeVar("Image")
Captions = dict[int, list[str]]  # tokens joined by blanks, as pycocoevalcap wants them

_SAME = str.maketrans({"’": "'", "‘": "'", "`": "'"})  # noqa: RUF001 - the typographic marks are meant
_CLITIC = re.compile(r"n't\b|'(?:s|m|d|re|ve|ll)\b")
_TWO_WORDS = re.compile(r"\b(?:can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|(?:lem|gim)(?=me\b))")
_TOKEN = re.compile(
    r"""
    <[a-z]+>                                        # <unk>
  | (?<!\w) (?: (?:[^\W\d_]\.){2,} | (?:mr|mrs|ms|dr|st|jr|sr|vs)\. )   # u.s., p.m., mr.
  | n't\b | '(?:s|m|d|re|ve|ll)\b
  | (?:(?<!\w)\.(?=\d))? \w+ (?: [-/&.@]\w+ | '[^\W\d]\w* | (?<=\d)[,:](?=\d)\w+ )*  # t-shirt, at&t, o'clock, 1,000
  | [#$%&@*+=~]
    """,
    re.VERBOSE,
)


def tokenize(text: str) -> list[str]:
    """The words of a caption in lower case, without punctuation, as COCO's tokeniser would have them.

    As there: hyphens, slashes and full stops inside a word stay (t-shirt, black/white, u.s.), "'s" and "n't" are tokens
    of their own (man 's, does n't), so are # $ % & @ * + = ~ and words in angle brackets (<unk>), and two words written
    as one are parted (can not, gon na). Tokens joined by blanks give the same tokens again.

    Other than there: brackets go (it leaves "-lrb-"), so do repeated marks ("!!!"), backslashes, other symbols and the
    apostrophe before a year or around an n ("'90s", "rock 'n' roll"); of its abbreviations only mr. mrs. ms. dr. st.
    jr. sr. vs. and letters with full stops (p.m.) keep their stop; "y'all" and "'tis" are one word. Of Flickr8k's
    35,000 captions 12 come out otherwise, 6 of them for their brackets.
    """
    text = unicodedata.normalize("NFC", text.translate(_SAME).lower())
    text = _CLITIC.sub(r" \g<0>", text)
    text = _TWO_WORDS.sub(r"\g<0> ", text)
    return _TOKEN.findall(text)


def score(
    candidates: Mapping[Image, str],
    references: Mapping[Image, Sequence[str]],
    metrics: Sequence[str] = ("BLEU", "CIDEr"),
) -> dict[str, float]:
    """Score one caption an image against all the references of that image.

    Args:
        candidates: image -> its caption. Captions go through `tokenize`, candidates and references alike; <UNK> is a
            word like another, so it matches an <UNK> of a reference.
        references: image -> captions by people, one or more; images without a candidate are not looked at.
        metrics: of "BLEU" (corpus BLEU: n-grams and lengths are summed over all images, with the closest reference
            length), "ROUGE-L" and "CIDEr" (CIDEr-D with sigma 6; means over the images).

    Returns:
        "BLEU-1" to "BLEU-4", "ROUGE-L", "CIDEr" as far as asked for; CIDEr from 0 to 10, the others from 0 to 1. A
        caption without words counts 0. CIDEr weighs an n-gram by how few of the scored images have it in a reference:
        among few images it says little, and of one image it is always 0.

    Raises:
        ValueError: no candidates; an image without references, or whose references hold no word; a caption that is not
            a string; an unknown metric.
    """
    unknown = [name for name in metrics if name not in _METRICS]
    if unknown:
        raise ValueError(f"no metric is called {unknown[0]!r}; there are {', '.join(_METRICS)}")
    if not candidates:
        raise ValueError("there are no candidate captions to score")
    guesses, truths = {}, {}
    for key, (image, candidate) in enumerate(candidates.items()):
        guesses[key] = [_joined(candidate, f"the candidate caption of image {image!r}")]
        truths[key] = _joined_references(image, references)
    scores: dict[str, float] = {}
    for name in metrics:
        scores |= _METRICS[name](truths, guesses)
    return scores


def _joined(caption: object, what: str) -> str:
    if not isinstance(caption, str):
        raise ValueError(f"{what} is {caption!r}, not a string")
    return " ".join(tokenize(caption))


def _joined_references(image: Image, references: Mapping[Image, Sequence[str]]) -> list[str]:
    captions = references.get(image, ())
    if isinstance(captions, str):
        raise ValueError(f"the references of image {image!r} are one string, {captions!r}, not a list of captions")
    if not captions:
        raise ValueError(f"image {image!r} has a candidate caption, but no references")
    joined = [_joined(caption, f"reference {row} of image {image!r}") for row, caption in enumerate(captions)]
    if not any(joined):
        raise ValueError(f"no reference of image {image!r} holds a word: {list(captions)}")
    return joined


def _bleu(references: Captions, candidates: Captions) -> dict[str, float]:
    means, _ = Bleu(4).compute_score(references, candidates, verbose=0)  # it prints its counts otherwise
    return {f"BLEU-{n}": float(mean) for n, mean in enumerate(means, start=1)}


def _rouge(references: Captions, candidates: Captions) -> dict[str, float]:
    _, scores = Rouge().compute_score(references, candidates)
    # An empty caption and an empty reference are the same to pycocoevalcap, and score 1.
    said = [bool(candidate) for (candidate,) in candidates.values()]
    return {"ROUGE-L": float(np.mean(np.where(said, scores, 0.0)))}


def _cider(references: Captions, candidates: Captions) -> dict[str, float]:
    mean, _ = Cider().compute_score(references, candidates)
    return {"CIDEr": float(mean)}


_METRICS: dict[str, Callable[[Captions, Captions], dict[str, float]]] = {
    "BLEU": _bleu,
    "ROUGE-L": _rouge,
    "CIDEr": _cider,
}
