"""From a folder of thin images and one of thick annotations to thin predictions: mixed ratios, any network."""

import json
import shlex
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.data.sidecar import read_sidecar
from nnunetv2_ext.geometry.slabs import majority, slab_matrix, slice_edges
from nnunetv2_ext.planning.api import plan_and_preprocess
from nnunetv2_ext.testing.trainer import SHORT
from nnunetv2_ext.training.run import train_fold
from tests.pipeline.conftest import Pipeline, check_predictions

pytestmark = pytest.mark.usefixtures("environment")
BRIEF = {"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "batch_size": 2}
DATASET = "Dataset206_Mixed"
NARROW = {"features_per_stage": [4, 8, 16, 32]}


def write_thick(label: Path, ratio: float, output: Path) -> None:
    """The thin label map averaged to slabs of `ratio` slices, with the geometry of a thick scan."""
    image = sitk.ReadImage(str(label))
    labels = sitk.GetArrayFromImage(image)
    matrix = slab_matrix(slice_edges(int(len(labels) / ratio), ratio), slice_edges(len(labels), 1.0))
    thick = sitk.GetImageFromArray(majority(labels, matrix))
    x, y, z = image.GetSpacing()
    thick.SetSpacing((x, y, z * ratio))
    first = image.TransformContinuousIndexToPhysicalPoint((0.0, 0.0, (ratio - 1) / 2))
    thick.SetOrigin(first)
    thick.SetDirection(image.GetDirection())
    sitk.WriteImage(thick, str(output))


def test_from_two_folders_to_thin_predictions(pipeline: Pipeline) -> None:
    raw = pipeline.folder / "nnUNet_raw" / "Dataset004_Hippocampus"
    thin, thick = pipeline.folder / "thin", pipeline.folder / "thick"
    thick.mkdir()
    shutil.copytree(raw / "imagesTr", thin)
    for number, label in enumerate(sorted((raw / "labelsTr").glob("*.nii.gz"))):
        write_thick(label, (3.7, 4.0, 6.0)[number % 3], thick / label.name)
    pipeline.run(
        f"nnunetv2_ext convert_thin_thick --images {thin} --labels {thick} -d 206 --name Mixed"
        " --label-names background anterior posterior"
    )
    shutil.copytree(raw / "labelsTr", raw.parent / DATASET / "labelsTr_thin")
    ratios = {
        round(float(np.diff(case.slabs[0])[0]), 3)
        for case in read_sidecar(raw.parent / DATASET, DATASET).cases.values()
    }
    assert ratios == {3.7, 4.0, 6.0}

    narrow = shlex.quote(json.dumps(NARROW))
    pipeline.run(
        f"nnunetv2_ext plan_and_preprocess -d 206 -pl ThinThickPlanner --no_pbar {SHORT} --beta 2"
        f" --backbone-kwargs {narrow}"
    )
    images = pipeline.images_of(DATASET)
    planned = json.loads((pipeline.preprocessed(DATASET) / "ThinThickPlans.json").read_text())
    assert planned["configurations"]["3d_fullres"]["training"]["thin_thick"]["beta"] == 2.0

    pipeline.run("nnUNetv2_train 206 3d_fullres 0 -tr ThinThickTrainer -p ThinThickPlans -device cpu")
    fold = pipeline.results("ThinThickTrainer", "ThinThickPlans", DATASET) / "fold_0"
    assert (fold / "progress_thin_thick.png").is_file()
    cases = {}
    for name in ("summary.json", "summary_slabs.json", "summary_thin.json"):
        (case,) = json.loads((fold / "validation" / name).read_text())["metric_per_case"]
        cases[name] = case["metrics"]["1"]
    voxels = [sum(metrics[key] for key in ("TP", "FP", "FN", "TN")) for metrics in cases.values()]
    assert voxels[0] < voxels[2]  # slices in no slab are ignored in the first, not in the last
    assert voxels[1] < voxels[0] / 3
    assert not [path for path in fold.parent.glob("*") if "slabs" in path.name]  # a model travels without its cases

    folder = pipeline.folder / "thin_thick"
    pipeline.run(
        f"nnUNetv2_predict -i {images} -o {folder} -d 206 -c 3d_fullres -tr ThinThickTrainer -p ThinThickPlans -f 0"
        " --save_probabilities --disable_tta -device cpu -npp 1 -nps 1"
    )
    check_predictions(folder, images)
    assert {nibabel.load(path).header.get_zooms()[2] for path in folder.glob("*.nii.gz")} == {1.0}

    sidecar = pipeline.preprocessed(DATASET) / "slabs.json"
    sidecar.write_text(sidecar.read_text().replace("3.7", "3.8", 1))
    command = "nnUNetv2_train 206 3d_fullres 1 -tr ThinThickTrainer -p ThinThickPlans -device cpu"
    assert "edited file" in pipeline.run(command, status=1)


@pytest.mark.parametrize(
    ("options", "plans"),
    [
        ({"backbone": "MNet", "backbone_kwargs": {"features_per_stage": [4, 6, 8, 10, 12]}}, "ThinThickMNetPlans"),
        ({"backbone": "PaR", "backbone_kwargs": NARROW}, "ThinThickPaRPlans"),
        ({"backbone": "ConvFreeTransformer"}, "ThinThickConvFreePlans"),
        (None, "nnUNetPlans"),
    ],
    ids=["MNet", "PaR", "ConvFreeTransformer", "stock plans"],
)
def test_other_networks_in_this_process(pipeline: Pipeline, options: dict[str, object] | None, plans: str) -> None:
    pipeline.thin_thick()
    if options is None:  # the side-car is then read from the raw data
        pipeline.run("nnUNetv2_plan_and_preprocess -d 205 -c 3d_fullres -np 1 -npfp 1", fresh=True)
        (pipeline.preprocessed("Dataset205_ThinThick") / "slabs.json").unlink(missing_ok=True)
        pipeline.narrow(plans, "Dataset205_ThinThick")
    else:
        plan_and_preprocess(205, planner="ThinThickPlanner", options=options, progress=False)
    fold = train_fold(205, "3d_fullres", 0, trainer="ThinThickTrainer", plans=plans, training=BRIEF)
    assert (fold / "validation" / "summary_slabs.json").is_file()
