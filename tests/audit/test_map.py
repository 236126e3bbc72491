"""Maps of small data sets: their training, a resume, what they predict, and what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_ext.audit import map as module
from nnunetv2_ext.audit.blocks import Block
from nnunetv2_ext.audit.clusters import find_clusters
from nnunetv2_ext.audit.map import CHECKPOINT, MapResult, run_map
from nnunetv2_ext.audit.readings import Reading
from nnunetv2_ext.audit.result import LatentMap
from nnunetv2_ext.audit.training import MapSettings, MapTraining
from nnunetv2_ext.data.volumes import read_labels
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.segmentations import Pair, count, masks, read_pair
from tests.audit.preprocessed import IGNORED, LABELS, REGIONS, Preprocessed, write_preprocessed

TINY = MapSettings(voxels=8 * 16 * 16, epochs=2, channels=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Preprocessed:
    return write_preprocessed(tmp_path_factory.mktemp("small"))


def make(of: Preprocessed, output: Path, settings: MapSettings = TINY, **options: Any) -> MapResult:
    output.mkdir(exist_ok=True)
    return run_map(of.data, of.plans, "3d_fullres", of.description, of.labels, output, settings=settings, **options)


def numbers(result: MapResult) -> list[np.ndarray]:
    of_readings = [array for one in result.readings for array in (one.latents, one.disagreement, one.rarity)]
    files = [read_labels(path) for path in result.predictions.values()]
    return [result.map.latents, result.map.clusters, *of_readings, *files]


def assert_same(one: MapResult, other: MapResult) -> None:
    for first, second in zip(numbers(one), numbers(other), strict=True):
        np.testing.assert_array_equal(first, second)


def test_seed_and_resume(small: Preprocessed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(small, tmp_path / "whole")
    assert_same(whole, make(small, tmp_path / "same"))
    other = make(small, tmp_path / "other", replace(TINY, seed=1))
    assert not np.array_equal(whole.map.latents, other.map.latents)

    train = MapTraining._train_epoch

    def killed(self: MapTraining) -> float:
        if self.epoch == 1:
            raise KeyboardInterrupt
        return train(self)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MapTraining, "_train_epoch", killed)
        make(small, tmp_path / "killed")
    assert torch.load(tmp_path / "killed" / CHECKPOINT, weights_only=True)["epoch"] == 1
    assert_same(whole, make(small, tmp_path / "killed"))

    def trained_again(self: MapTraining) -> float:
        raise AssertionError("a finished map is not trained again")

    monkeypatch.setattr(MapTraining, "_train_epoch", trained_again)
    assert_same(whole, make(small, tmp_path / "whole"))


def test_another_map_is_not_mixed_with_the_one_there(small: Preprocessed, tmp_path: Path) -> None:
    first = make(small, tmp_path)
    with pytest.raises(InputError, match=r"differs in epochs \(2 there, 3 now\).*--overwrite"):
        make(small, tmp_path, replace(TINY, epochs=3))
    before = {path: path.stat().st_mtime_ns for path in first.predictions.values()}
    anew = make(small, tmp_path, replace(TINY, epochs=3), overwrite=True)
    assert anew.readings[-1].epoch == 3
    assert all(path.stat().st_mtime_ns != before[path] for path in anew.predictions.values())

    def corrected(number: int, image: np.ndarray, label: np.ndarray) -> None:
        if number == 4:
            label[label == 2] = 1

    other = write_preprocessed(tmp_path / "other", change=corrected)
    with pytest.raises(InputError, match=r"differs in 1 case \(case_04\)"):
        make(other, tmp_path, replace(TINY, epochs=3))
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"--overwrite"):
        make(small, tmp_path, replace(TINY, epochs=3))


@pytest.mark.parametrize("task", [LABELS, IGNORED, REGIONS], ids=["labels", "ignore", "regions"])
def test_a_map_learns_and_scores(task: dict[str, Any], tmp_path: Path) -> None:
    def change(number: int, image: np.ndarray, label: np.ndarray) -> None:
        if task is IGNORED:
            label[:2] = 3
        if number == 7:
            label[..., : label.shape[2] // 2] = 0  # a half is missing

    made = write_preprocessed(tmp_path / "data", 14, task=task, change=change)
    result = make(made, tmp_path / "out", replace(TINY, epochs=8, channels=3))
    assert result.readings[-1].dice > 0.75
    assert result.labels == tuple(made.labels.of)
    assert result.disagreement.shape == result.ranks.shape == (14, 2)
    assert result.disagreement.mean(axis=1).argmax() == 7
    for case, path in result.predictions.items():
        pair = Pair(case, made.references / path.name, path)
        label, predicted = read_pair(pair, made.labels)  # on one grid
        if case == "case_07":
            sizes = [np.isin(one.values, (1, 2)).sum() for one in (label, predicted)]
            assert sizes[1] > 1.3 * sizes[0]


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_the_way_back_onto_the_labels_grid(
    transpose: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map that predicts the label of each block gives nearly the label files."""

    def perfect(network: Any, blocks: Any, *others: Any) -> Iterator[tuple[Block, torch.Tensor]]:
        for block in blocks.of:
            yield block, torch.nn.functional.one_hot(block.label.long(), 3).movedim(-1, 0) * 8.0 - 4

    def empty(number: int, image: np.ndarray, label: np.ndarray) -> None:
        image[:2] = image[:, :, -4:] = 0  # nnU-Net crops what is empty

    made = write_preprocessed(tmp_path / "data", transpose=transpose, change=empty)
    monkeypatch.setattr(module, "predictions", perfect)
    result = make(made, tmp_path / "out", replace(TINY, epochs=1, voxels=64**3))
    for case, path in result.predictions.items():
        label, predicted = read_pair(Pair(case, made.references / path.name, path), made.labels)
        for _, of in masks(label.values, predicted.values, made.labels.of, None):
            assert count(of)["Dice"] > 0.9


def test_refused(small: Preprocessed, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0.3 million parameters; expected 0.1 million.*--channels"):
        make(small, tmp_path, replace(TINY, channels=4, max_parameters=100_000))
    with pytest.raises(InputError, match=r"the configuration 2d of slices"):
        run_map(small.data, small.plans, "2d", small.description, small.labels, tmp_path, settings=TINY)
    few = write_preprocessed(tmp_path / "few", 9)
    with pytest.raises(InputError, match=r"9 preprocessed cases .* at least 10"):
        make(few, tmp_path)
    with pytest.raises(InputError, match=r"0 preprocessed cases"):
        make(few._replace(data=tmp_path / "nothing"), tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_ranks_are_the_means_of_disagreement_and_rarity_over_the_readings() -> None:
    latents, nan = np.zeros((3, 2)), np.nan
    values = [([[0.1, nan], [0.3, 0.5], [0.2, 0.5]], [3.0, 1, 2]), ([[0.1, 0.1], [0.3, 0.5], [0.2, 0.5]], [1.0, 2, 3])]
    readings = [
        Reading(1, 0.9, latents, find_clusters(latents), np.array(rarity), np.array(disagreement))
        for disagreement, rarity in values
    ]
    where = LatentMap(("a", "b", "c"), latents, np.zeros(3, int), nan, np.zeros(3))
    found = MapResult(where, ("liver", "spleen"), readings, {})
    np.testing.assert_allclose(found.ranks, [[1 / 6, 0], [5 / 12, 1 / 6], [5 / 12, 1 / 3]])
