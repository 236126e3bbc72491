"""Which part of a case is taken, and the course of an overfit check on cases made by hand and a tiny network."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import overfit
from benchmarks._primus import PrimusTrainer
from benchmarks._trainers import trainer_for
from benchmarks.overfit import one_of, window
from nnunetv2_ext.trainers.convfree import ConvFreeTrainer
from tests.training.conftest import DATASET, LABELS, hand_made_plans

TOKENS = {
    "network_class_name": "nnunetv2_ext.architectures.ConvFreeTransformer",
    "arch_kwargs": {
        "spatial_shape": [4, 16, 16],
        "token_size": [2, 4, 4],
        "embed_dim": 24,
        "depth": 1,
        "num_heads": 2,
    },
    "_kw_requires_import": [],
}
TRAINING = {"optimizer": {"name": "AdamW", "lr": 0.01}, "scheduler": {"name": "warmup_poly", "warmup_iterations": 5}}


@pytest.mark.parametrize(
    ("occupied", "patch", "expected"),
    [
        ((slice(4, 6), slice(2, 8), slice(0, 1)), (4, 4, 4), [[3, 7], [3, 7], [0, 4]]),
        # larger than the image: padded on both sides; at its end: pushed back into it
        ((slice(0, 1), slice(0, 1), slice(9, 10)), (14, 10, 4), [[-2, 12], [0, 10], [6, 10]]),
        ((slice(0, 0),) * 3, (4, 4, 4), [[3, 7]] * 3),
    ],
)
def test_window(occupied, patch, expected):
    foreground = np.zeros((10, 10, 10), bool)
    foreground[occupied] = True
    assert window(foreground, patch) == expected


@pytest.fixture
def data(nnunet_folders):
    """A preprocessed data set of two cases, smaller and larger than the patch, whose labels are their intensities."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    folder = nnunet_folders / "nnUNet_preprocessed" / DATASET
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    for number, shape in enumerate([(3, 20, 14), (6, 16, 16)]):
        segmentation = np.zeros((1, *shape), np.int16)
        segmentation[:, 1:3, 4:9, 4:12] = 1
        segmentation[:, 1:3, 9:14, 4:12] = 2
        path = folder / "nnUNetPlans_3d_fullres" / f"case{number}"
        whole = dict.fromkeys(("chunks", "blocks", "chunks_seg", "blocks_seg"), segmentation.shape)
        nnUNetDatasetBlosc2.save_case(segmentation.astype(np.float32), segmentation, {}, str(path), **whole)
    plans = hand_made_plans(TOKENS, patch_size=[4, 16, 16], training=TRAINING)
    (folder / "Plans.json").write_text(json.dumps({**plans, "plans_name": "Plans"}))
    postnorm = deepcopy({**plans, "plans_name": "PostNorm"})
    postnorm["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["pre_norm"] = False
    (folder / "PostNorm.json").write_text(json.dumps(postnorm))
    described = {"channel_names": {"0": "MRI"}, "numTraining": 2, "file_ending": ".nii.gz", **LABELS}
    (folder / "dataset.json").write_text(json.dumps(described))
    return nnunet_folders


def test_both_presets_learn_two_cases(data, capsys):
    file = data / "out.json"
    arguments = ["-d", "901", "-p", "Plans", "PostNorm", "--iterations", "200", "--every", "10", "--json", str(file)]
    assert overfit.main([*arguments, "--goal", "0.9"]) == 0
    outcomes = json.loads(file.read_text())["outcomes"]
    assert [one["plans"] for one in outcomes] == ["Plans", "PostNorm"]
    for one in outcomes:
        assert list(one["dice"]) == ["case0", "case1"] and min(one["dice"].values()) > 0.9
        assert one["reached"] and one["steps"] % 10 == 0
    assert "| PostNorm " in capsys.readouterr().out.splitlines()[-1]
    assert not list((data / "nnUNet_results").iterdir())


def test_a_goal_out_of_reach_ends_with_1(data, capsys):
    assert overfit.main(["-d", "901", "-p", "Plans", "--iterations", "3", "--every", "2"]) == 1
    printed = capsys.readouterr().out
    assert "step 2:" in printed and "step 3:" in printed and "|      no |" in printed


def test_a_falling_loss_and_parameters_without_a_gradient(data, capsys, monkeypatch):
    file = data / "out.json"
    arguments = ["-d", "901", "-p", "Plans", "--falling", "--every", "4", "--json", str(file)]
    assert overfit.main([*arguments, "--iterations", "8"]) == 0
    (one,) = json.loads(file.read_text())["outcomes"]
    assert one["steps"] == 8 and one["loss"] < one["first_loss"] and one["idle"] == [] and one["parameters"] > 0

    def add_one_that_is_not_used(self):
        super(ConvFreeTrainer, self).initialize()
        self.network.register_parameter("unused", nn.Parameter(torch.ones(1)))

    monkeypatch.setattr(ConvFreeTrainer, "initialize", add_one_that_is_not_used, raising=False)
    capsys.readouterr()
    overfit.main([*arguments, "--iterations", "4"])
    assert json.loads(file.read_text())["outcomes"][0]["idle"] == ["unused"]
    assert "Plans, no gradient: unused\n" in capsys.readouterr().out


def test_the_step_is_that_of_a_training(data, monkeypatch):
    """The trainer of the plans, its rate over the steps, and a batch of whole patches with the labels untouched."""
    seen = []

    def spy(self, batch):
        result = super(ConvFreeTrainer, self).train_step(batch)
        seen.append((self.optimizer.param_groups[0]["lr"], batch))
        return result

    monkeypatch.setattr(ConvFreeTrainer, "train_step", spy, raising=False)
    overfit.main(["-d", "901", "-p", "Plans", "--iterations", "8", "--every", "3", "--goal", "0.999"])
    # 5 steps of warm-up, then poly over what is left of 3 epochs of 3
    expected = [n / 5 for n in (1, 2, 3, 4, 5)] + [(n / 4) ** 0.9 for n in (4, 3, 2)]
    assert [rate for rate, _ in seen] == pytest.approx([0.01 * rate for rate in expected])
    batch = seen[-1][1]
    assert batch["data"].shape == batch["target"].shape == (2, 1, 4, 16, 16)
    assert (batch["data"] == batch["target"]).all() and all(batch["target"].unique() == batch["target"].new([0, 1, 2]))
    alone = one_of(batch, 1)
    assert (alone["target"] == batch["target"][1:]).all() and len(alone["data"]) == 1
    alone["target"].zero_()
    assert batch["target"][1].any()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-p", "Nothing"], "Nothing.json"),
        (["--cases", "case0", "case0"], "2 different ones"),
        (["--cases", "case0", "case9"], "case9"),
        (["--every", "0"], "positive numbers"),
        (["--goal", "1"], "between 0 and 1"),
        (["-c", "2d"], "3D one"),
    ],
)
def test_bad_input_is_a_sentence(data, capsys, arguments, told):
    assert overfit.main(["-d", "901", "-p", "Plans", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_the_benchmarks_own_trainer_is_a_class():
    assert trainer_for("PrimusTrainer") is PrimusTrainer
    assert trainer_for("MNetTrainer") == "MNetTrainer"
