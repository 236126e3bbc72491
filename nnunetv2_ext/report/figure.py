"""A picture of some cases: image, truth (where there is one) and prediction side by side in three planes, to scale."""

import textwrap
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib import style as styles_of_matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from nnunetv2_ext.evaluation.palette import COLOURS
from nnunetv2_ext.files import write_beside
from nnunetv2_ext.geometry.boxes import around_all, value_boxes

PLANES = ("axial", "coronal", "sagittal")
LINES: tuple[Literal["solid", "dotted", "dashed"], ...] = ("solid", "dotted", "dashed")
"""Of the outlines: the first colours in turn, then all of them once more with the next kind of line."""
Spacing = tuple[float, float, float]

# inches
NARROWEST, WIDEST, HIGHEST = 1.9, 3.2, 5.0
"""The narrowest panel, and what no panel exceeds."""
EDGE, GAP, GROUP_GAP = 0.15, 0.06, 0.22
TITLE_LETTERS = 38
"""Longer lines of a case's title are broken."""


@dataclass(frozen=True)
class Shown:
    """A case to show. Arrays are (slices, rows, columns) on one grid; `spacing` in mm in the same order.

    `place` holds the indices of its planes; None: those where its labels are largest.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray | None
    prediction: np.ndarray
    spacing: Spacing
    place: tuple[int, int, int] | None = None


class Style(NamedTuple):
    """How a label is drawn."""

    values: tuple[int, ...]
    colour: str
    line: Literal["solid", "dotted", "dashed"]


@contextmanager
def plain_words() -> Iterator[None]:
    """Within it names are drawn as they are: `$` begins no formula, and a letter that no font has is no warning.

    Nor does the style count that a training in the same process has left behind.
    """
    with (
        styles_of_matplotlib.context("default"),
        matplotlib.rc_context({"text.parse_math": False}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@plain_words()
def save_cases(
    cases: Sequence[Shown],
    labels: Mapping[str, int | Sequence[int]],
    path: Path,
    *,
    heading: str = "",
    note: str = "",
    window: tuple[float, float] | None = None,
    words: tuple[str, str] = ("truth", "prediction"),
) -> None:
    """Write a PNG with one row per case: axial, coronal and sagittal plane, each as image, truth and prediction.

    Unless a case tells its place, planes go through where the labels of the truth are largest, or those of the
    prediction where there is no truth; small labels count as much as large ones. Where no case has a truth, its column
    is left out.

    Args:
        cases: what to show, top to bottom; its `title` stands beside the row.
        labels: value, or values of a region, of each label by name; 0 is not drawn.
        path: of the PNG; missing parent folders are made.
        heading: a line above everything.
        note: a smaller line below the heading.
        window: intensities shown as black and white; by default the 1st and 99.5th percentile of each image.
        words: what stands above truth and prediction.

    Raises:
        OSError: the file cannot be written; what was there before stays.
    """
    styles = label_styles(labels)
    columns = ("image", *words) if any(case.truth is not None for case in cases) else ("image", words[1])
    shapes = [np.multiply(case.image.shape, case.spacing) for case in cases]
    widths = [max(shape[axis] for shape in shapes) for axis in (2, 2, 1)]
    heights = [max(shape[1], shape[0]) for shape in shapes]
    inches = min(NARROWEST / min(widths), WIDEST / max(widths), HIGHEST / max(heights))  # per mm

    titles = ["\n".join(_wrapped(case.title, TITLE_LETTERS)) for case in cases]
    sizes = [_title_size(title) for title in titles]
    margin_left = max(1.75, EDGE * 2 + max(size[0] for size in sizes))
    width = margin_left + sum(len(columns) * (wide * inches + GAP) - GAP for wide in widths) + 2 * GROUP_GAP + 2 * EDGE
    headings, notes = _wrapped(heading, int(7 * width)), _wrapped(note, int(12 * width))
    margin_top = 0.63 + 0.22 * len(headings) + 0.03 + 0.15 * len(notes) + 0.1 * bool(notes)
    per_row = max(1, int((width - 2.4) / max(0.7 + 0.08 * len(name) for name in styles))) if styles else 1
    margin_bottom = 0.3 + 0.22 * -(-len(styles) // per_row)
    rows = [max(tall * inches, size[1]) for tall, size in zip(heights, sizes, strict=True)]
    height = margin_top + margin_bottom + sum(row + GAP for row in rows)
    figure = Figure((width, height), facecolor="white")
    FigureCanvasAgg(figure)

    top = height - margin_top
    for case, title, row in zip(cases, titles, rows, strict=True):
        figure.text(EDGE / width, (top - row / 2) / height, title, va="center", fontsize=10, linespacing=1.5)
        shades = window or window_of(case.image)
        left = margin_left
        through = case.place or telling_place(case.truth, case.prediction, labels)
        overlays = {"image": None, words[0]: case.truth, words[1]: case.prediction}
        for plane, in_mm in enumerate(widths):
            wide = in_mm * inches
            group = left
            for column in columns:
                if column != words[0] or case.truth is not None:
                    axes = figure.add_axes((left / width, (top - row) / height, wide / width, row / height))
                    _draw(axes, case, plane, through[plane], overlays[column], styles.values(), shades)
                if case is cases[0]:
                    figure.text((left + wide / 2) / width, (top + 0.07) / height, column, ha="center", fontsize=9)
                left += wide + GAP
            if case is cases[0]:
                centre, y = (group + left - GAP) / 2 / width, (top + 0.27) / height
                figure.text(centre, y, PLANES[plane], ha="center", fontsize=11, weight="bold")
            left += GROUP_GAP - GAP
        top -= row + GAP
    line = height - EDGE
    figure.text(EDGE / width, line / height, "\n".join(headings), va="top", fontsize=13, weight="bold")
    line -= 0.22 * len(headings) + 0.05
    figure.text(EDGE / width, line / height, "\n".join(notes), va="top", fontsize=9)
    handles = [
        Patch(facecolor=f"{one.colour}55", edgecolor=one.colour, linestyle=one.line, linewidth=1.6, label=name)
        for name, one in styles.items()
    ]
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=min(per_row, len(handles)), frameon=False, fontsize=10)
    _draw_scale(figure, inches)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(lambda part: figure.savefig(part, dpi=110, format="png"), path)


def label_styles(labels: Mapping[str, int | Sequence[int]]) -> dict[str, Style]:
    lists = {name: (values,) if isinstance(values, int) else tuple(values) for name, values in labels.items()}
    foreground = {name: values for name, values in lists.items() if set(values) != {0}}
    return {
        name: Style(values, COLOURS[order % len(COLOURS)], LINES[order // len(COLOURS) % len(LINES)])
        for order, (name, values) in enumerate(foreground.items())
    }


def _wrapped(text: str, letters: int) -> list[str]:
    """The lines of a text, those that are too long broken; an empty line stays one."""
    return [part for line in text.splitlines() for part in (textwrap.wrap(line, max(letters, 10)) or [""])]


def _title_size(title: str) -> tuple[float, float]:
    """Width and height in inches."""
    figure = Figure(dpi=100)
    canvas = FigureCanvasAgg(figure)
    extent = figure.text(0, 0, title, fontsize=10, linespacing=1.5).get_window_extent(canvas.get_renderer())
    return extent.width / figure.dpi, extent.height / figure.dpi


def window_of(image: np.ndarray) -> tuple[float, float]:
    """The intensities shown as black and white by default: the 1st and 99.5th percentile of those that are numbers."""
    known = image[np.isfinite(image)]
    low, high = map(float, np.percentile(known, (1, 99.5)) if known.size else (0.0, 1.0))
    return low, high if high > low else low + 1


def is_marked(values: np.ndarray, styles: Collection[Style]) -> bool:
    """Whether a label map holds a label that is drawn."""
    boxes = value_boxes(values)
    return any(value in boxes for style in styles for value in style.values)


def telling_index(labels: np.ndarray, axis: int, styles: Collection[Style]) -> int:
    """The slice along `axis` with the largest summed share of each label; the middle one where there is no label."""
    others = tuple(other for other in range(3) if other != axis)
    boxes = value_boxes(labels)
    shares = np.zeros(labels.shape[axis])
    for style in styles:
        box = around_all(boxes[value] for value in style.values if value in boxes)
        if box is not None:
            area = np.isin(labels[box.slices], style.values).sum(axis=others)
            shares[box.slices[axis]] += area / area.max()
    return int(np.argmax(shares)) if shares.any() else labels.shape[axis] // 2


def telling_place(
    reference: np.ndarray | None, prediction: np.ndarray, labels: Mapping[str, int | Sequence[int]]
) -> tuple[int, int, int]:
    """The indices of the planes in which the reference's labels are largest, or the prediction's where it has none."""
    styles = label_styles(labels).values()
    telling = reference if reference is not None and is_marked(reference, styles) else prediction
    first, second, third = (telling_index(telling, axis, styles) for axis in range(3))
    return first, second, third


def _draw_scale(figure: Figure, inches: float) -> None:
    """A bar of a round number of mm in the lower right corner; it holds for every panel."""
    width, height = figure.get_size_inches()
    most = NARROWEST / 2 / inches
    length = max(
        number for number in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if number <= most or number == 0.1
    )
    right, y = 1 - EDGE / width, 0.2 / height
    bar = Line2D([right - length * inches / width, right], [y, y], color="black", linewidth=2.5, solid_capstyle="butt")
    figure.add_artist(bar)
    figure.text(right, y + 0.06 / height, f"{length:g} mm", ha="right", fontsize=8)


def _draw(
    axes: Axes,
    case: Shown,
    plane: int,
    index: int,
    overlay: np.ndarray | None,
    styles: Collection[Style],
    shades: tuple[float, float],
) -> None:
    """One panel: the slice in grey, on it the labels' areas in faint colour with a firm outline."""
    grey = np.take(case.image, index, plane)
    marks = None if overlay is None else np.take(overlay, index, plane)
    extent = extent_of(case.image.shape, case.spacing, plane)
    draw_plane(axes, grey, extent, styles, shades, area=marks, line=marks, alpha=0.22, linewidth=1.3)


def draw_plane(
    axes: Axes,
    grey: np.ndarray,
    extent: tuple[float, float, float, float],
    styles: Collection[Style],
    shades: tuple[float, float],
    *,
    area: np.ndarray | None = None,
    line: np.ndarray | None = None,
    alpha: float,
    linewidth: float,
    rim: float = 0.0,
) -> None:
    """One plane: the slice in grey, on it labels as areas in faint colour and as firm outlines.

    Args:
        grey: (rows, columns) of the image.
        extent: left, right, bottom and top in mm, see `extent_of`.
        area: the label map whose labels are filled, with `alpha`.
        line: the one whose labels are outlined.
        rim: width of the black line below the outlines.
    """
    upward = extent[3] > extent[2]
    rows = grey[::-1] if upward else grey
    axes.imshow(rows, cmap="gray", vmin=shades[0], vmax=shades[1], extent=extent, interpolation="nearest")
    # with a border of nothing, so that outlines close at the edge
    size = (max(extent[2:]), extent[1])
    down, along = ((np.arange(length + 2) - 0.5) * of / length for length, of in zip(grey.shape, size, strict=True))
    for style in styles:
        if area is not None and (mask := _padded(area, style)).any():
            axes.contourf(along, down, mask, [0.5, 1.5], colors=[style.colour], alpha=alpha)
        if line is not None and (mask := _padded(line, style)).any():
            drawn = axes.contour(
                along, down, mask, [0.5], colors=[style.colour], linewidths=linewidth, linestyles=style.line
            )
            if rim:
                drawn.set(path_effects=[withStroke(linewidth=rim, foreground="black")])
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_facecolor("black")
    axes.set_axis_off()


def extent_of(shape: Sequence[int], spacing: Spacing, axis: int) -> tuple[float, float, float, float]:
    """Left, right, bottom and top in mm of the planes along an axis of a volume.

    Slices count upwards from the feet; rows of an axial plane count downwards from the front.
    """
    tall, wide = (shape[other] * spacing[other] for other in range(3) if other != axis)
    return (0.0, wide, 0.0, tall) if axis else (0.0, wide, tall, 0.0)


def _padded(labels: np.ndarray, style: Style) -> np.ndarray:
    return np.pad(np.isin(labels, style.values), 1).astype(float)
