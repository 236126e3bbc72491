"""`nnunetv2_ext plan_and_preprocess`: nnU-Net's command of that name, for our planners."""

import argparse
import json
from typing import Any

from nnunetv2_ext.cli.schedule import add_schedule_arguments, schedule_from_arguments

EXAMPLE = """example:
  nnunetv2_ext plan_and_preprocess -d 4 -pl MNetPlanner --verify_dataset_integrity
  nnunetv2_ext plan_and_preprocess -d 4 -pl MNetPlanner -gpu_memory_target 24 -overwrite_plans_name MNetPlans24GB
  nnunetv2_ext plan_and_preprocess -d 4 -pl PaRPlanner --backbone SwinUNETR --backbone_kwargs '{"feature_size": 24}'
  nnunetv2_ext plan_and_preprocess -d 4 -pl ConvFreePlanner --size B -gpu_memory_target 24
  nnunetv2_ext plan_and_preprocess -d 42 -pl ThinThickPlanner --backbone MNet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("-d", nargs="+", required=True, help="data set ids")
    parser.add_argument("-pl", default="MNetPlanner", help="planner, ours or nnU-Net's (default: %(default)s)")
    parser.add_argument("-c", nargs="+", default=["3d_fullres", "3d_lowres"], help="configurations to preprocess")
    parser.add_argument("-np", nargs="+", type=int, help="processes for preprocessing, one number or one per -c")
    parser.add_argument("-npfp", type=int, help="processes for the fingerprint")
    parser.add_argument("-fpe", default="DatasetFingerprintExtractor", help="fingerprint extractor")
    parser.add_argument("-gpu_memory_target", type=float, help="GPU memory in GB (default: the planner's, 8)")
    parser.add_argument("-preprocessor_name", default="DefaultPreprocessor", help="nnU-Net's preprocessor class")
    parser.add_argument("-overwrite_target_spacing", nargs=3, type=float, metavar="MM", help="target spacing, z y x")
    parser.add_argument("-overwrite_plans_name", help="plans identifier instead of the planner's")
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="check the raw data first")
    parser.add_argument("--no_pp", action="store_true", help="plan only")
    parser.add_argument("--clean", action="store_true", help="make fingerprint and preprocessed data anew")
    parser.add_argument("--verbose", action="store_true", help="print what nnU-Net does")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bars")
    parser.add_argument("--patch_size", nargs=3, type=int, metavar="VOXELS", help="z y x, instead of the planned one")
    group = parser.add_argument_group("backbone and refiner (PaRPlanner, BackbonePlanner, ThinThickPlanner)")
    group.add_argument(
        "--backbone",
        help="a name that nnunetv2_ext list tells; ThinThickPlanner also takes ConvFreeTransformer, PaR, PaR:BACKBONE "
        "(default: PlainConvUNet)",
    )
    group.add_argument("--backbone_kwargs", type=_json_object, metavar="JSON", help="arguments of the backbone")
    group.add_argument("--axis", type=int, help="axis to refine, 0, 1 or 2 of z, y, x (default: 0, the coarsest)")
    group.add_argument("--heads", type=int, help="heads of the refiner's attention (default: 8)")
    group.add_argument("--groups", type=int, help="groups of slices in the refiner (default: 8)")
    group.add_argument("--kernel_size", type=int, help="kernel of the refiner's features, odd (default: 3)")
    group.add_argument("--variant", help="paper or published_code (default: paper)")
    group.add_argument("--fusion", help="add, multiply or concat (default: add)")
    group = parser.add_argument_group("convolution-free transformer (ConvFreePlanner)")
    group.add_argument("--size", help="S, B, L or paper, which implies --post_norm (default: S)")
    group.add_argument("--token_size", nargs=3, type=int, metavar="VOXELS", help="z y x, instead of the planned one")
    group.add_argument("--context", help="patch, or block of the papers (default: patch)")
    group.add_argument("--block_tokens", type=int, help="tokens per axis of a block, odd (default: 3)")
    group.add_argument("--post_norm", action="store_true", default=None, help="the papers' norm after each sublayer")
    group.add_argument(
        "--activation_checkpointing", action="store_true", default=None, help="recompute layers to save memory"
    )
    add_schedule_arguments(parser)


REFINED = ("backbone", "backbone_kwargs", "axis", "heads", "groups", "kernel_size", "variant", "fusion")
CONVOLUTION_FREE = ("size", "token_size", "context", "block_tokens", "post_norm", "activation_checkpointing")
OPTIONS = ("patch_size", *REFINED, *CONVOLUTION_FREE)


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a JSON object; correct it ({error})") from None
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a JSON object; put it into braces")
    return content


def run(args: argparse.Namespace) -> int:
    from nnunetv2.configuration import default_num_processes

    from nnunetv2_ext.planning.api import plan_and_preprocess

    for dataset in args.d:
        plan_and_preprocess(
            dataset,
            planner=args.pl,
            schedule=schedule_from_arguments(args),
            options={name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None},
            configurations=args.c,
            processes=args.np or [default_num_processes],
            fingerprint_processes=args.npfp or default_num_processes,
            fingerprint_extractor=args.fpe,
            gpu_memory_target=args.gpu_memory_target,
            preprocessor=args.preprocessor_name,
            target_spacing=args.overwrite_target_spacing,
            plans_name=args.overwrite_plans_name,
            verify=args.verify_dataset_integrity,
            preprocess=not args.no_pp,
            clean=args.clean,
            verbose=args.verbose,
            progress=not args.no_pbar,
        )
    return 0
