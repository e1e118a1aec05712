"""The captioner as a whole."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tests.helpers.rings import ringed
from tests.helpers.small_captioner import (
    CAPTIONS,
    END,
    GRID,
    NULL,
    START,
    WORDS,
    D,
    H,
    N,
    T,
    V,
    W,
    make,
    pictures,
    seeded,
)
from torch_caption import functions
from torch_caption.data.vocabulary import SPECIAL
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS
from torch_caption.verify.gradcheck import assert_derivatives, difference

# Parameters ----------------------------------------------------------------------------------------------------------


def test_names_and_shapes(cell_type):
    G = CELLS[cell_type].gates
    own = {name: shape for name, shape in {"bn": (H,), "Wattn": (H, G * H)}.items() if name in CELLS[cell_type].names}
    assert {name: tuple(p.shape) for name, p in make(cell_type).named_parameters()} == own | {
        "W_proj": (D, H),
        "b_proj": (H,),
        "W_embed": (V, W),
        "Wx": (W, G * H),
        "Wh": (H, G * H),
        "b": (G * H,),
        "W_vocab": (H, V),
        "b_vocab": (V,),
    }


def test_default_sizes():
    shapes = {name: tuple(p.shape) for name, p in CaptioningRNN(WORDS).named_parameters()}
    assert shapes["W_proj"] == (512, 128)
    assert shapes["Wx"] == (128, 128)


def test_first_values(cell_type):
    """Normal over sqrt(fan-in), the word vectors over 100, the biases zero."""
    torch.manual_seed(0)
    words = {**WORDS, **{f"word{k}": k for k in range(V, 300)}}
    params = dict(CaptioningRNN(words, 300, 200, 100, cell_type).named_parameters())
    scales = {"W_proj": 300**-0.5, "W_embed": 0.01, "Wx": 200**-0.5, "Wh": 0.1, "W_vocab": 0.1}
    scales |= {"Wattn": 0.1} if cell_type == "attention" else {}
    for name, scale in scales.items():
        values = params[name].detach() / scale
        error = values.numel() ** -0.5
        assert abs(values.mean()) < 4 * error
        assert abs(values.std() - 1) < 4 * error
        assert 2.5 < values.abs().max() < 7
    assert not any(p.any() for name, p in params.items() if name.startswith("b"))


# The loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [None, torch.randint(0, V, (N, T - 1), generator=seeded(3))], ids=["none", "other"])
def test_loss_is_the_sum_over_steps(model, features, inputs):
    """Against the stepper, which shares none of the sequence's code; <NULL> is not counted. The input tokens may be
    others than those before the predicted ones.
    """
    inputs = CAPTIONS[:, :-1] if inputs is None else inputs
    state, total = model.begin(features), torch.zeros(N, dtype=torch.float64)
    for t in range(T - 1):
        logits, state = model.step(inputs[:, t], state)
        nll = -logits.log_softmax(1)[torch.arange(N), CAPTIONS[:, t + 1]]
        total += nll * (CAPTIONS[:, t + 1] != NULL)
    torch.testing.assert_close(model(features, CAPTIONS, inputs), total.mean(), rtol=1e-13, atol=0)


def test_padding_changes_nothing(model, features):
    padded = F.pad(CAPTIONS, (0, 3), value=NULL)
    torch.testing.assert_close(model(features, padded), model(features, CAPTIONS), rtol=1e-14, atol=0)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(model(features, CAPTIONS.to(dtype)), model(features, CAPTIONS))


def test_minus_100_is_padding(model, features):
    """Also between words, and in every mode; not as the first word."""
    captions, ignored = CAPTIONS.clone(), CAPTIONS.clone()
    captions[2, 2], ignored[2, 2] = NULL, -100
    ignored[:, 1:][captions[:, 1:] == NULL] = -100
    expected = model(features, captions)
    assert torch.equal(model(features, ignored), expected)
    assert torch.equal(model(features, ignored.to(torch.int16)), expected)
    meta = model.to("meta")(features.to("meta"), ignored.to("meta"))
    assert meta.shape == ()
    ignored[0, 0] = -100
    with pytest.raises(IndexError, match=r"^CaptioningRNN: captions\[0, 0\] is -100, but there are 8 words"):
        make(model.cell_type)(features, ignored)


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_the_captions(model, features, weighted):
    """Those of each caption alone, whose mean is the loss; a caption without words has none."""
    captions = CAPTIONS.clone()
    captions[1, 1:] = NULL
    weights = torch.randn(N, T - 1, generator=seeded(3), dtype=torch.float64) if weighted else None
    losses = model(features, captions, weights=weights, reduction="none")
    alone = [
        model(features[n : n + 1], captions[n : n + 1], weights=None if weights is None else weights[n : n + 1])
        for n in range(N)
    ]
    assert losses.shape == (N,)
    torch.testing.assert_close(losses, torch.stack(alone), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(losses.mean(), model(features, captions, weights=weights), rtol=1e-13, atol=1e-13)
    assert losses[1] == 0
    assert model(features[:0], CAPTIONS[:0], reduction="none").shape == (0,)


def test_losses_of_the_captions_have_gradients(cell_type, features):
    """Weighted in any way, those of the reference; as the sum of the gradients of each caption."""
    dlosses = torch.randn(N, generator=seeded(4), dtype=torch.float64)
    found = []
    for gradients in ("hand", "auto"):
        model = make(cell_type, gradients=gradients, **EVERY_OPTION)
        torch.manual_seed(5)
        losses = model(features, CAPTIONS, reduction="none")
        names, params = zip(*model.named_parameters(), strict=True)
        found.append((losses, *torch.autograd.grad(losses, params, dlosses)))
    for name, hand, auto in zip(("losses", *names), *found, strict=True):
        assert difference(name, hand, auto).agrees, difference(name, hand, auto)


def test_captions_without_words_have_no_loss(model, features):
    for captions in (CAPTIONS[:, :1], torch.full((N, T), NULL)):
        loss = model(features, captions)
        assert loss.item() == 0
        model.zero_grad()
        loss.backward()
        assert not any(p.grad.any() for p in model.parameters())
    assert model(features[:0], CAPTIONS[:0]).item() == 0


def test_an_id_beyond_the_vocabulary_is_refused():
    """The assignment's own test has three words with the ids 0, 2 and 3."""
    model = CaptioningRNN({"<NULL>": 0, "cat": 2, "dog": 3}, D, W, H)
    assert model.vocab_size == 3
    assert model(torch.randn(1, D), torch.tensor([[0, 1, 2]])).isfinite()
    for captions, place in (([[3, 1, 2]], "0, 0"), ([[0, 1, 3]], "0, 2")):
        with pytest.raises(IndexError, match=rf"CaptioningRNN: captions\[{place}\] is 3, but there are 3 words"):
            model(torch.randn(1, D), torch.tensor(captions))


# Gradients -----------------------------------------------------------------------------------------------------------


def test_derivatives(cell_type):
    """Of the whole model by features and all parameters, in every mode."""
    torch.manual_seed(0)
    model = CaptioningRNN({"<NULL>": 0, "a": 1, "b": 2}, 1, 1, 1, cell_type).double()
    names, params = zip(*model.named_parameters(), strict=True)

    def loss(features: Tensor, *params: Tensor) -> Tensor:
        captions = torch.tensor([[1, 2, 1], [2, 2, 0]])
        return functional_call(model, dict(zip(names, params, strict=True)), (features, captions))

    params = [torch.randn_like(p).requires_grad_() for p in params]
    places = (2,) if CELLS[cell_type].attends else ()
    assert_derivatives(loss, (torch.randn(2, 1, *places, dtype=torch.float64, requires_grad=True), *params))


def losses_of(model: CaptioningRNN, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Training from fixed batches of three of the captions."""
    generator = seeded(2)
    features = pictures(model.cell_type, generator)
    losses = []
    for _ in range(steps):
        rows = torch.randperm(N, generator=generator)[:3]
        loss = model(features[rows], CAPTIONS[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_hundred_steps_of_hand_and_auto_agree(cell_type):
    curves = []
    for gradients in ("hand", "auto"):
        model = make(cell_type, gradients=gradients)
        curves.append(losses_of(model, torch.optim.Adam(model.parameters(), lr=0.01), 100))
    assert curves[0][-1] < 0.7 * curves[0][0]
    np.testing.assert_allclose(*curves, rtol=0, atol=1e-9)


class AttentionLSTM(nn.LSTM):
    """torch's LSTM, one step at a time, over each word beside the result of torch's scaled dot-product attention."""

    def forward(self, x: Tensor, A: Tensor) -> tuple[Tensor, None]:
        h = c = A.mean(1).unsqueeze(0)
        outs = []
        for x_t in x.split(1, dim=1):
            attn = F.scaled_dot_product_attention(h.transpose(0, 1), A, A)  # (N, 1, H)
            out, (h, c) = super().forward(torch.cat([x_t, attn], dim=2), (h, c))
            outs.append(out)
        return torch.cat(outs, dim=1), None


def torch_nn_loss(p: dict[str, Tensor], features: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The captioner's loss by torch's own layers."""
    image = (features.flatten(2).mT if "Wattn" in p else features) @ p["W_proj"] + p["b_proj"]
    h = F.embedding(CAPTIONS[:, :-1], p["W_embed"])
    for suffix in ("", "_l2"):
        if f"Wx{suffix}" in p:
            names = (name for name in ("Wx", "Wh", "b", "bn", "Wattn") if name in p)
            h = torch_nn_layer({name: p[name + suffix] for name in names}, h, image)
    logits, targets = (h @ p["W_vocab"] + p["b_vocab"]).flatten(0, 1), CAPTIONS[:, 1:].flatten()
    loss = F.cross_entropy(logits, targets, ignore_index=NULL, reduction="sum", label_smoothing=label_smoothing)
    return loss / N


def torch_nn_layer(p: dict[str, Tensor], x: Tensor, state: Any) -> Tensor:
    """The hidden states of x by torch's own layer, which begins at the image."""
    gates = p["Wx"].shape[1] // H
    kind = AttentionLSTM if "Wattn" in p else {1: nn.RNN, 3: nn.GRU, 4: nn.LSTM}[gates]
    order = [0, 1, 3, 2] if gates == 4 else range(gates)  # torch's gates are i, f, g, o

    def permuted(w: Tensor) -> Tensor:
        return torch.cat([w.chunk(gates, dim=-1)[k] for k in order], dim=-1)

    Wx = torch.cat([p[name] for name in ("Wx", "Wattn") if name in p])
    weights = {"weight_ih_l0": permuted(Wx).T, "weight_hh_l0": permuted(p["Wh"]).T, "bias_ih_l0": permuted(p["b"])}
    weights["bias_hh_l0"] = torch.zeros_like(p["b"])  # of two biases that are added, one is enough
    if "bn" in p:
        weights["bias_hh_l0"] = torch.cat([torch.zeros_like(p["b"][: 2 * H]), p["bn"]])
    if kind is not AttentionLSTM:
        state = state.unsqueeze(0)
    if kind is nn.LSTM:
        state = (state, torch.zeros_like(state))
    layer = kind(len(Wx), H, batch_first=True, dtype=torch.float64)
    h, _ = functional_call(layer, weights, (x, state))
    return h


def test_gradients_are_those_of_torch_nn(model, features):
    inputs = {"features": features.requires_grad_(), **dict(model.named_parameters())}
    losses = model(features, CAPTIONS), torch_nn_loss(dict(model.named_parameters()), features)
    hand, auto = (torch.autograd.grad(loss, tuple(inputs.values())) for loss in losses)
    for name, *pair in zip(["loss", *inputs], (losses[0], *hand), (losses[1], *auto), strict=True):
        assert difference(f"d{name}", *pair).agrees, difference(f"d{name}", *pair)


def test_gradients_per_sample(model, features):
    """vmap of grad, through functional_call, against a loop."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params: dict[str, Tensor], feature: Tensor, caption: Tensor) -> Tensor:
        return functional_call(model, params, (feature.unsqueeze(0), caption.unsqueeze(0)))

    mapped = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(params, features, CAPTIONS)
    for n in range(N):
        model.zero_grad()
        model(features[n : n + 1], CAPTIONS[n : n + 1]).backward()
        for name, p in model.named_parameters():
            assert difference(f"d{name} of {n}", mapped[name][n], p.grad).agrees


TIED = [{"tied": True, "wordvec_dim": width, "label_smoothing": 0.1} for width in (W, H)]


@pytest.mark.parametrize("options", [{}, *TIED], ids=["plain", "tied", "tied, W = H"])
def test_half_precision_by_autocast(cell_type, features, options):
    model = make(cell_type, **options).float()
    single = model(features.float(), CAPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(features.float(), CAPTIONS)
        logits, _ = model.stepper(9).step(CAPTIONS[:, 0], model.stepper(9).begin(features.float()))
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(single.item(), rel=0.02)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


# Sampling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ringed([{}, *TIED], [{}]), ids=["plain", "tied", "tied, W = H"])
def test_captions_are_overfitted(cell_type, options):
    model = make(cell_type, **{**options, "label_smoothing": 0.0})
    assert losses_of(model, torch.optim.Adam(model.parameters(), lr=0.05), 200)[-1] < 0.1
    features = pictures(cell_type, seeded(2))
    words = model.sample(features, max_length=T - 1)
    assert words.dtype == torch.int64
    assert torch.equal(words, CAPTIONS[:, 1:])  # <END> among them, <NULL> after it
    assert torch.equal(model.sample(features, max_length=8)[:, T - 1 :], torch.full((N, 3), NULL))
    assert model.sample(features[:0]).shape == (0, 30)


def test_beam_search_has_five_beams_by_default(model, features):
    beams = model.beam_search(features, max_length=7)
    assert beams.words.shape == (N, 5, 7)
    best = model.beam_search(features, max_length=7, n_best=2)
    assert torch.equal(best.words, beams.words[:, :2])


def test_nothing_is_decoded_without_start(features):
    model = CaptioningRNN({"<NULL>": 0, "a": 1}, D, W, H).double()
    for decode in (model.sample, model.beam_search, lambda f: model.alternatives(f, CAPTIONS)):
        with pytest.raises(ValueError, match=r"^the vocabulary has no <START> to begin a caption with$"):
            decode(features)


def test_a_vocabulary_without_unk_has_nothing_to_leave_out(features):
    model = CaptioningRNN({"<NULL>": 0, "<START>": 1, "<END>": 2, "a": 3}, D, W, H).double()
    assert torch.equal(model.beam_search(features, no_unk=True).words, model.beam_search(features).words)


def test_captions_without_an_end_have_max_length(features):
    words = {word: k for k, word in enumerate(["<NULL>", "<START>", "a", "b"])}
    model = CaptioningRNN(words, D, W, H).double()
    sampled = model.sample(features, max_length=7)
    assert sampled.shape == (N, 7)
    assert (sampled >= 2).all()


# Attention -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 2])
def test_attention_weights(num_layers):
    """Step by step, with the attention of the state before each word, of the last layer; rows and columns as the
    features have them.
    """
    model, features = make("attention", num_layers=num_layers), pictures("attention", seeded(1))
    words = CAPTIONS[:, 1:]
    weights = model.attention(features, words)
    assert weights.shape == (N, T - 1, *GRID)
    assert not weights.requires_grad
    state = model.begin(features)
    for t in range(T - 1):
        _, looked = functions.dot_product_attention(state[0], state[-1].mT)
        real = words[:, t] != NULL
        torch.testing.assert_close(weights[real, t], looked.reshape(N, *GRID)[real])
        assert not weights[~real, t].any()
        _, state = model.step(CAPTIONS[:, t], state)
    torch.testing.assert_close(weights.sum((2, 3)), (words != NULL).double())
    assert model.attention(features.flatten(2), words).shape == (N, T - 1, 6)


def test_it_attends_to_what_matters():
    """Trained to name the one position that differs from the others, it attends to it before its first word."""
    torch.manual_seed(0)
    words = {word: k for k, word in enumerate([*SPECIAL, "red", "blue"])}
    model = CaptioningRNN(words, 3, 4, 16, "attention")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def batch(n: int) -> tuple[Tensor, Tensor, Tensor]:
        colours, places = torch.randint(0, 2, (n,)), torch.randint(0, 9, (n,))
        features = torch.zeros(n, 3, 9)
        features[torch.arange(n), colours, places] = 3
        features[torch.arange(n), 2, places] = 3
        return features, torch.stack([torch.full((n,), START), 4 + colours, torch.full((n,), END)], 1), places

    for _ in range(150):
        features, captions, _ = batch(64)
        optimizer.zero_grad()
        model(features, captions).backward()
        optimizer.step()
    features, captions, places = batch(100)
    assert torch.equal(model.sample(features, max_length=2), captions[:, 1:])
    looked = model.attention(features, captions[:, 1:])[:, 0]  # (100, 9)
    assert (looked.argmax(1) == places).float().mean() > 0.95


def test_only_attention_has_weights(features):
    with pytest.raises(ValueError, match=r"^the cell rnn has no attention$"):
        make().attention(features, CAPTIONS[:, 1:])


def test_attention_needs_a_grid_and_the_others_a_vector():
    looking, plain = make("attention"), make("lstm")
    wanted = r"^the cell attention attends to a grid: features must be \(N, 7, L\) or \(N, 7, a, a\), but are "
    for shape in ((4, 7), (4, 6, 3), (4, 7, 0), (4, 7, 2, 2, 2)):
        with pytest.raises(ValueError, match=wanted + re.escape(str(shape))):
            looking(torch.randn(*shape, dtype=torch.float64), CAPTIONS)
    with pytest.raises(ValueError, match=r"^features must be \(N, 7\), but are \(4, 7, 3, 2\)$"):
        plain(pictures("attention", seeded(1)), CAPTIONS)


# Dropout -------------------------------------------------------------------------------------------------------------


def test_dropout_in_training_alone(cell_type, features):
    model, plain = make(cell_type, dropout=0.5), make(cell_type)
    expected = plain(features, CAPTIONS)
    model.eval()
    assert torch.equal(model(features, CAPTIONS), expected)
    model.train()
    first, second = model(features, CAPTIONS), model(features, CAPTIONS)
    assert first != second
    assert first != expected
    assert torch.equal(model.sample(features), plain.sample(features))  # a step drops nothing
    plain.train()
    assert torch.equal(plain(features, CAPTIONS), expected)


# Smoothed labels, words read, weights ---------------------------------------------------------------------------------


def test_labels_are_smoothed_in_training_alone(cell_type, features):
    """By torch.nn's definition; the loss of validation is the plain one."""
    model, plain = make(cell_type, label_smoothing=0.2), make(cell_type)
    expected = torch_nn_loss(dict(plain.named_parameters()), features, label_smoothing=0.2)
    assert difference("loss", model(features, CAPTIONS), expected).agrees
    model.eval()
    assert torch.equal(model(features, CAPTIONS), plain(features, CAPTIONS))


def test_weights_multiply_each_words_part(model, features):
    weights = torch.randn(N, T - 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for n in range(N):
        for t in range(T - 1):
            if CAPTIONS[n, t + 1] != NULL:
                one = torch.zeros(N, T - 1, dtype=torch.float64)
                one[n, t] = weights[n, t]
                total += model(features, CAPTIONS, weights=one)
    torch.testing.assert_close(model(features, CAPTIONS, weights=weights), total, rtol=1e-13, atol=1e-14)
    ones = torch.ones(N, T - 1)
    assert torch.equal(model(features, CAPTIONS, weights=ones), model(features, CAPTIONS))
    assert model(features, CAPTIONS, weights=0 * ones).item() == 0


EVERY_OPTION = {"dropout": 0.3, "label_smoothing": 0.1, "num_layers": 3, "layer_dropout": 0.4}


@pytest.mark.parametrize("W", [W, H])
@pytest.mark.parametrize("tied", [False, True])
def test_hand_and_auto_agree_with_every_option(cell_type, features, tied, W):
    """Dropout, smoothed and tied words, words read and weights, all at once; the gradient of the image too."""
    generator = torch.Generator().manual_seed(4)
    read = torch.randint(0, V, (N, T - 1), generator=generator)
    weights = torch.randn(N, T - 1, generator=generator, dtype=torch.float64)
    found = []
    for gradients in ("hand", "auto"):
        model = make(cell_type, gradients=gradients, tied=tied, wordvec_dim=W, **EVERY_OPTION)
        pictures = features.clone().requires_grad_()
        torch.manual_seed(5)
        loss = model(pictures, CAPTIONS, read, weights)
        names, params = zip(*model.named_parameters(), strict=True)
        found.append((loss, *torch.autograd.grad(loss, (pictures, *params))))
    for name, hand, auto in zip(("loss", "dfeatures", *names), *found, strict=True):
        assert difference(name, hand, auto).agrees, difference(name, hand, auto)


# Tied word vectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("W", [W, H])
def test_tied_weights_are_there_once(cell_type, W):
    plain, tied = make(cell_type, wordvec_dim=W), make(cell_type, wordvec_dim=W, tied=True)
    expected = {name: p.shape for name, p in plain.named_parameters() if name != "W_vocab"}
    if W != H:
        expected["W_out"] = (H, W)
    assert {name: tuple(p.shape) for name, p in tied.named_parameters()} == expected
    assert set(tied.state_dict()) == set(tied.params()) == set(expected)


@pytest.mark.parametrize("W", [W, H])
def test_tied_is_the_same_weight_in_both_places(cell_type, features, W):
    """The gradient of each use from a model that is not tied; they add up."""
    tied, plain = make(cell_type, wordvec_dim=W, tied=True), make(cell_type, wordvec_dim=W)
    with torch.no_grad():
        for name, p in plain.named_parameters():
            if name != "W_vocab":
                p.copy_(getattr(tied, name))
        W_out = tied.W_out if W != H else torch.eye(H, dtype=torch.float64)
        plain.W_vocab.copy_(W_out @ tied.W_embed.T)
    for model in (tied, plain):
        model(features, CAPTIONS).backward()
    assert difference("loss", tied(features, CAPTIONS), plain(features, CAPTIONS)).agrees
    dW_embed = plain.W_embed.grad + (W_out.T @ plain.W_vocab.grad).T
    assert difference("dW_embed", tied.W_embed.grad, dW_embed).agrees
    if W != H:
        assert difference("dW_out", tied.W_out.grad, plain.W_vocab.grad @ tied.W_embed).agrees
    for name, p in tied.named_parameters():
        if name not in ("W_embed", "W_out"):
            assert difference(f"d{name}", p.grad, getattr(plain, name).grad).agrees
    scores, _ = tied.step(CAPTIONS[:, 0], tied.begin(features))
    expected, _ = plain.step(CAPTIONS[:, 0], plain.begin(features))
    assert difference("scores", scores, expected).agrees


@pytest.mark.parametrize(("tied", "W"), [(False, W), (False, H), (True, W)])
def test_scaled_logits_are_the_logits_over_a_temperature(cell_type, features, tied, W):
    model = make(cell_type, wordvec_dim=W, tied=tied)
    scores, _ = model.step(CAPTIONS[:, 0], model.begin(features))
    model.scale_logits_(0.25)
    sharper, _ = model.step(CAPTIONS[:, 0], model.begin(features))
    assert difference("scores", sharper, 4 * scores).agrees


def test_logits_that_cannot_be_scaled():
    with pytest.raises(ValueError, match=r"^tied word vectors with H = W: "):
        make(wordvec_dim=H, tied=True).scale_logits_(0.5)
    with pytest.raises(ValueError, match=r"^temperature must be positive and finite, but is 0$"):
        make().scale_logits_(0)


@pytest.mark.parametrize("W", [W, H])
@pytest.mark.parametrize("words", [1, 10**6])
def test_tied_is_prepared_for_decoding(cell_type, features, W, words):
    """With and without the table of all words."""
    model = make(cell_type, wordvec_dim=W, tied=True)
    stepper, state, prepared = model.stepper(words), model.begin(features), None
    prepared = stepper.begin(features)
    for t in range(T - 1):
        scores, state = model.step(CAPTIONS[:, t], state)
        found, prepared = stepper.step(CAPTIONS[:, t], prepared)
        assert difference("scores", found, scores).agrees
