"""`load` and the captions of a `Captioner`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.saved_checkpoint import make
from torch_caption import CaptioningRNN, CheckpointError, ConfigError, DecodingOptions, ImageError, caption, load
from torch_caption.checkpoints import format as checkpoints
from torch_caption.config import TrainConfig
from torch_caption.data.vocabulary import SPECIAL, Vocabulary
from torch_caption.encoders.extractor import SCENES
from torch_caption.scenes import dataset as scenes

WORDS = (*SPECIAL, "a", "red", "green", "circle", "square")
CONFIG = TrainConfig(hidden_dim=16, wordvec_dim=8, max_length=6)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a model of random weights, which captions pictures as the built-in scenes are captioned."""
    folder = tmp_path_factory.mktemp("runs") / "scenes-rnn-1"
    folder.mkdir()
    pixels = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()
    dim = scenes.features(pixels).shape[0]
    torch.manual_seed(3)
    model = CaptioningRNN(Vocabulary(WORDS).word_to_idx, dim, **CONFIG.model_arguments())
    recipe = {"encoder": SCENES, "recipe": scenes.VERSION}
    weights = {name: 5 * weight.detach() for name, weight in model.named_parameters()}
    saved = make(
        weights=weights, config=CONFIG, words=[*WORDS], manifest=recipe, input_dim=dim, average={}, optimizer={}
    )
    checkpoints.save(folder / "best.safetensors", saved)
    (folder.parent / "last.txt").write_text(folder.name + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{colour}.png" for colour in ("red", "green", "blue")]
    for path in paths:
        Image.new("RGB", (64, 64), path.stem).save(path)
    return paths


def test_a_run_a_folder_of_runs_and_a_checkpoint_are_opened(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (run, str(run.parent), run / "best.safetensors"):
        opened = load(path, device="cpu")
        assert opened.path == run / "best.safetensors"
        assert not opened.model.training
        assert opened.vocabulary.words == WORDS
    monkeypatch.chdir(run.parent.parent)
    run.parent.rename("runs")
    try:
        assert load(device="cpu").path == Path("runs") / run.name / "best.safetensors"
    finally:
        Path("runs").rename(run.parent)


def test_what_cannot_be_opened_is_an_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match=r"device must be auto, cpu or cuda, not 'tpu'"):
        load(run, device="tpu")
    checkpoints.save(tmp_path / "x.safetensors", make())
    with pytest.raises(ConfigError, match="has no recipe of its features"):
        load(tmp_path / "x.safetensors").caption(Image.new("RGB", (9, 9)))


def test_a_picture_has_one_caption_however_it_is_given(run: Path, photos: list[Path]) -> None:
    opened = load(run, device="cpu")
    first = opened.caption(photos[0])
    assert str(first) == first.text
    assert set(first.text.split()) <= set(WORDS)
    features = opened.extractor.make([opened.extractor.prepare(Image.open(photos[0]).convert("RGB"))])
    assert [first] == opened.caption([str(photos[0])]) == opened.caption(features)
    assert first == opened.caption(Image.open(photos[0])) == caption(photos[0], run)
    turned = Image.open(photos[0]).convert("RGBA")
    assert opened.caption(turned) == first


def test_several_pictures_have_captions_in_their_order(run: Path, photos: list[Path]) -> None:
    opened = load(run, device="cpu")
    mixed = [photos[2], Image.open(photos[0]), str(photos[1]), *photos * 7]
    each = [opened.caption(picture) for picture in photos]
    found, expected = opened.caption(mixed), [each[2], each[0], each[1], *each * 7]
    assert [*map(str, found)] == [*map(str, expected)]
    assert [c.log_prob for c in found] == pytest.approx([c.log_prob for c in expected], rel=1e-5)
    assert opened.caption([]) == []


def test_options_and_the_seed_decide_the_captions(run: Path, photos: list[Path]) -> None:
    opened = load(run, device="cpu")
    beams = opened.captions(photos, DecodingOptions(beam_size=4))
    assert [len(found) for found in beams] == [4, 4, 4]
    assert [found[0] for found in beams] == opened.caption(photos, DecodingOptions(beam_size=4, n_best=1))
    drawn = [opened.captions(photos, DecodingOptions(samples=5), seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(found.text.split()) < CONFIG.max_length for image in beams for found in image if found.ended)
    with pytest.raises(ConfigError, match="beam_size"):
        opened.caption(photos[0], DecodingOptions(beam_size=0))


def test_what_is_not_a_picture_is_named(run: Path, photos: list[Path], tmp_path: Path) -> None:
    opened = load(run, device="cpu")
    with pytest.raises(ImageError, match=r"none\.jpg: no such file"):
        opened.caption([photos[0], tmp_path / "none.jpg"])
    with pytest.raises(TypeError, match="features are a tensor; not float"):
        opened.caption([1.5])
    with pytest.raises(ValueError, match="features"):
        opened.caption(torch.zeros(2, 3))
