"""Hand-derived against automatic gradients: `python -m torch_caption compare`.

Every function, and the whole captioner of each cell, runs twice on the same numbers: once with the derivatives of
`torch_caption.functions`, once through `torch_caption.functions.reference` with torch.autograd's. Each gradient is
compared by name, each function is checked in the modes of automatic differentiation in float64, and the two backwards
are timed.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor
from torch.autograd import Function
from torch.func import functional_call
from tqdm import tqdm

from torch_caption import functions
from torch_caption.data.vocabulary import SPECIAL
from torch_caption.errors import ConfigError
from torch_caption.functions import reference
from torch_caption.io.exits import is_interactive, one_line
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS
from torch_caption.verify.gradcheck import (
    MODES,
    TOLERANCE,
    Difference,
    differences,
    leaves,
    needs_grad,
    random_like,
    run_modes,
)

CLASSES: dict[str, type[Function]] = {
    name: value for name, value in vars(functions).items() if isinstance(value, type) and issubclass(value, Function)
}
# Arguments of classes without a gradient.
UNDIFFERENTIATED = {
    "y",
    "index",
    "indices",
    "batch_sizes",
    "R",
    "label_smoothing",
    "reduction",
    "nonlinearity",
    "gate_order",
    "cache",
}
LETTERS = "NTDHPVL"
# Finite differences need one evaluation per entry: the modes run on smaller sizes.
SMALL = {"N": 2, "T": 3, "D": 3, "H": 2, "P": 1, "V": 5, "L": 3}
SMOOTHING = 0.1  # label-smoothing factor


@dataclass(frozen=True)
class CompareConfig:
    """Compare hand-derived with automatic gradients; exit status 1 when any differ."""

    N: int = 8
    """Batch size."""
    T: int = 16
    """Timesteps."""
    D: int = 64
    """Width of the input, of a word vector, of the image features."""
    H: int = 128
    """Hidden units."""
    P: int = 32
    """Width of a projected hidden state."""
    V: int = 1004
    """Vocabulary size."""
    L: int = 49
    """Spatial positions of an image, for attention."""
    dtype: Literal["float64", "float32"] = "float64"
    """Data type of the compared gradients. The modes are always checked in float64."""
    device: str = "cpu"
    """Device, such as cpu or cuda."""
    json: Path | None = None
    """Write all results to this JSON file."""
    plot: Path | None = None
    """Plot the errors, and the gradient norms by time step, to this PNG file."""
    broken: Annotated[str | None, tyro.conf.arg(name="break", metavar="FUNCTION.GRADIENT")] = None
    """Multiply one gradient, such as RNN.dWh, by 1.001 inside its backward: the comparison must then fail."""
    repeat: int = 9
    """Number of timed runs of forward and backward; the median is reported."""


@dataclass(frozen=True)
class Case:
    """A function in both forms with arguments for them; `names` are the arguments', without the leading d."""

    label: str
    hand: Callable
    auto: Callable
    args: tuple
    names: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """The result of a case.

    Attributes:
        differences: of each output and gradient.
        modes: the name of a mode -> None, or its error.
        time_ratio: time of the hand-derived function and its backward over that of the automatic ones.
    """

    label: str
    differences: tuple[Difference, ...]
    modes: Mapping[str, str | None]
    time_ratio: float

    @property
    def passed(self) -> bool:
        return all(d.agrees for d in self.differences) and not any(self.modes.values())


def cases(sizes: Mapping[str, int], dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Case]:
    """Every function, then the captioner of each cell, with random arguments; weights are over sqrt(fan-in)."""
    N, T, D, H, P, V, L = (sizes[letter] for letter in LETTERS)
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        values = scale * torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
        return values.to(device=device, dtype=dtype).requires_grad_()

    def weights(gates: int) -> tuple[Tensor, Tensor, Tensor]:
        return normal(D, gates * H, scale=D**-0.5), normal(H, gates * H, scale=H**-0.5), normal(gates * H)

    def of_relu() -> tuple[Tensor, Tensor, Tensor]:
        Wx, Wh, b = weights(1)
        return Wx, Wh, (b.detach() + 1).requires_grad_()  # most units are active

    def projected() -> tuple[Tensor, ...]:
        return (
            *(normal(D, 4 * H, scale=D**-0.5), normal(P, 4 * H, scale=P**-0.5)),
            *(normal(H, P, scale=H**-0.5), normal(4 * H)),
        )

    def attention() -> tuple[Tensor, ...]:
        Wx, Wh, b = weights(4)
        return normal(N, H, L), Wx, Wh, normal(H, 4 * H, scale=H**-0.5), b

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator, device="cpu").to(device)

    y = integers(V, N, T)
    mask = (torch.rand(N, T, generator=generator, dtype=torch.float32, device="cpu") < 0.7).to(device)
    lengths = integers(T + 1, N)
    batch_sizes = tuple(int((t < lengths).sum()) for t in range(T))
    r = sum(batch_sizes)
    index = integers(V, r)
    arguments = {
        "affine": (normal(N, D), normal(D, H, scale=D**-0.5), normal(H)),
        "temporal_affine": (normal(N, T, D), normal(D, H, scale=D**-0.5), normal(H)),
        "word_embedding": (y, normal(V, D)),
        "rnn_step": (normal(N, D), normal(N, H), *weights(1)),
        "rnn_step, relu": (normal(N, D), normal(N, H), *of_relu(), "relu"),
        "rnn": (normal(N, T, D), normal(N, H), *weights(1)),
        "rnn, lengths": (normal(N, T, D), normal(N, H), *weights(1), lengths),
        "rnn, relu": (normal(N, T, D), normal(N, H), *of_relu(), None, "relu"),
        "packed_rnn": (normal(r, D), normal(N, H), *weights(1), batch_sizes),
        "packed_rnn, index": (normal(V, D), normal(N, H), *weights(1), batch_sizes, index),
        "packed_rnn, relu": (normal(r, D), normal(N, H), *of_relu(), batch_sizes, None, "relu"),
        "lstm_step": (normal(N, D), normal(N, H), normal(N, H), *weights(4)),
        "lstm_step, ifgo": (normal(N, D), normal(N, H), normal(N, H), *weights(4), "ifgo"),
        "lstm": (normal(N, T, D), normal(N, H), *weights(4)),
        "lstm, lengths and state": (normal(N, T, D), normal(N, H), *weights(4), lengths, normal(N, H), True),
        "lstm, ifgo": (normal(N, T, D), normal(N, H), *weights(4), None, None, False, "ifgo"),
        "packed_lstm": (normal(r, D), normal(N, H), *weights(4), batch_sizes),
        "packed_lstm, index and state": (
            *(normal(V, D), normal(N, H), *weights(4), batch_sizes, index),
            *(normal(N, H), True),
        ),
        "projected_lstm_step": (normal(N, D), normal(N, P), normal(N, H), *projected()),
        "projected_lstm": (normal(N, T, D), normal(N, P), *projected()),
        "projected_lstm, lengths and state": (
            *(normal(N, T, D), normal(N, P), *projected(), lengths),
            *(normal(N, H), True),
        ),
        "packed_projected_lstm": (normal(r, D), normal(N, P), *projected(), batch_sizes),
        "packed_projected_lstm, index and state": (
            *(normal(V, D), normal(N, P), *projected(), batch_sizes, index),
            *(normal(N, H), True),
        ),
        "gru_step": (normal(N, D), normal(N, H), *weights(3), normal(H)),
        "gru": (normal(N, T, D), normal(N, H), *weights(3), normal(H)),
        "gru, lengths": (normal(N, T, D), normal(N, H), *weights(3), normal(H), lengths),
        "packed_gru": (normal(r, D), normal(N, H), *weights(3), normal(H), batch_sizes),
        "packed_gru, index": (normal(V, D), normal(N, H), *weights(3), normal(H), batch_sizes, index),
        "dot_product_attention": (normal(N, H), normal(N, H, L)),
        "attention_lstm_step": (normal(N, D), normal(N, H), normal(N, H), *attention()),
        "attention_lstm": (normal(N, T, D), *attention()),
        "attention_lstm, lengths and state": (
            *(normal(N, T, D), *attention(), lengths, normal(N, H), normal(N, H)),
            *(True, True),
        ),
        "packed_attention_lstm": (normal(r, D), *attention(), batch_sizes),
        "packed_attention_lstm, index and state": (
            *(normal(V, D), *attention(), batch_sizes, index),
            *(normal(N, H), normal(N, H)),
        ),
        "temporal_softmax_loss": (normal(N, T, V), y, mask),
        "temporal_softmax_loss, weights": (normal(N, T, V), y, normal(N, T)),
        "temporal_softmax_loss, smoothed": (normal(N, T, V), y, normal(N, T), SMOOTHING),
        "temporal_softmax_loss, rows": (normal(N, T, V), y, normal(N, T), SMOOTHING, "none"),
        "temporal_affine_softmax_loss": (normal(N, T, H), normal(H, V, scale=H**-0.5), normal(V), y, mask),
        "temporal_affine_softmax_loss, weights": (
            *(normal(N, T, H), normal(H, V, scale=H**-0.5), normal(V), y),
            normal(N, T),
        ),
        "temporal_affine_softmax_loss, smoothed": (
            *(normal(N, T, H), normal(H, V, scale=H**-0.5), normal(V), y),
            *(mask, SMOOTHING),
        ),
        "temporal_affine_softmax_loss, rows": (
            *(normal(N, T, H), normal(H, V, scale=H**-0.5), normal(V), y),
            *(mask, 0.0, "none"),
        ),
    }
    made = [_function_case(label, args) for label, args in arguments.items()]
    # The options of training: other input tokens than the captions, a weight for each word, its settings.
    inputs, parts = y[:, :-1].flip(0), normal(N, T - 1).detach()
    for cell in CELLS:
        made.append(_captioner_case(f"CaptioningRNN, {cell}", cell, sizes, normal, (y,)))
        label = f"CaptioningRNN, {cell}, every option"
        options = {"tied": True, "label_smoothing": SMOOTHING, "num_layers": 2}
        made.append(_captioner_case(label, cell, sizes, normal, (y, inputs, parts), options))
    return made


def _function_case(label: str, args: tuple) -> Case:
    name = label.partition(",")[0]
    hand = getattr(functions, name)
    return Case(label, hand, getattr(reference, name), args, tuple(inspect.signature(hand).parameters))


def _captioner_case(
    label: str,
    cell: str,
    sizes: Mapping[str, int],
    normal: Callable[..., Tensor],
    given: tuple[Tensor, ...],
    options: Mapping[str, Any] | None = None,
) -> Case:
    """The loss of the captioner as a function of its features, the other arguments `given`, and its parameters."""
    words = [*SPECIAL, *(f"word{k}" for k in range(len(SPECIAL), sizes["V"]))]
    word_to_idx = {word: k for k, word in enumerate(words)}
    widths = {"input_dim": sizes["D"], "wordvec_dim": sizes["D"], "hidden_dim": sizes["H"]}
    made: dict[str, Any] = {**widths, "cell_type": cell, **(options or {})}
    models = [CaptioningRNN(word_to_idx, **made, gradients=kind) for kind in ("hand", "auto")]
    shapes = {name: p.shape for name, p in models[0].named_parameters()}
    scales = [shape[0] ** -0.5 if len(shape) == 2 else 1.0 for shape in shapes.values()]
    params = [normal(*shape, scale=scale) for shape, scale in zip(shapes.values(), scales, strict=True)]

    def loss_of(model: CaptioningRNN) -> Callable:
        def loss(features: Tensor, *others: Tensor) -> Tensor:
            given, params = others[: -len(shapes)], others[-len(shapes) :]
            return functional_call(model, dict(zip(shapes, params, strict=True)), (features, *given))

        return loss

    positions = (sizes["L"],) if CELLS[cell].attends else ()
    hand, auto = map(loss_of, models)
    names = ("features", *("captions", "inputs", "weights")[: len(given)], *shapes)
    return Case(label, hand, auto, (normal(sizes["N"], sizes["D"], *positions), *given, *params), names)


# Running -------------------------------------------------------------------------------------------------------------


def run(config: CompareConfig) -> list[Result]:
    """Compare every case.

    Raises:
        ConfigError: `broken` is not a gradient.
    """
    sizes = {letter: getattr(config, letter) for letter in LETTERS}
    full = cases(sizes, getattr(torch, config.dtype), config.device)
    small = cases(SMALL, torch.float64, config.device)
    with broken(config.broken) if config.broken else contextlib.nullcontext():
        pairs = tqdm(list(zip(full, small, strict=True)), desc="comparing", leave=False, disable=not is_interactive())
        return [_run(case, tiny, config.repeat) for case, tiny in pairs]


def _run(case: Case, tiny: Case, repeat: int) -> Result:
    found = [*differences(case.hand, case.auto, case.args, case.names)]
    return Result(case.label, tuple(found), run_modes(tiny.hand, tiny.args), time_ratio(case, repeat))


def gradient_names() -> list[str]:
    """The values of `broken`: "RNN.dWh" and so on, for every class and floating-point argument."""
    return [
        f"{name}.d{argument}"
        for name, cls in sorted(CLASSES.items())
        for argument in inspect.signature(cls.forward).parameters
        if argument not in UNDIFFERENTIATED and (name, argument) != ("WordEmbedding", "x")
    ]


@contextlib.contextmanager
def broken(name: str) -> Iterator[None]:
    """Multiply the named gradient by 1.001 inside its class's backward, in the block.

    Raises:
        ConfigError: there is no such gradient.
    """
    if name not in gradient_names():
        raise ConfigError(f"--break {name}: no such gradient; there are {', '.join(gradient_names())}")
    class_name, _, gradient = name.partition(".")
    cls = CLASSES[class_name]
    index = list(inspect.signature(cls.forward).parameters).index(gradient[1:])
    right: Any = cls.backward

    def wrong(ctx: Any, *douts: Tensor) -> tuple:
        grads = list(right(ctx, *douts))
        grads[index] = None if grads[index] is None else 1.001 * grads[index]
        return tuple(grads)

    cls.backward = staticmethod(wrong)  # type: ignore[method-assign]
    try:
        yield
    finally:
        cls.backward = staticmethod(right)  # type: ignore[method-assign]


def time_ratio(case: Case, repeat: int) -> float:
    """Median time of the hand-derived function and its backward over that of the automatic ones, in alternating runs.

    Forward and backward together: a loss over chunks of logits computes its gradient in the forward.
    """
    inputs = [arg for arg in case.args if needs_grad(arg)]
    douts = [random_like(out, 0) for out in leaves(case.auto(*case.args))]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat + 1):
        for taken, function in zip(times, (case.hand, case.auto), strict=True):
            _wait(inputs[0])
            begin = time.perf_counter()
            torch.autograd.grad(leaves(function(*case.args)), inputs, douts, allow_unused=True)
            _wait(inputs[0])
            taken.append(time.perf_counter() - begin)
    hand, auto = (statistics.median(taken[1:]) for taken in times)  # the first is a warm-up
    return hand / auto


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def gradient_norms(T: int = 64, N: int = 32, H: int = 128) -> dict[str, list[float]]:
    """`|dL/dh_t|` of each t, averaged over the batch, for a loss that reads the last hidden state alone.

    Weights are initialised as in the captioner. The third curve is the LSTM with a forget-gate bias b_f = 3, for which
    the gradient does not vanish (Gers et al. 2000; Jozefowicz et al. 2015); at its initialisation an LSTM forgets as
    fast as the RNN.
    """
    settings = {"rnn": ("rnn", 0.0), "lstm": ("lstm", 0.0), "lstm, forget bias 3": ("lstm", 3.0)}
    norms = {}
    for label, (cell_type, forget_bias) in settings.items():
        torch.manual_seed(0)
        cell = CELLS[cell_type]()
        with torch.device("cpu"):
            weights = {name: w.double() for name, w in cell.weights(H, H).items()}
        if forget_bias:
            weights["b"][H : 2 * H] = forget_bias
        x = torch.randn(T, N, H, dtype=torch.float64, device="cpu")
        state = cell.begin(x.new_zeros(N, H).requires_grad_())
        hidden = []
        for x_t in x:
            state = cell.step(x_t, state, weights)
            hidden.append(state[0])
        dlast = random_like(hidden[-1], 1)
        grads = torch.autograd.grad(hidden[-1], hidden, dlast)
        norms[label] = [g.norm(dim=1).mean().item() for g in grads]
    return norms


# Printing ------------------------------------------------------------------------------------------------------------


def table(results: list[Result]) -> str:
    """Gradients by name with their errors, then the modes and the time of each function."""
    lines = [f"{'function':<38} {'gradient':<10} {'shape':>16} {'max error':>10} {'relative':>10}"]
    for result in results:
        for k, d in enumerate(result.differences):
            label = result.label if k == 0 else ""
            shape = "x".join(map(str, d.shape)) or "scalar"
            verdict = "" if d.agrees else "  DIFFERS"
            lines.append(f"{label:<38} {d.name:<10} {shape:>16} {d.absolute:>10.1e} {d.relative:>10.1e}{verdict}")
    lines += ["", f"{'function':<38} " + " ".join(f"{mode:>{len(mode)}}" for mode in MODES) + "  time hand/auto"]
    for result in results:
        marks = " ".join(f"{'FAILS' if result.modes[mode] else 'ok':>{len(mode)}}" for mode in MODES)
        lines.append(f"{result.label:<38} {marks} {result.time_ratio:>15.2f}")
        lines += [f"  {mode}: {fault}" for mode, fault in result.modes.items() if fault]
    return "\n".join(lines)


def verdict(results: list[Result]) -> str:
    """A summary in one line."""
    gradients = [(result.label, d) for result in results for d in result.differences]
    wrong = [f"{label}: {d.name}" for label, d in gradients if not d.agrees]
    failed = [f"{result.label}: {mode}" for result in results for mode, fault in result.modes.items() if fault]
    worst = max(d.relative for _, d in gradients)
    if wrong or failed:
        parts = [f"{len(wrong)} of {len(gradients)} tensors differ ({', '.join(wrong)})"] if wrong else []
        parts += [f"{len(failed)} modes fail ({', '.join(failed)})"] if failed else []
        return "; ".join(parts)
    return f"all {len(gradients)} tensors agree, greatest relative error {worst:.1e}; all modes pass"


def check(config: CompareConfig) -> None:
    """Check settings that would otherwise fail late or with an unclear error.

    Raises:
        ConfigError: a size is out of range, the device is missing, or the folder of a file is missing.
    """
    try:
        torch.zeros(1, device=config.device).item()  # the meta device has no values to compare
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise ConfigError(f"--device {config.device}: {one_line(error)}") from None
    for name in (*LETTERS, "repeat"):
        if not 1 <= getattr(config, name) < 2**31:
            raise ConfigError(f"--{name} must be at least 1 and below 2^31, but is {getattr(config, name)}")
    for path in (config.json, config.plot):
        if path and not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}")


def write(config: CompareConfig, results: list[Result]) -> None:
    """Write the files of `config`."""
    norms = gradient_norms() if config.plot or config.json else {}
    if config.json:
        content = {"results": [asdict(result) for result in results], "gradient_norms": norms}
        config.json.write_text(json.dumps(content, indent=1), encoding="utf-8", newline="\n")
    if config.plot:
        from torch_caption import plots  # a slow import

        errors = {result.label: {d.name: d.relative for d in result.differences} for result in results}
        plots.comparison(errors, norms, config.plot, bar=TOLERANCE[getattr(torch, config.dtype)])
