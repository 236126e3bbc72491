"""`nnunetv2_ext profile`: what a network costs, module by module, or every backbone on one patch."""

import argparse
import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunetv2_ext.cli.options import value_of
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import check_output_file, unwritable, write_beside, write_json
from nnunetv2_ext.planning.options import flag_of, json_object
from nnunetv2_ext.registry import find
from nnunetv2_ext.text import markdown_table

EXAMPLES = """examples:
  nnunetv2_ext profile -d 104 -c 3d_fullres -tr MNetTrainer -p MNetPlans
  nnunetv2_ext profile --architecture MNet --patch-size 16 128 128 --classes 3 --no-time

  nnunetv2_ext profile --all --patch-size 96 96 96 --classes 3 --no-time
  nnunetv2_ext profile --all UNETR MNet --patch-size 32 128 128 --spacing 3 0.8 0.8 --csv costs.csv

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

--all prints one row for each backbone of the list, and one with the refiner on it, as soon as it is known: counts,
step and peak as above, each measured in a process of its own, and the size rule: a patch is a multiple of the divisor,
axis by axis, and from the minimum on every such multiple works. Where a backbone cannot take the patch, the row is that
of the nearest one that it takes.
"""
COMPARED: dict[str, Any] = {"spacing": None, "csv": None}
TRAINING = {"configuration": "3d_fullres", "trainer": "nnUNetTrainer", "plans": "nnUNetPlans"}
ARCHITECTURE: dict[str, Any] = {"patch_size": None, "channels": 1, "classes": 2, "kwargs": "{}"}
FLAGS = {"configuration": "-c", "trainer": "-tr", "plans": "-p"}
FLAGS |= {key: flag_of(key) for key in (*ARCHITECTURE, *COMPARED)}
MEBIBYTE = 2**20
COMPARED_COLUMNS = {
    "parameters": ("parameters, M", ".2f", 1e6),
    "multiply_adds": ("multiply-adds, G", ".1f", 1e9),
    "multiply_adds_with_attention": ("+ attention, G", ".1f", 1e9),
    "step_seconds": ("step, s", ".3f", 1),
    "peak_bytes": ("peak, MiB", ",.0f", MEBIBYTE),
}


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
    compared = parser.add_argument_group("or every backbone, with --patch-size, --channels and --classes")
    compared.add_argument("--all", nargs="*", metavar="NAME", help="compare all backbones, or those named")
    compared.add_argument(
        "--spacing",
        nargs=3,
        type=float,
        metavar="MM",
        help="along z, y, x, from which arguments are planned (default: 1 1 1)",
    )
    compared.add_argument("--csv", type=Path, metavar="FILE", help="also write the table there, unrounded")
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
    if args.all is not None:
        return compare(args, description)

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
    _write_json(args.json, content)
    return 0


def _write_json(file: Path | None, content: Any) -> None:
    if file is not None:
        try:
            write_json(file, content, indent=2)
        except OSError as error:
            raise unwritable(file, error) from None


def compare(args: argparse.Namespace, description: Mapping[str, Any]) -> int:
    """Print the table of backbones, a row as soon as it is known; files hold the rows so far."""
    check_output_file(args.csv, "--csv")
    import torch

    from nnunetv2_ext.profiling.backbones import NAMES, Step, costs

    for name in args.all:
        find("backbone", name)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("-device cuda", "cpu, or cuda where PyTorch sees a GPU", "use -device cpu")
    patch, spacing = description["patch_size"], description["spacing"]
    counts = {key: description[key] for key in ("channels", "classes")}
    step = None if args.no_time else Step(args.batch_size, args.rounds, args.device)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    measured = f"; step and peak of a batch of {args.batch_size} ({where}, torch {torch.__version__})"
    print(
        f"patch {' x '.join(map(str, patch))}, spacing {' x '.join(f'{mm:g}' for mm in spacing)} mm, "
        f"{counts['channels']} input channels, {counts['classes']} classes{measured * (step is not None)}\n"
    )
    columns = {
        key: column for key, column in COMPARED_COLUMNS.items() if step or key not in ("step_seconds", "peak_bytes")
    }
    titles = ["network", "patch", *(title for title, _, _ in columns.values()), "divisor", "minimum", "note"]
    rows: list[dict[str, Any]] = []
    for cost in costs(args.all or NAMES, patch, spacing, **counts, step=step):
        row = asdict(cost)
        numbers = [_number(row[key], form, unit) for key, (_, form, unit) in columns.items()]
        sizes = [" x ".join(map(str, row[key])) if row[key] else "-" for key in ("patch", "divisor", "minimum")]
        lines = markdown_table(titles, [[cost.name, sizes[0], *numbers, *sizes[1:], cost.note]], aligned=False)
        print("\n".join(lines.splitlines()[2 * bool(rows) :]), flush=True)
        rows.append(row)
        _write_json(args.json, {"spacing": spacing, **counts, "step": step and asdict(step), "backbones": rows})
        _write_csv(args.csv, rows)
    return 0


def _number(value: float | None, form: str, unit: float) -> str:
    return "-" if value is None else format(value / unit, form)


def _write_csv(file: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    if file is None:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: " ".join(map(str, value)) if isinstance(value, tuple) else value for key, value in row.items()}
        )
    try:
        write_beside(lambda part: part.write_text(text.getvalue(), encoding="utf-8"), file)
    except OSError as error:
        raise unwritable(file, error) from None


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """What is to be profiled: the arguments of `find_subject`, or, with --all, those of `compare`.

    Raises:
        InputError: not one of a training, an architecture and all backbones, flags of another, no patch, or bad values.
    """
    modes = {
        "-d": (args.dataset, TRAINING),
        "--architecture": (args.architecture, ARCHITECTURE),
        "--all": (args.all, {**ARCHITECTURE, **COMPARED}),
    }
    given = [flag for flag, (value, _) in modes.items() if value is not None]
    if len(given) != 1:
        got = f"both {' and '.join(given)}" if given else "neither -d nor --architecture"
        remedy = "pass -d for a trainer's network, --architecture for any other, --all for every backbone"
        raise InputError(got, "one of them, or --all", remedy)
    (chosen,) = given
    defaults = {key: value for key, value in modes[chosen][1].items() if (chosen, key) != ("--all", "kwargs")}
    misplaced = [FLAGS[key] for key in FLAGS if key not in defaults and getattr(args, key) is not None]
    if misplaced:
        expected = ", ".join(FLAGS[key] for key in defaults)
        raise InputError(f"{misplaced[0]} beside {chosen}", f"only {expected}", f"leave out {' '.join(misplaced)}")
    values = {key: default if getattr(args, key) is None else getattr(args, key) for key, default in defaults.items()}
    if args.dataset is not None:
        return {"dataset": args.dataset, **values}
    if values["patch_size"] is None:
        raise InputError("no --patch-size", "voxels along z, y, x", "pass --patch-size 16 128 128, for instance")
    if args.all is None:
        values["kwargs"] = value_of(values["kwargs"], json_object, "--kwargs")
        return {"architecture": args.architecture, **values}
    values["patch_size"], values["spacing"] = tuple(values["patch_size"]), values["spacing"] or [1.0, 1.0, 1.0]
    sizes = [*values["patch_size"], values["channels"], values["classes"]]
    if len(values["patch_size"]) != 3 or min(sizes) < 1 or not all(0 < mm < math.inf for mm in values["spacing"]):
        raise InputError(
            f"a patch of {values['patch_size']}, {values['channels']} channels, {values['classes']} classes, "
            f"a spacing of {tuple(values['spacing'])}",
            "three axes, numbers of at least 1, mm above 0",
            "correct it",
        )
    return values


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
