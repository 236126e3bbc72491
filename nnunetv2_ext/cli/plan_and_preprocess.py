"""`nnunetv2_ext plan_and_preprocess`: nnU-Net's command of that name, for our planners."""

import argparse
from typing import Any

from nnunetv2_ext.cli.schedule import add_block_arguments, block_from_arguments
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.planning.options import Option, flag_of, options_of
from nnunetv2_ext.registry import PLANNERS

EXAMPLE = """example:
  nnunetv2_ext plan_and_preprocess -d 4 -pl MNetPlanner --verify_dataset_integrity
  nnunetv2_ext plan_and_preprocess -d 4 -pl MNetPlanner -gpu_memory_target 24 -overwrite_plans_name MNetPlans24GB
  nnunetv2_ext plan_and_preprocess -d 4 -pl PaRPlanner --backbone SwinUNETR --backbone-kwargs '{"feature_size": 24}'
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
    _add_options(parser)
    add_block_arguments(parser)


def _planner_options() -> dict[str, Option[Any]]:
    """The options of all our planners by name."""
    return {name: option for entry in PLANNERS for name, option in entry.load().options().items()}


def _add_options(parser: argparse.ArgumentParser) -> None:
    """A group of flags for each planner, with the options that no planner before it has."""
    seen: set[str] = set()
    for entry in PLANNERS:
        options = {name: option for name, option in options_of(entry.load()).items() if name not in seen}
        if not options:
            continue
        group = parser.add_argument_group(f"options of {entry.name}" if seen else "options of our planners")
        for name, option in options.items():
            told = f"{option.help} (default: {option.shown})"
            if option.kind is bool:
                group.add_argument(flag_of(name), action="store_true", default=None, help=told)
            else:
                group.add_argument(flag_of(name), nargs=option.numbers, metavar=option.metavar, help=told)
        seen |= options.keys()


def _given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options whose flags were given.

    Raises:
        InputError: a text that makes no value.
    """
    given = {}
    for name, option in _planner_options().items():
        text = getattr(args, name)
        if text is None or option.kind is bool:
            if text:
                given[name] = True
            continue
        try:
            given[name] = option.kind(text) if option.numbers is None else [option.kind(one) for one in text]
        except ValueError as error:
            raise InputError(
                f"{flag_of(name)} {text if option.numbers is None else ' '.join(text)}",
                f"{option.help}",
                f"correct it ({error})",
            ) from None
    return given


def run(args: argparse.Namespace) -> int:
    from nnunetv2.configuration import default_num_processes

    from nnunetv2_ext.planning.api import plan_and_preprocess

    options = _given_options(args)
    for dataset in args.d:
        plan_and_preprocess(
            dataset,
            planner=args.pl,
            training=block_from_arguments(args),
            options=options,
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
