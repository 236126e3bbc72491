"""`nnunetv2_ext predict` gives the labels and probabilities of nnU-Net's own prediction, for every kind of model."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_ext.cli import main
from nnunetv2_ext.registry import TRAINERS
from tests.tiny_models import DESCRIPTION, LABELS, NAME, NUMBER, plans, write_images, write_model
from tests.warm import light_nnunet

REGIONS: dict[str, Any] = {"labels": {"background": 0, "whole": [1, 2], "tumour": 2}, "regions_class_order": [1, 2]}
IGNORED = {"labels": {**LABELS, "ignore": 3}}
CHANNELS = {"channel_names": {str(number): f"c{number}" for number in range(4)}}
MNET = {"features_per_stage": [4, 5, 6, 7, 8], "merge": "difference", "min_pool_slices": 8}

STEP = 1e-3  # of probabilities, where half precision rounds logits to a neighbour


class Kind(NamedTuple):
    """A model and its images."""

    configuration: str = "3d_fullres"
    trainer: str = "nnUNetTrainer"
    description: Mapping[str, Any] = {}
    plans: Mapping[str, Any] = {}
    network: tuple[str, Mapping[str, Any]] | None = None
    image: Mapping[str, Any] = {}
    folds: Sequence[int] = (0,)
    mirroring: bool = True
    drawn: str = ""
    """See `write_model`."""

    @property
    def ending(self) -> str:
        return self.description.get("file_ending", ".nii.gz")


KINDS = {
    "2d": Kind("2d"),
    "3d_fullres, two folds": Kind(folds=(0, 1)),
    "regions": Kind(description=REGIONS),
    "regions and ignored": Kind(description={**REGIONS, "labels": {**REGIONS["labels"], "ignore": 3}}),
    "ignored": Kind(description=IGNORED),
    "one slice": Kind(image={"shape": (1, 26, 28)}),
    "one slice of 2d": Kind("2d", image={"shape": (1, 26, 28)}),
    "thin slices": Kind(image={"shape": (12, 20, 20), "spacing": (1.0, 1.1, 0.9)}),
    "four channels of NRRD": Kind(
        description={**CHANNELS, "file_ending": ".nrrd"}, plans={"channels": 4}, image={"channels": 4}
    ),
    "MHA": Kind(description={"file_ending": ".mha"}),
    "nibabel": Kind(plans={"reader": "NibabelIOWithReorient"}),
    "slices along x": Kind(
        plans={"transpose": (2, 0, 1)}, image={"shape": (26, 28, 7), "spacing": (1.2, 0.9, 3.5)}
    ),
}  # fmt: skip
OURS = {entry.name: Kind(trainer=entry.name, mirroring=False) for entry in TRAINERS}
OURS["MNetTrainer"] = OURS["MNetTrainer"]._replace(network=("nnunetv2_ext.architectures.MNet", MNET))
# the other head's boxes, untrained, have no voxel
OURS["DetectorTrainer"] = OURS["DetectorTrainer"]._replace(
    network=("nnunetv2_ext.architectures.ROIDetector", {"head": "pooled"}), drawn="boxes."
)
# residual steps of weights drawn wide grow beyond half precision
OURS["HierarchicalTrainer"] = OURS["HierarchicalTrainer"]._replace(drawn="seg_layers.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's three folders, for this process; its pools fork here, see `light_nnunet`."""
    folder = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch, light_nnunet():
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (folder / variable).mkdir()
            patch.setenv(variable, str(folder / variable))
        # one thread on either side: with as many, convolutions sum in the same order
        patch.setattr(os, "cpu_count", lambda: 1)
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


def stock(
    model: Path,
    images: Path,
    output: Path,
    *,
    folds: Sequence[int] = (0,),
    previous: Path | None = None,
    mirroring: bool = True,
) -> Path:
    """What nnUNetv2_predict --save_probabilities -npp 0 -nps 0 does, in this process."""
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), use_folds=tuple(folds))
        output.mkdir()
        predictor.predict_from_files_sequential(
            str(images),
            str(output),
            save_probabilities=True,
            folder_with_segs_from_prev_stage=None if previous is None else str(previous),
        )
    return output


def ours(flags: str, images: Path, output: Path, status: int = 0) -> Path:
    assert main(["predict", "-i", str(images), "-o", str(output), "-device", "cpu", *flags.split()]) == status
    return output


def probabilities(folder: Path, case: str) -> np.ndarray:
    return np.load(folder / f"{case}.npz")["probabilities"].astype(np.float64)


def check_same(first: Path, second: Path, *, ending: str = ".nii.gz") -> None:
    """The labels of two folders are the same, and their places, and the probabilities."""
    names = sorted(path.name for path in first.glob(f"*{ending}"))
    assert names and names == sorted(path.name for path in second.glob(f"*{ending}"))
    for name in names:
        one, other = (sitk.ReadImage(str(folder / name)) for folder in (first, second))
        for trait in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection", "GetPixelIDTypeAsString"):
            assert getattr(one, trait)() == getattr(other, trait)(), trait
        case = name.removesuffix(ending)
        expected = probabilities(first, case)
        check_close(probabilities(second, case), expected)
        differing = sitk.GetArrayFromImage(one) != sitk.GetArrayFromImage(other)
        assert not (differing & ~ties(expected).reshape(differing.shape)).any()
        assert differing.mean() < 1e-3


def check_close(given: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for float error, which now and then rounds a logit to its neighbour in half precision."""
    assert given.shape == expected.shape
    difference = np.abs(given - expected)
    assert difference.max() < STEP
    assert (difference > 1e-5).mean() < 0.1


def ties(probabilities: np.ndarray) -> np.ndarray:
    """Where two labels are as probable, or a region is as its absence, but for float error."""
    highest = np.sort(probabilities, 0)[::-1]
    two = highest[0] - highest[1] < STEP if len(highest) > 1 else np.zeros(highest[0].shape, bool)
    return two | (np.abs(probabilities - 0.5).min(0) < STEP)


def model_of(folder: Path, kind: Kind, name: str = NAME) -> Path:
    of_plans = plans(**kind.plans)
    if kind.network is not None:
        architecture = {
            "network_class_name": kind.network[0],
            "arch_kwargs": kind.network[1],
            "_kw_requires_import": [],
        }
        of_plans["configurations"][kind.configuration]["architecture"] = architecture
    return write_model(
        folder,
        kind.configuration,
        trainer=kind.trainer,
        name=name,
        description={**DESCRIPTION, **kind.description},
        of_plans=of_plans,
        folds=kind.folds,
        drawn=kind.drawn,
    )


@pytest.mark.parametrize("name", [*KINDS, *OURS])
def test_the_labels_of_nnunet(folder: Path, tmp_path: Path, name: str) -> None:
    kind = {**KINDS, **OURS}[name]
    number = 720 + [*KINDS, *OURS].index(name)
    model = model_of(folder, kind, f"Dataset{number}_Kind")
    images = write_images(tmp_path / "images", 1, ending=kind.ending, **kind.image)
    expected = stock(model, images, tmp_path / "stock", folds=kind.folds, mirroring=kind.mirroring)
    flags = f"-d {number} -tr {kind.trainer} -c {kind.configuration} --save_probabilities"
    flags += " --disable_tta" * (not kind.mirroring)
    given = ours(f"{flags} -f {' '.join(map(str, kind.folds))}", images, tmp_path / "ours")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(expected / f"c0{kind.ending}")))
    assert len(np.unique(labels)) > 1, "a test of one label would show little"
    check_same(expected, given, ending=kind.ending)


@pytest.fixture(scope="module")
def members(folder: Path) -> tuple[dict[str, Path], Path]:
    """nnU-Net's predictions of two images by 2D, 3D and both stages of the cascade, and the folder of images."""
    images = write_images(folder / "images", 2)
    predictions: dict[str, Path] = {}
    for configuration in ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"):
        model = write_model(folder, configuration)
        previous = predictions["3d_lowres"] if configuration == "3d_cascade_fullres" else None
        predictions[configuration] = stock(model, images, folder / f"stock_{configuration}", previous=previous)
    return predictions, images


def test_cascade(members: tuple[dict[str, Path], Path], tmp_path: Path) -> None:
    predictions, images = members
    flags = f"-d {NUMBER} -c 3d_cascade_fullres --save_probabilities"
    check_same(predictions["3d_cascade_fullres"], ours(flags, images, tmp_path / "whole"))
    before = f"{flags} -prev_stage_predictions {predictions['3d_lowres']}"
    check_same(predictions["3d_cascade_fullres"], ours(before, images, tmp_path / "second"))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)])
def test_ensemble(members: tuple[dict[str, Path], Path], tmp_path: Path, weights: tuple[float, ...]) -> None:
    predictions, images = members
    configurations = ("2d", "3d_fullres", "3d_cascade_fullres")
    models = " ".join(f"nnUNetTrainer:nnUNetPlans:{configuration}" for configuration in configurations)
    flags = f"-d {NUMBER} -m {models} --save_probabilities -w {' '.join(map(str, weights))}"
    given = ours(flags, images, tmp_path / "ours")
    for case in ("c0", "c1"):
        each = [probabilities(predictions[configuration], case) for configuration in configurations]
        mean = np.average(each, axis=0, weights=weights)
        check_close(probabilities(given, case), mean)
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(given / f"{case}.nii.gz")))
        assert np.array_equal(labels[~ties(mean)], mean.argmax(0)[~ties(mean)])


def test_lines_of_json(
    members: tuple[dict[str, Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for status in ("written", "kept"):
        ours(f"-d {NUMBER} -c 2d --json", members[1], tmp_path / "ours")
        *cases, end = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(case["event"], case["case"], case["status"], case["done"], case["of"]) for case in cases] == [
            ("case", "c0", status, 1, 2),
            ("case", "c1", status, 2, 2),
        ]
        assert cases[-1]["left"] == 0 and end["event"] == "end" and end[status] == ["c0", "c1"] and not end["failed"]


def test_inside_masks_that_nnunet_predicted(members: tuple[dict[str, Path], Path], tmp_path: Path) -> None:
    """Their folder holds plans.json, as that of a model; probabilities and files that are there go with a region."""
    predictions, images = members
    masks = predictions["3d_fullres"]
    flags = f"-d {NUMBER} -c 3d_fullres --roi {masks} --roi-margin 40 --save_probabilities"
    output = ours(flags, images, tmp_path / "ours")
    for case in ("c0", "c1"):  # a margin that holds the whole image
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(output / f"{case}.nii.gz")))
        given = probabilities(output, case)
        check_close(given, probabilities(masks, case))
        assert np.array_equal(labels[~ties(given)], given.argmax(0)[~ties(given)])
    (output / "predict.json").unlink()
    before = (output / "c0.nii.gz").stat().st_mtime_ns
    ours(f"{flags} --continue_prediction", images, output)
    assert (output / "c0.nii.gz").stat().st_mtime_ns == before
