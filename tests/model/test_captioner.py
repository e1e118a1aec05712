"""The captioner as a whole."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from torch_caption import functions
from torch_caption.data.vocabulary import SPECIAL
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS
from torch_caption.verify.gradcheck import assert_derivatives, difference

N, T, D, W, H = 4, 6, 7, 3, 5
GRID = 3, 2
WORDS = {word: k for k, word in enumerate([*SPECIAL, "a", "red", "ball", "here"])}
V = len(WORDS)
NULL, START, END = WORDS["<NULL>"], WORDS["<START>"], WORDS["<END>"]
CAPTIONS = torch.tensor(
    [
        [START, 4, 5, 6, END, NULL],
        [START, 6, END, NULL, NULL, NULL],
        [START, 4, 4, 4, 7, END],
        [START, END, NULL, NULL, NULL, NULL],
    ]
)


@pytest.fixture(params=CELLS)
def cell_type(request) -> str:
    return request.param


def pictures(cell_type: str, generator: torch.Generator) -> Tensor:
    """Features of N images, those of places for the cell that looks at them."""
    places = GRID if CELLS[cell_type].attends else ()
    return torch.randn(N, D, *places, generator=generator, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(cell_type: str = "rnn", seed: int = 0, **options: object) -> CaptioningRNN:
    """A float64 model whose weights are not as small as at first, so that everything matters."""
    torch.manual_seed(seed)
    model = CaptioningRNN(WORDS, D, **{"wordvec_dim": W, "hidden_dim": H, "cell_type": cell_type} | options).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) / p.shape[0] ** 0.5)
    return model


@pytest.fixture
def model(cell_type) -> CaptioningRNN:
    return make(cell_type)


@pytest.fixture
def features(request) -> Tensor:
    cell_type = request.getfixturevalue("cell_type") if "cell_type" in request.fixturenames else "rnn"
    return pictures(cell_type, seeded(1))


# Parameters ----------------------------------------------------------------------------------------------------------


def test_names_and_shapes(cell_type):
    G = {"rnn": 1, "lstm": 4, "attention": 4}[cell_type]
    attention = {"Wattn": (H, 4 * H)} if cell_type == "attention" else {}
    assert {name: tuple(p.shape) for name, p in make(cell_type).named_parameters()} == attention | {
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


def test_loss_is_that_of_the_words_one_by_one(model, features):
    """The sequence against the stepper, which shares none of its code; <NULL> is not counted."""
    state, total = model.begin(features), torch.zeros(N, dtype=torch.float64)
    for t in range(T - 1):
        scores, state = model.step(CAPTIONS[:, t], state)
        nll = -scores.log_softmax(1)[torch.arange(N), CAPTIONS[:, t + 1]]
        total += nll * (CAPTIONS[:, t + 1] != NULL)
    torch.testing.assert_close(model(features, CAPTIONS), total.mean(), rtol=1e-13, atol=0)


def test_padding_changes_nothing(model, features):
    padded = F.pad(CAPTIONS, (0, 3), value=NULL)
    torch.testing.assert_close(model(features, padded), model(features, CAPTIONS), rtol=1e-14, atol=0)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(model(features, CAPTIONS.to(dtype)), model(features, CAPTIONS))


def test_loss_sees_the_image(model, features):
    """The known answer of the LSTM hardly does: its image saturates the gates."""
    one = CAPTIONS[:1]
    losses = [model(row.unsqueeze(0), one).item() for row in features]
    assert np.ptp(losses) > 1e-3
    features.requires_grad_()
    (grad,) = torch.autograd.grad(model(features, CAPTIONS), features)
    assert (grad.flatten(1).abs().max(1).values > 1e-4).all()


def test_captions_without_words_cost_nothing(model, features):
    for captions in (CAPTIONS[:, :1], torch.full((N, T), NULL)):
        loss = model(features, captions)
        assert loss.item() == 0
        model.zero_grad()
        loss.backward()
        assert not any(p.grad.any() for p in model.parameters())
    assert model(features[:0], CAPTIONS[:0]).item() == 0


def test_id_beyond_the_vocabulary_is_met_in_a_caption():
    """The assignment's own test has three words with the ids 0, 2 and 3."""
    model = CaptioningRNN({"<NULL>": 0, "cat": 2, "dog": 3}, D, W, H)
    assert model.vocab_size == 3
    assert model(torch.randn(1, D), torch.tensor([[0, 1, 2]])).isfinite()
    with pytest.raises(IndexError, match=r"CaptioningRNN: captions\[0, 0\] is 3, but there are 3 words"):
        model(torch.randn(1, D), torch.tensor([[3, 1, 2]]))
    with pytest.raises(IndexError, match=r"CaptioningRNN: captions\[0, 2\] is 3, but there are 3 words"):
        model(torch.randn(1, D), torch.tensor([[0, 1, 3]]))


# Gradients -----------------------------------------------------------------------------------------------------------


def test_hand_and_auto_agree(model, features):
    other = make(model.cell_type, gradients="auto")
    for half in (model, other):
        half(features, CAPTIONS).backward()
    assert difference("loss", model(features, CAPTIONS), other(features, CAPTIONS)).agrees
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert p.grad.any()
        assert difference(f"d{name}", p.grad, q.grad).agrees


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


def losses_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, cell_type: str | None = None
) -> list[float]:
    """Training from fixed batches of three of the captions."""
    generator = seeded(2)
    features = pictures(cell_type or model.cell_type, generator)
    losses = []
    for _ in range(steps):
        rows = torch.randperm(N, generator=generator)[:3]
        loss = model(features[rows], CAPTIONS[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


OPTIMIZERS: dict[str, Callable] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.03, momentum=0.9),  # at 0.1 attention amplifies rounding
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_hundred_steps_of_hand_and_auto_agree(cell_type, optimizer):
    curves = []
    for gradients in ("hand", "auto"):
        model = make(cell_type, gradients=gradients)
        curves.append(losses_of(model, OPTIMIZERS[optimizer](model.parameters()), 100))
    assert curves[0][-1] < 0.7 * curves[0][0]
    np.testing.assert_allclose(*curves, rtol=0, atol=1e-9)


class Looking(nn.LSTM):
    """torch's LSTM, one step at a time, over each word beside what its scaled dot-product attention finds."""

    def __init__(self, W: int, H: int, batch_first: bool):
        super().__init__(W + H, H, batch_first=batch_first)

    def forward(self, x: Tensor, places: Tensor) -> tuple[Tensor, None]:
        h = c = places.mean(1).unsqueeze(0)
        outs = []
        for x_t in x.split(1, dim=1):
            attn = F.scaled_dot_product_attention(h.transpose(0, 1), places, places)  # (N, 1, H)
            out, (h, c) = super().forward(torch.cat([x_t, attn], dim=2), (h, c))
            outs.append(out)
        return torch.cat(outs, dim=1), None


class Twin(nn.Module):
    """The same captioner of torch's own layers, with the weights of one of ours."""

    def __init__(self, model: CaptioningRNN):
        super().__init__()
        self.project = nn.Linear(D, H)
        self.embed = nn.Embedding(V, W)
        layers = {"rnn": nn.RNN, "lstm": nn.LSTM, "attention": Looking}
        self.recurrent = layers[model.cell_type](W, H, batch_first=True)
        self.score = nn.Linear(H, V)
        self.double()
        self.take({name: p.detach() for name, p in model.named_parameters()})

    @torch.no_grad()
    def take(self, params: dict[str, Tensor]) -> None:
        weights = {
            "project.weight": params["W_proj"].T,
            "project.bias": params["b_proj"],
            "embed.weight": params["W_embed"],
            "recurrent.weight_ih_l0": self.permuted(torch.cat([params[n] for n in ("Wx", "Wattn") if n in params])).T,
            "recurrent.weight_hh_l0": self.permuted(params["Wh"]).T,
            "recurrent.bias_ih_l0": self.permuted(params["b"]),
            "recurrent.bias_hh_l0": torch.zeros_like(params["b"]),
            "score.weight": params["W_vocab"].T,
            "score.bias": params["b_vocab"],
        }
        self.load_state_dict(weights)
        self.recurrent.bias_hh_l0.requires_grad_(False)  # of two equal biases, one is enough

    def permuted(self, w: Tensor) -> Tensor:
        """Gates i f o g as torch's i f g o; its own inverse."""
        if isinstance(self.recurrent, nn.RNN):
            return w
        i, f, o, g = w.chunk(4, dim=-1)
        return torch.cat([i, f, g, o], dim=-1)

    def gradients(self) -> dict[str, Tensor]:
        """By our names and in our layout."""
        grads = {name: p.grad for name, p in self.named_parameters()}
        read = self.permuted(grads["recurrent.weight_ih_l0"].T)
        return {
            "W_proj": grads["project.weight"].T,
            "b_proj": grads["project.bias"],
            "W_embed": grads["embed.weight"],
            "Wx": read[:W],
            "Wattn": read[W:],
            "Wh": self.permuted(grads["recurrent.weight_hh_l0"].T),
            "b": self.permuted(grads["recurrent.bias_ih_l0"]),
            "W_vocab": grads["score.weight"].T,
            "b_vocab": grads["score.bias"],
        }

    def forward(self, features: Tensor, captions: Tensor, label_smoothing: float = 0.0) -> Tensor:
        if isinstance(self.recurrent, Looking):
            state = self.project(features.flatten(2).mT)
        else:
            h0 = self.project(features).unsqueeze(0)
            state = (h0, torch.zeros_like(h0)) if isinstance(self.recurrent, nn.LSTM) else h0
        h, _ = self.recurrent(self.embed(captions[:, :-1]), state)
        scores, targets = self.score(h).flatten(0, 1), captions[:, 1:].flatten()
        loss = F.cross_entropy(scores, targets, ignore_index=NULL, reduction="sum", label_smoothing=label_smoothing)
        return loss / features.shape[0]


def test_gradients_are_those_of_torch_nn(model, features):
    twin = Twin(model)
    mine = features.clone().requires_grad_()
    its = features.clone().requires_grad_()
    loss, expected = model(mine, CAPTIONS), twin(its, CAPTIONS)
    assert difference("loss", loss, expected).agrees
    loss.backward()
    expected.backward()
    assert difference("dfeatures", mine.grad, its.grad).agrees
    grads = twin.gradients()
    for name, p in model.named_parameters():
        assert difference(f"d{name}", p.grad, grads[name]).agrees


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ten_losses_are_those_of_torch_nn(model, optimizer):
    twin = Twin(model)
    make_optimizer = OPTIMIZERS[optimizer]
    its = make_optimizer([p for p in twin.parameters() if p.requires_grad])
    expected = losses_of(twin, its, 10, model.cell_type)
    np.testing.assert_allclose(losses_of(model, make_optimizer(model.parameters()), 10), expected, rtol=1e-11)
    assert expected[-1] < expected[0]


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


def test_compiled(model, features):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(features, CAPTIONS)
    grads = torch.autograd.grad(loss, tuple(model.parameters()))
    expected = torch.autograd.grad(model(features, CAPTIONS), tuple(model.parameters()))
    assert difference("loss", loss, model(features, CAPTIONS)).agrees
    for name, grad, other in zip(dict(model.named_parameters()), grads, expected, strict=True):
        assert difference(f"d{name}", grad, other).agrees


def test_half_precision_by_autocast(cell_type, features):
    model = make(cell_type).float()
    single = model(features.float(), CAPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(features.float(), CAPTIONS)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(single.item(), rel=0.02)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


# Sampling ------------------------------------------------------------------------------------------------------------


def test_captions_are_learnt_by_heart(cell_type):
    model = make(cell_type)
    losses = losses_of(model, torch.optim.Adam(model.parameters(), lr=0.05), 200)
    assert losses[-1] < 0.1
    features = pictures(cell_type, seeded(2))
    words = model.sample(features, max_length=T - 1)
    assert words.dtype == torch.int64
    assert torch.equal(words, CAPTIONS[:, 1:])  # <END> among them, <NULL> after it
    assert torch.equal(model.sample(features, max_length=8)[:, T - 1 :], torch.full((N, 3), NULL))
    assert torch.equal(model.sample(features, max_length=2), CAPTIONS[:, 1:3])


def test_a_beam_of_one_samples(model, features):
    beams = model.beam_search(features, 1)
    assert torch.equal(beams.words.squeeze(1), model.sample(features))


def test_beam_search(model, features):
    """Beams of five by default, the n best of them, without <UNK> and repetitions on request."""
    beams = model.beam_search(features, max_length=7)
    assert beams.words.shape == (N, 5, 7)
    assert beams.log_probs.shape == (N, 5)
    best = model.beam_search(features, max_length=7, n_best=2)
    assert torch.equal(best.words, beams.words[:, :2])
    per_word = model.beam_search(features, max_length=7, length_penalty="mean")
    torch.testing.assert_close(per_word.scores, per_word.log_probs / per_word.lengths)
    with torch.no_grad():
        model.b_vocab[WORDS["<UNK>"]] += 5
    assert (model.beam_search(features).words == WORDS["<UNK>"]).any()
    words = model.beam_search(features, no_unk=True, no_repeat_ngram=1).words
    assert not (words == WORDS["<UNK>"]).any()
    for caption in words.flatten(0, 1).tolist():
        spoken = [word for word in caption if word != NULL]
        assert len(spoken) == len(set(spoken))


def test_nothing_is_decoded_without_start(features):
    model = CaptioningRNN({"<NULL>": 0, "a": 1}, D, W, H).double()
    for decode in (model.sample, model.beam_search, lambda f: model.alternatives(f, CAPTIONS)):
        with pytest.raises(ValueError, match=r"^the vocabulary has no <START> to begin a caption with$"):
            decode(features)


def test_a_vocabulary_without_unk_has_nothing_to_leave_out(features):
    model = CaptioningRNN({"<NULL>": 0, "<START>": 1, "<END>": 2, "a": 3}, D, W, H).double()
    assert torch.equal(model.beam_search(features, no_unk=True).words, model.beam_search(features).words)


def test_samples_are_the_likeliest_words(model, features):
    words = model.sample(features, max_length=9)
    assert words.shape == (N, 9)
    assert not words.requires_grad
    for n in range(N):
        state, word, ended = model.begin(features[n : n + 1]), torch.tensor([START]), False
        for t in range(9):
            scores, state = model.step(word, state)
            scores[:, [NULL, START]] = -torch.inf
            word = scores.argmax(1)
            assert words[n, t] == (NULL if ended else word.item())
            ended = ended or word.item() == END
    assert model.sample(features[:0]).shape == (0, 30)


def test_samples_without_an_end_run_on(features):
    words = {word: k for k, word in enumerate(["<NULL>", "<START>", "a", "b"])}
    model = CaptioningRNN(words, D, W, H).double()
    sampled = model.sample(features, max_length=7)
    assert sampled.shape == (N, 7)
    assert (sampled >= 2).all()


def test_sampling_needs_a_start(features):
    model = CaptioningRNN({"<NULL>": 0, "cat": 1}, D, W, H).double()
    with pytest.raises(ValueError, match=r"^the vocabulary has no <START> to begin a caption with$"):
        model.sample(features)


# Attention -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", ["hand", "auto"])
def test_where_it_looked(gradients):
    """Step by step, with the attention of the state before each word; rows and columns as the features have them."""
    model, features = make("attention", gradients=gradients), pictures("attention", seeded(1))
    words = CAPTIONS[:, 1:]
    weights = model.attention(features, words)
    assert weights.shape == (N, T - 1, *GRID)
    assert not weights.requires_grad
    state = model.begin(features)
    for t in range(T - 1):
        _, looked = functions.dot_product_attention(state[0], state[2].mT)
        real = words[:, t] != NULL
        torch.testing.assert_close(weights[real, t], looked.reshape(N, *GRID)[real])
        assert not weights[~real, t].any()
        _, state = model.step(CAPTIONS[:, t], state)
    torch.testing.assert_close(weights.sum((2, 3)), (words != NULL).double())
    assert model.attention(features.flatten(2), words).shape == (N, T - 1, 6)


def test_it_looks_at_what_matters():
    """Trained to name the one place that is not like the others, it looks there before it says so."""
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


def test_only_a_model_that_looks_can_say_where(features):
    with pytest.raises(ValueError, match=r"^the cell rnn has no attention$"):
        make().attention(features, CAPTIONS[:, 1:])


@pytest.mark.parametrize("gradients", ["hand", "auto"])
def test_vectors_are_not_looked_at_nor_grids_taken_for_vectors(gradients):
    looking, plain = make("attention", gradients=gradients), make("lstm", gradients=gradients)
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


def test_dropout_is_the_same_for_hand_and_auto(cell_type, features):
    grads = []
    for gradients in ("hand", "auto"):
        model = make(cell_type, gradients=gradients, dropout=0.3)
        torch.manual_seed(5)
        grads.append(torch.autograd.grad(model(features, CAPTIONS), tuple(model.parameters())))
    for k, (hand, auto) in enumerate(zip(*grads, strict=True)):
        assert difference(f"gradient {k}", hand, auto).agrees


# Smoothed labels, words read, weights ---------------------------------------------------------------------------------


def test_labels_are_smoothed_in_training_alone(cell_type, features):
    """By torch.nn's definition; the loss of validation is the plain one."""
    model, plain = make(cell_type, label_smoothing=0.2), make(cell_type)
    twin = Twin(plain)
    assert difference("loss", model(features, CAPTIONS), twin(features, CAPTIONS, label_smoothing=0.2)).agrees
    model.eval()
    assert torch.equal(model(features, CAPTIONS), plain(features, CAPTIONS))


def test_words_read_are_not_those_predicted(model, features):
    """Against the stepper: what is read may be any words, what is predicted stays, and so does the padding."""
    read = torch.randint(0, V, (N, T - 1), generator=torch.Generator().manual_seed(3))
    state, total = model.begin(features), torch.zeros(N, dtype=torch.float64)
    for t in range(T - 1):
        scores, state = model.step(read[:, t], state)
        nll = -scores.log_softmax(1)[torch.arange(N), CAPTIONS[:, t + 1]]
        total += nll * (CAPTIONS[:, t + 1] != NULL)
    torch.testing.assert_close(model(features, CAPTIONS, read), total.mean(), rtol=1e-13, atol=0)
    assert torch.equal(model(features, CAPTIONS, CAPTIONS[:, :-1]), model(features, CAPTIONS))


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


EVERY_OPTION = {"dropout": 0.3, "label_smoothing": 0.1}


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
def test_sharper_scores_are_the_scores_over_a_temperature(cell_type, features, tied, W):
    model = make(cell_type, wordvec_dim=W, tied=tied)
    scores, _ = model.step(CAPTIONS[:, 0], model.begin(features))
    model.scale_logits_(0.25)
    sharper, _ = model.step(CAPTIONS[:, 0], model.begin(features))
    assert difference("scores", sharper, 4 * scores).agrees


def test_what_cannot_be_sharpened():
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


@pytest.mark.parametrize("W", [W, H])
def test_tied_words_are_learnt_by_heart(cell_type, W):
    model = make(cell_type, wordvec_dim=W, tied=True)
    assert losses_of(model, torch.optim.Adam(model.parameters(), lr=0.05), 200)[-1] < 0.1
    assert torch.equal(model.sample(pictures(cell_type, seeded(2)), max_length=T - 1), CAPTIONS[:, 1:])


@pytest.mark.parametrize("W", [W, H])
@pytest.mark.parametrize("padded", [False, True])
def test_every_option_compiles(cell_type, features, W, padded):
    torch._dynamo.reset()
    model = make(cell_type, wordvec_dim=W, tied=True, label_smoothing=0.1)
    read, weights = CAPTIONS[:, :-1].flip(0), torch.rand(N, T - 1, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, dynamic=padded, backend="aot_eager")
    found = compiled(features, CAPTIONS, read, weights)
    expected = model(features, CAPTIONS, read, weights)
    assert difference("loss", found, expected).agrees
    grads = [torch.autograd.grad(loss, tuple(model.parameters())) for loss in (found, expected)]
    for (name, _), grad, other in zip(model.named_parameters(), *grads, strict=True):
        assert difference(f"d{name}", grad, other).agrees


@pytest.mark.parametrize("W", [W, H])
def test_tied_by_autocast(cell_type, features, W):
    model = make(cell_type, wordvec_dim=W, tied=True, label_smoothing=0.1).float()
    single = model(features.float(), CAPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(features.float(), CAPTIONS)
        scores, _ = model.stepper(9).step(CAPTIONS[:, 0], model.stepper(9).begin(features.float()))
    loss.backward()
    assert loss.item() == pytest.approx(single.item(), rel=0.02)
    assert scores.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


# Weights in and out --------------------------------------------------------------------------------------------------


def test_params_go_out_and_in(model, features):
    params = model.params()
    assert all(isinstance(value, np.ndarray) and value.dtype == np.float64 for value in params.values())
    params["b"][:] = 7  # a copy
    assert not (model.b == 7).any()
    other = make(model.cell_type, seed=1)
    other.load_params(model.params())
    assert torch.equal(other(features, CAPTIONS), model(features, CAPTIONS))


@pytest.mark.parametrize("kind", ["float32", "fortran", "read-only", "strided", "big-endian", "integers", "lists"])
def test_params_of_any_layout(model, kind):
    kinds: dict[str, Callable] = {
        "float32": lambda x: x.astype(np.float32),
        "fortran": np.asfortranarray,
        "read-only": lambda x: np.broadcast_to(x, x.shape),
        "strided": lambda x: np.repeat(x, 2, axis=0)[::-2],
        "big-endian": lambda x: x.astype(">f8"),
        "integers": lambda x: (10 * x).astype(int),
        "lists": lambda x: x.tolist(),
    }
    params = {name: kinds[kind](value) for name, value in model.params().items()}
    model.load_params(params)
    for name, value in model.params().items():
        np.testing.assert_array_equal(value, np.asarray(params[name]).astype(np.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("Wh"), r"^params lack \['Wh'\] and contain unknown nothing$"),
        (lambda p: p.update(W=p["b"]), r"^params lack nothing and contain unknown \['W'\]$"),
        (lambda p: p.update(b_vocab=p["b_vocab"][1:]), r"^params\['b_vocab'\] must be \(8,\), but is \(7,\)$"),
        (lambda p: p.update(W_vocab=p["W_vocab"].T), r"^params\['W_vocab'\] must be \(5, 8\), but is \(8, 5\)$"),
        (lambda p: p.update(b_vocab=p["b_vocab"].astype(object)), "must be real numbers, but are object"),
        (lambda p: p.update(b_vocab=p["b_vocab"] + 0j), "must be real numbers, but are complex128"),
    ],
)
def test_params_that_do_not_fit_change_nothing(model, change, message):
    before = model.params()
    params = {name: value + 1 for name, value in before.items()}
    change(params)
    with pytest.raises(ValueError, match=message):
        model.load_params(params)
    for name, value in model.params().items():
        np.testing.assert_array_equal(value, before[name])


def test_npz_round_trip(model, features, tmp_path):
    path = tmp_path / "weights of mine"  # written as named, with no ending added
    model.save_npz(path)
    with np.load(path) as arrays:
        assert set(arrays.files) == set(model.params())
    other = make(model.cell_type, seed=1)
    other.load_npz(path)
    assert torch.equal(other(features, CAPTIONS), model(features, CAPTIONS))


def damaged(path, model) -> None:
    np.savez_compressed(path, **model.params())
    content = bytearray(path.read_bytes())
    content[60:100] = bytes(40)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, model: None,
        lambda path, model: path.mkdir(),
        lambda path, model: path.write_bytes(b""),
        lambda path, model: path.write_bytes(b"not an archive"),
        lambda path, model: path.write_bytes(pickle.dumps(model.params())),
        lambda path, model: path.write_bytes(np.ones(3).tobytes()),
        lambda path, model: np.save(path.open("wb"), np.ones(3)),
        lambda path, model: np.savez(path, b=model.params()["b"]),
        lambda path, model: np.savez(path, **{**model.params(), "b": np.array([{}])}),
        damaged,
    ],
    ids=["missing", "folder", "empty", "text", "pickle", "bytes", "npy", "lacking", "objects", "damaged"],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_npz_that_is_none_is_named(write, tmp_path):
    model = make()
    path = tmp_path / "weights.npz"
    write(path, model)
    before = model.params()
    with pytest.raises(ValueError, match=r"weights\.npz: ") as caught:
        model.load_npz(path)
    assert str(caught.value).count("weights.npz") == 1
    for name, value in model.params().items():
        np.testing.assert_array_equal(value, before[name])


def test_copied_pickled_and_saved(model, features):
    expected = model(features, CAPTIONS)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(other(features, CAPTIONS), expected)
        assert other.W_proj is not model.W_proj
    other = make(model.cell_type, seed=1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(features, CAPTIONS), expected)
    assert set(model.state_dict()) == set(model.params())


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_to_idx": {"cat": 0}}, "^word_to_idx lacks <NULL>$"),
        ({"cell_type": "gru"}, "^cell_type must be one of rnn, lstm, attention, but is 'gru'$"),
        ({"gradients": "numerical"}, "^gradients must be one of hand, auto, but is 'numerical'$"),
        ({"input_dim": 0}, "^CaptioningRNN: input_dim must be an integer of at least 1, but is 0$"),
        ({"wordvec_dim": -1}, "^CaptioningRNN: wordvec_dim must be an integer of at least 1, but is -1$"),
        ({"hidden_dim": 0}, "^CaptioningRNN: hidden_dim must be an integer of at least 1, but is 0$"),
        ({"hidden_dim": 2.5}, "^CaptioningRNN: hidden_dim must be an integer of at least 1, but is 2.5$"),
        ({"dropout": 1.0}, "^dropout must be at least 0 and below 1, but is 1.0$"),
        ({"dropout": -0.1}, "^dropout must be at least 0 and below 1, but is -0.1$"),
        ({"label_smoothing": 1.0}, "^label_smoothing must be at least 0 and below 1, but is 1.0$"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        CaptioningRNN(**{"word_to_idx": WORDS, **options})


@pytest.mark.parametrize("gradients", ["hand", "auto"])
def test_refused_inputs(features, gradients):
    model = make(gradients=gradients)
    cases: list[tuple[Tensor, Tensor, str]] = [
        (features[:, :3], CAPTIONS, rf"^features must be \(N, {D}\), but are \(4, 3\)$"),
        (features[0], CAPTIONS[:1], rf"^features must be \(N, {D}\), but are \(7,\)$"),
        (features, CAPTIONS[:3], r"^captions must be \(4, T\) with T >= 1, but are \(3, 6\)$"),
        (features, CAPTIONS[0], r"^captions must be \(4, T\) with T >= 1, but are \(6,\)$"),
        (features, CAPTIONS[:, :0], r"^captions must be \(4, T\) with T >= 1, but are \(4, 0\)$"),
    ]
    for pictures, captions, message in cases:
        with pytest.raises(ValueError, match=message):
            model(pictures, captions)


def test_refused_words_read_and_weights(features):
    model = make()
    with pytest.raises(ValueError, match=r"^read must be \(4, 5\), but is \(4, 6\)$"):
        model(features, CAPTIONS, CAPTIONS)
    with pytest.raises(ValueError, match=r"^weights must be \(4, 5\), but is \(4, 1\)$"):
        model(features, CAPTIONS, weights=torch.ones(N, 1))
    with pytest.raises(IndexError, match=r"CaptioningRNN: read\[0, 0\] is 8, but there are 8 words"):
        model(features, CAPTIONS, torch.full((N, T - 1), V))
    with pytest.raises(TypeError, match="CaptioningRNN: read must hold integers, but is float32"):
        model(features, CAPTIONS, torch.ones(N, T - 1))


def test_refused_kinds(features):
    model = make()
    with pytest.raises(TypeError, match="CaptioningRNN: captions must hold integers, but is float32"):
        model(features, CAPTIONS.float())
    with pytest.raises(TypeError, match=r"^CaptioningRNN: features is float32, but b_proj is float64$"):
        model(features.float(), CAPTIONS)
    with pytest.raises(TypeError, match=r"^CaptioningRNN: features is on meta, but b_proj is on cpu$"):
        model(features.to("meta"), CAPTIONS)
    with pytest.raises(TypeError, match=r"^CaptioningRNN: features must be floating-point, but is int64$"):
        model(features.long(), CAPTIONS)
    captions = CAPTIONS.clone()
    captions[1, 1] = -1
    with pytest.raises(IndexError, match=r"CaptioningRNN: captions\[1, 1\] is -1, but there are 8 words"):
        model(features, captions)


def not_tensors(features: Tensor) -> dict[str, Any]:
    """What is given in the place of a tensor, and what is said of it."""
    packed = torch.nn.utils.rnn.pack_sequence([*features])
    return {
        "a NumPy array; torch.from_numpy makes a tensor of it": features.numpy(),
        "a PackedSequence; torch.nn.utils.rnn.pad_packed_sequence makes a tensor and lengths of it": packed,
        "a list": features.tolist(),
    }


def test_what_is_no_tensor_is_refused_by_every_method(features):
    model, attentive = make(), make("attention")
    words = CAPTIONS[:, 1:]
    calls: list[tuple[str, Callable[[Any], Any]]] = [
        ("features", lambda x: model(x, CAPTIONS)),
        ("captions", lambda x: model(features, x)),
        ("read", lambda x: model(features, CAPTIONS, x)),
        ("weights", lambda x: model(features, CAPTIONS, weights=x)),
        ("features", model.begin),
        ("features", model.sample),
        ("features", model.beam_search),
        ("features", lambda x: model.alternatives(x, words)),
        ("words", lambda x: model.alternatives(features, x)),
        ("words", lambda x: model.step(x, model.begin(features))),
        ("words", lambda x: attentive.attention(features.unsqueeze(2), x)),
        ("features", lambda x: attentive.attention(x, words)),
        ("features", lambda x: model.stepper(1).begin(x)),
    ]
    for name, call in calls:
        for kind, value in not_tensors(features).items():
            with pytest.raises(TypeError, match=f"^CaptioningRNN: {name} must be a tensor, but is {re.escape(kind)}$"):
                call(value)
