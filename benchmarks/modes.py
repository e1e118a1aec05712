"""36 modes of differentiation, of torch.nn's recurrent modules and of ours, against a plain loop.

Each mode is a function of a call and its inputs. It runs with a module's call and with that of the plain loop, in
float64, and the results are compared: "ok", "wrong" (it differs), or "fails" (it raises).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, linearize, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from benchmarks.options import Options
from benchmarks.tables import Column, Table
from torch_caption import layers
from torch_caption.functions import reference
from torch_caption.layers.weights import gru_weights, ifog_weights, rnn_weights
from torch_caption.verify.gradcheck import leaves, random_like

jvp: Any = torch.func.jvp  # whose types say that they return a tuple of two or three
vjp: Any = torch.func.vjp
NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
N, T, D, H = 3, 4, 2, 3
TOLERANCE = 1e-9
"""Of the greatest difference from the plain loop, relative to the loop's greatest entry; 0.05 under autocast."""

Call = Callable[..., Any]
"""(x, *weights) -> outputs and states."""
Inputs = Sequence[Any]
Mode = Callable[[Call, Inputs], Any]


# The modules ---------------------------------------------------------------------------------------------------------


def module(name: str, source: Any) -> nn.Module:
    """A module of `source`, torch.nn or ours, in float64, with the first weights of torch's generator."""
    torch.manual_seed(0)
    made: nn.Module = getattr(source, name)(D, H, dtype=torch.float64)
    return made


def call_of(made: nn.Module) -> Call:
    """A module as a function of its input and its weights."""
    names = [name for name, _ in made.named_parameters()]

    def call(x: Tensor, *weights: Tensor) -> Any:
        return functional_call(made, dict(zip(names, weights, strict=True)), (x,))

    return call


def plain_loop(name: str) -> Call:
    """The same function as a loop over `functions.reference`'s steps, which are plain torch."""
    weights_of = {"RNN": rnn_weights, "LSTM": ifog_weights, "GRU": gru_weights}[name.removesuffix("Cell")]
    step = getattr(reference, f"{name.removesuffix('Cell').lower()}_step")
    states = 2 if name.startswith("LSTM") else 1

    def call(x: Tensor, *weights: Tensor) -> Any:
        named = weights_of(*weights)
        state = (x.new_zeros(x.shape[-2], H),) * states
        outputs = []
        for x_t in [x] if name.endswith("Cell") else x:
            state = step(x_t, *state, *named)
            state = state if isinstance(state, tuple) else (state,)
            outputs.append(state[0])
        last = state if states > 1 else state[0]
        if name.endswith("Cell"):
            return last
        stacked = tuple(part.unsqueeze(0) for part in state)
        return torch.stack(outputs), stacked if states > 1 else stacked[0]

    return call


def inputs_of(name: str) -> Inputs:
    """x and the weights, which require grad."""
    x = random_like(torch.empty(N, D) if name.endswith("Cell") else torch.empty(T, N, D), 0).double()
    return tuple(p.detach().clone().requires_grad_() for p in (x, *module(name, nn).parameters()))


# The modes -----------------------------------------------------------------------------------------------------------


def loss_of(call: Call) -> Callable[..., Tensor]:
    """A scalar of all outputs that is not linear in them."""

    def loss(*inputs: Tensor) -> Tensor:
        outs = leaves(call(*inputs))
        return sum(((out + 0.5) ** 3).mean() for out in outs)  # type: ignore[return-value]

    return loss


def outputs_of(call: Call) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *inputs: tuple(leaves(call(*inputs)))


def batch_of(x: Tensor, count: int = 3) -> Tensor:
    return torch.stack([x.detach() + 0.1 * random_like(x, k) for k in range(count)])


def tangents_of(inputs: Inputs) -> Inputs:
    return tuple(random_like(x, k + 10) for k, x in enumerate(inputs))


def every(inputs: Inputs) -> tuple[int, ...]:
    return tuple(range(len(inputs)))


def backward(call: Call, inputs: Inputs) -> Any:
    return _backward(call, *inputs)


def batched_backward(call: Call, inputs: Inputs) -> Any:
    outs = leaves(call(*inputs))
    return torch.autograd.grad(outs, inputs, [batch_of(out) for out in outs], is_grads_batched=True)


def double_backward(call: Call, inputs: Inputs) -> Any:
    first = torch.autograd.grad(loss_of(call)(*inputs), inputs, create_graph=True)
    return torch.autograd.grad(sum((d * d).sum() for d in first), inputs)  # type: ignore[arg-type]


def third_derivative(call: Call, inputs: Inputs) -> Any:
    value: Any = loss_of(call)(*inputs)
    for _ in range(2):
        derivatives = torch.autograd.grad(value, inputs, create_graph=True)
        value = sum((d * d).sum() for d in derivatives)
    return torch.autograd.grad(value, inputs)


def gradient_penalty(call: Call, inputs: Inputs) -> Any:
    x, *weights = inputs
    (dx,) = torch.autograd.grad(loss_of(call)(x, *weights), x, create_graph=True)
    return torch.autograd.grad(dx.flatten(1).norm(dim=1).sub(1).square().mean(), weights)


def func_grad(call: Call, inputs: Inputs) -> Any:
    return grad(loss_of(call), every(inputs))(*inputs)


def func_vjp(call: Call, inputs: Inputs) -> Any:
    outs, pullback = vjp(outputs_of(call), *inputs)
    return outs, pullback(tuple(random_like(out, k) for k, out in enumerate(outs)))


def grad_of_grad(call: Call, inputs: Inputs) -> Any:
    def norm(*inputs: Tensor) -> Tensor:
        return sum((d * d).sum() for d in grad(loss_of(call), every(inputs))(*inputs))

    return grad(norm, every(inputs))(*inputs)


def func_jvp(call: Call, inputs: Inputs) -> Any:
    return jvp(outputs_of(call), inputs, tangents_of(inputs))


def dual_numbers(call: Call, inputs: Inputs) -> Any:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents_of(inputs), strict=True)]
        return [tuple(forward_ad.unpack_dual(out)) for out in leaves(call(*duals))]


def func_linearize(call: Call, inputs: Inputs) -> Any:
    outs, push = linearize(outputs_of(call), *(x.detach() for x in inputs))
    return outs, push(*tangents_of(inputs))


def func_jacrev(call: Call, inputs: Inputs) -> Any:
    return jacrev(outputs_of(call), every(inputs))(*inputs)


def func_jacfwd(call: Call, inputs: Inputs) -> Any:
    return jacfwd(outputs_of(call), every(inputs))(*inputs)


def func_hessian(call: Call, inputs: Inputs) -> Any:
    return hessian(loss_of(call), every(inputs))(*inputs)


def forward_over_forward(call: Call, inputs: Inputs) -> Any:
    return jacfwd(jacfwd(loss_of(call), every(inputs)), every(inputs))(*inputs)


def forward_over_reverse(call: Call, inputs: Inputs) -> Any:
    return jvp(grad(loss_of(call), every(inputs)), inputs, tangents_of(inputs))


def reverse_over_forward(call: Call, inputs: Inputs) -> Any:
    def directional(*inputs: Tensor) -> Tensor:
        return jvp(loss_of(call), inputs, tangents_of(inputs))[1]

    return grad(directional, every(inputs))(*inputs)


def vmap_over_inputs(call: Call, inputs: Inputs) -> Any:
    x, *weights = inputs
    return vmap(outputs_of(call), (0, *[None] * len(weights)))(batch_of(x), *weights)


def vmap_over_weights(call: Call, inputs: Inputs) -> Any:
    x, *weights = inputs
    return vmap(outputs_of(call), (None, *[0] * len(weights)))(x, *map(batch_of, weights))


def vmap_over_both(call: Call, inputs: Inputs) -> Any:
    return vmap(outputs_of(call))(*map(batch_of, inputs))


def nested_vmap(call: Call, inputs: Inputs) -> Any:
    x, *weights = inputs
    over_inputs = vmap(outputs_of(call), (0, *[None] * len(weights)))
    return vmap(over_inputs, (None, *[0] * len(weights)))(batch_of(x), *map(batch_of, weights))


def per_sample_gradients(call: Call, inputs: Inputs) -> Any:
    x, *weights = inputs
    in_dims = (x.dim() - 2, *[None] * len(weights))
    loss = loss_of(call)
    single = grad(lambda x, *weights: loss(x.unsqueeze(-2), *weights), tuple(range(1, len(inputs))))
    return vmap(single, in_dims)(x, *weights)


def vmap_of_jvp(call: Call, inputs: Inputs) -> Any:
    return vmap(lambda *tangents: jvp(outputs_of(call), inputs, tangents)[1])(*map(batch_of, tangents_of(inputs)))


def vmap_of_hessian(call: Call, inputs: Inputs) -> Any:
    x, *weights = inputs
    return vmap(hessian(loss_of(call)), (0, *[None] * len(weights)))(batch_of(x), *weights)


def other_weights(call: Call, inputs: Inputs) -> Any:
    x, *weights = inputs
    doubled = tuple(2 * weight for weight in weights)
    return torch.autograd.grad(loss_of(call)(x, *doubled), inputs)


def activation_checkpointing(call: Call, inputs: Inputs) -> Any:
    return torch.autograd.grad(checkpoint(loss_of(call), *inputs, use_reentrant=False), inputs)


def saved_tensor_hooks(call: Call, inputs: Inputs) -> Any:
    with saved_tensors_hooks(lambda x: x.to(torch.float64, copy=True), lambda x: x):
        value = loss_of(call)(*inputs)
    return torch.autograd.grad(value, inputs)


def compiled(call: Call, inputs: Inputs, **options: Any) -> Any:
    torch.compiler.reset()
    loss = torch.compile(loss_of(call), fullgraph=True, backend="aot_eager", **options)
    return torch.autograd.grad(loss(*inputs), inputs)


class _AsModule(nn.Module):
    """A call as a module of one input, for torch.export."""

    def __init__(self, call: Call, weights: Inputs):
        super().__init__()
        self.call = call
        self.weights = nn.ParameterList([nn.Parameter(weight.detach()) for weight in weights])

    def forward(self, x: Tensor) -> Any:
        return self.call(x, *self.weights)


def exported(call: Call, inputs: Inputs) -> Any:
    x, *weights = inputs
    return torch.export.export(_AsModule(call, tuple(weights)), (x.detach(),)).module()(x)


def exported_with_dynamic_sizes(call: Call, inputs: Inputs) -> Any:
    """Called with another batch, and of a sequence another number of steps."""
    x, *weights = inputs
    dims = dict.fromkeys(range(x.dim() - 1), torch.export.Dim.DYNAMIC)
    other = torch.cat([x, x[:1]]).detach() if x.dim() == 2 else torch.cat([x, x], dim=0).repeat(1, 2, 1).detach()
    if call.__name__ == "plain":
        return call(other, *weights)
    made = torch.export.export(_AsModule(call, tuple(weights)), (x.detach(),), dynamic_shapes=[dims])
    return made.module()(other)


def traced(call: Call, inputs: Inputs) -> Any:
    return make_fx(partial(_backward, call), tracing_mode="symbolic")(*inputs)(*inputs)


def _backward(call: Call, *inputs: Tensor) -> Any:
    return torch.autograd.grad(loss_of(call)(*inputs), inputs)


def meta_device(call: Call, inputs: Inputs) -> Any:
    """Shapes."""
    metas = tuple(x.detach().to("meta").requires_grad_() for x in inputs)
    grads = torch.autograd.grad(loss_of(call)(*metas), metas)
    return [torch.tensor(d.shape) for d in (*leaves(call(*metas)), *grads)]


def autocast(call: Call, inputs: Inputs) -> Any:
    """float32 inputs, in bfloat16."""
    singles = tuple(x.detach().float().requires_grad_() for x in inputs)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss_of(call)(*singles)
    return torch.autograd.grad(value, singles)


def hessian_vector_product(call: Call, inputs: Inputs) -> Any:
    _, pullback = vjp(grad(loss_of(call), every(inputs)), *inputs)
    return pullback(tangents_of(inputs))


def gauss_newton_vector_product(call: Call, inputs: Inputs) -> Any:
    """J^T H J v, where H is that of a loss of the outputs."""
    outs, pushed = jvp(outputs_of(call), inputs, tangents_of(inputs))
    loss = loss_of(lambda *outs: outs)
    _, product = jvp(grad(loss, tuple(range(len(outs)))), outs, pushed)
    _, pullback = vjp(outputs_of(call), *inputs)
    return pullback(product)


MODES: dict[str, Mode] = {
    "backward": backward,
    "batched backward (is_grads_batched)": batched_backward,
    "double backward": double_backward,
    "third derivative": third_derivative,
    "gradient penalty": gradient_penalty,
    "func.grad": func_grad,
    "func.vjp": func_vjp,
    "func.grad of func.grad": grad_of_grad,
    "func.jvp": func_jvp,
    "dual numbers": dual_numbers,
    "func.linearize": func_linearize,
    "func.jacrev": func_jacrev,
    "func.jacfwd": func_jacfwd,
    "func.hessian": func_hessian,
    "forward over forward": forward_over_forward,
    "forward over reverse": forward_over_reverse,
    "reverse over forward": reverse_over_forward,
    "vmap over inputs": vmap_over_inputs,
    "vmap over stacked weights": vmap_over_weights,
    "vmap over both": vmap_over_both,
    "nested vmap": nested_vmap,
    "per-sample gradients": per_sample_gradients,
    "vmap of func.jvp": vmap_of_jvp,
    "vmap of func.hessian": vmap_of_hessian,
    "functional_call with computed weights": other_weights,
    "activation checkpointing": activation_checkpointing,
    "saved-tensor hooks": saved_tensor_hooks,
    "compile, full graph": compiled,
    "compile, full graph, dynamic sizes": partial(compiled, dynamic=True),
    "export": exported,
    "export, dynamic batch and time": exported_with_dynamic_sizes,
    "make_fx, symbolic sizes": traced,
    "meta device": meta_device,
    "autocast to bfloat16": autocast,
    "Hessian-vector product": hessian_vector_product,
    "Gauss-Newton vector product": gauss_newton_vector_product,
}
NOT_OF_A_LOOP = {"compile, full graph": backward, "compile, full graph, dynamic sizes": backward}
"""What the plain loop runs instead of a mode, where it need not be traced."""


# The table -----------------------------------------------------------------------------------------------------------


def outcome(mode: str, name: str, source: Any) -> tuple[str, str]:
    """ "ok", "wrong" or "fails", and the difference or the error."""
    inputs = inputs_of(name)
    expected = _loop(mode, name, inputs)
    try:
        found = leaves(MODES[mode](call_of(module(name, source)), inputs))
    except Exception as error:  # whatever a module says
        return "fails", f"{type(error).__name__}: {' '.join(str(error).split())}"
    greatest = max(_difference(*pair) for pair in zip(found, expected, strict=True))
    tolerance = 0.05 if mode.startswith("autocast") else TOLERANCE
    return ("ok" if greatest <= tolerance else "wrong"), f"{greatest:.1e}"


def _loop(mode: str, name: str, inputs: Inputs) -> list[Tensor]:
    plain = plain_loop(name)
    plain.__name__ = "plain"
    if mode == "export":
        return leaves(plain(*inputs))
    if mode.startswith(("make_fx", "autocast")):
        return leaves(backward(plain, inputs))
    return leaves(NOT_OF_A_LOOP.get(mode, MODES[mode])(plain, inputs))


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    difference = (found.double() - expected.double()).abs().max().item()
    return difference / max(expected.double().abs().max().item(), 1.0)


def tables(options: Options) -> Iterator[Table]:
    """Every mode of every module."""
    modes = list(MODES)[:3] if options.quick else list(MODES)
    columns = [(f"{label}.{name}", name, source) for name in NAMES for label, source in (("nn", nn), ("ours", layers))]
    cells: dict[tuple[str, str], tuple[str, str]] = {}
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mode in tqdm(modes, desc="modes", leave=False, disable=None):
            for label, name, source in columns:
                cells[mode, label] = outcome(mode, name, source)
    rows = tuple((mode, *(cells[mode, label][0] for label, *_ in columns)) for mode in modes)
    failed = {label: [mode for mode in modes if cells[mode, label][0] != "ok"] for label, *_ in columns}
    notes = [f"{label}: {len(modes) - len(failed[label])} of {len(modes)} ok" for label, *_ in columns]
    for label, *_ in columns:
        notes += [f"{label}, {mode}: {cells[mode, label][0]}: {cells[mode, label][1][:160]}" for mode in failed[label]]
    heads = ("mode", *(label for label, *_ in columns))
    yield Table(
        "modes",
        f"modes of differentiation, N={N} T={T} D={D} H={H}, float64",
        tuple(map(Column, heads)),
        rows,
        tuple(notes),
    )
