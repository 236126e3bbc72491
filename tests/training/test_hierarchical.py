"""HierarchicalTrainer: its network on its own and on other plans, what a step passes, labels, seed, refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.architectures import HierarchicalSegmentor
from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.block import NNUNET_BLOCK
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.memory import memory_gb
from nnunetv2_ext.trainers.hierarchical import HierarchicalTrainer
from nnunetv2_ext.training.entries import elements_of_entries
from nnunetv2_ext.training.hierarchical import crops
from nnunetv2_ext.training.seeds import EPOCHS, seed_all
from tests.training.conftest import LABELS, MNET, REGIONS, UNET, Build, hand_made_plans

IGNORE = {"labels": {"background": 0, "left": 1, "right": 2, "ignore": 3}}
REGIONS_IGNORE = {**REGIONS, "labels": {**REGIONS["labels"], "ignore": 3}}
STAGES: dict[str, Any] = {
    "spatial_shape": [8, 32, 32],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "features": 4,
    "max_features": 8,
    "tokens": 64,
}
HIERARCHICAL: dict[str, Any] = {
    "network_class_name": "nnunetv2_ext.architectures.HierarchicalSegmentor",
    "arch_kwargs": STAGES,
    "_kw_requires_import": [],
}
ENTRIES = [(8, 32, 32), (8, 16, 16), (4, 8, 8)]


def changed(**kwargs: Any) -> dict[str, Any]:
    return {**HIERARCHICAL, "arch_kwargs": {**STAGES, **kwargs}}


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        (HIERARCHICAL, {}, {"strides": STAGES["strides"], "kernel_sizes": STAGES["kernel_sizes"], "entries": 3}),
        (UNET, {}, {"strides": UNET["arch_kwargs"]["strides"], "kernel_sizes": [[3, 3, 3]] * 3, "entries": 3}),
        # the backbone of BackbonePlans
        (
            {
                "network_class_name": "nnunetv2_ext.architectures.BackboneNetwork",
                "arch_kwargs": {"backbone": "PlainConvUNet", "backbone_kwargs": UNET["arch_kwargs"]},
                "_kw_requires_import": [],
            },
            {},
            {"strides": UNET["arch_kwargs"]["strides"], "kernel_sizes": [[3, 3, 3]] * 3, "entries": 3},
        ),
        # nnU-Net's rule: slices of 5 mm wait until the planes are as coarse
        (
            MNET,
            {},
            {
                "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]],
                "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
                "entries": 3,
            },
        ),
        # 72 is halved three times, where the rule would round it up to 80
        (
            MNET,
            {"patch_size": [8, 72, 40], "spacing": [9.0, 1.0, 1.0]},
            {
                "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 2, 2], [2, 1, 1]],
                "kernel_sizes": [[1, 3, 3], [1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
                "entries": 3,
            },
        ),
    ],
    ids=["its plans", "stock plans", "a backbone's plans", "MNet's plans", "a patch of other rules"],
)
def test_network(architecture: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]) -> None:
    manager = PlansManager(hand_made_plans(architecture, **changes))
    configuration = manager.get_configuration("3d_fullres")
    patch = list(configuration.patch_size)
    given = STAGES if architecture is HIERARCHICAL else {}
    with without_values():
        network: Any = HierarchicalTrainer.build_network_architecture(manager, configuration, 2, 4, False)
        same = HierarchicalSegmentor(2, 4, **{"spatial_shape": patch, **given, **expected})
        assert network(torch.zeros(1, 2, *patch)).shape == (1, 4, *patch)
    assert network.entry_shapes == same.entry_shapes and network.entry_shapes[0] == tuple(patch)
    assert {key: tensor.shape for key, tensor in network.state_dict().items()} == {
        key: tensor.shape for key, tensor in same.state_dict().items()
    }


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        (changed(), {"training": {"hierarchical": {"entry_weights": [1, 1]}}}, "2 numbers in .*expected 3, one per en"),
        (changed(), {"training": {"hierarchical": {"entry_weights": [1, -1, 1]}}}, "a list of numbers from 0"),
        (changed(), {"training": {"hierarchical": {"entry_weights": [0, 0, 0]}}}, "not all 0"),
        (changed(entries=1), {"training": {"hierarchical": {"entry_weights": [1, 0.5, 0.25]}}}, "expected 1, one per"),
        (changed(), {"patch_size": [8, 32, 36]}, r"a patch of \(8, 32, 36\) for HierarchicalSegmentor"),
        (
            changed(),
            {"patch_size": [8, 32, 16]},
            r"a patch of \(8, 32, 16\) .*the size \(8, 32, 32\) that it was built",
        ),
        (changed(spatial_shape=[8, 32, 36]), {}, r"a patch of \(8, 32, 36\) for HierarchicalSegmentor"),
        (UNET, {"patch_size": [8, 34, 32]}, r"a patch of \(8, 34, 32\) for HierarchicalSegmentor"),
        (MNET, {"patch_size": [8, 34, 32]}, r"a patch of \[8, 34, 32\] at .* multiples of 4 .*plan with Hierarchical"),
        (changed(stages=3), {}, r"arch_kwargs that HierarchicalSegmentor cannot take \(.*'stages'\)"),
        (MNET, {"training": {"hierarchical": {"weights": [1]}}}, "'training.hierarchical.weights'"),
    ],
)
def test_refused_plans(build: Build, architecture: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(hand_made_plans(architecture, **changes), trainer=HierarchicalTrainer)
    assert list((build.folder / "nnUNet_results").iterdir()) == []


def test_two_dimensions_and_other_trainers_are_refused(build: Build) -> None:
    with pytest.raises(InputError, match="the 2D configuration '2d'"):
        build(hand_made_plans(HIERARCHICAL), trainer=HierarchicalTrainer, configuration="2d")
    with pytest.raises(InputError, match="train with -tr HierarchicalTrainer"):
        build(hand_made_plans(training={"hierarchical": {"entry_weights": None}}))


def test_published_training_block(build: Build) -> None:
    trainer = build.initialized(hand_made_plans(HIERARCHICAL), trainer=HierarchicalTrainer)
    assert trainer.block == NNUNET_BLOCK | {
        "optimizer": {"name": "AdamW", "lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.05},
        "scheduler": {"name": "warmup_poly", "exponent": 0.9, "warmup_iterations": None},
        "grad_clip": 1.0,
        "hierarchical": {"entry_weights": None},
    }
    assert trainer.entry_weights == [1, 0.5, 0.25]
    assert "Entries: [8, 32, 32] with weight 1, [8, 16, 16] with weight 0.5, [4, 8, 8] with weight 0.25" in build.log()


def small(build: Build, *, labels: dict[str, Any] = LABELS, weights: Any = None, **training: Any) -> Any:
    block = {"epochs": 1, "iterations_per_epoch": 8, "scheduler": {"warmup_iterations": 2}, **training}
    block["hierarchical"] = {"entry_weights": weights}
    trainer = build.initialized(
        hand_made_plans(HIERARCHICAL, training=block), trainer=HierarchicalTrainer, labels=labels
    )
    trainer.on_train_epoch_start()
    return trainer


def batch_of(trainer: Any) -> dict[str, Any]:
    """A bright half in noise, as the loader hands it out: targets of every output."""
    torch.manual_seed(0)
    data = torch.randn(2, 1, 8, 32, 32)
    data[:, :, :, :16] += 3
    target = torch.zeros(2, 1, 8, 32, 32)
    target[:, :, :, :16] = 1
    target[:, :, :, :8] = 2
    manager = trainer.label_manager
    if manager.has_ignore_label:
        target[0] = 3  # nothing of the first sample is annotated
    if manager.has_regions:
        regions = [(target == 1) | (target == 2), target == 2]
        ignored = [target == 3] if manager.has_ignore_label else []
        target = torch.cat([*regions, *ignored], 1).float()
    targets = [target[:, :, :: 8 // z, :: 32 // y, :: 32 // x] for z, y, x in ENTRIES]
    return {"data": data, "target": targets, "keys": ["a", "b"]}


@pytest.mark.parametrize("labels", [LABELS, REGIONS, IGNORE, REGIONS_IGNORE], ids=["labels", "regions", "ig", "both"])
def test_a_step_passes_every_entry_and_its_loss_is_the_weighted_sum(build: Build, labels: dict[str, Any]) -> None:
    trainer = small(build, labels=labels)
    batch, seen, given = batch_of(trainer), [], []
    trainer.network.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    trainer.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    logged = trainer.train_step(batch)
    assert all(image._dynamo_static_indices == {2, 3, 4} for image in given)  # torch.compile would take minutes
    assert [tuple(one.shape[2:]) for one in seen] == ENTRIES
    assert set(logged) == {"loss", "entry_1", "entry_2", "entry_3"}
    assert logged["loss"] == pytest.approx(logged["entry_1"] + logged["entry_2"] / 2 + logged["entry_3"] / 4, rel=1e-5)
    assert all(parameter.grad is not None for parameter in trainer.network.parameters())
    assert np.isfinite(logged["loss"])
    # crops of the batch's own samples
    for crop in seen[1:]:
        for sample, whole in zip(crop, batch["data"], strict=True):
            patches = whole
            for axis, length in enumerate(crop.shape[2:], 1):
                patches = patches.unfold(axis, length, 1)
            assert (patches == sample.reshape(1, 1, 1, 1, *crop.shape[2:])).flatten(4).all(-1).any()


def test_losses_by_hand(build: Build) -> None:
    """The outputs of each entry again, on the crops that the step made: deep supervision for the patch alone."""
    trainer = small(build, weights=[1, 2, 0.5])
    batch, seen, made = batch_of(trainer), [], []
    trainer.network.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    whole = trainer.loss.loss
    whole.register_forward_hook(lambda module, inputs, output: made.append((inputs, output)))
    objective = trainer.objective(batch)
    (_, outputs), *of_crops = seen
    assert [len(output) for _, output in seen] == [3, 2, 1]
    expected = trainer.loss(outputs, batch["target"])
    torch.testing.assert_close(objective.terms["entry_1"], expected.detach())
    supervised = sum(weight > 0 for weight in trainer.loss.weight_factors)
    for number, (image, output), (given, value), weight in zip(
        (2, 3), of_crops, made[supervised : supervised + 2], (2, 0.5), strict=True
    ):
        logits, labels = given
        assert logits is output[0] and labels.shape[2:] == image.shape[2:]
        # labels lie as their image: bright where there is an organ
        assert image[labels > 0].mean() > 2 or not (labels > 0).any()
        torch.testing.assert_close(objective.terms[f"entry_{number}"], value.detach())
        expected = expected + weight * whole(output[0], labels)
    torch.testing.assert_close(objective.loss, expected)


def test_entries_without_weight_cost_nothing(build: Build) -> None:
    trainer = small(build, weights=[1, 0, 0.5])
    seen: list[Any] = []
    trainer.network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
    logged = trainer.train_step(batch_of(trainer))
    assert seen == [ENTRIES[0], ENTRIES[2]] and set(logged) == {"loss", "entry_1", "entry_3"}


def test_validation_is_that_of_the_patch(build: Build) -> None:
    trainer = small(build)
    seen: list[Any] = []
    trainer.network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
    trainer.network.eval()
    batch = batch_of(trainer)
    with torch.no_grad():
        logged = trainer.validation_step(batch)
        expected = trainer.loss(trainer.network(batch["data"]), batch["target"])
    assert seen == [ENTRIES[0]] * 2 and logged["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert set(logged) == {"loss", "tp_hard", "fp_hard", "fn_hard"}


def test_one_entry_trains_as_any_network(build: Build) -> None:
    plans = hand_made_plans(changed(entries=1))
    trainer = build.initialized(plans, trainer=HierarchicalTrainer)
    trainer.on_train_epoch_start()
    batch = batch_of(trainer)
    logged = trainer.train_step({**batch, "target": batch["target"][0]})
    assert logged["loss"] == logged["entry_1"] and not trainer.enable_deep_supervision


def test_it_learns_at_every_entry(build: Build) -> None:
    trainer = small(build, optimizer={"lr": 5e-3})
    batch = batch_of(trainer)
    steps = [trainer.train_step(batch) for _ in range(8)]
    for term in ("entry_1", "entry_2"):
        assert np.mean([step[term] for step in steps[-2:]]) < np.mean([step[term] for step in steps[:2]])


def test_the_seed_decides_on_the_crops(build: Build) -> None:
    trainer = small(build)
    batch, places = batch_of(trainer), []
    trainer.network.register_forward_pre_hook(lambda module, inputs: places.append(inputs[0].detach()))
    for seed in (3, 3, 4):
        seed_all(seed, EPOCHS)
        trainer.objective(batch)
    first, again, other = places[1:3], places[4:6], places[7:9]
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_places_of_crops() -> None:
    """Every place comes; with a centre, every one that holds it; samples have places of their own."""
    torch.manual_seed(0)
    numbers = torch.arange(5 * 6 * 7).reshape(1, 1, 5, 6, 7).float()
    pair = torch.cat([numbers, numbers])
    free, held, alike = set(), set(), 0
    for _ in range(600):
        first, second = crops([pair, 2 * pair], (5, 2, 3), [None, torch.tensor([[4, 1, 6]])])
        assert torch.equal(second, 2 * first)
        free.add(divmod(int(first[0].min()), 7))
        held.add(divmod(int(first[1].min()), 7))
        assert 4 * 42 + 1 * 7 + 6 in first[1]
        alike += torch.equal(first[0], first[1])
    assert free == {(row, column) for row in range(5) for column in range(5)}
    assert held == {(0, 4), (1, 4)}
    assert alike < 100


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_crops_hold_foreground_as_often_as_the_loaders_patches(build: Build, share: float) -> None:
    trainer = small(build, labels=IGNORE, oversample_foreground=share)
    batch = batch_of(trainer)
    target = torch.zeros(2, 1, 8, 32, 32)
    target[0] = 3  # no foreground to hold
    target[1, 0, 5, 30, 2] = 1
    centres = [trainer._centres(target) for _ in range(5)]
    expected = torch.tensor([[5, 30, 2]]) if share else None
    for first, second in centres:
        assert first is None
        assert second is None if expected is None else torch.equal(second, expected)
    assert np.isfinite(trainer.train_step(batch)["loss"])


def test_memory_counts_every_pass(build: Build) -> None:
    trainer = small(build)
    network = trainer.bare_network
    whole = [network.compute_conv_feature_map_size(shape) for shape in ENTRIES]
    assert trainer.feature_map_size() == pytest.approx(sum(whole)) and whole[0] > whole[1] > whole[2]
    assert f"of HierarchicalSegmentor: {memory_gb(sum(whole), 2):.1f} GB" in build.log()
    assert elements_of_entries(network, [0, 1, 0]) == whole[0] + whole[1]
