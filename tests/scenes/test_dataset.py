"""The built-in scenes: what is drawn, said, seen and judged."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from torch_caption.__main__ import main
from torch_caption.data.dataset import open_data
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.errors import ConfigError, DataError, InputError
from torch_caption.scenes import dataset as scenes
from torch_caption.scenes.dataset import (
    Group,
    Scene,
    Verdict,
    ensure,
    features,
    grid,
    judge,
    judge_split,
    load,
    make_captions,
)
from torch_caption.scenes.draw import COLOURS, MARGIN, PALETTE, SHAPES, SIDE, arrange, draw
from torch_caption.scenes.phrases import (
    LONGEST,
    NUMBERS,
    OPPOSITE,
    PLURAL,
    POSITION_WORDS,
    RELATION_WORDS,
    SIZE_WORDS,
    lexicon,
)

SMALL = {"train": 40, "val": 8, "test": 12, "novel": 12}
MANY = {"train": 300, "val": 50, "test": 100, "novel": 50}
TWO = Scene(Group("circle", "red", "small", 2), Group("square", "blue", "large", 1), "above")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure(tmp_path_factory.mktemp("cache"), sizes=SMALL, progress=False)


@pytest.fixture(scope="module")
def composed() -> list[Scene]:
    """Hundreds of scenes, without places."""
    _, splits = scenes._compose(3, MANY)
    return [scene for split in splits.values() for scene in split]


@pytest.fixture(scope="module")
def placed(composed: list[Scene]) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [arrange(scene, rng) for scene in composed]


@pytest.fixture(scope="module")
def captions(composed: list[Scene]) -> list[tuple[Scene, str]]:
    rng = np.random.default_rng(0)
    return [(scene, caption) for scene in composed for caption in make_captions(scene, rng)]


def arrays(directory: Path) -> dict[str, np.ndarray]:
    """Every HDF5 dataset of a folder."""
    found = {}
    for path in sorted(directory.glob("*.h5")):
        with h5py.File(path) as file:
            found |= {f"{path.name}/{name}": file[name][:] for name in file}
    return found


# The folder


def test_loader_opens_it(directory: Path) -> None:
    data = open_data(directory)
    assert {name: split.num_images for name, split in data.splits.items()} == SMALL
    assert {name: len(split) for name, split in data.splits.items()} == {k: 5 * n for k, n in SMALL.items()}
    assert data.manifest["encoder"] == "torch_caption.data.scenes.features"
    assert data.manifest["feature_dim"] == data["train"].feature_dim
    path = data["novel"].image_path(7)
    assert path is not None
    assert path.is_file()


def test_stored_captions_are_right(directory: Path) -> None:
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


def test_same_seed_same_bytes(directory: Path, tmp_path: Path) -> None:
    again = ensure(tmp_path, sizes=SMALL, progress=False)
    assert again.name == directory.name
    first, second = arrays(directory), arrays(again)
    assert first.keys() == second.keys()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    for path in [*directory.glob("*.json"), *directory.glob("*.txt"), *directory.glob("images/*.png")]:
        assert path.read_bytes() == (again / path.relative_to(directory)).read_bytes(), path.name


def test_other_seed_other_scenes(directory: Path, tmp_path: Path) -> None:
    other = ensure(tmp_path, seed=1, sizes=SMALL, progress=False)
    assert other.name != directory.name
    first, second = arrays(directory), arrays(other)
    assert all(not np.array_equal(first[name], second[name]) for name in first if not name.endswith("image_idxs"))


def test_splits_share_no_composition() -> None:
    _, splits = scenes._compose(0, MANY)
    assert {split: len(drawn) for split, drawn in splits.items()} == MANY
    compositions = [scene.composition for drawn in splits.values() for scene in drawn]
    mirrored = {(c[5:], OPPOSITE[str(c[4])], c[:4]) for c in compositions}
    assert len(set(compositions)) == len(compositions)
    assert not mirrored & {(c[:4], c[4], c[5:]) for c in compositions}


def test_novel_pairs_are_seen_nowhere_else() -> None:
    held_out, splits = scenes._compose(0, MANY)
    pairs = {split: [{(g.shape, g.colour) for g in s.groups} for s in drawn] for split, drawn in splits.items()}
    assert len(held_out) == len({shape for shape, _ in held_out}) == len({colour for _, colour in held_out}) == 8
    assert all(scene & held_out for scene in pairs["novel"])
    assert not any(scene & held_out for split in ("train", "val", "test") for scene in pairs[split])
    seen = set().union(*pairs["train"])
    assert {shape for shape, _ in seen} == set(SHAPES)
    assert {colour for _, colour in seen} == set(COLOURS)


def test_folder_is_made_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "_build", None)
    assert ensure(directory.parent, sizes=SMALL, progress=False) == directory


def test_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "_manifest", fail)
        with pytest.raises(RuntimeError, match="no more"):
            ensure(tmp_path, sizes=SMALL, progress=False)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert scenes._complete(ensure(tmp_path, sizes=SMALL, progress=False))


def test_cleaned_out_folder_is_made_again(tmp_path: Path) -> None:
    made = ensure(tmp_path, sizes=SMALL, progress=False)
    (made / "scenes.json").unlink()
    assert ensure(tmp_path, sizes=SMALL, progress=False) == made
    assert load(made) is not None


BUILD = """
import sys
from pathlib import Path
from torch_caption.scenes.dataset import ensure
print(ensure(sys.argv[1], sizes=dict(zip(("train", "val", "test", "novel"), map(int, sys.argv[2:]))), progress=False))
"""


def build(cache: Path, *sizes: int) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILD, str(cache), *map(str, sizes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")


def test_killed_build_is_made_again(tmp_path: Path) -> None:
    with build(tmp_path, 3000, 1, 1, 1) as process:
        while not list(tmp_path.glob(".scenes*/images/train_00005.png")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    names = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert len(names) == 1
    assert names[0].startswith(".scenes"), "half a folder bears the name of a whole one"
    (tmp_path / names[0]).rename(tmp_path / f".scenes-{scenes.VERSION}-seed0-40-8-12-12.dead")
    ensure(tmp_path, sizes=SMALL, progress=False)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [f"scenes-{scenes.VERSION}-seed0-40-8-12-12"]


def test_two_builds_at_once(tmp_path: Path) -> None:
    processes = [build(tmp_path, *SMALL.values()) for _ in range(2)]
    paths = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(paths) == 1
    assert scenes._complete(Path(paths.pop()))


@pytest.mark.parametrize("sizes", [{"train": 5}, {**SMALL, "val": 0}, {**SMALL, "more": 1}])
def test_bad_sizes(sizes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sizes must give"):
        ensure(tmp_path, sizes=sizes)


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CAPTION_CACHE", str(tmp_path / "mine"))
    assert ensure(sizes=SMALL, progress=False).parent == tmp_path / "mine"
    monkeypatch.delenv("TORCH_CAPTION_CACHE")
    monkeypatch.setattr("torch_caption.io.cache_folder.cache", lambda: tmp_path / "own")
    assert ensure(sizes=SMALL, progress=False).parent == tmp_path / "own"


def test_a_folder_that_was_named_is_told_without_the_environments(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="file: could not be written: ") as refused:
        ensure(tmp_path / "file", sizes=SMALL, progress=False)
    assert "TORCH_CAPTION_CACHE" not in str(refused.value)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scenes, "SPLITS", dict.fromkeys(SMALL, 2))
    assert main(["scenes", "--out", str(tmp_path), "--seed", "4"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert scenes._complete(Path(out[0]))
    assert out[1] == "train 2, val 2, test 2, novel 2 scenes; 64 words"
    assert len(out) == 2 + 4 * 6
    (tmp_path / "file").touch()
    assert main(["scenes", "--out", str(tmp_path / "file")]) == 2
    assert main(["scenes", "--out", str(tmp_path), "--seed", "-1"]) == 2
    assert [line[:6] for line in capsys.readouterr().err.splitlines() if line.startswith("error")] == ["error:"] * 2


# Drawing


def box(group: Group) -> np.ndarray:
    """((left, top), (right, bottom)) of the discs that hold a group's shapes."""
    places = np.array(group.places)
    return np.stack([(places[:, :2] - places[:, 2:3]).min(0), (places[:, :2] + places[:, 2:3]).max(0)])


def holds(relation: str, a: Group, b: Group) -> bool:
    """Whether all of a lies beyond all of b on that side, told from where the shapes stand."""
    axis = 0 if relation in ("left of", "right of") else 1
    first, second = (box(a), box(b)) if relation in ("left of", "above") else (box(b), box(a))
    return bool(first[1, axis] < second[0, axis])


def test_judge_agrees_with_places(placed: list[Scene]) -> None:
    for scene in placed:
        a, b = scene.groups
        for relation, ways in RELATION_WORDS.items():
            for one, other in ((a, b), (b, a)):
                said = f"{name(one)} {ways[0]} {name(other)}"
                assert judge(said, scene).right == holds(relation, one, other), (said, scene)


def test_exactly_one_relation_holds(placed: list[Scene]) -> None:
    for scene in placed:
        assert [r for r in RELATION_WORDS if holds(r, *scene.groups)] == [scene.relation]


def test_shapes_keep_apart_and_inside(placed: list[Scene]) -> None:
    for scene in placed:
        discs = np.array([row for group in scene.groups for row in group.places])
        assert ((discs[:, :2] - discs[:, 2:3]) >= MARGIN - 0.02).all()
        assert ((discs[:, :2] + discs[:, 2:3]) <= SIDE - MARGIN + 0.02).all()
        apart = np.hypot(*(discs[:, None, :2] - discs[None, :, :2]).transpose(2, 0, 1))
        assert (apart - discs[:, 2] - discs[:, 2:3] > 1)[~np.eye(len(discs), dtype=bool)].all()


def test_colours_are_the_palette(placed: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    for scene in placed[:60]:
        picture = draw(scene, rng)
        assert picture.shape == (SIDE, SIDE, 3)
        assert picture.dtype == np.uint8
        assert np.median(picture, axis=(0, 1)).min() > 215
        for group in (group for group in scene.groups if group.shape != "moon"):
            for x, y, *_ in group.places:
                ink = picture[round(y - 0.5), round(x - 0.5)].astype(int)
                assert np.abs(ink - PALETTE[group.colour]).max() <= 15


# Captions


def name(group: Group) -> str:
    return f"{NUMBERS[group.count]} {group.colour} {group.shape if group.count == 1 else PLURAL[group.shape]}"


def test_five_captions_in_different_words(composed: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    for scene in composed:
        told = make_captions(scene, rng)
        assert len(set(told)) == len(told) == 5
        assert max(len(caption.split()) for caption in told) <= LONGEST


def test_captions_use_the_lexicon_and_all_of_it(captions: list[tuple[Scene, str]]) -> None:
    assert {word for _, caption in captions for word in caption.split()} == set(lexicon())


def test_captions_are_right(captions: list[tuple[Scene, str]]) -> None:
    assert not [(caption, judge(caption, scene)) for scene, caption in captions if not judge(caption, scene).right]


def test_captions_say_all(captions: list[tuple[Scene, str]]) -> None:
    for scene, caption in captions:
        words = caption.split()
        for group in scene.groups:
            assert group.colour in words
            assert {group.shape, PLURAL[group.shape]} & set(words)
            assert {NUMBERS[group.count], *(("a", "an") if group.count == 1 else ())} & set(words)


# The judge

SIZE_OF = {word: size for size, ways in SIZE_WORDS.items() for word in ways}
NOUNS = {*SHAPES, *PLURAL.values()}
MORE = {"a": "two", "an": "two", "one": "two", "two": "three", "three": "four", "four": "two"}
TURNED = {w: v for k, ways in RELATION_WORDS.items() for w, v in zip(ways, RELATION_WORDS[OPPOSITE[k]], strict=False)}
TURNED |= {"beneath": "above"} | {words: POSITION_WORDS[OPPOSITE[k]] for k, words in POSITION_WORDS.items()}
TURNED |= {"above": "under", "over": "below"}


def places_of(words: list[str], kind: set[str] | dict[str, str]) -> list[int]:
    return [at for at, word in enumerate(words) if word in kind]


def swapped(words: list[str], at: int, word: str) -> str:
    return " ".join([*words[:at], word, *words[at + 1 :]])


def other_colour(words: list[str], rng: np.random.Generator) -> str:
    at = int(rng.choice(places_of(words, PALETTE)))
    return swapped(words, at, str(rng.choice([c for c in COLOURS if c != words[at]])))


def other_shape(words: list[str], rng: np.random.Generator) -> str:
    at = int(rng.choice(places_of(words, NOUNS)))
    kind = SHAPES if words[at] in SHAPES else tuple(PLURAL.values())
    return swapped(words, at, str(rng.choice([s for s in kind if s != words[at]])))


def other_count(words: list[str], rng: np.random.Generator) -> str:
    """Another count, with a noun of that number."""
    noun = int(rng.choice(places_of(words, NOUNS)))
    at = max(i for i in places_of(words, MORE) if i < noun)
    words = [*words[:noun], PLURAL.get(words[noun], words[noun]), *words[noun + 1 :]]
    return swapped(words, at, MORE[words[at]])


def other_size(words: list[str], rng: np.random.Generator) -> str | None:
    at = places_of(words, SIZE_OF)
    return swapped(words, at[0], "big" if SIZE_OF[words[at[0]]] == "small" else "tiny") if at else None


def other_relation(words: list[str], rng: np.random.Generator) -> str:
    text = " ".join(words)
    said = max((way for way in TURNED if f" {way} " in f" {text} "), key=len)
    return f" {text} ".replace(f" {said} ", f" {TURNED[said]} ").strip()


def object_dropped(words: list[str], rng: np.random.Generator) -> str:
    noun = int(rng.choice(places_of(words, NOUNS)))
    start = max(i for i in places_of(words, MORE) if i < noun)
    return " ".join([*words[:start], *words[noun + 1 :]])


def object_added(words: list[str], rng: np.random.Generator) -> str:
    return " ".join([*words, "and", "a", str(rng.choice(COLOURS)), str(rng.choice(SHAPES))])


def colour_dropped(words: list[str], rng: np.random.Generator) -> str:
    at = int(rng.choice(places_of(words, PALETTE)))
    return " ".join(words[:at] + words[at + 1 :])


def count_dropped(words: list[str], rng: np.random.Generator) -> str:
    noun = int(rng.choice(places_of(words, NOUNS)))
    at = max(i for i in places_of(words, MORE) if i < noun)
    return " ".join(words[:at] + words[at + 1 :])


def number_of_noun(words: list[str], rng: np.random.Generator) -> str:
    at = int(rng.choice(places_of(words, NOUNS)))
    singular = {plural: shape for shape, plural in PLURAL.items()}
    return swapped(words, at, PLURAL.get(words[at]) or singular[words[at]])


def word_twice(words: list[str], rng: np.random.Generator) -> str:
    at = int(rng.integers(len(words)))
    return " ".join([*words[: at + 1], *words[at:]])


def word_left_dangling(words: list[str], rng: np.random.Generator) -> str:
    return " ".join([*words, str(rng.choice(lexicon()))])


MUTATIONS = {
    other_colour: "wrong colour",
    other_shape: "wrong shape",
    other_count: "wrong count",
    other_size: "wrong size",
    other_relation: "wrong relation",
    object_dropped: "object left out",
    object_added: "object too many",
    colour_dropped: "colour left out",
    count_dropped: "",
    number_of_noun: "number disagrees",
    word_twice: "",
    word_left_dangling: "",
}


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_one_thing_wrong(mutate: Callable, captions: list[tuple[Scene, str]]) -> None:
    rng = np.random.default_rng(1)
    judged = 0
    for scene, caption in captions[::3]:
        changed = mutate(caption.split(), rng)
        if changed is None:
            continue
        assert changed != caption
        verdict = judge(changed, scene)
        assert not verdict.right, (caption, changed)
        assert any(fault.startswith(MUTATIONS[mutate]) for fault in verdict.faults), (changed, verdict)
        judged += 1
    assert judged > 400


@pytest.mark.parametrize(
    "caption",
    [
        "Two small red circles above a blue square.",
        "there is a blue square below two little red circles",
        "two red circles are over one big blue square",
        "below two red circles there is a blue square",
        "beneath two red circles is a blue square",
        "a large blue square with two red circles above it",
        "a blue square and above it two red circles",
        "i see two red small circles above one blue square",
        "at the top two red circles and at the bottom a blue square",
        "two red circles are at the top and a blue square is at the bottom",
    ],
)
def test_sentences_it_understands(caption: str) -> None:
    assert judge(caption, TWO) == Verdict()


@pytest.mark.parametrize(
    ("caption", "faults"),
    [
        (
            "",
            [
                "no sentence: it is empty",
                "object left out: two small red circles",
                "object left out: one large blue square",
            ],
        ),
        ("two red circles", ["no relation: none is stated", "object left out: one large blue square"]),
        ("two red circles above", ["no sentence: two red circles above", "object left out: one large blue square"]),
        ("two green circles above a blue square", ["wrong colour: two green circles for two small red circles"]),
        ("two red circles under a blue square", ["wrong relation: under"]),
        ("two red circles left of a blue square", ["wrong relation: left of"]),
        ("two red circles above a tiny blue square", ["wrong size: a tiny blue square for one large blue square"]),
        ("two red circles above two red circles", None),
        ("two red circles is above a blue square", ["number disagrees: is for two red circles"]),
        ("there are a blue square below two red circles", ["number disagrees: there are for a blue square"]),
        ("a blue square with two red circles above them", ["number disagrees: them for a blue square"]),
        ("two red circles above a blue square <UNK>", ["word out of place: <unk>"]),
        ("two red circles above a blue square below two red circles", None),
        ("two red circles at the top and a blue square at the top", ["wrong relation: at the top"]),
        ("two red red circles above a blue square", None),
        ("two one red circles above a blue square", None),
        ("red circles above the blue square", None),
    ],
)
def test_faults_in_plain_words(caption: str, faults: list[str] | None) -> None:
    verdict = judge(caption, TWO)
    assert not verdict.right
    assert faults is None or list(verdict.faults) == faults


@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(st.sampled_from([*lexicon(), "<UNK>", "<START>", "dog"]), max_size=25).map(" ".join))
def test_gibberish_is_wrong(caption: str) -> None:
    verdict = judge(caption, TWO)
    assert not verdict.right
    assert all(isinstance(fault, str) and fault for fault in verdict.faults)


def test_very_long_caption() -> None:
    assert not judge("a red circle above " * 20_000, TWO).right


# Features


def test_features_of_the_file_are_the_stored_ones(directory: Path) -> None:
    for split, size in SMALL.items():
        with h5py.File(directory / f"{split}2014_vgg16_fc7.h5") as file:
            stored = file["features"][:]
        names = (directory / f"{split}2014_images.txt").read_text(encoding="utf-8").split()
        assert stored.shape == (size, scenes.FEATURE_DIM)
        assert stored.dtype == np.float32
        for row, file_name in zip(stored, names, strict=True):
            with Image.open(directory / "images" / file_name) as picture:
                np.testing.assert_array_equal(features(np.asarray(picture)), row)


def sketch(scene: Scene, seed: int = 0) -> np.ndarray:
    return draw(scene, np.random.default_rng(seed))


def test_features_depend_on_pixels(placed: list[Scene]) -> None:
    scene = placed[0]
    before = features(sketch(scene))
    (x, y, radius, angle), *others = scene.first.places
    changes = {
        "moved": replace(scene.first, places=((x + 6, y - 5, radius, angle), *others)),
        "coloured": replace(
            scene.first, colour=next(c for c in COLOURS if c not in (scene.first.colour, scene.second.colour))
        ),
        "shaped": replace(scene.first, shape=SHAPES[SHAPES.index(scene.first.shape) - 1]),
        "dropped": replace(scene.first, places=tuple(others)),
    }
    for change, group in changes.items():
        after = features(sketch(replace(scene, first=group)))
        assert np.abs(after - before).max() > 0.1, change
    assert np.array_equal(before, features(sketch(scene)))


def test_features_tell_what_is_drawn(placed: list[Scene]) -> None:
    """The likeness of each of the two layers is greatest to its own colour and shape, the right way round."""
    rows = [features(sketch(scene, seed)) for seed, scene in enumerate(placed[:150])]
    half = scenes.FEATURE_DIM - 74
    right = []
    for row, scene in zip(rows, placed, strict=False):
        for layer, group in zip(row[:half].reshape(2, -1), scene.groups, strict=True):
            right += [COLOURS[layer[:8].argmax()] == group.colour, SHAPES[layer[-8:].argmax()] == group.shape]
    assert np.mean(right) > 0.98


def test_features_take_any_size_and_any_picture(placed: list[Scene]) -> None:
    picture = sketch(placed[1])
    larger = np.asarray(Image.fromarray(picture).resize((288, 288), Image.Resampling.NEAREST))
    assert features(larger).shape == (scenes.FEATURE_DIM,)
    rng = np.random.default_rng(0)
    odd = [
        np.zeros((1, 1, 3)),
        np.full((96, 96, 3), 255),
        rng.integers(0, 256, (50, 200, 3)),
        rng.integers(0, 256, (300, 7, 3)),
    ]
    for other in (*odd, *(np.full((20, 20, 3), ink) for ink in PALETTE.values())):
        seen = features(other.astype(np.uint8))
        assert seen.dtype == np.float32
        assert np.isfinite(seen).all()
        assert np.abs(seen).max() < 10


@pytest.mark.parametrize("picture", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)])
def test_features_refuse_what_is_no_picture(picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8, not"):
        features(picture)


# Places


def test_places_of_the_file_are_those_of_the_pictures(directory: Path) -> None:
    data = open_data(directory, grids=True)
    assert data.manifest["grid"]["feature_dim"] == data["train"].feature_dim == scenes.POSITION_DIM
    assert tuple(data.manifest["grid"]["places"]) == data["train"].grid == (scenes.GRID, scenes.GRID)
    for split, size in SMALL.items():
        with h5py.File(directory / f"{split}2014_grid.h5") as file:
            stored = file["features"][:]
        assert stored.shape == (size, scenes.POSITION_DIM, scenes.GRID, scenes.GRID)
        assert stored.dtype == np.float16
        for row, file_name in zip(stored, (directory / f"{split}2014_images.txt").read_text().split(), strict=True):
            with Image.open(directory / "images" / file_name) as picture:
                np.testing.assert_array_equal(grid(np.asarray(picture)).astype(np.float16), row)


def of_group(places: np.ndarray, group: Group) -> np.ndarray:
    """What the place with the most ink of a group's colour sees."""
    ink = places[COLOURS.index(group.colour)]
    return places[:, *np.unravel_index(ink.argmax(), ink.shape)]


def test_places_know_how_many_there_are(placed: list[Scene]) -> None:
    """The soft histogram of pieces is greatest at the group's count."""
    right = []
    for seed, scene in enumerate(placed[:150]):
        places = grid(sketch(scene, seed))
        right += [of_group(places, g)[8:12].argmax() + 1 == g.count for g in scene.groups]
    assert np.mean(right) > 0.98


def test_places_see_what_is_near_them(placed: list[Scene]) -> None:
    """A shape that goes changes the places about it and no others, but for how many there are."""
    scene = placed[0]
    (x, y, radius, _), *others = scene.first.places
    changed = grid(sketch(scene)) - grid(sketch(replace(scene, first=replace(scene.first, places=tuple(others)))))
    changed[8:12] = 0
    rows, columns = np.nonzero(np.abs(changed).max(0) > 0.05)
    reach = radius + 1.5 * SIDE / scenes.GRID + 4
    assert len(rows) >= 4
    for row, column in zip(rows, columns, strict=True):
        centre = (np.array([column, row]) + 0.5) * SIDE / scenes.GRID
        assert np.abs(centre - (x, y)).max() < reach


def test_places_know_shapes(placed: list[Scene]) -> None:
    """At the place with the most ink of its colour, the likeness to a group's shape is mostly the greatest."""
    right = []
    for seed, scene in enumerate(placed[:150]):
        places = grid(sketch(scene, seed))
        for group in scene.groups:
            like = of_group(places, group)[12:-10].reshape(len(SHAPES), -1).sum(1)
            right.append(SHAPES[like.argmax()] == group.shape)
    assert np.mean(right) > 0.75  # chance is 0.125


def test_places_take_any_picture_and_refuse_what_is_none(placed: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    for other in (np.zeros((1, 1, 3)), np.full((96, 96, 3), 255), rng.integers(0, 256, (50, 200, 3))):
        seen = grid(other.astype(np.uint8))
        assert seen.shape == (scenes.POSITION_DIM, scenes.GRID, scenes.GRID)
        assert np.isfinite(seen).all()
        assert np.abs(seen).max() < 20
    with pytest.raises(ValueError, match="uint8, not"):
        grid(np.zeros((9, 9), np.uint8))


# Scores


def test_score(directory: Path) -> None:
    drawn = load(directory)
    assert drawn is not None
    rng = np.random.default_rng(0)
    said = {idx: make_captions(scene, rng)[0] for idx, scene in enumerate(drawn["test"])}
    full = judge_split(directory, "test", said)
    assert full is not None
    assert (full.right, full.total, sum(full.faults.values())) == (12, 12, 0)
    part = judge_split(directory, "test", {3: said[3], 4: "", 5: "a dog"})
    assert part is not None
    assert (part.right, part.total) == (1, 3)
    assert part.faults["object left out"] == 2
    assert part.verdicts[3].right
    assert not part.verdicts[5].right


def test_score_elsewhere(tmp_path: Path) -> None:
    assert judge_split(tmp_path, "test", {0: "a dog"}) is None


def test_score_refuses(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'tests'; there are train, val, test, novel"):
        judge_split(directory, "tests", {})
    with pytest.raises(DataError, match="test has 12 scenes, none with the index 12"):
        judge_split(directory, "test", {12: ""})
    for content in ("{", "[]", json.dumps({"test": [{"first": 1}]}), "[" * 100_000):
        (tmp_path / "scenes.json").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=r"scenes\.json: not (scenes|JSON)"):
            judge_split(tmp_path, "test", {})


@pytest.mark.parametrize("place", ["relation", "first shape", "second colour", "first size", "second count"])
@pytest.mark.parametrize("value", [None, 7, "no such", [], {}])
def test_a_scene_of_what_is_never_drawn_is_refused(directory: Path, tmp_path: Path, place: str, value: object) -> None:
    content = json.loads((directory / "scenes.json").read_text(encoding="utf-8"))
    *key, last = place.split()
    scene = content["test"][3]
    (scene[key[0]] if key else scene)[last] = value
    (tmp_path / "scenes.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"scenes\.json: not scenes of this version \(\w+: .* is not one of ") as raised:
        load(tmp_path)
    assert repr(value) in str(raised.value)


def test_what_could_not_be_judged_is_found_before(directory: Path, tmp_path: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    images = {"test": 12, "novel": SMALL["novel"]}
    scenes.check(directory, manifest, images)
    scenes.check(tmp_path, {}, images)  # no scenes
    with pytest.raises(DataError, match="test has 12 scenes, none with the index 12"):
        scenes.check(directory, manifest, images | {"test": 13})
    with pytest.raises(DataError, match="no split 'other'"):
        scenes.check(directory, manifest, images | {"other": 1})
    content = (directory / "scenes.json").read_bytes()
    path = tmp_path / "scenes.json"
    path.write_bytes(content.replace(b'"red"', b'"blue"', 1))  # which nothing but the manifest can tell
    scenes.check(tmp_path, {}, images)
    with pytest.raises(DataError, match=r"scenes\.json: .* manifest\.json has"):
        scenes.check(tmp_path, manifest, images)
    path.write_bytes(content)
    scenes.check(tmp_path, manifest, images)
