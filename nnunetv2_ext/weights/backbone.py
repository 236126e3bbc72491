"""Published weights of a backbone, under the names of its authors, for BackboneTrainer and PaRTrainer."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from nnunetv2_ext.architectures.backbones import find_backbone
from nnunetv2_ext.architectures.backbones.network import record_of
from nnunetv2_ext.architectures.backbones.record import Backbone, Kwargs, Shape, size_rule, triple
from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.architectures.par import PaRNetwork
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import counted
from nnunetv2_ext.weights.checkpoint import differing_weights, not_finite
from nnunetv2_ext.weights.files import published_state_dict
from nnunetv2_ext.weights.par import check_count, planned_network, read_plans_of

INDEX = "relative_position_index"
"""How the tensors of attention within windows are called that tell which row of a table is whose bias."""
PREFIXES = ("module.", "network.")
"""What trainings put before the names of a network's tensors."""
MERGING = (
    'merging is {}: weights that were made with MONAI 1.4 or older need "published", those of MONAI 1.5 or newer '
    '"current"; both load, and with the wrong one the network computes something else'
)


@dataclass(frozen=True)
class Target:
    """The network that is to start from published weights.

    Attributes:
        build: the refiner on the backbone, from the numbers of input channels and of classes.
        kwargs: the backbone's own arguments.
        patch: the planned one (z, y, x) in voxels.
        input_channels, num_classes: as the plans or the user have them; None: whatever the file has.
        named: who says so, for messages.
    """

    record: Backbone
    build: Callable[[int, int], PaRNetwork]
    kwargs: Kwargs
    patch: Shape
    input_channels: int | None
    num_classes: int | None
    named: str


def target_of_plans(
    backbone: str | None,
    dataset: str,
    plans: str,
    configuration: str,
    *,
    input_channels: int | None = None,
    num_classes: int | None = None,
) -> Target:
    """The network of plans.

    Args:
        backbone, input_channels, num_classes: refuse others; None: those of the plans.

    Raises:
        InputError: no such plans, damaged ones, or plans of another network.
    """
    planned, channels, classes = planned_network(*read_plans_of(dataset, plans), configuration)
    record = record_of(planned.backbone["backbone"])
    if backbone is not None and find_backbone(backbone).name != record.name:
        raise InputError(f"plans {plans} of {record.name}", backbone, "choose the plans of that backbone with -p")
    for what, asked, found in (("input channels", input_channels, channels), ("classes", num_classes, classes)):
        check_count(what, asked, found)
    kwargs = {**record.defaults, **(planned.backbone.get("backbone_kwargs") or {})}
    patch, named = triple(planned.backbone["spatial_shape"]), f"as {plans} {configuration}"
    return Target(record, planned.build, kwargs, patch, channels, classes, named)


def target_of_arguments(
    backbone: str, patch: Sequence[int], kwargs: Kwargs, input_channels: int | None, num_classes: int | None
) -> Target:
    """The network of arguments, under a refiner with the default ones.

    Raises:
        InputError: an unknown backbone, MONAI missing.
    """
    record = find_backbone(backbone)
    record.load()

    def build(channels: int, classes: int) -> PaRNetwork:
        return PaRNetwork(channels, classes, backbone=backbone, spatial_shape=patch, backbone_kwargs=kwargs)

    return Target(
        record, build, {**record.defaults, **kwargs}, triple(patch), input_channels, num_classes, "as the flags say"
    )


def start_of_backbone(
    content: Any, file: Path, target: Target, *, file_patch: Sequence[int] | None = None, fresh_heads: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict for `-pretrained_weights`, under the names of BackboneTrainer and of PaRTrainer, and what it is.

    Both names of a tensor share its values, which a file holds once.

    Args:
        content: of the file.
        file_patch: that the file's positions were trained with (z, y, x); None: the target's where their number is
            that of its tokens, else the only cube with so many tokens.
        fresh_heads: start the segmentation heads anew, so that the file may have other classes.

    Raises:
        InputError: no state dict, or one of another network, of other channels, classes or patch.
    """
    record = target.record
    source = _checked_file_patch(target, file_patch)
    published = _published_names(published_state_dict(content, file), record)
    if broken := not_finite(published):
        what = f"{file} with weights that are no finite numbers: {counted(broken, 'tensor')}"
        raise InputError(what, "a trained network", "download or copy it again")
    with without_values():
        counts = _counts(published, target)
        if fresh_heads and target.num_classes is not None:
            counts["classes"] = target.num_classes
        for what, asked, remedy in (
            ("input channels", target.input_channels, "choose weights or plans that agree"),
            ("classes", target.num_classes, "add --fresh-heads to start the segmentation heads anew"),
        ):
            if asked is not None and counts.setdefault(what, asked) != asked:
                raise InputError(f"{file} with {counts[what]} {what}", f"{asked}, {target.named}", remedy)
        channels, classes = counts.get("input channels", 1), counts.get("classes", 2)
        backbone = _backbone(target, channels, classes)
        expected = backbone.network.state_dict()
        kept = _heads(backbone) if fresh_heads else set()
        kept |= {key for key in expected if record.never_used and record.never_used in key}
        kept |= {key for key in expected.keys() - published.keys() if record.computed and record.computed in key}
    _check_network(
        {key: value for key, value in published.items() if key not in kept},
        {key: value for key, value in expected.items() if key not in kept},
        file,
        target,
    )
    told = _resample_positions(published, file, target, source)
    taken = {key: value for key, value in published.items() if key not in kept}
    _check_indices(taken, file)
    network = target.build(channels, classes)
    network.backbone.network.load_state_dict({**network.backbone.network.state_dict(), **taken})
    weights = {**network.state_dict(), **network.backbone.state_dict()}
    about = f"{record.name}, {channels} input channels, {classes} classes, patch {list(target.patch)}"
    told.insert(0, f"{about}, for BackboneTrainer and, under a fresh refiner, PaRTrainer")
    if fresh_heads:
        told.append("segmentation heads: fresh")
    else:
        told.append("segmentation heads: PaRTrainer takes them; nnU-Net starts those of BackboneTrainer anew")
    if merging := inspect.signature(record.load()).parameters.get("merging"):
        told.append(MERGING.format(f'"{target.kwargs.get("merging", merging.default)}"'))
    return weights, told


def _published_names(state_dict: Mapping[str, Tensor], record: Backbone) -> dict[str, Tensor]:
    """The tensors under the authors' names, without those that no forward pass uses."""
    named = {}
    for key, value in state_dict.items():
        while key.startswith(PREFIXES):
            key = key.partition(".")[2]
        if not key.startswith(record.unused):
            named[key] = value
    return named


def _check_indices(published: Mapping[str, Tensor], file: Path) -> None:
    """Refuse indices of relative positions that are no rows of their tables, which attention would fail on.

    Raises:
        InputError: the first of them.
    """
    for key, index in published.items():
        table = published.get(f"{key.removesuffix('index')}bias_table")
        if key.endswith(INDEX) and table is not None:
            least, largest = int(index.min()), int(index.max())
            if least < 0 or largest >= len(table):
                raise InputError(
                    f"{file} with {key} from {least} to {largest}",
                    f"rows of its table, 0 to {len(table) - 1}",
                    "download or copy it again, or, if it was published so, choose weights of other windows",
                )


def _backbone(target: Target, channels: int, classes: int) -> Any:
    """The target's `BackboneNetwork`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialising what has no values
        return target.build(channels, classes).backbone


def _heads(backbone: Any) -> set[str]:
    """The names, in the network within, of what nnU-Net's -pretrained_weights leaves out."""
    names = zip(backbone.network.state_dict(), backbone.state_dict(), strict=True)
    return {inner for inner, outer in names if ".seg_layers." in outer}


def _counts(published: Mapping[str, Tensor], target: Target) -> dict[str, int]:
    """The numbers of input channels and of classes of the published network, read off the axes that grow with them.

    Without those that no tensor tells.
    """
    one, channels, classes = (_backbone(target, *counts).network.state_dict() for counts in ((1, 1), (2, 1), (1, 2)))
    found: dict[str, int] = {}
    for what, two in (("input channels", channels), ("classes", classes)):
        for key in sorted(one.keys() & two.keys() & published.keys()):
            for a, b, size in zip(one[key].shape, two[key].shape, published[key].shape, strict=False):
                if a != b and size >= a:
                    found[what] = 1 + (size - a) // (b - a)
    return found


def _check_network(taken: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path, target: Target) -> None:
    """Refuse weights of another network; positions may be of any number of tokens.

    Raises:
        InputError: names or sizes that differ, or an index that the file lacks and the windows do not tell.
    """
    record = target.record
    like = {key: expected[key] for key in _positions(target) if key in taken and key in expected}
    like = {key: value for key, value in like.items() if _alike_but_tokens(taken[key], value)}
    if differing := differing_weights({**taken, **like}, expected):
        if all(INDEX in line and "missing instead" in line for line in differing):
            raise InputError(
                f"{file} without {counted([line.partition(' ')[0] for line in differing], 'tensor')}",
                f"them beside the weights, since those of the published {record.name} do not follow from its windows",
                "save the whole state dict of the trained network, with its buffers",
            )
        # sizes tell more only of the same network
        differing = [line for line in differing if "missing" in line and INDEX not in line] or differing
        raise InputError(
            f"{file}, which differs from {record.name} at patch {list(target.patch)} in {counted(differing, 'tensor')}",
            "published weights of that network, with its arguments and patch",
            "choose --backbone by the names of the tensors, or the published arguments by --backbone-kwargs, of "
            "plan_and_preprocess where you give plans",
        )


def _positions(target: Target) -> dict[str, Shape]:
    """The grid of tokens of each tensor of positions."""
    positions = target.record.positions
    return {} if positions is None else positions(target.kwargs, target.patch)


def _alike_but_tokens(one: Tensor, other: Tensor) -> bool:
    """Whether both are (1, tokens, features), with as many features."""
    return one.ndim == other.ndim == 3 and one.shape[::2] == other.shape[::2]


def _checked_file_patch(target: Target, patch: Sequence[int] | None) -> Shape | None:
    """The patch of the file as the user tells it.

    Raises:
        InputError: for a network without positions, or no whole number of tokens.
    """
    if patch is None:
        return None
    record, sizes = target.record, triple(patch)
    if record.positions is None:
        raise InputError(f"--file-patch of {record.name}", "a network with positions", "leave it out")
    divisor = size_rule(record, target.kwargs)[0]
    if any(size < 1 or size % step for size, step in zip(sizes, divisor, strict=True)):
        raise InputError(
            f"--file-patch {' '.join(map(str, sizes))} for {record.name}",
            f"multiples of {divisor}",
            "pass the patch that the weights in the file were trained with",
        )
    return sizes


def _resample_positions(published: dict[str, Tensor], file: Path, target: Target, asked: Shape | None) -> list[str]:
    """Bring the positions to the target's grid of tokens, in place; a line for each tensor that changes.

    Args:
        asked: the patch of the file, as the user tells it.

    Raises:
        InputError: a number of tokens that is not the patch's that was told, or that tells of none.
    """
    told = []
    for name, grid in _positions(target).items():
        values = published.get(name)
        if values is None:
            continue
        tokens, source, patch = values.shape[1], grid, asked
        if patch is None and tokens != prod(grid):
            patch = _cube(target, name, tokens)
            if patch is None:
                raise InputError(
                    f"{name} of {tokens} tokens in {file}, where patch {list(target.patch)} has {prod(grid)}",
                    "the patch that they were trained with",
                    "pass it by --file-patch Z Y X",
                )
        if patch is not None:
            source = _positions(replace(target, patch=patch))[name]
        if prod(source) != tokens:
            raise InputError(
                f"{name} of {tokens} tokens in {file}",
                f"{prod(source)}, as a patch of {list(patch or target.patch)} has",
                "correct --file-patch",
            )
        if source != grid:
            published[name] = resampled(values, source, grid)
            guess = " (taken for a cube, else pass --file-patch)" if asked is None else ""
            told.append(
                f"positions {name}: resampled from {_by(source)} tokens, patch {_by(patch or ())}{guess}, to "
                f"{_by(grid)}, patch {_by(target.patch)}"
            )
    return told


def _cube(target: Target, name: str, tokens: int) -> Shape | None:
    """The patch of equal sides that has so many tokens, if there is one."""
    step = side = max(size_rule(target.record, target.kwargs)[0])
    while (found := prod(_positions(replace(target, patch=triple(side)))[name])) < tokens:
        side += step
    return triple(side) if found == tokens else None


def resampled(positions: Tensor, source: Shape, grid: Shape) -> Tensor:
    """Vectors of a grid of tokens, (1, tokens, features) in raster order, trilinear on another grid."""
    sizes = dict(zip("zyx", source, strict=True))
    volume = rearrange(positions.float(), "b (z y x) c -> b c z y x", **sizes)  # (1, C, Z, Y, X)
    volume = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False)
    return rearrange(volume, "b c z y x -> b (z y x) c").to(positions.dtype)


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
