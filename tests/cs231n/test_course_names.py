"""The sequences of cells of cs231n's notebooks from 2025 on and of EECS 498's, over this package's names for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_data import write_tiny
from tests.test_known_answers import (
    EMBEDDING,
    LSTM,
    LSTM_STEP_C,
    LSTM_STEP_H,
    RNN,
    RNN_STEP,
    assert_printed,
    captioner,
    ls,
)
from torch_caption import cs231n_pytorch, eecs498
from torch_caption.functions import reference
from torch_caption.verify.gradcheck import assert_agrees
from torch_caption.verify.solution.check import check_solution
from torch_caption.verify.solution.dialects import NAMES, Solution

PUBLISHED_LOSS = {"rnn": 9.83235591003, "lstm": 9.82445935443}
COURSES = {"cs231n_pytorch": cs231n_pytorch, "eecs498": eecs498}


def first(value: Any) -> Tensor:
    """The output, without a cache."""
    return value if isinstance(value, Tensor) else value[0]


@pytest.fixture(params=COURSES)
def course(request: pytest.FixtureRequest) -> Any:
    return COURSES[request.param]


@pytest.mark.parametrize("name", COURSES)
def test_the_names_pass_the_check(name: str, tmp_path):
    functions = {key: value for key, value in vars(COURSES[name]).items() if key in NAMES}
    solution = Solution(tmp_path, functions, numpy=False, eecs498=name == "eecs498")
    findings = check_solution(solution)
    assert [finding for finding in findings if finding.status != "ok"] == []
    assert len({finding.function for finding in findings}) >= 10


def test_steps_and_sequences_have_the_published_values(course):
    N, D, H = 3, 10, 4
    weights = ls(-0.1, 0.9, D, H), ls(-0.3, 0.7, H, H), ls(-0.2, 0.4, H)
    assert_printed(first(course.rnn_step_forward(ls(-0.4, 0.7, N, D), ls(-0.2, 0.5, N, H), *weights)), RNN_STEP)
    N, T, D, H = 2, 3, 4, 5
    weights = ls(-0.2, 0.4, D, H), ls(-0.4, 0.1, H, H), ls(-0.7, 0.1, H)
    assert_printed(first(course.rnn_forward(ls(-0.1, 0.3, N, T, D), ls(-0.3, 0.1, N, H), *weights)), RNN)
    N, D, H = 3, 4, 5
    states = ls(-0.3, 0.7, N, H), ls(-0.4, 0.9, N, H)
    weights = ls(-2.1, 1.3, D, 4 * H), ls(-0.7, 2.2, H, 4 * H), ls(0.3, 0.7, 4 * H)
    next_h, next_c = course.lstm_step_forward(ls(-0.4, 1.2, N, D), *states, *weights)
    assert_printed(next_h, LSTM_STEP_H)
    assert_printed(next_c, LSTM_STEP_C)
    N, D, H, T = 2, 5, 4, 3
    weights = ls(-0.2, 0.9, D, 4 * H), ls(-0.3, 0.6, H, 4 * H), ls(0.2, 0.7, 4 * H)
    assert_printed(course.lstm_forward(ls(-0.4, 0.6, N, T, D), ls(-0.4, 0.8, N, H), *weights), LSTM)


def test_embeddings_have_the_published_values():
    words, W = torch.tensor([[0, 3, 1, 2], [2, 1, 0, 3]]), ls(0, 1, 5, 3)
    assert_printed(cs231n_pytorch.word_embedding_forward(words, W), EMBEDDING)
    module = eecs498.WordEmbedding(5, 3, dtype=torch.float64)
    with torch.no_grad():
        module.W_embed.copy_(W)
    assert_printed(module(words).detach(), EMBEDDING)


def test_the_graph_reaches_the_inputs(randn):
    """`out.backward(dout)` after a forward, as the notebooks call it, and the gradients of the caches."""
    N, T, D, H = 2, 3, 4, 5
    args = tuple(x.requires_grad_() for x in (randn(N, T, D), randn(N, H), randn(D, H), randn(H, H), randn(H)))
    dout = randn(N, T, H)
    out, cache = eecs498.rnn_forward(*args)
    out.backward(dout)
    for x, by_hand in zip(args, eecs498.rnn_backward(dout, cache), strict=True):
        torch.testing.assert_close(x.grad, by_hand, rtol=1e-12, atol=1e-14)
    assert_agrees(cs231n_pytorch.rnn_forward, reference.rnn, args)


def test_an_lstm_step_with_attention_is_the_functions(randn):
    N, D, H = 3, 4, 5
    args = [randn(N, D), randn(N, H), randn(N, H), randn(D, 4 * H), randn(H, 4 * H), randn(4 * H)]
    attn, Wattn = randn(N, H), randn(H, 4 * H)
    inputs = tuple(x.requires_grad_() for x in (*args, attn, Wattn))

    def plain(x, prev_h, prev_c, Wx, Wh, b, attn, Wattn):
        return reference.lstm_step(x, prev_h, prev_c, Wx, Wh, b + attn @ Wattn)

    assert_agrees(eecs498.lstm_step_forward, plain, inputs)


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_the_captioner_has_the_published_loss(cell_type):
    ours, features, captions = captioner(cell_type)
    words = {"<NULL>": 0, "cat": 2, "dog": 3}
    model = cs231n_pytorch.CaptioningRNN(words, 20, 30, 40, cell_type, dtype=torch.float64)
    for name, value in model.params.items():
        model.params[name] = ls(-1.4, 1.3, *value.shape).requires_grad_()
    loss = model.loss(features, captions)
    assert loss.item() == pytest.approx(PUBLISHED_LOSS[cell_type], abs=1e-10)
    loss.backward()
    ours(features, captions).backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(model.params[name].grad, parameter.grad, rtol=1e-10, atol=1e-14)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Any]:
    """Twelve captions of twelve images."""
    return cs231n_pytorch.load_coco_data(write_tiny(tmp_path_factory.mktemp("data"), wordings=1), pca_features=False)


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_the_solver_memorises_captions(data, cell_type, capsys):
    torch.manual_seed(0)
    np.random.seed(231)  # noqa: NPY002  (what the notebooks do)
    model = cs231n_pytorch.CaptioningRNN(data["word_to_idx"], data["train_features"].shape[1], 24, 48, cell_type)
    solver = cs231n_pytorch.CaptioningSolverPytorch(
        model, data, learning_rate=1e-2, batch_size=12, num_epochs=100, print_every=50
    )
    solver.train()
    assert "(Iteration 1 / 100) loss: " in capsys.readouterr().out
    assert solver.loss_history[-1] < 0.1 * solver.loss_history[0]
    features = torch.from_numpy(data["train_features"][data["train_image_idxs"]])
    sampled = model.sample(features, max_length=data["train_captions"].shape[1] - 1).numpy()
    words = data["idx_to_word"]
    truth = cs231n_pytorch.decode_captions(data["train_captions"][:, 1:], words)
    assert cs231n_pytorch.decode_captions(sampled, words) == truth


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attention"])
def test_the_module_memorises_captions(data, cell_type):
    torch.manual_seed(0)
    images = torch.from_numpy(data["train_features"][data["train_image_idxs"]])
    images = images[:, :, None, None].expand(-1, -1, 2, 2) if cell_type == "attention" else images
    captions = torch.from_numpy(data["train_captions"]).long()
    model = eecs498.CaptioningRNN(data["word_to_idx"], images.shape[1], 24, 48, cell_type, ignore_index=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        model(images, captions).backward()
        optimizer.step()
    sampled = model.sample(images, max_length=captions.shape[1] - 1)
    if cell_type == "attention":
        sampled, weights = sampled
        torch.testing.assert_close(weights.sum((2, 3)), torch.ones(sampled.shape))
    decoded = cs231n_pytorch.decode_captions(sampled.numpy(), data["idx_to_word"])
    assert decoded == cs231n_pytorch.decode_captions(data["train_captions"][:, 1:], data["idx_to_word"])


def share_reproduced(sampled: Tensor, data: dict[str, Any]) -> float:
    """Of the captions of `data`, those that are sampled word for word."""
    decoded = cs231n_pytorch.decode_captions(sampled.numpy(), data["idx_to_word"])
    truth = cs231n_pytorch.decode_captions(data["train_captions"][:, 1:], data["idx_to_word"])
    return sum(ours == theirs for ours, theirs in zip(decoded, truth, strict=True)) / len(truth)


@pytest.mark.exhaustive
@pytest.mark.realdata
@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_the_solver_memorises_photographs(flickr, cell_type):
    """The notebooks' "overfit small data", with their sizes and learning rate: 50 captions of 50 different images."""
    torch.manual_seed(0)
    images = torch.from_numpy(flickr["train_features"][flickr["train_image_idxs"]])
    model = cs231n_pytorch.CaptioningRNN(flickr["word_to_idx"], images.shape[1], 256, 512, cell_type)
    solver = cs231n_pytorch.CaptioningSolverPytorch(
        model, flickr, learning_rate=5e-3, batch_size=25, num_epochs=50, verbose=False
    )
    solver.train()
    assert len(solver.loss_history) == 100
    assert solver.loss_history[-1] < 0.1
    sampled = model.sample(images, max_length=flickr["train_captions"].shape[1] - 1)
    assert share_reproduced(sampled, flickr) >= 48 / 50


@pytest.mark.exhaustive
@pytest.mark.realdata
@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attention"])
def test_the_module_memorises_photographs(flickr, cell_type):
    """The same of EECS 498, over features of one vector, which attention takes as a grid of 1 x 1."""
    torch.manual_seed(0)
    images = torch.from_numpy(flickr["train_features"][flickr["train_image_idxs"]])
    images = images[:, :, None, None] if cell_type == "attention" else images
    captions = torch.from_numpy(flickr["train_captions"]).long()
    model = eecs498.CaptioningRNN(flickr["word_to_idx"], images.shape[1], 256, 512, cell_type, ignore_index=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(images, captions)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    sampled = model.sample(images, max_length=captions.shape[1] - 1)
    assert share_reproduced(sampled[0] if cell_type == "attention" else sampled, flickr) >= 48 / 50


def test_another_cell_is_refused():
    words = {"<NULL>": 0, "<START>": 1, "<END>": 2}
    for kind in (cs231n_pytorch.CaptioningRNN, eecs498.CaptioningRNN):
        with pytest.raises(ValueError, match='Invalid cell_type "gru"'):
            kind(words, cell_type="gru")


def test_sampling_without_a_start_is_refused():
    with pytest.raises(ValueError, match="sampling starts with <START>, which the vocabulary lacks"):
        cs231n_pytorch.CaptioningRNN({"<NULL>": 0}, 4, 3, 5).sample(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="sampling starts with <START>, which the vocabulary lacks"):
        eecs498.CaptioningRNN({"<NULL>": 0}, 4, 3, 5).sample(torch.zeros(1, 4))


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("print_every", 0)])
def test_a_solver_of_no_size_is_refused(data, name, value):
    model = cs231n_pytorch.CaptioningRNN(data["word_to_idx"], 8, 4, 5)
    with pytest.raises(ValueError, match=f"{name} is 0"):
        cs231n_pytorch.CaptioningSolverPytorch(model, data, **{name: value})
