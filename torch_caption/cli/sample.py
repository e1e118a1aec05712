"""Caption images of a split or new photographs with a trained model: a table, JSON, a gallery, attention maps."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from PIL import Image
from tqdm import tqdm
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg

from torch_caption import plots
from torch_caption.checkpoints import run_folder as runs
from torch_caption.cli.decoding_flags import check_decoding
from torch_caption.data.dataset import CocoData, Split
from torch_caption.data.tokenizer import readable
from torch_caption.decoding import DecodingOptions
from torch_caption.encoders import extractor as recipes
from torch_caption.errors import ConfigError, ImageError
from torch_caption.inference import photographs
from torch_caption.inference.captions import Caption, attention_maps, caption_images, some_images
from torch_caption.inference.gallery import draw_gallery
from torch_caption.inference.load import Captioner, load
from torch_caption.io.images import is_url, load_image
from torch_caption.io.memory import within_memory
from torch_caption.io.program import typed
from torch_caption.io.text import flag_of, json_text, printable
from torch_caption.model.captioner import CaptioningRNN

ONE_CAPTION = DecodingOptions(n_best=1)
SOME = 5  # maximum number of names in a line about skipped files


@dataclass(frozen=True)
class SampleConfig:
    """Caption images with a trained model: greedily, by beam search (--beam-size) or by random sampling (--temperature,
    --top-k, --top-p, --min-p, --samples)."""

    photographs: Annotated[tuple[str, ...], Positional, arg(metavar="PHOTO|FOLDER|URL...")] = ()
    """Photographs to caption: files, folders, http(s) URLs; the default is images of a split."""
    recursive: Annotated[bool, FlagCreatePairsOff] = False
    """Include subfolders."""
    checkpoint: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="PATH")] = ()
    """Checkpoint, run, folder of runs or hf://OWNER/NAME; the default is the last run in `runs`. Several caption as an
    ensemble."""
    data: Annotated[str | None, arg(metavar="STR")] = None
    """`scenes` or a directory in cs231n's layout; the default is the training data. For photographs: a directory with
    the recipe of the features, if the checkpoint has none."""
    split: Annotated[str | None, arg(metavar="STR")] = None
    """Split to caption; the default is test if there is one, else val."""
    images: tuple[int, ...] = ()
    """Indices of images in the split; the default is a random choice by the seed."""
    count: int = 8
    """Number of images, without --images."""

    seed: int = 0
    """Seed of the choice of images and of random sampling."""
    decoding: Annotated[DecodingOptions, OmitArgPrefixes] = ONE_CAPTION
    """Decoding."""

    allow_private: bool = False
    """Also fetch URLs from addresses that are not public: this machine, the local network."""
    weights: Annotated[Path | None, arg(metavar="FILE")] = None
    """Weights of the image encoder, if they are not found automatically."""

    references: bool = False
    """Show the reference captions."""
    format: Literal["table", "json"] = "table"
    """Output format."""
    json: Annotated[Path | None, arg(metavar="PATH")] = None
    """Write the captions to this file as JSON."""
    gallery: Annotated[Path | None, arg(metavar="PATH")] = None
    """Write a gallery of the pictures with their captions to this PNG file."""
    show_attention: Annotated[Path | None, arg(metavar="PATH")] = None
    """Write the attention maps of each word of the captions to this PNG file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto uses a GPU if there is one."""

    def check(self) -> None:
        """Raise ConfigError, naming the flag, on the first value that cannot be used."""
        if self.count < 1:
            raise ConfigError(f"--count must be at least 1, not {self.count}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed must be at least 0 and below 2^63, not {self.seed}")
        check_decoding(self.decoding)
        of_a_split = {"split": self.split is not None, "images": bool(self.images), "references": self.references}
        for name, given in of_a_split.items():
            if self.photographs and given:
                raise ConfigError(f"--{name} is for the images of a split, not for photographs")
        for name in self.photographs:
            if not is_url(name) and any((Path(name) / file).is_file() for file in (runs.BEST, runs.POINTER)):
                raise ConfigError(f"{name}: is a run, not photographs; an ensemble is `--checkpoint A --checkpoint B`")
        if self.recursive and not self.photographs:
            raise ConfigError("--recursive is for a folder of photographs: name one")


@dataclass(frozen=True)
class CaptionedImage:
    """An image, its captions and its reference captions.

    Attributes:
        index: its row in the split; of a photograph, its index among the readable ones.
        name: of its file, or its URL.
    """

    index: int
    name: str | None
    captions: list[Caption]
    references: list[str]


@dataclass(frozen=True)
class Subject:
    """The images to caption.

    Attributes:
        split: of the images.
        images: their indices.
        recipe: of the features, if known.
        data: of the split; None for photographs.
        failed: photographs that cannot be read, with the reasons.
    """

    split: Split
    images: list[int]
    recipe: Mapping[str, Any]
    data: CocoData | None
    failed: dict[str, str] = field(default_factory=dict)


def run(config: SampleConfig) -> list[CaptionedImage]:
    """Caption images by the configuration: prints a table or JSON, and writes its files.

    Raises:
        UsageError, InputError: a setting, the checkpoint or the data cannot be used, or they do not match.
    """
    config.check()
    recipe_of = config.data if config.photographs else None
    captioner = load(config.checkpoint or None, device=config.device, data=recipe_of, encoder_weights=config.weights)
    _check_files(config)
    subject = (_photographs if config.photographs else _images)(config, captioner)
    split, images = subject.split, subject.images
    if config.show_attention is not None:
        _check_attention(captioner, split)
    options = captioner.options_for(config.decoding, flag_of)
    captions = caption_images(captioner.model, split, images, options, seed=config.seed)
    captioned = [
        CaptionedImage(idx, split.image_name(idx), captions[idx], split.references(idx) if config.references else [])
        for idx in images
    ]
    _report(config, captioner.name, subject, captioned)
    if config.show_attention is not None:
        _draw_attention(captioner.model, subject, captioned, config.show_attention)
    return captioned


def _images(config: SampleConfig, captioner: Captioner) -> Subject:
    """The given images of a split, or a random choice."""
    data = captioner.open_data(config.data)
    split = _choose_split(config, data)
    images = list(dict.fromkeys(config.images)) or some_images(split, config.count, seed=config.seed)
    for flag, picture in _pictures(config).items():
        if picture is not None and not any(split.image_path(idx) for idx in images):
            raise ConfigError(f"{flag}: {data.directory} has no pictures of {split.name}")
    return Subject(split, images, data.recipe, data)


def _photographs(config: SampleConfig, captioner: Captioner) -> Subject:
    """The photographs with features by the model's recipe.

    An unreadable photograph, and other files of a folder, are a line on stderr; it is an error only if no photograph
    can be read.

    Raises:
        UsageError, InputError: no photograph can be read, or `Captioner.read` raises an error.
    """
    errors: dict[str, ImageError] = {}
    sources, lacking = _sources(config)

    def fail(name: str, error: ImageError) -> None:
        errors[name] = ImageError(f"{printable(name)}: {lacking[name]}") if name in lacking else error
        if len(sources) > 1:
            _print_line(f"error: {errors[name]}")

    found = captioner.read(
        sources,
        allow_private=config.allow_private,
        keep=any(_pictures(config).values()),
        failed=fail,
        truncated=lambda line: _print_line(f"warning: {line}"),
    )
    if found is None:
        if len(sources) == 1:
            raise errors[sources[0]]
        raise ConfigError(f"none of the {len(sources)} photographs can be captioned")
    failed = {name: str(error) for name, error in errors.items()}
    return Subject(found, [*range(found.num_images)], captioner.recipe, None, failed)


def _sources(config: SampleConfig) -> tuple[list[str], dict[str, str]]:
    """The given photographs, including those of folders, and a message for each folder without any."""
    sources: list[str] = []
    lacking: dict[str, str] = {}
    for name in config.photographs:
        if is_url(name) or not Path(name).is_dir():
            sources.append(name)
            continue
        folder = photographs.list_folder(Path(name), recursive=config.recursive)
        sources += folder.pictures or [name]
        if folder.pictures:
            _report_skipped(folder)
        else:
            lacking[name] = _lacks_pictures(folder)
    return sources, lacking


def _print_line(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def _report_skipped(folder: photographs.Folder) -> None:
    """Report the other files and the subfolders of a folder, in one line each."""
    if folder.others:
        _print_line(f"skipped {printable(folder.path)}: not pictures: {_some(folder.path, folder.others)}")
    if folder.folders:
        folders = _some(folder.path, folder.folders)
        _print_line(f"skipped {printable(folder.path)}: subfolders, which --recursive includes: {folders}")


def _lacks_pictures(folder: photographs.Folder) -> str:
    rest = f", only {_some(folder.path, folder.others)}" if folder.others else ""
    inside = f"; --recursive includes its subfolders: {_some(folder.path, folder.folders)}" if folder.folders else ""
    return f"a folder without pictures{rest}{inside}"


def _some(folder: Path, paths: list[str]) -> str:
    names = [printable(Path(path).relative_to(folder)) for path in paths[:SOME]]
    return ", ".join(names) + (f" and {len(paths) - SOME:,} more" if len(paths) > SOME else "")


def _report(config: SampleConfig, name: str, subject: Subject, captioned: list[CaptionedImage]) -> None:
    data, split = subject.data, subject.split
    plain = _plain(name, subject, captioned)
    if config.format == "json":
        print(json_text(plain, indent=2, encoding=sys.stdout.encoding))
    else:
        print(f"{name}, {split.name} of {data.directory}" if data else name)
        print(_table(captioned, config.references, named=data is None))
    if config.json is not None:
        config.json.write_text(json_text(plain, indent=2) + "\n", encoding="utf-8", newline="\n")
    if config.gallery is not None:
        captions = {image.index: [caption.text for caption in image.captions] for image in captioned}
        draw_gallery(data, split, captions, config.gallery, references=config.references)


def _draw_attention(model: CaptioningRNN, subject: Subject, captioned: list[CaptionedImage], path: Path) -> None:
    """Plot each caption with its attention maps."""
    split = subject.split
    pairs = [(image.index, caption.text) for image in captioned for caption in image.captions]
    features = split.features_of([index for index, _ in pairs])
    weights = attention_maps(model, split.vocabulary, features, [text for _, text in pairs])
    items = [
        plots.AttentionItem(_visible(subject, index), text.split(), of_words)
        for (index, text), of_words in zip(pairs, weights, strict=True)
    ]
    plots.attention(items, path)


def _visible(subject: Subject, index: int) -> Image.Image | None:
    """The part of an image that attention maps cover; None without a picture."""
    picture = subject.split.picture(index)
    if isinstance(picture, Path):
        try:
            picture = load_image(picture, truncated=lambda line: None)
        except ImageError:
            return None
    return None if picture is None else recipes.visible(subject.recipe, picture)


def _check_attention(captioner: Captioner, split: Split) -> None:
    """Raise ConfigError unless there are attention weights over rows and columns."""
    if len(captioner.members) > 1:
        raise ConfigError("--show-attention: an ensemble has no attention of its own; name one checkpoint")
    if not captioner.model.cell.attends:
        raise ConfigError(
            f"--show-attention: {captioner.path} has the cell {captioner.model.cell_type}, which has no attention; "
            f"`{typed('train')} --cell-type attention` trains one"
        )
    if len(split.grid) != 2:
        raise ConfigError(f"--show-attention: the features of {split.name} have no rows and columns")


def _table(captioned: list[CaptionedImage], references: bool, *, named: bool) -> str:
    """One row per caption: index or name of the image, log-probability, score if any, words; references below."""
    labels = [printable(image.name) if named else str(image.index) for image in captioned]
    width = max(6, *map(len, labels))
    scored = any(caption.score is not None for image in captioned for caption in image.captions)
    lines = [f"{'image':>{width}}  {'log p':>7}  {'score  ' if scored else ''}caption"]
    for label, image in zip(labels, captioned, strict=True):
        for k, caption in enumerate(image.captions):
            score = "" if caption.score is None else f"{caption.score:5.2f}  "
            lines.append(
                f"{label if k == 0 else '':>{width}}  {caption.log_prob:7.2f}  {score}{readable(caption.text)}"
            )
        blank = " " * 7 if scored else ""
        lines += [f"{'':{width}}  {'ref':>7}  {blank}{readable(reference)}" for reference in image.references]
    return "\n".join(lines)


def _plain(name: str, subject: Subject, captioned: list[CaptionedImage]) -> dict[str, Any]:
    failed = [{"name": name, "error": error} for name, error in subject.failed.items()]
    return {
        "checkpoint": name,
        "split": subject.split.name,
        "images": [
            {
                "index": image.index,
                "name": image.name,
                "captions": [_plain_caption(caption) for caption in image.captions],
                **({"references": [*map(readable, image.references)]} if image.references else {}),
            }
            for image in captioned
        ],
        **({"failed": failed} if failed else {}),
    }


def _plain_caption(caption: Caption) -> dict[str, Any]:
    plain = {"caption": readable(caption.text), "log_prob": caption.log_prob, "ended": caption.ended}
    return plain if caption.score is None else plain | {"score": caption.score}


def _choose_split(config: SampleConfig, data: CocoData) -> Split:
    if config.split is not None:
        return data[config.split]
    return data["test" if "test" in data.splits else "val"]


def _check_files(config: SampleConfig) -> None:
    """Check early that the output files can be written."""
    for flag, path in {"--json": config.json, **_pictures(config)}.items():
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{flag} {path}: there is no folder {path.parent}")


def _pictures(config: SampleConfig) -> dict[str, Path | None]:
    return {"--gallery": config.gallery, "--show-attention": config.show_attention}


def sample_config(args: Sequence[str], prog: str | None = None) -> SampleConfig:
    """The flags of `sample`.

    Raises:
        SystemExit: a flag is invalid (status 2), or help was requested (0).
    """
    return tyro.cli(SampleConfig, prog=prog, args=args)


def main(args: Sequence[str], prog: str) -> None:
    with within_memory("--beam-size", "--samples"):
        run(sample_config(args, prog))
