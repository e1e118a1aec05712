"""The options of decoding: each with its default, range and text for --help, once."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, arg

from torch_caption.errors import ConfigError

METHODS = {
    "greedy": (),
    "beam": ("beam_size", "length_penalty", "n_best"),
    "sampling": ("samples", "temperature", "top_k", "top_p", "min_p"),
}
"""The decoding methods, and the options that only one of them has."""
MAX_LENGTH = 30
"""Default maximum length of a caption in words, including <END>."""

LengthPenalty = float | Literal["mean"]


@dataclass(frozen=True)
class DecodingOptions:
    """The method of decoding and its options."""

    method: Literal[("auto", *METHODS)] = "auto"  # type: ignore[valid-type]
    """Greedy decoding, beam search, or random sampling. auto selects the method of the other options, by default
    greedy."""
    max_length: Annotated[int | None, arg(metavar="INT")] = None
    """Maximum length of a caption in words, including <END>; the default is that of training, or 30 for a model without
    settings."""
    min_length: int = 0
    """Minimum number of words before <END>."""
    no_repeat_ngram: Annotated[int | None, arg(metavar="INT")] = None
    """Forbid repeated n-grams of this size (Paulus et al. 2018); 1 repeats no word."""
    no_unk: Annotated[bool, FlagCreatePairsOff] = False
    """Never choose <UNK>."""
    avoid: Annotated[tuple[str, ...], arg(metavar="WORD ...")] = ()
    """Never choose these words of the vocabulary."""

    beam_size: int = 1
    """Beam size; 1 gives the greedy caption."""
    length_penalty: Annotated[LengthPenalty, arg(metavar="FLOAT|mean")] = 0.7
    """Length penalty alpha of beam search: scores are log-probabilities over ((5 + words) / 6)^alpha (Wu et al. 2016).
    0 prefers short captions; `mean` divides by the number of words."""
    n_best: Annotated[int | None, arg(metavar="INT")] = None
    """Captions per image that beam search returns, best first; the default is the beam size."""

    samples: int = 1
    """Number of sampled captions per image."""
    temperature: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Sampling temperature, a divisor of the logits; the default is 1."""
    top_k: Annotated[int | None, arg(metavar="INT")] = None
    """Top-k sampling: sample from the k most probable words."""
    top_p: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Nucleus (top-p) sampling threshold (Holtzman et al. 2020)."""
    min_p: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Min-p sampling: minimum probability, relative to the most probable word (Nguyen et al. 2024)."""

    @property
    def length(self) -> int:
        """max_length, or its default."""
        return self.max_length or MAX_LENGTH

    @property
    def rows(self) -> int:
        """Captions of an image that are decoded in parallel."""
        return max(self.beam_size, self.samples)

    def resolve(self, spelling: Callable[[str], str] = str) -> str:
        """The method: the given one, or for auto the method of the other options.

        Args:
            spelling: the name of an option in a message, such as "--top-k" for "top_k".

        Raises:
            ConfigError: a value is out of its range, or options of two methods are set.
        """

        def refuse(name: str, must: str) -> ConfigError:
            return ConfigError(f"{spelling(name)} must be {must}, not {getattr(self, name)}")

        if self.method not in ("auto", *METHODS):
            raise refuse("method", f"auto, {', '.join(METHODS)}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise refuse(name, f"an integer of at least {least}")
        if self.min_length >= self.length:
            raise refuse("min_length", f"below {spelling('max_length')}, which is {self.length} and counts <END>")
        penalty = self.length_penalty
        if penalty != "mean" and not (isinstance(penalty, int | float) and 0 <= penalty < math.inf):
            raise refuse("length_penalty", "0, a positive number or mean")
        for name, most in {"temperature": sys.float_info.max, "top_p": 1, "min_p": 1}.items():
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise refuse(name, "a positive number" if name == "temperature" else "above 0 and at most 1")
        given = {} if self.method == "auto" else {self.method: "method"}
        for method, name in _OWN:
            if getattr(self, name) not in _NEUTRAL[name]:
                given.setdefault(method, name)
        if len(given) > 1:
            (method, name), (other, clash) = list(given.items())[:2]
            raise ConfigError(
                f"{spelling(clash)} {getattr(self, clash)} is an option of {other}, but {spelling(name)} "
                f"{getattr(self, name)} of {method}: use one of them"
            )
        if (self.n_best or 1) > self.beam_size:
            raise refuse("n_best", f"at most {spelling('beam_size')}, which is {self.beam_size}")
        return next(iter(given), "greedy")


_OWN = [(method, name) for method, own in METHODS.items() for name in own]
_NEUTRAL = {name: (getattr(DecodingOptions, name),) for _, name in _OWN} | {"n_best": (None, 1)}
_LEAST = dict.fromkeys(("max_length", "no_repeat_ngram", "beam_size", "n_best", "samples", "top_k"), 1)
_LEAST["min_length"] = 0
