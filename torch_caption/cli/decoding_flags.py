"""`DecodingOptions` as flags of the command line."""

from __future__ import annotations

import dataclasses

from torch_caption.config import LONGEST, check_length
from torch_caption.decoding import DecodingOptions
from torch_caption.io.text import flag_of


def check_decoding(options: DecodingOptions) -> None:
    """Raise ConfigError, naming the flag, on the first option that no model can use."""
    check_length(options.max_length)
    if options.max_length is None:
        options = dataclasses.replace(options, max_length=LONGEST)
    options.resolve(flag_of)


def described(options: DecodingOptions) -> str:
    """The method of decoding in words."""
    method = options.resolve()
    return f"beam search, {options.beam_size} wide" if method == "beam" else method
