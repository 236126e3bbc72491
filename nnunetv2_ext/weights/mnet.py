"""The authors' weights of MNet (https://github.com/zfdong-code/MNet), under the names of ours."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.architectures.mnet import MNet
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import counted, listed


def _published_name(state: str) -> str:
    """The published name of one of MNet's tensors, for instance `down11.CB2d.conv1.conv.weight`."""
    kind, _, rest = state.partition(".")
    if kind == "heads":
        return rest.replace("seg_layers", "outputs")
    name, layer, part = rest.split(".", 2)
    i, j, stream = name.split("_")
    row, column = int(i), int(j)
    if row + column <= 5:
        module = f"down{i}{j}"
    elif row + column == 6:
        module = f"bottleneck{i}"
    else:
        module = f"up{6 - column}{row + column - 6}"
    return f"{module}.CB{'2d' if stream == 'plane' else '3d'}.{layer.replace('layer', 'conv')}.{part}"


def convert_published_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict, renamed for our MNet. Tensors are shared, not copied.

    Raises:
        InputError: keys are missing or unexpected; the message names the first of them.
    """
    with without_values():
        names = {_published_name(name): name for name in MNet(1, 1).state_dict()}
    missing, unexpected = sorted(names.keys() - state_dict.keys()), sorted(state_dict.keys() - names.keys())
    if missing or unexpected:
        found = [
            counted(keys, f"{what} key") for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys
        ]
        raise InputError(
            f"published MNet weights with {' and '.join(found)}",
            f"the {len(names)} tensors of the published network",
            "check that the file holds the state dict of the authors' MNet",
        )
    return {names[key]: tensor for key, tensor in state_dict.items()}


def convert_mnet(
    published: dict[str, Any], *, input_channels: int | None = None, num_classes: int | None = None
) -> tuple[dict[str, Any], str]:
    """A state dict of our MNet, its tensors contiguous on the CPU, and a line on the network that it fits.

    Features, channels, classes and merge are read from the shapes, and the outcome is loaded into the MNet they give.

    Raises:
        InputError: not MNet's keys, keys missing or unexpected, shapes that fit no MNet, or other counts than asked.
    """
    if not any(key.startswith(("down", "bottleneck", "up")) for key in published):
        raise InputError(
            f"keys like {', '.join(list(published)[:3])}",
            "MNet's published names (down11.CB2d.conv1.conv.weight, bottleneck1..., up21..., outputs.0.weight)",
            "check that the file holds MNet",
        )
    converted = convert_published_state_dict(published)  # checks that no key is missing or unexpected

    def channels(name: str, axis: int) -> int:
        shape = tuple(published[name].shape)
        if len(shape) != 5:
            got = f"{name} of shape {shape}"
            raise InputError(got, "the weights of a 3D convolution", "check that the file is MNet's and complete")
        return int(shape[axis])

    found = {
        "input channels": channels("down11.CB2d.conv1.conv.weight", 1),
        "classes": channels("outputs.0.weight", 0),
    }
    for what, asked in (("input channels", input_channels), ("classes", num_classes)):
        if asked is not None and asked != found[what]:
            raise InputError(
                f"weights with {found[what]} {what}", f"{asked} {what}", "give the count that the file has"
            )
    # the depth of encoder node (1, j) is j, and the bottlenecks lie at depth 5
    nodes = [f"down1{depth}" for depth in range(1, 5)] + ["bottleneck1"]
    features = tuple(channels(f"{node}.CB2d.conv1.conv.weight", 0) for node in nodes)
    # node (2, 2) merges two streams of depth 2; concatenating doubles its input, difference and sum do not
    concatenates = channels("down22.CB2d.conv1.conv.weight", 1) == 2 * features[1]
    with without_values():
        network = MNet(
            found["input channels"],
            found["classes"],
            features_per_stage=features,
            merge="concat" if concatenates else "difference",
        )
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    wrong = [key for key, shape in expected.items() if key not in converted or tuple(converted[key].shape) != shape]
    if wrong:
        raise InputError(
            f"weights whose shapes fit no MNet ({listed(wrong, shown=3)})",
            f"the shapes of an MNet with features {features}",
            "check that the file is MNet's and complete",
        )
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in converted.items()}
    merge = "concat" if concatenates else "difference or sum"
    return weights, f"MNet, {found['input channels']} input channels, {found['classes']} classes, " + (
        f"features {features}, merge {merge}"
    )
