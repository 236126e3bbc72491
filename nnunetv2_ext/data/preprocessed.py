"""The slabs of a thin-thick data set in what nnU-Net's preprocessing made of its images."""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_ext.data.sidecar import SIDECAR, Sidecar, read_sidecar, refuse_thin_annotations
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import raw_folder
from nnunetv2_ext.geometry.patches import PreprocessedSlabs
from nnunetv2_ext.geometry.slabs import COVERED, CaseSlabs, preprocessed_slices

NEAREST = "nearest-exact"
"""How nnU-Net's resampling with PyTorch takes slices unless it is told otherwise."""


def read_slabs(manager: PlansManager, configuration: ConfigurationManager, data: Path) -> dict[str, PreprocessedSlabs]:
    """The slabs of every preprocessed case, by name.

    Args:
        data: folder of the configuration's data, in that of the preprocessed data set.

    Raises:
        InputError: no side-car, an edited one, one of another data set or of other images; annotations as thin as the
            images; a slice axis that is not the first one of the plans.
    """
    sidecar = find_sidecar(data.parent, manager.dataset_name)
    refuse_thin_annotations(sidecar)
    refuse_other_axis(sidecar.axis, manager.transpose_forward)
    dataset_class = infer_dataset_class(str(data))
    dataset = dataset_class(str(data))
    cases = {}
    for name in dataset.identifiers:
        image, _, _, properties = dataset.load_case(name)
        spacing = [properties["spacing"][axis] for axis in manager.transpose_forward]
        cases[name] = preprocessed_slabs(
            name,
            sidecar.case(name),
            sidecar.axis,
            properties,
            image.shape[1],
            nearest=takes_nearest_slices(configuration, spacing),
        )
    return cases


def find_sidecar(preprocessed: Path, dataset: str) -> Sidecar:
    """The side-car of a preprocessed data set, or that of its raw data where nnU-Net's own command preprocessed it.

    Raises:
        InputError: as `read_sidecar`, or the raw data have another one.
    """
    raw = raw_folder(dataset)
    if raw is None or not (raw / SIDECAR).is_file():
        return read_sidecar(preprocessed, dataset)
    sidecar = read_sidecar(raw, dataset)
    held = preprocessed / SIDECAR
    # an edited one is told as such
    if held.is_file() and read_sidecar(preprocessed, dataset).digest != sidecar.digest:
        raise InputError(
            f"another {SIDECAR} in {preprocessed} than in {raw}",
            "that of the data set as it was converted last",
            "plan and preprocess it again with ThinThickPlanner",
        )
    return sidecar


def takes_nearest_slices(configuration: ConfigurationManager, spacing: Sequence[float]) -> bool:
    """Whether nnU-Net resamples a case along the first axis by taking the nearest slice, as nnU-Net itself decides it.

    It does where the largest spacing, of the case or else of the plans, is more than three times the smallest one.

    Args:
        spacing: of the stored image in mm, in the plans' order of axes, as the case's properties tell it to the last
            bit: exactly 3 : 1 falls on either side.
    """
    resample = configuration.resampling_fn_data
    assert isinstance(resample, partial)
    defaults = {name: of.default for name, of in inspect.signature(resample.func).parameters.items()}
    settings = defaults | resample.keywords
    if "force_separate_z" not in settings:  # nnU-Net's `no_resampling_hack`
        return False
    separate, axis = determine_do_sep_z_and_axis(
        settings["force_separate_z"],
        spacing,
        configuration.spacing,
        settings["separate_z_anisotropy_threshold"],
    )
    nearest = settings.get("order_z", 0) == 0 and settings.get("aniso_axis_mode", NEAREST) == NEAREST
    return bool(separate and axis == 0 and nearest)


def preprocessed_slabs(
    name: str,
    case: CaseSlabs,
    axis: int,
    properties: Mapping[str, Any],
    resampled_slices: int,
    *,
    nearest: bool = False,
) -> PreprocessedSlabs:
    """The slabs of a case in what nnU-Net's preprocessing made of it, the slice axis being the first.

    Args:
        name: of the case, for errors.
        axis: the slice axis of the stored image.
        properties: nnU-Net's, of the preprocessed case.
        resampled_slices: slices of the preprocessed image.
        nearest: see `takes_nearest_slices`.

    Raises:
        InputError: the side-car is of another image.
    """
    stored, spacing = int(properties["shape_before_cropping"][0]), float(properties["spacing"][axis])
    if stored != case.thin_slices or abs(spacing / case.thin_spacing - 1) > COVERED:
        raise InputError(
            f"{case.thin_slices} slices of {case.thin_spacing:.9g} mm of case {name} in {SIDECAR}, and {stored} of "
            f"{spacing:.9g} mm in its preprocessed image",
            "a side-car of these images",
            "preprocess the data set again, or make it with `nnunetv2_ext convert_thin_thick`",
        )
    lower, upper = (int(bound) for bound in properties["bbox_used_for_cropping"][0])
    slices, shown = preprocessed_slices(
        stored,
        case.thin_spacing,
        bounding_box=(lower, upper),
        stored_count=int(properties["shape_after_cropping_and_before_resampling"][0]),
        resampled_count=resampled_slices,
        nearest=nearest,
    )
    return PreprocessedSlabs(case.slabs, slices, shown)


def refuse_other_axis(axis: int, transpose_forward: Sequence[int]) -> None:
    """Refuse plans in which the slices do not lie along the first axis.

    Raises:
        InputError: `axis`, an array axis of the stored images, becomes another one than the first.
    """
    if transpose_forward[0] != axis:
        raise InputError(
            f"plans whose first axis is axis {transpose_forward[0]} of the images (transpose_forward)",
            f"the slice axis {axis}",
            "plan with ThinThickPlanner",
        )
