"""How well `nnunetv2_ext audit` finds labels that are known to be wrong, and what a training gains without them.

    python -m benchmarks.audit --source nnUNet_raw/Dataset104_Hippocampus --folder audit
    python -m benchmarks.audit --source nnUNet_raw/Dataset104_Hippocampus --folder audit --seeds 0 1 2 --gain

For each seed three data sets of the same cases of --source: `planted`, with errors of six kinds in the labels of some
(benchmarks/_planted.py), `clean`, as they are, and `dilated`, a share of them thicker by one voxel. Each goes through
the real commands: plan, train five folds for a minute each, audit from each source of evidence. What was planted stands
in --folder/truth, where no command looks.

AUROC is of the order in which the report lists cases, for the planted errors; hits are the wrong ones among the first
ten; `wrong` and `other style` are the shares of the cases that are listed so. Of the dilated cases AUROC is that of the
size from a validation, and of the map's axis of most variance from a map. With --gain a network is trained on the
planted data set as it is, and again with the folds of --exclude; both predict cases that no data set holds, with labels
as they came.
"""

import argparse
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from benchmarks import _commands
from benchmarks._planted import Truth, plant, read_truth
from benchmarks._report import exit_status, in_points, machine, markdown_facts, shown, table_of
from nnunetv2_ext.audit.result import LabelScore
from nnunetv2_ext.audit.tables import STYLE, WRONG
from nnunetv2_ext.audit.verdicts import evidence
from nnunetv2_ext.data.cases import find_cases
from nnunetv2_ext.data.splits import SPLITS
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.comparison import compare_pair
from nnunetv2_ext.evaluation.scores import dice_scores, read_dice
from nnunetv2_ext.files import check_output_file, read_json, write_json
from nnunetv2_ext.inference.models import parse_models
from nnunetv2_ext.testing.trainer import Shell
from nnunetv2_ext.text import markdown_table

MODEL = "BackboneTrainer:BackbonePlans:3d_fullres"
KINDS = ("planted", "clean", "dilated")
FIRST = 10
"""So many of the list a user is sure to look at."""
EXPECTED: dict[str, tuple[str, Callable[[float], bool]]] = {
    "AUROC": ("0.95 or more", lambda value: value >= 0.95),
    "hits": ("8 of the first 10", lambda value: value >= 8),
    "wrong, clean": ("at most 3 %", lambda value: value <= 0.03),
    "AUROC of size": ("0.95 or more", lambda value: value >= 0.95),
    "AUROC of the main axis": ("0.95 or more", lambda value: value >= 0.95),
    "wrong, dilated": ("at most 10 % of them", lambda value: value <= 0.1),
}
"""What is to come of it, see docs/measured/audit.md."""
BRIEF = {
    "val_iterations_per_epoch": 1,
    "batch_size": 2,
    "optimizer": {"name": "AdamW", "lr": 3e-3, "weight_decay": 1e-2},  # in so few steps nnU-Net's finds little
    "scheduler": {"name": "poly"},
    "seed": 0,
}
NARROW = [8, 12, 16, 20, 24]
"""Features of MNet, a quarter of its own."""
PLAN = """-pl BackbonePlanner --backbone-kwargs '{"features_per_stage": [8, 16, 32, 64], "n_stages": 4}'"""


class Data(NamedTuple):
    """One of the data sets."""

    number: int
    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"Dataset{self.number:03d}_{self.kind.capitalize()}{self.seed}"


class Figures(NamedTuple):
    """What an audit says of each case."""

    order: dict[str, float]
    """By which the report lists them: the larger, the likelier it is wrong."""
    size: dict[str, float]
    """Above 0 where the label is the larger one: the mean over its labels."""
    axis: dict[str, float]
    """Along the map's axis of most variance; none of a validation."""
    wrong: set[str]
    """Listed as such."""
    style: set[str]
    """Listed as of another style."""


def data_of(seed: int) -> list[Data]:
    """The data sets of a seed."""
    return [Data(700 + 10 * seed + place, kind, seed) for place, kind in enumerate(KINDS, start=1)]


def made(data: Data, folder: Path, args: argparse.Namespace) -> Truth:
    """The raw data set, and what was planted in it."""
    truth = folder / "truth" / f"{data.name}.json"
    raw = folder / "nnUNet_raw" / data.name
    if raw.is_dir() and truth.is_file():
        return read_truth(truth)
    truth.parent.mkdir(exist_ok=True)
    planted: dict[str, Any] = {"planted": {"wrong": args.wrong}, "dilated": {"share_dilated": args.dilated}}
    return plant(args.source, raw, truth, cases=args.cases, seed=data.seed, **planted.get(data.kind, {}))


def train(data: Data, shell: Shell, args: argparse.Namespace) -> None:
    """Plan, and train the folds that are not finished."""
    preprocessed, model = shell.folder / "nnUNet_preprocessed" / data.name, model_folder(data, shell)
    if not (preprocessed / "BackbonePlans.json").is_file():
        spacing, patch = (" ".join(map(str, numbers)) for numbers in (args.spacing, args.patch))
        shape = f"-overwrite_target_spacing {spacing} --patch-size {patch}"
        shell.run(f"nnunetv2_ext plan_and_preprocess -d {data.number} {PLAN} {shape} -c 3d_fullres --no_pbar")
        budget = {"epochs": args.epochs, "iterations_per_epoch": args.iterations}
        write_block(preprocessed / "BackbonePlans.json", {**BRIEF, **budget})
    for fold in range(5):
        if not (model / f"fold_{fold}" / "validation" / "summary.json").is_file():
            print(f"training {data.name}, fold {fold}", file=sys.stderr, flush=True)
            trained = f"-tr BackboneTrainer -p BackbonePlans -device {args.device}"
            command = f"nnUNetv2_train {data.number} 3d_fullres {fold} {trained}"
            _commands.run(shell, command, output=model / f"fold_{fold}", ending=".pth")


def write_block(plans: Path, block: Mapping[str, Any], network: Mapping[str, Any] | None = None) -> None:
    """Put keys into the training block of the plans, and among the arguments of the network."""
    content = read_json(plans, "plan again")
    configuration = content["configurations"]["3d_fullres"]
    configuration["training"].update(block)
    if network is not None:
        configuration["architecture"]["arch_kwargs"].update(network)
    write_json(plans, content)


def model_folder(data: Data, shell: Shell) -> Path:
    (model,) = parse_models([MODEL])
    return shell.folder / "nnUNet_results" / data.name / model.folder_name


def audit(data: Data, source: str, shell: Shell) -> tuple[Figures, dict[str, float]]:
    """Audit a data set from one source; what it says, and what it costs."""
    output = shell.folder / "audits" / f"{data.name}_{source}"
    cost: dict[str, float] = {}
    if not (output / "audit.csv").is_file():
        output.parent.mkdir(exist_ok=True)
        exclude = output.with_name(f"{output.name}_splits.json")
        command = f"nnunetv2_ext audit -d {data.number} --from {source} -m {MODEL} -o {output} --exclude {exclude}"
        of_run = _commands.run(shell, command, output=output, ending=".csv", memory=True)
        cost = {"s": of_run.seconds, "MiB": of_run.memory / 2**20}
    return read_figures(output), cost


def read_figures(output: Path) -> Figures:
    """What audit.csv says, with the order that the report lists cases by."""
    table = pd.read_csv(output / "audit.csv", dtype={"case": str, "label": str}, keep_default_na=False, na_values=[""])
    scores = [
        LabelScore(
            row["case"],
            row["label"],
            voxels=row["voxels"],
            predicted=row["predicted_voxels"],
            voxel_volume=row["volume_ml"] / max(row["voxels"], 1),
            disagreement=row["disagreement"],
            size=row["size"],
            rank=row["rank"],
        )
        for row in table.to_dict("records")
    ]
    cases = table.groupby("case")
    axis = {}
    if "latent_1" in table:
        latents = cases[["latent_1", "latent_2"]].first()
        axis = main_axis(latents.index, latents.to_numpy())
    order = {case: -math.inf if math.isnan(of.order) else of.order for case, of in evidence(scores).items()}
    wrong, style = (set(table.loc[table["listed_as"] == kind, "case"]) for kind in (WRONG, STYLE))
    return Figures(order, cases["size"].mean().to_dict(), axis, wrong, style)


def main_axis(cases: Sequence[str], latents: np.ndarray) -> dict[str, float]:
    """Each case's place along the axis of most variance of the latents (cases, 2)."""
    centred = latents - latents.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    return dict(zip(cases, (centred @ axes[0]).tolist(), strict=True))


def auroc(values: Mapping[str, float], positive: Sequence[str], *, two_sided: bool = False) -> float:
    """Area under the ROC curve of the cases' values; an axis that has no sign is taken the better way."""
    cases = sorted(values)
    area = float(roc_auc_score([case in set(positive) for case in cases], [values[case] for case in cases]))
    return max(area, 1 - area) if two_sided else area


def row_of(truths: Mapping[str, Truth], figures: Mapping[str, Figures]) -> dict[str, Any]:
    """The figures of a seed and a source, by data set."""
    planted, clean, dilated = (figures[kind] for kind in KINDS)
    wrong, thick = truths["planted"].wrong, truths["dilated"].dilated
    first = sorted(planted.order, key=lambda case: -planted.order[case])[:FIRST]
    missed = sorted({kind for case, kind in wrong.items() if case not in planted.wrong})
    row = {
        "AUROC": auroc(planted.order, list(wrong)),
        "hits": len(set(first) & set(wrong)),
        "wrong, clean": len(clean.wrong) / len(clean.order),
        "wrong, dilated": len(dilated.wrong & set(thick)) / len(thick),
        "other style, dilated": len(dilated.style & set(thick)) / len(thick),
        "listed, right and in vain": f"{len(planted.wrong & set(wrong))}, {len(planted.wrong - set(wrong))}",
        "not listed": ", ".join(missed),
    }
    if dilated.axis:
        row["AUROC of the main axis"] = auroc(dilated.axis, thick, two_sided=True)
    else:
        row["AUROC of size"] = auroc(dilated.size, thick)
    return row


def verdicts(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was to be reached, and whether it was, as a Markdown table."""
    cells = []
    for row in rows:
        for figure, (goal, reached) in EXPECTED.items():
            if figure in row:
                name = f"seed {row['seed']} from {row['from']}: {figure}"
                cells.append([name, goal, shown(row[figure]), "yes" if reached(row[figure]) else "no"])
    return markdown_table(["figure", "expected", "measured", "reached"], cells)


def gain(data: Data, truth: Truth, shell: Shell, args: argparse.Namespace) -> dict[str, Any]:
    """Train on the planted data set as it is and with the folds of --exclude; score cases that no data set holds."""
    folder = shell.folder / "unseen" / data.name
    unseen(folder, truth, args)
    dice = {}
    for way in ("as it is", "--exclude"):
        plans = f"MNet{'As' if way == 'as it is' else 'Exclude'}Plans"
        dice[way] = read_dice(gained(data, way, plans, folder, shell, args), "measure again")
    scores = dice_scores(dice)
    difference = compare_pair(scores, "--exclude", "as it is").difference._asdict()
    told = {way: scores.mean_of_labels(way, "Dice") for way in dice}
    return {
        "seed": data.seed,
        "unseen cases": args.unseen,
        **told,
        "difference in points [95 %]": in_points(difference),
    }


def unseen(folder: Path, truth: Truth, args: argparse.Namespace) -> None:
    """Copy cases of the source that the data set does not hold, images and labels."""
    content = read_json(args.source / "dataset.json", "name the folder of a raw data set")
    found, _ = find_cases(args.source, content)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in truth.unseen[:: max(1, len(truth.unseen) // args.unseen)][: args.unseen]:
        for image in found[name].images:
            shutil.copyfile(image, folder / "images" / image.name)
        shutil.copyfile(found[name].label, folder / "labels" / found[name].label.name)
    shutil.copyfile(args.source / "dataset.json", folder / "labels" / "dataset.json")


def gained(data: Data, way: str, plans: str, folder: Path, shell: Shell, args: argparse.Namespace) -> Path:
    """The summary of the unseen cases by a network trained one way."""
    preprocessed = shell.folder / "nnUNet_preprocessed" / data.name
    output = folder / plans
    summary = output / "summary.json"
    if summary.is_file():
        return summary
    spacing, patch = (" ".join(map(str, numbers)) for numbers in (args.spacing, args.patch))
    named = f"-pl MNetPlanner -overwrite_plans_name {plans} -overwrite_target_spacing {spacing} --patch-size {patch}"
    shell.run(f"nnunetv2_ext plan_and_preprocess -d {data.number} {named} -c 3d_fullres --no_pbar")
    budget = {"epochs": args.gain_epochs, "iterations_per_epoch": args.iterations}
    write_block(preprocessed / f"{plans}.json", {**BRIEF, **budget}, {"features_per_stage": NARROW})
    splits, kept = preprocessed / SPLITS, folder / "splits_as_they_were.json"
    if not kept.is_file():
        shutil.copyfile(splits, kept)
    excluded = shell.folder / "audits" / f"{data.name}_validation_splits.json"
    shutil.copyfile(kept if way == "as it is" else excluded, splits)
    print(f"training MNet on {data.name} {way}", file=sys.stderr, flush=True)
    try:
        command = f"nnUNetv2_train {data.number} 3d_fullres 0 -tr MNetTrainer -p {plans} -device {args.device}"
        _commands.run(shell, command, output=output, ending=".pth")
    finally:
        shutil.copyfile(kept, splits)
    model = f"-d {data.number} -tr MNetTrainer -p {plans} -c 3d_fullres -f 0 -device {args.device}"
    shell.run(f"nnunetv2_ext predict -i {folder / 'images'} -o {output / 'predicted'} {model} --disable_tta")
    shell.run(f"nnunetv2_ext evaluate -r {folder / 'labels'} -p {output / 'predicted'} -o {output}")
    return summary


def run(args: argparse.Namespace) -> int:
    """Make and train what is missing, audit, print the tables, write the JSON.

    Raises:
        InputError: a number out of range, a source that is too small, no room for the JSON file.
    """
    check_output_file(args.json, "--json")
    if min(args.cases, args.wrong, args.epochs, args.iterations, args.gain_epochs, args.unseen) < 1:
        raise InputError("a number below 1", "1 or more", "correct it")
    args.source, folder = args.source.resolve(), args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    shell, rows, gains, start = Shell(folder), [], [], time.perf_counter()
    for seed in args.seeds:
        truths = {}
        for data in data_of(seed):
            truths[data.kind] = made(data, folder, args)
            train(data, shell, args)
        for source in args.sources:
            found = {data.kind: audit(data, source, shell) for data in data_of(seed)}
            row = row_of(truths, {kind: figures for kind, (figures, _) in found.items()})
            rows.append({"seed": seed, "from": source, **row, **found["planted"][1]})
        if args.gain:
            gains.append(gain(data_of(seed)[0], truths["planted"], shell, args))
    facts = {"cases": args.cases, "wrong": args.wrong, "epochs": args.epochs, "iterations": args.iterations}
    about = machine(args.device)
    print(f"{markdown_facts(facts)}\n{markdown_facts(about)}\n\n{table_of(rows)}\n\n{verdicts(rows)}")
    if gains:
        print(f"\n{table_of(gains)}")
    print(f"{time.perf_counter() - start:.0f} s in all", file=sys.stderr)
    if args.json is not None:
        write_json(args.json, {"machine": about, **facts, "rows": rows, "gains": gains})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Bad input ends in one sentence on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="folder of a raw data set, which stays as it is")
    parser.add_argument("--folder", type=Path, required=True, help="keeps data, models and audits for the next time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default 0")
    parser.add_argument(
        "--from", dest="sources", nargs="+", default=["validation", "map"], choices=["validation", "map"]
    )
    parser.add_argument("--cases", type=int, default=100, help="of a data set (default 100)")
    parser.add_argument("--wrong", type=int, default=10, help="of them (default 10)")
    parser.add_argument("--dilated", type=float, default=0.25, help="share of the cases (default 0.25)")
    parser.add_argument("--spacing", type=float, nargs=3, default=[1.5] * 3, metavar="MM", help="default 1.5 1.5 1.5")
    parser.add_argument("--patch", type=int, nargs=3, default=[24, 40, 32], help="default 24 40 32")
    parser.add_argument("--epochs", type=int, default=5, help="of a fold (default 5)")
    parser.add_argument("--iterations", type=int, default=80, help="of an epoch (default 80)")
    parser.add_argument("--gain", action="store_true", help="train without the listed cases too")
    parser.add_argument("--gain-epochs", type=int, default=6, help="default 6")
    parser.add_argument("--unseen", type=int, default=40, help="cases that --gain is scored on (default 40)")
    parser.add_argument("-device", default="cpu", help="default cpu")
    parser.add_argument("--json", type=Path, help="file for the same figures")
    return exit_status(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
