"""A trained captioner at work: captions of a split's images as a table, as JSON and as a gallery of pictures."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from torch_caption import checkpoint as checkpoints
from torch_caption import plots, report, runs
from torch_caption.captioner import CaptioningRNN
from torch_caption.captioning import Caption, describe, draw, looked, some_images
from torch_caption.config import ConfigError, TrainConfig
from torch_caption.data.coco import CocoData, Split
from torch_caption.training import choose_device, load_data


@dataclass(frozen=True)
class SampleConfig:
    """Caption images with a trained model: greedily, or drawn at random where a flag of chance is given."""

    checkpoint: Annotated[Path | None, arg(metavar="PATH")] = None
    """A checkpoint, a run's directory or a folder of runs; the last run in `runs` without it."""
    data: Annotated[str | None, arg(metavar="STR")] = None
    """`scenes` or a directory in cs231n's layout; the data the model was trained on without it."""
    split: Annotated[str | None, arg(metavar="STR")] = None
    """The split to caption; test where there is one, else val."""
    images: tuple[int, ...] = ()
    """Images by their index in the split; some chosen by the seed without it."""
    count: int = 8
    """How many images, where --images names none."""

    samples: int = 1
    """Captions per image; more than one are drawn at random."""
    temperature: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Draw at random: below 1 likely words gain, above 1 unlikely ones do (1 where only other flags ask for chance)."""
    top_k: Annotated[int | None, arg(metavar="INT")] = None
    """Draw at random among the k likeliest words."""
    top_p: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Draw at random among the fewest words that have this probability together."""
    seed: int = 0
    """Decides the images and the random draws."""
    max_length: Annotated[int | None, arg(metavar="INT")] = None
    """Longest caption, in words; as in training without it."""

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
        for name, value in {"count": self.count, "samples": self.samples, "max-length": self.max_length}.items():
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1, not {value}")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise ConfigError(f"--temperature must be a positive number, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"--top-k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p must be above 0 and at most 1, not {self.top_p}")

    @property
    def random(self) -> bool:
        """A flag of chance is given."""
        return self.samples > 1 or any(flag is not None for flag in (self.temperature, self.top_k, self.top_p))


@dataclass(frozen=True)
class Described:
    """An image of a split, its captions and what people wrote."""

    index: int
    name: str | None
    captions: list[Caption]
    references: list[str]


def run(config: SampleConfig) -> list[Described]:
    """Caption as the configuration says: prints a table or JSON, and writes the files it names.

    Raises:
        ValueError: a setting, the checkpoint or the data cannot be used, or they do not fit together.
    """
    config.check()
    path = _find(config.checkpoint)
    saved = checkpoints.load(path)
    trained = TrainConfig.from_plain(saved.config)
    wanted = dataclasses.replace(trained, data=config.data or trained.data, max_train=None)
    data = load_data(wanted)
    split = _choose_split(config, data)
    checkpoints.check_fits(saved, data.vocabulary, split.feature_dim, path=path, data=data.directory)
    model = checkpoints.build_model(saved, path).to(choose_device(config.device)).eval()
    images = list(dict.fromkeys(config.images)) or some_images(split, config.count, seed=config.seed)
    _check_files(config, data, split, images)
    if config.show_attention is not None:
        _check_looks(model, split, path)
    max_length = config.max_length or trained.max_length
    if config.random:
        captions = draw(
            model,
            split,
            images,
            samples=config.samples,
            max_length=max_length,
            temperature=1.0 if config.temperature is None else config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=config.seed,
        )
    else:
        captions = {idx: [caption] for idx, caption in describe(model, split, images, max_length=max_length).items()}
    described = [
        Described(idx, split.image_name(idx), captions[idx], split.references(idx) if config.references else [])
        for idx in images
    ]
    _tell(config, path, data, split, described)
    if config.show_attention is not None:
        _draw_attention(model, split, described, config.show_attention)
    return described


def _tell(config: SampleConfig, path: Path, data: CocoData, split: Split, described: list[Described]) -> None:
    text = json.dumps(_plain(path, split, described), indent=2, ensure_ascii=False)
    if config.format == "json":
        print(text)
    else:
        print(f"{path}, {split.name} of {data.directory}")
        print(_table(described, config.references))
    if config.json is not None:
        config.json.write_text(text + "\n", encoding="utf-8")
    if config.gallery is not None:
        captions = {image.index: [caption.text for caption in image.captions] for image in described}
        report.gallery(data, split, captions, config.gallery, references=config.references)


def _draw_attention(model: CaptioningRNN, split: Split, described: list[Described], path: Path) -> None:
    """Each caption with where the model looked for its words."""
    pairs = [(image.index, caption.text) for image in described for caption in image.captions]
    features = split.features_of([index for index, _ in pairs])
    weights = looked(model, split.vocabulary, features, [text for _, text in pairs])
    items = [
        plots.AttentionItem(split.image_path(index), text.split(), of_words)
        for (index, text), of_words in zip(pairs, weights, strict=True)
    ]
    plots.attention(items, path)


def _check_looks(model: CaptioningRNN, split: Split, path: Path) -> None:
    """There are weights, and they have rows and columns.

    Raises:
        ConfigError: the model looks at no places, or at places in a row.
    """
    if not model.cell.looks:
        raise ConfigError(
            f"--show-attention: {path} is of the cell {model.cell_type}, which looks at no places; "
            "`train.py --cell-type attention` makes one that does"
        )
    if len(split.grid) != 2:
        raise ConfigError(f"--show-attention: the features of {split.name} are of places without rows and columns")


def _table(described: list[Described], references: bool) -> str:
    """One row a caption: the image's index, the caption's log-probability, its words; references under it."""
    lines = [f"{'image':>6}  {'log p':>7}  caption"]
    for image in described:
        for place, caption in enumerate(image.captions):
            index = str(image.index) if place == 0 else ""
            lines.append(f"{index:>6}  {caption.log_prob:7.2f}  {caption.text}")
        lines += [f"{'':6}  {'people':>7}  {reference}" for reference in image.references]
    return "\n".join(lines)


def _plain(path: Path, split: Split, described: list[Described]) -> dict[str, Any]:
    return {
        "checkpoint": str(path),
        "split": split.name,
        "images": [
            {
                "index": image.index,
                "name": image.name,
                "captions": [{"caption": c.text, "log_prob": c.log_prob} for c in image.captions],
                **({"references": image.references} if image.references else {}),
            }
            for image in described
        ],
    }


def _find(named: Path | None) -> Path:
    """The checkpoint itself, the best one of a run, or that of the last run of a folder."""
    if named is None:
        return runs.find(TrainConfig.out) / runs.BEST
    if named.is_dir():
        return (runs.find(named) if (named / runs.POINTER).is_file() else named) / runs.BEST
    return named


def _choose_split(config: SampleConfig, data: CocoData) -> Split:
    if config.split is not None:
        return data[config.split]
    return data["test" if "test" in data.splits else "val"]


def _check_files(config: SampleConfig, data: CocoData, split: Split, images: list[int]) -> None:
    """The files that are asked for can be written, known before any work is done."""
    pictures = {"--gallery": config.gallery, "--show-attention": config.show_attention}
    for flag, path in {"--json": config.json, **pictures}.items():
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{flag} {path}: there is no folder {path.parent}")
    for flag, path in pictures.items():
        if path is not None and not any(split.image_path(idx) for idx in images):
            raise ConfigError(f"{flag}: {data.directory} holds no pictures of {split.name}")
