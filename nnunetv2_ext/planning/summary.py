"""What plans say of a configuration, in five lines: spacing, patch, batch, training block, memory."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.architectures.contract import Measured
from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.block import differences, merge_blocks, planned_block
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_plans
from nnunetv2_ext.memory import memory_gb, passes

Blocks = Mapping[str, Mapping[str, Any]]
"""The `training` blocks of some plans by configuration."""


def blocks_in(folder: Path) -> dict[str, Blocks]:
    """The training blocks of all plans in a folder of preprocessed data, by plans identifier."""
    found: dict[str, Blocks] = {}
    for path in folder.glob("*.json"):
        try:
            configurations = read_plans(path, "")["configurations"]
            found[path.stem] = {name: planned_block(configurations, name) for name in configurations}
        except InputError:  # no plans, or damaged ones: told elsewhere
            continue
    return found


def summary(
    plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], before: Mapping[str, Any] | None = None
) -> list[str]:
    """The lines on one configuration.

    Args:
        before: the `training` block that stood in these plans before they were made anew.
    """
    manager = PlansManager(plans)
    of_it = manager.get_configuration(configuration)
    block = planned_block(plans["configurations"], configuration)
    batch = block.get("batch_size") or of_it.batch_size
    return [
        f"spacing         {_sizes(of_it.spacing)} mm{', slices first' * (len(of_it.spacing) == 3)}",
        f"patch           {_sizes(of_it.patch_size)} voxels",
        f"batch           {batch}",
        f"training block  {_length(block)}{_changes(block, before or {})}",
        f"memory          {_memory(manager, configuration, dataset_json, block, batch)}",
    ]


def _sizes(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _length(block: Mapping[str, Any]) -> str:
    if not block:
        return "none: the trainer's own numbers"
    numbers = [block.get(key, "the trainer's") for key in ("epochs", "iterations_per_epoch")]  # keys may be left out
    return "{} epochs x {} iterations".format(*numbers)


def _changes(block: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """What the block replaces, in parentheses."""
    changed = differences(block, merge_blocks(block, before)) if before else []
    told = [f"new and in the plans before: {'; '.join(changed)}"] if changed else []
    length = [(of.get("epochs"), of.get("iterations_per_epoch")) for of in (block, before)]
    if changed and None not in length[1] and length[0] != length[1]:
        rest = [line for line in changed if not line.startswith(("training.epochs:", "training.iterations_per_epoch:"))]
        told = ["the plans before had {} x {}".format(*length[1])]
        told += [f"new and in the plans before: {'; '.join(rest)}"] if rest else []
    return f" ({'; '.join(told)})" if told else ""


def replaced(plans: Mapping[str, Any], before: Mapping[str, Any], *, but: Sequence[str]) -> list[str]:
    """A line for each configuration, but for some, whose training block is another one than before."""
    configurations = plans["configurations"]
    lines = []
    for name in sorted(before.keys() & configurations.keys() - set(but)):
        block = planned_block(configurations, name)
        if changes := _changes(block, before[name]):
            lines.append(f"{name}: training block {_length(block)}{changes}")
    return lines


def _memory(
    manager: PlansManager,
    configuration: str,
    dataset_json: dict[str, Any],
    block: Mapping[str, Any],
    batch: int,
) -> str:
    """nnU-Net's estimate for the network that the plans name."""
    of_it = manager.get_configuration(configuration)
    patch = list(of_it.patch_size)
    try:
        with without_values(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # initialising what has no values
            network = get_network_from_plans(
                of_it.network_arch_class_name,
                of_it.network_arch_init_kwargs,
                of_it.network_arch_init_kwargs_req_import,
                determine_num_input_channels(manager, of_it, dataset_json),
                manager.get_label_manager(dataset_json).num_segmentation_heads,
                allow_init=False,
                deep_supervision=True,
            )
    except Exception as error:  # the plans of a foreign planner may name any network
        return f"no estimate ({error})"
    if not isinstance(network, Measured):
        return "no estimate for this network"
    size = float(network.compute_conv_feature_map_size(patch)) * passes(block, patch[0])
    return f"about {memory_gb(size, batch, axes=len(patch)):.1f} GB of GPU memory, by nnU-Net's estimate"
