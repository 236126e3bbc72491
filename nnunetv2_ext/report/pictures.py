"""Cases in pictures: three planes to scale in mm, the reference as an area, the prediction as a line."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from nnunetv2_ext.report.cases import Read
from nnunetv2_ext.report.figure import Spacing, draw_plane, extent_of, label_styles, telling_place, window_of

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


def planes(
    case: Read,
    labels: Mapping[str, Sequence[int]],
    box: tuple[slice, ...],
    window: tuple[float, float] | None = None,
    *,
    place: tuple[int, int, int] | None = None,
) -> str:
    """Axial, coronal and sagittal plane side by side, as the address of a PNG that stands in the page.

    Unless a place is given, planes go through where the reference's labels are largest, or those of the prediction
    where it has none; small labels count as much as large ones.

    Args:
        labels: the values of each label or region by name.
        box: what is shown of the volumes, see `around`.
        window: intensities shown as black and white; by default the 1st and 99.5th percentile of the image.
        place: the indices of the planes in the box.
    """
    styles = label_styles(labels).values()
    image, prediction = case.image[box], case.prediction[box]
    reference = np.zeros_like(prediction) if case.truth is None else case.truth[box]
    through = place or telling_place(reference, prediction, labels)
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
        extent = extent_of(image.shape, case.spacing, axis)
        grey, area, line = (np.take(of, through[axis], axis) for of in (image, reference, prediction))
        draw_plane(axes, grey, extent, styles, shades, area=area, line=line, alpha=0.4, linewidth=1.5, rim=3)
        left += across + gap
    return _png(figure)


def _png(figure: Figure) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return address(drawn.getvalue())


def address(png: bytes) -> str:
    """The address of a PNG that stands in the page, of few colours so that it is small."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        colours = picture.convert("RGB").quantize(96, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        colours.save(small, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()
