"""`nnunetv2_ext import_weights`: published or trained weights into a file for `nnUNetv2_train -pretrained_weights`."""

import argparse
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.paths import dataset_name, nnunet_folder, read_json
from nnunetv2_ext.registry import find

EXAMPLE = """example:
  nnunetv2_ext import_weights mnet model_best.model --trust -o mnet_lits.pth
  nnUNetv2_train 104 3d_fullres 0 -tr MNetTrainer -p MNetPlans -pretrained_weights mnet_lits.pth

  nnunetv2_ext import_weights par $nnUNet_results/.../fold_0/checkpoint_final.pth -o par_start.pth
  nnUNetv2_train 104 3d_fullres 0 -tr PaRTrainer -p nnUNetPlans -pretrained_weights par_start.pth"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The method, the file, and what the user expects of it."""
    parser.epilog = EXAMPLE
    parser.add_argument("method", choices=["mnet", "par"], help="what the weights are for")
    parser.add_argument(
        "file",
        type=Path,
        help="mnet: the published state dict, bare or inside an nnU-Net v1 .model file; par: the checkpoint of a "
        "finished training of nnU-Net or of ours, whose network becomes the backbone",
    )
    parser.add_argument("-o", dest="output", type=Path, required=True, help="the file to write")
    parser.add_argument("--input-channels", type=int, help="refuse weights with another number of input channels")
    parser.add_argument("--num-classes", type=int, help="refuse weights with another number of classes")
    parser.add_argument("-d", help="par: data set id or name to train on (default: the checkpoint's)")
    parser.add_argument("-p", help="par: plans identifier to train with (default: the checkpoint's plans)")
    parser.add_argument("-c", help="par: configuration to train (default: the checkpoint's)")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="unpickle a file that holds more than tensors; this can run code, so only for files from a trusted source",
    )


def run(args: argparse.Namespace) -> int:
    """Convert one file and say what it holds."""
    if args.output.is_dir() or not args.output.resolve().parent.is_dir():
        raise InputError(f"the output {args.output}", "a file in an existing folder", "choose another path for -o")
    if args.output.resolve() == args.file.resolve():
        raise InputError(f"the input {args.file} as the output", "another file", "choose another path for -o")
    import torch

    from nnunetv2_ext.training.checkpoints import write_beside

    content = read_torch_file(args.file, trust=args.trust)
    counts = {"input_channels": args.input_channels, "num_classes": args.num_classes}
    if args.method == "mnet":
        weights, description = convert_mnet(published_state_dict(content, args.file), **counts)
    else:
        weights, description = start_of_par(content, args.file, args.d, args.p, args.c, **counts)
    try:
        write_beside(lambda part: torch.save({"network_weights": weights}, part), args.output)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where there is no such folder
        raise InputError(
            f"{args.output}, which cannot be written ({error})", "a writable folder", "choose another"
        ) from None
    print(f"wrote {args.output}: {description}")
    if args.method == "mnet":
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
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_globals()):
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


class _NumberKind:
    """Stands in for numpy.dtype while a file is read: plain numbers only."""

    def __init__(self, name: Any, *_: Any):
        if not (isinstance(name, str) and re.fullmatch(r"[biuf][1248]", name)):
            raise pickle.UnpicklingError(f"Unsupported numpy dtype {name!r}")
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which are the machine's own for numbers."""


def _number(kind: Any, data: Any) -> Any:
    """Stands in for what makes numpy's scalars: a Python number from its bytes."""
    import numpy as np

    return np.frombuffer(data, np.dtype(kind.name))[0].item()


def _numpy_globals() -> list[Any]:
    """What the numbers in nnU-Net's checkpoints refer to, under the names of numpy 2 and 1.

    numpy's own functions would let a file make arrays of any pointers.
    """
    scalars = [(_number, f"{module}.multiarray.scalar") for module in ("numpy._core", "numpy.core")]
    return [*scalars, (_NumberKind, "numpy.dtype")]


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


def start_of_par(
    content: Any,
    file: Path,
    dataset: str | None,
    plans: str | None,
    configuration: str | None,
    *,
    input_channels: int | None = None,
    num_classes: int | None = None,
) -> tuple[dict[str, Any], str]:
    """The state dict of a `PaRNetwork` whose backbone is the trained network of a checkpoint, its refiner fresh.

    Args:
        content: of the checkpoint.
        dataset, plans, configuration: what PaRTrainer will train; None: the checkpoint's own.

    Raises:
        InputError: no checkpoint of nnU-Net, or one whose network, channels or classes are not the plans'.
    """
    import torch
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_ext.architectures.par import backbone_state_dict

    if not isinstance(content, dict) or not {"network_weights", "init_args", "trainer_name"} <= content.keys():
        raise InputError(f"{file}", "a checkpoint that a training of nnU-Net wrote", "give checkpoint_final.pth")
    trained = content["network_weights"]
    if not all(isinstance(value, torch.Tensor) for value in trained.values()):
        raise InputError(f"{file}, whose network_weights are no tensors", "a checkpoint of nnU-Net", "check the file")
    if any(key.startswith("refiner.") for key in trained):
        raise InputError(
            f"{file}, whose network has a refiner already",
            "a network without one",
            "give this file to nnUNetv2_train -pretrained_weights as it is",
        )
    made_with = content["init_args"]
    plans_content, description = made_with["plans"], made_with["dataset_json"]
    if dataset is not None or plans is not None:
        name = dataset_name(dataset or plans_content["dataset_name"])
        folder = nnunet_folder("nnUNet_preprocessed") / name
        remedy = "run nnunetv2_ext plan_and_preprocess, or correct -d and -p"
        plans_content = read_json(folder / f"{plans or plans_content['plans_name']}.json", remedy)
        description = read_json(folder / "dataset.json", remedy)
    chosen = configuration or made_with["configuration"]
    if chosen not in plans_content["configurations"]:
        raise InputError(
            f"the configuration '{chosen}'", f"one of {', '.join(plans_content['configurations'])}", "correct -c"
        )
    trainer = find("trainer", "PaRTrainer").load()
    manager = PlansManager(plans_content)
    channels = determine_num_input_channels(manager, manager.get_configuration(chosen), description)
    classes = manager.get_label_manager(description).num_segmentation_heads
    for what, asked, found in (("input channels", input_channels, channels), ("classes", num_classes, classes)):
        if asked is not None and asked != found:
            raise InputError(f"plans with {found} {what}", f"{asked} {what}", "correct the flag, or choose other plans")
    network = trainer.build_network_architecture(manager, manager.get_configuration(chosen), channels, classes, True)
    weights, trained = network.state_dict(), backbone_state_dict(trained)
    remedy = "choose the plans that hold the network of the checkpoint, with -p"
    if dataset is None and plans is None:
        remedy = f"{content['trainer_name']} trains another network than its plans hold, so plan for it and pass -p"
    _check_backbone(
        {key: value for key, value in weights.items() if key.startswith("backbone.")}, trained, file, remedy
    )
    weights.update(trained)
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    about = f"{network.backbone.backbone} of {content['trainer_name']}, {channels} input channels, {classes} classes"
    return weights, f"PaR on {about}, patch {list(network.refiner.spatial_shape)}, the refiner fresh"


def _check_backbone(expected: dict[str, Any], trained: dict[str, Any], file: Path, remedy: str) -> None:
    differing = [
        f"{key} {_shape(trained.get(key))} instead of {_shape(expected.get(key))}"
        for key in sorted({*expected, *trained})
        if _shape(trained.get(key)) != _shape(expected.get(key))
    ]
    if differing:
        raise InputError(
            f"{file}, whose network differs from the plans' backbone ({'; '.join(differing[:3])})",
            "the network of the plans",
            remedy,
        )


def _shape(tensor: Any) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))
