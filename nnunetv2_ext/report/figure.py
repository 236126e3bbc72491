"""A picture of some cases: image, truth and prediction side by side in three planes, to scale."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunetv2_ext.evaluation.palette import COLOURS

PLANES = ("axial", "coronal", "sagittal")
COLUMNS = ("image", "truth", "prediction")


@dataclass(frozen=True)
class Shown:
    """A case to show. Arrays are (slices, rows, columns) on one grid; `spacing` in mm in the same order."""

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float]


def save_cases(
    cases: Sequence[Shown],
    labels: Mapping[str, int],
    path: Path,
    *,
    heading: str = "",
    note: str = "",
    window: tuple[float, float] | None = None,
) -> None:
    """Write a PNG with one row per case: axial, coronal and sagittal plane, each as image, truth and prediction.

    Planes go through where the labels are largest, small labels counting as much as large ones.

    Args:
        cases: what to show, top to bottom; its `title` stands beside the row.
        labels: value of each label by name; 0 is not drawn.
        path: of the PNG; missing parent folders are made.
        heading: a line above everything.
        note: a smaller line below the heading.
        window: intensities shown as black and white; by default the 1st and 99.5th percentile of each image.
    """
    foreground = {name: value for name, value in labels.items() if value != 0}
    colours = {value: COLOURS[order % len(COLOURS)] for order, value in enumerate(foreground.values())}
    shapes = [np.multiply(case.image.shape, case.spacing) for case in cases]
    heights = [max(shape[1], shape[0]) for shape in shapes]
    widths = [max(shape[axis] for shape in shapes) for axis in (2, 2, 1)]

    inches = 1.9 / min(widths)
    margin_left, margin_top, margin_bottom, gap = 1.75, 1.2 if note else 0.95, 0.5, 0.06
    group_gap = 0.22
    width = margin_left + sum(3 * w * inches + 2 * gap for w in widths) + 2 * group_gap + 0.15
    height = margin_top + margin_bottom + sum(h * inches + gap for h in heights)
    figure = Figure((width, height), facecolor="white")
    FigureCanvasAgg(figure)

    top = height - margin_top
    for case, tall in zip(cases, heights, strict=True):
        tall *= inches
        figure.text(0.15 / width, (top - tall / 2) / height, case.title, va="center", fontsize=10, linespacing=1.5)
        shades = window or tuple(np.percentile(case.image, (1, 99.5)))
        left = margin_left
        for plane, wide in enumerate(widths):
            wide *= inches
            index = _telling_index(case.truth, plane, foreground.values())
            for column in range(len(COLUMNS)):
                axes = figure.add_axes((left / width, (top - tall) / height, wide / width, tall / height))
                overlay = (None, case.truth, case.prediction)[column]
                _draw(axes, case, plane, index, overlay, colours, shades)
                if case is cases[0]:
                    axes_title = COLUMNS[column]
                    figure.text((left + wide / 2) / width, (top + 0.07) / height, axes_title, ha="center", fontsize=9)
                    if column == 1:
                        centre = (left + wide / 2) / width
                        y = (top + 0.27) / height
                        figure.text(centre, y, PLANES[plane], ha="center", fontsize=11, weight="bold")
                left += wide + gap
            left += group_gap
        top -= tall + gap
    if heading:
        figure.text(0.15 / width, 1 - 0.15 / height, heading, va="top", fontsize=13, weight="bold")
    if note:
        figure.text(0.15 / width, 1 - 0.42 / height, note, va="top", fontsize=9)
    handles = [Patch(facecolor=colours[value], edgecolor="none", label=name) for name, value in foreground.items()]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _telling_index(labels: np.ndarray, axis: int, values: Collection[int]) -> int:
    """The slice along `axis` with the largest summed share of each label; the middle one where there is no label."""
    others = tuple(other for other in range(3) if other != axis)
    areas = [(labels == value).sum(axis=others) for value in values]
    shares = [area / area.max() for area in areas if area.any()]
    return int(np.argmax(np.sum(shares, axis=0))) if shares else labels.shape[axis] // 2


def _draw(
    axes: Axes,
    case: Shown,
    plane: int,
    index: int,
    overlay: np.ndarray | None,
    colours: Mapping[int, str],
    shades: tuple[float, float],
) -> None:
    """One panel: the slice in grey, on it the labels' areas in faint colour with a firm outline."""
    vertical, horizontal = (axis for axis in range(3) if axis != plane)
    height, width = (case.image.shape[axis] * case.spacing[axis] for axis in (vertical, horizontal))
    # Slices count upwards from the feet; rows of an axial slice count downwards from the front.
    upward = vertical == 0
    # (left, right, bottom, top) of the panel in mm
    extent = (0.0, width, 0.0, height) if upward else (0.0, width, height, 0.0)
    grey = np.take(case.image, index, axis=plane)
    if upward:
        grey = grey[::-1]
    axes.imshow(grey, cmap="gray", vmin=shades[0], vmax=shades[1], extent=extent, interpolation="nearest")
    if overlay is not None:
        marks = np.take(overlay, index, axis=plane)
        rows = (np.arange(marks.shape[0]) + 0.5) * case.spacing[vertical]
        columns = (np.arange(marks.shape[1]) + 0.5) * case.spacing[horizontal]
        for value, colour in colours.items():
            mask = (marks == value).astype(float)
            if mask.any():
                axes.contourf(columns, rows, mask, [0.5, 1.5], colors=[colour], alpha=0.22)
                axes.contour(columns, rows, mask, [0.5], colors=[colour], linewidths=1.3)
    axes.set_facecolor("black")
    axes.set_axis_off()
