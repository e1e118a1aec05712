"""Per-sample gradients for Opacus (Yousefpour et al. 2021), which trains with differential privacy."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from torch_caption import layers
from torch_caption.model.captioner import CaptioningRNN


def register_with_opacus() -> None:
    """Let `opacus.GradSampleModule` hold recurrent layers of `torch_caption.layers` and `CaptioningRNN`.

    Of a layer it supports a tensor as the only argument, not a PackedSequence, and the gradients of its outputs, not of
    its last states. A captioner is called as `model(features, captions, reduction="none")`.

    Raises:
        ModuleNotFoundError: Opacus is not installed.
    """
    from opacus.grad_sample import register_grad_sampler  # type: ignore[import-untyped]

    sampled = [getattr(layers, name) for name in layers.__all__]
    register_grad_sampler([*sampled, CaptioningRNN])(per_sample_gradients)


def per_sample_gradients(module: nn.Module, inputs: list[Tensor], dout: Tensor) -> dict[nn.Parameter, Tensor]:
    """The gradient of each sample with respect to each weight, as Opacus calls it.

    Args:
        module: as registered.
        inputs: (N, ...) each, the batch first.
        dout: (N, ...), the gradient of the module's first result.

    Returns:
        by parameter, (N, ...).
    """
    parameters: dict[str, Any] = {f"module.{name}": p for name, p in module.named_parameters() if p.requires_grad}
    call = _WithoutHooks(module)

    def loss(weights: dict[str, Tensor], dout: Tensor, *inputs: Tensor) -> Tensor:
        out: Any = functional_call(call, weights, inputs)
        return ((out if isinstance(out, Tensor) else out[0]) * dout).sum()

    gradients = vmap(grad(loss), (None, *[0] * (1 + len(inputs))), randomness="different")(parameters, dout, *inputs)
    return {p: gradients[name] for name, p in parameters.items()}


class _WithoutHooks(nn.Module):
    """A module called on one sample, without its hooks, which are Opacus'."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        if isinstance(self.module, CaptioningRNN):
            features, captions = (x.unsqueeze(0) for x in inputs)
            return self.module.forward(features, captions, reduction="none").squeeze(0)
        return self.module.forward(*inputs)
