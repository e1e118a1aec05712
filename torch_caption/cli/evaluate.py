"""Score a model's captions of a split: `python -m torch_caption evaluate CHECKPOINT...`.

Captions depend only on the features of the images; only the scorer uses the reference captions, all of each image.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes, Positional, arg

from torch_caption import plots
from torch_caption.cli.decoding_flags import check_decoding, described
from torch_caption.data import caption_files, file_names
from torch_caption.data import manifest as manifests
from torch_caption.data.caption_files import Photograph
from torch_caption.data.dataset import CocoData, Split, below
from torch_caption.data.file_names import Names
from torch_caption.data.tokenizer import TOKENIZERS, readable, tokenize
from torch_caption.decoding import DecodingOptions
from torch_caption.errors import ConfigError, DataError
from torch_caption.functions.matmul import prefer_onednn
from torch_caption.inference.captions import Caption, caption_images, captioned_images
from torch_caption.inference.load import Captioner, load
from torch_caption.io.exits import is_interactive
from torch_caption.io.memory import within_memory
from torch_caption.io.text import flag_of, json_text
from torch_caption.metrics import java
from torch_caption.metrics import scores as metrics
from torch_caption.metrics.cider import cider_weighs
from torch_caption.metrics.scores import Interval, Scores
from torch_caption.plots import GalleryItem

RANKED_BY = "CIDEr", "ROUGE-L"  # the first available one
_TOKENS = {
    "words": "by torch_caption",
    "characters": "by torch_caption, characters",
    "whitespace": "between blanks, unchanged",
    "ptb": "by Stanford PTB",
}
FIVE_BEAMS = DecodingOptions(beam_size=5, n_best=1)
PRINTED, SHOWN = 3, 8  # number of the best and of the worst captions


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a model's captions of a split's images against the reference captions."""

    checkpoint: Annotated[Positional[tuple[str, ...]], arg(metavar="[CHECKPOINT...]")] = ()
    """Checkpoint, run, folder of runs or hf://OWNER/NAME; the default is the last run in `runs`. Several caption as an
    ensemble."""
    data: Annotated[str | None, arg(metavar="STR")] = None
    """`scenes` or a directory in cs231n's layout; the default is the training data."""
    split: str = "val"
    """Split to caption."""
    references: Annotated[Path | None, arg(metavar="FILE")] = None
    """Reference captions in a format of `prepare --annotations`, matched by the names in {split}2014_images.txt. The
    default is captions_{split}2014.json of the data if it exists, else the captions of the data, without long ones and
    with <UNK> for rare words."""

    decoding: Annotated[DecodingOptions, OmitArgPrefixes] = FIVE_BEAMS
    """Decoding."""

    meteor: Literal["auto", "yes", "no"] = "auto"
    """Compute METEOR: if Java is installed, always, or never."""
    tokenizer: Literal[("auto", *TOKENIZERS, "ptb")] = "auto"  # type: ignore[valid-type]
    """Tokenizer of captions and references: that of the data (auto; words if its manifest has none), one of `prepare
    --tokenizer`, or COCO's own (ptb), which needs Java."""
    against: Annotated[str | None, arg(metavar="CHECKPOINT")] = None
    """Second model, compared with the first on the same images."""
    draws: int = 1000
    """Number of bootstrap samples for the confidence intervals."""
    seed: int = 0
    """Seed of the bootstrap and of random sampling."""

    format: Literal["table", "json"] = "table"
    """Output format."""
    json: Annotated[Path | None, arg(metavar="PATH")] = None
    """Write the captions to this file in COCO's result format: [{"image_id": ..., "caption": ...}, ...]."""
    gallery: Annotated[Path | None, arg(metavar="PATH")] = None
    """Write a gallery of the images with the best and the worst captions to this PNG file."""
    images: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of the photographs for the gallery; the default is that of the data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto uses a GPU if there is one."""

    def check(self) -> None:
        """Raise ConfigError, naming the flag, on the first value that cannot be used."""
        for name, (value, least) in {"draws": (self.draws, 2), "seed": (self.seed, 0)}.items():
            if value < least:
                raise ConfigError(f"--{name} must be at least {least}, not {value}")
        check_decoding(self.decoding)
        for name, captions in {"samples": self.decoding.samples, "n-best": self.decoding.n_best}.items():
            if captions != 1:
                raise ConfigError(f"--{name} {captions}: one caption per image is scored, so it must be 1")
        for flag, path in {"--json": self.json, "--gallery": self.gallery}.items():
            if path is not None and not path.parent.is_dir():
                raise ConfigError(f"{flag} {path}: there is no folder {path.parent}")
        of_java = {"--meteor yes": self.meteor == "yes", "--tokenizer ptb": self.tokenizer == "ptb"}
        given = [flag for flag, is_given in of_java.items() if is_given]
        if given and not java.available():
            raise ConfigError(f"{given[0]} needs Java, which is not installed; install a Java runtime, or omit it")


@dataclass(frozen=True)
class References:
    """The reference captions.

    Attributes:
        captions: the image's row -> its captions with words, at least one.
        ids: the image's row -> its id in a result file: its id in the annotations, or else its row.
        source: of the captions.
        empty: the number of omitted captions without words.
    """

    captions: dict[int, list[str]]
    ids: dict[int, int | str]
    source: str
    empty: int = 0

    @classmethod
    def of(cls, captions: dict[int, list[str]], ids: dict[int, int | str], source: str, tokenizer: str) -> References:
        """The captions with words, by a tokenizer of `TOKENIZERS`, and the images with such captions.

        Raises:
            DataError: there are none.
        """
        worded = {idx: [text for text in texts if TOKENIZERS[tokenizer](text)] for idx, texts in captions.items()}
        kept = {idx: texts for idx, texts in worded.items() if texts}
        if not kept:
            raise DataError(f"{source}: no caption has a word")
        empty = sum(map(len, captions.values())) - sum(map(len, worded.values()))
        return cls(kept, {idx: ids[idx] for idx in kept}, source, empty)


@dataclass(frozen=True)
class Evaluated:
    """A model's captions and their scores.

    Attributes:
        name: of the model, its checkpoint.
        captions: the image's row -> the model's caption.
        scores, intervals: the scores, and their 95 % bootstrap intervals over the images.
    """

    name: str
    captions: dict[int, Caption]
    scores: Scores[int]
    intervals: dict[str, Interval]

    @property
    def ranked_by(self) -> str:
        """The score that orders the images."""
        return next(name for name in RANKED_BY if name in self.scores.each)

    @property
    def ranked(self) -> list[tuple[int, float]]:
        """The images with the scores of their captions, the best first."""
        pairs = zip(self.scores.images, self.scores.each[self.ranked_by].tolist(), strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])


@dataclass(frozen=True)
class Evaluation:
    """The result of `run`.

    Attributes:
        differences: the intervals of first - second, if there is a second model.
    """

    first: Evaluated
    references: References
    second: Evaluated | None = None
    differences: dict[str, Interval] = dataclasses.field(default_factory=dict)


def run(config: EvaluateConfig) -> Evaluation:
    """Caption and score by the configuration: prints a table or JSON, and writes its files.

    Raises:
        UsageError, InputError: a setting, a checkpoint, the data or the references cannot be used, or they do not
            match.
    """
    config.check()
    captioner = load(config.checkpoint or None, device=config.device)
    data = captioner.open_data(config.data)
    split = data[config.split]
    rival = None if config.against is None else load(config.against, device=config.device)
    for opened in (captioner, rival):
        if opened is not None:
            opened.options_for(config.decoding, flag_of)
    if config.tokenizer == "auto":
        config = dataclasses.replace(config, tokenizer=split.tokenizer)
    _check_tokenizer(config, data, split)
    references = read_references(config, data, split)
    if config.gallery is not None and not any(_picture(config, split, idx) for idx in references.captions):
        where = config.images or data.directory
        raise ConfigError(f"--gallery: {where} has no pictures of {split.name}; --images names their folder")
    if rival is not None:
        other = rival.open_data(config.data)
        _check_tokenizer(config, other, other[config.split])
        if not split.same_images(other[config.split]):
            raise ConfigError(
                f"--against {rival.name}: {data.directory} and {other.directory}, the data of the two models, differ "
                f"in the images of {split.name}"
            )
    first = _evaluate(config, captioner, split, references)
    second, differences = None, {}
    if rival is not None:
        second = _evaluate(config, rival, other[config.split], references)
        differences = first.scores.interval(second.scores, draws=config.draws, seed=config.seed)
    evaluation = Evaluation(first, references, second, differences)
    _report(config, data, split, evaluation)
    return evaluation


def _check_tokenizer(config: EvaluateConfig, data: CocoData, split: Split) -> None:
    """Raise ConfigError if captions consist of characters and references would be split otherwise."""
    if split.tokenizer == "characters" and config.tokenizer != "characters":
        raise ConfigError(
            f"--tokenizer {config.tokenizer}: the captions of {data.directory} consist of characters, which other "
            "tokens of references would not match; use --tokenizer characters"
        )


def read_references(config: EvaluateConfig, data: CocoData, split: Split) -> References:
    """All captions of each image: from the given file, else the data's annotations, else its HDF5 file.

    Raises:
        DataError: the file has an unknown format, or none of the split's images.
    """
    own = data.directory / f"captions_{split.name}2014.json"
    path = config.references or (own if own.is_file() else None)
    tokenizer = config.tokenizer if config.tokenizer in TOKENIZERS else split.tokenizer
    if path is None:
        images = captioned_images(split)
        source = f"{data.directory / 'coco2014_captions.h5'}, the captions of the data"
        captions = {idx: split.references(idx) for idx in images}
        return References.of(captions, {idx: idx for idx in images}, source, tokenizer)
    if path == own:
        manifests.check(data.directory, data.manifest, [own])
    photographs = caption_files.of_split(caption_files.read(path), split.name, path)
    names = {idx: split.file_name(idx) for idx in range(split.num_images)}
    if not any(names.values()):
        raise DataError(
            f"{data.directory / f'{split.name}2014_images.txt'}: no such file; the captions of {path} are matched by "
            "the images' names"
        )
    pairs = _paired({idx: name for idx, name in names.items() if name}, photographs)
    known = {idx: photograph for idx, photograph in pairs.items() if photograph.captions}
    if not known:
        nearest = Names([photograph.file_name for photograph in photographs]).nearest(names[0] or "", guess=True)
        raise DataError(
            f"{path}: has no captions of images of {split.name}, such as {names[0]!r}"
            + file_names.hint(nearest, "it has captions of")
        )
    captions = {idx: [text for _, text in photograph.captions] for idx, photograph in known.items()}
    ids = {idx: photograph.id for idx, photograph in known.items()}
    return References.of(captions, ids, str(path), tokenizer)


def _paired(names: dict[int, str], photographs: Sequence[Photograph]) -> dict[int, Photograph]:
    """The annotations of each image, by its name, else by its last part if only one side has folders, as COCO's own
    annotations; none that two images share."""
    found = {photograph.file_name: photograph for photograph in photographs}
    theirs, ours = Names([*found]), Names([*names.values()])
    pairs = {idx: found[meant[0]] for idx, name in names.items() if len(meant := theirs.meant(name)) == 1}
    taken = {photograph.file_name for photograph in pairs.values()}
    others = {idx: theirs.in_folders(name) or theirs.without_folders(name, ours) for idx, name in names.items()}
    further = {idx: meant[0] for idx, meant in others.items() if idx not in pairs and len(meant) == 1}
    images = Counter(further.values())
    pairs |= {idx: found[name] for idx, name in further.items() if images[name] == 1 and name not in taken}
    return dict(sorted(pairs.items()))


def _evaluate(config: EvaluateConfig, captioner: Captioner, split: Split, references: References) -> Evaluated:
    """Caption the images with references and score the captions; without CIDEr if it is 0 for all captions."""
    images = tqdm(references.captions, desc="captions", unit="image", leave=False, disable=not is_interactive())
    options = captioner.options_for(config.decoding, flag_of)
    found = caption_images(captioner.model, split, images, options, seed=config.seed)
    captions = {idx: of_image[0] for idx, of_image in found.items()}
    by_meteor = config.meteor == "yes" or (config.meteor == "auto" and java.available())
    tokens = TOKENIZERS.get(config.tokenizer, tokenize)  # Java's tokens distinguish the same images
    weighs = cider_weighs([list(map(tokens, texts)) for texts in references.captions.values()])
    scores = metrics.score_each(
        {idx: caption.text for idx, caption in captions.items()},
        references.captions,
        [name for name in metrics.METRICS if {"METEOR": by_meteor, "CIDEr": weighs}.get(name, True)],
        config.tokenizer,
    )
    return Evaluated(captioner.name, captions, scores, scores.interval(draws=config.draws, seed=config.seed))


# Output ---------------------------------------------------------------------------------------------------------------


def _report(config: EvaluateConfig, data: CocoData, split: Split, evaluation: Evaluation) -> None:
    if config.format == "json":
        plain = _plain(config, data, split, evaluation)
        print(json_text(plain, indent=2, encoding=sys.stdout.encoding))
    else:
        print(_table(config, data, split, evaluation))
    if config.json is not None:
        ids, captions = evaluation.references.ids, evaluation.first.captions
        results = [{"image_id": ids[idx], "caption": caption.text} for idx, caption in captions.items()]
        config.json.write_text(json_text(results) + "\n", encoding="utf-8", newline="\n")
    if config.gallery is not None:
        _draw(config, split, evaluation, config.gallery)


def _table(config: EvaluateConfig, data: CocoData, split: Split, evaluation: Evaluation) -> str:
    first, references = evaluation.first, evaluation.references
    texts = [caption.text for caption in first.captions.values()]
    images = f"{len(texts):,}" if len(texts) == split.num_images else f"{len(texts):,} of {split.num_images:,}"
    count = sum(map(len, references.captions.values()))
    wordless = f", {references.empty:,} without words omitted" if references.empty else ""
    length = sum(len(text.split()) for text in texts) / len(texts)
    lines = [
        f"model       {first.name}, {described(config.decoding)}",
        f"images      {images} of {split.name} of {data.directory}",
        f"references  {count:,}, {count / len(texts):.1f} an image, from {references.source}{wordless}",
        f"captions    {len(set(texts)):,} different ones, {length:.1f} words on average",
        f"tokens      {_TOKENS[config.tokenizer]}",
    ]
    if evaluation.second is not None:
        lines.insert(1, f"against     {evaluation.second.name}")
    return "\n".join([*lines, "", *_scores(evaluation), "", *_extremes(first)])


def _scores(evaluation: Evaluation) -> list[str]:
    """One row per score."""
    first, second = evaluation.first, evaluation.second
    head = f"{'':9}  {'score':>6}  {'95 % interval':>16}"
    if second is not None:
        head += f"  {'against':>7}  {'difference':>10}  {'95 % interval':>18}"
    lines = [head]
    for name in first.scores.overall:
        value, interval = first.scores.overall[name], first.intervals[name]
        line = f"{name:9}  {value:6.4f}  {f'{interval.low:.4f} to {interval.high:.4f}':>16}"
        if second is not None:
            other, gain = second.scores.overall[name], evaluation.differences[name]
            line += f"  {other:7.4f}  {value - other:+10.4f}  {f'{gain.low:+.4f} to {gain.high:+.4f}':>18}"
        lines.append(line)
    if "CIDEr" not in first.scores.overall:
        of = "only one image" if len(first.captions) == 1 else "images with the same references"
        lines.append(f"CIDEr      is 0 for {of}: it weights words by the images without them")
    return lines


def _extremes(evaluated: Evaluated) -> list[str]:
    """The best and the worst captions."""
    ranked = evaluated.ranked
    shown = min(PRINTED, len(ranked) // 2)
    lines = []
    for what, pairs in (("best", ranked[:shown]), ("worst", ranked[::-1][:shown])):
        lines += [f"{what} by {evaluated.ranked_by}"] if pairs else []
        lines += [
            f"{score:8.3f}  image {idx:<5} {readable(evaluated.captions[idx].text) or '(no words)'}"
            for idx, score in pairs
        ]
    return lines


def _plain(config: EvaluateConfig, data: CocoData, split: Split, evaluation: Evaluation) -> dict[str, Any]:
    first, second = evaluation.first, evaluation.second
    plain: dict[str, Any] = {
        "checkpoint": first.name,
        "data": str(data.directory),
        "split": split.name,
        "images": len(first.captions),
        "references": evaluation.references.source,
        "reference_count": sum(map(len, evaluation.references.captions.values())),
        "decoding": dataclasses.asdict(config.decoding),
        "tokenizer": config.tokenizer,
        "scores": first.scores.overall | ({} if "CIDEr" in first.scores.overall else {"CIDEr": None}),
        "intervals": {name: [interval.low, interval.high] for name, interval in first.intervals.items()},
    }
    if second is not None:
        plain["against"] = {
            "checkpoint": second.name,
            "scores": second.scores.overall,
            "differences": {name: [gain.low, gain.high] for name, gain in evaluation.differences.items()},
        }
    return plain


def _draw(config: EvaluateConfig, split: Split, evaluation: Evaluation, path: Path) -> None:
    """Plot the best, then the worst captions, of images with a picture."""
    pictured = [(idx, score) for idx, score in evaluation.first.ranked if _picture(config, split, idx)]
    shown = min(SHOWN, (len(pictured) + 1) // 2)
    items = [
        GalleryItem(
            _picture(config, split, idx),
            readable(evaluation.first.captions[idx].text),
            tuple(evaluation.references.captions[idx]),
            note=f"{evaluation.first.ranked_by} {score:.2f}",
        )
        for idx, score in dict.fromkeys([*pictured[:shown], *pictured[-shown:]])
    ]
    plots.gallery(items, path)


def _picture(config: EvaluateConfig, split: Split, idx: int) -> Path | None:
    if config.images is None:
        return split.image_path(idx)
    name = split.file_name(idx)
    return None if name is None else below(config.images, name)


def main(args: Sequence[str], prog: str) -> None:
    config = tyro.cli(EvaluateConfig, args=args, prog=prog)
    prefer_onednn()
    with within_memory("--beam-size"):
        run(config)
