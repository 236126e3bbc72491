"""Whether the members of an ensemble agree: what their outputs mean, and where the voxels of a case lie.

nnU-Net's own ensemble looks at the names of files alone. It averages the probabilities of one label with those of
another, and of one place with those of another, without a word.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_ext.data.description import IGNORE, channel_names, ending_faults, label_faults
from nnunetv2_ext.data.volumes import Grid, refuse_differences
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed

LEAVE_OUT = "leave one of them out"
RENAME = f"{LEAVE_OUT}, or, if only the names differ, write the same into the dataset.json of both"
LPS = np.diag([-1, -1, 1])
"""From coordinates of NIfTI, which nibabel keeps, to those of SimpleITK."""


class Member(NamedTuple):
    """A model, or a folder of its predictions, and what it must agree in with the others."""

    name: str
    """For messages."""
    dataset_json: Mapping[str, Any]
    plans: Mapping[str, Any]


class Trait(NamedTuple):
    """One thing that members must have in common, in words."""

    what: str
    value: str
    remedy: str = LEAVE_OUT


def check_members(members: Sequence[Member]) -> None:
    """Refuse members whose outputs do not mean the same, or that do not read and write the same files.

    They must agree on labels (their names and values; for regions, their order too, and the order in which they are
    painted), on the ignore label, on the channels of an image, and on the reader and the ending of its files.

    The order of plain labels is free, since nnU-Net sorts them by value. So is the case of channels' names, in which
    nnU-Net sees no difference.

    Raises:
        InputError: they differ, or the labels, channels or file ending of one are none that nnU-Net can take.
    """
    for member in members:
        _check_description(member)
    for other in members[1:]:
        _refuse_difference(members[0], other)


def checked_weights(weights: Sequence[float] | None, members: int) -> list[float]:
    """The weight of each member as a share of the largest, by default all the same.

    Raises:
        InputError: another number of them, or one that is not above 0.
    """
    shares = [1.0] * members if weights is None else [float(weight) for weight in weights]
    if len(shares) != members:
        raise InputError(f"{len(shares)} weights for {members} members", "one per member", "correct -w")
    if not all(np.isfinite(share) and share > 0 for share in shares):
        remedy = "leave out members that do not count"
        raise InputError(f"-w {listed(shares, separator=' ')}", "weights above 0", remedy)
    return [share / max(shares) for share in shares]  # which single precision can hold


def _check_description(member: Member) -> None:
    """Refuse entries that cannot be compared."""
    content, told = member.dataset_json, Path(f"the dataset.json of {member.name}")
    for fault in (*label_faults(content, told), *ending_faults(content, told)):
        if fault.fatal:
            raise InputError(fault.got, fault.expected, fault.remedy)
    channels = channel_names(content)
    if not isinstance(channels, dict) or not channels:
        raise InputError(f"no channel_names in {told}", "those that the model was trained on", "write them into it")


def _refuse_difference(one: Member, other: Member) -> None:
    """Refuse two members for the first trait in which they differ."""
    first, second = ({trait.what: trait for trait in _traits(member)} for member in (one, other))
    for what, trait in (first | second).items():
        values = [traits[what].value if what in traits else "none" for traits in (first, second)]
        if values[0] != values[1]:
            raise InputError(
                f"{what} = {values[0]} in {one.name}, but {values[1]} in {other.name}",
                "members of an ensemble that agree in it",
                trait.remedy,
            )


def _traits(member: Member) -> Iterator[Trait]:
    """What must agree, in the order in which it is told."""
    content = member.dataset_json
    lists = {name: value if isinstance(value, list) else [value] for name, value in content["labels"].items()}
    ignored = lists.pop(IGNORE, None)
    for name, values in lists.items():
        yield Trait(f"the label '{name}'", listed(sorted(set(values)), separator=" and "), RENAME)
    if any(len(values) > 1 for values in lists.values()):
        # Each has an output, in the order of the entries. Those of plain labels are in the order of the values.
        yield Trait("the order of regions", listed(name for name, values in lists.items() if set(values) != {0}))
        yield Trait("regions_class_order", str(content["regions_class_order"]))
    if ignored:
        free = f"write the same into the dataset.json of both, since {IGNORE} changes no output"
        yield Trait(f"the label '{IGNORE}'", listed(ignored), free)
    channels = channel_names(content)
    yield Trait("the number of channels", str(len(channels)))
    for number, channel in channels.items():
        yield Trait(f"the channel {number}", str(channel).casefold(), RENAME)
    yield Trait("file_ending", content["file_ending"], f"{LEAVE_OUT}, or write the same into the dataset.json of both")
    yield Trait("image_reader_writer", str(member.plans.get("image_reader_writer")))


def check_geometry(
    case: str,
    names: Sequence[str],
    properties: Sequence[Mapping[str, Any]],
    shapes: Sequence[Sequence[int]],
) -> None:
    """Refuse a case whose voxels do not lie at the same places for all members.

    Args:
        case: its name, for the message.
        names: of the members.
        properties: of the case, as nnU-Net's reader gave them to each member.
        shapes: of its image (Z, Y, X) as that reader gave it; `shape_before_cropping` has the axes of the plans.

    Raises:
        InputError: shape, spacing, origin or direction differ by more than other volumes of a case may, or the
            properties tell none.
    """
    grids = [_grid(case, *of_member) for of_member in zip(names, properties, shapes, strict=True)]
    for name, grid in zip(names[1:], grids[1:], strict=True):
        refuse_differences(
            grids[0],
            grid,
            of=f"the case {case} of {name}",
            beside=names[0],
            remedy="predict it with both from the same image",
        )


def _grid(case: str, name: str, properties: Mapping[str, Any], shape: Sequence[int]) -> Grid:
    """The grid of an image by the properties that one of nnU-Net's readers gave it."""
    try:
        if "sitk_stuff" in properties:
            told = [np.asarray(properties["sitk_stuff"][key], float) for key in ("spacing", "origin", "direction")]
            grid = _grid_of(shape, *told)
        elif "nibabel_stuff" in properties:
            stuff = properties["nibabel_stuff"]
            # Reoriented where the reader did so with the voxels.
            affine = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), float)
            axes = LPS @ affine[:3, :3]
            spacing = np.maximum(np.linalg.norm(axes, axis=0), 1e-9)
            grid = _grid_of(shape, spacing, LPS @ affine[:3, 3], (axes / spacing).ravel())
        else:  # pictures and TIFF
            grid = _grid_of(shape, np.asarray(properties["spacing"], float)[::-1], np.zeros(3), np.eye(3).ravel())
    except (LookupError, TypeError, ValueError, AttributeError):
        grid = None
    if grid is None or not np.isfinite([*grid.spacing, *grid.origin, *grid.direction]).all():
        raise InputError(
            f"properties of the case {case} of {name} that do not tell where its voxels lie",
            "the spacing, origin and direction that nnU-Net's reader writes there",
            "predict it again",
        )
    return grid


def _grid_of(shape: Sequence[int], spacing: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> Grid:
    """A grid of three axes, for a single picture too, whose array has a first axis of length 1."""
    if len(spacing) == 2:
        direction = np.block([[np.reshape(direction, (2, 2)), np.zeros((2, 1))], [np.zeros((1, 2)), np.eye(1)]]).ravel()
        spacing, origin = np.append(spacing, 1.0), np.append(origin, 0.0)
    if [len(shape), len(spacing), len(origin), len(direction)] != [3, 3, 3, 9]:
        raise ValueError
    size = tuple(map(int, reversed(shape)))
    return Grid(size, tuple(spacing.tolist()), tuple(origin.tolist()), tuple(direction.tolist()))
