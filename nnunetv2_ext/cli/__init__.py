"""The command line: `nnunetv2_ext COMMAND ...`, one module per command.

A command module holds `add_arguments(parser)` and `run(args) -> int`, the exit status. It is imported only when it is
asked for, so that light commands stay light.
"""

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Collection, Sequence
from importlib.metadata import entry_points

from nnunetv2_ext import __version__
from nnunetv2_ext.cli.options import Help, check_paths, tell_empty_paths
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.processes import LEAST, check_processes

COMMANDS = {
    "env": "print the line that makes our trainers known to nnU-Net",
    "doctor": "check the installation and, if asked, one training before it starts, or a trained model",
    "list": "list trainers, planners and architectures",
    "plan_and_preprocess": "fingerprint, plan and preprocess with one of our planners",
    "schedule": "write the training block into existing plans",
    "make_thick": "make a thick-slice data set by averaging neighbouring slices",
    "convert_thin_thick": "make a data set of thin images with thick annotations",
    "import_weights": "turn published weights into a file for -pretrained_weights",
    "safe_export": "turn a trained model into safetensors and JSON, which can run no code",
    "train": "each fold of each model as a job: on the GPUs of this machine, or under SLURM",
    "jobs": "how jobs go: a live table, cancel, retry",
    "find_best": "find the best model or pair of models among trained ones",
    "predict": "the labels of new images, by one model or an ensemble, inside a region of interest",
    "calibrate_roi": "the margin that the boxes of a region-of-interest model need, from its validation",
    "ensemble": "labels from the saved probabilities of several models, once these were seen to agree",
    "evaluate": "every metric of predictions, by case and label, in mm and ml",
    "compare": "models that were evaluated, paired by case: differences, intervals, tests",
    "look": "a picture of cases: images with their predictions, and labels where there are any",
    "report": "all of an evaluation in one HTML file, which needs no network",
    "audit": "which labels of a data set are probably wrong, and which follow another style",
    "container": "a container of trained models, for a challenge or for a folder that is watched",
    "profile": "parameters, multiply-adds, memory and time of a network, module by module",
    "run": "the whole way of a data set: plan, train, find the best, predict, evaluate, report",
    "demo": "the whole way on synthetic phantoms: plan, train, ensemble, predict, look",
}

EPILOG = """the way, with data set 42 and MNet:
  eval "$(nnunetv2_ext env)"                                              # our trainers become known to nnU-Net
  nnunetv2_ext doctor                                                     # is the installation in order?
  nnunetv2_ext plan_and_preprocess -d 42 -pl MNetPlanner
  nnunetv2_ext doctor -d 42 -c 3d_fullres -tr MNetTrainer -p MNetPlans    # is the training in order?
  nnunetv2_ext train -d 42 -m MNetTrainer:MNetPlans:3d_fullres            # runs nnUNetv2_train, for all five folds
  nnunetv2_ext jobs -d 42                                                 # how they go
  nnunetv2_ext find_best -d 42 -m MNetTrainer:MNetPlans:3d_fullres        # and other models that were trained
  nnunetv2_ext predict -d 42 -m MNetTrainer:MNetPlans:3d_fullres -i images -o labels    # several are an ensemble
  nnunetv2_ext run -d 42                                                  # or all of this, short, for a first look

Training is nnU-Net's: `train` runs nnUNetv2_train. nnUNetv2_predict and nnUNetv2_ensemble take our models too, and
check less.
"""


CLOSED = 141
"""The exit status of a command whose reader went away, as shells tell of SIGPIPE: `nnunetv2_ext list | head -1`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; bad input ends in one sentence on stderr and exit status 2, as do words that find no room."""
    for stream in (sys.stdout, sys.stderr):
        # a name that the terminal cannot show is shown by its code
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run([*(sys.argv[1:] if argv is None else argv)])
        finally:
            print(end="", flush=True)
    except OSError:
        try:
            print(flush=True)  # fails again if it was these words that could not be written, and not a file
        except OSError as error:
            # what is left of the words would fail once more when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                return CLOSED
            told = InputError(
                f"an error on writing what this command tells ({error.strerror})", "room for it", "free some"
            )
            print(f"nnunetv2_ext: {told}", file=sys.stderr)
            return 2
        raise


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="nnunetv2_ext",
        description="Networks, planners and trainers for anisotropic volumes, beside nnU-Net's own commands.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nnunetv2_ext {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    if asked is not None and asked not in COMMANDS:
        print(f"nnunetv2_ext: {_unknown(asked)}", file=sys.stderr)
        return 2
    try:
        if asked not in (None, "doctor", "env", "list"):  # nnU-Net reads them when it is imported
            for variable in LEAST:
                check_processes(variable)
    except InputError as error:
        print(f"nnunetv2_ext: {error}", file=sys.stderr)
        return 2
    flags: set[str] = set()
    for name, summary in COMMANDS.items():
        command_parser = commands.add_parser(name, help=summary, description=summary, formatter_class=Help)
        if name == asked:
            command = importlib.import_module(f"nnunetv2_ext.cli.{name}")
            command.add_arguments(command_parser)
            tell_empty_paths(command_parser)
            command_parser.set_defaults(run=command.run, parser=command_parser)
            flags = {flag for action in command_parser._actions for flag in action.option_strings}
    args, unknown = parser.parse_known_args([_spelled(argument, flags) for argument in arguments])
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        check_paths(args.parser, args)
        return args.run(args)
    except InputError as error:
        print(f"nnunetv2_ext {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        told = InputError(
            f"the name {str(error.filename)[:50]}...", "one that file systems take", "choose a shorter one"
        )
        print(f"nnunetv2_ext {args.command}: {told}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _spelled(argument: str, flags: Collection[str]) -> str:
    """An argument, its flag as the command spells it: nnU-Net's have underscores, ours dashes, and either will do."""
    flag, equals, value = argument.partition("=")
    other = next((known for known in flags if known.replace("_", "-") == flag.replace("_", "-")), flag)
    return argument if flag in flags or not flag.startswith("--") else other + equals + value


def _unknown(command: str) -> InputError:
    """The refusal of a command that is not ours, but may be nnU-Net's."""
    scripts = {script.name for script in entry_points(group="console_scripts")}
    theirs = f"nnUNetv2_{command}" if f"nnUNetv2_{command}" in scripts else "nnUNetv2_train, for instance"
    return InputError(
        f"the command '{command}'",
        f"one of {', '.join(COMMANDS)}",
        f"other commands are nnU-Net's: run {theirs}",
    )
