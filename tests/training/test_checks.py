"""What a training refuses before it begins: device, processes, memory to share, sizes, network, files, folds."""

import json
import pickle
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import nn

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.trainers.backbone import BackboneTrainer
from nnunetv2_ext.training import checks
from nnunetv2_ext.training.checks import check_cases, check_shared_memory, told_of_batch
from tests.training.conftest import MNET, Build, hand_made_plans
from tests.training.test_seeds import CASES, write_cases

WHOLE = {"patch_size": [8, 32, 32], "batch_size": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": ["8", "32", "32"]}, r"the patch_size \['8', '32', '32'\] of 3d_fullres; .* numbers from 1"),
        ({"patch_size": [8.5, 32, 32]}, "the patch_size"),
        ({"patch_size": [0, 32, 32]}, "the patch_size"),
        ({"patch_size": None}, "the patch_size None"),
        ({"batch_size": 0}, "the batch_size 0 of 3d_fullres; expected a whole number from 1"),
        ({"batch_size": "2"}, "the batch_size '2'"),
        ({"architecture": {"network_class_name": "a.B"}}, "no whole architecture in 3d_fullres"),
        ({"architecture": MNET | {"arch_kwargs": []}}, "no whole architecture in 3d_fullres"),
        ({"architecture": MNET | {"network_class_name": "nnunetv2_ext.architectures.MNett"}}, r"MNett, which does not"),
        ({"architecture": MNET | {"network_class_name": "nowhere.MNet"}}, "the network nowhere.MNet, which does not"),
        ({"training": {"thin_thick": {"beta": 1.0}}}, "of ThinThickTrainer; .* train with -tr ThinThickTrainer"),
        ({"inherits_from": "gone"}, "an incomplete or damaged configuration '3d_fullres'"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_damaged_plans(build: Build, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**changes)
    assert list((build.folder / "nnUNet_results").iterdir()) == []


def test_plans_without_an_architecture(build: Build) -> None:
    plans = {**hand_made_plans(), "configurations": {"3d_fullres": WHOLE}}
    with pytest.raises(InputError, match="an incomplete or damaged configuration '3d_fullres'"):
        build(plans)
    with pytest.raises(InputError, match=r"got plans without configurations; .*; plan again"):
        build({**hand_made_plans(), "configurations": []})


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_that_is_not_there(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=rf"-device {kind}, which torch does not see; .* add -device cpu"):
        checks.check_device(torch.device(kind))


@pytest.mark.parametrize(
    ("variable", "value"),
    [("nnUNet_n_proc_DA", "abc"), ("nnUNet_n_proc_DA", "-1"), ("nnUNet_n_proc_DA", ""), ("nnUNet_def_n_proc", "0")],
)
def test_numbers_of_processes(build: Build, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=rf"got {variable}={value}; expected a number of processes from .* run export"):
        build()


@pytest.mark.parametrize("fold", [5, -1])
def test_a_fold_beyond_nnunets_five(build: Build, fold: int) -> None:
    with pytest.raises(InputError, match=rf"fold {fold} of 5, .*; expected one of 0 to 4, or all"):
        build(fold=fold)
    assert list((build.folder / "nnUNet_results").iterdir()) == []


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([{"train": ["a", "x"], "val": ["b"]}], r"a fold 0 that names 1 case \(x\), not preprocessed; .* -d 901 "),
        ([{"train": [], "val": ["b"]}], "fold 0 without cases to train with"),
        ([{"train": ["a"], "val": []}], "fold 0 without cases to validate with"),
        ([{"train": ["a"]}], "no list of folds with train and val"),
        ({}, "an object in .*splits_final.json; expected a list"),
    ],
    ids=str,
)
def test_wrong_splits(build: Build, splits: Any, message: str) -> None:
    trainer = build.initialized()
    write_cases(build)
    (build.preprocessed / "nnUNetPlans_3d_fullres" / "case.b2nd").unlink()
    (build.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match=message):
        trainer.do_split()


def test_too_few_cases_for_five_folds(build: Build) -> None:
    with pytest.raises(InputError, match="got 1 cases; expected 5 or more for nnU-Net's folds; train fold all"):
        build.initialized().do_split()


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _truncate(folder / "b.b2nd"), "the damaged file .*b.b2nd"),
        (lambda folder: _truncate(folder / "b_seg.b2nd"), "the damaged file .*b_seg.b2nd"),
        (lambda folder: (folder / "b_seg.b2nd").unlink(), "no file .*b_seg.b2nd"),
        (lambda folder: _truncate(folder / "b.pkl"), "an unreadable file .*b.pkl"),
        (lambda folder: (folder / "b.pkl").unlink(), "no file .*b.pkl"),
        (lambda folder: (folder / "b.pkl").write_bytes(pickle.dumps({})), "no class_locations in .*b.pkl"),
    ],
)
def test_damaged_cases(build: Build, damage: Any, message: str) -> None:
    write_cases(build)
    folder = build.preprocessed / "nnUNetPlans_3d_fullres"
    dataset = nnUNetDatasetBlosc2(str(folder))
    assert list(dataset.identifiers) == list(CASES)
    check_cases(dataset, "preprocess")
    damage(folder)
    with pytest.raises(InputError, match=f"{message}.*; preprocess"):
        check_cases(dataset, "preprocess")
    with pytest.raises(InputError, match=r"no file .*; train all folds of the previous stage"):
        check_cases(nnUNetDatasetBlosc2(str(folder), ["a"], folder_with_segs_from_previous_stage=str(folder / "x")), "")


@pytest.mark.parametrize(("workers", "queued"), [("1", 8), ("4", 11)])
def test_shared_memory(workers: str, queued: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage(queued * 1e6))
    check_shared_memory(1e6)
    with pytest.raises(InputError, match=rf"{queued} MB free in .* {workers} data workers .*nnUNet_n_proc_DA=0"):
        check_shared_memory(1.1e6)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    check_shared_memory(np.inf)


@pytest.mark.parametrize(
    ("norm", "batch", "told"),
    [(nn.BatchNorm3d, 1, True), (nn.SyncBatchNorm, 1, True), (nn.BatchNorm3d, 2, False), (nn.InstanceNorm3d, 1, False)],
)
def test_batch_normalisation_of_one_image_is_told(norm: type[nn.Module], batch: int, told: bool) -> None:
    sentence = told_of_batch(nn.Sequential(nn.Conv3d(1, 2, 1), norm(2)), batch)
    assert ("a batch of 1" in sentence and "a batch of 2 or more" in sentence) == told == bool(sentence)


@pytest.mark.parametrize(("batch", "told"), [(1, True), (2, False)])
def test_a_training_with_it_tells_in_its_log(build: Build, batch: int, told: bool) -> None:
    kwargs = {"channels": [4, 6, 8], "strides": [[1, 2, 2], [2, 2, 2]], "norm": "BATCH"}
    architecture = {
        "network_class_name": "nnunetv2_ext.architectures.BackboneNetwork",
        "arch_kwargs": {"backbone": "UNet", "spatial_shape": [8, 32, 32], "backbone_kwargs": kwargs},
        "_kw_requires_import": [],
    }
    build.initialized(hand_made_plans(architecture, training={"batch_size": batch}), trainer=BackboneTrainer)
    assert ("WARNING: batch normalisation at a batch of 1" in build.log()) == told
