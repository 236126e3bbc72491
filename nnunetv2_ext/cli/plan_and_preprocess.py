"""`nnunetv2_ext plan_and_preprocess`: nnU-Net's command of that name, for our planners."""

import argparse
from collections.abc import Mapping
from typing import Any

from nnunetv2_ext.architectures.backbones import BACKBONES
from nnunetv2_ext.cli.options import value_of
from nnunetv2_ext.cli.schedule import add_block_arguments, block_from_arguments
from nnunetv2_ext.files import dataset_name, nnunet_folder, read_json
from nnunetv2_ext.planning.options import Option, flag_of, options_of
from nnunetv2_ext.registry import PLANNERS
from nnunetv2_ext.text import listed

EXAMPLE = """examples:
  nnunetv2_ext plan_and_preprocess -d 42 -pl MNetPlanner
  nnunetv2_ext plan_and_preprocess -d 42 -pl MNetPlanner -gpu_memory_target 24 -overwrite_plans_name MNetPlans24GB
  nnunetv2_ext plan_and_preprocess -d 42 -pl PaRPlanner --backbone SwinUNETR --backbone-kwargs '{"feature_size": 24}'
  nnunetv2_ext plan_and_preprocess -d 42 -pl ConvFreePlanner --size B -gpu_memory_target 24
  nnunetv2_ext plan_and_preprocess -d 42 -pl ThinThickPlanner --backbone MNet
  nnunetv2_ext plan_and_preprocess -d 42 -pl ROIPlanner --grid 64
  nnunetv2_ext plan_and_preprocess -d 42 -pl ROIPlanner --network detector

Flags with one dash, and --verify_dataset_integrity, --no_pp, --clean, --verbose, --no_pbar are those of nnU-Net's
nnUNetv2_plan_and_preprocess; the others, --with-dashes, are ours.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s -d ID [ID ...] [-pl PLANNER] [nnU-Net's flags] [the planner's] [the training block's]"
    parser.epilog = EXAMPLE
    parser.add_argument("-d", metavar="ID", nargs="+", required=True, help="data set ids, one or more")
    parser.add_argument("-pl", metavar="PLANNER", default="MNetPlanner", help="planner, ours or nnU-Net's")
    parser.add_argument(
        "-c",
        metavar="CONFIG",
        nargs="+",
        help="configurations to preprocess; those that the plans lack are left out (default: 3d_fullres 3d_lowres; "
        "3d_roi with ROIPlanner)",
    )
    parser.add_argument(
        "-np",
        metavar="N",
        nargs="+",
        type=int,
        help="processes for preprocessing: one number, or one per configuration (default: nnUNet_def_n_proc, or 8)",
    )
    parser.add_argument(
        "-npfp", metavar="N", type=int, help="processes for the fingerprint (default: nnUNet_def_n_proc, or 8)"
    )
    parser.add_argument(
        "-fpe", metavar="CLASS", default="DatasetFingerprintExtractor", help="fingerprint extractor of nnU-Net"
    )
    parser.add_argument(
        "-gpu_memory_target",
        metavar="GB",
        type=float,
        help=f"GPU memory that patch and batch may fill, in GB (default: 8; {_presets()})",
    )
    parser.add_argument(
        "-preprocessor_name", metavar="CLASS", default="DefaultPreprocessor", help="preprocessor of nnU-Net"
    )
    parser.add_argument(
        "-overwrite_target_spacing",
        nargs=3,
        type=float,
        metavar="MM",
        help="target spacing along z, y, x: slices first (default: planned)",
    )
    parser.add_argument(
        "-overwrite_plans_name",
        metavar="NAME",
        help="plans identifier, so that plans can stand side by side (default: the planner's)",
    )
    parser.add_argument(
        "--verify_dataset_integrity", action="store_true", help="nnU-Net's own check of the raw data, besides ours"
    )
    parser.add_argument("--no_pp", action="store_true", help="plan only")
    parser.add_argument("--clean", action="store_true", help="make fingerprint and preprocessed data anew in any case")
    parser.add_argument("--verbose", action="store_true", help="print what nnU-Net does")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bars")
    _add_options(parser)
    add_block_arguments(parser)


def _presets() -> str:
    """The GPU memory of the backbones that are presets of another one."""
    presets = {record.name: record.preset_gb for record in BACKBONES if record.preset_gb not in (None, 8)}
    return ", ".join(f"{gigabytes:g} for {name}" for name, gigabytes in presets.items())


def _planner_options() -> dict[str, Option[Any]]:
    """The options of all our planners by name."""
    return {name: option for entry in PLANNERS for name, option in entry.load().options().items()}


def _add_options(parser: argparse.ArgumentParser) -> None:
    """A group of flags for the options of each planner, or of several that share them."""
    declared: dict[str, dict[str, Option[Any]]] = {}
    for entry in PLANNERS:
        for name, option in options_of(entry.load()).items():
            declared.setdefault(name, {})[entry.name] = option
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, by_planner in declared.items():
        title = "options of " + ("all our planners" if len(by_planner) == len(PLANNERS) else listed(by_planner))
        group = groups[title] = groups.get(title) or parser.add_argument_group(title)
        option = next(iter(by_planner.values()))
        apart = [f"; {planner}: {other.help}" for planner, other in by_planner.items() if other.help != option.help]
        told = f"{option.help}{''.join(apart)} (default: {option.shown})"
        if option.kind is bool:
            group.add_argument(flag_of(name), action="store_const", const=True, help=told)
        else:
            group.add_argument(flag_of(name), nargs=option.numbers, metavar=option.metavar, help=told)


def _given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options whose flags were given.

    Raises:
        InputError: a text that makes no value.
    """
    given: dict[str, Any] = {}
    for name, option in _planner_options().items():
        text = getattr(args, name)
        if text is not None:
            given[name] = text if option.kind is bool else value_of(text, option.kind, flag_of(name))
    return given


def run(args: argparse.Namespace) -> int:
    from nnunetv2.configuration import default_num_processes

    from nnunetv2_ext.planning.api import plan_and_preprocess, planner_class
    from nnunetv2_ext.planning.guards import usual_configurations

    if args.c is None:
        args.c = usual_configurations(planner_class(args.pl))
    options = _given_options(args)
    for dataset in args.d:  # a wrong one is told before the others are worked on
        dataset_name(dataset)
    for dataset in args.d:
        before = _blocks_before(dataset)
        identifier = plan_and_preprocess(
            dataset,
            planner=args.pl,
            training=block_from_arguments(args),
            options=options,
            configurations=args.c,
            processes=[default_num_processes] if args.np is None else args.np,
            fingerprint_processes=default_num_processes if args.npfp is None else args.npfp,
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
        _tell(dataset, identifier, args, before.get(identifier, {}))
    return 0


def _blocks_before(dataset: str) -> dict[str, Any]:
    """The training blocks of the plans that are there, by plans identifier."""
    from nnunetv2_ext.planning.summary import blocks_in

    return blocks_in(nnunet_folder("nnUNet_preprocessed") / dataset_name(dataset))


def _tell(dataset: str, identifier: str, args: argparse.Namespace, before: Mapping[str, Any]) -> None:
    """What was planned, in lines of ours below nnU-Net's, and the command that comes next."""
    from nnunetv2_ext.planning.summary import replaced, summary

    name = dataset_name(dataset)
    folder = nnunet_folder("nnUNet_preprocessed") / name
    plans = read_json(folder / f"{identifier}.json", "plan again")
    dataset_json = read_json(nnunet_folder("nnUNet_raw") / name / "dataset.json", "put the data set into nnUNet_raw")
    planned = [configuration for configuration in args.c if configuration in plans["configurations"]]
    for configuration in planned:
        print(f"\n{identifier} {configuration} of {name}")
        for line in summary(plans, configuration, dataset_json, before.get(configuration)):
            print(f"  {line}")
    for line in replaced(plans, before, but=planned):
        print(line)
    planners = {entry.name: entry.load() for entry in PLANNERS}
    if not planned:
        print(f"{identifier} has none of {listed(args.c)}, but {listed(plans['configurations'])}: choose -c from these")
    else:
        trainer = planners[args.pl].trained_by(_given_options(args)) if args.pl in planners else "nnUNetTrainer"
        print(f"next: nnunetv2_ext doctor -d {dataset} -c {planned[0]} -tr {trainer} -p {identifier}")
