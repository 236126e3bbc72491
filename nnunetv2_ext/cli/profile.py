"""`nnunetv2_ext profile`: what a network costs, module by module."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_ext.cli.options import value_of
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import check_output_file, write_json
from nnunetv2_ext.planning.options import flag_of, json_object
from nnunetv2_ext.text import markdown_table

EXAMPLES = """examples:
  nnunetv2_ext profile -d 104 -c 3d_fullres -tr MNetTrainer -p MNetPlans
  nnunetv2_ext profile --architecture MNet --patch-size 16 128 128 --classes 3 --no-time

The refiner's columns in table 1 of the PaR paper (5 classes, 96 x 96 x 96), counted at once:
  nnunetv2_ext profile --architecture PaR:none --patch-size 96 96 96 --classes 5 --no-time
168,053 parameters (the paper's 0.11 M leaves out the 55,296 of the spatial bias), 5.97 G multiply-adds (the paper's
figure) and 7.71 G with attention products.

columns, each row with all that lies below it:
  parameters          number of values, frozen ones included
  multiply-adds, G    of the forward pass of one sample, in convolutions and products with weights (mm, addmm);
                      element-wise operations, norms and pooling are not counted
  + attention, G      the same with products of features with features (bmm, fused attention)
  kept, MiB           what autograd saves in the forward pass of one sample for the backward pass, in float32;
                      neither parameters nor what a network holds or recomputes by means of its own; with activation
                      checkpointing (--kwargs '{"activation_checkpointing": true}'), of a stage its input alone
  forward, ms         median time in the forward pass of a batch, in training mode
Below the table, for the whole network and a batch: the median time of a training step (forward and backward, no
optimizer) and its peak memory. On the CPU in float32; the peak is the rise of the resident memory in a fresh process.
On CUDA in half precision by autocast, without torch.compile; the peak is the allocator's.
"""
TRAINING = {"configuration": "3d_fullres", "trainer": "nnUNetTrainer", "plans": "nnUNetPlans"}
ARCHITECTURE: dict[str, Any] = {"patch_size": None, "channels": 1, "classes": 2, "kwargs": "{}"}
FLAGS = {"configuration": "-c", "trainer": "-tr", "plans": "-p"} | {key: flag_of(key) for key in ARCHITECTURE}
MEBIBYTE = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # The defaults of both groups are filled in by `run`, which refuses flags of one group beside the other.
    parser.epilog = EXAMPLES
    training = parser.add_argument_group("the network of a trainer")
    training.add_argument("-d", dest="dataset", help="id or name of a data set in nnUNet_preprocessed")
    training.add_argument("-c", dest="configuration", help="configuration (default: 3d_fullres)")
    training.add_argument("-tr", dest="trainer", help="trainer, ours or nnU-Net's (default: nnUNetTrainer)")
    training.add_argument("-p", dest="plans", help="plans identifier (default: nnUNetPlans)")
    architecture = parser.add_argument_group("or an architecture")
    architecture.add_argument(
        "--architecture",
        metavar="NAME",
        help="NAME of nnunetv2_ext list, PaR:NAME or ConvFreeTransformer:block; PaR:none: the refiner alone, whose "
        "input are logits",
    )
    architecture.add_argument(
        "--patch-size", nargs="+", type=int, metavar="N", help="voxels along z, y, x (default: none, it is needed)"
    )
    architecture.add_argument(
        "--channels", type=int, help="input channels (default: 1; those of PaR:none are the classes)"
    )
    architecture.add_argument("--classes", type=int, help="channels of the logits (default: 2)")
    architecture.add_argument(
        "--kwargs",
        metavar="JSON",
        help="""further arguments, as in '{"merge": "sum"}', a backbone's own under backbone_kwargs (default: {})""",
    )
    parser.add_argument("--depth", type=int, default=2, help="how deep to list modules; 0: the whole network only")
    parser.add_argument("-device", choices=["cpu", "cuda"], default="cpu", help="where to measure")
    parser.add_argument("--batch-size", type=int, default=2, help="samples per step, for times and peak memory")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, of which the median is printed")
    parser.add_argument(
        "--no-time", action="store_true", help="only count: nothing is computed, so that any patch is done at once"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there, unrounded")


def run(args: argparse.Namespace) -> int:
    description = describe(args)
    if args.depth < 0 or args.batch_size < 1 or args.rounds < 1:
        raise InputError(
            f"--depth {args.depth} --batch-size {args.batch_size} --rounds {args.rounds}",
            "a depth of at least 0, a batch and rounds of at least 1",
            "correct it",
        )
    check_output_file(args.json, "--json")

    import torch

    from nnunetv2_ext.profiling.count import count, on_meta
    from nnunetv2_ext.profiling.subject import find_subject

    subject = find_subject(**description)
    network = on_meta(subject.build)
    rows = count(network, subject.shape, depth=args.depth)
    content: dict[str, Any] = {
        "subject": {**subject.description, "network": type(network).__name__, "shape": list(subject.shape)},
        "modules": [
            {
                "name": row.name,
                "parameters": row.parameters,
                "multiply_adds": row.multiply_adds,
                "multiply_adds_with_attention": row.multiply_adds + row.attention_multiply_adds,
                "kept_bytes": row.kept_bytes,
            }
            for row in rows
        ],
    }
    again = any(getattr(module, "activation_checkpointing", False) for module in network.modules())
    content["subject"]["activation_checkpointing"] = again
    print(
        f"{subject.title}, patch {' x '.join(map(str, subject.shape[1:]))}, {subject.shape[0]} input channels"
        + ", activation checkpointing" * again
    )
    if not args.no_time:
        from nnunetv2_ext.profiling.step import measure

        measured = measure(
            subject,
            depth=args.depth,
            batch_size=args.batch_size,
            rounds=args.rounds,
            device=args.device,
            progress=True,
        )
        for module in content["modules"]:
            module["forward_seconds"] = measured.forward_seconds[module["name"]]
        content["step"] = {
            "seconds": measured.median_step_seconds,
            "rounds": measured.step_seconds,
            "peak_bytes": measured.peak_bytes,
            "batch_size": args.batch_size,
            "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
    print(f"\n{table(content['modules'], type(network).__name__)}")
    if "step" in content:
        step = content["step"]
        threads = f"{step['threads']} thread{'s' * (step['threads'] != 1)}"
        where = threads if args.device == "cpu" else step["device"]
        print(
            f"\ntraining step, batch {step['batch_size']}: {step['seconds']:.3f} s, peak memory "
            f"{step['peak_bytes'] / MEBIBYTE:,.0f} MiB ({args.device}, {where}, torch {step['torch']})"
        )
    if args.json is not None:
        try:
            write_json(args.json, content, indent=2)
        except OSError as error:
            raise InputError(
                f"{args.json}, which cannot be written ({error})", "a writable file", "see to it"
            ) from None
    return 0


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """What is to be profiled, as the arguments of `find_subject`.

    Raises:
        InputError: neither a training nor an architecture, both, flags of the other, no patch, or bad JSON.
    """
    if (args.dataset is None) == (args.architecture is None):
        got = "neither -d nor --architecture" if args.dataset is None else "both -d and --architecture"
        raise InputError(got, "one of them", "pass -d for a trainer's network, --architecture for any other")
    chosen, defaults, others = (
        ("--architecture", ARCHITECTURE, TRAINING) if args.dataset is None else ("-d", TRAINING, ARCHITECTURE)
    )
    misplaced = [FLAGS[key] for key in others if getattr(args, key) is not None]
    if misplaced:
        expected = ", ".join(FLAGS[key] for key in defaults)
        raise InputError(f"{misplaced[0]} beside {chosen}", f"only {expected}", f"leave out {' '.join(misplaced)}")
    values = {key: default if getattr(args, key) is None else getattr(args, key) for key, default in defaults.items()}
    if args.dataset is not None:
        return {"dataset": args.dataset, **values}
    if values["patch_size"] is None:
        raise InputError("no --patch-size", "voxels along z, y, x", "pass --patch-size 16 128 128, for instance")
    values["kwargs"] = value_of(values["kwargs"], json_object, "--kwargs")
    return {"architecture": args.architecture, **values}


def table(modules: Sequence[Mapping[str, Any]], network: str) -> str:
    """The modules as a Markdown table."""
    columns = {
        "parameters": ("parameters", ",", 1),
        "multiply_adds": ("multiply-adds, G", ".2f", 1e9),
        "multiply_adds_with_attention": ("+ attention, G", ".2f", 1e9),
        "kept_bytes": ("kept, MiB", ",.1f", MEBIBYTE),
        "forward_seconds": ("forward, ms", ",.1f", 1e-3),
    }
    shown = {key: column for key, column in columns.items() if key in modules[0]}
    rows = []
    for module in modules:
        numbers = ((module[key], form, unit) for key, (_, form, unit) in shown.items())
        rows.append(
            [
                module["name"] or network,
                *(format(value if unit == 1 else value / unit, form) for value, form, unit in numbers),
            ]
        )
    return markdown_table(["module", *(title for title, _, _ in shown.values())], rows)
