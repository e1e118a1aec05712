"""Photographs and their captions into a data directory that `train.py` learns from.

    python -m torch_caption prepare --images DIR --annotations FILE... --out DIR

Annotations are in COCO's format, Karpathy's, Flickr8k's or Kaggle's. What is written is cs231n's layout, with what made
the features beside it, so that `sample.py` can do the same to a new photograph:

    coco2014_captions.h5  coco2014_vocab.json  {split}2014_vgg16_fc7.h5  {split}2014_images.txt   as cs231n's
    {split}2014_urls.txt         if the annotations have URLs
    {split}2014_vgg16_fc7_pca.h5, pca.npz        with --pca: the vectors projected, and mean and components
    {split}2014_grid.h5, grid_pca.npz            with --grid: features (images, F, a, a) for attention, and their PCA
    captions_{split}2014.json    all captions as they were written, image by image in the order of the rows
    manifest.json                encoder, layers, weights with their SHA-256, transform, projections, versions
    skipped.txt                  photographs that could not be read, and why, if there are any

All of it is made in `DIR/.preparing` and moved to its place when it is whole, the captions last, without which the
directory is not taken for data. A run that was stopped goes on where it was when the same command is given again, to
the same files, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm
from tyro.conf import FlagCreatePairsOff, arg

from torch_caption import __version__
from torch_caption.data import caption_files, checks, dataset
from torch_caption.data import manifest as manifests
from torch_caption.data.caption_files import Photograph
from torch_caption.data.projection import Projection
from torch_caption.data.tokenizer import TOKENIZERS, is_unspaced
from torch_caption.data.vocabulary import NULL, SPECIAL, Vocabulary
from torch_caption.encoders import pca
from torch_caption.encoders import torchvision_encoder as features
from torch_caption.encoders.torchvision_encoder import Encoder
from torch_caption.errors import ConfigError, DataError
from torch_caption.io.exits import is_watched
from torch_caption.io.files import replace_text
from torch_caption.io.program import typed
from torch_caption.io.text import flag_of, printable, strange
from torch_caption.prepare.encoding import GRID_PCA, Encoding, Progress, Wanted
from torch_caption.prepare.rows import write_hdf5

CAPTIONS, VOCABULARY, MANIFEST = "coco2014_captions.h5", "coco2014_vocab.json", "manifest.json"
VECTOR_PCA = "pca.npz"
SKIPPED = "skipped.txt"
WORK = ".preparing"


@dataclass(frozen=True)
class PrepareConfig:
    """Make a data directory from photographs and their captions."""

    images: Annotated[tuple[str, ...], arg(metavar="[SPLIT=]DIR...")] = ()
    """Folder of the photographs, or one a split: train=DIR val=DIR."""
    annotations: Annotated[tuple[str, ...], arg(metavar="[SPLIT=]FILE...")] = ()
    """Captions as COCO's annotations, Karpathy's dataset_*.json, Flickr8k.token.txt or Kaggle's captions.txt. Of
    several files each is the split that its name holds (train, val or test), unless it is said: val=FILE. One file
    alone has the splits that it says itself (Karpathy's), those of --splits, or is parted at random into train and
    val."""
    splits: Annotated[tuple[str, ...], arg(metavar="[SPLIT=]FILE...")] = ()
    """Lists of photographs, one name a line, that part one file of annotations, such as Flickr_8k.trainImages.txt; the
    split is the one that a list's name holds (dev is val), unless it is said."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """The directory to make."""
    recover_pca: Annotated[Path | None, arg(metavar="DIR")] = None
    """Do something else: find the PCA of a directory that has features with and without it, such as cs231n's, and put
    it there, so that new photographs can be captioned."""

    allow_truncated: Annotated[bool, FlagCreatePairsOff] = False
    """Take JPEGs whose end is missing, grey where it is; each is a warning. Without it they are left out."""

    encoder: Literal[tuple(features.BACKBONES)] = "resnet50"  # type: ignore[valid-type]
    """The network that looks at the photographs."""
    weights: Annotated[str, arg(metavar="default|random|FILE")] = "default"
    """Its weights: torchvision's best (downloaded once), random ones, or a file with a state dict."""
    transform: Literal["auto", "imagenet", "caffe"] = "auto"
    """How photographs are brought to it: as torchvision says of its own weights, and as imagenet for others; resized to
    256, cropped to 224 and normalised (imagenet); the same in blue, green, red, for Caffe's VGG-16 (caffe), which is
    what --recover-pca takes unless it is told otherwise."""
    pca: Annotated[float | None, arg(metavar="K")] = None
    """Project the vectors onto so many principal components of train, or, below 1, onto as few as keep this share of
    the variance. Both forms are written."""
    grid: bool = False
    """Write spatial grids too, which attention looks at."""
    grid_pca: Annotated[float | None, arg(metavar="K")] = None
    """Project the grids, position by position, in the same way. Only projected ones are written."""
    grid_dtype: Literal["float16", "float32"] = "float16"
    """Precision in which grids are stored."""

    tokenizer: Literal[tuple(TOKENIZERS)] = "words"  # type: ignore[valid-type]
    """How captions are split into tokens: words, parted by blanks and punctuation; characters, of scripts without
    blanks such as Chinese and Thai (other words stay whole; --max-words then counts characters); whitespace, for
    captions that another program has split, taken as they are. Scores and rewards of the directory use the same."""
    vocabulary: Annotated[Path | None, arg(metavar="FILE")] = None
    """A vocabulary to use, such as cs231n's coco2014_vocab.json."""
    min_count: int = 5
    """Without --vocabulary, the words are those that occur so often in the captions of train."""
    max_words: int = 15
    """Captions of more words are left out."""
    val_share: float = 0.1
    """Share of the photographs that become val, where one file of annotations is parted at random."""
    seed: int = 0
    """Decides that choice, and random weights."""

    batch_size: int = features.BATCH
    """Photographs that are encoded together."""
    workers: int = 2
    """Threads that read photographs ahead."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""

    def check(self) -> None:
        """Raise ConfigError, naming the flag, on the first value that cannot be used."""
        needed = {"--images": self.images, "--annotations": self.annotations, "--out": self.out}
        missing = [] if self.recover_pca else [flag for flag, value in needed.items() if not value]
        if missing:
            raise ConfigError(f"{', '.join(missing)}: name what to prepare, or use --recover-pca DIR")
        least = {"min_count": 1, "max_words": 1, "batch_size": 1, "workers": 1, "seed": 0}
        most = {"max_words": checks.LONGEST - 2, "seed": 2**63 - 1}  # <START> and <END> are columns too
        for name, at_least in least.items():
            value = getattr(self, name)
            if value < at_least:
                raise ConfigError(f"{flag_of(name)} must be at least {at_least}, not {value}")
            if value > most.get(name, value):
                raise ConfigError(f"{flag_of(name)} must be at most {most[name]}, not {value}")
        if not 0 < self.val_share < 1:
            raise ConfigError(f"--val-share must be above 0 and below 1, not {self.val_share}")
        for flag, size in {"--pca": self.pca, "--grid-pca": self.grid_pca}.items():
            if size is not None:
                pca.check_size(size, flag)
        if self.grid_pca is not None and not self.grid:
            raise ConfigError("--grid-pca projects grids: give --grid as well")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device cuda: PyTorch finds no GPU here")

    @property
    def computes_on(self) -> str:
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Captions:
    """Captions as ids.

    Attributes:
        vocabulary: their words.
        rows: of each split (M, max_words + 2) int32.
        places: of each split (M,) the place of each caption's photograph.
        too_long, empty: how many were left out.
    """

    vocabulary: Vocabulary
    rows: dict[str, np.ndarray]
    places: dict[str, np.ndarray]
    too_long: int
    empty: int


def prepare(config: PrepareConfig) -> Path:
    """Do as the configuration says, and return the directory.

    Raises:
        UsageError, InputError: a setting, the annotations, the photographs or the weights cannot be used, or the
            directory holds something else.
        OSError: the directory cannot be written.
    """
    config.check()
    if config.recover_pca is not None:
        return recover_pca(config, config.recover_pca)
    assert config.out is not None
    started = time.monotonic()
    folders = caption_files.named_folders(config.images)
    _check_kept(config.out, folders)
    splits = caption_files.read_splits(config.annotations, config.val_share, config.seed, config.splits)
    _warn_of_script(splits, config)
    captions = encode_captions(splits, config)
    splits = caption_files.locate(splits, folders)
    _tell_captions(splits, captions, config)
    encoder = features.build(
        config.encoder, config.weights, transform=config.transform, device=config.computes_on, seed=config.seed
    )
    print(f"encoder   {encoder.name}, {_says(encoder.weights)}, on {config.computes_on}", flush=True)
    settings = _settings(config, encoder, splits, captions)
    if _complete(config.out, settings):
        shutil.rmtree(config.out / WORK, ignore_errors=True)
        print(f"{config.out} is complete: nothing to do")
        return config.out
    work = config.out / WORK
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        with lock.acquire(timeout=0):
            _make(config, work, encoder, splits, captions, settings)
    except Timeout:
        raise DataError(f"{config.out}: another process prepares it") from None
    shutil.rmtree(work)
    _tell_end(config.out, time.monotonic() - started)
    return config.out


def _check_kept(out: Path, folders: Mapping[str | None, Path]) -> None:
    """Raise DataError where the manifest could not hold the name of a folder of photographs."""
    for folder in folders.values():
        unkept = strange(_seen_from(out, folder))
        if unkept:
            raise DataError(f"--images {printable(folder)}: {unkept!r} in its name is in no text; rename the folder")


def _make(
    config: PrepareConfig,
    work: Path,
    encoder: Encoder,
    splits: dict[str, list[Photograph]],
    captions: Captions,
    settings: str,
) -> None:
    """All that takes long: encode, then write, then move into place; each goes on where an earlier run was."""
    progress = Progress.load(work)
    if progress is not None and progress.settings != settings:
        raise DataError(
            f"{work}: of a run with other settings or other photographs that was stopped; repeat its command, or "
            "remove the folder"
        )
    encoding = Encoding(work, encoder, _wanted(config), progress or Progress(settings))
    ready = work / "ready"
    if not (ready / CAPTIONS).exists():  # it is written last, and moved last
        _check_components(config, encoding, len(splits["train"]))
        _check_room(config, work, encoding, splits)
        if progress is not None:
            print(f"goes on   after {sum(progress.done.values()):,} photographs", flush=True)
        encoding.run(splits, lambda line: tqdm.write(line, file=sys.stderr))
        _write(config, ready, encoding, encoder, splits, captions)
    for path in sorted(ready.iterdir(), key=lambda path: path.name == CAPTIONS):
        path.replace(work.parent / path.name)


def _wanted(config: PrepareConfig) -> Wanted:
    return Wanted(
        config.grid, config.grid_pca, config.grid_dtype, config.batch_size, config.workers, config.allow_truncated
    )


def _settings(
    config: PrepareConfig, encoder: Encoder, splits: Mapping[str, list[Photograph]], captions: Captions
) -> str:
    """A digest of all that the files depend on."""
    sizes = [None if size is None else float(size) for size in (config.pca, config.grid_pca)]
    recipe = encoder.recipe
    parts = [recipe["encoder"], recipe["weights"]["sha256"], recipe["transform"], captions.vocabulary.words]
    parts += [sizes, config.grid, config.grid_dtype, config.batch_size, config.computes_on]
    parts += [config.tokenizer] if config.tokenizer != "words" else []  # which was the only one once
    parts += ["truncated"] if config.allow_truncated else []
    digest = hashlib.sha256(json.dumps(parts).encode("utf-8"))
    for split, photographs in splits.items():
        digest.update(split.encode("utf-8") + captions.rows[split].tobytes())
        for photograph in photographs:
            content = photograph.file_name, photograph.url, photograph.captions
            digest.update(json.dumps(content).encode("utf-8"))
    return digest.hexdigest()


def _complete(out: Path, settings: str) -> bool:
    """Whether the directory is this very one already.

    Raises:
        DataError: it is another, or no directory.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: not a directory")
    if not (out / CAPTIONS).exists():
        others = [path for pattern in ("*2014_*", MANIFEST) for path in out.glob(pattern)]
        if others and not (out / WORK / "ready" / CAPTIONS).exists():  # else they are of a move that was stopped
            raise DataError(f"{others[0]}: of other data, which would be overwritten; name another --out")
        return False
    if checks.read_manifest(out / MANIFEST).get("settings") != settings:
        raise DataError(f"{out}: holds other data, or data made with other settings; name another --out")
    return True


def _check_components(config: PrepareConfig, encoding: Encoding, photographs: int) -> None:
    """Raise DataError where even all photographs of train would be too few, or the features too narrow."""
    if config.pca is not None:
        pca.check_count(config.pca, photographs, encoding.width, "--pca")
    if config.grid_pca is not None:
        width, *places = encoding.grid_shape
        pca.check_count(config.grid_pca, photographs * math.prod(places), width, "--grid-pca")


def _check_room(config: PrepareConfig, work: Path, encoding: Encoding, splits: dict[str, list[Photograph]]) -> None:
    """Raise DataError unless the disk has room for all that will be written, at the most."""
    photographs = sum(map(len, splits.values()))
    each = 2 * 4 * encoding.width * (1 if config.pca is None else 2)
    grid = int(np.prod(encoding.grid_shape))
    each += 2 * grid * np.dtype(config.grid_dtype).itemsize if config.grid else 0
    need = photographs * each
    if config.grid_pca is not None and not encoding.progress.fitted:
        need += 4 * grid * encoding.most_fitted(len(splits["train"]))
    need -= sum(path.stat().st_size for path in work.iterdir() if path.is_file())
    free = shutil.disk_usage(work).free
    if need > free:
        raise DataError(f"{work.parent}: up to {need:,} bytes will be written, but {free:,} are free; make room")


# Captions


def encode_captions(splits: Mapping[str, list[Photograph]], config: PrepareConfig) -> Captions:
    """The captions of every split as ids, by the given vocabulary or by one built from train's.

    Raises:
        DataError: a split is left without captions, or the vocabulary cannot be used.
    """
    if config.vocabulary is not None:
        vocabulary = checks.read_vocabulary(config.vocabulary)
    else:
        vocabulary = Vocabulary.build((words for _, words in _tokens(splits["train"], config)), config.min_count)
        if len(vocabulary) == len(SPECIAL):
            raise DataError(f"--min-count {config.min_count}: no word of train occurs so often")
    rows, places = {}, {}
    too_long = empty = 0
    for split, photographs in splits.items():
        most = sum(len(photograph.captions) for photograph in photographs)
        ids = np.full((most, config.max_words + 2), vocabulary.word_to_idx[NULL], np.int32)
        of = np.empty(most, np.int32)
        count = 0
        for place, words in _tokens(photographs, config):
            empty += not words
            too_long += len(words) > config.max_words
            if 0 < len(words) <= config.max_words:
                ids[count, : len(words) + 2] = vocabulary.encode(words)
                of[count] = place
                count += 1
        if not count:
            raise DataError(f"no caption of {split} has 1 to {config.max_words} words; choose another --max-words")
        rows[split], places[split] = ids[:count], of[:count]
    return Captions(vocabulary, rows, places, too_long, empty)


def _tokens(photographs: Sequence[Photograph], config: PrepareConfig) -> Iterator[tuple[int, list[str]]]:
    """The place of each caption's photograph, and its tokens."""
    tokenize = TOKENIZERS[config.tokenizer]
    for place, photograph in enumerate(photographs):
        for _, text in photograph.captions:
            yield place, tokenize(text)


# What is written


def _write(
    config: PrepareConfig,
    ready: Path,
    encoding: Encoding,
    encoder: Encoder,
    splits: dict[str, list[Photograph]],
    captions: Captions,
) -> None:
    """Write every file of the directory, its captions last."""
    shutil.rmtree(ready, ignore_errors=True)
    ready.mkdir()
    progress = encoding.progress
    projection = _write_vectors(config, ready, encoding, splits)
    if config.grid:
        for split in splits:
            with encoding.grids(split) as grids:
                write_hdf5(grids, ready / f"{split}2014_grid.h5", grids.shape, _same)
        if encoding.projection is not None:
            encoding.projection.save(ready / GRID_PCA)
    kept = {split: [photographs[place] for place in progress.kept(split)] for split, photographs in splits.items()}
    for split, photographs in kept.items():
        _write_text(ready / f"{split}2014_images.txt", [photograph.file_name for photograph in photographs])
        if any(photograph.url for photograph in photographs):
            _write_text(ready / f"{split}2014_urls.txt", [photograph.url for photograph in photographs])
        _write_json(ready / f"captions_{split}2014.json", _as_written(photographs), None)
    failed = [
        f"{split} {printable(splits[split][int(place)].file_name)}: {reason}"
        for split in splits
        for place, reason in progress.failed.get(split, {}).items()
    ]
    if failed:
        _write_text(ready / SKIPPED, failed)
    captions.vocabulary.save(ready / VOCABULARY)
    beside = ready / "captions.tmp"
    _write_captions(beside, captions, progress, kept)
    manifest = _manifest(config, encoding, encoder, projection, kept, captions)
    files = {CAPTIONS if path == beside else path.name: path for path in ready.iterdir()}
    _write_json(ready / MANIFEST, manifest | {manifests.ENTRY: manifests.marks(files)}, 1)
    beside.replace(ready / CAPTIONS)


def _write_vectors(
    config: PrepareConfig, ready: Path, encoding: Encoding, splits: Mapping[str, list[Photograph]]
) -> Projection | None:
    """Write the vectors, and, with --pca, the projected ones and their projection, which is returned."""
    projection = None
    if config.pca is not None:
        moments = pca.Moments(encoding.width)
        with encoding.vectors("train") as vectors:
            for block in tqdm(vectors.blocks(), desc="PCA of vectors", unit="block", disable=not is_watched()):
                moments.update(torch.from_numpy(block))
        projection = pca.fit(moments, config.pca, "--pca")
        projection.save(ready / VECTOR_PCA)
    for split in splits:
        with encoding.vectors(split) as vectors:
            write_hdf5(vectors, ready / f"{split}2014_vgg16_fc7.h5", vectors.shape, _same)
            if projection is not None:
                shape = (projection.components.shape[1],)
                write_hdf5(vectors, ready / f"{split}2014_vgg16_fc7_pca.h5", shape, _projected(projection))
    return projection


def _same(block: np.ndarray) -> np.ndarray:
    return block


def _projected(projection: Projection) -> Callable[[np.ndarray], np.ndarray]:
    return lambda block: projection(torch.from_numpy(block)).numpy()


def _write_captions(path: Path, captions: Captions, progress: Progress, kept: Mapping[str, list[Photograph]]) -> None:
    """The captions of the photographs that have a row, under the rows' numbers."""
    with h5py.File(path, "w") as file:
        for split in kept:
            places = progress.kept(split)
            number = np.full(progress.done[split], -1, np.int32)
            number[places] = np.arange(len(places), dtype=np.int32)
            image_idxs = number[captions.places[split]]
            file[f"{split}_captions"] = captions.rows[split][image_idxs >= 0]
            file[f"{split}_image_idxs"] = image_idxs[image_idxs >= 0]


def _as_written(photographs: list[Photograph]) -> dict[str, Any]:
    """All their captions in COCO's format, the images in the order of the rows."""
    return {
        "info": {},  # as in COCO's own; pycocotools before 2.0.11 fails without it
        "licenses": [],
        "type": "captions",
        "images": [{"id": photograph.id, "file_name": photograph.file_name} for photograph in photographs],
        "annotations": [
            {"id": identity, "image_id": photograph.id, "caption": text}
            for photograph in photographs
            for identity, text in photograph.captions
        ],
    }


def _manifest(
    config: PrepareConfig,
    encoding: Encoding,
    encoder: Encoder,
    projection: Projection | None,
    kept: Mapping[str, list[Photograph]],
    captions: Captions,
) -> dict[str, Any]:
    folders = {split: _seen_from(config.out, f) for split, f in caption_files.named_folders(config.images).items()}
    projections = {"vector": VECTOR_PCA if projection else None, "grid": GRID_PCA if encoding.projection else None}
    manifest: dict[str, Any] = {
        "data": "photographs",
        "images": folders.get(None, folders),
        **encoder.recipe,
    }
    manifest |= {
        "projections": {kind: name for kind, name in projections.items() if name},
        "vector_dim": encoding.width,
        "grid_shape": list(encoding.stored_grid_shape) if config.grid else None,
        "grid_dtype": config.grid_dtype if config.grid else None,
        "splits": {
            split: {"photographs": len(photographs), "unreadable": len(encoding.progress.failed.get(split, {}))}
            for split, photographs in kept.items()
        },
        "annotations": [printable(Path(file).name) for file in (*config.annotations, *config.splits)],
        "tokenizer": config.tokenizer,
        "words": {"max_words": config.max_words, "min_count": None if config.vocabulary else config.min_count},
        "versions": {"torch_caption": __version__, **features.versions()},
        "settings": encoding.progress.settings,
    }
    return manifest


def _seen_from(out: Path | None, images: Path) -> str:
    """The folder of photographs from the directory's point of view where the two lie together, else as it is."""
    images, out = images.resolve(), (out or Path()).resolve()
    together = out.parent if out.parent != out.parent.parent else out  # not all that the disk holds
    return Path(os.path.relpath(images, out)).as_posix() if images.is_relative_to(together) else str(images)


def _write_text(path: Path, lines: Sequence[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    # A reader takes one mark of the order of bytes off, which may be the first letter of a name.
    path.write_text(text, encoding="utf-8-sig" if text.startswith("\ufeff") else "utf-8", newline="\n")


def _write_json(path: Path, content: Mapping[str, Any], indent: int | None) -> None:
    replace_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


# What is said


def _says(weights: features.Weights) -> str:
    return f"{weights.name} (SHA-256 {features.short(weights.sha256)})"


def _warn_of_script(splits: Mapping[str, list[Photograph]], config: PrepareConfig) -> None:
    """Say where words cannot be found, as the tokenizer is to find them: in a tenth of the captions or more."""
    if config.tokenizer != "words":
        return
    texts = [text for photographs in splits.values() for photograph in photographs for _, text in photograph.captions]
    count = sum(map(is_unspaced, texts))
    if 10 * count >= len(texts):
        print(
            f"warning: {count:,} of {len(texts):,} captions are mostly in a script without blanks, and whole phrases "
            "of them become one word; use --tokenizer characters, or --tokenizer whitespace where another program has "
            "put blanks between their words",
            file=sys.stderr,
            flush=True,
        )


def _tell_captions(splits: Mapping[str, list[Photograph]], captions: Captions, config: PrepareConfig) -> None:
    for split, photographs in splits.items():
        count = sum(len(photograph.captions) for photograph in photographs)
        print(f"{split:9} {len(photographs):,} photographs, {count:,} captions")
    source = config.vocabulary or f"seen {config.min_count} times or more in train"
    print(f"words     {len(captions.vocabulary):,}, {source}")
    print(
        f"captions  {captions.too_long:,} of more than {config.max_words} words left out, "
        f"{captions.empty:,} without words"
    )


def _tell_end(out: Path, seconds: float) -> None:
    print(dataset.summary(dataset.open_kinds(out)))
    for name, projection in ((VECTOR_PCA, "vectors"), (GRID_PCA, "grids")):
        if (out / name).is_file():
            found = Projection.load(out / name)
            dim, count = found.components.shape
            print(f"PCA       {projection} {dim:,} -> {count:,}, {100 * found.share:.1f} % of their variance in train")
    if (out / SKIPPED).is_file():
        count = (out / SKIPPED).read_text(encoding="utf-8").count("\n")
        print(f"left out  {count:,} photographs that cannot be read: {out / SKIPPED}")
    print(f"done      in {seconds:.0f} s; `{typed('train')} --data {out}` learns from it", flush=True)


# cs231n's own


def recover_pca(config: PrepareConfig, directory: Path) -> Path:
    """Find the PCA by which a directory's `*_pca.h5` came from its full features; write `pca.npz` and a manifest.

    cs231n's features are fc7 of Caffe's VGG-16, and the manifest says so; --weights FILE adds that file's SHA-256.

    Raises:
        DataError: the files are missing, do not belong together, or the directory has another manifest.
    """
    manifest = checks.read_manifest(directory / MANIFEST)
    if "encoder" in manifest:
        raise DataError(f"{directory / MANIFEST}: says already how the features were made, with {manifest['encoder']}")
    data, _ = (dataset.open_data(directory, pca=pca, in_memory="no") for pca in (True, False))
    full, projected = (
        {split: directory / f"{split}2014_vgg16_fc7{kind}.h5" for split in data.splits} for kind in ("", "_pca")
    )
    found = pca.recover(full, projected)
    if config.weights == "default":
        recipe = features.caffe_vgg16()
    else:
        transform = "caffe" if config.transform == "auto" else config.transform
        recipe = features.build("vgg16", config.weights, transform=transform).recipe
    dim, count = found.projection.components.shape
    found.projection.save(directory / VECTOR_PCA)
    manifest |= recipe | {
        "projections": {"vector": VECTOR_PCA},
        "vector_dim": dim,
        "recovered": {"rows": found.rows, "errors": found.errors},
        "versions": {"torch_caption": __version__},
    }
    _write_json(directory / MANIFEST, manifest, 1)
    print(f"PCA       {dim:,} -> {count:,}, found from {found.rows:,} rows: {directory / VECTOR_PCA}")
    for split, error in found.errors.items():
        print(f"{split:9} differs from its file by at most {error:.1e} of the standard deviation")
    return directory
