"""Architectures under DistributedDataParallel: two processes on the CPU, nnU-Net's loss."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_ext.architectures.contract import Auxiliary
from nnunetv2_ext.registry import ARCHITECTURES, TRAINERS
from nnunetv2_ext.testing.network import CHANNELS, CLASSES
from tests.architectures.test_contract import CASES as CONTRACT_CASES
from tests.architectures.test_contract import Case
from tests.warm import light_nnunet

RANKS = 2
BY_NAME = {case.name: case for case in CONTRACT_CASES}
# case of the contract, whether its backbone is frozen; UNETR has parameters that are frozen from the start
CASES = [
    ("MNet", False),
    ("BackboneNetwork-MNet", False),
    ("BackboneNetwork-UNETR", False),
    ("PaRNetwork-PlainConvUNet", False),
    ("PaRNetwork-PlainConvUNet", True),
    ("PaRNetwork-MNet", False),
    ("PaRNetwork-UNETR", False),
    ("PaRNetwork-UNETR", True),
    ("ConvFreeTransformer-block", False),
    ("ROIDetector-slabs", False),
    ("HierarchicalSegmentor-checkpointed", False),
]
IDS = [f"{name}{' frozen' * frozen}" for name, frozen in CASES]


def network_of(name: str, frozen: bool) -> Any:
    network = BY_NAME[name].build()
    if frozen:
        network.freeze_backbone()
    return network


def loss_weights(case: Case, outputs: int) -> list[float]:
    """The published deep-supervision weights of the architecture's trainer, or nnU-Net's under DDP."""
    for entry in TRAINERS:
        trainer = entry.load()
        if trainer.network_class.__name__ == case.architecture and trainer.published_block:
            published = trainer.published_block.get("deep_supervision_weights")
            if published is not None:
                return published
    return [1 / 2**output for output in range(outputs - 1)] + [1e-6]


def train_two_steps(rank: int, name: str, frozen: bool) -> dict[str, dict[str, Any]]:
    """Two steps on this rank's own sample; what came of them."""
    case = BY_NAME[name]
    patch, bare = case.patch, network_of(name, frozen)
    shapes = bare.deep_supervision_shapes(patch)
    loss: Any = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    if len(shapes) > 1:
        loss = DeepSupervisionWrapper(loss, loss_weights(case, len(shapes)))
    else:  # as our trainers do for a network of a single output
        bare.deep_supervision = False
    network = DistributedDataParallel(bare)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(rank)
    for passes in (1, 2):  # ThinThickTrainer makes two before it goes back
        x = torch.randn(1, CHANNELS, *patch, generator=generator)
        targets = [torch.randint(0, CLASSES, (1, 1, *shape), generator=generator) for shape in shapes]
        optimizer.zero_grad()
        truth = targets if len(shapes) > 1 else targets[0]
        losses = []
        for number in range(1, passes + 1):
            losses.append(loss(network(x / number), truth))
            if isinstance(bare, Auxiliary):  # as its own trainer's loss reads them
                losses += [output.square().mean() for output in bare.auxiliary_outputs]
        torch.stack(losses).sum().backward()
        optimizer.step()
    module: nn.Module = network.module
    return {
        "gradients": {key: parameter.grad for key, parameter in module.named_parameters() if parameter.requires_grad},
        "parameters": dict(module.named_parameters()),
    }


def train_all(rank: int, store: str, results: str) -> None:
    """One process: every case, one after the other, each into a file."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    try:
        for (name, frozen), case in zip(CASES, IDS, strict=True):
            try:
                outcome = train_two_steps(rank, name, frozen)
            except Exception as error:
                raise RuntimeError(f"{case} failed") from error
            torch.save(outcome, Path(results) / f"{case} {rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes made of every case; one pair of processes for all, since starting them takes longest."""
    folder = tmp_path_factory.mktemp("distributed")
    with light_nnunet():
        torch.multiprocessing.spawn(train_all, (str(folder / "store"), str(folder)), nprocs=RANKS, join=True)
    return folder


def test_every_architecture_has_a_case() -> None:
    assert {BY_NAME[name].architecture for name, _ in CASES} == {entry.name for entry in ARCHITECTURES}


@pytest.mark.parametrize(("name", "frozen"), CASES, ids=IDS)
def test_two_processes_stay_equal(name: str, frozen: bool, results: Path) -> None:
    case = IDS[CASES.index((name, frozen))]
    first, second = (torch.load(results / f"{case} {rank}.pt", weights_only=True) for rank in range(RANKS))
    start = dict(network_of(name, frozen).named_parameters())
    trained = [key for key, parameter in start.items() if parameter.requires_grad]
    assert list(first["gradients"]) == trained
    for key, gradient in first["gradients"].items():
        assert gradient is not None, key
        assert torch.equal(gradient, second["gradients"][key]), key
    for key, parameter in start.items():
        assert torch.equal(first["parameters"][key], second["parameters"][key]), key
        # biases and scales before a normalisation have no gradient but rounding's, the coarsest head hardly any
        moves = parameter.dim() > 1 and key.endswith("weight") and ".seg_layers." not in key
        if key not in trained or moves:
            assert torch.equal(first["parameters"][key], parameter) == (key not in trained), key
    assert all(key.startswith("refiner.") for key in trained) == frozen
