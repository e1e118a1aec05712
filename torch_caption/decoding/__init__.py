"""Decoding: from a next-token model to captions.

Nothing here knows a model. A stepper does two things, begins and steps, and any object that can is decoded:

    state         = stepper.begin(features)
    logits, state = stepper.step(words, state)      # words (n,) -> logits (n, V) of the words that follow

A state is a tuple of tensors with a row for each caption that it continues, so that rows can be taken from it: `select`
leaves some out, repeats them or reorders them. `DecodingOptions` choose one of the `METHODS` and the filters of logits
(`filters`) that all methods share.

A caption's log-probability is the model's own, sum_t log softmax(logits_t)[word_t] with <END> counted: it is taken from
the logits before any filter, so it does not depend on how a caption was found.
"""

from torch_caption.decoding.alternatives import Alternatives, alternatives
from torch_caption.decoding.methods import METHODS, decode
from torch_caption.decoding.options import DecodingOptions
from torch_caption.decoding.protocol import Decoded, State, Stepper, TokenIds, select

__all__ = [
    "METHODS",
    "Alternatives",
    "Decoded",
    "DecodingOptions",
    "State",
    "Stepper",
    "TokenIds",
    "alternatives",
    "decode",
    "select",
]
