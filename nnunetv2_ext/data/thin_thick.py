"""Thin-thick data sets: thin images and thick annotations on their grid, as an nnU-Net raw data set.

How annotations come to lie on the grid is told in `nnunetv2_ext.data.laying`. The side-car `slabs.json`
(`nnunetv2_ext.data.sidecar`) keeps the slabs in millimetres. All headers and annotations are checked before the first
image is read, and the new data set appears under its name only when it is complete.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from nnunetv2_ext.data.dataset import for_each, write_dataset_json
from nnunetv2_ext.data.laying import Laying, lay_grids
from nnunetv2_ext.data.sidecar import Sidecar, write_sidecar
from nnunetv2_ext.data.sources import Pair, find_others, open_volume, pair_by_name
from nnunetv2_ext.data.volumes import Volume, check_labels, refuse_differences, refuse_doubt, write_volume
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import new_dataset_name, nnunet_folder
from nnunetv2_ext.geometry.slabs import CaseSlabs, covered, slab_matrix
from nnunetv2_ext.locks import complete_or_absent, remove_left_behind
from nnunetv2_ext.text import listed

ENDING = ".nii.gz"
"""Of the files of a new data set."""
IGNORE = "ignore"
"""nnU-Net's name of the label that training leaves out."""
SHOWN_VALUES = 5


@dataclass(frozen=True)
class ConvertedCase:
    """The report on one case; lengths in mm along the slice axis."""

    case: str
    thin_spacing: float
    thick_spacing: float
    thickness: float
    ratio: float
    """Slice spacing of the annotation over that of the image."""
    thin_slices: int
    slabs: int
    """Annotated slices that touch the image."""
    covered: int
    """Those that lie wholly in it."""
    ignored: int
    """Thin slices in no slab."""
    resampled: bool
    """The annotation has another grid within the slices."""


@dataclass
class ThinThickDataset:
    """What `convert_thin_thick` wrote."""

    folder: Path
    axis: int
    cases: list[ConvertedCase]
    ignore_label: int | None
    """None where no case has a thin slice without annotation and the label was not named either."""
    left_out: list[Path] = field(default_factory=list)
    """Volumes without a partner."""
    no_volumes: list[Path] = field(default_factory=list)
    """Files of the two folders that are no volumes, as far as SimpleITK tells."""
    removed: list[Path] = field(default_factory=list)
    """What a killed process had left of a data set with this id."""


@dataclass(frozen=True)
class _Job:
    name: str
    images: tuple[Volume, ...]
    label: Volume
    laying: Laying

    @property
    def case_slabs(self) -> CaseSlabs:
        axis, grid = 2 - self.laying.axis, self.images[0].grid
        thin = CaseSlabs(grid.spacing[axis], grid.size[axis], self.laying.slabs)
        touching = slab_matrix(thin.slabs, thin.slices).any(axis=1)
        return CaseSlabs(thin.thin_spacing, thin.thin_slices, thin.slabs[touching])

    @property
    def ignored(self) -> int:
        return int(np.count_nonzero(self.laying.indices[self.laying.axis] < 0))

    def report(self) -> ConvertedCase:
        axis, thin, thick = self.laying.axis, self.images[0].grid, self.label.grid
        thin_spacing, thick_spacing = thin.spacing[2 - axis], thick.spacing[2 - axis]
        here = self.case_slabs
        return ConvertedCase(
            case=self.name,
            thin_spacing=thin_spacing,
            thick_spacing=thick_spacing,
            thickness=float(here.slabs[0, 1] - here.slabs[0, 0]),
            ratio=thick_spacing / thin_spacing,
            thin_slices=here.thin_slices,
            slabs=len(here.slabs),
            covered=int(covered(slab_matrix(here.slabs, here.slices)).sum()),
            ignored=self.ignored,
            resampled=any(
                not np.array_equal(self.laying.indices[k], np.arange(thick.size[2 - k])) for k in range(3) if k != axis
            ),
        )


def convert_thin_thick(
    images: Path,
    labels: Path,
    output: int | str,
    *,
    name: str,
    label_names: Sequence[str],
    channel_names: Sequence[str] | None = None,
    slice_axis: int | None = None,
    slice_thickness: float | None = None,
    skip_unmatched: bool = False,
    processes: int = 8,
    progress: bool = True,
) -> ThinThickDataset:
    """Write a raw data set of thin images with thick annotations into `nnUNet_raw`, with its side-car and a report.

    Args:
        images: folder of thin images, one per case and channel (`pair_by_name`).
        labels: folder of thick annotations.
        output: id of the new data set.
        name: what follows `DatasetXXX_`.
        label_names: of the values 0, 1, 2, ...; "background" first; "ignore", if given, last.
        channel_names: as nnU-Net wants them, which normalises the channel "CT" as such; by default "image", or
            "channel_0", "channel_1", ..., all normalised by mean and standard deviation of each image.
        slice_axis: array axis of the slices, 0, 1 or 2 in nnU-Net's order z, y, x. By default the one along which the
            annotation is coarser than the image.
        slice_thickness: of all annotated slices in mm; by default what DICOM tells, else the spacing of the slices.
        skip_unmatched: leave out volumes without a partner in place of refusing them.
        processes: cases worked on at the same time, in threads.
        progress: show progress bars.

    Raises:
        InputError: any of these is unusable, a volume is damaged, or a case's volumes do not fit each other. Nothing is
            left behind then.
    """
    target = nnunet_folder("nnUNet_raw") / new_dataset_name(output, name)
    _check_options(label_names, slice_axis, slice_thickness)
    pairs, unmatched = pair_by_name(images, labels)
    if not pairs or (unmatched and not skip_unmatched):
        _refuse_unmatched(images, labels, unmatched, any_pair=bool(pairs))
    channel_names = _channel_names(pairs, channel_names)

    def check(pair: Pair) -> _Job:
        return _check_case(pair, label_names, axis=slice_axis, thickness=slice_thickness)

    jobs = for_each(check, pairs, processes=processes, label="checks", progress=progress)
    axis = jobs[0].laying.axis
    for job in jobs:
        if job.laying.axis != axis:
            raise InputError(
                f"slices along array axis {axis} in case {jobs[0].name} and along {job.laying.axis} in case {job.name}",
                "one slice axis",
                "reorient the cases, or make a data set for each axis",
            )
    values = {label: value for value, label in enumerate(label_names)}
    if any(job.ignored for job in jobs):
        values.setdefault(IGNORE, len(values))
    outcome = ThinThickDataset(target, axis, [job.report() for job in jobs], values.get(IGNORE), unmatched)
    outcome.no_volumes = [*find_others(images), *find_others(labels)]
    outcome.removed = remove_left_behind(target)
    with complete_or_absent(target) as folder:
        _write_dataset(folder, jobs, outcome, values, channel_names, processes=processes, progress=progress)
    return outcome


def _check_options(names: Sequence[str], axis: int | None, thickness: float | None) -> None:
    labels = names[:-1] if list(names[-1:]) == [IGNORE] else names
    if len(labels) < 2 or labels[0] != "background" or len(set(labels)) < len(labels) or IGNORE in labels:
        raise InputError(
            f"the label names {' '.join(names)}",
            "background first, then each label once, ignore only at the end",
            "name the values 0, 1, 2, ... in their order",
        )
    if axis not in (None, 0, 1, 2):
        raise InputError(f"slice axis {axis}", "an array axis: 0, 1 or 2", "choose one, or none for the coarser one")
    if thickness is not None and not 0 < thickness < math.inf:
        raise InputError(f"slice thickness {thickness}", "millimetres above 0", "correct it")


def _refuse_unmatched(images: Path, labels: Path, unmatched: Sequence[Path], *, any_pair: bool) -> None:
    kinds = {
        "images without annotation": [path.name for path in unmatched if path.parent == images],
        "annotations without image": [path.name for path in unmatched if path.parent != images],
    }
    found = "; ".join(f"{len(names)} {kind} ({listed(names)})" for kind, names in kinds.items() if names)
    raise InputError(
        found or f"no volume in {images} nor {labels}",
        "annotations named as their images, or as these without a channel's _0000",
        "rename them" + (", or leave them out (--skip-unmatched)" if any_pair else ""),
    )


def _channel_names(pairs: Sequence[Pair], names: Sequence[str] | None) -> Sequence[str]:
    number = len(names) if names is not None else max(len(pair.images) for pair in pairs)
    for pair in pairs:
        if len(pair.images) != number:
            raise InputError(
                f"{len(pair.images)} channels in case {pair.name}",
                f"{number}, " + ("one per channel name" if names is not None else "as in other cases"),
                "restore the missing images or correct the channel names",
            )
    if names is not None:
        return names
    return ["image"] if number == 1 else [f"channel_{channel}" for channel in range(number)]


def _check_case(pair: Pair, label_names: Sequence[str], *, axis: int | None, thickness: float | None) -> _Job:
    """Read a case's headers and annotation and check them against each other."""
    images = tuple(map(open_volume, pair.images))
    for image in images[1:]:
        refuse_differences(images[0].grid, image.grid, of=f"the channel {image.path}", beside=images[0].path.name)
    label = open_volume(pair.label)
    # Only their places in space tell how the two lie on each other.
    for volume in (*images, label):
        refuse_doubt(volume.grid, volume.path)
    thickness = label.thickness if thickness is None else thickness
    laying = lay_grids(pair.name, images[0].grid, label.grid, axis=axis, thickness=thickness)
    values = label.read()
    check_labels(values, label.path)
    unnamed = [value for value in np.unique(values).tolist() if value not in range(len(label_names))]
    if unnamed:
        raise InputError(
            f"the values {listed(unnamed, shown=SHOWN_VALUES)} in the annotation of case {pair.name}",
            f"labels with a name: {', '.join(f'{value} {name}' for value, name in enumerate(label_names))}",
            "name them all (--label-names), or renumber them",
        )
    return _Job(pair.name, images, label, laying)


def _write_dataset(
    folder: Path,
    jobs: Sequence[_Job],
    outcome: ThinThickDataset,
    values: Mapping[str, int],
    channel_names: Sequence[str],
    *,
    processes: int,
    progress: bool,
) -> None:
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir()
    ignore = 0 if outcome.ignore_label is None else outcome.ignore_label
    dtype = np.dtype(np.uint8 if len(values) <= 256 else np.uint16)

    def write(job: _Job) -> None:
        grid = job.images[0].grid
        for channel, image in enumerate(job.images):
            array = image.read()
            # nnU-Net reads every image as float32 anyway.
            array = array.astype(np.float32) if array.dtype.itemsize > 4 else array
            write_volume(array, grid, folder / "imagesTr" / f"{job.name}_{channel:04d}{ENDING}")
        laid = job.laying.lay(job.label.read(), ignore=ignore, dtype=dtype)
        write_volume(laid, grid, folder / "labelsTr" / f"{job.name}{ENDING}")

    for_each(write, jobs, processes=processes, label="cases", progress=progress)
    entries = {
        "channel_names": {str(channel): name for channel, name in enumerate(channel_names)},
        "labels": dict(values),
        "file_ending": ENDING,
    }
    write_dataset_json(folder, entries, training=len(jobs))
    write_sidecar(folder, Sidecar(folder.name, outcome.axis, {job.name: job.case_slabs for job in jobs}))
    with (folder / "conversion.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [column.name for column in fields(ConvertedCase)])
        writer.writeheader()
        writer.writerows(map(asdict, outcome.cases))
