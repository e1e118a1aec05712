"""The assignment's update rules, solver, data and notebook, under the assignment's own names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from tests.helpers.tiny_data import write_tiny
from torch_caption import cs231n
from torch_caption.cs231n import (
    CaptioningRNN,
    CaptioningSolver,
    decode_captions,
    image_from_url,
    load_coco_data,
    sample_coco_minibatch,
)
from torch_caption.errors import DataError


def descend(rule: Callable, config: dict, steps: int = 4, decay: float = 1.0) -> np.ndarray:
    """w after some steps on the loss 1/2 |w|^2 + sum w, the rate decaying after every one."""
    w = np.linspace(-1, 2, 6).reshape(2, 3)
    for _ in range(steps):
        w, config = rule(w, w + 1, config)
        config["learning_rate"] *= decay
    return w


def test_sgd():
    w, config = cs231n.sgd(np.array([1.0, 2.0]), np.array([10.0, -20.0]))
    np.testing.assert_allclose(w, [0.9, 2.2])
    assert config == {"learning_rate": 1e-2}


def test_sgd_momentum():
    """v = mu v - lr dw, with the rate of its own step in each term: a decayed rate does not shrink the old velocity."""
    w = np.linspace(-1, 2, 6).reshape(2, 3)
    v, lr = 0, 0.1
    for _ in range(4):
        v = 0.8 * v - lr * (w + 1)
        w = w + v
        lr *= 0.5
    np.testing.assert_allclose(descend(cs231n.sgd_momentum, {"learning_rate": 0.1, "momentum": 0.8}, decay=0.5), w)


def test_adam_adds_eps_before_the_correction():
    """At the first step m = 0.1 g, v = 0.001 g^2 and lr_t = lr sqrt(0.001) / 0.1. With g = 1e-8 / sqrt(0.001) the root
    of v is eps itself: half of lr. Corrected before, as in assignment 2, the root is g, and the step 0.969 lr."""
    g = 1e-8 / np.sqrt(0.001)
    w, _ = cs231n.adam(np.array([0.0, 0.0, 0.0]), np.array([g, -1.0, 0.0]), {"learning_rate": 0.01})
    np.testing.assert_allclose(w, [-0.005, 0.01, 0], rtol=1e-6)


def test_adam_resumes_from_the_course_state():
    """m, v and t as the course's config has them; t = 9 makes this the tenth step."""
    config = {"learning_rate": 0.1, "m": np.array([0.5]), "v": np.array([0.04]), "t": 9}
    w, config = cs231n.adam(np.array([1.0]), np.array([-1.0]), config)
    assert config["t"] == 10
    np.testing.assert_allclose(config["m"], [0.35])
    np.testing.assert_allclose(config["v"], [0.04096])
    lr_t = 0.1 * np.sqrt(1 - 0.999**10) / (1 - 0.9**10)
    np.testing.assert_allclose(w, [1 - lr_t * 0.35 / (np.sqrt(0.04096) + 1e-8)], rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "theirs", "eps"),
    [
        (cs231n.sgd_momentum, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), {}),
        (cs231n.rmsprop, lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.99, eps=1e-8), {}),
        (cs231n.adam, lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-30), {"epsilon": 1e-30}),  # torch adds it elsewhere
    ],
)
def test_rules_agree_with_torch_at_a_steady_rate(rule, theirs, eps):
    w = torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(2, 3)
    optimizer = theirs([w])
    for _ in range(4):
        w.grad = w + 1
        optimizer.step()
    np.testing.assert_allclose(descend(rule, {"learning_rate": 0.01} | eps), w.numpy(), rtol=1e-9)


@pytest.mark.parametrize("rule", [cs231n.sgd, cs231n.sgd_momentum, cs231n.rmsprop, cs231n.adam])
def test_rules_keep_float32_and_their_arguments(rule):
    w, dw = np.ones((2, 3), np.float32), np.full((2, 3), 2, np.float32)
    config: dict[str, Any] = {"learning_rate": 0.1}
    for _ in range(2):
        next_w, config = rule(w, dw, config)
        assert next_w.dtype == np.float32
    np.testing.assert_array_equal(w, 1)
    np.testing.assert_array_equal(dw, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Any]:
    """Twelve captions of twelve images, and pictures of them."""
    return load_coco_data(write_tiny(tmp_path_factory.mktemp("data"), wordings=1, pictures=True), pca_features=False)


@pytest.mark.parametrize("update_rule", ["sgd", "sgd_momentum", "rmsprop", "adam", cs231n.adam])
def test_solver_reduces_the_loss(data, update_rule):
    model = CaptioningRNN(data["word_to_idx"], 8, 16, 32)
    everything = data["train_features"][data["train_image_idxs"]], data["train_captions"]
    before, _ = model.loss(*everything)
    rate = {"sgd": 0.1, "sgd_momentum": 0.02}.get(update_rule, 5e-3)
    solver = CaptioningSolver(
        model,
        data,
        update_rule=update_rule,
        optim_config={"learning_rate": rate},
        batch_size=6,
        num_epochs=30,
        verbose=False,
    )
    solver.train()
    assert len(solver.loss_history) == 60
    assert solver.epoch == 30
    assert model.loss(*everything)[0] < 0.8 * before


def test_solver_first_step_is_the_rule(data):
    """One iteration moves every parameter by the rule's step on the minibatch that the seed draws."""
    model = CaptioningRNN(data["word_to_idx"], 8, 8, 8, dtype=np.float64)
    start = {name: value.copy() for name, value in model.params.items()}
    solver = CaptioningSolver(model, data, batch_size=10, optim_config={"learning_rate": 0.1}, verbose=False)
    np.random.seed(1)  # noqa: NPY002
    captions, features, _ = sample_coco_minibatch(data, 10)
    loss, grads = model.loss(features, captions)
    np.random.seed(1)  # noqa: NPY002
    solver._step()
    assert solver.loss_history == [loss]
    for name, value in model.params.items():
        np.testing.assert_allclose(value, start[name] - 0.1 * grads[name], rtol=1e-14, atol=1e-16)


def test_solver_prints_and_decays(data, capsys):
    model = CaptioningRNN(data["word_to_idx"], 8, 4, 4)
    solver = CaptioningSolver(
        model, data, optim_config={"learning_rate": 0.1}, lr_decay=0.5, batch_size=6, num_epochs=3, print_every=4
    )
    solver.train()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"(Iteration {t + 1} / 6) loss: {solver.loss_history[t]:f}" for t in (0, 4)]
    assert {config["learning_rate"] for config in solver.optim_configs.values()} == {0.1 * 0.5**3}


def test_solver_with_larger_batches_than_data(data):
    solver = CaptioningSolver(CaptioningRNN(data["word_to_idx"], 8, 4, 4), data, num_epochs=2, verbose=False)
    solver.train()
    assert len(solver.loss_history) == 2


def test_refused_solver_options(data):
    model = CaptioningRNN(data["word_to_idx"], 8, 4, 4)
    with pytest.raises(ValueError, match="'adagrad'; there are sgd, sgd_momentum, rmsprop, adam"):
        CaptioningSolver(model, data, update_rule="adagrad")
    with pytest.raises(ValueError, match="batch_size is 0"):
        CaptioningSolver(model, data, batch_size=0)
    with pytest.raises(TypeError, match="learning_rate"):
        CaptioningSolver(model, data, learning_rate=1e-3)


def test_decode_captions():
    idx_to_word = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "cat"]
    captions = np.array([[1, 4, 5, 2, 0, 4], [0, 4, 0, 5, 3, 5]])
    assert decode_captions(captions, idx_to_word) == ["<START> a cat <END>", "a cat <UNK> cat"]
    assert decode_captions(captions[0], idx_to_word) == "<START> a cat <END>"
    assert decode_captions(torch.from_numpy(captions[:1]), dict(enumerate(idx_to_word))) == ["<START> a cat <END>"]
    assert decode_captions(captions[:0], idx_to_word) == []
    with pytest.raises(ValueError, match=r"not \(1, 1, 3\)"):
        decode_captions(np.zeros((1, 1, 3), int), idx_to_word)


def test_minibatch(data):
    captions, features, urls = sample_coco_minibatch(data, batch_size=50)
    assert (captions.shape, features.shape, urls.shape) == ((50, 7), (50, 8), (50,))
    for caption, feature, url in zip(captions, features, urls, strict=True):
        image = data["train_urls"].tolist().index(url)
        np.testing.assert_array_equal(feature, data["train_features"][image])
        np.testing.assert_array_equal(caption, *data["train_captions"][data["train_image_idxs"] == image])


def test_minibatch_without_urls_split_or_captions(data):
    _, _, urls = sample_coco_minibatch({k: v for k, v in data.items() if k != "train_urls"}, batch_size=3)
    assert urls.tolist() == ["", "", ""]
    with pytest.raises(ValueError, match="no split 'novel'; there are test, train, val"):
        sample_coco_minibatch(data, split="novel")
    with pytest.raises(ValueError, match="'train' has no captions"):
        sample_coco_minibatch({**data, "train_captions": []}, split="train")


def test_load_coco_data(coco_directory):
    """The files' own arrays; a URL where the directory has one, else nothing."""
    directory = coco_directory(kinds=("", "_pca"))
    (directory / "val2014_urls.txt").write_text(
        "".join(f"http://x.invalid/{k}.png\n" for k in range(4)), encoding="utf-8"
    )
    data = load_coco_data(directory)
    per_split = ("captions", "image_idxs", "features", "urls")
    names = {f"{split}_{what}" for split in ("train", "val") for what in per_split}
    assert data.keys() == names | {"idx_to_word", "word_to_idx"}
    with h5py.File(directory / "coco2014_captions.h5") as file:
        for name in file:
            np.testing.assert_array_equal(data[name], file[name])
            assert data[name].dtype == np.int32
    for pca in (True, False):
        with h5py.File(directory / f"train2014_vgg16_fc7{'_pca' if pca else ''}.h5") as file:
            features = load_coco_data(directory, pca_features=pca)["train_features"]
            np.testing.assert_array_equal(features, file["features"])
            assert features.dtype == np.float32
    assert data["word_to_idx"] == {word: idx for idx, word in enumerate(data["idx_to_word"])}
    assert data["val_urls"][3] == "http://x.invalid/3.png"
    assert data["train_urls"].tolist() == [""] * 7


def test_load_coco_data_max_train(coco_directory):
    """So many captions, drawn by NumPy's seed; all of val, and all features."""

    def captions(seed: int, max_train: int | None = 5) -> list:
        np.random.seed(seed)  # noqa: NPY002
        data = load_coco_data(directory, max_train)
        assert (len(data["val_captions"]), len(data["train_features"])) == (12, 7)
        return np.column_stack([data["train_image_idxs"], data["train_captions"]]).tolist()

    directory = coco_directory()
    assert len(captions(2)) == 5
    assert all(row in captions(0, None) for row in captions(2))
    assert captions(2) == captions(2) != captions(3)


def test_load_coco_data_without_a_directory(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        load_coco_data(tmp_path / "nowhere")


def test_an_image_that_cannot_be_loaded(tmp_path, capsys):
    for source in ("", str(tmp_path / "missing.jpg"), "http://127.0.0.1:9/a.jpg"):
        picture = image_from_url(source)
        assert (picture.ndim, picture.shape[2], picture.dtype) == (3, 3, np.uint8)
        assert capsys.readouterr().out.startswith("no picture: ")


def test_image_of_a_path(data):
    picture = image_from_url(data["train_urls"][3])
    assert (picture.shape, picture.dtype) == ((16, 16, 3), np.uint8)
    np.testing.assert_array_equal(picture[0, 0], [60, 90, 200])
    picture[...] = 0  # the caller's own


def test_image_from_url(monkeypatch):
    """A URL is downloaded as by `load_image`, which asks about private addresses."""
    calls = []

    def load(source: str, **options: Any) -> Image.Image:
        calls.append((source, options))
        return Image.new("RGB", (5, 4), (1, 2, 3))

    monkeypatch.setattr(cs231n, "load_image", load)
    picture = image_from_url("http://example.invalid/a.png", allow_private=True)
    np.testing.assert_array_equal(picture, np.broadcast_to(np.array([1, 2, 3], np.uint8), (4, 5, 3)))
    assert calls == [("http://example.invalid/a.png", {"allow_private": True})]


def test_notebook(tmp_path, cell_type, monkeypatch, capsys):
    """The notebook's cells on small data: look at the data, train on a few captions, caption train and val pictures."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "cs231n" / "datasets" / "coco_captioning", wordings=1, pictures=True)
    data = load_coco_data(pca_features=False)
    for name, value in data.items():
        print(name, type(value), value.shape if isinstance(value, np.ndarray) else len(value))
    axes = Figure().subplots()
    captions, features, urls = sample_coco_minibatch(data, batch_size=3)
    for caption, url in zip(captions, urls, strict=True):
        axes.imshow(image_from_url(url))
        axes.set_title(decode_captions(caption, data["idx_to_word"]))

    small = load_coco_data(max_train=10, pca_features=False)
    model = CaptioningRNN(
        cell_type=cell_type,
        word_to_idx=data["word_to_idx"],
        input_dim=data["train_features"].shape[1],
        hidden_dim=48,
        wordvec_dim=24,
    )
    solver = CaptioningSolver(
        model,
        small,
        update_rule="adam",
        num_epochs=60,
        batch_size=10,
        optim_config={"learning_rate": 1e-2},
        lr_decay=0.995,
        verbose=True,
        print_every=10,
    )
    solver.train()
    axes.plot(solver.loss_history)
    assert solver.loss_history[-1] < 0.1 * solver.loss_history[0]
    assert "(Iteration 1 / 60) loss: " in capsys.readouterr().out
    for split in ("train", "val"):
        captions, features, urls = sample_coco_minibatch(small, split=split, batch_size=2)
        truth = decode_captions(captions, data["idx_to_word"])
        sampled = decode_captions(model.sample(features), data["idx_to_word"])
        for gt, sample, url in zip(truth, sampled, urls, strict=True):
            axes.imshow(image_from_url(url))
            axes.set_title(f"{split}\n{sample}\nGT:{gt}")
            if split == "train":
                assert f"<START> {sample}" == gt


@pytest.mark.exhaustive
@pytest.mark.realdata
def test_overfit_photographs(flickr, cell_type):
    """The assignment's last exercise: 50 captions memorised. Its bar for the loss is the rnn's."""
    model = CaptioningRNN(
        cell_type=cell_type,
        word_to_idx=flickr["word_to_idx"],
        input_dim=flickr["train_features"].shape[1],
        hidden_dim=512,
        wordvec_dim=256,
    )
    config = {"learning_rate": 5e-3}
    solver = CaptioningSolver(
        model, flickr, update_rule="adam", num_epochs=50, batch_size=25, optim_config=config, verbose=False
    )
    solver.train()
    assert len(solver.loss_history) == 100
    if cell_type == "rnn":
        assert solver.loss_history[-1] < 0.1
    sampled = decode_captions(model.sample(flickr["train_features"][flickr["train_image_idxs"]]), flickr["idx_to_word"])
    assert sampled == decode_captions(flickr["train_captions"][:, 1:], flickr["idx_to_word"])
