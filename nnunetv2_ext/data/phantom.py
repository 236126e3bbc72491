"""A synthetic abdomen in thick slices: small enough for two CPU cores, too hard for a threshold.

Each case is drawn in 1 mm slices and averaged in slabs, so that edges between slices blur as in a thick-slice scan.
Liver, kidneys and a lesion in the liver are labelled. Look-alikes are not: a spleen as bright as the liver, often with
a cyst as dark as the lesion, bowel as bright as the kidneys, muscle as dark as the lesion. What tells them apart is
where they lie (kidneys beside the spine, the lesion in the liver) and what is in them (vessels run through the liver).

A larger field of view holds that abdomen at a random place of a larger body, with lungs, a heart and more bowel around
it: an image of which most is not worth a look.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
from scipy import ndimage

from nnunetv2_ext.data.dataset import write_dataset_json
from nnunetv2_ext.data.thick import average_slabs, majority_slabs, thick_grid
from nnunetv2_ext.data.volumes import Grid, write_volume
from nnunetv2_ext.errors import InputError

LABELS = {"background": 0, "liver": 1, "kidney": 2, "lesion": 3}
THIN_SLICES = 5
"""1 mm slices averaged into one thick slice."""
SPACING = (float(THIN_SLICES), 1.0, 1.0)
"""Slice distance and pixel size of a phantom in mm, in array order (slice, row, column)."""

SLICES, SIZE = 12, 56
"""Thick slices of a phantom, and its rows and columns, unless others are asked for."""

# Mean intensities in Hounsfield units. Lesion, cyst and muscle share one, liver and spleen, kidneys, bowel and vessels.
AIR, FAT, DARK, PARENCHYMA, BRIGHT, BONE = -1000.0, -90.0, 30.0, 120.0, 190.0, 420.0


@dataclass(frozen=True)
class Phantom:
    """One case: `image` (slices, rows, columns) in Hounsfield units, `labels` of the same shape with LABELS' values."""

    image: np.ndarray
    labels: np.ndarray


def make_phantom(
    seed: int, *, slices: int = SLICES, size: int = SIZE, field: tuple[int, int, int] | None = None
) -> Phantom:
    """Draw one phantom; the same seed gives the same case.

    Args:
        seed: case number.
        slices: thick slices of 5 mm, at least 12, so that all organs fit in.
        size: rows and columns of 1 mm, at least 48.
        field: makes an image so many times as large along each axis (slices, rows, columns), in which the abdomen of
            `slices` and `size` lies somewhere.

    Raises:
        InputError: too few slices or pixels, or a field that is not larger.
    """
    _check_shape(slices, size, field)
    random = np.random.default_rng(seed)
    canvas = _Canvas(random, (slices * THIN_SLICES, size, size))
    image, labels, cavity = _draw(canvas, random)
    if field is not None:
        canvas, image, labels = _laid_into(field, image, labels, cavity, random)
    image = _scanned(canvas, image, random)
    return Phantom(average_slabs(image, axis=0, factor=THIN_SLICES), majority_slabs(labels, axis=0, factor=THIN_SLICES))


def write_phantoms(
    folder: Path,
    *,
    training: int = 24,
    test: int = 8,
    seed: int = 0,
    size: int = SIZE,
    field: tuple[int, int, int] | None = None,
    processes: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a raw data set of phantoms, imagesTr to labelsTs and dataset.json, in nnU-Net's format.

    Args:
        folder: the new data set's folder, `DatasetXXX_Name`; its parent is made too.
        training: number of training cases.
        test: number of test cases, with labels.
        seed: another seed gives other cases throughout.
        size, field: see `make_phantom`.
        processes: cases drawn at the same time (in threads; the drawing is in numpy and scipy).
        progress: called after each case with the number done and the number of all.

    Raises:
        InputError: no training case, too few pixels, a field that is not larger, or the folder is not empty.
    """
    _check_shape(SLICES, size, field)
    if training < 1 or test < 0:
        raise InputError(f"{training} training and {test} test phantoms", "at least 1 and 0", "choose more")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"the folder {folder}, which is not empty", "a new or empty folder", "choose another one")
    for name in ("imagesTr", "labelsTr", *(("imagesTs", "labelsTs") if test else ())):
        (folder / name).mkdir(parents=True)
    cases = [("Tr", f"phantom_{number:03d}") for number in range(training)]
    cases += [("Ts", f"unseen_{number:03d}") for number in range(test)]
    seeds = np.random.SeedSequence(seed).generate_state(len(cases))

    def write(part: str, case: str, case_seed: int) -> None:
        phantom = make_phantom(int(case_seed), size=size, field=field)
        rows, columns = phantom.image.shape[1:]
        thin = Grid(
            (columns, rows, phantom.image.shape[0] * THIN_SLICES),
            (1.0, 1.0, 1.0),
            (0.0, 0.0, 0.0),
            tuple(np.eye(3).ravel()),
        )
        grid = thick_grid(thin, axis=0, factor=THIN_SLICES)
        write_volume(phantom.image, grid, folder / f"images{part}" / f"{case}_0000.nii.gz")
        write_volume(phantom.labels, grid, folder / f"labels{part}" / f"{case}.nii.gz")

    with ThreadPoolExecutor(processes) as pool:
        jobs = [pool.submit(write, *case, case_seed) for case, case_seed in zip(cases, seeds, strict=True)]
        for done, job in enumerate(as_completed(jobs), start=1):
            job.result()
            progress(done, len(jobs))
    entries = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    write_dataset_json(folder, entries, training=training)


def _check_shape(slices: int, size: int, field: tuple[int, int, int] | None) -> None:
    if slices < 12 or size < 48:
        raise InputError(
            f"a phantom of {slices} slices of {size} x {size} pixels",
            "at least 12 slices of 48 x 48",
            "choose more slices or pixels",
        )
    if field is not None and (min(field) < 1 or max(field) < 2):
        raise InputError(f"a field of {field}", "whole numbers from 1, one of them larger", "choose a larger one")


class _Canvas:
    """The thin grid of one case, and shapes on it in units of the field of view, (-1, 1) along each axis."""

    def __init__(self, random: np.random.Generator, shape: tuple[int, int, int]):
        self.random = random
        self.shape = shape
        grid = np.meshgrid(*(np.linspace(-1, 1, length, dtype=np.float32) for length in shape), indexing="ij")
        # One smooth deformation per case bends everything together, as anatomy and breathing do.
        self.grid = [axis + 0.05 * self.field(16.0) for axis in grid]

    def field(self, smoothness: float | tuple[float, float, float]) -> np.ndarray:
        """Smooth noise of zero mean and unit deviation; `smoothness` is the Gaussian's deviation in mm."""
        spectrum = scipy.fft.rfftn(self.random.standard_normal(self.shape, dtype=np.float32))
        spectrum = ndimage.fourier_gaussian(spectrum, smoothness, n=self.shape[-1])
        noise = scipy.fft.irfftn(spectrum, s=self.shape)
        return (noise - noise.mean()) / noise.std()

    def blob(
        self,
        centre: Sequence[float],
        radii: Sequence[float],
        *,
        roughness: float = 0.0,
        lean: Sequence[float] = (0.0, 0.0),
        power: float = 2.0,
    ) -> np.ndarray:
        """A connected irregular ellipsoid; `lean` moves its centre in the plane along the slices.

        Returns:
            boolean array of the canvas' shape
        """
        along = self.grid[0] - centre[0]
        offsets = (along, self.grid[1] - centre[1] - lean[0] * along, self.grid[2] - centre[2] - lean[1] * along)
        distance = sum(np.abs(offset / radius) ** power for offset, radius in zip(offsets, radii, strict=True))
        inside = 1 - np.asarray(distance)
        if roughness:
            inside = inside + roughness * self.field((6.0, 5.0, 5.0))
        regions, count = ndimage.label(inside > 0)
        if count <= 1:
            return regions > 0
        return regions == 1 + np.bincount(regions.ravel())[1:].argmax()


def _draw(canvas: _Canvas, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image in Hounsfield units, labels, and the inside of the body: all (thin slices, rows, columns)."""

    def jitter(*values: float, by: float = 0.06) -> tuple[float, ...]:
        return tuple(value + random.uniform(-by, by) for value in values)

    def scaled(*values: float, by: float = 0.12) -> tuple[float, ...]:
        return tuple(value * random.uniform(1 - by, 1 + by) for value in values)

    def hounsfield(value: float) -> float:
        return value * case_gain + case_offset + random.normal(0, 4)

    case_gain, case_offset = random.uniform(0.92, 1.08), random.normal(0, 6)
    image = np.full(canvas.shape, AIR, dtype=np.float32)
    labels = np.zeros(canvas.shape, dtype=np.uint8)

    body = canvas.blob((0, 0, 0), scaled(9, 0.80, 0.92, by=0.05))
    cavity = ndimage.binary_erosion(body, iterations=int(random.integers(3, 5)))
    spine = canvas.blob((0, *jitter(0.58, 0.0, by=0.04)), (9, 0.15, 0.15), power=3)
    # Muscle: the wall of the body and the two columns beside the spine.
    image[body] = hounsfield(DARK)
    image[cavity] = hounsfield(FAT)
    for side in (-1, 1):
        image[canvas.blob((0, 0.60, 0.30 * side), (9, *scaled(0.16, 0.17)), roughness=0.25) & cavity] = hounsfield(DARK)
    image[spine] = hounsfield(BONE)

    # Bowel before the organs, so that organs cover it: coils in front, as bright as kidneys.
    for _ in range(int(random.integers(3, 6))):
        centre = (random.uniform(-0.8, 0.8), random.uniform(-0.6, -0.2), random.uniform(-0.25, 0.55))
        coil = canvas.blob(
            centre, scaled(0.35, 0.15, 0.15, by=0.3), roughness=0.4, lean=tuple(random.uniform(-0.4, 0.4, 2))
        )
        image[coil & cavity] = hounsfield(BRIGHT)

    liver = canvas.blob(
        jitter(0.05, -0.12, -0.42), scaled(0.72, 0.46, 0.38), roughness=0.35, lean=tuple(random.uniform(-0.2, 0.2, 2))
    )
    spleen = canvas.blob(
        jitter(0.0, -0.02, 0.52), scaled(0.55, 0.30, 0.25), roughness=0.35, lean=tuple(random.uniform(-0.2, 0.2, 2))
    )
    organs = cavity & ~spine
    liver, spleen = liver & organs, spleen & organs & ~liver
    brightness = random.normal(0, 4)
    image[spleen] = hounsfield(PARENCHYMA) + brightness
    image[liver] = hounsfield(PARENCHYMA) + brightness
    labels[liver] = LABELS["liver"]
    vessels = liver & (np.abs(canvas.field(6.0)) < 0.4) & (np.abs(canvas.field(6.0)) < 0.4)
    image[vessels] = hounsfield(BRIGHT)

    for side in (-1, 1):
        kidney = canvas.blob(
            jitter(0.1, 0.40, 0.42 * side, by=0.05),
            scaled(0.55, 0.20, 0.18),
            roughness=0.25,
            lean=(random.uniform(-0.1, 0.1), 0.15 * side),
        )
        kidney &= organs
        image[kidney] = hounsfield(BRIGHT)
        labels[kidney] = LABELS["kidney"]

    lesion = _lesion_in(canvas, labels == LABELS["liver"], random, radius=0.25)
    image[lesion] = hounsfield(DARK)
    labels[lesion] = LABELS["lesion"]
    if random.random() < 0.5:
        cyst = _lesion_in(canvas, spleen & (labels == 0), random, radius=0.19)
        image[cyst] = hounsfield(DARK)

    return image, labels, cavity


def _scanned(canvas: _Canvas, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The scanner: blur in the plane, then noise that is correlated as after filtered back projection."""
    image = ndimage.gaussian_filter(image, (0.0, 0.6, 0.6))
    noise = canvas.field((0.8, 0.8, 0.8)) * random.uniform(20, 30) + canvas.field(12.0) * 6
    return image + noise


def _laid_into(
    field: tuple[int, int, int],
    abdomen: np.ndarray,
    abdomen_labels: np.ndarray,
    cavity: np.ndarray,
    random: np.random.Generator,
) -> tuple[_Canvas, np.ndarray, np.ndarray]:
    """A larger body with the inside of an abdomen somewhere in it: its canvas, image and labels."""
    shape = tuple(length * times for length, times in zip(abdomen.shape, field, strict=True))
    canvas = _Canvas(random, shape)
    image = np.full(shape, AIR, dtype=np.float32)
    body = canvas.blob((0, 0, 0), (9, 0.84, 0.94))
    inside = ndimage.binary_erosion(body, iterations=4)
    image[body] = DARK + random.normal(0, 4)
    image[inside] = FAT + random.normal(0, 4)

    # Anywhere along the body; in the plane, half of the way that would press it against the wall.
    way = np.subtract(shape, abdomen.shape)
    place = [int(random.integers(0, way[0] + 1))]
    place += [int(length * (0.5 + random.uniform(-0.25, 0.25))) for length in way[1:]]
    part = tuple(slice(start, start + length) for start, length in zip(place, abdomen.shape, strict=True))

    def along(axis: int, share: float) -> float:
        """A place in the abdomen's field of view, (-1, 1), in units of the larger one."""
        return 2 * (place[axis] + (share + 1) / 2 * abdomen.shape[axis]) / shape[axis] - 1

    radii = [0.15 * small / large for small, large in zip(abdomen.shape[1:], shape[1:], strict=True)]
    image[canvas.blob((0, along(1, 0.58), along(2, 0.0)), (9, *radii), power=3) & inside] = BONE
    # Lungs and heart on the side where there is more room, at a distance from the abdomen.
    above, below = place[0] / shape[0], 1 - (place[0] + abdomen.shape[0]) / shape[0]
    room = max(above, below)
    centre = (room if above >= below else 2 - room) - 1
    for side in (-1, 1):
        image[canvas.blob((centre, 0, 0.45 * side), (0.8 * room, 0.55, 0.35)) & inside] = -800 + random.normal(0, 20)
    image[canvas.blob((centre, -0.1, 0.1), (0.45 * room, 0.3, 0.25)) & inside] = PARENCHYMA + random.normal(0, 6)
    # Look-alikes everywhere: coils as bright as kidneys, stomachs as bright as the liver, cysts as dark as the lesion.
    for number in range(8 * max(1, int(np.prod(field)) // 4)):
        value = (BRIGHT, PARENCHYMA, BRIGHT, DARK)[number % 4] + random.normal(0, 4)
        _scatter(image, inside, abdomen.shape, value, random)
    labels = np.zeros(shape, dtype=np.uint8)
    image[part][cavity] = abdomen[cavity]
    labels[part] = abdomen_labels
    return canvas, image, labels


def _scatter(
    image: np.ndarray, inside: np.ndarray, shape: Sequence[int], value: float, random: np.random.Generator
) -> None:
    """Paint one blob, drawn in a small field of view, at a random place of the body."""
    small = _Canvas(random, (shape[0], shape[1] // 2, shape[2] // 2))
    radii = [radius * random.uniform(0.7, 1.3) for radius in (0.4, 0.4, 0.4)]
    blob = small.blob((0, 0, 0), radii, roughness=0.4, lean=tuple(random.uniform(-0.4, 0.4, 2)))
    start = [random.integers(0, length - own + 1) for length, own in zip(image.shape, small.shape, strict=True)]
    part = tuple(slice(first, first + own) for first, own in zip(start, small.shape, strict=True))
    image[part][blob & inside[part]] = value


def _lesion_in(canvas: _Canvas, organ: np.ndarray, random: np.random.Generator, *, radius: float) -> np.ndarray:
    """An irregular blob inside `organ`, at one of its deepest places: boolean array of the canvas' shape."""
    depth = ndimage.distance_transform_edt(organ)
    places = np.argwhere(depth > 0.85 * depth.max())
    place = places[random.integers(len(places))]
    centre = [axis[tuple(place)] for axis in canvas.grid]
    thickness = radius * canvas.shape[1] / canvas.shape[0] * 1.35
    radii = [length * random.uniform(0.9, 1.15) for length in (thickness, radius, radius)]
    return canvas.blob(centre, radii, roughness=0.25) & organ
