"""A backbone that one file adds is listed, contract-tested, planned and trained."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from nnunetv2_ext.architectures.backbones import BACKBONES
from nnunetv2_ext.cli import main
from nnunetv2_ext.planning.api import plan_and_preprocess
from nnunetv2_ext.testing.network import NETWORK_CHECKS, NetworkCase
from nnunetv2_ext.trainers.backbone import BackboneTrainer
from nnunetv2_ext.trainers.par import PaRTrainer
from tests.architectures.test_contract import of_backbone
from tests.architectures.toy import TOY
from tests.planning.conftest import Described
from tests.training.conftest import Build, hand_made_plans


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    BACKBONES.append(TOY)
    yield
    BACKBONES.remove(TOY)


def test_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "ToyNet" in capsys.readouterr().out


@pytest.mark.parametrize("check", NETWORK_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("architecture", ["BackboneNetwork", "PaRNetwork"])
def test_contract(architecture: str, check: Callable[[NetworkCase], None]) -> None:
    check(of_backbone(TOY, architecture))


@pytest.mark.parametrize(("method", "trainer"), [("Backbone", BackboneTrainer), ("PaR", PaRTrainer)])
def test_planned_and_trained(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, method: str, trainer: type[BackboneTrainer]
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    data = Described(nnunet_folders).write()
    plans = plan_and_preprocess(
        901, planner=f"{method}Planner", options={"backbone": "ToyNet"}, preprocess=False, progress=False
    )
    assert plans == f"{method}ToyNetPlans"
    configuration = data.configuration(plans)
    kwargs = configuration["architecture"]["arch_kwargs"]
    assert kwargs["backbone"] == "ToyNet" and len(kwargs["backbone_kwargs"]["strides"]) >= 2
    made_by = data.plans(plans)["made_by"]
    assert (made_by["planner"], made_by["options"]) == (f"{method}Planner", {"backbone": "ToyNet"})

    made = hand_made_plans(configuration["architecture"], patch_size=configuration["patch_size"])
    training = Build(nnunet_folders).initialized(made, trainer=trainer)
    image = torch.randn(2, 1, *configuration["patch_size"])
    batch = {"data": image, "target": torch.zeros_like(image, dtype=torch.int16), "keys": ["a", "b"]}
    before = training.bare_network.head.weight.detach().clone()
    training.network.train()
    training.train_step(batch)
    assert not torch.equal(before, training.bare_network.head.weight)
