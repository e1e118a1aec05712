"""The two losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.operator_log import Watch
from tests.helpers.random_arguments import (
    example,
    second_derivatives,
    tangents,
)
from tests.helpers.rings import ringed
from torch_caption import functions
from torch_caption.functions import (
    reference,
    temporal_affine_softmax_loss,
    temporal_softmax_loss,
)
from torch_caption.functions._inplace import softmax as inplace
from torch_caption.verify.gradcheck import assert_agrees, assert_derivatives, difference

LOSSES = ["temporal_softmax_loss", "temporal_affine_softmax_loss"]
MASKS = {
    "all": torch.ones(2, 3, dtype=torch.bool),
    "none": torch.zeros(2, 3, dtype=torch.bool),
    "some": torch.tensor([[True, False, True], [False, False, True]]),
}


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("mask", ringed(MASKS, {"some"}))
def test_derivatives_of_distinct_sizes(function, mask):
    args = {**example(function, H=2, V=4), "mask": MASKS[mask]}
    assert_derivatives(getattr(functions, function), tuple(args.values()))


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize(("N", "T"), [(0, 3), (2, 0), (0, 0), (2, 3)])
def test_empty_loss_is_zero_with_zero_gradients(function, N, T):
    args = {**example(function, N=N, T=T), "mask": torch.zeros(N, T, dtype=torch.bool)}
    loss = getattr(functions, function)(**args)
    assert loss.item() == 0
    loss.backward()
    assert all(not args[name].grad.any() for name in args if args[name].requires_grad)


@pytest.mark.parametrize("function", LOSSES)
def test_weights_of_another_precision(function):
    """A float32 weight serves float64 scores and the other way; its gradient has its own dtype."""
    for dtype, other in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        args = {**example(function, dtype), "mask": torch.rand(2, 3, dtype=other, requires_grad=True)}
        loss = getattr(functions, function)(**args)
        assert loss.dtype == dtype
        (dmask,) = torch.autograd.grad(loss, args["mask"])
        assert dmask.dtype == other


def cross_entropy(x: Tensor, y: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """torch.nn's, which leaves out a word of -100."""
    y = torch.where(mask, y, -100)
    x, y = x.flatten(0, 1), y.flatten()
    return F.cross_entropy(x, y, reduction="sum", label_smoothing=label_smoothing) / len(mask)


@pytest.mark.parametrize("s", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_smoothed_labels_are_those_of_torch_nn(mask, s):
    """Padding is left out of the smoothed part as well."""
    args = {**example("temporal_softmax_loss"), "mask": mask}

    def smoothed(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return cross_entropy(x, y, mask, label_smoothing=s)

    assert_agrees(lambda *args: temporal_softmax_loss(*args, s), smoothed, tuple(args.values()), tuple(args))
    args = {**example("temporal_affine_softmax_loss"), "mask": mask}
    assert_agrees(
        lambda *args: temporal_affine_softmax_loss(*args, s),
        lambda h, w, b, y, mask: smoothed(F.linear(h, w.T, b), y, mask),
        tuple(args.values()),
        tuple(args),
    )


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("s", [-0.1, 1.1, float("nan")])
def test_refused_smoothing(function, s):
    with pytest.raises(ValueError, match=rf"^{function}: label_smoothing must be from 0 to 1, but is {s}$"):
        getattr(functions, function)(*example(function).values(), s)


@pytest.mark.parametrize("function", LOSSES)
def test_smoothing_is_a_number(function):
    """A tensor might have a gradient, which there is none of."""
    with pytest.raises(TypeError, match=rf"^{function}: label_smoothing must be a number, but is a Tensor$"):
        getattr(functions, function)(*example(function).values(), torch.tensor(0.1))


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("weighted", [False, True], ids=["mask", "weights"])
def test_without_a_reduction_each_word_has_its_loss(function, weighted):
    args = example(function, N=4)
    args["mask"] = torch.randn(4, 3, dtype=torch.float64, requires_grad=True) if weighted else args["mask"]
    call = getattr(functions, function)

    def by_torch_nn(*values: Tensor) -> Tensor:
        given = dict(zip(args, values, strict=True))
        x = given["x"] if "x" in given else F.linear(given["h"], given["w"].T, given["b"])
        nll = F.cross_entropy(x.flatten(0, 1), given["y"].flatten(), reduction="none")
        return nll.reshape(4, 3) * given["mask"]

    assert_agrees(lambda *values: call(*values, reduction="none"), by_torch_nn, tuple(args.values()), tuple(args))
    rows = call(**args, reduction="none")
    torch.testing.assert_close(rows.sum(1).mean(), call(**args), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("function", LOSSES)
def test_a_masked_word_passes_no_gradient_that_is_not_finite(function):
    """Its loss is 0, whose logarithm has an infinite gradient."""
    args = {**example(function), "mask": MASKS["some"]}
    inputs = [arg for arg in args.values() if arg.requires_grad]
    for create_graph in (False, True):
        grads = []
        for module in (functions, reference):
            rows = getattr(module, function)(**args, reduction="none")
            dloss = rows.detach().reciprocal()
            assert dloss.isinf().any()
            grads.append(torch.autograd.grad(rows, inputs, dloss, create_graph=create_graph))
        for k, (hand, auto) in enumerate(zip(*grads, strict=True)):
            assert difference(f"gradient {k}", hand, auto).agrees


@pytest.mark.parametrize("function", LOSSES)
def test_refused_reduction(function):
    with pytest.raises(ValueError, match=rf"^{function}: reduction must be mean or none, but is 'sum'$"):
        getattr(functions, function)(*example(function).values(), reduction="sum")


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_masked_word_may_have_any_id(function, reduction):
    """As torch.nn's ignore_index, -100, does, in every mode; a word that counts, and one that is weighted, may not."""
    args = {**example(function), "mask": MASKS["some"]}
    padded = args | {"y": torch.where(args["mask"], args["y"], torch.tensor([[9, -100, 9], [-100, 99, -1]]))}
    call = getattr(functions, function)
    for compute in (call, torch.compile(call, fullgraph=True, backend="aot_eager"), getattr(reference, function)):
        found, expected = (compute(**given, reduction=reduction) for given in (padded, args))
        assert torch.equal(found, expected)
        inputs = [arg for arg in args.values() if arg.requires_grad]
        grads = [torch.autograd.grad(loss.sum(), inputs) for loss in (found, expected)]
        assert all(map(torch.equal, *grads))
    padded["y"][0, 0] = -100
    with pytest.raises(IndexError, match=rf"^{function}: y\[0, 0\] is -100, but there are 6 logits"):
        call(**padded, reduction=reduction)
    with pytest.raises(IndexError, match=rf"^{function}: y\[0, 0\] is -100, but there are 6 logits"):
        call(**padded | {"mask": args["mask"].double()}, reduction=reduction)


def large_logits(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of +-1e4 as bfloat16 rounds them, so that every dtype has the same; right and wrong words among them."""
    signs = torch.tensor([[1, -1, -1, 1], [-1, -1, -1, -1], [1, 1, -1, 1]])
    x = (1e4 * signs).bfloat16().to(dtype).unsqueeze(1)  # (3, 1, 4)
    return x, torch.tensor([[0], [2], [2]]), torch.ones(3, 1, dtype=torch.bool)


# log 2, log 4, and the distance of the wrong word plus log 3, over three rows.
LARGE_LOSS = (2 * 9984 + torch.tensor([2.0, 4.0, 3.0], dtype=torch.float64).log().sum().item()) / 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_large_logits(dtype, autocast):
    x, y, mask = large_logits(dtype)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = temporal_softmax_loss(x, y, mask)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(LARGE_LOSS, rel=torch.finfo(loss.dtype).eps)
    (dx,) = torch.autograd.grad(loss, x)
    third = 1 / 3
    wanted = torch.tensor([[-0.5, 0, 0, 0.5], [0.25, 0.25, -0.75, 0.25], [third, third, -1, third]]).double() / 3
    torch.testing.assert_close(dx.squeeze(1).double(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_large_logits_of_an_affine_layer(dtype, autocast):
    """The scores come out of the product: h picks a row of w."""
    x, y, mask = large_logits(dtype)
    h, w = torch.eye(3, dtype=dtype).unsqueeze(1).requires_grad_(), x.squeeze(1).clone().requires_grad_()
    b = torch.zeros(4, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = temporal_affine_softmax_loss(h, w, b, y, mask)
    assert loss.item() == pytest.approx(LARGE_LOSS, rel=torch.finfo(loss.dtype).eps)
    for grad, auto in zip(
        torch.autograd.grad(loss, (h, w, b)),
        torch.autograd.grad(
            reference.temporal_affine_softmax_loss(h.double(), w.double(), b.double(), y, mask), (h, w, b)
        ),
        strict=True,
    ):
        assert grad.dtype == dtype
        eps = torch.finfo(torch.bfloat16 if autocast and dtype != torch.float64 else dtype).eps
        assert (grad - auto).abs().max() <= 4 * eps * auto.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_logits_with_smoothed_labels(dtype):
    """As exact as the oracle in float64: the greatest score is taken out before anything grows."""
    x, y, mask = large_logits(dtype)
    h, w, b = torch.eye(3, dtype=dtype).unsqueeze(1), x.squeeze(1), torch.zeros(4, dtype=dtype)
    expected = reference.temporal_softmax_loss(x.double(), y, mask, 0.1).item()
    for loss in (temporal_softmax_loss(x, y, mask, 0.1), temporal_affine_softmax_loss(h, w, b, y, mask, 0.1)):
        assert loss.item() == pytest.approx(expected, rel=4 * torch.finfo(dtype).eps)


def test_a_masked_impossible_word_has_no_loss():
    """A score of -inf at a word that does not count costs nothing, nor do its gradients."""
    x = torch.tensor([[[0.0, -torch.inf], [0.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    y, mask = torch.tensor([[1, 1]]), torch.tensor([[False, True]])
    for weights in (mask, mask.double()):
        loss = temporal_softmax_loss(x, y, weights)
        (dx,) = torch.autograd.grad(loss, x)
        assert loss.isfinite()
        assert dx.isfinite().all()
        assert not dx[0, 0].any()


@pytest.mark.parametrize("function", LOSSES)
def test_masked_logits_may_be_nan(function):
    """Neither the loss, nor its gradients in place or plainly, nor its tangent see it."""
    args = example(function, N=2, T=3)
    args["mask"] = torch.tensor([[True, False, True], [False, True, True]])
    first = next(iter(args))  # x or h
    clean, call = args[first], getattr(functions, function)
    dirty = clean.detach().masked_fill(~args["mask"].unsqueeze(-1), torch.nan).requires_grad_()
    inputs = [name for name, arg in args.items() if arg.requires_grad]
    found = []
    for value in (clean, dirty):
        given = args | {first: value}
        loss = call(**given)
        wanted = [given[name] for name in inputs]
        in_place = torch.autograd.grad(loss, wanted, retain_graph=True)
        plain = torch.autograd.grad(loss, wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in plain), wanted)
        _, tangent = torch.func.jvp(lambda x, given=given: call(**given | {first: x}), (value,), (value.detach(),))
        found.append((loss, *in_place, *plain, *second, tangent))
    for k, (expected, seen) in enumerate(zip(*found, strict=True)):
        assert difference(f"tensor {k}", seen, expected).agrees


@pytest.mark.parametrize("s", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_and_their_gradient_are_never_held_together(s, reduction):
    N, T, H, V = 4, 8, 3, 512
    args = example("temporal_affine_softmax_loss", N=N, T=T, H=H, V=V)
    scores = int(args["mask"].count_nonzero()) * V * 8  # bytes, of the words that count; h, w and b are smaller
    with Watch(scores) as forward:
        loss = temporal_affine_softmax_loss(**args, label_smoothing=s, reduction=reduction).sum()
    with Watch(scores) as backward:
        loss.backward()
    assert (forward.most_alive, backward.most_alive) == (1, 0 if reduction == "mean" else 1)
    with Watch(scores) as oracle:
        reference.temporal_affine_softmax_loss(**args).backward()
    assert oracle.most_alive > 2  # the count can fail


@pytest.mark.parametrize(
    ("rows", "mask", "s"), [(0, "some", 0.0), (1, "weights", 0.1), (2, "some", 0.1), (5, "weights", 0.0)]
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_chunks_of_any_size_give_the_same(monkeypatch, rows, mask, s, reduction):
    """No more scores are alive than a chunk of them, or than a row where a row is larger than a chunk."""
    N, T, H, V = 3, 4, 1, 64  # w is as large as one row of scores
    args = example("temporal_affine_softmax_loss", N=N, T=T, H=H, V=V)
    args["mask"] = args["mask"] if mask == "some" else args["mask"] * torch.rand(N, T, dtype=torch.float64)
    monkeypatch.setattr(inplace, "CHUNK", rows * V * 8 or 1)
    args |= {"label_smoothing": s, "reduction": reduction}
    assert_agrees(temporal_affine_softmax_loss, reference.temporal_affine_softmax_loss, tuple(args.values()))
    for least, alive in ((max(rows, 1), 1), (max(rows, 1) + 1, 0)):
        if least > 1:
            with Watch(least * V * 8) as watch:
                temporal_affine_softmax_loss(**args).sum().backward()
            assert watch.most_alive == alive


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_at_most_64_mebibytes_of_logits_are_held(reduction):
    args = example("temporal_affine_softmax_loss", N=1, T=2050, H=1, V=4096)
    args["mask"] = torch.ones_like(args["mask"])
    for least, alive in ((2**26, 1), (2**26 + 1, 0)):
        with Watch(least) as watch:
            temporal_affine_softmax_loss(**args, reduction=reduction).sum().backward()
        assert watch.most_alive == alive


@pytest.mark.parametrize("scale", [1.0, 2.0, -2.5])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_loss_may_be_scaled_and_its_backward_repeated(scale, reduction):
    args = example("temporal_affine_softmax_loss", N=3, V=50)
    inputs = [arg for arg in args.values() if arg.requires_grad]
    args["reduction"] = reduction
    loss = scale * temporal_affine_softmax_loss(**args).sum()
    expected = torch.autograd.grad(scale * reference.temporal_affine_softmax_loss(**args).sum(), inputs)
    for _ in range(2):
        grads = torch.autograd.grad(loss, inputs, retain_graph=True)
        for k, (grad, auto) in enumerate(zip(grads, expected, strict=True)):
            assert difference(f"gradient {k}", grad, auto).agrees
            grad.zero_()  # which is the caller's own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_become_float32(dtype):
    args = example("temporal_softmax_loss", dtype)
    loss = temporal_softmax_loss(**args)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, temporal_softmax_loss(**{**args, "x": args["x"].float()}))


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_words_of_any_dtype_have_every_derivative(function, dtype):
    args = example(function)
    args["y"] = args["y"].to(dtype)
    hand, auto = getattr(functions, function), getattr(reference, function)
    for derive in (second_derivatives, tangents):
        for found, expected in zip(derive(hand, tuple(args.values())), derive(auto, tuple(args.values())), strict=True):
            assert difference(derive.__name__, found, expected).agrees


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_over_one_word_is_zero(randn, dtype):
    args = (randn(*shape, dtype=dtype) for shape in ((3, 4, 5), (5, 1), (1,)))
    y, mask = torch.zeros(3, 4, dtype=torch.int64), torch.ones(3, 4, dtype=torch.bool)
    assert temporal_affine_softmax_loss(*args, y, mask, 0.1).item() == 0.0
