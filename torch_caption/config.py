"""What a training run is told: one frozen dataclass, every field a flag of `train.py`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg


class ConfigError(ValueError):
    """A setting that cannot be used; the message names its flag and value."""


@dataclass(frozen=True)
class TrainConfig:
    """Learn to caption images from their features, with gradients derived by hand."""

    data: str = "scenes"
    """What to learn from: `scenes`, the built-in drawn pictures, or a directory in cs231n's layout."""
    max_train: Annotated[int | None, arg(metavar="INT")] = None
    """Learn from this many training captions only, chosen at random by the seed."""
    pca_features: Literal["auto", "yes", "no"] = "auto"
    """The `*_pca.h5` features: where they exist, always, or never."""
    in_memory: Literal["auto", "yes", "no"] = "auto"
    """Hold the features in memory: where they fit, always, or never (then read from disk batch by batch)."""
    workers: int = 0
    """Processes that load batches; 0 loads them in this one, which is fastest for features in memory."""

    cell_type: Literal["rnn", "lstm", "attention"] = "rnn"
    """The recurrent cell; attention is an LSTM that looks at the places of a grid of features before each word."""
    hidden_dim: int = 256
    """H, the size of the hidden state."""
    wordvec_dim: int = 128
    """W, the size of a word vector."""
    dropout: float = 0.4
    """Share of the word vectors' entries, and of the hidden state's before the vocabulary, zeroed in training
    (and so the training loss stands above what the model can do)."""
    feature_dropout: float = 0.2
    """Share of the features' entries zeroed in training."""
    gradients: Literal["hand", "auto"] = "hand"
    """Gradients derived by hand, or the same model through automatic differentiation."""

    epochs: int = 10
    """Passes over the training captions, at most."""
    batch_size: int = 128
    """Captions in a step."""
    lr: float = 2e-3
    """Adam's learning rate at its highest."""
    lr_schedule: Literal["cosine", "exponential", "constant"] = "cosine"
    """Cosine falls to zero at the last step after a short warm-up; exponential falls by --lr-decay an epoch."""
    lr_decay: float = 0.9
    """Factor an epoch of the exponential schedule."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    clip: float = 5.0
    """Longest gradient, in the norm over all parameters; 0 clips nothing."""
    patience: int = 4
    """Epochs without a better validation loss after which training ends; 0 never ends early."""
    seed: int = 0
    """Decides the first weights, the order of the captions, dropout and the images that are scored."""

    score_images: int = 200
    """Validation images captioned and scored each epoch; 0 scores none."""
    max_length: int = 30
    """Longest caption, in words."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the weights."""
    amp: Literal["none", "bf16"] = "none"
    """Products in bfloat16 (automatic mixed precision): faster where the processor has it."""
    compile: bool = False
    """Compile the model with torch.compile, on a GPU into CUDA graphs: then captions are padded. On a processor it is
    slower than the functions as they are, which leave padding out."""
    threads: Annotated[int | None, arg(metavar="INT")] = None
    """Processor threads; PyTorch's own choice without it."""

    out: Path = Path("runs")
    """Folder that holds the runs."""
    resume: Annotated[str | None, arg(metavar="[RUN]")] = None
    """Go on with the last run, or with the named one; its own settings hold where no flag says otherwise."""
    tensorboard: bool = True
    """Write TensorBoard's curves beside metrics.jsonl."""

    def check(self) -> None:
        """Raise ConfigError, naming the flag, on the first value that cannot be used."""
        at_least = {"hidden_dim": 1, "wordvec_dim": 1, "epochs": 1, "batch_size": 1, "max_length": 1, "workers": 0}
        at_least |= {"patience": 0, "score_images": 0, "max_train": 1, "threads": 1}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{_flag(name)} must be at least {least}, not {value}")
        for name in ("lr", "lr_decay"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{_flag(name)} must be a positive number, not {getattr(self, name)}")
        for name in ("weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{_flag(name)} must be 0 or a positive number, not {getattr(self, name)}")
        for name in ("dropout", "feature_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{_flag(name)} must be at least 0 and below 1, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed must be at least 0 and below 2^63, not {self.seed}")
        if self.amp == "bf16" and self.dtype == "float64":
            raise ConfigError("--amp bf16 goes with --dtype float32, not with float64")

    def plain(self) -> dict[str, Any]:
        """The settings as plain values, for a checkpoint."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_plain(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `plain`; a name of another version is left out, a missing one takes its default."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {k: v for k, v in settings.items() if k in names}
        return cls(**known | ({"out": Path(known["out"])} if "out" in known else {}))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
