"""The catalogue: mistakes that students make in the assignment's functions, each as a change of one line of `model`.

`formula` is the line of the derivation that the mistake breaks, as the functions of `torch_caption.functions` and
docs/derivations.md have it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """A wrong line.

    Attributes:
        function: the function of `model` that it is in.
        right, wrong: the text that is replaced, and its replacement.
        sentence: what is wrong, for the student.
        formula: the line of the derivation.
    """

    function: str
    right: str
    wrong: str
    sentence: str
    formula: str


def _of(function: str, formula: str, *entries: tuple[str, str, str]) -> tuple[Mistake, ...]:
    return tuple(Mistake(function, *entry, formula) for entry in entries)


def _of_gradient(function: str, name: str, right: str, formula: str, *others: tuple[str, str]) -> tuple[Mistake, ...]:
    """Those of a line `name = right`: the gradient is missing, and others."""
    line = f"{name} = {right}"
    zero = (line, f"{name} = 0 * ({right})", f"{name} is zero or was never computed.")
    return _of(function, formula, zero, *((line, f"{name} = {wrong}", sentence) for wrong, sentence in others))


def _of_weights(function: str) -> tuple[Mistake, ...]:
    """Of the affine part of a step's backward, which all cells share."""
    return (
        *_of_gradient(
            *(function, "dx", "da @ Wx.T", "dx = da Wx^T"),
            ("da @ Wx.T * 2", "dx is counted twice."),
        ),
        *_of_gradient(
            *(function, "dprev_h", "da @ Wh.T", "dprev_h = da Wh^T"),
            ("da[:, : Wh.shape[0]] @ Wh[:, : Wh.shape[0]]", "dprev_h multiplies by Wh and not by its transpose."),
            ("dnext_h * 1.0", "dprev_h is dnext_h itself: the step is not differentiated."),
            ("da @ Wh.T + dnext_h", "dprev_h has dnext_h added: next_h does not contain prev_h itself."),
        ),
        *_of_gradient(
            *(function, "dWx", "x.T @ da", "dWx = x^T da"),
            ("x.T @ da / len(x)", "dWx is averaged over the batch; the gradient of a shared weight is a sum."),
            ("x.sum(0)[:, None] * da.sum(0)", "dWx multiplies sums over the batch; it is a sum of products."),
        ),
        *_of_gradient(
            *(function, "dWh", "prev_h.T @ da", "dWh = prev_h^T da"),
            ("prev_h.T @ da / len(x)", "dWh is averaged over the batch; the gradient of a shared weight is a sum."),
            ("prev_h.sum(0)[:, None] * da.sum(0)", "dWh multiplies sums over the batch; it is a sum of products."),
        ),
        *_of_gradient(
            *(function, "db", "da.sum(0)", "db = sum_n da"),
            ("da.mean(0)", "db is averaged over the batch; the gradient of a shared bias is a sum."),
            ("da[-1]", "db is that of the last row alone; it sums over the batch."),
            ("da[0]", "db is that of the first row alone; it sums over the batch."),
        ),
    )


_TANH = "da = dnext_h * (1 - next_h^2)"
_STEP = "next_h = tanh(x Wx + prev_h Wh + b)"

RNN = (
    *_of(
        *("rnn_step_forward", _STEP),
        ("a = x @ Wx + prev_h @ Wh + b", "a = x @ Wx + prev_h @ Wh", "The bias b is not added."),
        ("a = x @ Wx + prev_h @ Wh + b", "a = x @ Wx + b", "prev_h Wh is not added."),
        ("a = x @ Wx + prev_h @ Wh + b", "a = prev_h @ Wh + b", "x Wx is not added."),
        ("a = x @ Wx + prev_h @ Wh + b", "a = x @ Wx + prev_h @ Wh.T + b", "prev_h is multiplied by Wh^T."),
        ("a = x @ Wx + prev_h @ Wh + b", "a = x @ Wx + prev_h @ Wh - b", "The bias b is subtracted."),
        ("a = x @ Wx + prev_h @ Wh + b", "a = x @ Wx + prev_h @ Wh + 2 * b", "The bias b is added twice."),
        ("next_h = tanh(a)", "next_h = a", "tanh is missing."),
        ("next_h = tanh(a)", "next_h = sigmoid(a)", "The nonlinearity is the sigmoid and not tanh."),
        ("next_h = tanh(a)", "next_h = torch.relu(a)", "The nonlinearity is ReLU and not tanh."),
        ("next_h = tanh(a)", "next_h = tanh(a) + prev_h", "prev_h is added to tanh(a)."),
    ),
    *_of(
        *("rnn_step_backward", _TANH),
        ("1 - next_h**2", "1 - a**2", "tanh' is taken at the pre-activation: it is 1 - tanh(a)^2, and not 1 - a^2."),
        ("1 - next_h**2", "1 - tanh(next_h) ** 2", "tanh is applied twice: next_h is already tanh(a)."),
        ("1 - next_h**2", "1 - prev_h**2", "tanh' is taken at prev_h and not at next_h."),
        ("1 - next_h**2", "1 - next_h", "tanh' is 1 - next_h^2; the square is missing."),
        ("1 - next_h**2", "next_h * (1 - next_h)", "The slope is that of the sigmoid; tanh' is 1 - next_h^2."),
        ("1 - next_h**2", "1 + next_h**2", "tanh' is 1 - next_h^2, with a minus."),
        ("da = dnext_h * (1 - next_h**2)", "da = dnext_h * 1.0", "tanh is not differentiated."),
        ("da = dnext_h * (1 - next_h**2)", "da = 1 - next_h**2", "dnext_h is not multiplied in."),
    ),
    *_of_weights("rnn_step_backward"),
    *_of(
        *("rnn_forward", "h_t = step(x_t, h_{t-1})"),
        ("prev_h = next_h", "prev_h = h0", "Each step starts from h0: prev_h is not set to next_h."),
        ("x[:, t], prev_h", "x[:, 0], prev_h", "Each step reads the first x."),
        ("x[:, t], prev_h", "x[:, T - 1 - t], prev_h", "The steps read x from the last to the first."),
        ("stack(h, 1)", "stack([h0, *h[:-1]], 1)", "h begins with h0: it holds the state before each step."),
        ("stack(h, 1)", "stack(h[::-1], 1)", "The steps are stacked in reverse order."),
        ("stack(h, 1)", "stack([h[-1]] * T, 1)", "Every step of h holds the last state."),
        ("prev_h, h, caches = h0, [], []", "prev_h, h, caches = 0 * h0, [], []", "h0 is not used."),
    ),
)

_THROUGH_TIME = "dnext_h = dh_t + dprev_h_{t+1}"


def _of_sequence(function: str) -> tuple[Mistake, ...]:
    """Of backpropagation through time, which the RNN and the LSTM share."""
    add = "dnext_h = dh[:, t] + dprev_h"
    over = "for t in reversed(range(T)):"
    return (
        *_of(
            *(function, _THROUGH_TIME),
            (add, "dnext_h = dh[:, t] + 0.0", "The gradient from the next step, dprev_h, is not added to dh_t."),
            (
                add,
                "dnext_h = dprev_h if t < T - 1 else dh[:, t]",
                "Only the last step's dh is used, and not each dh_t.",
            ),
            (add, "dnext_h = dh[:, T - 1 - t] + dprev_h", "dh is read in reverse: step t takes dh of step T - 1 - t."),
            (add, "dnext_h = dh[:, -1] + dprev_h", "Each step takes the dh of the last step."),
            (over, "for t in range(T):", "The steps run forward in time; a backward begins at the last."),
            (over, "for t in reversed(range(1, T)):", "The loop ends before the first step."),
        ),
        *_of(
            *(function, "dx_t = da_t Wx^T"),
            ("dxs[t] = dx", "dxs[T - 1 - t] = dx", "dx is in reverse order of time."),
        ),
        *(
            mistake
            for name, formula in {
                "dWx": "dWx = sum_t x_t^T da_t",
                "dWh": "dWh = sum_t h_{t-1}^T da_t",
                "db": "db = sum_t sum_n da_t",
            }.items()
            for mistake in _of(
                *(function, formula),
                (
                    f"{name} = {name} + {name}_t",
                    f"{name} = {name}_t",
                    f"{name} is that of the first step: the sum over time is missing.",
                ),
                (
                    f"{name} = {name} + {name}_t",
                    f"{name} = {name}_t if t == T - 1 else {name}",
                    f"{name} is that of the last step: the sum over time is missing.",
                ),
                (
                    f"{name} = {name} + {name}_t",
                    f"{name} = {name} + {name}_t / T",
                    f"{name} is averaged over time; it is a sum.",
                ),
            )
        ),
        *_of(
            *(function, "dh0 = dprev_h_1"),
            ("dh0 = dprev_h", "dh0 = 0 * dprev_h", "dh0 is zero or was never computed."),
            ("dh0 = dprev_h", "dh0 = dnext_h", "dh0 is the gradient of h_1: the first step is not differentiated."),
            ("dh0 = dprev_h", "dh0 = dprev_h + dh[:, 0]", "dh of the first step is added to dh0; it belongs to h_1."),
        ),
    )


_GATES = "a = [a_i a_f a_o a_g]"
_CELL = "next_c = f * prev_c + i * g"
_HIDDEN = "next_h = o * tanh(next_c)"
_DC = "dc = dnext_c + dnext_h * o * (1 - tanh(next_c)^2)"


LSTM = (
    *_of(
        *("lstm_step_forward", "a = x Wx + prev_h Wh + b"),
        ("a = x @ Wx + prev_h @ Wh + b", "a = x @ Wx + prev_h @ Wh", "The bias b is not added."),
        ("a = x @ Wx + prev_h @ Wh + b", "a = x @ Wx + b", "prev_h Wh is not added."),
        ("a = x @ Wx + prev_h @ Wh + b", "a = prev_h @ Wh + b", "x Wx is not added."),
        (
            "a = x @ Wx + prev_h @ Wh + b",
            "a = x @ Wx + prev_c @ Wh + b",
            "prev_c is multiplied by Wh instead of prev_h.",
        ),
    ),
    *_of(
        *("lstm_step_forward", "a = x Wx + prev_h Wh + attn Wattn + b"),
        ("a = a + attn @ Wattn", "a = a + 0 * (attn @ Wattn)", "attn Wattn is not added."),
        ("a = a + attn @ Wattn", "a = a + attn @ Wh", "attn is multiplied by Wh instead of Wattn."),
    ),
    *_of(
        *("lstm_step_forward", _GATES),
        (
            "a_i, a_f, a_o, a_g = a.chunk(4, 1)",
            "a_i, a_f, a_g, a_o = a.chunk(4, 1)",
            "The gates are read in the order i, f, g, o; this course's is i, f, o, g.",
        ),
        (
            "a_i, a_f, a_o, a_g = a.chunk(4, 1)",
            "a_f, a_i, a_o, a_g = a.chunk(4, 1)",
            "The gates are read in the order f, i, o, g; this course's is i, f, o, g.",
        ),
        (
            "a_i, a_f, a_o, a_g = a.chunk(4, 1)",
            "a_i, a_o, a_f, a_g = a.chunk(4, 1)",
            "The gates are read in the order i, o, f, g; this course's is i, f, o, g.",
        ),
        (
            "a_i, a_f, a_o, a_g = a.chunk(4, 1)",
            "a_o, a_f, a_i, a_g = a.chunk(4, 1)",
            "The gates are read in the order o, f, i, g; this course's is i, f, o, g.",
        ),
        (
            "a_i, a_f, a_o, a_g = a.chunk(4, 1)",
            "a_g, a_i, a_f, a_o = a.chunk(4, 1)",
            "The gates are read in the order g, i, f, o; this course's is i, f, o, g.",
        ),
    ),
    *_of(
        *("lstm_step_forward", "i f o = sigmoid, g = tanh"),
        ("sigmoid(a_o), tanh(a_g)", "sigmoid(a_o), sigmoid(a_g)", "g is a sigmoid; it is a tanh."),
        ("sigmoid(a_o), tanh(a_g)", "tanh(a_o), tanh(a_g)", "o is a tanh; it is a sigmoid."),
        ("sigmoid(a_i), sigmoid(a_f)", "tanh(a_i), sigmoid(a_f)", "i is a tanh; it is a sigmoid."),
        ("sigmoid(a_i), sigmoid(a_f)", "sigmoid(a_i), tanh(a_f)", "f is a tanh; it is a sigmoid."),
        (
            "sigmoid(a_i), sigmoid(a_f)",
            "sigmoid(a_i), sigmoid(a_f + 1)",
            "1 is added to the forget gate's pre-activation; an initial bias may be 1, the formula has none.",
        ),
    ),
    *_of(
        *("lstm_step_forward", _CELL),
        ("next_c = f * prev_c + i * g", "next_c = i * prev_c + f * g", "i and f are exchanged in next_c."),
        ("next_c = f * prev_c + i * g", "next_c = f * prev_h + i * g", "next_c takes prev_h instead of prev_c."),
        ("next_c = f * prev_c + i * g", "next_c = f * prev_c", "i * g is not added to next_c."),
        ("next_c = f * prev_c + i * g", "next_c = i * g", "f * prev_c is not added to next_c."),
        ("next_c = f * prev_c + i * g", "next_c = f * prev_c + g", "i does not multiply g."),
        ("next_c = f * prev_c + i * g", "next_c = prev_c + i * g", "f does not multiply prev_c."),
        ("next_c = f * prev_c + i * g", "next_c = f * prev_c + (1 - f) * g", "1 - f stands in the place of i."),
    ),
    *_of(
        *("lstm_step_forward", _HIDDEN),
        ("next_h = o * tanh(next_c)", "next_h = o * next_c", "next_h lacks the tanh of next_c."),
        ("next_h = o * tanh(next_c)", "next_h = o * tanh(prev_c)", "next_h takes prev_c instead of next_c."),
        ("next_h = o * tanh(next_c)", "next_h = tanh(o * next_c)", "tanh is of o * next_c; o multiplies tanh(next_c)."),
        (
            "next_h = o * tanh(next_c)",
            "next_h = o * sigmoid(next_c)",
            "next_h takes the sigmoid of next_c; it is tanh.",
        ),
        ("next_h = o * tanh(next_c)", "next_h = tanh(next_c)", "o does not multiply tanh(next_c)."),
        ("return next_h, next_c, (", "return next_c, next_h, (", "next_h and next_c are returned in the wrong order."),
    ),
    *_of(
        *("lstm_step_backward", _DC),
        (
            "dc = dnext_c + dnext_h * o * (1 - tanh(next_c) ** 2)",
            "dc = dnext_c * 1.0",
            "dc lacks the path through next_h.",
        ),
        (
            "dc = dnext_c + dnext_h * o * (1 - tanh(next_c) ** 2)",
            "dc = dnext_h * o * (1 - tanh(next_c) ** 2)",
            "dnext_c is not added to dc.",
        ),
        ("* o * (1 - tanh(next_c) ** 2)", "* o", "tanh(next_c) is not differentiated in dc."),
        ("* o * (1 - tanh(next_c) ** 2)", "* (1 - tanh(next_c) ** 2)", "o is missing in dc."),
        ("(1 - tanh(next_c) ** 2)", "(1 - next_c**2)", "tanh' is taken at next_c: it is 1 - tanh(next_c)^2."),
        ("(1 - tanh(next_c) ** 2)", "(1 - tanh(prev_c) ** 2)", "tanh' is taken at prev_c and not at next_c."),
        ("(1 - tanh(next_c) ** 2)", "(1 - tanh(next_c))", "tanh' is 1 - tanh(next_c)^2; the square is missing."),
    ),
    *_of(
        *("lstm_step_backward", "da_i = dc * g * i (1 - i)"),
        ("di = dc * g", "di = dc * i", "di is dc * i; it is dc * g."),
        ("di = dc * g", "di = dnext_c * g", "di takes dnext_c; it takes dc, with the path through next_h."),
        ("di * i * (1 - i)", "di * (1 - i**2)", "The slope of i is that of tanh; sigmoid' is i (1 - i)."),
        ("di * i * (1 - i)", "di * 1.0", "i is not differentiated: sigmoid' = i (1 - i) is missing."),
        ("di * i * (1 - i)", "di * a_i * (1 - a_i)", "sigmoid' of i is taken at the pre-activation."),
    ),
    *_of(
        *("lstm_step_backward", "da_f = dc * prev_c * f (1 - f)"),
        ("df = dc * prev_c", "df = dc * next_c", "df takes next_c; it takes prev_c."),
        ("df = dc * prev_c", "df = dc * prev_h", "df takes prev_h; it takes prev_c."),
        ("df = dc * prev_c", "df = dnext_c * prev_c", "df takes dnext_c; it takes dc, with the path through next_h."),
        ("df * f * (1 - f)", "df * (1 - f**2)", "The slope of f is that of tanh; sigmoid' is f (1 - f)."),
        ("df * f * (1 - f)", "df * 1.0", "f is not differentiated: sigmoid' = f (1 - f) is missing."),
    ),
    *_of(
        *("lstm_step_backward", "da_o = dnext_h * tanh(next_c) * o (1 - o)"),
        ("do = dnext_h * tanh(next_c)", "do = dnext_h * next_c", "do lacks the tanh of next_c."),
        ("do = dnext_h * tanh(next_c)", "do = dc * tanh(next_c)", "do takes dc; it takes dnext_h."),
        ("do = dnext_h * tanh(next_c)", "do = dnext_h * tanh(prev_c)", "do takes prev_c; it takes next_c."),
        ("do * o * (1 - o)", "do * (1 - o**2)", "The slope of o is that of tanh; sigmoid' is o (1 - o)."),
        ("do * o * (1 - o)", "do * 1.0", "o is not differentiated: sigmoid' = o (1 - o) is missing."),
    ),
    *_of(
        *("lstm_step_backward", "da_g = dc * i * (1 - g^2)"),
        ("dg = dc * i", "dg = dc * g", "dg is dc * g; it is dc * i."),
        ("dg = dc * i", "dg = dnext_c * i", "dg takes dnext_c; it takes dc, with the path through next_h."),
        ("dg * (1 - g**2)", "dg * g * (1 - g)", "The slope of g is that of the sigmoid; tanh' is 1 - g^2."),
        ("dg * (1 - g**2)", "dg * (1 - a_g**2)", "tanh' of g is taken at the pre-activation: it is 1 - g^2."),
        ("dg * (1 - g**2)", "dg * (1 - tanh(g) ** 2)", "tanh is applied twice: g is already tanh(a_g)."),
        ("dg * (1 - g**2)", "dg * 1.0", "g is not differentiated: tanh' = 1 - g^2 is missing."),
    ),
    *_of_gradient(
        *("lstm_step_backward", "dprev_c", "dc * f", "dprev_c = dc * f"),
        ("dnext_c * f", "dprev_c lacks the path through next_h: it is dc * f, and not dnext_c * f."),
        ("dc * i", "dprev_c is dc * i; it is dc * f."),
        ("dc * 1.0", "dprev_c lacks f."),
        ("dnext_h * f", "dprev_c takes dnext_h; it takes dc."),
    ),
    *_of(
        *("lstm_step_backward", "da = [da_i da_f da_o da_g]"),
        (
            "cat([da_i, da_f, da_o, da_g], 1)",
            "cat([da_i, da_f, da_g, da_o], 1)",
            "da has the gates in the order i, f, g, o; the forward's is i, f, o, g.",
        ),
        (
            "cat([da_i, da_f, da_o, da_g], 1)",
            "cat([da_f, da_i, da_o, da_g], 1)",
            "da has the gates in the order f, i, o, g; the forward's is i, f, o, g.",
        ),
        (
            "cat([da_i, da_f, da_o, da_g], 1)",
            "cat([da_i, da_o, da_f, da_g], 1)",
            "da has the gates in the order i, o, f, g; the forward's is i, f, o, g.",
        ),
        (
            "cat([da_i, da_f, da_o, da_g], 1)",
            "cat([da_g, da_i, da_f, da_o], 1)",
            "da has the gates in the order g, i, f, o; the forward's is i, f, o, g.",
        ),
    ),
    *_of_weights("lstm_step_backward"),
    *_of(
        *("lstm_forward", "h_t, c_t = step(x_t, h_{t-1}, c_{t-1})"),
        (
            "prev_h, prev_c = next_h, next_c",
            "prev_h = next_h",
            "The cell state is not carried on: each step starts from c = 0.",
        ),
        (
            "prev_h, prev_c = next_h, next_c",
            "prev_c = next_c",
            "The hidden state is not carried on: each step starts from h0.",
        ),
        (
            "prev_h, prev_c = next_h, next_c",
            "prev_h, prev_c = next_c, next_h",
            "The hidden and the cell state are exchanged.",
        ),
        (
            "prev_h, prev_c = next_h, next_c",
            "prev_h, prev_c = next_c, next_c",
            "The next step takes next_c as its hidden state too.",
        ),
        (
            "prev_h, prev_c, h, caches = h0, zeros_like(h0), [], []",
            "prev_h, prev_c, h, caches = h0, h0, [], []",
            "The cell state begins with h0; it begins with zero.",
        ),
        (
            "prev_h, prev_c, h, caches = h0, zeros_like(h0), [], []",
            "prev_h, prev_c, h, caches = 0 * h0, zeros_like(h0), [], []",
            "h0 is not used.",
        ),
        ("x[:, t], prev_h", "x[:, T - 1 - t], prev_h", "The steps read x from the last to the first."),
        ("h.append(next_h)", "h.append(next_c)", "h holds the cell states."),
        ("stack(h, 1)", "stack([h0, *h[:-1]], 1)", "h begins with h0: it holds the state before each step."),
        ("stack(h, 1)", "stack(h[::-1], 1)", "The steps are stacked in reverse order."),
    ),
    *_of(
        *("lstm_backward", "dnext_c = dprev_c_{t+1}"),
        (
            "dnext_c = dprev_c",
            "dnext_c = 0 * dprev_c",
            "The gradient of the cell state is not carried back to the step before.",
        ),
        ("dnext_c = dprev_c", "dnext_c = dprev_h", "The gradient of the cell state is that of the hidden state."),
        (
            "dnext_c = dprev_c",
            "dnext_c = dprev_c + dh[:, t]",
            "dh is added to the gradient of the cell state; it belongs to h_t alone.",
        ),
    ),
)

EMBEDDING = (
    *_of(
        *("word_embedding_backward", "dW[v] = sum of dout[n, t] with x[n, t] = v"),
        (
            "dW.index_put((x,), dout, accumulate=True)",
            "dW.index_put((x,), dout)",
            "Gradients of a repeated word are overwritten and not added: dW[x] += dout keeps one of them; "
            "use np.add.at or index_add.",
        ),
        (
            "dW.index_put((x,), dout, accumulate=True)",
            "dW.index_put((x,), dout, accumulate=True) / len(x)",
            "dW is averaged over the batch; it is a sum.",
        ),
        (
            "dW.index_put((x,), dout, accumulate=True)",
            "dW.index_put((x[:, :1],), dout[:, :1], accumulate=True)",
            "Only the first word of each row has a gradient.",
        ),
        (
            "dW.index_put((x,), dout, accumulate=True)",
            "dW.index_put((x[:, -1:],), dout[:, -1:], accumulate=True)",
            "Only the last word of each row has a gradient.",
        ),
        (
            "dW.index_put((x,), dout, accumulate=True)",
            "dW.index_put((x,), dout / (x.unsqueeze(-1) == x.flatten()).sum(-1, keepdim=True), accumulate=True)",
            "dW of a repeated word is the mean of its gradients; it is their sum.",
        ),
        ("dW.index_put((x,), dout, accumulate=True)", "0 * W", "dW is zero or was never computed."),
    ),
    *_of(
        *("word_embedding_forward", "out[n, t] = W[x[n, t]]"),
        ("out = W[x]", "out = W[x - 1]", "out has the vector of the word before: W[x - 1]."),
        ("out = W[x]", "out = W[(x + 1) % len(W)]", "out has the vector of the next word: W[x + 1]."),
        ("out = W[x]", "out = W[x].flip(1)", "The words of each row are in reverse order."),
    ),
)

_AFFINE = "out = x w + b"

AFFINE = (
    *_of(
        *("temporal_affine_forward", _AFFINE),
        ("out = x @ w + b", "out = x @ w", "The bias b is not added."),
    ),
    *_of_gradient("temporal_affine_backward", "dx", "dout @ w.T", "dx = dout w^T"),
    *_of_gradient(
        *("temporal_affine_backward", "db", "dout.sum((0, 1))", "db = sum_n sum_t dout"),
        ("dout[:, -1].sum(0)", "db is that of the last time step; it sums over time too."),
        ("dout.mean((0, 1))", "db is an average; it is a sum over batch and time."),
        ("dout.sum(1).mean(0)", "db is averaged over the batch; it is a sum."),
        ("dout.sum(0).mean(0)", "db is averaged over time; it is a sum."),
    ),
    *_of_gradient(
        *(
            "temporal_affine_backward",
            "dw",
            "x.reshape(N * T, D).T @ dout.reshape(N * T, M)",
            "dw = sum_n sum_t x^T dout",
        ),
        ("x[:, -1].T @ dout[:, -1]", "dw is that of the last time step; it sums over time too."),
        ("x[:, 0].T @ dout[:, 0]", "dw is that of the first time step; it sums over time too."),
        ("x.reshape(N * T, D).T @ dout.reshape(N * T, M) / N", "dw is averaged over the batch; it is a sum."),
        ("x.reshape(N * T, D).T @ dout.reshape(N * T, M) / T", "dw is averaged over time; it is a sum."),
        (
            "x.reshape(N * T, D).T @ dout.transpose(0, 1).reshape(N * T, M)",
            "The rows of x and dout do not match: one is ordered by caption, the other by time step.",
        ),
    ),
)

_LOSS = "loss = -sum mask log softmax(x)[y] / N"
_DX = "dx = (softmax(x) - onehot(y)) mask / N"

LOSS = (
    *_of(
        *("temporal_softmax_loss", _LOSS),
        (
            "mask = mask.to(x.dtype)",
            "mask = torch.ones_like(mask).to(x.dtype)",
            "The mask is not used: the loss counts <NULL> too.",
        ),
        ("mask = mask.to(x.dtype)", "mask = 1 - mask.to(x.dtype)", "The mask is inverted."),
        (
            "loss = -(right * mask).sum() / N",
            "loss = -right.sum() / N",
            "The mask is not used in the loss, only in dx.",
        ),
        (
            "loss = -(right * mask).sum() / N",
            "loss = -(right * mask).sum() / N / T",
            "The loss is averaged over the time steps too; it is a sum over time, divided by N alone.",
        ),
        (
            "loss = -(right * mask).sum() / N",
            "loss = -(right * mask).sum() / mask.sum()",
            "The loss is averaged over the words; it is divided by N alone.",
        ),
        ("loss = -(right * mask).sum() / N", "loss = -(right * mask).sum()", "The loss is not divided by N."),
        (
            "loss = -(right * mask).sum() / N",
            "loss = -(right * mask).sum() / T",
            "The loss is divided by T; it is divided by N.",
        ),
        ("loss = -(right * mask).sum() / N", "loss = (right * mask).sum() / N", "The loss has the wrong sign."),
        (
            "loss = -(right * mask).sum() / N",
            "loss = -(p.gather(2, y.unsqueeze(2)).squeeze(2) * mask).sum() / N",
            "The loss lacks the logarithm of the probability.",
        ),
        (
            "shifted = x - x.amax(2, keepdim=True)",
            "shifted = x",
            "The maximum is not subtracted before exp: large logits overflow.",
        ),
    ),
    *_of(
        *("temporal_softmax_loss", _DX),
        ("dx = p - one_hot(y, V)", "dx = p", "1 is not subtracted at the correct word."),
        ("dx = p - one_hot(y, V)", "dx = one_hot(y, V) - p", "dx has the wrong sign."),
        ("dx = p - one_hot(y, V)", "dx = x - one_hot(y, V)", "dx takes the logits; it takes their softmax."),
        ("dx = p - one_hot(y, V)", "dx = -one_hot(y, V)", "dx lacks the softmax."),
        ("dx = dx / N", "dx = dx * 1.0", "dx is not divided by N."),
        ("dx = dx / N", "dx = dx / N / T", "dx is averaged over the time steps too; it is divided by N alone."),
        ("dx = dx / N", "dx = dx / mask.sum()", "dx is averaged over the words; it is divided by N alone."),
        ("dx = dx / N", "dx = dx / T", "dx is divided by T; it is divided by N."),
        ("dx = dx * mask.unsqueeze(2)", "dx = dx * 1.0", "dx is not masked: <NULL> has a gradient."),
        ("dx = dx * mask.unsqueeze(2)", "dx = 0 * dx", "dx is zero or was never computed."),
    ),
)

_ATTENTION = "weights = softmax(prev_h A / sqrt(H))"

ATTENTION = (
    *_of(
        *("dot_product_attention", _ATTENTION),
        ("scores = scores / H**0.5", "scores = scores / 1.0", "The scores are not divided by sqrt(H)."),
        ("scores = scores / H**0.5", "scores = scores / H", "The scores are divided by H; it is sqrt(H)."),
        (
            "scores = scores / H**0.5",
            "scores = scores * H**0.5",
            "The scores are multiplied by sqrt(H); they are divided.",
        ),
        ("weights = torch.softmax(scores, 1)", "weights = scores", "The softmax over the positions is missing."),
        (
            "weights = torch.softmax(scores, 1)",
            "weights = torch.softmax(scores, 0)",
            "The softmax is over the batch; it is over the positions.",
        ),
        (
            "weights = torch.softmax(scores, 1)",
            "weights = sigmoid(scores)",
            "The weights are sigmoids; they are a softmax over the positions.",
        ),
        (
            "weights = torch.softmax(scores, 1)",
            "weights = torch.softmax(scores.reshape(N, *positions), 1).reshape(N, -1)",
            "The softmax is over the rows of the grid; it is over all positions.",
        ),
        (
            "weights = torch.softmax(scores, 1)",
            "weights = torch.softmax(scores.reshape(N, *positions), 2).reshape(N, -1)",
            "The softmax is over the columns of the grid; it is over all positions.",
        ),
    ),
    *_of(
        *("dot_product_attention", "attn = sum_l weights_l A_l"),
        (
            "(weights.unsqueeze(1) * A).sum(2)",
            "(weights.unsqueeze(1) * A).mean(2)",
            "attn is averaged over the positions; the weights add up to 1 already.",
        ),
        (
            "(weights.unsqueeze(1) * A).sum(2)",
            "(scores.unsqueeze(1) * A).sum(2)",
            "attn takes the scores; it takes their softmax.",
        ),
    ),
    *_of(
        *("attention_forward", "h_0 = c_0 = mean of A over its positions"),
        ("c0 = h0", "c0 = zeros_like(h0)", "The cell state begins with zero; it begins with the mean of A, as h0."),
        ("h0 = A.mean((2, 3))", "h0 = A.sum((2, 3))", "h0 is the sum of A over its positions; it is their mean."),
        ("h0 = A.mean((2, 3))", "h0 = A.amax((2, 3))", "h0 is the maximum of A over its positions; it is their mean."),
        (
            "h0 = A.mean((2, 3))",
            "h0 = 0 * A[:, :, 0, 0]",
            "h0 and c0 are zero; they are the mean of A over its positions.",
        ),
        ("prev_h, prev_c, h = h0, c0, []", "prev_h, prev_c, h = 0 * h0, c0, []", "h0 is not used."),
    ),
    *_of(
        *("attention_forward", "attn_t = attention(h_{t-1}, A)"),
        (
            "dot_product_attention(prev_h, A)",
            "dot_product_attention(h0, A)",
            "Every step attends with h0; it attends with prev_h.",
        ),
        (
            "dot_product_attention(prev_h, A)",
            "dot_product_attention(prev_c, A)",
            "The query is the cell state; it is the hidden state.",
        ),
    ),
    *_of(
        *("attention_forward", "c_t = next_c of step t"),
        ("prev_h, prev_c = next_h, next_c", "prev_h = next_h", "The cell state is not carried on."),
    ),
)

CAPTIONER = (
    *_of(
        *("captioner_loss", "the words before captions[:, :-1], the targets captions[:, 1:]"),
        (
            "captions_out = captions[:, 1:]",
            "captions_out = captions[:, :-1]",
            "The captions are not shifted: the target of each step is its own input.",
        ),
        (
            "captions_in = captions[:, :-1]",
            "captions_in = captions[:, 1:]",
            "The captions are not shifted: each step reads its own target.",
        ),
    ),
    *_of(
        *("captioner_loss", "mask = captions_out != <NULL>"),
        (
            "mask = captions_out != null",
            "mask = torch.ones_like(captions_out)",
            "The mask is not used: the loss counts <NULL> too.",
        ),
        (
            "mask = captions_out != null",
            "mask = captions_in != null",
            "The mask is of the input words; it is of the targets.",
        ),
        (
            "mask = captions_out != null",
            "mask = captions_out == null",
            "The mask is inverted: the loss counts only <NULL>.",
        ),
    ),
    *_of(
        *("captioner_loss", "h0 = features W_proj + b_proj"),
        (
            "h0 = features @ W_proj + b_proj",
            "h0 = 0 * (features @ W_proj) + b_proj",
            "The features are not used: h0 does not depend on the image.",
        ),
        ("h0 = features @ W_proj + b_proj", "h0 = features @ W_proj", "b_proj is not added."),
        (
            "h0 = features @ W_proj + b_proj",
            "h0 = 0 * (features @ W_proj + b_proj)",
            "h0 is zero: the image is not used.",
        ),
        ("h0 = features @ W_proj + b_proj", "h0 = tanh(features @ W_proj + b_proj)", "h0 is a tanh; it is affine."),
    ),
    *_of(
        *("captioner_loss", "dW_proj = features^T dh0, db_proj = sum_n dh0"),
        (
            'grads["W_proj"] = features.T @ dh0',
            'grads["W_proj"] = 0 * W_proj',
            "The gradient of W_proj is zero: that of h0 is dropped.",
        ),
        (
            'grads["b_proj"] = dh0.sum(0)',
            'grads["b_proj"] = 0 * b_proj',
            "The gradient of b_proj is zero: that of h0 is dropped.",
        ),
        (
            'grads["b_proj"] = dh0.sum(0)',
            'grads["b_proj"] = dh0.mean(0)',
            "The gradient of b_proj is an average; it is a sum.",
        ),
    ),
    *_of(
        *("captioner_loss", "dW_embed = word_embedding_backward(dx)"),
        (
            'grads["W_embed"] = word_embedding_backward(dx, of_words)',
            'grads["W_embed"] = 0 * W_embed',
            "The gradient of W_embed is zero.",
        ),
    ),
    *_of(
        *("captioner_sample", "the first input is <START>"),
        (
            "word = torch.full((N,), start)",
            "word = torch.full((N,), null)",
            "Sampling begins with <NULL>; it begins with <START>.",
        ),
        (
            "word = torch.full((N,), start)",
            "word = torch.full((N,), end)",
            "Sampling begins with <END>; it begins with <START>.",
        ),
    ),
    *_of(
        *("captioner_sample", "the word with the largest score is the next input"),
        (
            "x = W_embed[word]",
            "x = W_embed[torch.full((N,), start)]",
            "Every step reads <START>: the sampled word is not fed back.",
        ),
        (
            "x = W_embed[word]",
            "x = W_embed[torch.full((N,), null)] if words else W_embed[word]",
            "Sampling feeds <NULL> back instead of the sampled word.",
        ),
        ("word = scores.argmax(1)", "word = scores.argmin(1)", "The word with the smallest score is taken."),
        ("word = scores.argmax(1)", "word = (next_h @ W_vocab).argmax(1)", "b_vocab is not added to the scores."),
        (
            "words.append(word)",
            "words.append(word if t else torch.full((N,), start))",
            "The first word of the result is <START>; it is the first sampled word.",
        ),
        (
            "return stack(words, 1)",
            "return stack([torch.full((N,), start), *words[:-1]], 1)",
            "The result begins with <START>, and all words come one column late.",
        ),
        (
            "return stack(words, 1)",
            "return stack([*words[1:], torch.full((N,), null)], 1)",
            "The first sampled word is missing, and all words come one column early.",
        ),
    ),
    *_of(
        *("captioner_sample", "h_t, c_t = step(x_t, h_{t-1}, c_{t-1})"),
        (
            "prev_h, prev_c = next_h, next_c",
            "prev_h = next_h",
            "Sampling does not carry the cell state on: each step starts from the first.",
        ),
        (
            "prev_h, prev_c = next_h, next_c",
            "prev_c = next_c",
            "Sampling does not carry the hidden state on: each step starts from the first.",
        ),
        (
            "prev_h, prev_c = next_h, next_c",
            "prev_h, prev_c = next_c, next_h",
            "Sampling exchanges the hidden and the cell state.",
        ),
    ),
    *_of(
        *("captioner_sample", "h_0 = features W_proj + b_proj, c_0 = 0"),
        (
            "prev_h = features @ W_proj + b_proj",
            "prev_h = 0 * (features @ W_proj + b_proj)",
            "Sampling does not use the image: the first hidden state is zero.",
        ),
        ("prev_c = zeros_like(prev_h)", "prev_c = prev_h", "The first cell state is h0; it is zero."),
    ),
)

MISTAKES = (
    *RNN,
    *_of_sequence("rnn_backward"),
    *LSTM,
    *_of_sequence("lstm_backward"),
    *EMBEDDING,
    *AFFINE,
    *LOSS,
    *ATTENTION,
    *CAPTIONER,
)
