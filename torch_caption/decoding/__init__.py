"""Decoding: from a next-token model to captions.

Decoding does not depend on a model, only on a stepper: any object with these two methods.

    state         = stepper.begin(features)
    logits, state = stepper.step(words, state)      # words (n,) -> logits (n, V) of the words that follow

A state is a tuple of tensors with a row for each caption; `select` omits, repeats or reorders rows. `DecodingOptions`
select one of the `METHODS` and the logit filters (`filters`) that all methods share.

A caption's log-probability is the model's, sum_t log softmax(logits_t)[word_t] including <END>: it is computed from
the logits before any filter, so it does not depend on the decoding method.
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
