"""Recurrent layers in the place of torch.nn's: the same constructors, calls, weights and names over `functions`.

    from torch_caption.layers import LSTM      # instead of: from torch.nn import LSTM

A state_dict of the one loads into the other, and their first weights are equal under one seed. Every mode of automatic
differentiation works, and `lengths=` computes no padding.
"""

from .cells import GRUCell, LSTMCell, RNNCell
from .recurrent import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]
