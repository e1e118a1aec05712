"""A small checkpoint that has everything, and files with the right checksum and any content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_caption.checkpoints import checksum
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints.format import Checkpoint
from torch_caption.config import TrainConfig
from torch_caption.data.vocabulary import SPECIAL, Vocabulary
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.training import state

WORDS = [*SPECIAL, "a", "red", "circle"]
CONFIG = TrainConfig(lr=1e-3, hidden_dim=5, wordvec_dim=4, batch_size=1, dropout=0.1)
D = 3


def make(**changes: Any) -> Checkpoint:
    """Of a model that was trained for a step; `changes` replace its parts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CaptioningRNN(Vocabulary(tuple(WORDS)).word_to_idx, D, **CONFIG.model_arguments())
        optimizer = torch.optim.AdamW(state._groups(model, 0.0))
        model(torch.randn(2, D), torch.tensor([[1, 4, 2], [1, 5, 2]])).backward()
        optimizer.step()
        drawn = torch.get_rng_state()
    parameters = dict(model.named_parameters())
    content = {
        "weights": {name: p.detach() for name, p in parameters.items()},
        "config": CONFIG,
        "words": WORDS,
        "manifest": {"encoder": "none", "widths": [3, 4], "projection": {"mean": torch.arange(3.0)}},
        "input_dim": D,
        "progress": {"epoch": 2, "step": 2, "best_epoch": 2, "best_loss": 1.5},
        "average": {name: 2 * p.detach() for name, p in parameters.items()},
        "optimizer": {f"{name}/{key}": x for name, p in parameters.items() for key, x in optimizer.state[p].items()},
        "random": {"0/torch": drawn},
        "data": {"train": "0" * 64},
    }
    return Checkpoint(**content | changes)


def forged(
    tensors: Mapping[str, Tensor | None] | None = None, metadata: Mapping[str, Any] | None = None, **made: Any
) -> bytes:
    """The file of `make(**made)`, with the right checksum, but some tensors and entries of the metadata replaced.

    None leaves a tensor or an entry out; an entry that is not a string becomes JSON.
    """
    theirs, about = checkpoints._flat(make(**made))
    entries = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (metadata or {}).items()}
    return b"".join(
        checksum.encode(
            {name: x for name, x in {**theirs, **(tensors or {})}.items() if x is not None},
            {name: text for name, text in {**about, **entries}.items() if text != "null"},
        )
    )


def framed(header: bytes | Mapping[str, Any], body: bytes = b"") -> bytes:
    """A file with the right checksum and any header; one that is not bytes is given the place for the checksum."""
    if not isinstance(header, bytes):
        first = {"__metadata__": {"sha256": "0" * 64, **header.get("__metadata__", {})}}
        header = json.dumps({**first, **header, **first}, separators=(",", ":")).encode("ascii")
    return sealed(len(header).to_bytes(8, "little") + header + body)


def sealed(data: bytes) -> bytes:
    """The bytes with the right checksum, if they have the place for it."""
    place = checksum._DIGITS
    return data[: place.start] + checksum._digest(data) + data[place.stop :]
