"""From photographs to features, by torchvision's backbones and their transforms; the only importer of torchvision.

    encoder = build("resnet50")                          # the weights are downloaded once
    batch = torch.stack([encoder.prepare(load_image("photo.jpg"))])
    encoder.encode(batch).vectors                        # (1, 2048)

The `recipe` of an encoder describes it in plain values: `from_recipe` builds the same encoder again if it finds weights
with the same SHA-256. torchvision is imported when the first encoder is built.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from torch_caption.errors import EncoderError, ImageError
from torch_caption.io.exits import is_interactive, one_line
from torch_caption.io.files import from_home, sha256_of
from torch_caption.io.images import load_image
from torch_caption.io.text import printable

BATCH = 16
LARGEST = 4096  # maximum side in pixels of a resized picture
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "nearest-exact", "box", "hamming", "lanczos")
LONGEST = 16  # maximum aspect ratio; longer pictures are cropped first, which bounds the memory of the resized one
TRANSFORMS = ("auto", "imagenet", "caffe")

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # common wrappers of a state dict


@dataclass(frozen=True)
class Backbone:
    """The outputs of one of torchvision's models.

    Attributes:
        grid: the module whose output is the spatial grid (N, F, a, a), or, if `tokens`, the class token and the tokens
            of the a * a patches, (N, 1 + a * a, F).
        vector: the module whose output is the vector (N, D); None takes the grid's mean over its positions, or the
            class token.
        description: of the vector.
    """

    grid: str
    vector: str | None = None
    tokens: bool = False
    description: str = "mean over the positions of {grid}"

    @property
    def layers(self) -> dict[str, str]:
        return {"vector": self.description.format(grid=self.grid), "grid": self.grid}


BACKBONES = {
    "vgg16": Backbone("features", "classifier.4", description="classifier.4: fc7 after its ReLU, before dropout"),
    "resnet18": Backbone("layer4"),
    "resnet50": Backbone("layer4"),
    "resnet101": Backbone("layer4"),
    "mobilenet_v2": Backbone("features"),
    "regnet_y_400mf": Backbone("trunk_output"),
    "vit_b_16": Backbone("encoder", tokens=True, description="class token of {grid}, after its last layer norm"),
}
"""By torchvision's names. cs231n's features are fc7 of Caffe's VGG-16, whose weights torchvision does not have."""


@dataclass(frozen=True)
class Transform:
    """Preprocessing: resize the shorter side to `resize` pixels, crop the centre of `crop` x `crop`, scale 0..255 to
    0..1, subtract `mean`, divide by `std`.

    Attributes:
        channels: the order of mean, std and the network's input, "RGB" or "BGR".
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    antialias: bool = True
    channels: str = "RGB"

    def check(self) -> None:
        """Raise EncoderError for the first invalid value."""
        sizes = (self.crop, self.resize)
        if any(type(size) is not int for size in sizes) or not 1 <= self.crop <= self.resize <= LARGEST:
            raise EncoderError(f"resize {self.resize!r} and crop {self.crop!r}; the maximum is {LARGEST} pixels")
        for name, values in {"mean": self.mean, "std": self.std}.items():
            if len(values) != 3 or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
                raise EncoderError(f"{name} is {values!r}, not three numbers")
        if min(self.std) <= 0 or self.channels not in ("RGB", "BGR") or self.interpolation not in INTERPOLATIONS:
            raise EncoderError(f"std {self.std}, channels {self.channels!r}, interpolation {self.interpolation!r}")

    def __call__(self, picture: Image.Image) -> Tensor:
        """A Pillow picture in RGB as (3, crop, crop) float32."""
        vision = _torchvision()
        functional = vision.transforms.functional
        mode = vision.transforms.InterpolationMode(self.interpolation)
        picture = functional.resize(_shortened(picture), [self.resize], interpolation=mode, antialias=self.antialias)
        with torch.device("cpu"):
            pixels = functional.pil_to_tensor(functional.center_crop(picture, [self.crop]))
        pixels = functional.convert_image_dtype(pixels, torch.float32)
        if self.channels == "BGR":
            pixels = pixels.flip(0)
        return functional.normalize(pixels, mean=list(self.mean), std=list(self.std))


IMAGENET = Transform(256, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Caffe's VGG-16: blue, green, red from 0 to 255, minus their means over ImageNet.
CAFFE = Transform(256, 224, tuple(m / 255 for m in (103.939, 116.779, 123.68)), (1 / 255,) * 3, channels="BGR")


@dataclass(frozen=True)
class Weights:
    """The identity of an encoder's weights.

    Attributes:
        name: torchvision's (IMAGENET1K_V2), that of the file, or "random".
        sha256: of the file, or of random values; None if unknown.
        path: of the file; None for torchvision's, which are in its cache, and for random ones.
        seed: of random ones.
    """

    name: str
    sha256: str | None = None
    path: str | None = None
    seed: int | None = None

    def check(self) -> None:
        """Raise EncoderError unless it has a valid file name, without a folder."""
        kinds = {"name": str, "sha256": str | None, "path": str | None, "seed": int | None}
        for field, kind in kinds.items():
            if not isinstance(getattr(self, field), kind):
                raise EncoderError(f"{field} of its weights is {getattr(self, field)!r}")
        if not self.name or Path(self.name).name != self.name or "\\" in self.name or not 0 <= (self.seed or 0) < 2**63:
            raise EncoderError(f"name of its weights {self.name!r}, with seed {self.seed}")


@dataclass(frozen=True)
class Encoded:
    """Features of a batch, float32 on the CPU: vectors (N, D), and optionally grids (N, F, a, a)."""

    vectors: Tensor
    grids: Tensor | None


class Encoder:
    """A backbone with its weights and its transform.

    Attributes:
        name: the backbone's.
        weights, transform: of the backbone.
    """

    def __init__(self, name: str, model: nn.Module, weights: Weights, transform: Transform, device: torch.device):
        self.name = name
        self.weights = weights
        self.transform = transform
        self._spec = BACKBONES[name]
        self._model = model.eval().requires_grad_(False).to(device)
        self._device = device

    @property
    def recipe(self) -> dict[str, Any]:
        """A description in plain values."""
        return {
            "encoder": self.name,
            "layers": self._spec.layers,
            "weights": asdict(self.weights),
            "transform": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.transform).items()},
        }

    def prepare(self, picture: Image.Image) -> Tensor:
        """The input of the network (3, h, w) float32, from a picture in RGB."""
        return self.transform(picture)

    @torch.inference_mode()
    def encode(self, pictures: Tensor, *, grids: bool = True) -> Encoded:
        """The features of prepared pictures (N, 3, h, w).

        Raises:
            EncoderError: a feature is non-finite, because of invalid weights.
        """
        outputs = self._model(pictures.to(self._device))
        grid = outputs["grid"].float()
        if self._spec.tokens:
            side = round((grid.shape[1] - 1) ** 0.5)
            vector = grid[:, 0]
            grid = grid[:, 1:].mT.unflatten(2, (side, side))
        else:
            vector = outputs["vector"].float() if self._spec.vector else grid.mean((2, 3))
        if not (vector.isfinite().all() and (not grids or grid.isfinite().all())):
            raise EncoderError(
                f"{self.name} with the weights {self.weights.name} computes non-finite features: "
                "the weights are invalid or incomplete; name others with --weights"
            )
        return Encoded(vector.cpu().contiguous(), grid.cpu().contiguous() if grids else None)


@dataclass(frozen=True)
class EncodedBatch:
    """The features of a batch of photographs of a list.

    Attributes:
        stop: the index in the list after the batch's last photograph.
        kept: the indices of the photographs that were read, in order.
        failed: the indices of the others, and the reasons.
        encoded: the features of `kept`; None if that is empty.
    """

    stop: int
    kept: list[int]
    failed: dict[int, str]
    encoded: Encoded | None


def stream(
    encoder: Encoder,
    photographs: Sequence[Path | None],
    *,
    start: int = 0,
    batch_size: int = BATCH,
    workers: int = 2,
    grids: bool = True,
    truncated: Callable[[str], object] | None = None,
) -> Generator[EncodedBatch]:
    """Features of the photographs, batch by batch, in their order; unreadable photographs are reported and omitted.

    At most two batches of prepared pictures and `workers` decoded photographs are in memory at a time. The batches do
    not depend on the start of the stream, and neither do the features.

    Args:
        photographs: files; None is a missing one.
        start: the first index, a multiple of `batch_size`.
        workers: threads that read photographs.
        truncated: as in `load_image`; called in these threads.
    """

    def read(path: Path | None) -> Tensor | str:
        try:
            return "no such file" if path is None else encoder.prepare(load_image(path, truncated=truncated))
        except ImageError as error:
            return str(error).removeprefix(f"{printable(path)}: ")

    def submit(first: int) -> tuple[int, list[Future[Tensor | str]]]:
        return first, [pool.submit(read, path) for path in photographs[first : first + batch_size]]

    with ThreadPoolExecutor(workers) as pool:
        firsts = iter(range(start, len(photographs), batch_size))
        ahead = [submit(first) for first in islice(firsts, 2)]
        try:
            while ahead:
                first, futures = ahead.pop(0)
                found = {first + index: future.result() for index, future in enumerate(futures)}
                ahead += [submit(following) for following in islice(firsts, 1)]
                yield _batch(encoder, found, first + len(futures), grids)
        finally:
            for _, futures in ahead:
                for future in futures:
                    future.cancel()


def _batch(encoder: Encoder, found: Mapping[int, Tensor | str], stop: int, grids: bool) -> EncodedBatch:
    pictures = {index: value for index, value in found.items() if isinstance(value, Tensor)}
    failed = {index: value for index, value in found.items() if isinstance(value, str)}
    encoded = encoder.encode(torch.stack([*pictures.values()]), grids=grids) if pictures else None
    return EncodedBatch(stop, [*pictures], failed, encoded)


def build(
    name: str,
    weights: str | Path = "default",
    *,
    transform: str = "auto",
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Encoder:
    """An encoder.

    Args:
        name: one of BACKBONES.
        weights: "default", torchvision's best, downloaded once into torch's cache; "random", initialised by the seed;
            or a file with a state dict of torchvision's names, read with `weights_only=True`. Weights of unused layers
            may be missing.
        transform: "auto" is torchvision's transform for its own weights, identified by name or content, and IMAGENET
            for others; "imagenet" is IMAGENET; "caffe" is the one of Caffe's VGG-16.

    Raises:
        EncoderError: there is no such backbone or file, or the weights do not fit or cannot be downloaded.
    """
    if name not in BACKBONES:
        raise EncoderError(f"no encoder {name!r}; choose one of {', '.join(BACKBONES)}")
    if transform not in TRANSFORMS:
        raise EncoderError(f"no transform {transform!r}; choose one of {', '.join(TRANSFORMS)}")
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _model(name)
        label = Weights("random", _digest(model), seed=seed)
        return Encoder(name, model, label, _transform(None, transform), torch.device(device))
    path = _download(name) if weights == "default" else Path(weights)
    if not path.is_file():
        raise EncoderError(f"{path}: there is no such file of weights")
    sha256 = file_sha256(path)
    published = _published(name, sha256)
    model = _model(name)
    _load(model, path, name)
    label = Weights(published.name if published else path.name, sha256, None if published else str(path.resolve()))
    return Encoder(name, model, label, _transform(published, transform), torch.device(device))


def caffe_vgg16() -> dict[str, Any]:
    """The recipe of cs231n's own features: fc7 of Caffe's VGG-16, whose weights torchvision does not have."""
    transform = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(CAFFE).items()}
    weights = asdict(Weights("VGG_ILSVRC_16_layers"))
    return {"encoder": "vgg16", "layers": BACKBONES["vgg16"].layers, "weights": weights, "transform": transform}


def from_recipe(
    recipe: Mapping[str, Any],
    *,
    weights: Path | None = None,
    near: Sequence[Path] = (),
    device: str | torch.device = "cpu",
) -> Encoder:
    """The encoder of a recipe, with the same weights: `weights`, or found by the recipe.

    Args:
        near: folders to search for the file of weights, after its previous path.

    Raises:
        EncoderError: the recipe is invalid, or the weights are not found or differ.
    """
    try:
        name, label = recipe["encoder"], Weights(**recipe["weights"])
        settings = dict(recipe["transform"])
        transform = Transform(**settings | {k: tuple(settings[k]) for k in ("mean", "std")})
        label.check()
        transform.check()
    except EncoderError as error:
        raise EncoderError(f"not a recipe of features: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"not a recipe of features: {type(error).__name__} {error}") from None
    path: str | Path = weights or _find(name, label, near)
    encoder = build(name, path, device=device, seed=label.seed or 0)
    if label.sha256 is not None and encoder.weights.sha256 != label.sha256:
        raise EncoderError(
            f"{path}: not the weights of the features: SHA-256 {short(encoder.weights.sha256)}, "
            f"but those of {label.name} have {short(label.sha256)}"
        )
    encoder.transform = transform
    return encoder


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        EncoderError: it cannot be read.
    """
    try:
        found = path.stat()
        return _digest_of(path.resolve(), found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise EncoderError(f"{path}: cannot be read: {error.strerror}") from None


@cache
def _digest_of(path: Path, _size: int, _time: int) -> str:
    """Cached: VGG-16's weights are 550 MB, and finding, verifying and loading them each need the digest."""
    return sha256_of(path)


def versions() -> dict[str, str]:
    """Versions of the libraries that features depend on."""
    import PIL

    return {"torch": torch.__version__, "torchvision": _torchvision().__version__, "pillow": PIL.__version__}


def _find(name: str, label: Weights, near: Sequence[Path]) -> str | Path:
    """The weights as an argument of `build`."""
    if label.name == "random":
        return "random"
    if label.path is None and label.sha256 is not None:
        return _download(name, label.name)
    path_then = from_home(label.path or "")
    abroad = path_then.startswith(("\\\\", "//"))  # Windows would connect to another machine and identify the user
    recorded = [Path(path_then)] if path_then and not abroad else []
    for path in (*recorded, *(folder / label.name for folder in (*near, Path(), _cache()))):
        if path.is_file() and (label.sha256 is None or file_sha256(path) == label.sha256):
            return path
    known = f" (SHA-256 {short(label.sha256)})" if label.sha256 else ""
    raise EncoderError(f"the weights of {name}, {label.name}{known}, are not found; name their file with --weights")


def short(sha256: str | None) -> str:
    """The first digits of a SHA-256, enough to distinguish files."""
    return f"{(sha256 or '')[:12]}..."


# torchvision's weights and transforms


def _torchvision() -> ModuleType:
    """torchvision, without its compiled part.

    PyPI's build beside a CPU build of torch cannot load that part, and fails where it registers the operator `nms` in
    Python. A declaration of the operator, which is never called, avoids this.

    Raises:
        EncoderError: it is not installed, or fails in another way.
    """
    try:
        import torchvision
    except ImportError as error:
        raise EncoderError(f"photographs need torchvision, which cannot be imported: {error}") from None
    except RuntimeError as error:
        if str(error) != "operator torchvision::nms does not exist":
            raise EncoderError(f"photographs need torchvision, and importing it fails: {one_line(error)}") from error
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", _NMS)
        import torchvision
    import torchvision.models.feature_extraction  # not loaded by itself

    return torchvision


def _model(name: str) -> nn.Module:
    """The used part of torchvision's model, with initial weights."""
    models = _torchvision().models
    spec = BACKBONES[name]
    nodes = {spec.grid: "grid"} | ({spec.vector: "vector"} if spec.vector else {})
    with torch.device("cpu"):
        model = models.get_model(name, weights=None).eval().float()
    return models.feature_extraction.create_feature_extractor(model, return_nodes=nodes, suppress_diff_warning=True)


def _published(name: str, sha256: str) -> Any | None:
    """torchvision's entry for weights with this SHA-256; its file names end in the first 8 digits."""
    entries = _torchvision().models.get_model_weights(name)
    return next((entry for entry in entries if sha256.startswith(_prefix(entry))), None)


def _prefix(entry: Any) -> str:
    return entry.url.rpartition("-")[2].removesuffix(".pth")


def _transform(entry: Any | None, wanted: str) -> Transform:
    if wanted == "caffe":
        return CAFFE
    if wanted == "imagenet" or entry is None:
        return IMAGENET
    own = entry.transforms()
    return Transform(
        own.resize_size[0],
        own.crop_size[0],
        tuple(own.mean),
        tuple(own.std),
        interpolation=own.interpolation.value,
        antialias=own.antialias,
    )


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _download(name: str, entry_name: str = "DEFAULT") -> Path:
    """torchvision's weights as a file in torch's cache, downloaded if missing."""
    entries = _torchvision().models.get_model_weights(name)
    entry = getattr(entries, entry_name, None)
    if entry is None:
        raise EncoderError(f"torchvision has no weights {entry_name} of {name}; name their file with --weights")
    path = _cache() / entry.url.rpartition("/")[2]
    if not path.is_file():
        if path.parts[0] == "~":  # torch would create a folder of that name here
            raise EncoderError(
                "there is no home folder for the weights; set TORCH_HOME, or name their file with --weights"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry.url, str(path), hash_prefix=_prefix(entry), progress=is_interactive())
        except (OSError, RuntimeError) as error:  # RuntimeError: the content does not match the name
            reason = one_line(getattr(error, "reason", None) or error)
            raise EncoderError(
                f"{entry.url}: the weights of {name} were not downloaded ({reason}); copy the file to {path.parent} "
                "(TORCH_HOME names another folder), or name one with --weights"
            ) from None
    if not file_sha256(path).startswith(_prefix(entry)):
        raise EncoderError(f"{path}: damaged, its SHA-256 does not match its name; remove it and run again")
    return path


def _load(model: nn.Module, path: Path, name: str) -> None:
    """Load the file's weights into the model."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # untrusted bytes can raise any error
        raise EncoderError(f"{path}: refused: damaged, or not only tensors") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise EncoderError(f"{path}: not a state dict of {name}: it has no named weights")
    found = {str(key).removeprefix("module."): value for key, value in content.items()}
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    known = _torchvision().models.get_model(name, weights=None).state_dict() if found.keys() - wanted.keys() else {}
    unexpected = [key for key in found if key not in wanted and key not in known]
    if missing or unexpected:
        parts = [f"{what}: {_some(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise EncoderError(f"{path}: not the weights of {name}; {'; '.join(parts)}")
    for key, value in wanted.items():
        if key in found and found[key].shape != value.shape:
            shapes = f"{tuple(found[key].shape)}, not {tuple(value.shape)}"
            raise EncoderError(f"{path}: not the weights of {name}; {key} has the shape {shapes}")
    model.load_state_dict({key: found.get(key, value) for key, value in wanted.items()})


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode("utf-8") + value.numpy().tobytes())
    return digest.hexdigest()


def _shortened(picture: Image.Image) -> Image.Image:
    """The centre of a very long picture; it contains the transform's crop."""
    width, height = picture.size
    most = LONGEST * min(width, height)
    if max(width, height) <= most:
        return picture
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return picture.crop((left, top, left + min(width, most), top + min(height, most)))
