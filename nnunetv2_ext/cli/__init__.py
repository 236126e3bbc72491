"""The command line: `nnunetv2_ext COMMAND ...`, one module per command.

A command module holds `add_arguments(parser)` and `run(args) -> int`, the exit status. It is imported only when it is
asked for, so that light commands stay light.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from nnunetv2_ext import __version__
from nnunetv2_ext.cli.options import Help
from nnunetv2_ext.errors import InputError

COMMANDS = {
    "env": "print the line that makes our trainers known to nnU-Net",
    "doctor": "check the installation and, if asked, one training before it starts",
    "list": "list trainers, planners and architectures",
    "plan_and_preprocess": "fingerprint, plan and preprocess with one of our planners",
    "schedule": "write the training block into existing plans",
    "make_thick": "make a thick-slice data set by averaging neighbouring slices",
    "convert_thin_thick": "make a data set of thin images with thick annotations",
    "import_weights": "turn published weights into a file for -pretrained_weights",
    "find_best": "find the best model or pair of models among trained ones",
    "profile": "parameters, multiply-adds, memory and time of a network, module by module",
    "demo": "the whole way on synthetic phantoms: plan, train, ensemble, predict, look",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; bad input ends in one sentence on stderr and exit status 2."""
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    parser = argparse.ArgumentParser(
        prog="nnunetv2_ext",
        description="Networks, planners and trainers for anisotropic volumes, beside nnU-Net's own commands.",
    )
    parser.add_argument("--version", action="version", version=f"nnunetv2_ext {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((argument for argument in arguments if argument in COMMANDS), None)
    for name, summary in COMMANDS.items():
        command_parser = commands.add_parser(name, help=summary, description=summary, formatter_class=Help)
        if name == asked:
            command = importlib.import_module(f"nnunetv2_ext.cli.{name}")
            command.add_arguments(command_parser)
            command_parser.set_defaults(run=command.run)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except InputError as error:
        print(f"nnunetv2_ext {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
