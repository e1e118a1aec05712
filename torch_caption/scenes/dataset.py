"""The built-in data set: drawn scenes, their captions, and a judge of captions.

A scene is two groups of one to four like shapes on light paper, one group to the left of the other or above it. The
groups differ in colour. Each scene has five captions in different words; all name every group's shape, colour and
count and one relation, most name sizes.

    python -m torch_caption scenes --out DIR

draws them all and writes a folder in cs231n's layout: `coco2014_captions.h5`, `coco2014_vocab.json`,
`{split}2014_vgg16_fc7.h5` (the features that `features` computes from each picture's pixels), `{split}2014_grid.h5`
(those of its places, from `grid`), `{split}2014_images.txt`, `images/`, `manifest.json` (the recipe), and `scenes.json`
(what was drawn, for the judge). The splits train, val and
test share no composition, that is, no scene of the same shapes, colours, sizes, counts and relation. In `novel` each
scene holds a pair of shape and colour that occurs in none of the others, though the shape and the colour do.
All of it is a function of the seed.

How a caption is judged. It is right if it says all of the scene and nothing wrong:

1. It is read as phrases: objects ("two small red circles"), relations ("to the left of"), places ("on the left"), and
   the few words between them. Case and punctuation do not matter.
2. The phrases must make a sentence that states one relation of two objects, such as "A above B", "there are A above B",
   "above B there are A", "B with A above it", "A at the top and B at the bottom". Anything left over is a fault: a
   word out of place, an object too many, a second relation.
3. Each object must name its shape, colour and count, and the two must be the scene's two groups, each once. A size may
   be left out, but not be wrong. The relation must be true. Number must agree: "two circle", "a star are" and "a star
   with two circles above them" are faults; "a orange star" is not.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from torch_caption.data import manifest as manifests
from torch_caption.data.vocabulary import SPECIAL, Vocabulary
from torch_caption.errors import ConfigError, DataError
from torch_caption.io import cache_folder, files
from torch_caption.io.exits import is_watched
from torch_caption.io.text import read_json, shown
from torch_caption.scenes.draw import COLOURS, COUNTS, RELATIONS, SHAPES, SIDE, SIZES, Group, Scene, draw, place
from torch_caption.scenes.judge import Verdict, judge
from torch_caption.scenes.phrases import CAPTIONS, LONGEST, lexicon, tell
from torch_caption.scenes.pixels import FEATURE_DIM, GRID, PLACE_DIM, features, grid

__all__ = [
    "SPLITS",
    "Group",
    "Scene",
    "Score",
    "Verdict",
    "check",
    "ensure",
    "features",
    "grid",
    "judge",
    "load",
    "score",
    "tell",
]

RECIPE = 2  # goes up whenever the same seed would give other data
SPLITS = {"train": 5000, "val": 400, "test": 800, "novel": 400}  # scenes
SCENES = "scenes.json"
MANIFEST = "manifest.json"  # written last


@dataclass(frozen=True)
class Score:
    """How many captions are right; `faults` counts the kinds of fault; `verdicts` has them all by image index."""

    right: int
    total: int
    faults: Counter[str]
    verdicts: dict[int, Verdict]


def ensure(
    cache: str | Path | None = None,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    progress: bool = True,
) -> Path:
    """The folder of the scenes, drawn on first use.

    A folder is made beside its place and moved there when whole; of two processes one draws and the other waits.

    Args:
        cache: where the folder goes; the environment's TORCH_CAPTION_CACHE or the user's cache folder without it.
        seed: of everything random.
        sizes: scenes of each split, SPLITS without it.
        progress: show a progress bar on stderr.

    Raises:
        ConfigError: a size is not positive, a split is unknown or missing, or the seed is negative.
        OSError: the folder cannot be written, or the user has none.
    """
    sizes = dict(SPLITS if sizes is None else sizes)
    if sizes.keys() != SPLITS.keys() or any(size < 1 for size in sizes.values()):
        raise ConfigError(f"sizes must give a positive number for each of {', '.join(SPLITS)}, not {sizes}")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, not {seed}")
    elsewhere = f"set {cache_folder.CACHE} to a folder that can be written" if cache is None else ""
    cache = cache_folder.cache() if cache is None else Path(cache)
    size = "" if sizes == SPLITS else "-" + "-".join(str(sizes[split]) for split in SPLITS)
    directory = cache / f"scenes-{RECIPE}-seed{seed}{size}"
    if _whole(directory):
        return directory
    with files.writing(cache, f"make room, or {elsewhere}" if elsewhere else "make room", elsewhere):
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{directory.name}.lock"):
            if not _whole(directory):
                _replace(directory, seed, sizes, progress)
    return directory


def load(directory: str | Path) -> dict[str, list[Scene]] | None:
    """The scenes of each split in the order of their images; None if the directory holds no scenes.

    Raises:
        InputError: `scenes.json` is not what `ensure` writes.
    """
    path = Path(directory) / SCENES
    if not path.is_file():
        return None
    return _load(path, path.stat().st_mtime_ns)


def score(directory: str | Path, split: str, captions: Mapping[int, str]) -> Score | None:
    """Judge captions of a split, by image index; None if the directory holds no scenes.

    Raises:
        DataError: there is no such split or no such image.
    """
    splits = load(directory)
    if splits is None:
        return None
    if split not in splits:
        raise DataError(f"{Path(directory) / SCENES}: no split {split!r}; there are {', '.join(splits)}")
    drawn = splits[split]
    outside = next((idx for idx in captions if not 0 <= idx < len(drawn)), None)
    if outside is not None:
        raise DataError(f"{Path(directory) / SCENES}: {split} has {len(drawn)} scenes, none with the index {outside}")
    verdicts = {idx: judge(caption, drawn[idx]) for idx, caption in captions.items()}
    kinds = Counter(kind for v in verdicts.values() for kind in {fault.split(":")[0] for fault in v.faults})
    return Score(sum(v.right for v in verdicts.values()), len(verdicts), kinds, verdicts)


def check(directory: str | Path, manifest: Mapping[str, Any], images: Mapping[str, int]) -> None:
    """Raise DataError unless `score` can judge captions of the splits; a directory that holds no scenes need not.

    Args:
        manifest: the directory's; `scenes.json` is held against what it says of it.
        images: how many there are in each split.
    """
    path = Path(directory) / SCENES
    if path.is_file():
        manifests.check(path.parent, manifest, [path])
    for split, count in images.items():
        score(directory, split, {count - 1: ""})


@lru_cache(maxsize=4)
def _load(path: Path, _: int) -> dict[str, list[Scene]]:
    content = read_json(path)
    try:
        return {split: [_scene(entry) for entry in entries] for split, entries in content.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not the scenes of this recipe ({type(error).__name__}: {error})") from None


def _scene(entry: Mapping) -> Scene:
    first, second = (
        Group(**{**entry[key], "places": tuple(tuple(row) for row in entry[key]["places"])})
        for key in ("first", "second")
    )
    scene = Scene(first, second, entry["relation"])
    group = SHAPES, COLOURS, SIZES, COUNTS
    for value, known in zip(scene.composition, (*group, RELATIONS, *group), strict=True):
        if value not in known:
            raise DataError(f"{shown(value)} is none of {', '.join(map(str, known))}")
    return scene


def _whole(directory: Path) -> bool:
    """Whether a folder has every file. A build cut short never bears the name; a folder cleaned out may."""
    files = ["coco2014_captions.h5", "coco2014_vocab.json", SCENES, MANIFEST, "images"]
    files += [f"{split}2014_{name}" for split in SPLITS for name in ("vgg16_fc7.h5", "grid.h5", "images.txt")]
    return all((directory / name).exists() for name in files)


def _replace(directory: Path, seed: int, sizes: Mapping[str, int], progress: bool) -> None:
    """Draw into a folder beside `directory` and move it there; what earlier attempts left behind goes."""
    prefix = f".{directory.name}."
    for leftover in (p for p in directory.parent.glob(f"{prefix}*") if p.is_dir()):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
    try:
        _build(fresh, seed, sizes, progress)
        fresh.chmod(0o755)
        shutil.rmtree(directory, ignore_errors=True)
        fresh.rename(directory)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _build(directory: Path, seed: int, sizes: Mapping[str, int], progress: bool) -> None:
    held_out, compositions = _compose(seed, sizes)
    vocabulary = Vocabulary((*SPECIAL, *lexicon()))
    vocabulary.save(directory / "coco2014_vocab.json")
    images = directory / "images"
    images.mkdir()
    drawn: dict[str, list[dict]] = {}
    hidden = not (progress and is_watched())
    with (
        tqdm(total=sum(sizes.values()), desc="drawing scenes", unit="scene", disable=hidden) as bar,
        h5py.File(directory / "coco2014_captions.h5", "w") as file,
    ):
        for number, split in enumerate(SPLITS):
            names = [f"{split}_{idx:05}.png" for idx in range(sizes[split])]
            tasks = ([seed, number, idx] for idx in range(sizes[split]))
            made = []
            for result in map(_make, compositions[split], tasks, (images / name for name in names)):
                made.append(result)
                bar.update()
            described, captions, vectors, grids = zip(*made, strict=True)
            drawn[split] = list(map(asdict, described))
            file[f"{split}_captions"] = _rows([caption for texts in captions for caption in texts], vocabulary)
            file[f"{split}_image_idxs"] = np.repeat(np.arange(len(made), dtype=np.int32), CAPTIONS)
            for kind, stored in {"vgg16_fc7": vectors, "grid": grids}.items():
                with h5py.File(directory / f"{split}2014_{kind}.h5", "w") as other:
                    other["features"] = np.stack(stored)
            (directory / f"{split}2014_images.txt").write_text("\n".join(names) + "\n", encoding="utf-8", newline="\n")
    (directory / SCENES).write_text(json.dumps(drawn), encoding="utf-8", newline="\n")
    files = {path.name: path for path in directory.iterdir() if path.is_file()}
    manifest = _manifest(seed, sizes, held_out) | {manifests.ENTRY: manifests.marks(files)}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8", newline="\n")


def _make(scene: Scene, seeds: Sequence[int], path: Path) -> tuple[Scene, list[str], np.ndarray, np.ndarray]:
    """Place, draw and word one scene with random numbers of its own: the scene, its captions, features, places."""
    rng = np.random.default_rng(seeds)
    scene = place(scene, rng)
    picture = draw(scene, rng)
    Image.fromarray(picture).save(path, compress_level=1)
    return scene, tell(scene, rng), features(picture), grid(picture).astype(np.float16)


def _rows(captions: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    """(M, LONGEST + 2) int32: <START>, the words, <END>, then <NULL>, which is id 0."""
    rows = np.zeros((len(captions), LONGEST + 2), dtype=np.int32)
    for row, caption in zip(rows, captions, strict=True):
        ids = vocabulary.encode(caption.split())
        row[: len(ids)] = ids
    return rows


def _manifest(seed: int, sizes: Mapping[str, int], held_out: set[tuple[str, str]]) -> dict:
    return {
        "data": "scenes",
        "recipe": RECIPE,
        "seed": seed,
        "sizes": dict(sizes),
        "encoder": "torch_caption.data.scenes.features",
        "feature_dim": FEATURE_DIM,
        "grid": {"encoder": "torch_caption.data.scenes.grid", "feature_dim": PLACE_DIM, "places": [GRID, GRID]},
        "picture_side": SIDE,
        "images": "images",
        "held_out": sorted(f"{colour} {shape}" for shape, colour in held_out),
    }


def _compose(seed: int, sizes: Mapping[str, int]) -> tuple[set[tuple[str, str]], dict[str, list[Scene]]]:
    """The pairs of shape and colour kept for `novel`, and the scenes of each split, no two alike, without places."""
    rng = np.random.default_rng([seed, len(SPLITS)])
    held_out = set(zip(SHAPES, (COLOURS[i] for i in rng.permutation(len(COLOURS))), strict=False))
    seen: set[tuple] = set()
    scenes: dict[str, list[Scene]] = {split: [] for split in sizes}
    for scene in _endless(rng):
        novel = any((group.shape, group.colour) in held_out for group in scene.groups)
        short = [split for split in SPLITS if len(scenes[split]) < sizes[split] and (split == "novel") == novel]
        if short and scene.composition not in seen:
            seen.add(scene.composition)
            scenes[short[0]].append(scene)
        if all(len(scenes[split]) == size for split, size in sizes.items()):
            break
    return held_out, scenes


def _endless(rng: np.random.Generator) -> Iterator[Scene]:
    while True:
        colours = rng.choice(len(COLOURS), 2, replace=False)
        first, second = (
            Group(SHAPES[rng.integers(len(SHAPES))], COLOURS[c], SIZES[rng.integers(len(SIZES))], _count(rng))
            for c in colours
        )
        yield Scene(first, second, RELATIONS[rng.integers(len(RELATIONS))])


def _count(rng: np.random.Generator) -> int:
    return COUNTS[rng.integers(len(COUNTS))]
