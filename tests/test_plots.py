"""The pictures: curves, galleries, attention, and the comparison."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from tests.helpers.rings import ringed
from torch_caption import plots
from torch_caption.plots import GalleryItem, comparison, gallery, loss_curves

HISTORY = [
    {
        "epoch": epoch,
        "step": 10 * epoch,
        "train_loss": 3 / epoch,
        "val_loss": 1 + (epoch - 3) ** 2,
        "BLEU-4": 0.1 * epoch,
    }
    for epoch in range(1, 6)
]
ERRORS = {
    "affine": {"dx": 0.0, "dw": 0.0},
    "rnn, lengths": {"dx": 2e-16, "dWh": 7e-16},
    "lstm": {"dx": 2e-16, "dWh": 3e-3, "db": math.nan},
}
NORMS = {"rnn": [1e-9, 1e-6, 1e-3], "lstm": [0.0, 1e-1, 1.0]}
PHOTO = np.full((40, 60, 3), (200, 30, 20), np.uint8)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures behind the files, in the order of their making."""
    made: list[Figure] = []
    save = plots._save

    def keep(figure: Figure, path: str | Path) -> Path:
        made.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return made


def assert_is_picture(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        colours = picture.convert("RGB").getcolors(2**20)
    assert colours is not None
    assert len(colours) > 20


def texts(figure: Figure) -> list[Text]:
    """What is written, lines of nothing left out."""
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def assert_apart(parts: Sequence[Text], figure: Figure) -> None:
    """All inside the figure, and no two over each other."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = {text: text.get_window_extent(renderer) for text in parts}
    for text, box in boxes.items():
        assert box.x0 >= 0 and box.y0 >= 0, text.get_text()  # noqa: PT018
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text.get_text()  # noqa: PT018
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, down) < 1, f"{one.get_text()!r} and {other.get_text()!r} overlap"


def test_no_global_state() -> None:
    code = "import torch_caption.plots, sys; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Curves


def test_loss_curves(tmp_path: Path, figures: list[Figure]) -> None:
    path = loss_curves(HISTORY, str(tmp_path / "loss.png"), title="a run of $5 & more")
    assert path == tmp_path / "loss.png"
    assert_is_picture(path)
    loss, bleu = figures[0].axes
    train, val = loss.get_lines()
    assert train.get_xydata().tolist() == [[row["epoch"], row["train_loss"]] for row in HISTORY]
    assert val.get_xydata().tolist() == [[row["epoch"], row["val_loss"]] for row in HISTORY]
    assert bleu.get_lines()[0].get_xydata().tolist() == [[row["epoch"], row["BLEU-4"]] for row in HISTORY]
    assert loss.get_title(loc="left") == "a run of $5 & more"
    legend = [text.get_text() for text in loss.get_legend().get_texts()]
    assert legend == ["training, lowest 0.600 at epoch 5", "validation, lowest 1.000 at epoch 3"]
    assert bleu.get_title(loc="left") == "BLEU-4, highest 0.500 at epoch 5"
    figures[0].draw_without_rendering()
    titles = [axes.title if axes.get_title() else axes._left_title for axes in figures[0].axes]
    assert_apart(
        [*titles, *loss.get_legend().get_texts(), loss.xaxis.label, loss.yaxis.label, bleu.xaxis.label], figures[0]
    )


def test_a_panel_for_each_score(tmp_path: Path, figures: list[Figure]) -> None:
    loss_curves([{**row, "CIDEr": 2.0, "ROUGE-L": None, "seconds": 3.0} for row in HISTORY], tmp_path / "loss.png")
    assert [axes.get_title(loc="left").split(",")[0] for axes in figures[0].axes] == ["Loss", "BLEU-4", "CIDEr"]


def test_missing_and_non_finite_values_are_left_out(tmp_path: Path, figures: list[Figure]) -> None:
    history = [{"epoch": 1, "val_loss": 2.0}, {"epoch": 2, "train_loss": math.nan, "val_loss": math.inf}]
    history += [{"epoch": 3, "train_loss": 1.0, "val_loss": 1.5, "CIDEr": 0.5}, {"epoch": 4}]
    assert_is_picture(loss_curves(history, tmp_path / "loss.png"))
    loss, cider = figures[0].axes
    assert [line.get_xydata().tolist() for line in loss.get_lines()] == [[[3, 1.0]], [[1, 2.0], [3, 1.5]]]
    assert cider.get_lines()[0].get_xydata().tolist() == [[3, 0.5]]


def test_one_epoch_and_none(tmp_path: Path, figures: list[Figure]) -> None:
    assert_is_picture(loss_curves(HISTORY[:1], tmp_path / "loss.png"))
    figures[0].draw_without_rendering()
    assert all(float(tick).is_integer() for tick in figures[0].axes[0].get_xticks())
    with pytest.raises(ValueError, match="no epoch"):
        loss_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


# Galleries

LONG = "a caption that goes on for several lines, with $5 and $6 in it and a_word_" + "without_any_end_" * 6


def items(tmp_path: Path) -> list[GalleryItem]:
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    return [
        GalleryItem(PHOTO, LONG, right=True),
        GalleryItem(Image.fromarray(PHOTO), "a short one", ("one reference", "another " * 20), right=False),
        GalleryItem(tmp_path / "photo.png", "from a file", note="score 1.25"),
        GalleryItem(None, "nothing to see", right=True),
        GalleryItem(tmp_path / "broken.jpg", ""),
        GalleryItem(np.full((300, 40), 90, np.uint8), "tall, grey\nand in two lines"),
        GalleryItem(str(tmp_path / "a_name_that_is_longer_than_its_panel_is_wide_0000001.jpg"), "wide 犬 🐕 é"),
    ]


@pytest.mark.parametrize("columns", ringed([1, 3, 20], {3}))
def test_nothing_is_cut_and_nothing_overlaps(tmp_path: Path, figures: list[Figure], columns: int) -> None:
    assert_is_picture(gallery(items(tmp_path), tmp_path / "gallery.png", columns=columns))
    figure = figures[0]
    assert_apart(texts(figure), figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in texts(figure):
        assert not text.get_parse_math()
        box = text.get_window_extent(renderer)
        assert box.width <= plots.CELL * figure.dpi
        for axes in figure.axes:
            if text not in axes.texts:
                assert not box.overlaps(axes.bbox), text.get_text()
    for one, other in itertools.combinations(figure.axes, 2):
        assert not one.bbox.overlaps(other.bbox)


def test_every_word_is_there(tmp_path: Path, figures: list[Figure]) -> None:
    gallery(items(tmp_path), tmp_path / "gallery.png")
    seen = "".join(text.get_text() for text in texts(figures[0]))
    for words in (
        LONG,
        "a short one",
        "one reference",
        "another " * 20,
        "score 1.25",
        "no picture",
        "broken.jpg",
        "(no words)",
    ):
        assert "".join(words.split()) in "".join(seen.split())
    assert "wide \N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER} é" in seen  # letters that the font has not
    assert "_0000001.jpg" in seen


def test_right_and_wrong_are_marked_in_colour_and_in_words(tmp_path: Path, figures: list[Figure]) -> None:
    gallery(items(tmp_path), tmp_path / "gallery.png")
    marks = [(text.get_text(), text.get_color()) for text in texts(figures[0]) if text.get_weight() == "bold"]
    right, wrong = ("\N{CHECK MARK} right", plots.GREEN), ("\N{BALLOT X} wrong", plots.VERMILION)
    assert marks == [right, wrong, right]


def test_pictures_keep_their_shape_and_colour(tmp_path: Path, figures: list[Figure]) -> None:
    path = gallery(items(tmp_path), tmp_path / "gallery.png", columns=7)
    photo, _, _, _, _, tall, _ = figures[0].axes
    assert photo.bbox.width / photo.bbox.height == pytest.approx(60 / 40)
    assert tall.bbox.width / tall.bbox.height == pytest.approx(40 / 300)
    assert tall.bbox.y0 == pytest.approx(photo.bbox.y0)  # they stand on one line, the captions hang below it
    with Image.open(path) as picture:
        x, y = (photo.bbox.x0 + photo.bbox.x1) / 2, picture.height - (photo.bbox.y0 + photo.bbox.y1) / 2
        assert picture.convert("RGB").getpixel((round(x), round(y))) == (200, 30, 20)


def test_a_large_gallery_has_a_lower_resolution(
    tmp_path: Path, figures: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "MAX_PIXELS", 2e5)
    with Image.open(gallery([GalleryItem(None, "many words " * 20)] * 12, tmp_path / "gallery.png")) as picture:
        assert 1.5e5 < picture.width * picture.height <= 2e5
    assert_apart(texts(figures[0]), figures[0])


@pytest.mark.parametrize(
    ("bad", "columns", "message"),
    [
        ([], 4, "no picture to show"),
        ([GalleryItem(PHOTO.astype(np.float32), "a")], 4, r"uint8, not \(40, 60, 3\) float32"),
        ([GalleryItem(np.zeros((3, 40, 60), np.uint8), "a")], 4, r"not \(3, 40, 60\) uint8"),
        ([GalleryItem(np.zeros((0, 4), np.uint8), "a")], 4, r"not \(0, 4\) uint8"),
        ([GalleryItem(None, "a")], 0, "at least one column, not 0"),
    ],
)
def test_bad_items(tmp_path: Path, bad: list[GalleryItem], columns: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gallery(bad, tmp_path / "gallery.png", columns=columns)


def test_the_same_items_give_the_same_file(tmp_path: Path) -> None:
    one, other = (gallery(items(tmp_path), tmp_path / name) for name in ("one.png", "other.png"))
    assert one.read_bytes() == other.read_bytes()


# Attention


def weights_of(T: int = 5) -> np.ndarray:
    weights = np.full((T, 4, 6), 0.01)
    weights[np.arange(T), 0, np.arange(T)] = 0.5  # along the upper row
    return weights


def test_attention_is_bright_where_the_weights_are_large(tmp_path: Path, figures: list[Figure]) -> None:
    words = ["a", "$5", "star", "of", "red"]
    item = plots.AttentionItem(PHOTO, words, weights_of())
    path = plots.attention(
        [item, plots.AttentionItem(None, words[:2], weights_of(2))], tmp_path / "attention.png", columns=4
    )
    assert_is_picture(path)
    figure = figures[0]
    assert_apart(texts(figure), figure)
    assert len(figure.axes) == 6 + 3  # each picture, and once more for each word
    seen = [text.get_text() for text in texts(figure)]
    assert seen == [" ".join(words), *words, " ".join(words[:2]), *words[:2]]
    tops = [axes.bbox.y1 for axes in figure.axes]
    assert [tops.count(top) for top in sorted(set(tops), reverse=True)] == [4, 2, 3]  # a picture begins a row
    for t, axes in enumerate(figure.axes[1:6]):
        shown = np.asarray(axes.images[0].get_array()).astype(float)[..., 0] / PHOTO[0, 0, 0]
        assert shown.shape == PHOTO.shape[:2]
        assert shown[5, 10 * t + 5] == pytest.approx(1, abs=0.1)  # the middle of its place
        assert shown[35, 10 * t + 5] == pytest.approx(plots.DARK, abs=0.05)
        assert np.unravel_index(shown.argmax(), shown.shape)[1] // 10 == t
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), PHOTO)


def test_attention_of_no_words(tmp_path: Path, figures: list[Figure]) -> None:
    plots.attention([plots.AttentionItem(PHOTO, [], np.zeros((0, 4, 6)))], tmp_path / "attention.png")
    assert [text.get_text() for text in texts(figures[0])] == ["(no words)"]


@pytest.mark.parametrize(
    ("items", "columns", "message"),
    [
        ([], 6, "no picture to show"),
        ([plots.AttentionItem(PHOTO, ["a"], weights_of(1))], 0, "at least one column, not 0"),
        (
            [plots.AttentionItem(PHOTO, ["a"], weights_of(2))],
            6,
            r"of 1 words must be \(T, a, b\), but are \(2, 4, 6\)",
        ),
        ([plots.AttentionItem(PHOTO, ["a"], weights_of(1)[0])], 6, r"must be \(T, a, b\), but are \(4, 6\)"),
        (
            [plots.AttentionItem(PHOTO, ["a"], weights_of(1)[:, :0])],
            6,
            r"must be \(T, a, b\), but are \(1, 0, 6\)",
        ),
    ],
)
def test_bad_attention(tmp_path: Path, items: list, columns: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.attention(items, tmp_path / "attention.png", columns=columns)


# The comparison


def test_comparison(tmp_path: Path, figures: list[Figure]) -> None:
    assert_is_picture(comparison(ERRORS, NORMS, tmp_path / "comparison.png"))
    left, right = figures[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == list(ERRORS)
    points = [line for line in left.get_lines() if len(line.get_xdata()) == 1]
    drawn = sorted((round(line.get_ydata()[0]), line.get_xdata()[0], line.get_marker()) for line in points)
    floor = left.get_xticks()[0]
    assert drawn[:4] == [(0, floor, "o"), (0, floor, "o"), (1, 2e-16, "o"), (1, 7e-16, "o")]
    assert [(row, marker) for row, _, marker in drawn[4:]] == [(2, "o"), (2, "D"), (2, "X")]
    assert left.get_xticklabels()[0].get_text() == "exactly\n0"
    named = {text.get_text(): text.get_color() for text in left.texts}
    assert named == {
        "dWh 7e-16": plots.GREY,
        "dWh 3e-03": plots.VERMILION,
        "db nan": plots.VERMILION,
        "tolerance 1e-12": plots.VERMILION,
    }
    assert right.get_yscale() == "log"
    curves = {line.get_label(): line.get_ydata().tolist() for line in right.get_lines()}
    assert curves["rnn"] == NORMS["rnn"]
    assert math.isnan(curves["lstm"][0])
    assert curves["lstm"][1:] == NORMS["lstm"][1:]


@pytest.mark.parametrize("worst", ringed([1e-16, 1e-3, math.inf], {1e-3}))
def test_labels_of_the_comparison_are_apart(tmp_path: Path, figures: list[Figure], worst: float) -> None:
    errors = {**{f"function {k}": {"dx": 0.0, "dW_vocab": 3e-16} for k in range(12)}, "wrong": {"dW_vocab": worst}}
    comparison(errors, NORMS, tmp_path / "comparison.png")
    left = figures[0].axes[0]
    low, high = left.get_xlim()
    ticks = [tick for at, tick in zip(left.get_xticks(), left.get_xticklabels(), strict=True) if low <= at <= high]
    assert_apart([*ticks, left.xaxis.label, *left.get_yticklabels(), *left.texts], figures[0])
    assert all(text.get_window_extent().x1 <= left.bbox.x1 for text in left.texts)


@pytest.mark.parametrize(("errors", "norms"), [({}, NORMS), ({"rnn": {}}, NORMS), (ERRORS, {}), (ERRORS, {"rnn": []})])
def test_nothing_to_compare(tmp_path: Path, errors: dict, norms: dict) -> None:
    with pytest.raises(ValueError, match="no errors or no norms"):
        comparison(errors, norms, tmp_path / "comparison.png")
