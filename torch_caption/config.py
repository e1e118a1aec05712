"""The settings of a training run: one frozen dataclass, each field a flag of `train.py`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import arg

from torch_caption.errors import ConfigError
from torch_caption.io.files import at_home, from_home
from torch_caption.io.text import flag_of, shown
from torch_caption.model.cells import CELLS

LEARNING_RATES = {"xe": 2e-3, "scst": 2e-4}
"""Default peak learning rate of Adam for each objective."""
MODEL_FIELDS = ("cell_type", "num_layers", "hidden_dim", "wordvec_dim", "tied", "dtype")
"""Settings that the weights of a model fix."""
DATA_FIELDS = ("data", "pca_features", "max_length")
"""Settings of the data, which --init-from takes from the checkpoint by default."""
LONGEST = 1000
"""Upper limit of the length of a caption, in words."""
MACHINE_FIELDS = ("out", "init_from", "resume", "in_memory", "workers", "threads", "device")
"""Settings of the machine, independent of the model."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a captioner on image features, with hand-derived gradients."""

    data: str = "scenes"
    """Training data: `scenes`, the built-in dataset, or a directory in cs231n's layout."""
    max_train: Annotated[int | None, arg(metavar="INT")] = None
    """Train on a random subset of this many captions, chosen by the seed."""
    pca_features: Literal["auto", "yes", "no"] = "auto"
    """Use the `*_pca.h5` features: if they exist, always, or never."""
    in_memory: Literal["auto", "yes", "no"] = "auto"
    """Hold the features in memory: if they fit, always, or never (then they are read from disk, batch by batch)."""
    workers: int = 0
    """DataLoader worker processes; 0 loads in the main process, which is fastest for features in memory."""

    cell_type: Literal[tuple(CELLS)] = "rnn"  # type: ignore[valid-type]
    """The recurrent cell; attention is an LSTM that attends over the spatial feature grid at every step."""
    num_layers: int = 1
    """Recurrent layers; each after the first reads the hidden states of the one below."""
    hidden_dim: int = 256
    """H, the size of the hidden state."""
    wordvec_dim: int = 128
    """W, the size of a word vector."""
    dropout: float = 0.4
    """Dropout probability on embeddings and on hidden states before the vocabulary layer. It raises the training loss
    above the validation loss."""
    layer_dropout: float = 0.0
    """Dropout probability on hidden states between layers."""
    feature_dropout: float = 0.2
    """Dropout probability on the image features."""
    tied: bool = False
    """Tie the input embedding and the output projection weights, through one more matrix if W is not H."""
    gradients: Literal["hand", "auto"] = "hand"
    """Hand-derived gradients, or automatic differentiation of the same model."""

    objective: Literal["xe", "scst"] = "xe"
    """Cross-entropy on the reference captions (teacher forcing); or self-critical sequence training (SCST), which
    rewards a sampled caption by its CIDEr-D above the mean of the image's other samples, from the weights of
    --init-from and without --dropout."""
    init_from: Annotated[Path | None, arg(metavar="PATH")] = None
    """Initialise the weights from this checkpoint, run or folder of runs; its data and model sizes are the defaults of
    the flags."""
    samples: int = 5
    """Sampled captions per image in SCST, at least 2."""
    temperature: float = 0.5
    """Scale the logits by 1/temperature once, before SCST: samples are then closer to the greedy caption. 1 does not
    scale them."""
    epochs: int = 10
    """Maximum number of epochs: over the training captions, or in SCST over their images."""
    batch_size: int = 128
    """Captions per training step."""
    checkpoint_every: int = 0
    """Checkpoint interval in steps, besides every epoch; work since the last checkpoint is lost if the process is
    killed. 0 saves after epochs only."""
    lr: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Peak learning rate of Adam; the default is 2e-3, and 2e-4 in SCST."""
    lr_schedule: Literal["cosine", "exponential", "constant"] = "cosine"
    """Cosine decays to zero at the last step, after the warm-up; exponential decays by --lr-decay per epoch."""
    lr_decay: float = 0.9
    """Factor per epoch of the exponential schedule."""
    warm_up: int = 200
    """Warm-up steps of the cosine schedule, at most a tenth of all steps."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) of the matrices. Biases and word vectors do not decay: the vector of a rare word
    would decay in all the steps that do not contain it."""
    label_smoothing: float = 0.0
    """Label-smoothing factor."""
    scheduled_sampling: float = 0.0
    """Final scheduled-sampling probability, in the last epoch; it rises linearly from 0 in the first."""
    ema: float = 0.0
    """Decay per step of the exponential moving average (EMA) of the weights, such as 0.999; the average is validated,
    scored and saved as the best. 0 disables it."""
    clip: float = 5.0
    """Maximum gradient norm over all parameters (clipping); 0 disables it."""
    patience: int = 4
    """Early-stopping patience, in epochs without a better validation loss (in SCST, CIDEr); 0 disables it."""
    seed: int = 0
    """Seed of the initial weights, the order of the captions, dropout and the choice of the scored images."""

    score_images: int = 200
    """Validation images captioned and scored after each epoch; 0 scores none."""
    max_length: int = 30
    """Maximum caption length, in words."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto uses a GPU if there is one."""
    dtype: Literal["float32", "float64"] = "float32"
    """Data type of the weights."""
    amp: Literal["none", "bf16"] = "none"
    """Automatic mixed precision, products in bfloat16: faster where the hardware supports it."""
    compile: bool = False
    """Compile the model with torch.compile, on a GPU into CUDA graphs, with padded captions. On a CPU it is slower than
    the functions without it, which skip padding."""
    threads: Annotated[int | None, arg(metavar="INT")] = None
    """CPU threads; the default is PyTorch's."""

    out: Path = Path("runs")
    """Folder of the runs."""
    resume: Annotated[str | None, arg(metavar="[RUN]")] = None
    """Resume the last run, or the named one; its settings are the defaults of the flags."""
    tensorboard: bool = True
    """Write TensorBoard event files beside metrics.jsonl."""

    def check(self) -> None:
        """Raise ConfigError, naming the flag, on the first value that cannot be used."""
        self._check_sizes()
        for name in ("lr", "lr_decay", "temperature"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{flag_of(name)} must be a positive number, not {getattr(self, name)}")
        for name in ("weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{flag_of(name)} must be 0 or a positive number, not {getattr(self, name)}")
        for name in ("dropout", "layer_dropout", "feature_dropout", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{flag_of(name)} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.layer_dropout and self.num_layers == 1:
            raise ConfigError("--layer-dropout needs --num-layers of at least 2")
        if not 0 <= self.scheduled_sampling <= 1:
            raise ConfigError(f"--scheduled-sampling must be from 0 to 1, not {self.scheduled_sampling}")
        if self.objective == "scst":
            self._check_self_critical()
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed must be at least 0 and below 2^63, not {self.seed}")
        if self.amp == "bf16" and self.dtype == "float64":
            raise ConfigError("--amp bf16 needs --dtype float32, not float64")

    def _check_sizes(self) -> None:
        at_least = {"hidden_dim": 1, "wordvec_dim": 1, "epochs": 1, "batch_size": 1, "max_length": 1, "workers": 0}
        at_least |= {"patience": 0, "score_images": 0, "max_train": 1, "threads": 1, "warm_up": 0}
        at_least |= {"checkpoint_every": 0, "num_layers": 1, "samples": 2}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{flag_of(name)} must be at least {least}, not {value}")
        check_length(self.max_length)
        sizes = dict.fromkeys(("hidden_dim", "wordvec_dim", "batch_size"), 2**31)  # torch counts bytes in 63 bits
        for name, most in {"workers": 1000, "threads": 1000, "num_layers": 100, "samples": 1000, **sizes}.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise ConfigError(f"{flag_of(name)} must be at most {most}, not {value}")

    def _check_self_critical(self) -> None:
        if self.init_from is None:
            raise ConfigError("--objective scst starts from a trained model: name it with --init-from")
        if self.score_images == 0:
            raise ConfigError("--objective scst keeps the best CIDEr's weights: --score-images must not be 0")
        if self.temperature != 1 and self.tied and self.hidden_dim == self.wordvec_dim:
            raise ConfigError(
                "--tied with --hidden-dim equal to --wordvec-dim needs --temperature 1 in self-critical training"
            )
        for name in ("label_smoothing", "scheduled_sampling"):
            if getattr(self, name):
                raise ConfigError(f"{flag_of(name)} needs --objective xe, not scst")

    @property
    def highest_lr(self) -> float:
        """`lr`, or the default of the objective."""
        return LEARNING_RATES[self.objective] if self.lr is None else self.lr

    def model_arguments(self) -> dict[str, Any]:
        """The arguments of `CaptioningRNN` that are settings: all but the vocabulary and `input_dim`."""
        names = ("wordvec_dim", "hidden_dim", "cell_type", "gradients", "dropout", "label_smoothing", "tied")
        return {name: getattr(self, name) for name in (*names, "num_layers", "layer_dropout")}

    def plain(self) -> dict[str, Any]:
        """The settings as plain values, for a checkpoint."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}

    def shared(self) -> dict[str, Any]:
        """`plain` for checkpoints that may be published: without the folders of the run."""
        return {k: v for k, v in self.plain().items() if k not in MACHINE_FIELDS} | {"data": at_home(self.data)}

    @classmethod
    def from_plain(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `plain`; names of other versions are ignored, missing ones have their defaults.

        Raises:
            ConfigError: a value has another type than the setting, or a size is out of range.
        """
        kinds = get_type_hints(cls)
        known = {k: v for k, v in settings.items() if k in kinds}
        for name, value in known.items():
            if not _is_of(value, kinds[name]):
                raise ConfigError(f"the saved setting of {flag_of(name)} cannot be {shown(value)}")
        paths = {k: Path(known[k]) for k in ("out", "init_from") if known.get(k) is not None}
        config = cls(**known | paths | {"data": from_home(known.get("data", cls.data))})
        config._check_sizes()
        return config


def check_length(max_length: int | None) -> None:
    """Raise ConfigError if --max-length is more than LONGEST."""
    if max_length is not None and max_length > LONGEST:
        raise ConfigError(f"--max-length must be at most {LONGEST}, not {max_length}")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a plain value is valid for a field of this type; a path is a string."""
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if get_args(kind):
        return any(_is_of(value, part) for part in get_args(kind))
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (str if kind is Path else kind)
