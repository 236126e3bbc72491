"""`nnunetv2_ext import_weights`: published weights into a file that `nnUNetv2_train -pretrained_weights` takes."""

import argparse
import pickle
import warnings
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import InputError

EXAMPLE = """example:
  nnunetv2_ext import_weights mnet model_best.model --trust -o mnet_lits.pth
  nnUNetv2_train 104 3d_fullres 0 -tr MNetTrainer -p MNetPlans -pretrained_weights mnet_lits.pth"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The method, the file, and what the user expects of it."""
    parser.epilog = EXAMPLE
    parser.add_argument("method", choices=["mnet"], help="whose weights: mnet")
    parser.add_argument("file", type=Path, help="a published state dict, bare or inside an nnU-Net v1 .model file")
    parser.add_argument("-o", dest="output", type=Path, required=True, help="the file to write")
    parser.add_argument("--input-channels", type=int, help="refuse weights with another number of input channels")
    parser.add_argument("--num-classes", type=int, help="refuse weights with another number of classes")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="unpickle a file that holds more than tensors; this can run code, so only for files from a trusted source",
    )


def run(args: argparse.Namespace) -> int:
    """Convert one file and say what it holds."""
    if args.output.is_dir() or not args.output.resolve().parent.is_dir():
        raise InputError(f"the output {args.output}", "a file in an existing folder", "choose another path for -o")
    import torch

    from nnunetv2_ext.training.checkpoints import write_beside

    published = published_state_dict(read_torch_file(args.file, trust=args.trust), args.file)
    weights, description = convert_mnet(published, input_channels=args.input_channels, num_classes=args.num_classes)
    try:
        write_beside(lambda part: torch.save({"network_weights": weights}, part), args.output)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where there is no such folder
        raise InputError(
            f"{args.output}, which cannot be written ({error})", "a writable folder", "choose another"
        ) from None
    print(f"wrote {args.output}: {description}")
    print("nnU-Net's -pretrained_weights takes all but the segmentation heads from it")
    return 0


def read_torch_file(file: Path, *, trust: bool = False) -> Any:
    """The content of a file written by `torch.save`, its tensors on the CPU.

    Args:
        trust: unpickle arbitrary objects too, which can run code that the file carries.

    Raises:
        InputError: no such file, damaged, not written by `torch.save`, or more than tensors in it without `trust`.
    """
    import torch

    if not file.is_file():
        raise InputError(f"no file {file}", "a file of published weights", "check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on a file's pickle protocol
            return torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        # what the restricted unpickler refuses is named "Unsupported ..."; anything else is damage
        if not trust and "Unsupported" in str(error):
            raise InputError(
                f"{file}, which holds pickled Python objects beside tensors (as nnU-Net v1 .model files do)",
                "a file of tensors only, since unpickling objects can run code that the file carries",
                "add --trust if you trust where the file comes from",
            ) from None
        raise _damaged(file, error) from None
    except Exception as error:  # a damaged zip or pickle fails in many ways; none of them is the user's concern
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
    return InputError(
        f"{file}, which cannot be read ({reason})", "a complete file written by torch.save", "download or copy it again"
    )


def published_state_dict(content: Any, file: Path) -> dict[str, Any]:
    """The state dict inside what a file holds, without the `module.` that a parallel training leaves.

    Raises:
        InputError: neither a dict of tensors nor a dict with `state_dict`.
    """
    import torch

    if isinstance(content, dict) and "network_weights" in content:
        raise InputError(
            f"{file}, a checkpoint of nnU-Net v2",
            "published weights, bare or in an nnU-Net v1 .model file",
            "give this file to nnUNetv2_train -pretrained_weights as it is",
        )
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file}, which holds a {type(content).__name__}", "a dict of tensors", "check the file")
    strangers = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise InputError(
            f"{file}, where {', '.join(strangers[:5])} {'are' if len(strangers) > 1 else 'is'} no tensor",
            "a dict of tensors, or a dict with one under 'state_dict'",
            "check the file",
        )
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def convert_mnet(
    published: dict[str, Any], *, input_channels: int | None = None, num_classes: int | None = None
) -> tuple[dict[str, Any], str]:
    """A state dict of our MNet, its tensors contiguous on the CPU, and a line on the network that it fits.

    Features, channels, classes and merge are read from the shapes, and the outcome is loaded into the MNet they give.

    Raises:
        InputError: not MNet's keys, keys missing or unexpected, shapes that fit no MNet, or other counts than asked.
    """
    import torch

    from nnunetv2_ext.architectures.mnet import MNet, convert_published_state_dict

    if not any(key.startswith(("down", "bottleneck", "up")) for key in published):
        raise InputError(
            f"keys like {', '.join(list(published)[:3])}",
            "MNet's published names (down11.CB2d.conv1.conv.weight, bottleneck1..., up21..., outputs.0.weight)",
            "check that the file holds MNet",
        )
    converted = convert_published_state_dict(published)  # checks that no key is missing or unexpected

    def channels(name: str, axis: int) -> int:
        return int(published[name].shape[axis])

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
    with torch.device("meta"):
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
            f"weights whose shapes fit no MNet ({', '.join(wrong[:3])})",
            f"the shapes of an MNet with features {features}",
            "check that the file is MNet's and complete",
        )
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in converted.items()}
    merge = "concat" if concatenates else "difference or sum"
    return weights, f"MNet, {found['input channels']} input channels, {found['classes']} classes, " + (
        f"features {features}, merge {merge}"
    )
