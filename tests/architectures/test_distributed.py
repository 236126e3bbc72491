"""Every registered architecture under DistributedDataParallel: two processes on the CPU, nnU-Net's loss."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_ext.registry import ARCHITECTURES, TRAINERS, find
from tests.architectures.test_contract import CHANNELS, CLASSES, build

PATCH = (4, 32, 33)
RANKS = 2


def loss_weights(architecture: str) -> list[float]:
    """The published deep-supervision weights of the trainer of that architecture."""
    for entry in TRAINERS:
        trainer = entry.load()
        if trainer.network_class.__name__ == architecture:
            return trainer.published_schedule["deep_supervision_weights"]
    raise LookupError(architecture)


def train_two_steps(rank: int, store: str, architecture: str, results: str) -> None:
    """One process: two steps on this rank's own sample, then its gradients and parameters go to a file."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    try:
        network = DistributedDataParallel(build(find("architecture", architecture)))
        loss: Callable[..., Any] = DeepSupervisionWrapper(
            DC_and_CE_loss(
                {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
                {},
                dice_class=MemoryEfficientSoftDiceLoss,
            ),
            loss_weights(architecture),
        )
        optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True)
        generator = torch.Generator().manual_seed(rank)
        for _ in range(2):
            x = torch.randn(1, CHANNELS, *PATCH, generator=generator)
            shapes = network.module.deep_supervision_shapes(PATCH)
            targets = [torch.randint(0, CLASSES, (1, 1, *shape), generator=generator) for shape in shapes]
            optimizer.zero_grad()
            loss(network(x), targets).backward()
            optimizer.step()
        module: nn.Module = network.module
        torch.save(
            {
                "gradients": {name: parameter.grad for name, parameter in module.named_parameters()},
                "parameters": module.state_dict(),
            },
            Path(results) / f"{rank}.pt",
        )
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("architecture", [entry.name for entry in ARCHITECTURES])
def test_two_processes_stay_equal(architecture: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(
        train_two_steps, (str(tmp_path / "store"), architecture, str(tmp_path)), nprocs=RANKS, join=True
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS))
    start = build(find("architecture", architecture)).state_dict()
    assert first["gradients"].keys() == start.keys()
    for name, gradient in first["gradients"].items():
        assert gradient is not None, name
        assert torch.equal(gradient, second["gradients"][name]), name
        assert torch.equal(first["parameters"][name], second["parameters"][name]), name
    # a bias before instance norm has no gradient but rounding's
    weights = [name for name in start if name.endswith("weight")]
    assert [name for name in weights if torch.equal(first["parameters"][name], start[name])] == []
