"""The checks of arguments: every refusal names the function, the argument and what is wrong with it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tests.helpers.random_arguments import FLOATS, PACKED, example
from torch_caption import functions
from torch_caption.functions._common import autocast, readable, untransformed
from torch_caption.functions._inplace.tanh import tanh_

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64]
# A function, its argument of integers, and how many values are right.
INDICES = [
    ("word_embedding", "x", 6),
    ("temporal_softmax_loss", "y", 6),
    ("temporal_affine_softmax_loss", "y", 6),
    ("rnn", "lengths", 4),
    ("lstm", "lengths", 4),
    ("projected_lstm", "lengths", 4),
    ("gru", "lengths", 4),
    ("attention_lstm", "lengths", 4),
]
ARGUMENTS = [(function, name) for function in FLOATS for name in FLOATS[function]]
# Axes that no other argument shares.
FREE = [
    ("affine", "x", 0),
    ("temporal_affine", "x", 0),
    ("temporal_affine", "x", 1),
    ("word_embedding", "W", 0),
    ("word_embedding", "W", 1),
    ("rnn", "x", 1),
    ("lstm", "x", 1),
    ("projected_lstm", "x", 1),
    ("gru", "x", 1),
    ("attention_lstm", "x", 1),
    ("attention_lstm", "A", 2),
    ("attention_lstm_step", "A", 2),
    ("dot_product_attention", "A", 2),
    ("temporal_softmax_loss", "x", 2),
]


def call(function: str, **changes: Any) -> Any:
    return getattr(functions, function)(**{**arguments_of(function), **changes})


def arguments_of(function: str) -> dict[str, Tensor]:
    args = example(function)
    return {**args, "lengths": torch.tensor([3, 1])} if f"packed_{function}" in PACKED else args


def refuses(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
def test_non_tensors_and_other_dtypes_are_refused(function, name):
    value = arguments_of(function)[name]
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2, 3)])
    advice = "torch.nn.utils.rnn.pad_packed_sequence makes a tensor and lengths of it"
    for wrong, message in (
        ([1.0, 2.0], "must be a tensor, but is a list"),
        (value.detach().numpy(), "must be a tensor, but is a NumPy array; torch.from_numpy makes a tensor of it"),
        (packed, f"must be a tensor, but is a PackedSequence; {advice}"),
        (value.long(), "must be floating-point, but is int64"),
        (value.to(torch.complex128), "must be floating-point, but is complex128"),
    ):
        with refuses(TypeError, f"{function}: {name} {message}"):
            call(function, **{name: wrong})


@pytest.mark.parametrize(("function", "name"), [(f, n) for f, n in ARGUMENTS if n != next(iter(FLOATS[f]))])
def test_mixed_dtypes_and_devices_are_refused(function, name):
    first = next(iter(FLOATS[function]))
    value = arguments_of(function)[name]
    with refuses(TypeError, f"{function}: {name} is float32, but {first} is float64"):
        call(function, **{name: value.float()})
    with refuses(TypeError, f"{function}: {name} is on meta, but {first} is on cpu"):
        call(function, **{name: value.to("meta")})


def test_the_first_argument_is_named_if_only_it_differs():
    args = arguments_of("rnn")
    with refuses(TypeError, "rnn: x is float32, but h0 is float64"):
        call("rnn", x=args["x"].float())


def test_of_several_that_differ_the_first_is_named_against_the_first_weight():
    args = arguments_of("rnn")
    with refuses(TypeError, "rnn: x is float32, but Wx is float64"):
        call("rnn", x=args["x"].float(), h0=args["h0"].float())


@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
def test_one_more_entry_along_any_axis_is_refused(function, name):
    value = arguments_of(function)[name]
    for axis in range(value.dim()):
        wrong = torch.cat([value, value.narrow(axis, 0, 1)], dim=axis)
        if (function, name, axis) in FREE:
            call(function, **{name: wrong})
        else:
            with pytest.raises(ValueError, match=rf"^{function}: \w+ must be \(.*\) with .*, but is \(.*\)$"):
                call(function, **{name: wrong})


def test_shape_message_gives_the_sizes():
    with refuses(ValueError, "rnn: x must be (N, T, D) with N = 2, D = 3, but is (2, 3, 4)"):
        call("rnn", Wx=torch.ones(3, 5, dtype=torch.float64))
    with refuses(ValueError, "lstm: Wh must be (H, 4H) with H = 5, 4H = 20, but is (5, 5)"):
        call("lstm", Wh=torch.ones(5, 5, dtype=torch.float64))
    with refuses(ValueError, "lstm: h0 must be (N, H) with N = 2, H = 5, but is (5,)"):
        call("lstm", h0=torch.ones(5, dtype=torch.float64))
    with refuses(ValueError, "lstm: c0 must be (N, H) with N = 2, H = 5, but is (5,)"):
        call("lstm", c0=torch.ones(5, dtype=torch.float64))
    with refuses(ValueError, "affine: x must be (..., D) with D = 4, but is ()"):
        call("affine", x=torch.tensor(1.0, dtype=torch.float64))
    args = arguments_of("rnn")  # of several wrong shapes, the one that the weights tell
    with refuses(ValueError, "rnn: x must be (N, T, D) with D = 4, but is (2, 3, 3)"):
        call("rnn", x=args["x"][..., 1:], h0=args["h0"][0])


@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
def test_a_wrong_shape_names_its_tensor(function, name):
    """And gives the sizes that the others have. What an input and one weight alone share, the weight decides."""
    specs, value = FLOATS[function], arguments_of(function)[name]
    wrong = [value.unsqueeze(0), value.sum(0)]
    if len(specs) > 2 and value.dim() > 1:
        wrong.append(value.transpose(-1, -2))
    for axis, letter in enumerate(specs[name].split()):
        sharers = [other for other, spec in specs.items() if letter[-1] in spec and other != name]
        if len(sharers) > 1 or (name[0] not in "Wwb" and sharers and sharers[0][0] in "Wwb"):
            wrong.append(torch.cat([value, value.narrow(axis, 0, 1)], dim=axis))
    sizes = {"N": 2, "T": 3, "D": 4, "H": 5, "M": 5, "P": 8, "V": 6, "L": 7}
    for tensor in wrong:
        if tensor.shape == value.shape or ((function, name) == ("affine", "x") and tensor.shape[-1] == sizes["D"]):
            continue
        with pytest.raises(ValueError, match=rf"^{function}: {name} must be \(") as refused:
            call(function, **{name: tensor})
        said = dict(re.findall(r"(\d?[A-Z]) = (\d+)", str(refused.value)))
        assert said == {letter: str(int(letter[:-1] or 1) * sizes[letter[-1]]) for letter in said}


@pytest.mark.parametrize(("function", "name", "high"), INDICES)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_integer_dtype_is_accepted(function, name, high, dtype):
    indices = arguments_of(function)[name]
    assert torch.equal(call(function, **{name: indices.to(dtype)}), call(function, **{name: indices}))
    wrong = indices.to(dtype)
    wrong[0] = high
    with pytest.raises(IndexError, match=f"^{function}: {name}\\[0.* is {high}, but "):
        call(function, **{name: wrong})


@pytest.mark.parametrize(("function", "name", "high"), INDICES)
def test_non_integers_are_refused(function, name, high):
    indices = arguments_of(function)[name]
    for dtype in (torch.bool, torch.float64, torch.bfloat16, torch.complex64):
        with refuses(TypeError, f"{function}: {name} must hold integers, but is {str(dtype).removeprefix('torch.')}"):
            call(function, **{name: indices.to(dtype)})
    with refuses(TypeError, f"{function}: {name} must be a tensor, but is a list"):
        call(function, **{name: indices.tolist()})
    with refuses(TypeError, f"{function}: {name} is on meta, but the weights are on cpu"):
        call(function, **{name: indices.to("meta")})
    with pytest.raises(ValueError, match=rf"^{function}: {name} must be \(N.*, but is \(1, 2.*\)$"):
        call(function, **{name: indices.unsqueeze(0)})


@pytest.mark.parametrize(("function", "name", "high"), INDICES)
@pytest.mark.parametrize("past", [False, True])
def test_index_out_of_range_is_named(function, name, high, past):
    value = high if past else -1
    indices = arguments_of(function)[name].clone()
    place = (1, 2)[: indices.dim()]
    indices[place] = value
    what = {"x": "W has 6 rows", "y": "there are 6 logits", "lengths": "x has 3 timesteps"}[name]
    where = ", ".join(map(str, place))
    message = f"{function}: {name}[{where}] is {value}, but {what} (0 to {high - 1})"
    wrong = {name: indices} | ({"mask": torch.ones(indices.shape, dtype=torch.bool)} if name == "y" else {})
    with refuses(IndexError, message):
        call(function, **wrong)
    with refuses(IndexError, message), torch.no_grad():
        call(function, **wrong)


@pytest.mark.parametrize("function", ["temporal_softmax_loss", "temporal_affine_softmax_loss"])
def test_a_word_of_weight_zero_is_checked_too(function):
    """Whose gradient by the weight needs its logit; a word under a boolean mask is not."""
    words = torch.full((2, 3), 6)
    with pytest.raises(IndexError, match=r"y\[0, 0\] is 6"):
        call(function, y=words, mask=torch.zeros(2, 3, dtype=torch.float64))
    assert call(function, y=words, mask=torch.zeros(2, 3, dtype=torch.bool)) == 0


@pytest.mark.parametrize("function", ["temporal_softmax_loss", "temporal_affine_softmax_loss"])
def test_wrong_mask_is_refused(function):
    mask = arguments_of(function)["mask"]
    with refuses(TypeError, f"{function}: mask must be a boolean or floating-point tensor, but is int64"):
        call(function, mask=mask.long())
    with refuses(TypeError, f"{function}: mask must be a boolean or floating-point tensor, but is list"):
        call(function, mask=mask.tolist())
    with refuses(TypeError, f"{function}: mask is on meta, but the logits are on cpu"):
        call(function, mask=mask.to("meta"))
    with refuses(ValueError, f"{function}: mask must be (N, T) with N = 2, T = 3, but is (3, 2)"):
        call(function, mask=mask.T)


def derivative(function: str, name: str, indices: Tensor, transform: Any) -> Any:
    """`transform`, such as torch.func.grad, of a scalar made of `function`, at bad indices."""
    args = {**arguments_of(function), name: indices}
    floating = next(iter(FLOATS[function]))

    def scalar(value: Tensor) -> Tensor:
        return getattr(functions, function)(**{**args, floating: value}).sum()

    return transform(scalar)(args[floating].detach())


@pytest.mark.parametrize(("function", "name", "high"), INDICES)
def test_values_are_read_under_grad_transforms(function, name, high):
    indices = torch.full_like(arguments_of(function)[name], high)
    grad = torch.func.grad
    for transform in (grad, torch.func.jacrev, torch.func.jacfwd, lambda f: grad(lambda x: grad(f)(x).sum())):
        with pytest.raises(IndexError, match=f"^{function}: {name}\\[0"):
            derivative(function, name, indices, transform)


def test_indices_inside_a_transform_are_read():
    x, W = example("word_embedding").values()

    def scalar(W: Tensor, x: Tensor) -> Tensor:
        return functions.word_embedding(x, W).sum()

    with pytest.raises(IndexError, match=r"x\[0, 0\] is -1"):
        torch.func.grad(scalar)(W, torch.full_like(x, -1))
    with pytest.raises(IndexError, match=r"x\[0, 0\] is -1"):
        torch.func.vmap(lambda W: functions.word_embedding(torch.full_like(x, -1), W))(W[None])


@pytest.mark.parametrize(("function", "name", "high"), INDICES)
def test_values_that_cannot_be_read_are_not_checked(function, name, high):
    args = arguments_of(function)
    given = args.pop(name)
    wrong = torch.full_like(given, -1)  # torch's own indexing takes -1

    def of(indices: Tensor) -> Tensor:
        return getattr(functions, function)(**{**args, name: indices})

    if name == "lengths":  # gather and index_select refuse -1 by themselves
        torch.func.vmap(of)(wrong[None])
        torch.func.vmap(torch.func.grad(lambda x, i: of(i).sum() * x), in_dims=(None, 0))(torch.ones(()), wrong[None])
        torch.compile(of, backend="eager", fullgraph=True)(wrong)
    make_fx(of)(given)
    meta = {key: value.to("meta") for key, value in {**args, name: wrong}.items()}
    assert getattr(functions, function)(**meta).is_meta


def test_what_a_captured_graph_computes_is_not_read(monkeypatch):
    """A tensor on a CUDA device, that is: one in memory is."""

    class OnCuda:
        is_meta, is_cuda = False, True

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not readable(OnCuda())
    assert readable(torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tanh_in_place(dtype):
    """Right to two units of precision at 1; of half precision as torch has it, which is right near 0 too."""
    a = torch.linspace(-4, 4, 201, dtype=torch.float64).to(dtype)
    for x in (a, a / 1000):
        found = x.clone()
        assert tanh_(found) is found
        assert (found.double() - x.double().tanh()).abs().max() <= 2 * torch.finfo(dtype).eps
        if dtype in (torch.float16, torch.bfloat16):
            assert torch.equal(found, x.tanh())


def test_untransformed():
    x = torch.ones(3)
    seen = []

    def look(y: Tensor) -> Tensor:
        seen.append(untransformed(y))
        return y.sum()

    look(x)
    look(x.clone().requires_grad_())
    with torch.autograd.forward_ad.dual_level():
        look(x)  # dual numbers may come
    torch.func.grad(look)(x)
    torch.func.vmap(look)(x[None])
    look(x.to("meta"))
    make_fx(look)(x)
    torch.compile(look, backend="eager")(x)
    assert seen == [True, True, False, False, False, False, False, False]


def test_autocast_leaves_what_no_product_takes():
    """float64 stays, as in torch, and so do integers and what is no tensor, which a check then names."""
    words, x, double = torch.arange(3), torch.ones(3), torch.ones(3, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        found = autocast(x, words, double, None)
    assert found[0].dtype == torch.bfloat16
    assert found[1] is words
    assert found[2] is double
    assert found[3] is None
    assert autocast(x, None) == (x, None)
