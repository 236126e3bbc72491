"""Data sets, plans and trainers of benchmarks.thin_thick: thin images, thick ones made of them, ways to learn."""

import argparse
import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES, dataset_name, nnunet_folder, read_json, write_json

CONFIGURATION = "3d_fullres"
CONVFREE = "ConvFreeTransformer"
TRUTH, THICK, LAID, THIN_THICK = "truth", "thick", "laid", "thin_thick"
VARIANTS: dict[str, dict[str, Any]] = {
    THIN_THICK: {},
    "no_thick": {"thick_weight": 0.0},
    "no_thin": {"thin_weight": 0.0},
    "no_features": {"features_weight": 0.0},
    "thin_alone": {"thick_weight": 0.0, "features_weight": 0.0},
    "thick_weight_1": {"thick_weight": 1.0},
    "beta_1": {"beta": 1.0},
    "no_ramp_up": {"ramp_up_epochs": 0},
    "thin_grid": {"thick_image": "thin_grid", "slabs": None},
}
WAYS = (TRUTH, THICK, LAID, *VARIANTS)
ENDING = ".nii.gz"
THIN_ID = 1


def dataset_ids(factor: int, random_start: bool) -> tuple[int, int]:
    """Ids of the thick data set, and of the thin images with its annotations."""
    first = 10 * factor + (4 if random_start else 2)
    return first, first + 1


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a network, a way to learn, a factor (0 for the thin truth, which has none) and a fold."""

    network: str
    way: str
    factor: int
    fold: int
    random_start: bool = False

    @property
    def dataset(self) -> int:
        """Id of the data set that it learns from."""
        if self.way == TRUTH:
            return THIN_ID
        thick, thin_thick = dataset_ids(self.factor, self.random_start)
        return thick if self.way == THICK else thin_thick

    @property
    def method(self) -> str:
        """What planner, trainer and plans begin with."""
        if self.way in VARIANTS:
            return "ThinThick"
        return "ConvFree" if self.network == CONVFREE else "Backbone"

    @property
    def plans(self) -> str:
        return f"{self.method}{self.network}Bench"

    def results(self, output: Path) -> Path:
        """nnUNet_results of this way; those of different ways would have one name."""
        return output / "results" / self.way

    def folder(self, output: Path) -> Path:
        model = f"{self.method}Trainer__{self.plans}__{CONFIGURATION}"
        return self.results(output) / dataset_name(self.dataset) / model / f"fold_{self.fold}"


def budget(args: argparse.Namespace) -> dict[str, Any]:
    """What every training gets, as keys of the `training` block."""
    keys = {
        "epochs": args.epochs,
        "iterations_per_epoch": args.iterations,
        "val_iterations_per_epoch": 1,
        "batch_size": args.batch_size,
    }
    if args.adamw is not None:
        keys["optimizer"] = {"name": "AdamW", "lr": args.adamw}
    return keys


def prepare(args: argparse.Namespace) -> None:
    """nnU-Net's folders below --output, and in them the thin data set and those made of it."""
    from nnunetv2_ext.data.thick import make_thick
    from nnunetv2_ext.data.thin_thick import convert_thin_thick

    source = nnunet_folder("nnUNet_raw") / dataset_name(args.dataset)
    ending = read_json(source / "dataset.json", "correct -d")["file_ending"]
    if ending != ENDING:
        raise InputError(f"a data set of {ending} files", f"one of {ENDING}", "choose another")
    for variable in FOLDER_VARIABLES:
        (args.output / variable).mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str((args.output / variable).resolve())
    thin = args.output / "nnUNet_raw" / f"Dataset{THIN_ID:03d}_Thin"
    if not (thin / "dataset.json").is_file():
        for folder in ("imagesTr", "labelsTr"):
            shutil.copytree(source / folder, thin / folder, dirs_exist_ok=True)
        shutil.copy(source / "dataset.json", thin)
    labels = read_json(thin / "dataset.json", "correct -d")["labels"]
    for factor in args.factors:
        thick_id, thin_thick_id = dataset_ids(factor, args.random_start)
        thick = thin.with_name(f"Dataset{thick_id:03d}_Thick")
        if not thick.is_dir():
            source_id, begun = THIN_ID, thin.with_name(f"Dataset{thick_id + 2:03d}_Begun")
            if args.random_start:
                source_id = thick_id + 2
                begin_at_random(thin, begun, factor)
            make_thick(source_id, thick_id, factor=factor, name="Thick", processes=2)
            shutil.rmtree(begun, ignore_errors=True)
        if not thin.with_name(f"Dataset{thin_thick_id:03d}_ThinThick").is_dir():
            convert_thin_thick(
                thin / "imagesTr",
                thick / "labelsTr",
                thin_thick_id,
                name="ThinThick",
                label_names=sorted(labels, key=labels.get),
                processes=2,
            )


def begin_at_random(thin: Path, target: Path, factor: int) -> None:
    """A copy of a data set in which each case begins at one of its first `factor` slices."""
    random = np.random.default_rng(factor)
    for label in sorted((thin / "labelsTr").glob(f"*{ENDING}")):
        start = int(random.integers(factor))
        case = label.name.removesuffix(ENDING)
        for path in (label, *sorted((thin / "imagesTr").glob(f"{case}_????{ENDING}"))):
            file = target / path.parent.name / path.name
            file.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.ReadImage(str(path))[:, :, start:], str(file))
    shutil.copy(thin / "dataset.json", target)


def plan(run: Run, args: argparse.Namespace) -> None:
    """Plan and preprocess a run's data set, once."""
    from nnunetv2_ext.planning.api import plan_and_preprocess

    folder = args.output / "nnUNet_preprocessed" / dataset_name(run.dataset)
    planned = folder / f"{run.plans}.json"
    if planned.is_file():
        return
    options: dict[str, Any] = {}
    if run.method != "ConvFree":
        options["backbone"] = run.network
    if args.patch_size and run.way != THICK:
        options["patch_size"] = args.patch_size
    plan_and_preprocess(
        run.dataset,
        planner=f"{run.method}Planner",
        options=options,
        configurations=[CONFIGURATION],
        processes=[2],
        fingerprint_processes=2,
        plans_name=run.plans,
    )
    content = read_json(planned, "plan again")
    arguments = content["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"].get("backbone_kwargs", {})
    if args.width and "features_per_stage" in arguments:
        arguments["features_per_stage"] = [args.width * 2**stage for stage in range(arguments["n_stages"])]
    write_json(planned, content)


def trainer_of(run: Run, args: argparse.Namespace) -> Any:
    """The run's trainer, with the budget and what its way changes."""
    from nnunetv2_ext.training.run import make_trainer

    changed = {"thin_thick": VARIANTS[run.way]} if VARIANTS.get(run.way) else {}
    return make_trainer(
        run.dataset,
        CONFIGURATION,
        run.fold,
        trainer=f"{run.method}Trainer",
        plans=run.plans,
        training={**budget(args), **changed},
        device=args.device,
    )
