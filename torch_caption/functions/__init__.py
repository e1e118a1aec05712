"""Functions whose every derivative is written by hand: backward, forward mode, and what follows from them.

Each public function checks its arguments and calls one `torch.autograd.Function`. The derivation of a gradient stands
in the docstring of its class. Names are cs231n's: N batch, T time, D input, H hidden, V vocabulary, and P for a
projection of the hidden state; weights are (in, out), as in `x @ Wx`.
"""

from .affine import Affine, affine, temporal_affine
from .attention import (
    AttentionLSTM,
    DotProductAttention,
    attention_lstm,
    attention_lstm_step,
    dot_product_attention,
    packed_attention_lstm,
)
from .embedding import WordEmbedding, word_embedding
from .gru import GRU, GRUStep, gru, gru_step, packed_gru
from .lstm import LSTM, LSTMStep, lstm, lstm_step, packed_lstm
from .packing import Pack, Packing, Unpack
from .projected_lstm import (
    ProjectedLSTM,
    ProjectedLSTMStep,
    packed_projected_lstm,
    projected_lstm,
    projected_lstm_step,
)
from .rnn import RNN, RNNStep, packed_rnn, rnn, rnn_step
from .softmax import (
    TemporalAffineSoftmaxLoss,
    TemporalSoftmaxLoss,
    temporal_affine_softmax_loss,
    temporal_softmax_loss,
)

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Affine",
    "AttentionLSTM",
    "DotProductAttention",
    "GRUStep",
    "LSTMStep",
    "Pack",
    "Packing",
    "ProjectedLSTM",
    "ProjectedLSTMStep",
    "RNNStep",
    "TemporalAffineSoftmaxLoss",
    "TemporalSoftmaxLoss",
    "Unpack",
    "WordEmbedding",
    "affine",
    "attention_lstm",
    "attention_lstm_step",
    "dot_product_attention",
    "gru",
    "gru_step",
    "lstm",
    "lstm_step",
    "packed_attention_lstm",
    "packed_gru",
    "packed_lstm",
    "packed_projected_lstm",
    "packed_rnn",
    "projected_lstm",
    "projected_lstm_step",
    "rnn",
    "rnn_step",
    "temporal_affine",
    "temporal_affine_softmax_loss",
    "temporal_softmax_loss",
    "word_embedding",
]
