"""Trainings with a seed are the same to the last bit, stopped and resumed or not, with a data worker or without."""

import json
import random
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_ext.trainers.backbone import BackboneTrainer
from nnunetv2_ext.training.seeds import SeededBatches, seed_all, seeded
from nnunetv2_ext.weights.files import LATEST
from tests.training.conftest import UNET, Build, hand_made_plans

SHAPE, CASES, EPOCHS = (8, 20, 20), "abcde", 3
DROPOUT = deepcopy(UNET)
DROPOUT["arch_kwargs"] |= {"dropout_op": "torch.nn.modules.dropout.Dropout3d", "dropout_op_kwargs": {"p": 0.3}}


def write_cases(build: Build) -> None:
    data = build.preprocessed / "nnUNetPlans_3d_fullres"
    data.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(CASES):
        image = np.random.default_rng(number).normal(size=(1, *SHAPE)).astype(np.float32)
        labels = (image > 0).astype(np.int8) + (image > 0.7)
        places = {label: np.argwhere(labels == label) for label in (1, 2)}
        block = (1, 8, 10, 10)
        nnUNetDatasetBlosc2.save_case(
            image, labels, {"class_locations": places}, str(data / name), chunks=block, blocks=block
        )
    (build.preprocessed / "splits_final.json").write_text(json.dumps([{"train": ["a", "b", "c"], "val": ["d", "e"]}]))
    (build.preprocessed / "dataset_fingerprint.json").write_text("{}")


class Stopped(Exception):
    pass


def trained(
    build: Build, seed: int | None, *, stop: int | None = None, resume: bool = False, iterations: int = 2
) -> dict[str, torch.Tensor]:
    """The weights after a training, or after the epochs before the one in which it stops."""
    if not build.preprocessed.exists():
        write_cases(build)
    block = {"epochs": EPOCHS, "iterations_per_epoch": iterations, "val_iterations_per_epoch": 1, "seed": seed}
    plans = hand_made_plans(DROPOUT, patch_size=[8, 16, 16], training=block)
    trainer = build(plans, trainer=BackboneTrainer, resume=resume)
    trainer.plot_network_architecture = lambda: None
    if resume:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / LATEST))
    start = trainer.on_train_epoch_start

    def stops() -> None:
        if trainer.current_epoch == stop:
            raise Stopped
        start()

    trainer.on_train_epoch_start = stops
    try:
        trainer.run_training()
    except Stopped:
        for batches in (trainer.dataloader_train, trainer.dataloader_val):
            if hasattr(batches, "_finish"):
                batches._finish()
    weights: dict[str, torch.Tensor] = deepcopy(trainer.bare_network.state_dict())
    return weights


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_seeded_training_is_the_same_with_a_worker_and_when_resumed(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.MetaLogger.plot_progress_png", lambda *_: None)
    unbroken = trained(build, 7)
    for workers in ("0", "1"):
        monkeypatch.setenv("nnUNet_n_proc_DA", workers)
        torch.manual_seed(99)
        np.random.seed(99)  # noqa: NPY002
        stopped = trained(build, 7, stop=1)
        assert not same(stopped, unbroken)
        torch.manual_seed(98)
        resumed = trained(build, 7, resume=True)
        assert same(resumed, unbroken), f"resumed with {workers} workers"
    assert same(trained(build, 7), unbroken), "a whole training with one worker"


def test_another_seed_and_no_seed_give_other_weights(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.MetaLogger.plot_progress_png", lambda *_: None)
    weights = [trained(build, seed, stop=0) for seed in (7, 8, None, None)]
    assert not any(same(weights[first], weights[second]) for first, second in [(0, 1), (0, 2), (2, 3)])
    assert same(weights[0], trained(build, 7, stop=0)), "the initial weights follow from the seed"


class Draws:
    """A loader that hands out what it draws."""

    def __init__(self) -> None:
        self.worker: int | None = None

    def set_thread_id(self, worker: int) -> None:
        self.worker = worker

    def __next__(self) -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(1))  # noqa: NPY002


def test_each_batch_follows_from_its_number() -> None:
    batches = SeededBatches(Draws(), (7, 2, 0), 0, 1)
    drawn = [next(batches) for _ in range(6)]
    assert len({value for batch in drawn for value in batch}) == 18
    later = SeededBatches(Draws(), (7, 2, 0), 4, 1)
    assert [next(later), next(later)] == drawn[4:]
    assert next(SeededBatches(Draws(), (7, 3, 0), 0, 1)) != drawn[0], "validation has numbers of its own"
    for worker in range(2):
        shared = SeededBatches(Draws(), (7, 2, 0), 0, 2)
        shared.set_thread_id(worker)
        assert shared.loader.worker == worker
        assert [next(shared) for _ in range(3)] == drawn[worker::2]


def test_drawing_a_batch_leaves_the_other_random_numbers() -> None:
    seed_all(7, 1)
    expected = next(Draws())
    seed_all(7, 1)
    with seeded(1, 2):
        next(Draws())
    assert next(Draws()) == expected
