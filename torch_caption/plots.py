"""Figures of a run, of captions and of the comparison, as PNG files.

Figures are objects, rendered by the Agg backend without pyplot: there is no global state, no window, and threads may
render concurrently. Colours are Okabe and Ito's, distinguishable for the colour-blind, and every colour is repeated by
a word or a shape.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from torch_caption.errors import DataError, ImageError
from torch_caption.io import cache_folder
from torch_caption.io.images import load_image

os.environ |= cache_folder.for_matplotlib()  # matplotlib reads it when imported; workers inherit it

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
INK, GREY, PALE = "#222222", "#6B6B6B", "#ECECEC"
DPI = 150
ATTENTION_DPI = 80  # lower, for one picture per word
MAX_PIXELS = 1e8  # of a gallery; a larger one has a lower resolution
FONT = "DejaVu Sans"  # comes with matplotlib
SCORES = ("BLEU-4", "CIDEr")  # that training records


def loss_curves(history: Sequence[Mapping[str, Any]], path: str | Path, title: str = "Loss") -> Path:
    """Training and validation loss by epoch, and a panel for each score.

    Args:
        history: one mapping per epoch, with "epoch", "train_loss" and "val_loss" (nats per word) and optionally scores
            such as "BLEU-4" and "CIDEr"; missing and non-numeric values are skipped.
        path: the PNG file to write.

    Returns:
        path.

    Raises:
        DataError: the history is empty.
    """
    if not history:
        raise DataError("there is no epoch to plot")
    scores = [name for name in SCORES if any(_number(row, name) is not None for row in history)]
    figure = Figure(figsize=(10.5 if scores else 7.0, 4.4), dpi=DPI, layout=_layout())
    grid = figure.add_gridspec(max(1, len(scores)), 5)
    loss = figure.add_subplot(grid[:, :3] if scores else grid[:, :])
    for name, what, colour, marker in (
        ("train_loss", "training", VERMILION, "s"),
        ("val_loss", "validation", BLUE, "o"),
    ):
        if points := list(_points(history, name)):
            best_epoch, best = min(points, key=lambda point: point[1])
            _curve(loss, points, colour, marker, f"{what}, lowest {best:.3f} at epoch {best_epoch:g}")
    _finish_curve(loss, title)
    loss.set_ylabel("nats per word")
    loss.set_xlabel("epoch")
    if loss.get_lines():
        loss.legend(frameon=False)
    for row, name in enumerate(scores):
        panel = figure.add_subplot(grid[row, 3:], sharex=loss)
        points = list(_points(history, name))
        best_epoch, best = max(points, key=lambda point: point[1])
        _curve(panel, points, GREEN, "o", name)
        panel.plot(best_epoch, best, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, clip_on=False)
        _finish_curve(panel, f"{name}, highest {best:.3f} at epoch {best_epoch:g}")
        if row == len(scores) - 1:
            panel.set_xlabel("epoch")
        else:
            panel.tick_params(labelbottom=False)
    return _save(figure, path)


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _points(history: Sequence[Mapping[str, Any]], name: str) -> Iterator[tuple[float, float]]:
    for row in history:
        if (value := _number(row, name)) is not None:
            yield float(row["epoch"]), value


def _curve(axes: Axes, points: Sequence[tuple[float, float]], colour: str, marker: str, label: str) -> None:
    epochs, values = zip(*points, strict=True)
    if epochs[0] == epochs[-1]:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.margins(y=0.5)  # space for the legend
    size = 4 if len(points) <= 40 else 0  # many markers would look like a thick line
    axes.plot(epochs, values, color=colour, marker=marker, markersize=size, linewidth=1.8, label=label)


def _finish_curve(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color=PALE)
    _unbox(axes)


def _unbox(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor=INK, labelsize=9)


# Galleries


@dataclass(frozen=True)
class GalleryItem:
    """A picture with its caption.

    Attributes:
        picture: (h, w) or (h, w, 3) uint8, a Pillow image, or a file. None or an unreadable file is shown as a grey
            panel with the file's name.
        caption: of the model.
        references: reference captions, smaller below it.
        right: whether the caption is correct; None if unknown.
        note: additional text, small above the caption.
    """

    picture: np.ndarray | Image.Image | str | Path | None
    caption: str
    references: tuple[str, ...] = ()
    right: bool | None = None
    note: str = ""


CELL, GAP, MARGIN = 2.5, 0.3, 0.3  # inches: width of a column, gap, margin
DARK = 0.2  # brightness of a picture where the attention weight is 0
TALLEST = 1.25  # maximum height of a picture over the column's width; taller ones are scaled down


@dataclass(frozen=True)
class _Line:
    text: str
    size: float  # points
    colour: str
    bold: bool = False

    @property
    def height(self) -> float:
        return self.size * 1.35 / 72  # inches


_SPACE = _Line("", 4, INK)


@dataclass(frozen=True)
class _Cell:
    picture: Image.Image | None
    name: str  # text on the panel of a missing picture
    lines: list[_Line]

    @property
    def text_height(self) -> float:
        return sum(line.height for line in self.lines)

    @property
    def size(self) -> tuple[float, float]:
        """The picture's width and height in inches."""
        if self.picture is None:
            return CELL, CELL
        width, height = self.picture.size
        scale = min(CELL / width, CELL * TALLEST / height)
        return width * scale, height * scale


def gallery(items: Sequence[GalleryItem], path: str | Path, columns: int = 4) -> Path:
    """Pictures in rows, each with its complete caption below.

    Args:
        path: the PNG file to write.
        columns: maximum number of pictures in a row.

    Returns:
        path.

    Raises:
        ValueError: no items; columns < 1; an array that is not a picture.
    """
    _check_rows(items, columns)
    ruler = _Ruler()
    return _draw_rows(_rows([_cell(item, ruler) for item in items], columns), path)


def _check_rows(items: Sequence[object], columns: int) -> None:
    """Raise ValueError unless there are items and columns."""
    if not items:
        raise ValueError("no picture to show")
    if columns < 1:
        raise ValueError(f"pictures need at least one column, not {columns}")


def _rows(cells: Sequence[_Cell], columns: int) -> list[Sequence[_Cell]]:
    return [cells[start : start + columns] for start in range(0, len(cells), columns)]


def _draw_rows(rows: Sequence[Sequence[_Cell]], path: str | Path, dpi: float = DPI) -> Path:
    """Pictures with their texts, row by row."""
    columns = max(map(len, rows))
    tops = [max(cell.size[1] for cell in row) for row in rows]  # the captions of a row start at the same height
    heights = [top + max(cell.text_height for cell in row) for top, row in zip(tops, rows, strict=True)]
    width = 2 * MARGIN + columns * (CELL + GAP) - GAP
    height = 2 * MARGIN + sum(heights) + GAP * (len(rows) - 1)
    dpi = min(dpi, math.sqrt(MAX_PIXELS / (width * height)))
    figure = Figure(figsize=(width, height), dpi=dpi)
    y = height - MARGIN
    for row, top, row_height in zip(rows, tops, heights, strict=True):
        for column, cell in enumerate(row):
            _draw_cell(figure, cell, MARGIN + column * (CELL + GAP), y - top)
        y -= row_height + GAP
    return _save(figure, path)


@dataclass(frozen=True)
class AttentionItem:
    """A picture, its caption, and the attention weights of each word.

    Attributes:
        picture: as in `GalleryItem`; the weights of a missing one are shown on grey.
        words: T of them.
        weights: (T, a, b), rows and columns of the picture from its upper left corner.
    """

    picture: np.ndarray | Image.Image | str | Path | None
    words: Sequence[str]
    weights: np.ndarray


def attention(items: Sequence[AttentionItem], path: str | Path, columns: int = 6) -> Path:
    """Each picture with its caption, followed by an attention map for each word.

    Brightness is the attention weight over the maximum weight of the word, interpolated between positions.

    Args:
        path: the PNG file to write.
        columns: maximum number of pictures in a row.

    Returns:
        path.

    Raises:
        ValueError: no items; columns < 1; weights that are not (T, a, b), or not one per word.
    """
    _check_rows(items, columns)
    ruler = _Ruler()
    rows: list[Sequence[_Cell]] = []
    for item in items:
        if item.weights.ndim != 3 or len(item.weights) != len(item.words) or 0 in item.weights.shape[1:]:
            raise ValueError(f"weights of {len(item.words)} words must be (T, a, b), but are {item.weights.shape}")
        picture = _picture(item.picture)[0] or Image.new("RGB", (256, 256), PALE)
        cells = [_cell(GalleryItem(picture, " ".join(item.words)), ruler)]
        pairs = zip(item.words, item.weights, strict=True)
        cells += [_cell(GalleryItem(lit(picture, weights), word), ruler) for word, weights in pairs]
        rows += _rows(cells, columns)
    return _draw_rows(rows, path, dpi=ATTENTION_DPI)


def lit(picture: Image.Image, weights: np.ndarray) -> Image.Image:
    """The picture, dark where the weights (a, b), rows and columns from its upper left corner, are small."""
    shares = np.clip(weights / max(float(weights.max()), np.finfo(np.float64).tiny), 0, 1)
    light = Image.fromarray(np.rint(255 * shares).astype(np.uint8)).resize(picture.size, Image.Resampling.BILINEAR)
    return Image.composite(picture, ImageEnhance.Brightness(picture).enhance(DARK), light)


class _Ruler:
    """Measures rendered text and wraps it."""

    def __init__(self) -> None:
        self._renderer = FigureCanvasAgg(Figure(dpi=DPI)).get_renderer()
        self._letters = get_font(findfont(FontProperties(family=FONT))).get_charmap()

    def wrap(self, text: str, size: float, colour: str, *, bold: bool = False, share: float = 0.98) -> list[_Line]:
        """Lines of at most this fraction of a column's width; a wider word is broken."""
        font = FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")

        def fits(text: str) -> bool:
            return self._renderer.get_text_width_height_descent(text, font, ismath=False)[0] <= share * CELL * DPI

        lines = [""]
        for word in self._drawable(text).split():
            if fits(f"{lines[-1]} {word}".lstrip()):
                lines[-1] = f"{lines[-1]} {word}".lstrip()
                continue
            lines.append("")
            for letter in word:
                if not fits(lines[-1] + letter):
                    lines.append("")
                lines[-1] += letter
        return [_Line(line, size, colour, bold) for line in lines if line]

    def _drawable(self, text: str) -> str:
        return "".join(c if c.isspace() or ord(c) in self._letters else "\N{REPLACEMENT CHARACTER}" for c in text)


def _cell(item: GalleryItem, ruler: _Ruler) -> _Cell:
    lines = [_SPACE]
    if item.right is not None:
        mark, colour = ("\N{CHECK MARK} right", GREEN) if item.right else ("\N{BALLOT X} wrong", VERMILION)
        lines += ruler.wrap(mark, 9, colour, bold=True)
    lines += ruler.wrap(item.note, 8, GREY)
    lines += ruler.wrap(item.caption, 10, INK) if item.caption.strip() else ruler.wrap("(no words)", 10, GREY)
    for reference in item.references:
        lines += [_SPACE, *ruler.wrap(reference, 8, GREY)]
    picture, name = _picture(item.picture)
    return _Cell(picture, "\n".join(line.text for line in ruler.wrap(name, 9, GREY, share=0.85)), lines)


def _picture(source: np.ndarray | Image.Image | str | Path | None) -> tuple[Image.Image | None, str]:
    """The picture, or None and a replacement text."""
    if source is None:
        return None, "no picture"
    if isinstance(source, str | Path):
        try:
            picture = load_image(Path(source), truncated=lambda line: None)
        except ImageError:
            return None, Path(source).name
    elif isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or not source.size or (source.ndim != 2 and source.shape[2:] != (3,)):
            raise ValueError(f"a picture is (h, w) or (h, w, 3) uint8, not {source.shape} {source.dtype}")
        picture = Image.fromarray(source).convert("RGB")
    else:
        picture = source.convert("RGB")  # a copy, which may be resized
    picture.thumbnail((1024, 1024))  # more is not visible
    return picture, ""


def _draw_cell(figure: Figure, cell: _Cell, x: float, y: float) -> None:
    """The picture above y, its lines below; x and y are inches from the left and from the bottom of the figure."""
    width, height = figure.get_size_inches()
    w, h = cell.size
    axes = figure.add_axes(((x + (CELL - w) / 2) / width, y / height, w / width, h / height), xticks=[], yticks=[])
    axes.spines[:].set_color("#CFCFCF")
    if cell.picture is None:
        axes.set_facecolor(PALE)
        axes.text(0.5, 0.5, cell.name, fontsize=9, family=FONT, color=GREY, ha="center", va="center", parse_math=False)
    else:
        axes.imshow(cell.picture, aspect="auto", interpolation="bicubic")
    for line in cell.lines:
        y -= line.height
        text = figure.text(
            x / width, (y + 0.3 * line.height) / height, line.text, fontsize=line.size, color=line.colour
        )
        text.set(family=FONT, weight="bold" if line.bold else "normal", va="baseline")
        text.set_parse_math(False)  # a caption may contain dollar signs


# The comparison of hand-derived and automatic gradients


def comparison(
    errors: Mapping[str, Mapping[str, float]],
    gradient_norms: Mapping[str, Sequence[float]],
    path: str | Path,
    bar: float | None = 1e-12,
) -> Path:
    """The error of each gradient with the tolerance, and gradient norms by time step.

    Args:
        errors: function -> gradient -> its maximum relative error against automatic differentiation.
        gradient_norms: curve -> the norm of dL/dh_t for t = 1, 2, ..., T; norms of 0 leave a gap.
        path: the PNG file to write.
        bar: the tolerance; None shows none.

    Returns:
        path.

    Raises:
        ValueError: no errors or no norms.
    """
    if not any(errors.values()) or not any(gradient_norms.values()):
        raise ValueError("there are no errors or no norms to plot")
    figure = Figure(figsize=(13.0, max(4.6, 1.5 + 0.34 * len(errors))), dpi=DPI, layout=_layout())
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_errors(left, errors, bar)
    _draw_norms(right, gradient_norms)
    return _save(figure, path)


def _draw_errors(axes: Axes, errors: Mapping[str, Mapping[str, float]], bar: float | None) -> None:
    values = [value for gradients in errors.values() for value in gradients.values()]
    positive = [math.log10(value) for value in (*values, bar or 0.0) if 0 < value < math.inf] or [-16.0]
    low, high = math.floor(min(positive)), math.ceil(max(positive))
    room = max(1, round((high - low) / 6))  # powers of ten for the zeros on the left and names on the right
    floor, ceiling = 10.0 ** (low - room), 10.0 ** (high + 2 * room)
    axes.set_xscale("log")
    axes.set_xlim(floor / 10 ** (room / 2), ceiling)
    for row, gradients in enumerate(errors.values()):
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color="#F6F6F6", zorder=0)
        passed = {name for name, value in gradients.items() if 0 <= value <= (bar or sys.float_info.max)}
        worst = max(passed, key=lambda name: gradients[name], default="")
        for k, (name, value) in enumerate(gradients.items()):
            y = row + 0.56 * (k + 0.5) / len(gradients) - 0.28
            x = floor if value == 0 else value if math.isfinite(value) else ceiling / 10 ** (room / 2)
            _draw_error(axes, x, y, value, name in passed)
            if name not in passed or (name == worst and len(passed) == len(gradients) and value > 0):
                _name(axes, x, y, f"{name} {value:.0e}", GREY if name in passed else VERMILION)
    ticks = range(low, high + 2 * room + 1, max(2, math.ceil((high - low) / 7)))
    axes.set_xticks([floor, *(10.0**k for k in ticks)], ["exactly\n0", *(f"1e{k}" for k in ticks)])
    axes.minorticks_off()
    axes.axvline(floor * 10 ** (room / 2), color=GREY, linewidth=0.8, linestyle=":")
    if bar is not None:
        axes.axvline(bar, color=VERMILION, linewidth=1.4, linestyle="--", zorder=1)
        top = axes.get_xaxis_transform()  # data along x, the axes' height along y
        axes.text(bar, 1.01, f"tolerance {bar:.0e}", transform=top, ha="center", fontsize=9, color=VERMILION)
    axes.set_ylim(len(errors) - 0.5, -0.5)
    axes.set_yticks(range(len(errors)), list(errors), parse_math=False)
    axes.set_xlabel("maximum relative error of each output and gradient")
    axes.set_title("Hand-derived against automatic", loc="left", fontsize=11, color=INK, pad=18)
    _unbox(axes)
    axes.tick_params(axis="y", length=0)


def _draw_error(axes: Axes, x: float, y: float, value: float, passed: bool) -> None:
    if not math.isfinite(value):
        axes.plot(x, y, "X", color=VERMILION, markersize=7)
    elif not passed:
        axes.plot(x, y, "D", color=VERMILION, markersize=6)
    elif value > 0:
        axes.plot(x, y, "o", color=BLUE, markersize=4.5, markeredgecolor="white", markeredgewidth=0.4)
    else:
        axes.plot(x, y, "o", color=GREY, markersize=4.5, markerfacecolor="white")


def _name(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Beside the point, on the side with more space, and readable across the tolerance line."""
    low, high = axes.get_xlim()
    left = math.log(x / low) > 0.75 * math.log(high / low)
    label = axes.annotate(text, (x, y), (-7 if left else 7, 0), textcoords="offset points", va="center", fontsize=8)
    label.set(color=colour, ha="right" if left else "left", path_effects=[withStroke(linewidth=3, foreground="white")])
    label.set_parse_math(False)


def _draw_norms(axes: Axes, gradient_norms: Mapping[str, Sequence[float]]) -> None:
    styles = ((VERMILION, "-"), (BLUE, "--"), (GREEN, "-."), (PURPLE, ":"), (ORANGE, "-"))
    for k, (label, norms) in enumerate(gradient_norms.items()):
        colour, line = styles[k % len(styles)]
        shown = [norm if 0 < norm < math.inf else math.nan for norm in norms]
        axes.plot(range(1, len(norms) + 1), shown, color=colour, linestyle=line, linewidth=2, label=label)
    axes.set_yscale("log")
    axes.grid(color=PALE)
    axes.set_xlabel("t, with the loss after the last step")
    axes.set_ylabel(r"$\|\partial L\,/\,\partial h_t\|$", fontsize=11)
    axes.set_title("The vanishing gradient", loc="left", fontsize=11, color=INK, pad=18)
    axes.legend(frameon=False, loc="lower right")
    _unbox(axes)


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.06, hspace=0.06)


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=figure.dpi, facecolor="white", metadata={"Software": None})
    return path
