"""`DecodingOptions` as flags of the command line."""

from __future__ import annotations

import dataclasses

from torch_caption.config import LONGEST, check_length
from torch_caption.decoding import DecodingOptions, TokenIds
from torch_caption.decoding.filters import excluded
from torch_caption.io.text import flag_of


def check_decoding(options: DecodingOptions) -> None:
    """Raise ConfigError, naming the flag, on the first option that no model can use."""
    check_length(options.max_length)
    if options.max_length is None:
        options = dataclasses.replace(options, max_length=LONGEST)
    options.resolve(flag_of)


def for_model(options: DecodingOptions, max_length: int, ids: TokenIds) -> DecodingOptions:
    """The options for a model, with the maximum length of its training as default.

    Args:
        ids: of the model's words.

    Raises:
        ConfigError: they contradict that length, or a word is not in the vocabulary.
    """
    options = dataclasses.replace(options, max_length=options.max_length or max_length)
    options.resolve(flag_of)
    excluded(ids, options, flag_of("avoid"))
    return options
