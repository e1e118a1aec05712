"""From photographs and captions to a data directory for `train.py`.

    python -m torch_caption prepare --images DIR --annotations FILE... --out DIR

Annotations are in COCO's format, Karpathy's, Flickr8k's or Kaggle's. The output has cs231n's layout, with the recipe of
the features, so that `sample.py` can compute the features of a new photograph:

    coco2014_captions.h5  coco2014_vocab.json  {split}2014_vgg16_fc7.h5  {split}2014_images.txt   as cs231n's
    {split}2014_urls.txt         if the annotations have URLs
    {split}2014_vgg16_fc7_pca.h5, pca.npz        with --pca: the vectors projected, and mean and components
    {split}2014_grid.h5, grid_pca.npz            with --grid: features (images, F, a, a) for attention, and their PCA
    captions_{split}2014.json    all captions, unchanged, image by image in the order of the rows
    manifest.json                encoder, layers, weights with their SHA-256, transform, projections, versions
    skipped.txt                  photographs that cannot be read, with the reasons, if any

Files are written to `DIR/.preparing` and moved to DIR when all are complete, the captions last: without them the
directory is not accepted as data. After an interruption the same command continues, to the same files, byte for byte.
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
from torch_caption.encoders import pca, registry
from torch_caption.encoders.encoder import Encoder, build, caffe_vgg16
from torch_caption.encoders.stream import BATCH
from torch_caption.encoders.weights import Weights, short
from torch_caption.errors import ConfigError, DataError
from torch_caption.io.exits import is_interactive
from torch_caption.io.files import replace_text
from torch_caption.io.program import typed
from torch_caption.io.text import flag_of, invalid_character, printable
from torch_caption.prepare.encoding import GRID_PCA, Encoding, EncodingProgress, Wanted
from torch_caption.prepare.rows import write_hdf5

CAPTIONS, VOCABULARY, MANIFEST = "coco2014_captions.h5", "coco2014_vocab.json", "manifest.json"
VECTOR_PCA = "pca.npz"
SKIPPED = "skipped.txt"
WORK = ".preparing"


@dataclass(frozen=True)
class PrepareConfig:
    """Prepare a data directory from photographs and their captions."""

    images: Annotated[tuple[str, ...], arg(metavar="[SPLIT=]DIR...")] = ()
    """Folder of the photographs, or one for each split: train=DIR val=DIR."""
    annotations: Annotated[tuple[str, ...], arg(metavar="[SPLIT=]FILE...")] = ()
    """Reference captions: COCO's annotations, Karpathy's dataset_*.json, Flickr8k.token.txt or Kaggle's captions.txt.
    Each of several files is the split in its name (train, val or test) or the given one: val=FILE. A single file has
    its own splits (Karpathy's), those of --splits, or is divided randomly into train and val."""
    splits: Annotated[tuple[str, ...], arg(metavar="[SPLIT=]FILE...")] = ()
    """Lists of the photographs of each split, one name per line, such as Flickr_8k.trainImages.txt; the split is the
    one in the name of a list (dev is val) or the given one: val=FILE."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """Output directory."""
    recover_pca: Annotated[Path | None, arg(metavar="DIR")] = None
    """Instead of preparing a directory, recover the PCA of an existing one with both full and projected features, such
    as cs231n's, and save it there, for captions of new photographs."""

    allow_truncated: Annotated[bool, FlagCreatePairsOff] = False
    """Accept truncated JPEGs, with a warning; the missing part is grey. By default they are omitted."""

    encoder: Annotated[str | None, arg(metavar="NAME")] = None
    """Image encoder: efficientnet_lite2, the default where the package of its weights is installed; efficientnet_lite0;
    of torchvision vgg16, resnet18, resnet50 (else the default), resnet101, mobilenet_v2, regnet_y_400mf or vit_b_16;
    any of timm's as timm:NAME."""
    weights: Annotated[str, arg(metavar="default|random|FILE")] = "default"
    """Weights of the encoder: published ones (installed, or downloaded once), random ones, or a file with a state
    dict."""
    transform: Literal["auto", "imagenet", "caffe"] = "auto"
    """Preprocessing: that of the encoder's published weights, imagenet for other weights of torchvision's (auto);
    resized to 256, cropped to 224 and
    normalised (imagenet); in blue, green, red for Caffe's VGG-16 (caffe), the default of --recover-pca."""
    pca: Annotated[float | None, arg(metavar="K")] = None
    """Project the vectors onto this number of principal components of train; below 1, onto the smallest number that
    keeps this fraction of the variance. Both forms are written."""
    grid: bool = False
    """Write spatial feature grids too, for attention."""
    grid_pca: Annotated[float | None, arg(metavar="K")] = None
    """Project the grids in the same way, position by position. Only projected grids are written."""
    grid_dtype: Literal["float16", "float32"] = "float16"
    """Data type of stored grids."""

    tokenizer: Literal[tuple(TOKENIZERS)] = "words"  # type: ignore[valid-type]
    """Tokenizer: words, separated by blanks and punctuation; characters, for scripts without blanks such as Chinese and
    Thai (--max-words then counts characters); whitespace, for captions that another program has split. Scores and
    rewards use the same tokenizer."""
    vocabulary: Annotated[Path | None, arg(metavar="FILE")] = None
    """Existing vocabulary, such as cs231n's coco2014_vocab.json."""
    min_count: int = 5
    """Minimum count of a word in the captions of train, without --vocabulary."""
    max_words: int = 15
    """Maximum caption length in words; longer captions are omitted."""
    val_share: float = 0.1
    """Fraction of the photographs that become val, if a single file is divided randomly."""
    seed: int = 0
    """Seed of this division and of random weights."""

    batch_size: int = BATCH
    """Photographs per batch."""
    workers: int = 2
    """Threads that read photographs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto uses a GPU if there is one."""

    def check(self) -> None:
        """Raise ConfigError, naming the flag, on the first value that cannot be used."""
        needed = {"--images": self.images, "--annotations": self.annotations, "--out": self.out}
        missing = [] if self.recover_pca else [flag for flag, value in needed.items() if not value]
        if missing:
            raise ConfigError(f"{', '.join(missing)} required, or --recover-pca DIR")
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
            raise ConfigError("--grid-pca needs --grid")
        if self.encoder is not None and not registry.is_encoder(self.encoder):
            raise ConfigError(f"--encoder {self.encoder}: choose one of {', '.join(registry.BACKBONES)}, or timm:NAME")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device cuda: PyTorch finds no GPU here")

    @property
    def computes_on(self) -> str:
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Captions:
    """Captions as ids.

    Attributes:
        vocabulary: of the ids.
        rows: of each split (M, max_words + 2) int32.
        indices: of each split (M,) the index of each caption's photograph.
        too_long, empty: the numbers of omitted captions.
    """

    vocabulary: Vocabulary
    rows: dict[str, np.ndarray]
    indices: dict[str, np.ndarray]
    too_long: int
    empty: int


def prepare(config: PrepareConfig) -> Path:
    """Prepare the data directory of the configuration, and return it.

    Raises:
        UsageError, InputError: a setting, the annotations, the photographs or the weights cannot be used, or the
            directory contains other data.
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
    _report_captions(splits, captions, config)
    encoder = build(
        config.encoder or registry.default(),
        config.weights,
        transform=config.transform,
        device=config.computes_on,
        seed=config.seed,
    )
    print(f"encoder   {encoder.name}, {_label(encoder.weights)}, on {config.computes_on}", flush=True)
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
        raise DataError(f"{config.out}: in use by another process") from None
    shutil.rmtree(work)
    _report_end(config.out, time.monotonic() - started)
    return config.out


def _check_kept(out: Path, folders: Mapping[str | None, Path]) -> None:
    """Raise DataError if the name of a folder of photographs cannot be stored in the manifest."""
    for folder in folders.values():
        unkept = invalid_character(_relative_to(out, folder))
        if unkept:
            raise DataError(f"--images {printable(folder)}: {unkept!r} is not a text character; rename the folder")


def _make(
    config: PrepareConfig,
    work: Path,
    encoder: Encoder,
    splits: dict[str, list[Photograph]],
    captions: Captions,
    settings: str,
) -> None:
    """Encode, then write, then move the files; each continues where an earlier run stopped."""
    progress = EncodingProgress.load(work)
    if progress is not None and progress.settings != settings:
        raise DataError(
            f"{work}: left by an interrupted run with other settings or photographs; repeat its command, or remove the "
            "folder"
        )
    encoding = Encoding(work, encoder, _wanted(config), progress or EncodingProgress(settings))
    ready = work / "ready"
    if not (ready / CAPTIONS).exists():  # it is written last, and moved last
        _check_components(config, encoding, len(splits["train"]))
        _check_room(config, work, encoding, splits)
        if progress is not None:
            print(f"continues after {sum(progress.done.values()):,} photographs", flush=True)
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
    """A digest of everything that the files depend on."""
    sizes = [None if size is None else float(size) for size in (config.pca, config.grid_pca)]
    recipe = encoder.recipe
    parts = [recipe["encoder"], recipe["weights"]["sha256"], recipe["transform"], captions.vocabulary.words]
    parts += [sizes, config.grid, config.grid_dtype, config.batch_size, config.computes_on]
    parts += [config.tokenizer, config.allow_truncated]
    digest = hashlib.sha256(json.dumps(parts).encode("utf-8"))
    for split, photographs in splits.items():
        digest.update(split.encode("utf-8") + captions.rows[split].tobytes())
        for photograph in photographs:
            content = photograph.file_name, photograph.url, photograph.captions
            digest.update(json.dumps(content).encode("utf-8"))
    return digest.hexdigest()


def _complete(out: Path, settings: str) -> bool:
    """Whether the directory is already complete, with the same settings.

    Raises:
        DataError: it has other content, or is not a directory.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: not a directory")
    if not (out / CAPTIONS).exists():
        others = [path for pattern in ("*2014_*", MANIFEST) for path in out.glob(pattern)]
        if others and not (out / WORK / "ready" / CAPTIONS).exists():  # else they are of an interrupted move
            raise DataError(f"{others[0]}: other data, which would be overwritten; name another --out")
        return False
    if checks.read_manifest(out / MANIFEST).get("settings") != settings:
        raise DataError(f"{out}: contains other data, or data of other settings; name another --out")
    return True


def _check_components(config: PrepareConfig, encoding: Encoding, photographs: int) -> None:
    """Raise DataError if train has too few photographs, or the features too few dimensions, for the PCA."""
    if config.pca is not None:
        pca.check_count(config.pca, photographs, encoding.width, "--pca")
    if config.grid_pca is not None:
        width, *indices = encoding.grid_shape
        pca.check_count(config.grid_pca, photographs * math.prod(indices), width, "--grid-pca")


def _check_room(config: PrepareConfig, work: Path, encoding: Encoding, splits: dict[str, list[Photograph]]) -> None:
    """Raise DataError unless the disk has space for the maximum size of all files."""
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
        raise DataError(f"{work.parent}: up to {need:,} bytes will be written, but {free:,} are free; free disk space")


# Captions


def encode_captions(splits: Mapping[str, list[Photograph]], config: PrepareConfig) -> Captions:
    """The captions of every split as ids, by the given vocabulary or by one built from train's.

    Raises:
        DataError: a split has no captions left, or the vocabulary cannot be used.
    """
    if config.vocabulary is not None:
        vocabulary = checks.read_vocabulary(config.vocabulary)
    else:
        vocabulary = Vocabulary.build((words for _, words in _tokens(splits["train"], config)), config.min_count)
        if len(vocabulary) == len(SPECIAL):
            raise DataError(f"--min-count {config.min_count}: no word of train is so frequent")
    rows, indices = {}, {}
    too_long = empty = 0
    for split, photographs in splits.items():
        most = sum(len(photograph.captions) for photograph in photographs)
        ids = np.full((most, config.max_words + 2), vocabulary.word_to_idx[NULL], np.int32)
        of = np.empty(most, np.int32)
        count = 0
        for index, words in _tokens(photographs, config):
            empty += not words
            too_long += len(words) > config.max_words
            if 0 < len(words) <= config.max_words:
                ids[count, : len(words) + 2] = vocabulary.encode(words)
                of[count] = index
                count += 1
        if not count:
            raise DataError(f"no caption of {split} has 1 to {config.max_words} words; choose another --max-words")
        rows[split], indices[split] = ids[:count], of[:count]
    return Captions(vocabulary, rows, indices, too_long, empty)


def _tokens(photographs: Sequence[Photograph], config: PrepareConfig) -> Iterator[tuple[int, list[str]]]:
    """The index of each caption's photograph, and its tokens."""
    tokenize = TOKENIZERS[config.tokenizer]
    for index, photograph in enumerate(photographs):
        for _, text in photograph.captions:
            yield index, tokenize(text)


# Output files


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
    kept = {split: [photographs[index] for index in progress.kept(split)] for split, photographs in splits.items()}
    for split, photographs in kept.items():
        _write_text(ready / f"{split}2014_images.txt", [photograph.file_name for photograph in photographs])
        if any(photograph.url for photograph in photographs):
            _write_text(ready / f"{split}2014_urls.txt", [photograph.url for photograph in photographs])
        _write_json(ready / f"captions_{split}2014.json", _coco_annotations(photographs), None)
    failed = [
        f"{split} {printable(splits[split][int(index)].file_name)}: {reason}"
        for split in splits
        for index, reason in progress.failed.get(split, {}).items()
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
            for block in tqdm(vectors.blocks(), desc="PCA of vectors", unit="block", disable=not is_interactive()):
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


def _write_captions(
    path: Path, captions: Captions, progress: EncodingProgress, kept: Mapping[str, list[Photograph]]
) -> None:
    """The captions of the photographs with a row, with the indices of the rows."""
    with h5py.File(path, "w") as file:
        for split in kept:
            indices = progress.kept(split)
            number = np.full(progress.done[split], -1, np.int32)
            number[indices] = np.arange(len(indices), dtype=np.int32)
            image_idxs = number[captions.indices[split]]
            file[f"{split}_captions"] = captions.rows[split][image_idxs >= 0]
            file[f"{split}_image_idxs"] = image_idxs[image_idxs >= 0]


def _coco_annotations(photographs: list[Photograph]) -> dict[str, Any]:
    """All their captions in COCO's format, the images in the order of the rows."""
    return {
        "info": {},  # as in COCO's annotations; pycocotools before 2.0.11 fails without it
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
    folders = {split: _relative_to(config.out, f) for split, f in caption_files.named_folders(config.images).items()}
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
        "versions": {"torch_caption": __version__, **encoder.versions},
        "settings": encoding.progress.settings,
    }
    return manifest


def _relative_to(out: Path | None, images: Path) -> str:
    """The folder of photographs, relative to the directory if they have a common parent."""
    images, out = images.resolve(), (out or Path()).resolve()
    together = out.parent if out.parent != out.parent.parent else out  # not the root of the disk
    return Path(os.path.relpath(images, out)).as_posix() if images.is_relative_to(together) else str(images)


def _write_text(path: Path, lines: Sequence[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    # A reader removes one byte order mark, which may be the first character of a name.
    path.write_text(text, encoding="utf-8-sig" if text.startswith("\ufeff") else "utf-8", newline="\n")


def _write_json(path: Path, content: Mapping[str, Any], indent: int | None) -> None:
    replace_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


# Messages


def _label(weights: Weights) -> str:
    return f"{weights.name} (SHA-256 {short(weights.sha256)})"


def _warn_of_script(splits: Mapping[str, list[Photograph]], config: PrepareConfig) -> None:
    """Warn if the tokenizer cannot find words in a tenth of the captions or more."""
    if config.tokenizer != "words":
        return
    texts = [text for photographs in splits.values() for photograph in photographs for _, text in photograph.captions]
    count = sum(map(is_unspaced, texts))
    if 10 * count >= len(texts):
        print(
            f"warning: {count:,} of {len(texts):,} captions are mostly in a script without blanks, and phrases "
            "become one word; use --tokenizer characters, or --tokenizer whitespace if another program has inserted "
            "blanks between the words",
            file=sys.stderr,
            flush=True,
        )


def _report_captions(splits: Mapping[str, list[Photograph]], captions: Captions, config: PrepareConfig) -> None:
    for split, photographs in splits.items():
        count = sum(len(photograph.captions) for photograph in photographs)
        print(f"{split:9} {len(photographs):,} photographs, {count:,} captions")
    source = config.vocabulary or f"at least {config.min_count} times in train"
    print(f"words     {len(captions.vocabulary):,}, {source}")
    print(
        f"captions  {captions.too_long:,} of more than {config.max_words} words left out, "
        f"{captions.empty:,} without words"
    )


def _report_end(out: Path, seconds: float) -> None:
    print(dataset.summary(dataset.open_kinds(out)))
    for name, projection in ((VECTOR_PCA, "vectors"), (GRID_PCA, "grids")):
        if (out / name).is_file():
            found = Projection.load(out / name)
            dim, count = found.components.shape
            print(f"PCA       {projection} {dim:,} -> {count:,}, {100 * found.share:.1f} % of their variance in train")
    if (out / SKIPPED).is_file():
        count = (out / SKIPPED).read_text(encoding="utf-8").count("\n")
        print(f"left out  {count:,} photographs that cannot be read: {out / SKIPPED}")
    print(f"done      in {seconds:.0f} s; `{typed('train')} --data {out}` trains on it", flush=True)


# cs231n's own


def recover_pca(config: PrepareConfig, directory: Path) -> Path:
    """Recover the PCA from a directory's full features to its `*_pca.h5`; write `pca.npz` and a manifest.

    The manifest has the recipe of cs231n's features, fc7 of Caffe's VGG-16; --weights FILE adds its SHA-256.

    Raises:
        DataError: the files are missing or do not match, or the directory has another manifest.
    """
    manifest = checks.read_manifest(directory / MANIFEST)
    if "encoder" in manifest:
        raise DataError(f"{directory / MANIFEST}: has an encoder already, {manifest['encoder']}")
    data, _ = (dataset.open_data(directory, pca=pca, in_memory="no") for pca in (True, False))
    full, projected = (
        {split: directory / f"{split}2014_vgg16_fc7{kind}.h5" for split in data.splits} for kind in ("", "_pca")
    )
    found = pca.recover(full, projected)
    if config.weights == "default":
        recipe = caffe_vgg16()
    else:
        transform = "caffe" if config.transform == "auto" else config.transform
        recipe = build("vgg16", config.weights, transform=transform).recipe
    dim, count = found.projection.components.shape
    found.projection.save(directory / VECTOR_PCA)
    manifest |= recipe | {
        "projections": {"vector": VECTOR_PCA},
        "vector_dim": dim,
        "recovered": {"rows": found.rows, "errors": found.errors},
        "versions": {"torch_caption": __version__},
    }
    _write_json(directory / MANIFEST, manifest, 1)
    print(f"PCA       {dim:,} -> {count:,}, recovered from {found.rows:,} rows: {directory / VECTOR_PCA}")
    for split, error in found.errors.items():
        print(f"{split:9} differs from its file by at most {error:.1e} of the standard deviation")
    return directory
