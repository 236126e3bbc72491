"""The way of docs/how-to-folds-to-submission.md by its own command lines: trainings as jobs, to a container.

Phantoms in place of the page's data set, two folds for five, trainings of two steps, and, in place of nnU-Net's own
trainer, which is never short, `BackboneTrainer` on its plans. Afterwards `run` goes the same way over what is there.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.data.phantom import write_phantoms
from tests.container.test_serve import hand_over
from tests.pipeline.conftest import Pipeline
from tests.test_readme import ROOT, blocks
from tests.warm import WarmProcess

DATASET = "Dataset104_HippocampusThick4"
PAGE = ROOT / "docs" / "how-to-folds-to-submission.md"
SHORT = "--epochs 1 --iterations 2 --val-iterations 1 --batch-size 2"
SOCKET, OUTPUT = "hippocampus-mri", "hippocampus-segmentation"
MODELS = "MNetTrainer:MNetPlans:3d_fullres BackboneTrainer:nnUNetPlans:3d_fullres"


def commands(heading: str, name: str) -> list[str]:
    """The command lines of a section of the page that begin so, as this test runs them."""
    text = PAGE.read_text().partition(f"\n## {heading}")[2].partition("\n## ")[0]
    found = []
    for block in blocks(PAGE, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(name) and line.split(" \\")[0] in text.replace("\\\n", " "):
                line = line.replace("nnUNetTrainer", "BackboneTrainer").replace("-f 0 1 2 3 4", "-f 0 1")
                found.append(line + " -device cpu" * (line.split()[1] in ("train", "predict")))
    assert found, f"no {name} below {heading}"
    return found


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nibabel.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, warm: WarmProcess) -> Iterator[Pipeline]:
    """Both models, two folds each, trained as jobs; `new_images` and `new_labels`."""
    pipeline = Pipeline(tmp_path_factory.mktemp("submission"), warm)
    run, folder = pipeline.run, pipeline.folder
    raw = folder / "nnUNet_raw" / DATASET
    write_phantoms(raw, training=5, test=2, size=48)
    for name in ("images", "labels"):
        (raw / f"{name}Ts").rename(folder / f"new_{name}")
    shutil.copy(raw / "dataset.json", folder / "new_labels")
    run("nnunetv2_ext plan_and_preprocess -d 104 -pl ExperimentPlanner -c 3d_fullres --no_pbar", fresh=True)
    shared = pipeline.preprocessed() / "nnUNetPlans_3d_fullres"
    before = {path.name: path.stat().st_mtime_ns for path in shared.iterdir()}
    run(f"nnunetv2_ext plan_and_preprocess -d 104 -pl MNetPlanner --no_pbar {SHORT}")
    assert before == {path.name: path.stat().st_mtime_ns for path in shared.iterdir()}, "data were preprocessed twice"
    run(f"nnunetv2_ext schedule -d 104 -p nnUNetPlans -c 3d_fullres {SHORT}")
    for plans in ("MNetPlans", "nnUNetPlans"):
        pipeline.narrow(plans)
    (train,) = commands("3.", "nnunetv2_ext train")
    try:
        told = run(f"env nnUNet_n_proc_DA=0 {train} --jobs 2 --wait", fresh=True)
        assert "4 jobs submitted on this machine" in told
        yield pipeline
    finally:
        pipeline.end_jobs()
    shutil.rmtree(folder, ignore_errors=True)


def test_from_folds_to_a_submission(trained: Pipeline) -> None:
    run, folder = trained.run, trained.folder
    (jobs,) = commands("3.", "nnunetv2_ext jobs")
    rows = json.loads(run(f"{jobs} --json"))
    assert [row["state"] for row in rows] == ["finished"] * 4
    assert {(row["epochs_done"], row["epochs"], row["fold"]) for row in rows} == {(1, 1, "0"), (1, 1, "1")}
    (search,) = commands("4.", "nnunetv2_ext find_best")
    assert "nnUNetv2_predict" in run(f"{search} -f 0 1", fresh=True)
    best = json.loads((folder / "best.json").read_text())
    assert {*best["models"]} <= {*MODELS.split()} and best["folds"] == ["0", "1"]

    ensemble, mnet, unet, ours, stock = commands("5.", "nnunetv2_ext predict")
    for command in (ensemble, mnet, unet):
        run(command)
    probabilities = [f"{command} --disable_tta" for command in (ours, stock)]
    for command in probabilities:
        run(command)
    (average,) = commands("5.", "nnunetv2_ext ensemble")
    run(average.replace("-o ensemble", "-o averaged"))
    run(average.replace("nnunetv2_ext ensemble", "nnUNetv2_ensemble").replace("-o ensemble", "-o theirs"))
    averaged, theirs = labels_in(folder / "averaged"), labels_in(folder / "theirs")
    assert len(averaged) == 2 and averaged.keys() == theirs.keys()
    assert all(np.array_equal(averaged[name], theirs[name]) for name in averaged)

    for name in ("evaluate", "compare", "report"):
        run(commands("6.", f"nnunetv2_ext {name}")[0])
    assert "| ensemble" in (folder / "comparison.md").read_text()
    assert "mnet" in (folder / "report.html").read_text(encoding="utf-8")

    (container,) = commands("7.", "nnunetv2_ext container")
    run(container)
    for name, labels in labels_in(folder / "ensemble").items():
        case = name.removesuffix(".nii.gz")
        image = sitk.ReadImage(str(folder / "new_images" / f"{case}_0000.nii.gz"))
        source, output = hand_over(folder / f"input_{case}", {SOCKET: image}), folder / f"output_{case}"
        output.mkdir()
        places = f"--input {source} --output {output} --model {folder / 'submission' / 'model'}"
        run(f"python -m nnunetv2_ext.container.serve {places}")
        written = sitk.ReadImage(str(output / "images" / OUTPUT / "output.mha"))
        assert np.array_equal(sitk.GetArrayFromImage(written), labels.T), case
        assert written.GetOrigin() == image.GetOrigin() and written.GetDirection() == image.GetDirection()


def test_run_goes_on(trained: Pipeline) -> None:
    """Plans and trainings are there: only the other steps are jobs, and the same command again has nothing to do."""
    labels = f"-i {trained.folder / 'new_images'} -r {trained.folder / 'new_labels'}"
    command = f"nnunetv2_ext run -d 104 --preset full -m {MODELS} -f 0 1 {labels} -o ran --jobs 2"
    told = trained.run(command)
    for job in ("find_best", "predict_ensemble", "evaluate", "report"):
        assert f"{job}: finished" in told, told
    assert "plan_" not in told and "fold_" not in told
    assert "Best by the validations: " in told and "| ensemble" in told
    page = trained.folder / "ran" / "report.html"
    assert f"python -m webbrowser {page.as_uri()}" in told
    assert len(labels_in(trained.folder / "ran" / "predictions" / "ensemble")) == 2
    made = page.stat().st_mtime_ns
    again = trained.run(command)
    assert again.count("finished already") == 6 and "running" not in again
    assert page.stat().st_mtime_ns == made
    # what was removed is made again
    page.unlink()
    told = trained.run(command)
    assert told.count("finished already") == 5 and "report: finished after" in told and page.is_file()
    refused = trained.run(command.replace("-f 0 1", "-f 0"), status=2)
    assert "-f 0, which was 0 1, in" in refused


def test_export_and_import(trained: Pipeline) -> None:
    run, folder = trained.run, trained.folder
    export, install = commands("8.", "nnUNetv2_export")[0], commands("8.", "nnUNetv2_install")[0]
    images = folder / "new_images"
    predict = f"nnunetv2_ext predict -d 104 -m MNetTrainer:MNetPlans:3d_fullres -f 0 1 -i {images} -device cpu"
    run(f"{predict} --disable_tta -o first")
    run(export)
    shutil.move(folder / "nnUNet_results", folder / "elsewhere")
    (folder / "nnUNet_results").mkdir()
    run(install, fresh=True)
    run(f"{predict} --disable_tta -o second")
    first, second = labels_in(folder / "first"), labels_in(folder / "second")
    assert len(first) == 2 and first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
