"""Batch and time may both be symbolic in a traced program, whose values are eager's at other sizes too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

from tests.helpers.random_arguments import PACKED
from tests.helpers.rings import ringed
from torch_caption import functions, layers
from torch_caption.functions.packing import last_rows
from torch_caption.verify import compare
from torch_caption.verify.gradcheck import difference, leaves, needs_grad

# functional_call lends its parameters to the captioner of a case
pytestmark = pytest.mark.filterwarnings(
    "ignore:While compiling, we found certain side effects happened in the model.forward:UserWarning"
)

# torch.jit.trace is deprecated, and warns of every size that Python compares.
OF_JIT_TRACE = pytest.mark.filterwarnings(
    *("ignore:`torch.jit.trace:DeprecationWarning", "ignore:`torch.jit.trace:FutureWarning"),
    "ignore::torch.jit.TracerWarning",
)


NAMES = ("RNN", "LSTM", "GRU")  # of layers
WIDTHS = {"D": 10, "H": 11, "V": 12, "L": 13, "P": 14}
# N below, at and above T, where the program is traced; and where it is tried as well.
TRACED = {"N < T": (3, 5), "N = T": (3, 3), "N > T": (4, 3)}
TRIED = [(5, 7), (6, 6), (8, 4)]
BATCH = {"x", "A", "h0", "prev_h", "prev_c", "c0", "h", "lengths", "y", "mask", "features", "captions", "inputs"}
BATCH |= {"weights"}
TIME = {"x", "h", "y", "mask", "captions", "inputs", "weights"}


def cases_of(N: int, T: int, dtype: torch.dtype = torch.float64) -> dict[str, compare.Case]:
    """Every function and captioner whose rows are of a batch: packed rows are given with their steps."""
    cases = compare.cases({**WIDTHS, "N": N, "T": T}, dtype)
    return {case.label: case for case in cases if not case.label.startswith("packed")}


LABELS = list(cases_of(2, 2))
FUNCTIONS = [label for label in LABELS if not label.startswith("Captioning")]
LAYERS = [label for label in FUNCTIONS if f"packed_{label.partition(',')[0]}" in PACKED]
LOOPS = [*LAYERS, *(label for label in LABELS if label not in FUNCTIONS)]
KINDS = [*zip(["AUTO", "DYNAMIC", "Dim"], TRACED, [False, True, False], strict=True)]


def alternating(choices: list, inner: set[str]) -> list:
    """Each function with a loop with each of the choices, each other label with one of them, in turn.

    In the inner ring are the first choice of the labels of `inner`, and one out of three of those without a loop.
    """
    others = [label for label in LABELS if label not in LAYERS]
    pairs = [(label, choice, choice is choices[0] and label in inner) for label in LAYERS for choice in choices]
    pairs += [(label, choices[k % len(choices)], k % 3 == 0 and label not in LOOPS) for k, label in enumerate(others)]
    return [
        pytest.param(label, choice, marks=() if quick else pytest.mark.exhaustive) for label, choice, quick in pairs
    ]


def symbols(case: compare.Case, kind: str) -> tuple:
    """What torch.export is to leave open, named (Dim) or not (AUTO, DYNAMIC)."""
    hints = {"AUTO": Dim.AUTO, "DYNAMIC": Dim.DYNAMIC}
    N, T = (hints.get(kind) or Dim(letter) for letter in "NT")
    columns = T if kind in hints else T + 1  # of captions: a <START> and T words, or what is read before them

    def axes(name: str, arg: Any) -> dict[int, Any] | None:
        if not isinstance(arg, Tensor):
            return None
        time = {1: columns if name == "captions" else T} if name in TIME and arg.shape[1] not in WIDTHS.values() else {}
        return ({0: N} if name in BATCH else {}) | time

    return tuple(axes(name, arg) for name, arg in zip(case.names, case.args, strict=False))


def exported(case: compare.Case, kind: str, strict: bool = False) -> torch.export.ExportedProgram:
    class Module(nn.Module):
        def forward(self, *args: Any) -> tuple[Tensor, ...]:
            return tuple(leaves(case.hand(*args)))

    return torch.export.export(Module(), case.args, dynamic_shapes=(symbols(case, kind),), strict=strict)


def assert_equal(found: Any, expected: Any) -> None:
    for k, (one, other) in enumerate(zip(leaves(found), leaves(expected), strict=True)):
        assert difference(f"output {k}", one, other).agrees, difference(f"output {k}", one, other)


@pytest.mark.parametrize(
    ("label", "how"),
    alternating(
        KINDS, {"rnn, lengths", "lstm, lengths and state", "gru, lengths", "attention_lstm, lengths and state"}
    ),
)
def test_an_exported_program_holds_for_every_batch_and_time(label, how):
    kind, sizes, strict = how
    case = cases_of(*TRACED[sizes])[label]
    program = exported(case, kind, strict).module()
    for tried in [TRACED[sizes], *TRIED]:
        other = cases_of(*tried)[label]
        assert_equal(program(*other.args), other.hand(*other.args))


@pytest.mark.parametrize("label", ringed(LAYERS, {"rnn", "lstm", "gru", "attention_lstm"}))
def test_an_exported_program_has_gradients(label):
    case, other = cases_of(4, 3)[label], cases_of(5, 7)[label]
    program = exported(case, "AUTO").module()
    inputs = [arg for arg in other.args if needs_grad(arg)]
    found = torch.autograd.grad([out.sum() for out in leaves(program(*other.args))], inputs)
    assert_equal(found, torch.autograd.grad([out.sum() for out in leaves(other.auto(*other.args))], inputs))


@pytest.mark.parametrize("label", ringed(FUNCTIONS, {"rnn"}))
def test_one_time_step_is_not_a_case_of_its_own(label):
    program = exported(cases_of(4, 3)[label], "AUTO").module()
    single = cases_of(3, 1)[label]
    assert_equal(program(*single.args), single.hand(*single.args))


@pytest.mark.parametrize(("label", "sizes"), alternating(list(TRACED), {"rnn"}))
def test_make_fx_with_symbolic_sizes(label, sizes):
    """Outputs and gradients."""

    def everything(function: Any, args: tuple) -> tuple[Tensor, ...]:
        outs = leaves(function(*args))
        return *outs, *torch.autograd.grad([out.sum() for out in outs], [arg for arg in args if needs_grad(arg)])

    case = cases_of(*TRACED[sizes])[label]
    traced = make_fx(lambda *args: everything(case.hand, args), tracing_mode="symbolic")(*case.args)
    for tried in [TRACED[sizes], *TRIED]:
        other = cases_of(*tried)[label]
        assert_equal(traced(*other.args), everything(other.auto, other.args))


@pytest.mark.parametrize("name", ringed(NAMES, {"LSTM"}))
def test_a_layer_is_exported_with_a_static_batch_and_then_a_symbolic_one(name):
    """In one process: nothing of the first trace, such as a guard on its batch of 5, is in the second program."""
    layer = getattr(layers, name)(4, 6, num_layers=2, bidirectional=True, dtype=torch.float64)
    for batch in ({}, {1: Dim.AUTO}):
        shapes = ({**batch, 0: Dim.AUTO},)
        program = torch.export.export(layer, (inputs(3, 5),), dynamic_shapes=shapes).module()
        for T, N in [(3, 5), (2, 5), (5, 5), (8, 5), *((T, N) for N, T in (TRIED if batch else []))]:
            x = inputs(T, N)
            assert_equal(leaves(program(x)), leaves(layer(x)))


@pytest.mark.parametrize("name", ringed(NAMES, {"GRU"}))
def test_a_layer_is_exported_with_lengths(name):
    layer = getattr(layers, name)(4, 6, bidirectional=True, dtype=torch.float64)

    class WithLengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            return self.layer(x, lengths=lengths)

    def args(T: int, N: int) -> tuple[Tensor, Tensor]:
        return inputs(T, N), torch.arange(N) % (T + 1)

    shapes = ({0: Dim.AUTO, 1: Dim.AUTO}, {0: Dim.AUTO})
    program = torch.export.export(WithLengths(), args(3, 5), dynamic_shapes=shapes).module()
    for N, T in TRIED:
        tried = args(T, N)
        assert_equal(leaves(program(*tried)), leaves(WithLengths()(*tried)))


@pytest.mark.parametrize("name", ringed(NAMES, {"RNN"}))
def test_make_fx_takes_the_parameters_of_a_layer(name):
    """And a state before the first step that is learned. make_fx gives them symbolic sizes: outputs and gradients."""

    def everything(parameters: dict[str, Tensor], x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        hx = states if name == "LSTM" else states[0]
        outs = leaves(torch.func.functional_call(layer, parameters, (x, hx)))
        return *outs, *torch.autograd.grad(sum(out.sum() for out in outs), [*parameters.values(), *states])

    def given(T: int, N: int) -> tuple:
        states = [nn.Parameter(torch.randn(1, N, 6, dtype=torch.float64)) for _ in range(2 if name == "LSTM" else 1)]
        return dict(layer.named_parameters()), inputs(T, N), *states

    layer = getattr(layers, name)(4, 6, dtype=torch.float64)
    traced = make_fx(everything, tracing_mode="symbolic")(*given(3, 5))
    for N, T in [(3, 5), *TRIED]:
        args = given(T, N)
        assert_equal(traced(*args), everything(*args))


def inputs(T: int, N: int) -> Tensor:
    return torch.randn(T, N, 4, dtype=torch.float64)


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")  # torch's own
@pytest.mark.parametrize("dtype", ringed([torch.float32, torch.float64], {torch.float32}))
@pytest.mark.parametrize("label", ringed(LOOPS, {"lstm, lengths and state"}))
def test_onnx_with_symbolic_sizes(label, dtype):
    """In onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="requirements-export.txt is not installed")
    case = cases_of(4, 3, dtype)[label]
    if dtype == torch.float64 and "every option" in label:
        pytest.skip("torch.onnx rounds Python numbers to float32")
    program = torch.onnx.export(exported(case, "Dim"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for tried in [(4, 3), *TRIED]:
        other = cases_of(*tried, dtype)[label]
        given = [arg.detach().numpy() for arg in other.args if isinstance(arg, Tensor)]
        names = [entry.name for entry in session.get_inputs()]
        found = session.run(None, dict(zip(names, given, strict=True)))
        for one, out in zip(found, leaves(other.hand(*other.args)), strict=True):
            error = (torch.from_numpy(one) - out.detach()).abs().max()
            assert error <= 16 * torch.finfo(dtype).eps * out.detach().abs().max()


def trace_with_jit(call: Any, args: tuple) -> Any:
    with torch.no_grad():
        return torch.jit.trace(call, args)


@OF_JIT_TRACE
@pytest.mark.parametrize("name", NAMES)
def test_jit_trace_refuses_a_loop_over_time(name):
    with pytest.raises(RuntimeError, match=r"torch.jit.trace cannot record a loop over T time steps: use torch.export"):
        trace_with_jit(getattr(layers, name)(4, 6), (torch.randn(3, 5, 4),))


@OF_JIT_TRACE
def test_jit_trace_refuses_packed_rows_of_as_many_steps_as_a_shape_says():
    """And records a loop over steps that are given as numbers."""
    x, h0, *weights = tensors(cases_of(4, 3)["rnn"])
    rows = x.transpose(0, 1).reshape(12, -1)
    with pytest.raises(RuntimeError, match=r"torch.jit.trace cannot record a loop over T time steps: use torch.export"):
        trace_with_jit(lambda x: functions.packed_rnn(rows, h0, *weights, batch_sizes=x.shape[1]), (x,))
    for sizes in (3, [4, 4, 4]):
        traced = trace_with_jit(lambda rows, s=sizes: functions.packed_rnn(rows, h0, *weights, batch_sizes=s), (rows,))
        assert_equal(traced(-rows), functions.packed_rnn(-rows, h0, *weights, batch_sizes=sizes))


@OF_JIT_TRACE
@pytest.mark.parametrize("label", [label for label in FUNCTIONS if label not in LAYERS])
def test_jit_trace_is_right_where_no_loop_is(label):
    case, other = cases_of(4, 3)[label], cases_of(5, 7)[label]
    traced = trace_with_jit(lambda *args: tuple(leaves(case.hand(*args, *case.args[len(args) :]))), tensors(case))
    assert_equal(traced(*tensors(other)), other.hand(*other.args))


def tensors(case: compare.Case) -> tuple[Tensor, ...]:
    return tuple(arg.detach() for arg in case.args if isinstance(arg, Tensor))


def test_torch_func_in_a_program_of_symbolic_time_is_refused():
    def per_row(x: Tensor, h0: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.vmap(lambda h: functions.rnn(x, h, *weights))(torch.stack([h0, -h0]))

    args = cases_of(4, 3)["rnn"].args
    with pytest.raises(RuntimeError, match=r"make the time axis static \(torch.export.Dim.STATIC\)"):
        make_fx(per_row, tracing_mode="symbolic")(*args)
    traced = make_fx(per_row, tracing_mode="real")(*args)
    assert_equal(traced(*args), per_row(*args))


def test_sizes_may_be_symbolic_where_they_are_given_as_a_number():
    """`packed_lstm` of T steps, T read from the shape of another input; and the states after the last of them."""

    class Module(nn.Module):
        def forward(self, x: Tensor, *args: Tensor) -> tuple[Tensor, ...]:
            rows = x.transpose(0, 1).reshape(-1, x.shape[2])
            h, c = functions.packed_lstm(rows, *args, batch_sizes=x.shape[1], return_cells=True)
            return h, last_rows(args[0], h, x.shape[1]), last_rows(args[0], c, x.shape[1])

    args = tensors(cases_of(4, 3)["lstm"])
    shapes = ({0: Dim.AUTO, 1: Dim.AUTO}, {0: Dim.AUTO}, None, None, None)
    program = torch.export.export(Module(), args, dynamic_shapes=(*shapes[:1], shapes[1:])).module()
    for sizes in TRIED:
        other = tensors(cases_of(*sizes)["lstm"])
        assert_equal(program(*other), Module()(*other))
