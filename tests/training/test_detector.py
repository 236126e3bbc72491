"""DetectorTrainer on hand-made batches: what the loss is given, labels, regions, ignored voxels, odd images, errors."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.losses import BoxLoss
from nnunetv2_ext.losses.boxes import TERMS, sides
from nnunetv2_ext.trainers.detector import DetectorTrainer
from tests.training.conftest import LABELS, REGIONS, Build, hand_made_plans

PATCH = [8, 32, 32]
SMALL = {"size": 32, "features": 16, "stages": 1, "heads": 2, "points": 2}
IGNORE = {"labels": {"background": 0, "left": 1, "right": 2, "ignore": 3}}
IGNORED_REGIONS = {**REGIONS, "labels": {**REGIONS["labels"], "ignore": 3}}
CHANNELS = {**LABELS, "channel_names": {str(number): "MRI" for number in range(4)}}


def detector(**kwargs: Any) -> dict[str, Any]:
    path = "nnunetv2_ext.architectures.ROIDetector"
    return {"network_class_name": path, "arch_kwargs": {**SMALL, **kwargs}, "_kw_requires_import": []}


def make(
    build: Build, labels: dict[str, Any] = LABELS, *, training: Any = None, patch: Any = None, **kwargs: Any
) -> Any:
    block = {"epochs": 2, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, **(training or {})}
    block["scheduler"] = {"name": "warmup_poly", "warmup_iterations": 0}
    network = detector(regions="regions_class_order" in labels, **kwargs)
    plans = hand_made_plans(network, patch_size=patch or PATCH, training=block)
    torch.manual_seed(0)
    return build.initialized(plans, trainer=DetectorTrainer, labels=labels)


def batch_of(labels: dict[str, Any] = LABELS, patch: Any = None, *, empty: bool = False) -> dict[str, Any]:
    """Two bright organs in noise, and, with an ignore label, rows of which nothing is known; as the loader has them."""
    generator = torch.Generator().manual_seed(1)
    size = patch or PATCH
    label = torch.zeros(2, 1, *size, dtype=torch.int16)
    if not empty:
        label[0, :, : max(size[0] // 2, 1), 4:12, 6:20] = 1
        label[:, :, size[0] // 2 :, 20:28, 10:16] = 2
    channels = len(labels.get("channel_names", "1"))
    data = 5 * label.float() + torch.randn(2, channels, *size, generator=generator)
    target = label
    ignored = "ignore" in labels["labels"]
    if "regions_class_order" in labels:
        target = torch.cat([label > 0, label == 2] + [torch.zeros_like(label, dtype=torch.bool)] * ignored, 1)
    if ignored:
        target[:, -1, :, 28:] = 1 if "regions_class_order" in labels else 3
    return {"data": data, "target": target, "keys": ["a", "b"]}


ALL = {"labels": LABELS, "regions": REGIONS, "ignore": IGNORE, "ignore and regions": IGNORED_REGIONS}


@pytest.mark.parametrize("labels", ALL.values(), ids=ALL)
def test_a_step_hands_organs_to_the_loss(build: Build, labels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(build, labels)
    given: list[Any] = []
    forward = BoxLoss.forward

    def spy(self: BoxLoss, *arguments: Any) -> Any:
        given[:] = arguments
        return forward(self, *arguments)

    monkeypatch.setattr(BoxLoss, "forward", spy)
    batch = batch_of(labels)
    result = trainer.train_step(batch)
    detected, organs, ignored = given
    assert [plane.axis for plane in detected] == [0, 1, 2]
    assert organs.shape == (2, 2, *PATCH) and organs.dtype == torch.bool
    if labels in (LABELS, IGNORE):
        expected = [batch["target"][:, 0] == number for number in (1, 2)]
    else:
        expected = [batch["target"][:, number] for number in (0, 1)]
    for number in (0, 1):
        assert torch.equal(organs[:, number], expected[number])
    if "ignore" in labels["labels"]:
        assert torch.equal(ignored.any(4).any(2)[0, 0], torch.arange(PATCH[1]) >= 28)
    else:
        assert ignored is None
    assert result.keys() == {"loss", *TERMS}
    assert result["loss"] == pytest.approx(sum(result[term] for term in TERMS), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "patch"),
    [
        (LABELS, [1, 32, 32]),
        (CHANNELS, PATCH),
        (REGIONS, PATCH),
        (IGNORE, PATCH),
        (IGNORED_REGIONS, PATCH),
    ],
    ids=["one slice", "four channels", "regions", "ignore", "ignore and regions"],
)
def test_it_learns_and_scores_boxes_as_labels(build: Build, labels: Any, patch: Any) -> None:
    trainer = make(build, labels, patch=patch)
    batch = batch_of(labels, patch)
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(5)]
    assert losses[-1] < losses[0]
    trainer.network.eval()
    with torch.no_grad():
        result = trainer.validation_step(batch)
        objective = trainer.objective(batch)
    organs, ignored = trainer.organs(batch["target"])
    counted = torch.ones_like(organs[:, :1]) if ignored is None else ~ignored
    truth = result["tp_hard"] + result["fn_hard"]
    assert truth.tolist() == (organs & counted).sum((0, 2, 3, 4)).tolist()
    assert objective.logits.shape == (2, 2 if trainer.label_manager.has_regions else 3, *patch)
    assert result["masks"] == 0 and np.isfinite(result["loss"])


@pytest.mark.parametrize("view", ["slabs", "central"])
def test_images_without_foreground(build: Build, view: str) -> None:
    trainer = make(build, view=view)
    batch = batch_of(empty=True)
    results = [trainer.train_step(batch) for _ in range(6)]
    assert all(result["box"] == 0 for result in results)
    assert results[-1]["presence"] < results[0]["presence"]
    trainer.network.eval()
    with torch.no_grad():
        presence = torch.stack([plane.presence for plane in trainer.objective(batch) and trainer.network.detected])
    assert presence.mean() < 0


@pytest.mark.parametrize("head", ["extent", "pooled"])
def test_every_parameter_learns(build: Build, head: str) -> None:
    trainer = make(build, head=head)
    trainer.objective(batch_of()).loss.backward()
    without = [name for name, parameter in trainer.network.named_parameters() if parameter.grad is None]
    assert not without


def test_the_block_reaches_the_loss(build: Build) -> None:
    group = {"box": "l1_giou", "quantile": 0.8}
    trainer = make(build, training={"detector": group, "loss": {"dice": 0.5, "ce": 0.25}}, view="central")
    loss = trainer.loss
    assert (loss.box, loss.quantile, loss.weights, loss.central) == ("l1_giou", 0.8, (0.5, 0.25), True)
    assert np.isfinite(trainer.train_step(batch_of())["loss"])


def test_the_published_block(build: Build) -> None:
    block = make(build).block
    assert block["optimizer"] == {"name": "AdamW", "lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.01}
    assert (block["scheduler"]["name"], block["grad_clip"]) == ("warmup_poly", 1.0)
    assert block["detector"] == {"box": "pinball", "quantile": 0.9}


def iou(box: Tensor, other: Tensor) -> float:
    """Of two boxes (3, 2)."""
    low, high = torch.maximum(box[:, 0], other[:, 0]), torch.minimum(box[:, 1], other[:, 1])
    overlap = (high - low).clamp_min(0).prod()
    return float(overlap / ((box[:, 1] - box[:, 0]).prod() + (other[:, 1] - other[:, 0]).prod() - overlap))


def test_boxes_follow_the_organs(build: Build) -> None:
    """On images that it has not seen, and on these flipped: written as labels, boxes are those of the organs."""
    steps = 60
    trainer = make(build, training={"epochs": 1, "iterations_per_epoch": steps, "optimizer": {"lr": 2e-3}})
    random = np.random.default_rng(0)
    for _ in range(steps):
        trainer.train_step(blocks(random))
    trainer.network.eval()
    batch = blocks(random)
    flipped = {key: value if key == "keys" else value.flip(-1) for key, value in batch.items()}
    boxes = []
    for seen in (batch, flipped):
        with torch.no_grad():
            predicted = trainer.objective(seen).logits.argmax(1, keepdim=True)
        boxes.append(sides(predicted == 1)[:, 0])
        truth = sides(seen["target"] == 1)[:, 0]
        assert np.mean([iou(*pair) for pair in zip(boxes[-1], truth, strict=True)]) >= 0.5
    assert np.mean([iou(*pair) for pair in zip(boxes[0], truth, strict=True)]) < 0.4


def blocks(random: np.random.Generator) -> dict[str, Any]:
    """Four images of one bright organ somewhere."""
    label = torch.zeros(4, 1, *PATCH, dtype=torch.int16)
    for sample in label:
        z, y, x = random.integers((0, 2, 2), (4, 18, 18))
        sample[:, z : z + 4, y : y + 10, x : x + 12] = 1
    data = 5 * label.float() + torch.from_numpy(random.normal(size=label.shape)).float()
    return {"data": data, "target": label, "keys": list("abcd")}


@pytest.mark.parametrize(("labels", "regions"), [(LABELS, True), (REGIONS, False)], ids=["labels", "regions"])
def test_a_detector_of_the_other_kind_is_refused(build: Build, labels: Any, regions: bool) -> None:
    plans = hand_made_plans(detector(regions=regions), patch_size=PATCH)
    with pytest.raises(InputError, match=r"a detector of .*-pl ROIPlanner --network detector"):
        build.initialized(plans, trainer=DetectorTrainer, labels=labels)


def test_on_other_plans_the_detector_has_its_defaults(build: Build) -> None:
    trainer = build(hand_made_plans(), trainer=DetectorTrainer)
    network = trainer.build_network(trainer.configuration_manager, 1, 3, False)
    assert (type(network).__name__, network.size, network.view) == ("ROIDetector", 128, "slabs")
