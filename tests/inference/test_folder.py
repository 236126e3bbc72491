"""A folder of images: what is done stays, what fails is told, nothing half made is left."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch

from nnunetv2_ext.data import volumes
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference import folder as of_folder
from nnunetv2_ext.inference.folder import Event, Outcome, predict_folder
from nnunetv2_ext.inference.predictor import Predictor
from nnunetv2_ext.inference.record import Part
from nnunetv2_ext.inference.region import Region
from nnunetv2_ext.inference.roi import ROI
from nnunetv2_ext.inference.single import Options
from tests.inference.predictions import label_files, names
from tests.tiny_models import DESCRIPTION, plans, write_image, write_images, write_model

CASES = ["c0", "c1", "c2"]
FAST = Options(mirroring=False, step_size=1.0)
DESCRIPTIONS = ["dataset.json", "plans.json", "predict.json"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor(model, device="cpu", options=FAST)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 3, shape=(4, 24, 20))


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "output"
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part") or "unfinished" in path.name]


def of(outcome: Outcome) -> tuple[list[str], list[str], list[str]]:
    return outcome.written, outcome.kept, list(outcome.failed)


def test_a_second_run_does_what_is_left(predictor: Predictor, images: Path, output: Path) -> None:
    def run(**options: Any) -> tuple[list[str], list[str], list[str]]:
        return of(predict_folder(predictor, images, output, **options))

    assert run() == (CASES, [], [])
    assert names(output) == sorted([*(f"{case}.nii.gz" for case in CASES), *DESCRIPTIONS])
    before = label_files(output)
    assert run() == ([], CASES, [])
    (output / "c1.nii.gz").unlink()
    assert run() == (["c1"], ["c0", "c2"], [])
    (output / "c1.nii.gz").write_bytes((output / "c1.nii.gz").read_bytes()[:-5])
    assert run() == (["c1"], ["c0", "c2"], [])
    (images / "c2_0000.nii.gz").touch()
    assert run() == ([], CASES, []), "the same content at another time"
    shutil.copy(images / "c0_0000.nii.gz", images / "c2_0000.nii.gz")
    assert run() == (["c2"], ["c0", "c1"], [])
    assert np.array_equal(label_files(output)["c2.nii.gz"], before["c0.nii.gz"])
    assert run(probabilities=True) == (CASES, [], [])
    assert run() == ([], CASES, [])
    assert run(overwrite=True) == (CASES, [], [])
    record = json.loads((output / "predict.json").read_text())
    assert list(record["cases"]) == CASES and not record["failed"]
    assert record["cases"]["c0"]["seconds"].keys() == {"read", "preprocess", "network", "export", "write"}
    assert record["cases"]["c0"]["peak_memory_mib"].keys() == {"network", "write"}


@pytest.mark.parametrize("options", [{"options": Options(mirroring=True)}, {"folds": [0], "options": Options()}])
def test_other_models_and_options_do_not_mix(
    predictor: Predictor, model: Path, images: Path, output: Path, options: dict[str, Any]
) -> None:
    predict_folder(predictor, images, output)
    other = Predictor(model, device="cpu", **options)
    with pytest.raises(InputError, match=r"with other options in .*; replace all predictions there with --overwrite"):
        predict_folder(other, images, output)
    changed = write_model(output.parent, "2d")
    with pytest.raises(InputError, match="of another model"):
        predict_folder(Predictor(changed, device="cpu", options=FAST), images, output)
    assert of(predict_folder(other, images, output, overwrite=True)) == (CASES, [], [])
    record = json.loads((output / "predict.json").read_text())
    (output / "predict.json").write_text(json.dumps({**record, "roi": {"grid": "box"}}))
    with pytest.raises(InputError, match="with other roi in"):
        predict_folder(other, images, output)


def test_files_of_which_no_record_tells(predictor: Predictor, images: Path, output: Path) -> None:
    predict_folder(predictor, images, output)
    (output / "predict.json").rename(output / "predict_from_raw_data_args.json")  # a file of nnU-Net's
    with pytest.raises(InputError, match=r"3 files .* of which no predict.json tells.*--continue_prediction"):
        predict_folder(predictor, images, output)
    (output / "c1.nii.gz").write_bytes(b"")  # as nnU-Net leaves it on a full disk
    (output / "c2.nii.gz").unlink()
    assert of(predict_folder(predictor, images, output, keep=True)) == (["c1", "c2"], ["c0"], [])


def nan(path: Path) -> None:
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    image[0, 0, 0] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(image), str(path))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (nan, "1 voxels of c1_0000.nii.gz that are NaN"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "unreadable file"),
        (lambda path: write_image(path.with_name("c1_0001.nii.gz"), 0, (4, 24, 20)), "2 files .* of 2 channels"),
        (lambda path: path.rename(path.with_name("c1_0001.nii.gz")), "without a gap"),
        (lambda path: write_image(path, 0, (24, 20), (1.0, 1.0)), "of 2 dimensions"),
    ],
)
def test_a_bad_image_stops_no_other(
    predictor: Predictor, images: Path, output: Path, spoil: Callable[[Path], Any], told: str
) -> None:
    spoil(images / "c1_0000.nii.gz")
    events: list[Event] = []
    outcome = predict_folder(predictor, images, output, tell=events.append)
    assert of(outcome) == (["c0", "c2"], [], ["c1"])
    assert re.search(told, outcome.failed["c1"])
    assert not (output / "c1.nii.gz").exists()
    assert json.loads((output / "predict.json").read_text())["failed"].keys() == {"c1"}
    assert sorted((event.case, event.status) for event in events) == [
        ("c0", "written"),
        ("c1", "failed"),
        ("c2", "written"),
    ]
    assert [event.done for event in events] == [1, 2, 3] and events[-1].left == 0


def test_a_case_that_the_network_fails_on(
    model: Path, images: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, calls = Predictor(model, device="cpu", options=FAST), []
    logits = predictor.models[0].window.logits

    def fail(data: torch.Tensor, **options: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate\n9 GB")
        return logits(data, **options)

    monkeypatch.setattr(predictor.models[0].window, "logits", fail)
    outcome = predict_folder(predictor, images, output)
    assert of(outcome) == (["c0", "c2"], [], ["c1"])
    assert outcome.failed["c1"] == "RuntimeError: CUDA out of memory. Tried to allocate"


def test_a_full_disk_leaves_whole_cases(
    predictor: Predictor, images: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = volumes.sitk.WriteImage

    def full(image: Any, name: str, packed: bool) -> None:
        """What ITK does on a full disk: a short file, and no error."""
        write(image, name, packed)
        if Path(name).name == "c1.nii.gz":
            Path(name).write_bytes(Path(name).read_bytes()[:40])

    monkeypatch.setattr(volumes.sitk, "WriteImage", full)
    with pytest.raises(InputError, match=rf"^got an error on writing {output} \(.*; make room there\.$"):
        predict_folder(predictor, images, output)
    assert "c1.nii.gz" not in names(output) and "c0.nii.gz" in names(output)
    monkeypatch.setattr(volumes.sitk, "WriteImage", write)
    outcome = predict_folder(predictor, images, output)
    assert "c0" in outcome.kept and "c1" in outcome.written and not outcome.failed


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_ended_from_outside(
    model: Path, images: Path, output: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, calls = Predictor(model, device="cpu", options=FAST), []
    logits = predictor.models[0].window.logits

    def end(data: torch.Tensor, **options: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return logits(data, **options)

    monkeypatch.setattr(predictor.models[0].window, "logits", end)
    with pytest.raises(error):
        predict_folder(predictor, images, output)
    assert names(output) == sorted(["c0.nii.gz", *DESCRIPTIONS])
    assert of(predict_folder(predictor, images, output)) == (["c1", "c2"], ["c0"], [])


def test_killed_between_record_and_file(
    predictor: Predictor, images: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record tells of a case before its file is there, so that no file is taken for a stranger's."""
    replace = Path.replace

    def kill(path: Path, target: Path) -> Path:
        if path.name == "c1.nii.gz":
            raise SystemExit  # which no handler of errors takes
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(of_folder.Path, "replace", kill)
        with pytest.raises(SystemExit):
            predict_folder(predictor, images, output)
    assert "c1" in json.loads((output / "predict.json").read_text())["cases"]
    (output / ".unfinished").mkdir()  # which a killed process leaves
    assert "c1" in predict_folder(predictor, images, output).written


def test_parts_fill_one_folder(predictor: Predictor, images: Path, output: Path) -> None:
    assert of(predict_folder(predictor, images, output, part=Part(1, 2))) == (["c1"], [], [])
    assert of(predict_folder(predictor, images, output, part=Part(0, 2))) == (["c0", "c2"], [], [])
    assert {"predict_0_of_2.json", "predict_1_of_2.json"} <= set(names(output))
    assert of(predict_folder(predictor, images, output)) == ([], CASES, []), "the parts' records are read"


@pytest.mark.parametrize(
    ("place", "told"),
    [(lambda images: images, "as input and output"), (lambda images: images / "c0_0000.nii.gz", "a file")],
)
def test_no_place_to_write(predictor: Predictor, images: Path, place: Callable[[Path], Path], told: str) -> None:
    before = names(images)
    with pytest.raises(InputError, match=told):
        predict_folder(predictor, images, place(images))
    assert names(images) == before


def test_one_file(predictor: Predictor, images: Path, output: Path) -> None:
    assert of(predict_folder(predictor, images / "c1_0000.nii.gz", output)) == (["c1"], [], [])


def test_threads_write_the_same(predictor: Predictor, images: Path, output: Path) -> None:
    predict_folder(predictor, images, output)
    several = output.with_name("several")
    predict_folder(predictor, images, several, readers=3, writers=2)
    one, other = label_files(output), label_files(several)
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_an_overwriting_run_that_was_ended_goes_on(
    predictor: Predictor, model: Path, images: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of other models are never taken for this one's, nor for a stranger's."""
    predict_folder(Predictor(model, device="cpu", options=Options(step_size=1.0)), images, output, part=Part(0, 2))
    before = label_files(output)

    def end(*_: Any, **__: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predictor.models[0].window, "logits", end)
        with pytest.raises(KeyboardInterrupt):
            predict_folder(predictor, images, output, overwrite=True)
    assert of(predict_folder(predictor, images, output)) == (CASES, [], [])
    assert "predict_0_of_2.json" not in names(output)
    assert of(predict_folder(predictor, images, output)) == ([], CASES, [])
    assert before.keys() < label_files(output).keys()


def test_an_edited_label_file_stays(predictor: Predictor, images: Path, output: Path) -> None:
    predict_folder(predictor, images, output)
    label = output / "c1.nii.gz"
    edited = sitk.ReadImage(str(label)) * 0 + 2
    sitk.WriteImage(edited, str(label))
    outcome = predict_folder(predictor, images, output)
    assert of(outcome) == ([], CASES, []) and "was edited" in outcome.notes["c1"]
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(label))).min() == 2
    assert of(predict_folder(predictor, images, output, overwrite=True)) == (CASES, [], [])
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(label))).min() == 0


def test_probabilities_are_never_of_another_prediction(
    predictor: Predictor, model: Path, images: Path, output: Path
) -> None:
    predict_folder(predictor, images, output, probabilities=True)
    for name in ("c0.npz", "c0.pkl"):
        (output / name).unlink()
    assert of(predict_folder(predictor, images, output)) == ([], CASES, []), "they are not asked for"
    shutil.copy(images / "c0_0000.nii.gz", images / "c1_0000.nii.gz")
    assert of(predict_folder(predictor, images, output)) == (["c1"], ["c0", "c2"], [])
    assert [path.name for path in output.glob("c1.*")] == ["c1.nii.gz"]
    other = Predictor(model, device="cpu", options=Options(step_size=1.0))
    predict_folder(other, images, output, overwrite=True)
    assert not [*output.glob("*.npz"), *output.glob("*.pkl")]


@pytest.mark.parametrize("what", ["masks", "previous"])
def test_the_inputs_are_no_output(model: Path, images: Path, tmp_path: Path, what: str) -> None:
    folder = write_images(tmp_path / "masks", 1)
    if what == "masks":
        predictor = Predictor(model, device="cpu", region=Region(ROI(), folder=folder))
        options: dict[str, Any] = {}
    else:
        for name in ("3d_lowres", "3d_cascade_fullres"):
            second = write_model(tmp_path, name)
        predictor = Predictor(second, device="cpu", previous=True)
        options = {"previous": folder}
    with pytest.raises(InputError, match="as input and output"):
        predict_folder(predictor, images, folder, overwrite=True, **options)


def test_a_bad_image_with_masks(model: Path, images: Path, output: Path) -> None:
    masks = output.with_name("masks")
    masks.mkdir()
    for case in CASES:
        image = sitk.ReadImage(str(images / f"{case}_0000.nii.gz"))
        sitk.WriteImage(sitk.Cast(image > 0, sitk.sitkUInt8), str(masks / f"{case}.nii.gz"))
    (images / "c1_0000.nii.gz").write_text("no image")
    predictor = Predictor(model, device="cpu", region=Region(ROI(labels=(1,)), folder=masks))
    assert of(predict_folder(predictor, images, output)) == (["c0", "c2"], [], ["c1"])
    assert predict_folder(predictor, images, output).kept == ["c0", "c2"], "a tuple is a list to JSON"


def test_what_is_no_label_map(tmp_path: Path, images: Path, output: Path) -> None:
    for name in ("3d_lowres", "3d_cascade_fullres"):
        second = write_model(tmp_path, name)
    folder = tmp_path / "previous"
    folder.mkdir()
    for case in CASES:
        shutil.copy(images / f"{case}_0000.nii.gz", folder / f"{case}.nii.gz")
    outcome = predict_folder(Predictor(second, device="cpu", previous=True), images, output, previous=folder)
    assert "a whole number in every voxel" in outcome.failed["c0"]


def test_tiff_with_its_spacing(tmp_path: Path, output: Path) -> None:
    description = {**DESCRIPTION, "file_ending": ".tif"}
    model = write_model(tmp_path, description=description, of_plans=plans(reader="Tiff3DIO"))
    images = tmp_path / "tiff"
    images.mkdir()
    voxels = np.random.default_rng(0).normal(size=(5, 24, 20)).astype(np.float32)
    tifffile.imwrite(images / "a_0000.tif", voxels)
    (images / "a.json").write_text('{"spacing": [3.0, 1.0, 1.0]}')
    predictor = Predictor(model, device="cpu", options=FAST)
    assert of(predict_folder(predictor, images, output)) == (["a"], [], [])
    assert json.loads((output / "a.json").read_text()) == {"spacing": [3.0, 1.0, 1.0]}
    assert of(predict_folder(predictor, images, output)) == ([], ["a"], [])
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.0, 1.0, 3.0))
    of_image = sitk.GetArrayFromImage(predictor.predict(image))
    assert np.array_equal(of_image, tifffile.imread(output / "a.tif"))
    (images / "a.json").write_text('{"spacing": [6.0, 2.0, 2.0]}')
    assert of(predict_folder(predictor, images, output)) == (["a"], [], [])


def test_windows_are_told(predictor: Predictor, images: Path, output: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    predict_folder(predictor, images, output, watch=lambda *told: seen.append(told))
    assert seen[-1][0] == "c2" and seen[-1][1] == seen[-1][2] >= 1
