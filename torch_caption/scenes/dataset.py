"""The built-in dataset: generated scenes, their captions, and a judge of captions.

A scene has two groups of one to four equal shapes on a light background, one group left of the other or above it. The
groups differ in colour. Each scene has five captions in different words; all name both groups' shape, colour and count
and one relation, most name sizes.

    python -m torch_caption scenes --out DIR

generates them and writes a folder in cs231n's layout: `coco2014_captions.h5`, `coco2014_vocab.json`,
`{split}2014_vgg16_fc7.h5` (the output of `features` for each picture), `{split}2014_grid.h5` (the output of `grid`),
`{split}2014_images.txt`, `images/`, `manifest.json` (the recipe), and `scenes.json` (the scenes, for the judge). The
splits train, val and test share no composition, that is, no scene of the same shapes, colours, sizes, counts and
relation. In `novel` each scene contains a pair of shape and colour that no other split contains, though the shape and
the colour occur separately. Everything is a function of the seed.

Rules of the judge. A caption is correct if it describes the scene completely and without an error:

1. It is parsed into phrases: objects ("two small red circles"), relations ("to the left of"), positions ("on the
   left"), and a few words between them. Case and punctuation are ignored.
2. The phrases must form a sentence that states one relation of two objects, such as "A above B", "there are A above B",
   "above B there are A", "B with A above it", "A at the top and B at the bottom". Remaining words are a fault: a word
   out of place, an additional object, a second relation.
3. Each object must name its shape, colour and count, and the two must be the scene's two groups, each once. A size may
   be omitted, but not be wrong. The relation must be true. Number must agree: "two circle", "a star are" and "a star
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
from torch_caption.io.exits import is_interactive
from torch_caption.io.text import read_json, shown
from torch_caption.scenes.draw import COLOURS, COUNTS, RELATIONS, SHAPES, SIDE, SIZES, Group, Scene, arrange, draw
from torch_caption.scenes.judge import Verdict, judge
from torch_caption.scenes.phrases import CAPTIONS, LONGEST, lexicon, make_captions
from torch_caption.scenes.pixels import FEATURE_DIM, GRID, POSITION_DIM, features, grid

__all__ = [
    "SPLITS",
    "Group",
    "Scene",
    "Verdict",
    "Verdicts",
    "check",
    "ensure",
    "features",
    "grid",
    "judge",
    "judge_split",
    "load",
    "make_captions",
]

VERSION = 2  # incremented with each change of the data of a seed
SPLITS = {"train": 5000, "val": 400, "test": 800, "novel": 400}  # scenes
SCENES = "scenes.json"
MANIFEST = "manifest.json"  # written last


@dataclass(frozen=True)
class Verdicts:
    """The number of correct captions; `faults` counts the kinds of fault; `verdicts` has all by image index."""

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
    """The folder of the scenes, generated on first use.

    It is written under a temporary name and renamed when complete; of two processes one generates and the other waits.

    Args:
        cache: the parent folder; by default TORCH_CAPTION_CACHE of the environment or the user's cache folder.
        seed: of everything random.
        sizes: scenes of each split, by default SPLITS.
        progress: show a progress bar on stderr.

    Raises:
        ConfigError: a size is not positive, a split is unknown or missing, or the seed is negative.
        OSError: the folder cannot be written, or the user has no cache folder.
    """
    sizes = dict(SPLITS if sizes is None else sizes)
    if sizes.keys() != SPLITS.keys() or any(size < 1 for size in sizes.values()):
        raise ConfigError(f"sizes must give a positive number for each of {', '.join(SPLITS)}, not {sizes}")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, not {seed}")
    elsewhere = f"set {cache_folder.CACHE} to a folder that can be written" if cache is None else ""
    cache = cache_folder.cache() if cache is None else Path(cache)
    size = "" if sizes == SPLITS else "-" + "-".join(str(sizes[split]) for split in SPLITS)
    directory = cache / f"scenes-{VERSION}-seed{seed}{size}"
    if _complete(directory):
        return directory
    with files.writing(cache, f"free disk space, or {elsewhere}" if elsewhere else "free disk space", elsewhere):
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{directory.name}.lock"):
            if not _complete(directory):
                _replace(directory, seed, sizes, progress)
    return directory


def load(directory: str | Path) -> dict[str, list[Scene]] | None:
    """The scenes of each split in the order of their images; None if the directory has no scenes.

    Raises:
        InputError: `scenes.json` is not a file of `ensure`.
    """
    path = Path(directory) / SCENES
    if not path.is_file():
        return None
    return _load(path, path.stat().st_mtime_ns)


def judge_split(directory: str | Path, split: str, captions: Mapping[int, str]) -> Verdicts | None:
    """Judge captions of a split, by image index; None if the directory has no scenes.

    Raises:
        DataError: there is no such split or no such image.
    """
    splits = load(directory)
    if splits is None:
        return None
    if split not in splits:
        raise DataError(f"{Path(directory) / SCENES}: no split {split!r}; there are {', '.join(splits)}")
    scenes = splits[split]
    outside = next((idx for idx in captions if not 0 <= idx < len(scenes)), None)
    if outside is not None:
        raise DataError(f"{Path(directory) / SCENES}: {split} has {len(scenes)} scenes, none with the index {outside}")
    verdicts = {idx: judge(caption, scenes[idx]) for idx, caption in captions.items()}
    kinds = Counter(kind for v in verdicts.values() for kind in {fault.split(":")[0] for fault in v.faults})
    return Verdicts(sum(v.right for v in verdicts.values()), len(verdicts), kinds, verdicts)


def check(directory: str | Path, manifest: Mapping[str, Any], images: Mapping[str, int]) -> None:
    """Raise DataError unless `judge_split` can judge captions of the splits; accepts a directory without scenes.

    Args:
        manifest: the directory's; `scenes.json` is checked against its entry.
        images: their number in each split.
    """
    path = Path(directory) / SCENES
    if path.is_file():
        manifests.check(path.parent, manifest, [path])
    for split, count in images.items():
        judge_split(directory, split, {count - 1: ""})


@lru_cache(maxsize=4)
def _load(path: Path, _: int) -> dict[str, list[Scene]]:
    content = read_json(path)
    try:
        return {split: [_scene(entry) for entry in entries] for split, entries in content.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not scenes of this version ({type(error).__name__}: {error})") from None


def _scene(entry: Mapping) -> Scene:
    first, second = (
        Group(**{**entry[key], "places": tuple(tuple(row) for row in entry[key]["places"])})
        for key in ("first", "second")
    )
    scene = Scene(first, second, entry["relation"])
    group = SHAPES, COLOURS, SIZES, COUNTS
    for value, known in zip(scene.composition, (*group, RELATIONS, *group), strict=True):
        if value not in known:
            raise DataError(f"{shown(value)} is not one of {', '.join(map(str, known))}")
    return scene


def _complete(directory: Path) -> bool:
    """Whether a folder has all files. An interrupted build has another name, but files may have been deleted."""
    files = ["coco2014_captions.h5", "coco2014_vocab.json", SCENES, MANIFEST, "images"]
    files += [f"{split}2014_{name}" for split in SPLITS for name in ("vgg16_fc7.h5", "grid.h5", "images.txt")]
    return all((directory / name).exists() for name in files)


def _replace(directory: Path, seed: int, sizes: Mapping[str, int], progress: bool) -> None:
    """Generate into a temporary folder and rename it to `directory`; removes those of interrupted attempts."""
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
    written: dict[str, list[dict]] = {}
    hidden = not (progress and is_interactive())
    with (
        tqdm(total=sum(sizes.values()), desc="generating scenes", unit="scene", disable=hidden) as bar,
        h5py.File(directory / "coco2014_captions.h5", "w") as file,
    ):
        for number, split in enumerate(SPLITS):
            names = [f"{split}_{idx:05}.png" for idx in range(sizes[split])]
            tasks = ([seed, number, idx] for idx in range(sizes[split]))
            made = []
            for result in map(_make, compositions[split], tasks, (images / name for name in names)):
                made.append(result)
                bar.update()
            scenes, captions, vectors, grids = zip(*made, strict=True)
            written[split] = list(map(asdict, scenes))
            file[f"{split}_captions"] = _rows([caption for texts in captions for caption in texts], vocabulary)
            file[f"{split}_image_idxs"] = np.repeat(np.arange(len(made), dtype=np.int32), CAPTIONS)
            for kind, stored in {"vgg16_fc7": vectors, "grid": grids}.items():
                with h5py.File(directory / f"{split}2014_{kind}.h5", "w") as other:
                    other["features"] = np.stack(stored)
            (directory / f"{split}2014_images.txt").write_text("\n".join(names) + "\n", encoding="utf-8", newline="\n")
    (directory / SCENES).write_text(json.dumps(written), encoding="utf-8", newline="\n")
    files = {path.name: path for path in directory.iterdir() if path.is_file()}
    manifest = _manifest(seed, sizes, held_out) | {manifests.ENTRY: manifests.marks(files)}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8", newline="\n")


def _make(scene: Scene, seeds: Sequence[int], path: Path) -> tuple[Scene, list[str], np.ndarray, np.ndarray]:
    """Arrange, draw and caption one scene with its own random numbers: the scene, its captions, features, grid."""
    rng = np.random.default_rng(seeds)
    scene = arrange(scene, rng)
    picture = draw(scene, rng)
    Image.fromarray(picture).save(path, compress_level=1)
    return scene, make_captions(scene, rng), features(picture), grid(picture).astype(np.float16)


def _rows(captions: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    """(M, LONGEST + 2) int32: <START>, the words, <END>, then <NULL>, id 0."""
    rows = np.zeros((len(captions), LONGEST + 2), dtype=np.int32)
    for row, caption in zip(rows, captions, strict=True):
        ids = vocabulary.encode(caption.split())
        row[: len(ids)] = ids
    return rows


def _manifest(seed: int, sizes: Mapping[str, int], held_out: set[tuple[str, str]]) -> dict:
    return {
        "data": "scenes",
        "recipe": VERSION,
        "seed": seed,
        "sizes": dict(sizes),
        "encoder": "torch_caption.data.scenes.features",
        "feature_dim": FEATURE_DIM,
        "grid": {"encoder": "torch_caption.data.scenes.grid", "feature_dim": POSITION_DIM, "places": [GRID, GRID]},
        "picture_side": SIDE,
        "images": "images",
        "held_out": sorted(f"{colour} {shape}" for shape, colour in held_out),
    }


def _compose(seed: int, sizes: Mapping[str, int]) -> tuple[set[tuple[str, str]], dict[str, list[Scene]]]:
    """The pairs of shape and colour reserved for `novel`, and the distinct compositions of each split."""
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
