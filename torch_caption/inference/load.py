"""Opening a trained model: `load(path)` returns a `Captioner`, in commands and in Python.

captioner = load("runs")                             # the best checkpoint of the last run
print(captioner.caption("dog.jpg"))
print(load(["runs/a", "runs/b"]).caption("dog.jpg")) # an ensemble
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import run_folder as runs
from torch_caption.checkpoints.format import Checkpoint
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData, open_data
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.decoding import DecodingOptions
from torch_caption.decoding.filters import excluded
from torch_caption.encoders import extractor as recipes
from torch_caption.encoders.extractor import FeatureExtractor
from torch_caption.errors import ConfigError, DataError, ImageError
from torch_caption.inference import photographs
from torch_caption.inference.captions import Caption, caption_features, caption_images
from torch_caption.inference.photographs import Photographs
from torch_caption.io.program import typed
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS
from torch_caption.model.ensemble import Ensemble
from torch_caption.scenes import dataset as scenes

Picture = str | Path | Image.Image
"""A file, an http(s) URL, or a Pillow image."""


class Captioner:
    """A trained model with everything for captioning.

    Attributes:
        path: the checkpoint.
        checkpoint: its content.
        model: in `eval()`, on its device.
        vocabulary: of the model.
        members: the captioners of an ensemble; of one model, only itself.
    """

    members: Sequence[Captioner]
    _alike: Sequence[Captioner]  # for each member the first one with the same features

    def __init__(
        self,
        checkpoint: Checkpoint,
        path: Path,
        device: torch.device,
        *,
        data: str | None = None,
        encoder_weights: Path | None = None,
    ) -> None:
        self.checkpoint, self.path = checkpoint, path
        self.model: CaptioningRNN = checkpoints.build_model(checkpoint, path).to(device).eval()
        self.vocabulary = Vocabulary(tuple(checkpoint.words))
        self._data, self._encoder_weights = data, encoder_weights
        self.members = self._alike = (self,)

    @property
    def name(self) -> str:
        """The path of the checkpoint; of an ensemble, those of its members."""
        return " + ".join(str(member.path) for member in self.members)

    @overload
    def caption(  # type: ignore[overload-overlap]  # a str is also a sequence of str
        self, pictures: Picture, options: DecodingOptions | None = None, *, seed: int = 0, allow_private: bool = False
    ) -> Caption: ...

    @overload
    def caption(
        self,
        pictures: Sequence[Picture] | Tensor,
        options: DecodingOptions | None = None,
        *,
        seed: int = 0,
        allow_private: bool = False,
    ) -> list[Caption]: ...

    def caption(
        self,
        pictures: Picture | Sequence[Picture] | Tensor,
        options: DecodingOptions | None = None,
        *,
        seed: int = 0,
        allow_private: bool = False,
    ) -> Caption | list[Caption]:
        """The best caption of a picture, or of each of several. `str(caption)` is its text.

        Args:
            pictures: one picture, a sequence of them, or features (N, D) or (N, D, a, a) as in training.
            options: see `DecodingOptions`; by default greedy.
            seed: of random sampling.
            allow_private: also fetch URLs from addresses that are not public. Do not set it for untrusted URLs.

        Raises:
            ImageError: a picture cannot be read; then no picture is captioned.
            ConfigError: an option is out of range, or the checkpoint has no recipe of features.
            EncoderError: the weights of the encoder are not found.
            ValueError: features of another shape.
        """
        found = self.captions(pictures, options, seed=seed, allow_private=allow_private)
        best = [captions[0] for captions in found]
        return best[0] if isinstance(pictures, Picture) else best

    def captions(
        self,
        pictures: Picture | Sequence[Picture] | Tensor,
        options: DecodingOptions | None = None,
        *,
        seed: int = 0,
        allow_private: bool = False,
    ) -> list[list[Caption]]:
        """All captions of each picture, best first: `samples` in sampling, at most `n_best` in beam search.

        Arguments and errors as in `caption`.
        """
        options = self.options_for(options or DecodingOptions())
        if isinstance(pictures, Tensor):
            return caption_features(self.model, self.vocabulary, pictures, options, seed=seed)
        sources = [pictures] if isinstance(pictures, Picture) else list(pictures)
        for source in sources:
            if not isinstance(source, Picture):
                raise TypeError(
                    f"a picture is a path, a URL or a Pillow image, features are a tensor; not {type(source).__name__}"
                )
        if not sources:
            return []
        found = self.read(sources, allow_private=allow_private, failed=_raise_error)
        assert found is not None
        captions = caption_images(self.model, found, range(found.num_images), options, seed=seed)
        return [*captions.values()]

    def read(self, sources: Sequence[Picture], **arguments: Any) -> Photographs | None:
        """The pictures that can be read, with features for this model; None if there are none.

        Args:
            arguments: as of `photographs.read`.

        Raises:
            ConfigError: the model has no recipe of its features, or another width than its recipe.
            UsageError, InputError: as in `extractor`.
        """
        extractors = [member.extractor for member in self._alike]
        found = photographs.read(sources, extractors, self.vocabulary, **arguments)
        if found is not None:
            for member, part in zip(self.members, (found, *found.others), strict=True):
                member.check_width(part.feature_dim)
        return found

    def options_for(self, options: DecodingOptions, spelling: Callable[[str], str] = str) -> DecodingOptions:
        """The options for this model, with the maximum length of its training as default.

        Args:
            spelling: the name of an option in a message, as in `DecodingOptions.resolve`.

        Raises:
            ConfigError: they contradict each other or that length, or a word is not in the vocabulary.
        """
        longest = max(member.checkpoint.config.max_length for member in self.members)
        options = dataclasses.replace(options, max_length=options.max_length or longest)
        options.resolve(spelling)
        excluded(self.model.token_ids(), options, spelling("avoid"))
        return options

    def open_data(self, directory: str | None = None, **settings: Any) -> CocoData:
        """The training data of the model, or that of a directory ("scenes": the built-in dataset).

        Args:
            settings: fields of `TrainConfig` that replace those of training.

        Raises:
            InputError: it cannot be opened, or its vocabulary or features differ from the model's.
        """
        config = self.checkpoint.config
        data = open_training_data(
            dataclasses.replace(config, data=directory or config.data, max_train=None, **settings)
        )
        for split in data.splits.values():
            checkpoints.check_fits(
                self.checkpoint, data.vocabulary, split.feature_dim, data.recipe, path=self.path, data=data.directory
            )
        return data

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe of the features: of the directory in `load`, else of the checkpoint.

        Raises:
            UsageError, InputError: neither has a recipe, or the directory does not fit the model.
        """
        recipe, source = self.checkpoint.manifest, self.path
        if self._data is not None:
            data = self.open_data(self._data, in_memory="no")
            recipe, source = data.recipe, data.directory
        if not recipes.is_one(recipe):
            raise ConfigError(
                f"{source}: has no recipe of its features, so photographs cannot be encoded; name a directory that has "
                f"one with --data (for cs231n's own, `{typed('prepare')} --recover-pca`)"
            )
        return recipe

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """Computes the features of pictures.

        Raises:
            UsageError, InputError: as in `recipe`, or the encoder's weights are not found.
        """
        return recipes.feature_extractor(
            self.recipe, weights=self._encoder_weights, near=[self.path.parent], device=self.model.device
        )

    def check_width(self, width: int) -> None:
        """Raise ConfigError unless the model has features of this width."""
        if width != self.model.input_dim:
            raise ConfigError(
                f"{self.path}: needs features of width {self.model.input_dim}, but its recipe gives {width}"
            )


class EnsembleCaptioner(Captioner):
    """Several trained models as one: see `Ensemble`. The members may have different cells, sizes and features.

    Attributes:
        path, checkpoint, recipe, extractor: of the first member.
        model: the `Ensemble`; it decodes only: there is no attention and no explanation.

    Raises:
        CheckpointError: the vocabularies differ.
    """

    model: Ensemble  # type: ignore[assignment]  # it has of a CaptioningRNN what captions need

    def __init__(self, members: Sequence[Captioner]) -> None:
        first = members[0]
        for member in members[1:]:
            checkpoints.check_vocabulary(member.checkpoint, first.vocabulary, path=member.path, data=first.path)
        self.path, self.checkpoint, self.vocabulary = first.path, first.checkpoint, first.vocabulary
        self._data, self._encoder_weights = first._data, first._encoder_weights
        self.members = members
        self._alike = [next(one for one in members if _same_features(one, member)) for member in members]
        self.model = Ensemble([member.model for member in members])

    def open_data(self, directory: str | None = None, **settings: Any) -> CocoData:
        """The data of the first member; `others` of its splits have the features of the further ones.

        Raises:
            InputError: as for one model, or the images of the members' data differ.
        """
        opened = {member: member.open_data(directory, **settings) for member in dict.fromkeys(self._alike)}
        first, *others = (opened[member] for member in self._alike)
        common = [name for name in first.splits if all(name in other.splits for other in others)]
        for name in common:
            for other in others:
                if other.directory != first.directory and not first[name].same_images(other[name]):
                    raise DataError(
                        f"{first.directory} and {other.directory}, the data of an ensemble, differ in the images of "
                        f"{name}; name one directory with --data"
                    )
            first[name].others = [other[name] for other in others]
        return dataclasses.replace(first, splits={name: first[name] for name in common})


def load(
    path: str | Path | Sequence[str | Path] | None = None,
    *,
    device: str = "auto",
    data: str | None = None,
    encoder_weights: str | Path | None = None,
) -> Captioner:
    """Open a trained model.

    Args:
        path: a checkpoint, a run's folder, a folder of runs, of which the last is used, or `hf://owner/name`, with
            `@revision` if needed, a repository of the Hugging Face hub; by default `runs`. A sequence of several is an
            ensemble.
        device: "auto" uses a GPU if there is one; "cpu" or "cuda".
        data: a data directory with the recipe of the features, if the checkpoint has none.
        encoder_weights: a file with the encoder's weights, if they are not found by the recipe.

    Raises:
        CheckpointError: there is none, it cannot be used, or the vocabularies of several differ.
        ConfigError: a GPU is requested and there is none, `path` is empty, or huggingface_hub is not installed.
    """
    if path is not None and not isinstance(path, str | Path):
        if not path:
            raise ConfigError("no checkpoint is named")
        members = [load(one, device=device, data=data, encoder_weights=encoder_weights) for one in path]
        return EnsembleCaptioner(members) if len(members) > 1 else members[0]
    found = runs.find_checkpoint(path, TrainConfig.out)
    weights = None if encoder_weights is None else Path(encoder_weights)
    return Captioner(checkpoints.load(found), found, choose_device(device), data=data, encoder_weights=weights)


def caption(
    picture: Picture,
    checkpoint: str | Path | Sequence[str | Path] | None = None,
    options: DecodingOptions | None = None,
) -> Caption:
    """`load(checkpoint).caption(picture, options)`. For several pictures call `load` once."""
    return load(checkpoint).caption(picture, options)


def open_training_data(config: TrainConfig, *, progress: bool = True) -> CocoData:
    """The data of a configuration; the built-in scenes are generated on first use.

    Raises:
        DataError: the directory is missing or invalid.
    """
    return open_data(
        scenes.ensure(progress=progress) if config.data == "scenes" else Path(config.data),
        pca={"auto": None, "yes": True, "no": False}[config.pca_features],
        grids=CELLS[config.cell_type].attends,
        max_train=config.max_train,
        in_memory=config.in_memory,
        seed=config.seed,
    )


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one.

    Raises:
        ConfigError: a GPU is requested and there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _same_features(one: Captioner, other: Captioner) -> bool:
    pairs = [
        (captioner.checkpoint.config.data, captioner.model.cell.attends, captioner.checkpoint.input_dim)
        for captioner in (one, other)
    ]
    return pairs[0] == pairs[1] and checkpoints.same_recipe(one.checkpoint.manifest, other.checkpoint.manifest)


def _raise_error(name: str, error: ImageError) -> None:
    raise error
