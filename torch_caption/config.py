"""What a training run is told: one frozen dataclass, every field a flag of `train.py`."""

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

LEARNING_RATES = {"xe": 2e-3, "scst": 2e-4}
"""Adam's highest learning rate for each objective, where none is given."""
OF_THE_MODEL = ("cell_type", "hidden_dim", "wordvec_dim", "tied", "dtype")
"""What a model's weights fix."""
OF_THE_DATA = ("data", "pca_features", "max_length")
"""What a model that begins with another's weights learns from, unless it is told otherwise."""
LONGEST = 1000
"""The most words of a caption."""
OF_THE_MACHINE = ("out", "init_from", "resume", "in_memory", "workers", "threads", "device")
"""What says nothing about the model."""


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
    tied: bool = False
    """Let the word vectors be the vocabulary layer's weight as well, through a further matrix where W is not H."""
    gradients: Literal["hand", "auto"] = "hand"
    """Gradients derived by hand, or the same model through automatic differentiation."""

    objective: Literal["xe", "scst"] = "xe"
    """Cross-entropy with people's captions; or self-critical training, which rewards captions that the model draws by
    their CIDEr-D over its greedy ones (no dropout but that of features), beginning with the weights of --init-from."""
    init_from: Annotated[Path | None, arg(metavar="PATH")] = None
    """Begin with the weights of this checkpoint, run or folder of runs; its data and the sizes of its model hold where
    no flag says otherwise."""
    temperature: float = 0.5
    """Divide the scores by this once, when self-critical training begins: what is drawn is then nearer to the greedy
    captions that are to be beaten, and more is learnt of each draw. 1 leaves the scores as they are."""
    epochs: int = 10
    """Passes over the training captions, or over their images in self-critical training, at most."""
    batch_size: int = 128
    """Captions in a step."""
    checkpoint_every: int = 0
    """Save the run after so many steps as well, not only after every epoch: what a process that is killed has done
    since is done again. 0 saves after epochs only."""
    lr: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Adam's learning rate at its highest; without it 2e-3, and 2e-4 in self-critical training."""
    lr_schedule: Literal["cosine", "exponential", "constant"] = "cosine"
    """Cosine falls to zero at the last step after the warm-up; exponential falls by --lr-decay an epoch."""
    lr_decay: float = 0.9
    """Factor an epoch of the exponential schedule."""
    warm_up: int = 200
    """Steps over which the cosine schedule first rises, but at most a tenth of all."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) of the matrices. Biases and word vectors do not decay: a rare word's vector would
    fade in the many steps that do not meet it."""
    label_smoothing: float = 0.0
    """Share of its probability that a training target spreads evenly over the vocabulary."""
    scheduled_sampling: float = 0.0
    """Share of the words read that the model draws itself in the last epoch; it rises from 0 in the first."""
    ema: float = 0.0
    """Decay a step of a moving average of the weights, such as 0.999; the average is what is validated, scored and
    kept as the best. 0 averages nothing."""
    clip: float = 5.0
    """Longest gradient, in the norm over all parameters; 0 clips nothing."""
    patience: int = 4
    """Epochs without a better validation loss (in self-critical training, CIDEr) after which training ends; 0 never
    ends early."""
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
        self._check_sizes()
        for name in ("lr", "lr_decay", "temperature"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{flag_of(name)} must be a positive number, not {getattr(self, name)}")
        for name in ("weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{flag_of(name)} must be 0 or a positive number, not {getattr(self, name)}")
        for name in ("dropout", "feature_dropout", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{flag_of(name)} must be at least 0 and below 1, not {getattr(self, name)}")
        if not 0 <= self.scheduled_sampling <= 1:
            raise ConfigError(f"--scheduled-sampling must be from 0 to 1, not {self.scheduled_sampling}")
        if self.objective == "scst":
            self._check_self_critical()
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed must be at least 0 and below 2^63, not {self.seed}")
        if self.amp == "bf16" and self.dtype == "float64":
            raise ConfigError("--amp bf16 goes with --dtype float32, not with float64")

    def _check_sizes(self) -> None:
        at_least = {"hidden_dim": 1, "wordvec_dim": 1, "epochs": 1, "batch_size": 1, "max_length": 1, "workers": 0}
        at_least |= {"patience": 0, "score_images": 0, "max_train": 1, "threads": 1, "warm_up": 0}
        at_least |= {"checkpoint_every": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{flag_of(name)} must be at least {least}, not {value}")
        check_length(self.max_length)
        sizes = dict.fromkeys(("hidden_dim", "wordvec_dim", "batch_size"), 2**31)  # torch counts bytes in 63 bits
        for name, most in {"workers": 1000, "threads": 1000, **sizes}.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise ConfigError(f"{flag_of(name)} must be at most {most}, not {value}")

    def _check_self_critical(self) -> None:
        if self.init_from is None:
            raise ConfigError("--objective scst begins with a trained model: name it with --init-from")
        if self.score_images == 0:
            raise ConfigError("--objective scst keeps the best CIDEr's weights: --score-images must not be 0")
        if self.temperature != 1 and self.tied and self.hidden_dim == self.wordvec_dim:
            raise ConfigError(
                "--tied with --hidden-dim as --wordvec-dim takes --temperature 1 in self-critical training"
            )
        for name in ("label_smoothing", "scheduled_sampling"):
            if getattr(self, name):
                raise ConfigError(f"{flag_of(name)} goes with --objective xe, not with scst")

    @property
    def highest_lr(self) -> float:
        """`lr`, or what suits the objective."""
        return LEARNING_RATES[self.objective] if self.lr is None else self.lr

    def model_arguments(self) -> dict[str, Any]:
        """The arguments of `CaptioningRNN` that are settings: all but the vocabulary and `input_dim`."""
        names = ("wordvec_dim", "hidden_dim", "cell_type", "gradients", "dropout", "label_smoothing", "tied")
        return {name: getattr(self, name) for name in names}

    def plain(self) -> dict[str, Any]:
        """The settings as plain values, for a checkpoint."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}

    def shared(self) -> dict[str, Any]:
        """`plain` for others to read: without the folders that only the run itself has to know."""
        return {k: v for k, v in self.plain().items() if k not in OF_THE_MACHINE} | {"data": at_home(self.data)}

    @classmethod
    def from_plain(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `plain`; a name of another version is left out, a missing one takes its default.

        Raises:
            ConfigError: a value is of another kind than the setting's, or out of the range of a size.
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
    """Whether a plain value is one that a field of that type may have; a path is a string."""
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if get_args(kind):
        return any(_is_of(value, part) for part in get_args(kind))
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (str if kind is Path else kind)
