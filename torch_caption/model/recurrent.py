"""A recurrent layer, for use outside the captioner."""

from __future__ import annotations

from torch import Tensor, nn

from torch_caption.functions._common import autocast, check_floats
from torch_caption.model.cell import check_sizes
from torch_caption.model.cells import make_cell


class Recurrent(nn.Module):
    """A recurrent layer with hand-derived gradients, for use outside the captioner.

    Args:
        input_dim: D.
        hidden_dim: H.
        cell_type: a name in `CELLS`.

    Parameters are Wx (D, GH), Wh (H, GH) and b (GH,), with G = 1 for "rnn" and 4 for "lstm" and "attention", and with
    "attention" Wattn (H, 4H), on torch's default device and of its default dtype.

    Raises:
        ValueError: there is no such cell, or a size is not an integer of at least 1.
    """

    Wx: Tensor
    Wh: Tensor
    b: Tensor

    def __init__(self, input_dim: int, hidden_dim: int, cell_type: str = "rnn"):
        super().__init__()
        check_sizes("Recurrent", input_dim=input_dim, hidden_dim=hidden_dim)
        self.input_dim, self.hidden_dim = input_dim, hidden_dim
        self.cell = make_cell(cell_type)
        for name, weight in self.cell.weights(input_dim, hidden_dim).items():
            self.register_parameter(name, nn.Parameter(weight))

    def forward(self, x: Tensor, h0: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Hidden states (N, T, H) of x (N, T, D), from h0 (N, H), zero unless given; zero past `lengths` (N,).

        "attention" takes the positions of its images (N, L, H) instead of h0.

        Raises:
            TypeError: a value is not a tensor of the right kind, or a dtype or device differs.
            ValueError: a shape does not fit, or a layer that attends has no positions.
        """
        sizes = {"D": self.input_dim, "H": self.hidden_dim}
        gates = f"{self.cell.gates}H" if self.cell.gates > 1 else "H"
        x, b = autocast(x, self.b)
        check_floats("Recurrent", sizes, x=(x, "N T D"), b=(b, gates))
        if h0 is None:
            if self.cell.attends:
                raise ValueError("Recurrent: this cell attends to an image: give its positions (N, L, H)")
            h0 = x.new_zeros(x.shape[0], self.hidden_dim)
        (h0,) = autocast(h0)
        check_floats("Recurrent", sizes, h0=(h0, "N L H" if self.cell.attends else "N H"), b=(b, gates))
        if 0 in h0.shape[1:]:
            raise ValueError(f"Recurrent: h0 must have at least one spatial position, but is {tuple(h0.shape)}")
        return self.cell.sequence(x, self.cell.begin(h0), dict(self.named_parameters()), lengths)
