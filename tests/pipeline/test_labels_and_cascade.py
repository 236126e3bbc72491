"""Thin slices, regions, the ignore label and a hand-made two-stage plan, trained for an epoch in this process."""

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from nnunetv2_ext.files import dataset_name
from nnunetv2_ext.planning.api import plan_and_preprocess
from nnunetv2_ext.training.run import train_fold
from tests.pipeline.conftest import Pipeline

pytestmark = pytest.mark.usefixtures("environment")
BRIEF = {"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "batch_size": 2}
REGIONS = {"background": 0, "whole": [1, 2], "posterior": 2}
# labels of dataset.json, further keys, whether the first slices are marked as ignored, methods
TABLE: dict[int, tuple[dict[str, object], dict[str, object], bool, list[str]]] = {
    201: ({**REGIONS}, {"regions_class_order": [1, 2]}, False, ["MNet"]),
    202: ({"background": 0, "anterior": 1, "posterior": 2, "ignore": 3}, {}, True, ["MNet"]),
    203: ({**REGIONS, "ignore": 3}, {"regions_class_order": [1, 2]}, True, ["MNet", "PaR"]),
}
# what makes a method's network quick
OPTIONS: dict[str, dict[str, Any]] = {"MNet": {}, "PaR": {"backbone_kwargs": {"features_per_stage": [8, 16, 24, 32]}}}


def copy_dataset(pipeline: Pipeline, identifier: int, labels: dict[str, object], more: dict[str, object]) -> Path:
    raw = pipeline.folder / "nnUNet_raw"
    target = raw / f"Dataset{identifier}_Copy"
    shutil.copytree(raw / "Dataset104_HippocampusThick4", target)
    description = json.loads((target / "dataset.json").read_text())
    (target / "dataset.json").write_text(json.dumps({**description, "labels": labels, **more}))
    return target


def plan(pipeline: Pipeline, identifier: int, method: str, *, preprocess: bool = True) -> None:
    plan_and_preprocess(
        identifier,
        planner=f"{method}Planner",
        options=OPTIONS[method],
        preprocess=preprocess,
        progress=False,
    )
    if method == "MNet":
        pipeline.narrow("MNetPlans", dataset_name(identifier))


@pytest.mark.parametrize("identifier", TABLE)
def test_regions_and_ignore_label(pipeline: Pipeline, identifier: int) -> None:
    labels, more, ignored, methods = TABLE[identifier]
    target = copy_dataset(pipeline, identifier, labels, more)
    if ignored:
        for path in (target / "labelsTr").glob("*.nii.gz"):
            image = nibabel.load(path)
            values = np.asarray(image.dataobj).copy()
            values[..., : values.shape[2] // 3] = 3
            nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), path)
    for method in methods:
        plan(pipeline, identifier, method)
        fold = train_fold(
            identifier, "3d_fullres", 0, trainer=f"{method}Trainer", plans=f"{method}Plans", training=BRIEF
        )
        summary = json.loads((fold / "validation" / "summary.json").read_text())
        assert len(summary["mean"]) == 2


def test_thin_slices(pipeline: Pipeline) -> None:
    plan(pipeline, 4, "MNet")
    fold = train_fold(4, "3d_fullres", 0, trainer="MNetTrainer", plans="MNetPlans", training=BRIEF)
    plans = json.loads((pipeline.preprocessed("Dataset004_Hippocampus") / "MNetPlans.json").read_text())
    assert np.allclose(plans["configurations"]["3d_fullres"]["spacing"], 1)
    assert (fold / "validation" / "summary.json").is_file()


def add_stages(pipeline: Pipeline, method: str) -> None:
    """A coarse first stage in the method's plans for data set 204, and the cascade's second one."""
    path = pipeline.preprocessed("Dataset204_Copy") / f"{method}Plans.json"
    plans = json.loads(path.read_text())
    configurations = plans["configurations"]
    full = configurations["3d_fullres"]
    low = json.loads(json.dumps(full))
    low.update(data_identifier="coarse", spacing=[size * 1.25 for size in full["spacing"]])
    low.update(patch_size=[full["patch_size"][0], 40, 32], next_stage="3d_cascade_fullres")
    if method == "PaR":
        low["architecture"]["arch_kwargs"]["spatial_shape"] = low["patch_size"]
    configurations["3d_lowres"] = low
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    path.write_text(json.dumps(plans))


@pytest.fixture(scope="module")
def data_of_two_stages(pipeline: Pipeline, environment: None) -> None:
    copy_dataset(pipeline, 204, {"background": 0, "anterior": 1, "posterior": 2}, {})
    plan(pipeline, 204, "MNet", preprocess=False)
    add_stages(pipeline, "MNet")
    command = "nnUNetv2_preprocess -d 204 -plans_name MNetPlans -c 3d_fullres 3d_lowres -np 1 1 --no_pbar"
    pipeline.run(command, fresh=True)


@pytest.mark.usefixtures("data_of_two_stages")
@pytest.mark.parametrize("method", OPTIONS)
def test_cascade_of_a_hand_made_two_stage_plan(pipeline: Pipeline, method: str) -> None:
    plan(pipeline, 204, method, preprocess=False)
    add_stages(pipeline, method)
    trainer, plans = f"{method}Trainer", f"{method}Plans"
    # every fold's validation writes the first stage's segmentations; `all` gives them for every case at once
    first = train_fold(204, "3d_lowres", "all", trainer=trainer, plans=plans, training=BRIEF)
    assert list((first.parent / "predicted_next_stage" / "3d_cascade_fullres").iterdir())
    second = train_fold(204, "3d_cascade_fullres", 0, trainer=trainer, plans=plans, training=BRIEF)
    assert (second / "validation" / "summary.json").is_file()
