"""`nnunetv2_ext import_weights`: published or trained weights into a file for `nnUNetv2_train -pretrained_weights`."""

import argparse
from pathlib import Path

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import check_output_file, write_beside

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
    parser.add_argument(
        "--input-channels", type=int, help="refuse weights with another number of input channels (default: any)"
    )
    parser.add_argument("--num-classes", type=int, help="refuse weights with another number of classes (default: any)")
    parser.add_argument(
        "-d", help="par: data set, id or name, that PaRTrainer will train on (default: the checkpoint's)"
    )
    parser.add_argument("-p", help="par: plans identifier that PaRTrainer will train with (default: the checkpoint's)")
    parser.add_argument("-c", help="par: configuration that PaRTrainer will train (default: the checkpoint's)")
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

    from nnunetv2_ext.weights.files import published_state_dict, read_torch_file
    from nnunetv2_ext.weights.mnet import convert_mnet
    from nnunetv2_ext.weights.par import start_of_par

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
