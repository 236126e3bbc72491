"""The whole way of docs/how-to-folds-to-submission.md: five folds, the best model, ensembles, export and import.

Each entry point runs once in an interpreter of its own, where nnU-Net spawns its pools.
"""

import shutil
from pathlib import Path

import nibabel
import numpy as np

from tests.pipeline.conftest import Pipeline

# one process for the other folds, since each command imports nnU-Net; its own trainer takes a short training only here
OTHER_FOLDS = """
from nnunetv2_ext.training.run import train_fold

if __name__ == "__main__":
    short = {"epochs": 1, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "batch_size": 2}
    for fold in range(5):
        for method, plans in (("nnUNet", "nnUNetPlans"), ("MNet", "MNetPlans")):
            if (method, fold) != ("MNet", 0):
                train_fold(104, "3d_fullres", fold, trainer=f"{method}Trainer", plans=plans, training=short,
                           save_probabilities=True)
"""


def predictions(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nibabel.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


def test_folds_to_ensemble(pipeline: Pipeline) -> None:
    run, folder = pipeline.run, pipeline.folder
    run("nnunetv2_ext plan_and_preprocess -d 104 -pl ExperimentPlanner -c 3d_fullres --no_pbar", fresh=True)
    shared = pipeline.preprocessed() / "nnUNetPlans_3d_fullres"
    before = {path.name: path.stat().st_mtime_ns for path in shared.iterdir()}
    run(
        "nnunetv2_ext plan_and_preprocess -d 104 -pl MNetPlanner --no_pbar --epochs 1 --iterations 2 --val-iterations 1"
        " --batch-size 2"
    )
    assert before == {path.name: path.stat().st_mtime_ns for path in shared.iterdir()}, "data were preprocessed twice"
    assert not (pipeline.preprocessed() / "MNetPlans_3d_fullres").exists()

    for plans in ("MNetPlans", "nnUNetPlans"):
        pipeline.narrow(plans)
    run("nnUNetv2_train 104 3d_fullres 0 -tr MNetTrainer -p MNetPlans --npz -device cpu", fresh=True)
    script = folder / "other_folds.py"
    script.write_text(OTHER_FOLDS)
    run(f"python {script}")
    run("nnUNetv2_find_best_configuration 104 -c 3d_fullres -tr MNetTrainer -p MNetPlans", fresh=True)
    found = run(
        "nnunetv2_ext find_best -d 104 -m MNetTrainer:MNetPlans:3d_fullres nnUNetTrainer:nnUNetPlans:3d_fullres"
    )
    assert "nnUNetv2_predict" in found

    images = pipeline.images_of("Dataset104_HippocampusThick4")
    options = "-d 104 -c 3d_fullres -f 0 1 2 3 4 --save_probabilities -device cpu -npp 1 -nps 1 --disable_tta"
    ours = f"nnUNetv2_predict -i {images} -tr MNetTrainer -p MNetPlans {options}"
    run(f"{ours} -o {folder / 'ours'}", fresh=True)
    run(f"nnUNetv2_predict -i {images} -tr nnUNetTrainer -p nnUNetPlans {options} -o {folder / 'stock'}")
    members = f"-i {folder / 'ours'} {folder / 'stock'} -np 1"
    run(f"nnunetv2_ext ensemble {members} -o {folder / 'ensemble'}", fresh=True)
    run(f"nnUNetv2_ensemble {members} -o {folder / 'theirs'}", fresh=True)
    ensemble, theirs = predictions(folder / "ensemble"), predictions(folder / "theirs")
    assert len(ensemble) == 2 and ensemble.keys() == theirs.keys()
    assert all(np.array_equal(ensemble[name], theirs[name]) for name in ensemble)

    archive = folder / "m.zip"
    export = f"nnUNetv2_export_model_to_zip -d 104 -o {archive} -c 3d_fullres -tr MNetTrainer -p MNetPlans"
    run(f"{export} -f 0 1 2 3 4", fresh=True)
    shutil.move(folder / "nnUNet_results", folder / "elsewhere")
    (folder / "nnUNet_results").mkdir()
    run(f"nnUNetv2_install_pretrained_model_from_zip {archive}", fresh=True)
    run(f"{ours} -o {folder / 'again'}")
    first, second = predictions(folder / "ours"), predictions(folder / "again")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
