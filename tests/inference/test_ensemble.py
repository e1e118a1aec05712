"""`load` of several checkpoints: an LSTM over vectors and attention over grids, on splits and on new pictures."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.tiny_data import write_tiny
from tests.helpers.training import SMALL
from torch_caption import CheckpointError, ConfigError, DataError, DecodingOptions, load
from torch_caption.checkpoints import format as checkpoints
from torch_caption.config import TrainConfig
from torch_caption.inference import photographs
from torch_caption.inference.captions import caption_images
from torch_caption.inference.load import Captioner, EnsembleCaptioner
from torch_caption.model.ensemble import Ensemble
from torch_caption.training.trainer import fit

METHODS = [DecodingOptions(), DecodingOptions(beam_size=3), DecodingOptions(samples=4, temperature=0.9)]


@pytest.fixture(scope="module")
def runs(scenes_run: tuple[Path, Path]) -> list[Path]:
    """Runs on scenes: an RNN and two LSTM layers over vectors, attention over grids."""
    directory, run = scenes_run
    config = TrainConfig(data=str(directory), out=run.parent, lr=0.02, **SMALL)
    others = [{"cell_type": "lstm", "num_layers": 2, "hidden_dim": 9}, {"cell_type": "attention"}]
    return [run, *(fit(dataclasses.replace(config, **other)) for other in others)]


def with_words(run: Path, path: Path, words: list[str]) -> Path:
    saved = checkpoints.load(run / "best.safetensors")
    checkpoints.save(path, dataclasses.replace(saved, words=words))
    return path


@pytest.mark.parametrize("options", METHODS, ids=DecodingOptions.resolve)
def test_a_model_with_itself_captions_as_alone(scenes_run: tuple[Path, Path], options: DecodingOptions) -> None:
    directory, run = scenes_run
    alone, both = load(run, device="cpu"), load([run, str(run)], device="cpu")
    assert isinstance(both, Captioner)
    pictures = [directory / "images" / f"test_0000{k}.png" for k in range(3)]
    for one, other in zip(alone.captions(pictures, options), both.captions(pictures, options), strict=True):
        assert [caption.text for caption in one] == [caption.text for caption in other]
        assert [c.log_prob for c in one] == pytest.approx([c.log_prob for c in other], abs=1e-6, rel=1e-6)
    features = torch.cat([alone.read([picture], failed=None).features_of([0]) for picture in pictures])
    assert [*map(str, alone.caption(features))] == [*map(str, both.caption(features))]


def test_each_member_has_its_own_features(runs: list[Path]) -> None:
    """The captions are those of `Ensemble` with features that each member has alone, on a split and on its pictures."""
    opened = load(runs, device="cpu")
    each = [load(run, device="cpu") for run in runs]
    assert opened.name == " + ".join(str(run / "best.safetensors") for run in runs)
    options = opened.options_for(DecodingOptions(beam_size=3, n_best=1))
    split, images = opened.open_data()["test"], [4, 0, 2]
    features = [one.open_data()["test"].features_of(images) for one in each]
    assert [x.dim() for x in features] == [2, 2, 4]
    decoded = Ensemble([one.model for one in each]).decode(features, options)
    texts = [opened.vocabulary.decode(words) for words in decoded.words[:, 0].tolist()]
    found = caption_images(opened.model, split, images, options)
    assert [found[idx][0].text for idx in images] == texts
    assert [found[idx][0].log_prob for idx in images] == pytest.approx(decoded.log_probs[:, 0].tolist())
    pictures = [split.image_path(idx) for idx in images]
    assert [caption.text for caption in opened.caption(pictures, options)] == texts


def test_members_with_one_recipe_share_its_features(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = load(runs, device="cpu")
    first, second, third = opened.open_data()["test"].features_of_each([1])
    assert first is second is not third
    made: list[int] = []
    for maker in {*opened.members}:
        one, make = maker.extractor, maker.extractor.make
        monkeypatch.setattr(one, "make", lambda pictures, make=make: made.append(len(pictures)) or make(pictures))
    pictures = [Image.new("RGB", (64, 64), "red")] * (photographs.BATCH + 1)
    assert len(opened.captions(pictures)) == len(pictures)
    assert made == [photographs.BATCH] * 2 + [1] * 2


def test_other_vocabularies_are_one_error_with_both_files(runs: list[Path], tmp_path: Path) -> None:
    words = checkpoints.load(runs[0] / "best.safetensors").words
    swapped = with_words(runs[1], tmp_path / "x.safetensors", [*words[:-2], words[-1], words[-2]])
    message = f"{swapped}: not the vocabulary of {runs[0] / 'best.safetensors'}: word {len(words) - 2} is"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load([runs[0], swapped], device="cpu")
    with pytest.raises(ConfigError, match="no checkpoint is named"):
        load([])
    assert not isinstance(load(runs[:1]), EnsembleCaptioner)


def test_the_data_of_all_members_has_the_same_images(tmp_path: Path) -> None:
    made = []
    for name, cell_type in {"vectors": "lstm", "grids": "attention"}.items():
        data = write_tiny(tmp_path / name, grids=cell_type == "attention", pictures=True)
        made.append(fit(TrainConfig(data=str(data), out=tmp_path / "runs", cell_type=cell_type, max_length=6, **SMALL)))
    split = load(made, device="cpu").open_data()["val"]
    assert [x.dim() for x in split.features_of_each([3, 5])] == [2, 4]
    names = tmp_path / "grids" / "val2014_images.txt"
    names.write_text("".join(reversed(names.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")
    with pytest.raises(DataError, match=r"vectors and .*grids, the data of an ensemble, differ in the images of val;"):
        load(made, device="cpu").open_data()
    shutil.rmtree(tmp_path / "vectors")
    assert [x.dim() for x in load(made, device="cpu").open_data(str(tmp_path / "grids"))["val"].features_of_each([0])]
