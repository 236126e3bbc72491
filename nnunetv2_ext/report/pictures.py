"""Cases in pictures: three planes to scale in mm, the reference as an area, the prediction as a line."""

import base64
import io
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from nnunetv2_ext.report.cases import Read
from nnunetv2_ext.report.figure import Spacing, Style, is_marked, label_styles, telling_index, window_of

PIXELS = (1040, 420)
"""The most that a picture of three planes has."""
LEAST = 0.04
"""Of each side of a picture, in inches of 100 pixels, so that there is one for each plane."""
MARGIN = 15.0
"""Millimetres around the labels."""


def around(masks: Sequence[np.ndarray | None], spacing: Spacing) -> tuple[slice, ...]:
    """The box of all labels with `MARGIN` around it; everything where there is no label."""
    marked = np.logical_or.reduce([mask != 0 for mask in masks if mask is not None])
    box = []
    for axis, step in enumerate(spacing):
        found = np.flatnonzero(marked.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = round(MARGIN / step)
        box.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin) if len(found) else slice(None))
    return tuple(box)


def telling_place(
    reference: np.ndarray | None, prediction: np.ndarray, labels: Mapping[str, Sequence[int]]
) -> tuple[int, int, int]:
    """The indices of the planes in which the reference's labels are largest, or the prediction's where it has none."""
    styles = label_styles(labels).values()
    telling = reference if reference is not None and is_marked(reference, styles) else prediction
    first, second, third = (telling_index(telling, axis, styles) for axis in range(3))
    return first, second, third


def planes(
    case: Read, labels: Mapping[str, Sequence[int]], box: tuple[slice, ...], window: tuple[float, float] | None = None
) -> str:
    """Axial, coronal and sagittal plane side by side, as the address of a PNG that stands in the page.

    Planes go through where the reference's labels are largest, or those of the prediction where it has none; small
    labels count as much as large ones.

    Args:
        labels: the values of each label or region by name.
        box: what is shown of the volumes, see `around`.
        window: intensities shown as black and white; by default the 1st and 99.5th percentile of the image.
    """
    styles = label_styles(labels).values()
    image, prediction = case.image[box], case.prediction[box]
    reference = np.zeros_like(prediction) if case.truth is None else case.truth[box]
    through = telling_place(reference, prediction, labels)
    shades = window or window_of(image)
    high, deep, wide = (size * step for size, step in zip(image.shape, case.spacing, strict=True))
    panels = ((wide, deep), (wide, high), (deep, high))  # mm
    gap = 0.02 * wide
    total, tall = sum(panel[0] for panel in panels) + 2 * gap, max(panel[1] for panel in panels)
    scale = min(PIXELS[0] / total, PIXELS[1] / tall) / 100
    inches = (max(total * scale, LEAST), max(tall * scale, LEAST))
    figure = Figure(inches, dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    left = 0.0
    for axis, (across, up) in enumerate(panels):
        axes = figure.add_axes((left / total, 0.5 - up / tall / 2, across / total, up / tall))
        # Slices count upwards from the feet; rows of an axial plane count downwards from the front.
        extent = (0.0, across, 0.0, up) if axis else (0.0, across, up, 0.0)
        grey, area, line = (np.take(of, through[axis], axis) for of in (image, reference, prediction))
        _draw(axes, grey, area, line, extent, styles, shades)
        left += across + gap
    return _png(figure)


def _draw(
    axes: Axes,
    grey: np.ndarray,
    reference: np.ndarray,
    prediction: np.ndarray,
    extent: tuple[float, float, float, float],
    styles: Collection[Style],
    shades: tuple[float, float],
) -> None:
    """One plane; `extent` is left, right, bottom and top in mm."""
    upward = extent[3] > extent[2]
    rows = grey[::-1] if upward else grey
    axes.imshow(rows, cmap="gray", vmin=shades[0], vmax=shades[1], extent=extent, interpolation="nearest")
    # with a border of nothing, so that lines close at the edge
    size = (max(extent[2:]), extent[1])
    down, along = (
        (np.arange(length + 2) - 0.5) * of / length for length, of in zip(prediction.shape, size, strict=True)
    )
    for style in styles:
        area, line = (np.pad(np.isin(of, style.values), 1).astype(float) for of in (reference, prediction))
        if area.any():
            axes.contourf(along, down, area, [0.5, 1.5], colors=[style.colour], alpha=0.4)
        if line.any():
            drawn = axes.contour(along, down, line, [0.5], colors=[style.colour], linewidths=1.5, linestyles=style.line)
            drawn.set(path_effects=[withStroke(linewidth=3, foreground="black")])
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_axis_off()


def _png(figure: Figure) -> str:
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as picture:
        colours = picture.convert("RGB").quantize(96, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        colours.save(small, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()
