"""Predictor: images in memory and in files, from several threads, in a region; models that do not agree."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext import Predictor
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference.folder import predict_folder
from nnunetv2_ext.inference.region import Region, region_of_model
from nnunetv2_ext.inference.roi import ROI
from nnunetv2_ext.inference.single import Options
from tests.tiny_models import DESCRIPTION, LABELS, plans, write_images, write_model

FAST = Options(mirroring=False)
NAMES = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_model(folder, name) for name in NAMES}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "images", 2)


@pytest.fixture(scope="module")
def predictor(models: dict[str, Path]) -> Predictor:
    return Predictor(models["3d_fullres"], device="cpu", options=FAST)


def voxels(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


def test_the_same_labels_of_file_image_and_array(predictor: Predictor, images: Path) -> None:
    path = images / "c0_0000.nii.gz"
    image = sitk.ReadImage(str(path))
    # more digits than a NIfTI file holds
    image.SetOrigin((1 / 3, -np.pi, 1e-7))
    of_file, of_image = predictor.predict(path), predictor.predict([image])
    of_array = predictor.predict(voxels(image)[None], spacing=image.GetSpacing()[::-1])
    assert len(np.unique(of_array)) == 3 and of_array.dtype == np.uint8
    assert np.array_equal(voxels(of_file), of_array) and np.array_equal(voxels(of_image), of_array)
    assert of_image.GetOrigin() == image.GetOrigin() and of_image.GetSpacing() == image.GetSpacing()
    assert of_file.GetOrigin() == sitk.ReadImage(str(path)).GetOrigin()


def test_threads_share_a_predictor(predictor: Predictor, images: Path) -> None:
    paths = sorted(images.iterdir()) * 3
    expected = [voxels(predictor.predict(path)) for path in paths[:2]]
    with ThreadPoolExecutor(6) as pool:
        for number, labels in enumerate(pool.map(predictor.predict, paths)):
            assert np.array_equal(voxels(labels), expected[number % 2])


@pytest.mark.parametrize(
    ("array", "spacing", "told"),
    [
        (np.zeros((4, 5, 6)), (1, 1, 1), r"\(1, z, y, x\)"),
        (np.zeros((2, 4, 5, 6)), (1, 1, 1), r"\(1, z, y, x\)"),
        (np.zeros((1, 4, 5, 6)), None, "spacing None"),
        (np.zeros((1, 4, 5, 6)), (1, 0, 1), "spacing of 0"),
        (np.full((1, 4, 5, 6), np.nan), (1, 1, 1), "NaN"),
    ],
)
def test_wrong_arrays(predictor: Predictor, array: np.ndarray, spacing: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        predictor.predict(array, spacing=spacing)


def test_stages_and_preprocessed_data_are_shared(models: dict[str, Path], images: Path, tmp_path: Path) -> None:
    both = Predictor([models["3d_lowres"], models["3d_cascade_fullres"]], device="cpu", options=FAST)
    assert both.models[1].previous is both.models[0], "one network, asked once"
    case = both.logits(both.prepare(both.read([images / "c0_0000.nii.gz"])))
    assert list(case.predictions) == both.models
    for other, number in (("2d", 2), ("3d_fullres", 1)):
        several = Predictor([models["3d_fullres"], write_model(tmp_path, other)], device="cpu", options=FAST)
        assert len(several.prepare(several.read([images / "c0_0000.nii.gz"])).preprocessed) == number


def test_labels_of_the_first_stage_come_with_the_image(models: dict[str, Path], images: Path) -> None:
    path = images / "c0_0000.nii.gz"
    whole = Predictor(models["3d_cascade_fullres"], device="cpu", options=FAST)
    first = Predictor(models["3d_lowres"], device="cpu", options=FAST)
    second = Predictor(models["3d_cascade_fullres"], device="cpu", options=FAST, previous=True)
    labels = voxels(first.predict(path))
    assert np.array_equal(voxels(second.predict(path, previous=labels)), voxels(whole.predict(path)))
    for wrong in (None, labels[1:]):
        with pytest.raises(InputError, match="labels of the stage before"):
            second.predict(path, previous=wrong)


def described(folder: Path, name: str, **changes: Any) -> Path:
    of_plans = plans(len(changes.get("channel_names", "1")), changes.pop("reader", "SimpleITKIO"))
    return write_model(folder, "2d", name=name, description={**DESCRIPTION, **changes}, of_plans=of_plans)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": {"background": 0, "tumour": 1, "liver": 2}}, "the label 'liver' = 1 in .*, but 2 in"),
        ({"channel_names": {"0": "CT"}}, "the channel 0"),
        ({"channel_names": {"0": "MR", "1": "CT"}}, "the number of channels"),
        ({"file_ending": ".mha"}, "file_ending"),
        ({"reader": "NibabelIO"}, "image_reader_writer"),
    ],
)
def test_models_that_do_not_agree(models: dict[str, Path], tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    other = described(tmp_path, "Dataset711_Other", **changes)
    with pytest.raises(InputError, match=told):
        Predictor([models["3d_fullres"], other], device="cpu")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weights": [1.0, 1.0]}, "2 weights for 1 members"),
        ({"weights": [-1.0]}, "-w -1; expected weights above 0"),
        ({"folds": ["3"]}, "fold_3"),
        ({"checkpoint": "checkpoint_best.pth"}, "no checkpoint_best.pth"),
        ({"region": Region(ROI())}, "--roi previous without a cascade"),
    ],
)
def test_wrong_options(models: dict[str, Path], options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Predictor(models["3d_fullres"], device="cpu", **options)


def test_a_step_size_and_a_first_stage_that_are_not_there(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a step size of 0"):
        Options(step_size=0.0)
    with pytest.raises(InputError, match="without the model of its first stage"):
        Predictor(write_model(tmp_path, "3d_cascade_fullres"), device="cpu")
    with pytest.raises(InputError, match="a model twice"):
        Predictor([models["2d"], models["2d"]], device="cpu")


def in_region(models: dict[str, Path], kind: str, masks: Path) -> Predictor:
    roi = ROI(grid="image", growth=False, margin=2.0)
    if kind == "masks":
        region = Region(roi, folder=masks)
    elif kind == "previous":
        region = Region(roi)
        return Predictor(models["3d_cascade_fullres"], device="cpu", options=FAST, region=region)
    else:
        of_region = Predictor(models["3d_lowres"], device="cpu", options=FAST)
        region = region_of_model(roi, of_region, 2.0)
    return Predictor(models["3d_fullres"], device="cpu", options=FAST, region=region)


@pytest.mark.parametrize("kind", ["masks", "model", "previous"])
def test_in_a_region(models: dict[str, Path], images: Path, tmp_path: Path, kind: str) -> None:
    masks, output = tmp_path / "masks", tmp_path / "output"
    predict_folder(Predictor(models["3d_lowres"], device="cpu", options=FAST), images, masks)
    inside = in_region(models, kind, masks)
    assert predict_folder(inside, images, output).written == ["c0", "c1"]
    assert predict_folder(inside, images, output).kept == ["c0", "c1"]
    told = json.loads((output / "roi.json").read_text())
    entry = next(iter(told["c0"].values()))
    assert entry["boxes_voxels"] and entry["windows_computed"] <= entry["windows_of_all"]
    assert entry["margin_mm"] == 2 and (entry["seconds_roi_model"] is not None) == (kind != "masks")
    whole = "3d_cascade_fullres" if kind == "previous" else "3d_fullres"
    expected = voxels(Predictor(models[whole], device="cpu", options=FAST).predict(images / "c0_0000.nii.gz"))
    labels = voxels(sitk.ReadImage(str(output / "c0.nii.gz")))
    assert np.array_equal(labels[labels > 0], expected[labels > 0])
    if kind == "model":
        made, asked = (voxels(sitk.ReadImage(str(place / "c0.nii.gz"))) for place in (output / "roi", masks))
        assert np.array_equal(made, asked)


def test_an_empty_mask_is_told(models: dict[str, Path], images: Path, tmp_path: Path) -> None:
    for path in images.glob("*_0000.nii.gz"):
        image = sitk.ReadImage(str(path))
        mask = sitk.Image(image.GetSize(), sitk.sitkUInt8)
        mask.CopyInformation(image)
        sitk.WriteImage(mask, str(tmp_path / path.name.replace("_0000", "")))
    region = Region(ROI(), folder=tmp_path)
    inside = Predictor(models["3d_fullres"], device="cpu", options=FAST, region=region)
    messages = {}
    outcome = predict_folder(inside, images, tmp_path / "o", tell=lambda event: messages.update({event[0]: event[-1]}))
    why = "the mask is empty; the whole image was predicted"
    assert outcome.notes == messages == {"c0": why, "c1": why}
    expected = Predictor(models["3d_fullres"], device="cpu", options=FAST).predict(images / "c0_0000.nii.gz")
    assert np.array_equal(voxels(sitk.ReadImage(str(tmp_path / "o" / "c0.nii.gz"))), voxels(expected))


def test_regions_that_cannot_be(models: dict[str, Path], images: Path, tmp_path: Path) -> None:
    of_region = Predictor(models["3d_lowres"], device="cpu", options=FAST)
    with pytest.raises(InputError, match=r"no roi block .*calibrate_roi"):
        region_of_model(ROI(), of_region, None)
    with pytest.raises(InputError, match="--roi-labels 7"):
        region_of_model(ROI(labels=[7]), of_region, 0.0)
    other = described(tmp_path, "Dataset711_Other", channel_names={"0": "CT"}, labels=LABELS)
    with pytest.raises(InputError, match=r"the model of the region .* of ct"):
        Predictor(models["2d"], device="cpu", region=Region(ROI(), Predictor(other, device="cpu")))
    masks = tmp_path / "masks"
    masks.mkdir()
    with pytest.raises(InputError, match=r"no mask .* of the case c0"):
        predict_folder(
            Predictor(models["2d"], device="cpu", region=Region(ROI(), folder=masks)), images, tmp_path / "output"
        )
