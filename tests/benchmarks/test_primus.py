"""Primus as nnU-Net builds it, and its trainer on plans of ConvFreeTransformer."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import _primus_network
from benchmarks._primus import PrimusTrainer
from benchmarks._primus_network import PrimusNetwork
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.trainers.convfree import ConvFreeTrainer
from nnunetv2_ext.training.run import make_trainer
from tests.benchmarks.test_overfit import TOKENS, TRAINING
from tests.training.conftest import DATASET, LABELS, UNET, hand_made_plans


@pytest.fixture
def small(monkeypatch):
    """Primus with one narrow layer."""
    sizes = {"embed_dim": 24, "eva_depth": 1, "eva_numheads": 1}
    # a rotary code needs a multiple of 6 per head, and of 4 after two thirds of it
    monkeypatch.setattr(_primus_network, "PRIMUS_S", {**_primus_network.PRIMUS_S, **sizes})


def test_network_and_initial_weights_are_those_of_nnunets_trainer():
    from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import nnUNet_Primus_S_Trainer

    torch.manual_seed(0)
    plans = SimpleNamespace(patch_size=(16, 24, 24))
    theirs = nnUNet_Primus_S_Trainer.build_network_architecture(None, plans, 1, 3, False)
    torch.manual_seed(0)
    ours = PrimusNetwork(1, 3, spatial_shape=(16, 24, 24)).primus
    expected = theirs.state_dict()
    assert list(expected) == list(ours.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    rates = [[block.drop_path1.drop_prob for block in one.eva.blocks[1:]] for one in (theirs, ours)]
    assert rates[0] == rates[1] and rates[0][-1] == pytest.approx(0.2)


def test_contract(small):
    network = PrimusNetwork(2, 3, spatial_shape=(4, 16, 16), token_size=(2, 8, 8))
    (logits,) = network(torch.randn(1, 2, 4, 16, 16))
    assert logits.shape == (1, 3, 4, 16, 16)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.deep_supervision = False
    assert network.eval()(torch.randn(1, 2, 4, 16, 16)).shape == logits.shape
    assert network.deep_supervision_shapes([4, 16, 16]) == [(4, 16, 16)]
    assert network.compute_conv_feature_map_size([4, 16, 16]) > 3 * 4 * 16 * 16


@pytest.mark.parametrize(
    ("patch", "tokens", "told"),
    [
        ((4, 12, 12), (2, 12, 12), "powers of two"),
        ((4, 8, 8), (0, 8, 8), "powers of two"),
        ((4, 12, 16), (2, 8, 8), "multiples"),
    ],
)
def test_sizes_that_primus_cannot_take(patch, tokens, told):
    with pytest.raises(InputError, match=told):
        PrimusNetwork(1, 2, spatial_shape=patch, token_size=tokens)


@pytest.mark.parametrize(("architecture", "tokens"), [(TOKENS, (2, 4, 4)), (UNET, (1, 16, 16))])
def test_trainer_takes_all_but_the_network_from_the_plans(nnunet_folders, small, architecture, tokens):
    folder = nnunet_folders / "nnUNet_preprocessed" / DATASET
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    (folder / "nnUNetPlans_3d_fullres" / "case.b2nd").touch()
    plans = hand_made_plans(architecture, patch_size=[4, 16, 16], spacing=[16.0, 1.0, 1.0], training=TRAINING)
    (folder / "Plans.json").write_text(json.dumps({**plans, "plans_name": "Plans"}))
    described = {"channel_names": {"0": "MRI"}, "numTraining": 1, "file_ending": ".nii.gz", **LABELS}
    (folder / "dataset.json").write_text(json.dumps(described))
    primus, ours = (
        make_trainer(901, "3d_fullres", "all", trainer=trainer, plans="Plans", training={"epochs": 7})
        for trainer in (PrimusTrainer, "ConvFreeTrainer")
    )
    assert type(primus) is PrimusTrainer and type(ours) is ConvFreeTrainer
    assert primus.block == ours.block and primus.num_epochs == 7
    primus.initialize()
    assert primus.network.primus.down_projection.proj.kernel_size == tokens
    assert isinstance(primus.optimizer, torch.optim.AdamW) and primus.network.spatial_shape == (4, 16, 16)
    assert ours.build_network(ours.configuration_manager, 1, 2, False).token_size == tokens
