"""Features of a picture, computed from its pixels by fixed steps without learning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from torch_caption.scenes.draw import PALETTE, RADII, SHAPES, SIDE, cover

INKS = np.array(list(PALETTE.values()), dtype=np.float32)  # (8, 3)
FAINT = 25.0  # a pixel within this distance of the background colour is background
WAYS = 8  # directions of an edge
BENDS = np.array(
    [0.14, 0.28, 0.42, 0.56, 0.70], dtype=np.float32
)  # fraction of ink around an edge: small at a corner, half if straight
SCALES = (1.2, 2.4)  # pixels, the radius of "around"
PAD = 8
COUNT_KNOTS = np.arange(1, 5)
AREA_KNOTS = np.arange(3.0, 6.5, 0.5)  # logarithm of pixels
POSITION_KNOTS = np.linspace(0, 1, 5)
ANGLE_KNOTS = np.arange(-2, 6) * math.pi / 8
GRID = 8
LAYER_DIM = len(INKS) + len(COUNT_KNOTS) + len(AREA_KNOTS) + 2 * len(POSITION_KNOTS) + len(SHAPES)
FEATURE_DIM = 2 * LAYER_DIM + len(ANGLE_KNOTS) + 2 + GRID * GRID
POSITION_DIM = len(INKS) + len(COUNT_KNOTS) + len(SHAPES) * len(RADII) + 2 * len(POSITION_KNOTS)
EXAMPLES = 12  # of each silhouette
RIDGE = 3e-4  # added to the covariance of the examples, which are too few to determine it
TINY = 1e-6


def features(picture: np.ndarray) -> np.ndarray:
    """The features (FEATURE_DIM,) float32 of a picture, from its pixels.

    1. The median colour (of every fifth pixel) is the background. The ink of a pixel is its difference from the
       background; its colour is the one of the palette whose difference from the background has the nearest direction,
       which is invariant where ink and background blend at an edge.
    2. The two inks with the largest area are two layers, each an image of coverage from 0 to 1.
    3. Of each layer: similarity of its colour to each colour of the palette; the number of its connected components, by
       Euler number; the logarithm of their mean area; the centre's x and y; and the similarity of its outline to each
       shape. The outline is a histogram of edge pixels by direction and by the fraction of ink around them at two
       scales; the similarity is softmax(-d^2 / 2) of its distance d to fixed examples, whitened by their covariance.
       Numbers become soft histograms: each is shared by the two nearest knots.
    4. The layers are sorted along the axis, x or y, that separates them more; then follow the direction from one to the
       other and the ink on an 8 x 8 grid.

    Fixed factors scale the standard deviation of the first blocks near 1. The examples have a seed of their own.

    Args:
        picture: (h, w, 3) uint8, red, green, blue; resized to SIDE x SIDE.

    Raises:
        ValueError: the array is not such a picture.
    """
    layers = [(*_centre(ink), ink, likeness) for ink, likeness in _layers(_of_size(picture))]
    gap = np.array(layers[1][:2]) - np.array(layers[0][:2])
    if gap[np.abs(gap).argmax()] < 0:
        layers.reverse()
        gap = -gap
    blocks = [_layer_features(*layer) for layer in layers]
    angle = math.atan2(gap[1], gap[0])
    ink = (layers[0][2] + layers[1][2]).reshape(GRID, SIDE // GRID, GRID, SIDE // GRID).mean((1, 3))
    return np.concatenate([*blocks, 2.5 * _hats(angle, ANGLE_KNOTS), 3 * gap, 1.5 * ink.ravel()]).astype(np.float32)


def _of_size(picture: np.ndarray) -> np.ndarray:
    """The picture at SIDE x SIDE."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise ValueError(f"a picture is (h, w, 3) uint8, not {picture.shape} {picture.dtype}")
    if picture.shape[:2] != (SIDE, SIDE):
        return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return picture


def grid(picture: np.ndarray) -> np.ndarray:
    """The features (POSITION_DIM, GRID, GRID) float32 of each spatial position of a picture, from its pixels.

    The layers are those of `features`. The window of a position reaches to the centres of its neighbours, with bilinear
    weights, so each pixel is shared by the positions around it. Of the ink in the window:

    1. its amount, for each colour of the palette;
    2. the number of connected components of its layer, as a soft histogram;
    3. the similarity of its outline to each shape in each size, as in `features`;

    2 and 3 are summed over the layers in the window. Then follows the position, x and y as soft histograms, which does
    not depend on the picture.

    Args:
        picture: (h, w, 3) uint8, as in `features`.

    Raises:
        ValueError: the array is not such a picture.
    """
    layers = _layers(_of_size(picture))
    amounts = np.zeros((GRID * GRID, len(INKS)), dtype=np.float32)
    counts = np.zeros((GRID * GRID, len(COUNT_KNOTS)), dtype=np.float32)
    like = np.zeros((GRID * GRID, len(SHAPES) * len(RADII)), dtype=np.float32)
    along = _shares(np.arange(SIDE))  # (SIDE, GRID)
    for ink, likeness in layers:
        amount = (along.T @ ink @ along).reshape(-1, 1)
        edges = _edges(ink)
        amounts += amount * likeness
        counts += np.clip(amount / 10, 0, 1) * _hats(edges.pieces, COUNT_KNOTS)
        like += _likenesses(edges)
    knots = _hats((np.arange(GRID) + 0.5) / GRID, POSITION_KNOTS)
    where = [np.tile(knots, (GRID, 1)), np.repeat(knots, GRID, axis=0)]
    numbers = np.concatenate([amounts / 20, 2 * counts, 3 * like, *where], axis=1)  # (GRID * GRID, POSITION_DIM)
    return numbers.T.reshape(-1, GRID, GRID).astype(np.float32)


def _shares(pixels: np.ndarray) -> np.ndarray:
    """(n, GRID) the weights of pixels at these coordinates (n,) in the positions along an axis; each sums to 1."""
    return _hats((pixels + 0.5) * GRID / SIDE - 0.5, np.arange(GRID)).astype(np.float32)


def _likenesses(edges: _Edges) -> np.ndarray:
    """(GRID * GRID, shapes * sizes) the similarity of the outline in each window to each silhouette."""
    shares = (_shares(edges.y)[:, :, None] * _shares(edges.x)[:, None, :]).reshape(-1, GRID * GRID)
    shares *= edges.steep[:, None]
    length = shares.sum(0)  # of the outline in each window
    kinds = [edges.ways[:, :, None] * bends[:, None, :] for bends in edges.bends]  # (E, WAYS, len(BENDS))
    histograms = [shares.T @ kind.reshape(len(kind), WAYS * len(BENDS)) for kind in kinds]
    outlines = np.sqrt(np.concatenate(histograms, axis=1) / (length[:, None] + TINY))
    means, whiten = _silhouettes()
    outlines, means = outlines @ whiten, means.reshape(-1, means.shape[-1])
    distance = (outlines**2).sum(1)[:, None] - 2 * outlines @ means.T + (means**2).sum(1)  # (GRID * GRID, silhouettes)
    like = np.exp(-(distance - distance.min(1, keepdims=True)) / 2)
    return np.clip(length / 10, 0, 1)[:, None] * like / like.sum(1, keepdims=True)


def _layers(picture: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Coverage (SIDE, SIDE) by each of the two main inks, and its similarity (8,) to the colours of the palette."""
    pixels = picture.reshape(-1, 3).T.astype(np.float32, order="C")  # (3, SIDE * SIDE)
    some = pixels[:, ::5]
    paper = np.partition(some, some.shape[1] // 2)[:, some.shape[1] // 2]
    full = np.maximum(np.linalg.norm(paper - INKS, axis=1), FAINT)  # (8,)
    inked = paper[:, None] - pixels
    depth = np.sqrt((inked * inked).sum(0))
    visible = np.flatnonzero(depth > FAINT)
    depth = depth[visible]
    cosine = inked[:, visible].T @ ((paper - INKS) / full[:, None]).T / depth[:, None]  # (visible, 8)
    masses = np.bincount(cosine.argmax(1), depth, len(INKS)) / full
    main = np.argsort(-masses, kind="stable")[:2]
    which = cosine[:, main].argmax(1)
    amount = _firm(depth / full[main][which])
    layers = []
    for k in range(2):
        own = which == k
        ink = np.zeros(SIDE * SIDE, dtype=np.float32)
        ink[visible[own]] = amount[own]
        clear = amount[own] ** 4  # a pixel with more ink has a more certain colour
        likeness = np.exp(50 * (clear @ cosine[own] / (clear.sum() + TINY) - 1))
        layers.append((ink.reshape(SIDE, SIDE), likeness))
    return layers


def _firm(amount: np.ndarray) -> np.ndarray:
    """Coverage with low values set to 0 and high values to 1."""
    return np.clip((amount - 0.1) / 0.8, 0, 1)


def _centre(ink: np.ndarray) -> tuple[float, float]:
    """x and y of the centre of mass, 0 to 1."""
    axis = np.arange(SIDE, dtype=np.float32) / (SIDE - 1)
    mass = ink.sum() + TINY
    return float(ink.sum(0) @ axis / mass), float(ink.sum(1) @ axis / mass)


def _layer_features(x: float, y: float, ink: np.ndarray, likeness: np.ndarray) -> np.ndarray:
    """(LAYER_DIM,) the features of one layer; all 0 without ink."""
    outline, pieces = _outline(ink)
    mass = ink.sum()
    area = math.log(mass / max(pieces, 1) + 1)
    means, whiten = _silhouettes()
    distance = ((outline @ whiten - means) ** 2).sum(-1)  # (shapes, sizes)
    like = np.exp(-(distance - distance.min()) / 2).sum(1)
    numbers = [
        3 * likeness,
        2.5 * _hats(pieces, COUNT_KNOTS),
        2.5 * _hats(area, AREA_KNOTS),
        _hats(x, POSITION_KNOTS),
        _hats(y, POSITION_KNOTS),
        3 * like / like.sum(),
    ]
    return float(np.clip((mass - 5) / 20, 0, 1)) * np.concatenate(numbers)


def _hats(value: float | np.ndarray, knots: np.ndarray) -> np.ndarray:
    """The linear weights of a value for the two nearest of equidistant knots; beyond the ends, the last knot has 1."""
    inside = np.minimum(np.maximum(value, knots[0]), knots[-1])
    return np.maximum(1 - np.abs(inside[..., None] - knots) / (knots[1] - knots[0]), 0)


def _outline(ink: np.ndarray) -> tuple[np.ndarray, float]:
    """(len(SCALES) * WAYS * len(BENDS),) roots of histograms of the edge pixels, and the number of components."""
    edges = _edges(ink)
    weight = edges.steep / (edges.steep.sum() + TINY)
    ways = (edges.ways * weight[:, None]).T  # (WAYS, edge pixels)
    outline = np.sqrt(np.concatenate([(ways @ bends).ravel() for bends in edges.bends]))
    return outline, edges.pieces


@dataclass(frozen=True)
class _Edges:
    """The edge pixels of one layer.

    Attributes:
        y, x: (E,) their coordinates in the picture.
        steep: (E,) the magnitude of the gradient of ink.
        ways: (E, WAYS) its direction, as a soft histogram.
        bends: for each scale (E, len(BENDS)), the fraction of ink around, as a soft histogram.
        pieces: the number of connected components of the layer minus their holes.
    """

    y: np.ndarray
    x: np.ndarray
    steep: np.ndarray
    ways: np.ndarray
    bends: list[np.ndarray]
    pieces: float


def _edges(ink: np.ndarray) -> _Edges:
    ink, top, left = _crop(ink)
    down, across = (_blurs()[:, :n, :n] for n in ink.shape)
    soft = down[0] @ ink @ across[0]
    dy, dx = np.zeros_like(soft), np.zeros_like(soft)
    dy[1:-1], dx[:, 1:-1] = (soft[2:] - soft[:-2]) / 2, (soft[:, 2:] - soft[:, :-2]) / 2
    steep = np.hypot(dx, dy)
    edge = steep > 0.08
    turn = np.arctan2(dy[edge], dx[edge]) * np.float32(WAYS / (2 * math.pi))
    apart = np.abs((turn[:, None] - np.arange(WAYS, dtype=np.float32) + WAYS / 2) % WAYS - WAYS / 2)
    around = ((down[k] @ ink @ across[k])[edge] for k in range(1, len(SCALES) + 1))
    y, x = np.nonzero(edge)
    bends = [_hats(bend, BENDS) for bend in around]
    return _Edges(y + top, x + left, steep[edge], np.maximum(1 - apart, 0), bends, _pieces(soft > 0.4))


def _crop(ink: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The part with ink, with a margin of the width of the blurs; and its first row and column in the picture."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return np.zeros((2 * PAD, 2 * PAD), dtype=np.float32), 0, 0
    part = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    framed = np.zeros((part.shape[0] + 2 * PAD, part.shape[1] + 2 * PAD), dtype=np.float32)
    framed[PAD:-PAD, PAD:-PAD] = part
    return framed, int(rows[0]) - PAD, int(columns[0]) - PAD


@lru_cache(maxsize=1)
def _blurs() -> np.ndarray:
    """(1 + len(SCALES), n, n) matrices that blur along an axis of up to n pixels."""
    axis = np.arange(SIDE + 2 * PAD)
    sigma = np.array((1.0, *SCALES))[:, None, None]
    kernel = np.exp(-0.5 * ((axis[:, None] - axis) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    return kernel.astype(np.float32)


def _pieces(solid: np.ndarray) -> float:
    """The number of components of a mask with an empty border minus its holes: Gray's count of 2 x 2 windows."""
    a, b, c, d = (part.astype(np.int8) for part in (solid[:-1, :-1], solid[1:, :-1], solid[:-1, 1:], solid[1:, 1:]))
    total = a + b + c + d
    diagonal = (total == 2) & (a == d)
    return float((total == 1).sum() - (total == 3).sum() + 2 * diagonal.sum()) / 4


@lru_cache(maxsize=1)
def _silhouettes() -> tuple[np.ndarray, np.ndarray]:
    """Mean outlines (shapes, sizes, K) of example drawings, whitened, and the matrix (K, K) that whitens."""
    rng = np.random.default_rng(0)
    outlines = [
        [[_example(shape, radii, rng) for _ in range(EXAMPLES)] for radii in RADII.values()] for shape in SHAPES
    ]
    examples = np.array(outlines, dtype=np.float64)  # (shapes, sizes, EXAMPLES, K)
    means = examples.mean(2)
    spread = (examples - means[:, :, None]).reshape(-1, examples.shape[-1])
    covariance = spread.T @ spread / len(spread) + RIDGE * np.eye(spread.shape[1])
    whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return means @ whiten, whiten


def _example(shape: str, radii: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    x, y = SIDE / 2 + rng.random(2)
    left, top, part = cover(shape, x, y, rng.uniform(*radii), rng.uniform(-9, 9))
    ink = np.zeros((SIDE, SIDE), dtype=np.float32)
    ink[top : top + part.shape[0], left : left + part.shape[1]] = _firm(part)
    return _outline(ink)[0]
