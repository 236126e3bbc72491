"""`nnunetv2_ext import_weights`: published or trained weights into a file for `nnUNetv2_train -pretrained_weights`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.cli.options import value_of
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import check_output_file, write_beside
from nnunetv2_ext.planning.options import flag_of, json_object

if TYPE_CHECKING:
    from nnunetv2_ext.weights.backbone import Target

EXAMPLE = """example:
  nnunetv2_ext import_weights mnet model_best.model --trust -o mnet_lits.pth
  nnUNetv2_train 104 3d_fullres 0 -tr MNetTrainer -p MNetPlans -pretrained_weights mnet_lits.pth

  nnunetv2_ext import_weights par $nnUNet_results/.../fold_0/checkpoint_final.pth -o par_start.pth
  nnUNetv2_train 104 3d_fullres 0 -tr PaRTrainer -p nnUNetPlans -pretrained_weights par_start.pth

  nnunetv2_ext import_weights backbone unetr_btcv.pth -d 104 -p BackboneUNETRPlans --fresh-heads -o unetr.pth
  nnUNetv2_train 104 3d_fullres 0 -tr BackboneTrainer -p BackboneUNETRPlans -pretrained_weights unetr.pth
  nnunetv2_ext import_weights backbone --backbone UNETR unetr_btcv.pth --patch-size 32 128 128 -o unetr.pth"""
OF_BACKBONE = ("backbone", "backbone_kwargs", "patch_size", "file_patch", "fresh_heads")
"""What only weights of a backbone take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The method, the file, and what the user expects of it."""
    parser.epilog = EXAMPLE
    parser.add_argument("method", choices=["mnet", "par", "backbone"], help="what the weights are for")
    parser.add_argument(
        "file",
        type=Path,
        help="mnet: the published state dict, bare or inside an nnU-Net v1 .model file; par: the checkpoint of a "
        "finished training of nnU-Net or of ours, whose network becomes the backbone; backbone: the published state "
        "dict, bare or under 'state_dict'",
    )
    parser.add_argument("-o", dest="output", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--input-channels", type=int, help="refuse weights with another number of input channels (default: any)"
    )
    parser.add_argument("--num-classes", type=int, help="refuse weights with another number of classes (default: any)")
    parser.add_argument(
        "-d", help="par, backbone: data set, id or name, that will be trained on (default: the checkpoint's, or none)"
    )
    parser.add_argument(
        "-p", help="par, backbone: plans identifier of the training (default: the checkpoint's, or none)"
    )
    parser.add_argument(
        "-c", help="par, backbone: configuration of the training (default: the checkpoint's, or 3d_fullres)"
    )
    parser.add_argument(
        "--backbone", metavar="NAME", help="backbone: whose weights they are (default: that of the plans)"
    )
    parser.add_argument(
        "--backbone-kwargs", metavar="JSON", help="backbone, without plans: its own arguments (default: {})"
    )
    parser.add_argument(
        "--patch-size",
        nargs=3,
        metavar="VOXELS",
        help="backbone, without plans: the patch (z, y, x) of the training (default: that of the plans)",
    )
    parser.add_argument(
        "--file-patch",
        nargs=3,
        metavar="VOXELS",
        help="backbone: the patch (z, y, x) that positions in the file are of (default: that of the training, or a "
        "cube)",
    )
    parser.add_argument(
        "--fresh-heads", action="store_true", help="backbone: start the segmentation heads anew, for other classes"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="unpickle a file that holds more than tensors; this can run code, so only for files from a trusted source",
    )


def run(args: argparse.Namespace) -> int:
    """Convert one file and say what it holds."""
    check_output_file(args.output, "-o")
    if args.output.resolve() == args.file.resolve():
        raise InputError(f"the input {args.file} as the output", "another file", "choose another path for -o")
    import torch

    from nnunetv2_ext.weights.backbone import start_of_backbone
    from nnunetv2_ext.weights.files import published_state_dict, read_torch_file
    from nnunetv2_ext.weights.mnet import convert_mnet
    from nnunetv2_ext.weights.par import start_of_par

    given = [flag_of(name) for name in OF_BACKBONE if getattr(args, name)]
    if given and args.method != "backbone":
        raise InputError(f"{given[0]} beside {args.method}", "the method backbone", f"leave out {given[0]}")
    counts = {"input_channels": args.input_channels, "num_classes": args.num_classes}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{flag_of(name)} {count}", "a whole number from 1", "correct it, or leave it out")
    target = target_of(args) if args.method == "backbone" else None
    content = read_torch_file(args.file, trust=args.trust)
    lines: list[str] = []
    if target is not None:
        patch = None if args.file_patch is None else value_of(args.file_patch, int, "--file-patch")
        weights, (description, *lines) = start_of_backbone(
            content, args.file, target, file_patch=patch, fresh_heads=args.fresh_heads
        )
    elif args.method == "mnet":
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
    for line in lines:
        print(f"  {line}")
    if args.method == "mnet":
        print("nnU-Net's -pretrained_weights takes all but the segmentation heads from it")
    return 0


def target_of(args: argparse.Namespace) -> "Target":
    """The network that the weights of a backbone are for, of plans or of arguments.

    Raises:
        InputError: neither, both, or what is wrong with them.
    """
    from nnunetv2_ext.weights.backbone import target_of_arguments, target_of_plans

    of_plans = {"-d": args.d, "-p": args.p, "-c": args.c}
    of_arguments = {"--patch-size": args.patch_size, "--backbone-kwargs": args.backbone_kwargs}
    if any(of_plans.values()):
        if beside := [flag for flag, value in of_arguments.items() if value is not None]:
            raise InputError(f"{beside[0]} beside plans", "that of the plans", f"leave out {beside[0]}, or -d -p -c")
        if lacking := [flag for flag in ("-d", "-p") if of_plans[flag] is None]:
            raise InputError(f"no {lacking[0]}", "data set and plans", f"pass {lacking[0]} too")
        counts = {"input_channels": args.input_channels, "num_classes": args.num_classes}
        return target_of_plans(args.backbone, args.d, args.p, args.c or "3d_fullres", **counts)
    if args.backbone is None or args.patch_size is None:
        raise InputError("neither plans nor a network", "-d and -p, or --backbone and --patch-size", "pass them")
    return target_of_arguments(
        args.backbone,
        value_of(args.patch_size, int, "--patch-size"),
        value_of(args.backbone_kwargs or "{}", json_object, "--backbone-kwargs"),
        args.input_channels,
        args.num_classes,
    )
