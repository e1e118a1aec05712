"""Scenes of the built-in dataset: their content, the positions of their shapes, and their pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 96  # pixels of a picture's side
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "moon")
PALETTE = {
    "red": (214, 36, 40),
    "orange": (242, 138, 24),
    "yellow": (243, 206, 30),
    "green": (44, 154, 66),
    "blue": (38, 86, 208),
    "purple": (122, 44, 166),
    "pink": (242, 112, 182),
    "black": (36, 36, 40),
}
COLOURS = tuple(PALETTE)
RADII = {"small": (5.4, 6.4), "large": (9.2, 10.3)}  # pixels
SIZES = tuple(RADII)
COUNTS = (1, 2, 3, 4)
RELATIONS = (
    "left of",
    "above",
)  # of the first group to the second; the opposites are the same scenes with the groups exchanged

GAP = 6.0  # least distance in pixels between two groups, and
MARGIN = 2.0  # of a group from the edge of the picture
GRAIN = np.array(
    [-5, 5, *[0] * 8], dtype=np.float32
)  # one of these is added to each pixel; most are 0, which keeps the files small
FINER = 4  # shapes are drawn this many times larger and then reduced, for smooth edges


@dataclass(frozen=True)
class Group:
    """One to four equal shapes. `places` has x, y, radius and angle of each, in pixels and degrees, y downwards."""

    shape: str
    colour: str
    size: str
    count: int
    places: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(frozen=True)
class Scene:
    """Two groups of different colours; `relation` is the relation of the first to the second."""

    first: Group
    second: Group
    relation: str

    @property
    def groups(self) -> tuple[Group, Group]:
        return self.first, self.second

    @property
    def composition(self) -> tuple[str | int, ...]:
        """The content of a scene without the positions of its shapes."""
        a, b = self.groups
        return a.shape, a.colour, a.size, a.count, self.relation, b.shape, b.colour, b.size, b.count


# The positions of the shapes of a group, in units of the distance between neighbours.
ARRANGEMENTS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    1: (((0, 0),),),
    2: (((0, 0), (1, 0)), ((0, 0), (0, 1)), ((0, 0), (1, 0.7)), ((0, 0.7), (1, 0))),
    3: (
        ((0, 0), (1, 0), (0.5, 1)),
        ((0, 1), (1, 1), (0.5, 0)),
        ((0, 0), (1, 0), (2, 0)),
        ((0, 0), (0, 1), (0, 2)),
        ((0, 0), (1, 0.5), (0, 1)),
        ((1, 0), (0, 0.5), (1, 1)),
    ),
    4: (
        ((0, 0), (1, 0), (0, 1), (1, 1)),
        ((0, 0), (1, 0.3), (0, 1), (1, 1.3)),
        ((0, 0), (1, 0), (0.3, 1), (1.3, 1)),
        ((0, 0), (1, 0), (2, 0), (1, 1)),
        ((0, 0), (0, 1), (0, 2), (1, 1)),
    ),
}


def arrange(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with positions for its shapes: the groups apart along the relation, level across it."""
    along = 0 if scene.relation == "left of" else 1
    while True:
        a, b = _arrange_group(scene.first, rng), _arrange_group(scene.second, rng)
        sizes = _extent(a), _extent(b)
        free = SIDE - 2 * MARGIN - GAP - sizes[0][along] - sizes[1][along]
        if free >= 0 and max(sizes[0][1 - along], sizes[1][1 - along]) <= SIDE - 2 * MARGIN:
            break
    before, between, _ = rng.dirichlet((1.5, 1.0, 1.5)) * free
    starts = MARGIN + before, MARGIN + before + sizes[0][along] + GAP + between
    level = SIDE / 2 + rng.uniform(-14, 14)
    groups = []
    for group, places, size, start in zip(scene.groups, (a, b), sizes, starts, strict=True):
        half = size[1 - along] / 2
        centre = np.clip(level + rng.uniform(-4, 4), MARGIN + half, SIDE - MARGIN - half)
        corner = np.empty(2)
        corner[along], corner[1 - along] = start, centre - half
        low = (places[:, :2] - places[:, 2:3]).min(0)
        places[:, :2] += corner - low
        rows = tuple(tuple(round(float(v), 2) for v in row) for row in places)
        groups.append(Group(group.shape, group.colour, group.size, group.count, rows))  # type: ignore[arg-type]
    return Scene(groups[0], groups[1], scene.relation)


def _arrange_group(group: Group, rng: np.random.Generator) -> np.ndarray:
    """(count, 4) x, y, radius, angle of a group's shapes, before translation."""
    choices = ARRANGEMENTS[group.count]
    grid = np.array(choices[rng.integers(len(choices))], dtype=np.float64)
    low, high = RADII[group.size]
    radius = rng.uniform(low, high) * rng.uniform(0.97, 1.03, group.count)
    distance = 2 * radius.max() + rng.uniform(3.0, 3.0 + 0.5 * low)
    xy = grid * distance + rng.uniform(-0.6, 0.6, grid.shape)
    return np.column_stack([xy, radius, rng.uniform(-9, 9, group.count)])


def _extent(places: np.ndarray) -> np.ndarray:
    """(2,) width and height of the bounding box of the shapes."""
    return (places[:, :2] + places[:, 2:3]).max(0) - (places[:, :2] - places[:, 2:3]).min(0)


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The picture of an arranged scene, (SIDE, SIDE, 3) uint8, on a light background of random tint and grain."""
    picture = _background(rng)  # colour first: NumPy is slow along an axis of 3
    for group in scene.groups:
        ink = (np.array(PALETTE[group.colour]) + rng.uniform(-8, 8, 3)).astype(np.float32)
        for x, y, radius, angle in group.places:
            left, top, part = cover(group.shape, x, y, radius, angle)
            patch = picture[:, top : top + part.shape[0], left : left + part.shape[1]]
            patch += part[: patch.shape[1], : patch.shape[2]] * (ink[:, None, None] - patch)
    picture += GRAIN[rng.integers(0, len(GRAIN), (SIDE, SIDE), dtype=np.uint8)]
    return np.ascontiguousarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def cover(shape: str, x: float, y: float, radius: float, angle: float) -> tuple[int, int, np.ndarray]:
    """Left and top of a shape's patch of the picture, and the coverage of each pixel, 0 to 1."""
    left, top = max(math.floor(x - radius) - 1, 0), max(math.floor(y - radius) - 1, 0)
    side = math.ceil(2 * radius) + 3
    canvas = Image.new("L", (side * FINER, side * FINER), 0)
    centre = np.array([x - left, y - top]) * FINER
    OUTLINES[shape](ImageDraw.Draw(canvas), centre, radius * FINER, math.radians(angle))
    return left, top, np.asarray(canvas.reduce(FINER), dtype=np.float32) / 255


def _background(rng: np.random.Generator) -> np.ndarray:
    """(3, SIDE, SIDE) a light tint that fades towards another in a random direction."""
    middle = rng.uniform(226, 244, 3).astype(np.float32)
    change = rng.uniform(-4, 4, 3).astype(np.float32)
    turn = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-0.7, 0.7, SIDE, dtype=np.float32)
    fade = axis * np.float32(math.cos(turn)) + axis[:, None] * np.float32(math.sin(turn))  # within -1 to 1
    return middle[:, None, None] + fade * change[:, None, None]


def _polygon(points: np.ndarray) -> Callable[[ImageDraw.ImageDraw, np.ndarray, float, float], None]:
    """A function that draws the polygon with these corners, given for a radius of 1."""

    def outline(pen: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, angle: float) -> None:
        c, s = math.cos(angle), math.sin(angle)
        corners = centre - 0.5 + radius * points @ np.array([[c, s], [-s, c]])
        pen.polygon([tuple(corner) for corner in corners.tolist()], fill=255)

    return outline


def _disc(pen: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, fill: int = 255) -> None:
    low, high = centre - 0.5 - radius, centre - 0.5 + radius
    pen.ellipse((*low.tolist(), *high.tolist()), fill=fill)


def _circle(pen: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, angle: float) -> None:
    _disc(pen, centre, 0.96 * radius)


def _moon(pen: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, angle: float) -> None:
    _disc(pen, centre, radius)
    _disc(pen, centre + radius * np.array([math.cos(angle), math.sin(angle)]) * 0.55, 0.78 * radius, fill=0)


def _round_the_circle(radii: tuple[float, ...]) -> np.ndarray:
    """(n, 2) corners at equal angles from the top, at these radii in turn."""
    turn = np.arange(len(radii)) * 2 * math.pi / len(radii)
    return np.array(radii)[:, None] * np.column_stack([np.sin(turn), -np.cos(turn)])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.column_stack([x / 16.5, -(y + 2.5) / 15])


_ARM = 0.34  # half the width of a cross's arms
OUTLINES: dict[str, Callable[[ImageDraw.ImageDraw, np.ndarray, float, float], None]] = {
    "circle": _circle,
    "moon": _moon,
    "square": _polygon(0.86 * np.array([(-1.0, -1.0), (1, -1), (1, 1), (-1, 1)])),
    "triangle": _polygon(np.array([(0.0, -0.95), (1, 0.8), (-1, 0.8)])),
    "diamond": _polygon(np.array([(0.0, -1.05), (0.72, 0), (0, 1.05), (-0.72, 0)])),
    "star": _polygon(1.08 * _round_the_circle((1.0, 0.45) * 5)),
    "heart": _polygon(_heart()),
    "cross": _polygon(
        np.array(
            [
                *[(-_ARM, -1.0), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)],
                *[(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
            ]
        )
    ),
}
