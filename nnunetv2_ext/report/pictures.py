"""Cases in pictures: three planes to scale in mm, the reference as a line, the prediction as an area."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from PIL import Image

from nnunetv2_ext.data.cases import ending_of
from nnunetv2_ext.data.volumes import VOLUME_ENDINGS, check_complete, read_grid
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.palette import COLOURS
from nnunetv2_ext.evaluation.summary import Summary
from nnunetv2_ext.text import listed, one_line

PIXELS = (1040, 420)
"""The most that a picture of three planes has."""
MARGIN = 15.0
"""Millimetres around the labels."""
Spacing = tuple[float, float, float]


class Read(NamedTuple):
    """A case with the prediction of one model. Arrays are (Z, Y, X) on one grid, `spacing` in mm in that order."""

    image: np.ndarray | None
    reference: np.ndarray
    prediction: np.ndarray
    spacing: Spacing
    note: str = ""
    """Why there is no image."""


def read_case(summary: Summary, case: str, images: Path | None) -> Read:
    """The volumes of a case.

    Args:
        images: the folder of the images, named as in imagesTr; None where it is not known.

    Raises:
        InputError: reference or prediction cannot be read, or they are of several sizes.
    """
    reference_file, prediction_file = summary.files[case]
    reference, spacing = _read(reference_file)
    prediction, _ = _read(prediction_file)
    if reference.shape != prediction.shape:
        what = f"{prediction_file} of {listed(prediction.shape)} voxels"
        raise InputError(what, f"the {listed(reference.shape)} of {reference_file}", "evaluate anew")
    if images is None:
        return Read(None, reference, prediction, spacing)
    ending = ending_of(reference_file.name)
    found = [path for path in (images / f"{case}_0000{ending}", images / f"{case}{ending}") if path.is_file()]
    try:
        if not found:
            raise InputError(f"no {case}_0000{ending} in {images}", "the image of the case", "choose -i")
        image, _ = _read(found[0], image=True)
        if image.shape != reference.shape:
            raise InputError(f"{found[0]} of {listed(image.shape)} voxels", listed(reference.shape), "choose -i")
        if ending in VOLUME_ENDINGS and (differing := read_grid(reference_file).differences(read_grid(found[0]))):
            raise InputError(f"{found[0]} with {listed(differing)}", "the grid of the labels", "choose -i")
    except InputError as error:
        return Read(None, reference, prediction, spacing, f"Without its image: {error}")
    return Read(image, reference, prediction, spacing)


def _read(path: Path, *, image: bool = False) -> tuple[np.ndarray, Spacing]:
    if not path.is_file():
        raise InputError(f"no file {path}", "the file that was evaluated", "restore it, or evaluate anew")
    try:
        if path.name.endswith(VOLUME_ENDINGS):
            check_complete(path, unpack=True)
        reader = determine_reader_writer_from_file_ending(ending_of(path.name), verbose=False)()
        voxels, properties = reader.read_images([str(path)]) if image else reader.read_seg(str(path))
    except InputError:
        raise
    except Exception as error:  # of a damaged file anything
        raise InputError(f"{path} ({one_line(error)})", "a readable volume", "restore it, or evaluate anew") from None
    spacing = tuple(map(float, properties["spacing"]))
    return voxels[0], (spacing[0], spacing[1], spacing[2])


def around(masks: Sequence[np.ndarray], spacing: Spacing) -> tuple[slice, ...]:
    """The box of all labels with `MARGIN` around it; everything where there is no label."""
    marked = np.logical_or.reduce([mask != 0 for mask in masks])
    box = []
    for axis, step in enumerate(spacing):
        found = np.flatnonzero(marked.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = round(MARGIN / step)
        box.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin) if len(found) else slice(None))
    return tuple(box)


def planes(
    case: Read, labels: Mapping[str, Sequence[int]], box: tuple[slice, ...], window: tuple[float, float] | None = None
) -> str:
    """Axial, coronal and sagittal plane side by side, as the address of a PNG that stands in the page.

    Planes go through where the reference's labels are largest, small labels counting as much as large ones.

    Args:
        labels: the values of each label or region by name.
        box: what is shown of the volumes, see `around`.
        window: intensities shown as black and white; by default the 1st and 99.5th percentile of the image.
    """
    reference, prediction = ([np.isin(array[box], values) for values in labels.values()] for array in case[1:3])
    image = None if case.image is None else case.image[box].astype(np.float32)
    shades = window or window_of(image)
    shape = prediction[0].shape
    height, depth, wide = (size * step for size, step in zip(shape, case.spacing, strict=True))
    panels = ((wide, depth), (wide, height), (depth, height))  # mm
    gap = 0.02 * wide
    total, tall = sum(panel[0] for panel in panels) + 2 * gap, max(panel[1] for panel in panels)
    scale = min(PIXELS[0] / total, PIXELS[1] / tall) / 100
    figure = Figure((total * scale, tall * scale), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    left = 0.0
    for axis, (across, up) in enumerate(panels):
        axes = figure.add_axes((left / total, 0.5 - up / tall / 2, across / total, up / tall))
        shown = reference if any(mask.any() for mask in reference) else prediction
        index = _telling_index(shown, axis)
        grey = None if image is None else np.take(image, index, axis)
        pairs = [
            (np.take(ours, index, axis), np.take(theirs, index, axis))
            for ours, theirs in zip(reference, prediction, strict=True)
        ]
        _draw(axes, grey, pairs, (across, up), upward=axis > 0, shades=shades)
        left += across + gap
    return _png(figure)


def window_of(image: np.ndarray | None) -> tuple[float, float]:
    """The intensities shown as black and white: the 1st and 99.5th percentile of what is shown."""
    finite = np.zeros(1) if image is None else image[np.isfinite(image)]
    low, high = np.percentile(finite, (1, 99.5)) if finite.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1


def _telling_index(masks: Sequence[np.ndarray], axis: int) -> int:
    """The slice along an axis with the largest summed share of each label; the middle one where there is no label."""
    others = tuple(other for other in range(3) if other != axis)
    areas = [mask.sum(axis=others) for mask in masks]
    shares = [area / area.max() for area in areas if area.any()]
    return int(np.argmax(np.sum(shares, axis=0))) if shares else masks[0].shape[axis] // 2


def _draw(
    axes: Axes,
    grey: np.ndarray | None,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    size: tuple[float, float],
    *,
    upward: bool,
    shades: tuple[float, float],
) -> None:
    """One plane. Slices count upwards from the feet; rows of an axial plane count downwards from the front."""
    extent = (0.0, size[0], 0.0, size[1]) if upward else (0.0, size[0], size[1], 0.0)
    rows = np.zeros(pairs[0][0].shape) if grey is None else grey[::-1] if upward else grey
    axes.imshow(rows, cmap="gray", vmin=shades[0], vmax=shades[1], extent=extent, interpolation="nearest")
    for order, (reference, prediction) in enumerate(pairs):
        colour = COLOURS[order % len(COLOURS)]
        # with a border of nothing, so that lines close at the edge
        down, along = (
            (np.arange(length + 2) - 0.5) * of / length for length, of in zip(prediction.shape, size[::-1], strict=True)
        )
        if prediction.any():
            axes.contourf(along, down, np.pad(prediction, 1).astype(float), [0.5, 1.5], colors=[colour], alpha=0.4)
        if reference.any():
            lines = axes.contour(
                along, down, np.pad(reference, 1).astype(float), [0.5], colors=[colour], linewidths=1.5
            )
            lines.set(path_effects=[withStroke(linewidth=3, foreground="black")])
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
