"""A trained captioner at work: captions of a split's images or of new photographs, as a table, JSON and a gallery."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from PIL import Image
from tqdm import tqdm
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from torch_caption import plots
from torch_caption.cli.decoding_flags import check_decoding
from torch_caption.data.dataset import CocoData, Split
from torch_caption.data.tokenizer import readable
from torch_caption.decoding import DecodingOptions
from torch_caption.encoders import extractor as recipes
from torch_caption.errors import ConfigError, ImageError
from torch_caption.inference import photographs
from torch_caption.inference.captions import Caption, caption_images, looked, some_images
from torch_caption.inference.gallery import draw_gallery
from torch_caption.inference.load import Captioner, load
from torch_caption.io.images import is_url, load_image
from torch_caption.io.memory import within_memory
from torch_caption.io.program import typed
from torch_caption.io.text import flag_of, json_text, printable
from torch_caption.model.captioner import CaptioningRNN

ONE_CAPTION = DecodingOptions(n_best=1)
SOME = 5  # names in a line that tells what was skipped


@dataclass(frozen=True)
class SampleConfig:
    """Caption images with a trained model: greedily, by beam search (--beam-size) or by random sampling (--temperature,
    --top-k, --top-p, --min-p, --samples)."""

    photographs: Annotated[tuple[str, ...], Positional, arg(metavar="PHOTO|FOLDER|URL...")] = ()
    """Photographs to caption: files, folders of files, and http(s) URLs. Without any, images of a split are
    captioned."""
    recursive: Annotated[bool, FlagCreatePairsOff] = False
    """Look into the folders inside of a folder, too."""
    checkpoint: Annotated[Path | None, arg(metavar="PATH")] = None
    """A checkpoint, a run's directory or a folder of runs; the last run in `runs` without it."""
    data: Annotated[str | None, arg(metavar="STR")] = None
    """`scenes` or a directory in cs231n's layout; the data the model was trained on without it. With photographs, the
    directory that says how features are made, where the checkpoint does not."""
    split: Annotated[str | None, arg(metavar="STR")] = None
    """The split to caption; test where there is one, else val."""
    images: tuple[int, ...] = ()
    """Images by their index in the split; some chosen by the seed without it."""
    count: int = 8
    """How many images, where --images names none."""

    seed: int = 0
    """Decides the images and the random draws."""
    decoding: Annotated[DecodingOptions, OmitArgPrefixes] = ONE_CAPTION
    """How captions are chosen."""

    allow_private: bool = False
    """Fetch URLs from addresses that are not public, too: this machine, the local network."""
    weights: Annotated[Path | None, arg(metavar="FILE")] = None
    """Weights of the encoder, where they are not found where they were when the features were made."""

    references: bool = False
    """Show the captions that people wrote beside them."""
    format: Literal["table", "json"] = "table"
    """What to print."""
    json: Annotated[Path | None, arg(metavar="PATH")] = None
    """Write the captions to this file as JSON."""
    gallery: Annotated[Path | None, arg(metavar="PATH")] = None
    """Draw the pictures with their captions into this PNG file."""
    show_attention: Annotated[Path | None, arg(metavar="PATH")] = None
    """Draw where a model with attention looked for each word of each caption into this PNG file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""

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
        if self.recursive and not self.photographs:
            raise ConfigError("--recursive is for a folder of photographs: name one")


@dataclass(frozen=True)
class Described:
    """An image, its captions and what people wrote.

    Attributes:
        index: its row in the split; of photographs, its place among those that could be read.
        name: of its file, or its URL.
    """

    index: int
    name: str | None
    captions: list[Caption]
    references: list[str]


@dataclass(frozen=True)
class Subject:
    """What is captioned.

    Attributes:
        split: it holds the images.
        images: those of them that are meant.
        recipe: how its features are made, as far as anybody says.
        data: what the split is of; None of photographs.
        failed: photographs that could not be read, and why.
    """

    split: Split
    images: list[int]
    recipe: Mapping[str, Any]
    data: CocoData | None
    failed: dict[str, str] = field(default_factory=dict)


def run(config: SampleConfig) -> list[Described]:
    """Caption as the configuration says: prints a table or JSON, and writes the files it names.

    Raises:
        UsageError, InputError: a setting, the checkpoint or the data cannot be used, or they do not fit together.
    """
    config.check()
    recipe_of = config.data if config.photographs else None
    captioner = load(config.checkpoint, device=config.device, data=recipe_of, encoder_weights=config.weights)
    _check_files(config)
    subject = (_photographs if config.photographs else _images)(config, captioner)
    split, images = subject.split, subject.images
    if config.show_attention is not None:
        _check_looks(captioner, split)
    options = captioner.options_for(config.decoding, flag_of)
    captions = caption_images(captioner.model, split, images, options, seed=config.seed)
    described = [
        Described(idx, split.image_name(idx), captions[idx], split.references(idx) if config.references else [])
        for idx in images
    ]
    _tell(config, captioner.path, subject, described)
    if config.show_attention is not None:
        _draw_attention(captioner.model, subject, described, config.show_attention)
    return described


def _images(config: SampleConfig, captioner: Captioner) -> Subject:
    """Images of a split: those that are named, or some."""
    data = captioner.open_data(config.data)
    split = _choose_split(config, data)
    images = list(dict.fromkeys(config.images)) or some_images(split, config.count, seed=config.seed)
    for flag, picture in _pictures(config).items():
        if picture is not None and not any(split.image_path(idx) for idx in images):
            raise ConfigError(f"{flag}: {data.directory} holds no pictures of {split.name}")
    return Subject(split, images, data.recipe, data)


def _photographs(config: SampleConfig, captioner: Captioner) -> Subject:
    """The photographs with the features that the model was trained on.

    Each that cannot be read is a line on stderr, as is what a folder holds beside photographs; only if none can be
    read, it is an error.

    Raises:
        UsageError, InputError: no photograph can be read, or `Captioner.extractor` cannot be made.
    """
    extractor = captioner.extractor
    errors: dict[str, ImageError] = {}
    sources, lacking = _sources(config)

    def fail(name: str, error: ImageError) -> None:
        errors[name] = ImageError(f"{printable(name)}: {lacking[name]}") if name in lacking else error
        if len(sources) > 1:
            _say(f"error: {errors[name]}")

    found = photographs.read(
        sources,
        extractor,
        captioner.vocabulary,
        allow_private=config.allow_private,
        keep=any(_pictures(config).values()),
        failed=fail,
        truncated=lambda line: _say(f"warning: {line}"),
    )
    if found is None:
        if len(sources) == 1:
            raise errors[sources[0]]
        raise ConfigError(f"none of the {len(sources)} photographs can be captioned")
    captioner.check_width(found.feature_dim)
    failed = {name: str(error) for name, error in errors.items()}
    return Subject(found, [*range(found.num_images)], captioner.recipe, None, failed)


def _sources(config: SampleConfig) -> tuple[list[str], dict[str, str]]:
    """The photographs that are named, those of folders among them, and what is to be said of folders without any."""
    sources: list[str] = []
    lacking: dict[str, str] = {}
    for name in config.photographs:
        if is_url(name) or not Path(name).is_dir():
            sources.append(name)
            continue
        folder = photographs.look_into(Path(name), recursive=config.recursive)
        sources += folder.pictures or [name]
        if folder.pictures:
            _tell_rest(folder)
        else:
            lacking[name] = _lacks_pictures(folder)
    return sources, lacking


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def _tell_rest(folder: photographs.Folder) -> None:
    """What a folder holds that is not captioned, in a line of each kind."""
    if folder.others:
        _say(f"skipped {printable(folder.path)}: not pictures: {_some(folder.path, folder.others)}")
    if folder.folders:
        folders = _some(folder.path, folder.folders)
        _say(f"skipped {printable(folder.path)}: folders, into which --recursive looks: {folders}")


def _lacks_pictures(folder: photographs.Folder) -> str:
    rest = f", only {_some(folder.path, folder.others)}" if folder.others else ""
    inside = f"; --recursive looks into its folders: {_some(folder.path, folder.folders)}" if folder.folders else ""
    return f"a folder without a picture in it{rest}{inside}"


def _some(folder: Path, paths: list[str]) -> str:
    names = [printable(Path(path).relative_to(folder)) for path in paths[:SOME]]
    return ", ".join(names) + (f" and {len(paths) - SOME:,} more" if len(paths) > SOME else "")


def _tell(config: SampleConfig, path: Path, subject: Subject, described: list[Described]) -> None:
    data, split = subject.data, subject.split
    plain = _plain(path, subject, described)
    if config.format == "json":
        print(json_text(plain, indent=2, encoding=sys.stdout.encoding))
    else:
        print(f"{path}, {split.name} of {data.directory}" if data else f"{path}")
        print(_table(described, config.references, named=data is None))
    if config.json is not None:
        config.json.write_text(json_text(plain, indent=2) + "\n", encoding="utf-8", newline="\n")
    if config.gallery is not None:
        captions = {image.index: [caption.text for caption in image.captions] for image in described}
        draw_gallery(data, split, captions, config.gallery, references=config.references)


def _draw_attention(model: CaptioningRNN, subject: Subject, described: list[Described], path: Path) -> None:
    """Each caption with where the model looked for its words."""
    split = subject.split
    pairs = [(image.index, caption.text) for image in described for caption in image.captions]
    features = split.features_of([index for index, _ in pairs])
    weights = looked(model, split.vocabulary, features, [text for _, text in pairs])
    items = [
        plots.AttentionItem(_seen(subject, index), text.split(), of_words)
        for (index, text), of_words in zip(pairs, weights, strict=True)
    ]
    plots.attention(items, path)


def _seen(subject: Subject, index: int) -> Image.Image | None:
    """The part of an image that the model sees; None where there is no picture of it."""
    picture = subject.split.picture(index)
    if isinstance(picture, Path):
        try:
            picture = load_image(picture, truncated=lambda line: None)
        except ImageError:
            return None
    return None if picture is None else recipes.visible(subject.recipe, picture)


def _check_looks(captioner: Captioner, split: Split) -> None:
    """Raise ConfigError unless there are attention weights over rows and columns."""
    if not captioner.model.cell.attends:
        raise ConfigError(
            f"--show-attention: {captioner.path} is of the cell {captioner.model.cell_type}, which looks at no places; "
            f"`{typed('train')} --cell-type attention` makes one that does"
        )
    if len(split.grid) != 2:
        raise ConfigError(f"--show-attention: the features of {split.name} are of places without rows and columns")


def _table(described: list[Described], references: bool, *, named: bool) -> str:
    """One row a caption: the image's index or name, log-probability, score if there is one, words; references below."""
    labels = [printable(image.name) if named else str(image.index) for image in described]
    width = max(6, *map(len, labels))
    scored = any(caption.score is not None for image in described for caption in image.captions)
    lines = [f"{'image':>{width}}  {'log p':>7}  {'score  ' if scored else ''}caption"]
    for label, image in zip(labels, described, strict=True):
        for place, caption in enumerate(image.captions):
            score = "" if caption.score is None else f"{caption.score:5.2f}  "
            lines.append(
                f"{label if place == 0 else '':>{width}}  {caption.log_prob:7.2f}  {score}{readable(caption.text)}"
            )
        blank = " " * 7 if scored else ""
        lines += [f"{'':{width}}  {'people':>7}  {blank}{readable(reference)}" for reference in image.references]
    return "\n".join(lines)


def _plain(path: Path, subject: Subject, described: list[Described]) -> dict[str, Any]:
    failed = [{"name": name, "error": error} for name, error in subject.failed.items()]
    return {
        "checkpoint": str(path),
        "split": subject.split.name,
        "images": [
            {
                "index": image.index,
                "name": image.name,
                "captions": [_plain_caption(caption) for caption in image.captions],
                **({"references": [*map(readable, image.references)]} if image.references else {}),
            }
            for image in described
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
    """The files that are asked for can be written, known before any work is done."""
    for flag, path in {"--json": config.json, **_pictures(config)}.items():
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{flag} {path}: there is no folder {path.parent}")


def _pictures(config: SampleConfig) -> dict[str, Path | None]:
    return {"--gallery": config.gallery, "--show-attention": config.show_attention}


def sample_config(args: Sequence[str], prog: str | None = None) -> SampleConfig:
    """The flags of `sample`.

    Raises:
        SystemExit: a flag is misspelt (status 2), or help was asked for (0).
    """
    return tyro.cli(SampleConfig, prog=prog, args=args)


def main(args: Sequence[str], prog: str) -> None:
    with within_memory("--beam-size", "--samples"):
        run(sample_config(args, prog))
