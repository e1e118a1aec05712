"""The built-in scenes: their folder, and scores of captions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.helpers.data_directory import contents
from tests.helpers.small_scenes import SMALL, TINY
from torch_caption.__main__ import main
from torch_caption.data.dataset import open_data
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.errors import ConfigError, DataError, InputError
from torch_caption.scenes import dataset as scenes
from torch_caption.scenes.dataset import Verdict, ensure, judge, judge_split, load, make_captions
from torch_caption.scenes.draw import COLOURS, SHAPES
from torch_caption.scenes.phrases import OPPOSITE

MANY = {"train": 300, "val": 50, "test": 100, "novel": 50}


# The folder


def test_the_loader_reads_the_folder(directory):
    data = open_data(directory)
    assert {name: split.num_images for name, split in data.splits.items()} == SMALL
    assert {name: len(split) for name, split in data.splits.items()} == {k: 5 * n for k, n in SMALL.items()}
    assert data.manifest["encoder"] == "torch_caption.data.scenes.features"
    assert data.manifest["feature_dim"] == data["train"].feature_dim
    path = data["novel"].image_path(7)
    assert path is not None
    assert path.is_file()


def test_stored_captions_describe_their_scenes(directory):
    vocabulary = Vocabulary.load(directory / "coco2014_vocab.json")
    drawn = load(directory)
    assert drawn is not None
    with h5py.File(directory / "coco2014_captions.h5") as file:
        for split in SMALL:
            rows, images = file[f"{split}_captions"][:], file[f"{split}_image_idxs"][:]
            assert rows.dtype == images.dtype == np.int32
            assert vocabulary.word_to_idx["<UNK>"] not in rows
            for row, image in zip(rows, images, strict=True):
                assert judge(vocabulary.decode(row), drawn[split][image]) == Verdict()


def test_the_data_are_a_function_of_the_seed(tmp_path):
    first, again = (ensure(tmp_path / name, sizes=TINY, progress=False) for name in ("a", "b"))
    assert first.name == again.name
    assert contents(first) == contents(again)
    other = ensure(tmp_path / "a", seed=1, sizes=TINY, progress=False)
    assert other.name != first.name
    same = {path.name for path in first.glob("*.txt")} | {"coco2014_vocab.json"}
    assert {file for file, content in contents(first).items() if content == contents(other)[file]} == same


def test_splits_share_no_composition():
    _, splits = scenes._compose(0, MANY)
    assert {split: len(drawn) for split, drawn in splits.items()} == MANY
    compositions = [scene.composition for drawn in splits.values() for scene in drawn]
    mirrored = {(c[5:], OPPOSITE[str(c[4])], c[:4]) for c in compositions}
    assert len(set(compositions)) == len(compositions)
    assert not mirrored & {(c[:4], c[4], c[5:]) for c in compositions}


def test_no_other_split_has_a_pair_of_novel():
    held_out, splits = scenes._compose(0, MANY)
    pairs = {split: [{(g.shape, g.colour) for g in s.groups} for s in drawn] for split, drawn in splits.items()}
    assert len(held_out) == len({shape for shape, _ in held_out}) == len({colour for _, colour in held_out}) == 8
    assert all(scene & held_out for scene in pairs["novel"])
    assert not any(scene & held_out for split in ("train", "val", "test") for scene in pairs[split])
    seen = set().union(*pairs["train"])
    assert {shape for shape, _ in seen} == set(SHAPES)
    assert {colour for _, colour in seen} == set(COLOURS)


def test_a_folder_is_drawn_once_and_again_if_a_file_is_missing(tmp_path, monkeypatch):
    made = ensure(tmp_path, sizes=TINY, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(scenes, "_build", None)
        assert ensure(tmp_path, sizes=TINY, progress=False) == made
    (made / "scenes.json").unlink()
    assert ensure(tmp_path, sizes=TINY, progress=False) == made
    assert load(made) is not None


def test_a_failed_build_leaves_no_folder(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "_manifest", fail)
        with pytest.raises(RuntimeError, match="no more"):
            ensure(tmp_path, sizes=TINY, progress=False)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert scenes._complete(ensure(tmp_path, sizes=TINY, progress=False))


BUILD = """
import sys
from pathlib import Path
from torch_caption.scenes.dataset import ensure
print(ensure(sys.argv[1], sizes=dict(zip(("train", "val", "test", "novel"), map(int, sys.argv[2:]))), progress=False))
"""


def build(cache: Path, *sizes: int) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILD, str(cache), *map(str, sizes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")


@pytest.mark.exhaustive
def test_a_killed_build_is_made_again(tmp_path):
    with build(tmp_path, 3000, 1, 1, 1) as process:
        while not list(tmp_path.glob(".scenes*/images/train_00005.png")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    names = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert len(names) == 1
    assert names[0].startswith(".scenes")
    (tmp_path / names[0]).rename(tmp_path / f".scenes-{scenes.VERSION}-seed0-40-8-12-12.dead")
    ensure(tmp_path, sizes=SMALL, progress=False)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [f"scenes-{scenes.VERSION}-seed0-40-8-12-12"]


@pytest.mark.exhaustive
def test_of_two_builds_at_once_one_waits(tmp_path):
    processes = [build(tmp_path, *TINY.values()) for _ in range(2)]
    paths = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(paths) == 1
    assert scenes._complete(Path(paths.pop()))


@pytest.mark.parametrize("sizes", [{"train": 5}, {**SMALL, "val": 0}])
def test_invalid_sizes_are_refused(sizes, tmp_path):
    with pytest.raises(ConfigError, match="sizes must give"):
        ensure(tmp_path, sizes=sizes)


def test_the_folder_is_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_CAPTION_CACHE", str(tmp_path / "mine"))
    assert ensure(sizes=TINY, progress=False).parent == tmp_path / "mine"


def test_a_given_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="file: could not be written: ") as refused:
        ensure(tmp_path / "file", sizes=SMALL, progress=False)
    assert "TORCH_CAPTION_CACHE" not in str(refused.value)


def test_the_command_draws_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scenes, "SPLITS", dict.fromkeys(SMALL, 2))
    assert main(["scenes", "--out", str(tmp_path), "--seed", "4"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert scenes._complete(Path(out[0]))
    assert out[1] == "train 2, val 2, test 2, novel 2 scenes; 64 words"
    (tmp_path / "file").touch()
    assert main(["scenes", "--out", str(tmp_path / "file")]) == 2
    assert main(["scenes", "--out", str(tmp_path), "--seed", "-1"]) == 2
    assert [line[:6] for line in capsys.readouterr().err.splitlines() if line.startswith("error")] == ["error:"] * 2


# Scores


def test_scores_count_right_captions_and_kinds_of_faults(directory):
    rng = np.random.default_rng(0)
    right = {idx: make_captions(scene, rng)[0] for idx, scene in enumerate(load(directory)["test"])}
    full = judge_split(directory, "test", right)
    assert (full.right, full.total, sum(full.faults.values())) == (12, 12, 0)
    part = judge_split(directory, "test", {3: right[3], 4: "", 5: "a dog"})
    assert (part.right, part.total) == (1, 3)
    assert part.faults["object left out"] == 2
    assert part.verdicts[3].right
    assert not part.verdicts[5].right


def test_invalid_scores_are_refused(directory, tmp_path):
    assert judge_split(tmp_path, "test", {0: "a dog"}) is None  # no scenes
    with pytest.raises(DataError, match="no split 'tests'; there are train, val, test, novel"):
        judge_split(directory, "tests", {})
    with pytest.raises(DataError, match="test has 12 scenes, none with the index 12"):
        judge_split(directory, "test", {12: ""})
    for content in ("{", "[]", json.dumps({"test": [{"first": 1}]})):
        (tmp_path / "scenes.json").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=r"scenes\.json: not (scenes|JSON)"):
            judge_split(tmp_path, "test", {})


@pytest.mark.parametrize(
    ("key", "value"),
    [("relation", None), ("first shape", "no such"), ("second colour", []), ("first size", {}), ("second count", 7)],
)
def test_a_scene_with_an_unknown_value_is_refused(directory, tmp_path, key, value):
    content = json.loads((directory / "scenes.json").read_text(encoding="utf-8"))
    *group, last = key.split()
    scene = content["test"][3]
    (scene[group[0]] if group else scene)[last] = value
    (tmp_path / "scenes.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"scenes\.json: not scenes of this version \(\w+: .* is not one of ") as raised:
        load(tmp_path)
    assert repr(value) in str(raised.value)


def test_scenes_are_checked_against_images_and_manifest(directory, tmp_path):
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    images = {"test": 12, "novel": 12}
    scenes.check(directory, manifest, images)
    scenes.check(tmp_path, {}, images)  # no scenes
    with pytest.raises(DataError, match="test has 12 scenes, none with the index 12"):
        scenes.check(directory, manifest, images | {"test": 13})
    with pytest.raises(DataError, match="no split 'other'"):
        scenes.check(directory, manifest, images | {"other": 1})
    content = (directory / "scenes.json").read_bytes()
    path = tmp_path / "scenes.json"
    path.write_bytes(content.replace(b'"red"', b'"blue"', 1))
    with pytest.raises(DataError, match=r"scenes\.json: .* manifest\.json has"):
        scenes.check(tmp_path, manifest, images)
