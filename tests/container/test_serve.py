"""One case a run: the labels of `predict`, where the image lies, or one sentence."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_ext.container.serve import cpus, main
from nnunetv2_ext.container.settings import read_settings
from nnunetv2_ext.inference.folder import predict_folder
from nnunetv2_ext.inference.predictor import Predictor
from nnunetv2_ext.inference.single import Options
from tests.container.conftest import OUTPUT, SLUG, Make, image, same_place

LABELS = f"images/{OUTPUT}/output.mha"


def serve(container: Path, source: Path, output: Path, *more: str) -> int:
    return main(["--model", str(container / "model"), "--input", str(source), "--output", str(output), *more])


def hand_over(folder: Path, images: dict[str, sitk.Image], *, ending: str = ".mha", key: str = "socket") -> Path:
    """A case as the platform hands it over."""
    told: list[dict[str, Any]] = []
    for slug, one in images.items():
        (folder / "images" / slug).mkdir(parents=True)
        sitk.WriteImage(one, str(folder / "images" / slug / f"of-a-uuid{ending}"), True)
        told.insert(0, {key: {"slug": slug, "relative_path": f"images/{slug}", "super_kind": "Image"}})
    (folder / "inputs.json").write_text(json.dumps(told))
    return folder


def of_predict(container: Path, images: list[sitk.Image], folder: Path) -> np.ndarray:
    """The labels (z, y, x) that `predict` gives the same images as files of the training's format."""
    told = read_settings(container / "model")
    predictor = Predictor([container / "model" / name for name in told.models], weights=told.weights)
    (folder / "images").mkdir(parents=True)
    for number, one in enumerate(images):
        sitk.WriteImage(one, str(folder / "images" / f"case_{number:04d}{predictor.file_ending}"))
    outcome = predict_folder(predictor, folder / "images", folder / "labels")
    assert outcome.written == ["case"], outcome.failed
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labels" / f"case{predictor.file_ending}")))


@pytest.mark.parametrize(
    ("channels", "reader", "ending", "models"),
    [
        (1, "SimpleITKIO", ".nii.gz", 2),
        (1, "NibabelIO", ".nii.gz", 1),
        (2, "NibabelIOWithReorient", ".nii.gz", 1),
        (1, "SimpleITKIO", ".mha", 1),
    ],
)
def test_an_mha_has_the_labels_that_predict_gives_its_nifti(
    make: Make, tmp_path: Path, channels: int, reader: str, ending: str, models: int
) -> None:
    container = make(channels, reader, ending, models=models)
    images = [image(seed, kind=kind) for seed, kind in zip(range(channels), (np.int16, np.float32), strict=False)]
    slugs = [SLUG, "mr-contrast"][:channels]
    source = hand_over(tmp_path / "input", dict(zip(slugs, images, strict=True)))
    assert serve(container, source, tmp_path / "output") == 0
    written = sitk.ReadImage(str(tmp_path / "output" / LABELS))
    assert same_place(written, images[0])
    assert written.GetPixelID() == sitk.sitkUInt8
    labels = sitk.GetArrayFromImage(written)
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(labels, of_predict(container, images, tmp_path / "predict"))
    assert [path.name for path in (tmp_path / "output").rglob("*") if path.is_file()] == ["output.mha"]
    assert serve(container, source, tmp_path / "output", "--check") == 0


@pytest.mark.parametrize(
    ("how", "ending"),
    [
        *(("socket", ending) for ending in (".mha", ".mhd", ".nii.gz", ".nrrd")),
        *((how, ".mha") for how in ("interface", "slugs alone", "numbered")),
        ("plain", ".nii"),
    ],
)
def test_every_way_to_hand_a_case_over(make: Make, tmp_path: Path, how: str, ending: str) -> None:
    container, source = make(), tmp_path / "input"
    if how in ("plain", "numbered"):
        source.mkdir()
        sitk.WriteImage(image(), str(source / f"patient 7{'_0000' * (how == 'numbered')}{ending}"))
    else:
        hand_over(source, {SLUG: image()}, ending=ending, key="interface" if how == "interface" else "socket")
        if how == "slugs alone":
            (source / "inputs.json").unlink()
    assert serve(container, source, tmp_path / "output") == 0
    (file,) = (path for path in source.rglob(f"*{ending}") if path.is_file())
    assert same_place(sitk.ReadImage(str(tmp_path / "output" / LABELS)), sitk.ReadImage(str(file)))


def test_a_platform_may_name_another_folder_than_the_slug(make: Make, tmp_path: Path) -> None:
    source = hand_over(tmp_path / "input", {SLUG: image()})
    told = {"socket": {"slug": "called-otherwise", "relative_path": f"images/{SLUG}"}}
    other = {"socket": {"slug": "age-in-months", "relative_path": "age-in-months.json"}, "value": 3}
    (source / "inputs.json").write_text(json.dumps([other, told]))
    assert serve(make(), source, tmp_path / "output") == 0


def test_tiff_has_the_spacing_that_it_was_built_with(make: Make, tmp_path: Path) -> None:
    plain = image(origin=(0.0, 0.0, 0.0), direction=np.eye(3).ravel().tolist())
    source = hand_over(tmp_path / "input", {SLUG: plain}, ending=".tif")
    container = make(tif_spacing=(3.5, 1.2, 0.9))
    assert serve(container, source, tmp_path / "output") == 0
    written = sitk.ReadImage(str(tmp_path / "output" / LABELS))
    assert same_place(written, plain)
    labels = sitk.GetArrayFromImage(written)
    np.testing.assert_array_equal(labels, of_predict(container, [plain], tmp_path / "predict"))


def test_a_model_of_tiff_files_serves_mha(make: Make, tmp_path: Path) -> None:
    source = hand_over(tmp_path / "input", {SLUG: image()})
    assert serve(make(1, "Tiff3DIO", ".tif"), source, tmp_path / "output") == 0
    assert same_place(sitk.ReadImage(str(tmp_path / "output" / LABELS)), image())


def spoil(source: Path, how: str) -> None:
    """Make one thing wrong with a case of two channels."""
    second = source / "images" / "mr-contrast"
    file = next(second.iterdir())
    told = json.loads((source / "inputs.json").read_text())
    match how:
        case "no input":
            shutil.rmtree(source)
        case "socket missing":
            told = told[1:]
        case "socket twice":
            told.append(told[0])
        case "no slug":
            told[0] = {"socket": {"title": "MR"}}
        case "path out of the input":
            told[0]["socket"]["relative_path"] = "../elsewhere"
        case "an object":
            told = {"inputs": told}
        case "two images":
            shutil.copy(file, second / "second.mha")
        case "no image":
            file.unlink()
        case "no folder":
            shutil.rmtree(second)
        case "cut off":
            file.write_bytes(file.read_bytes()[:1000])
        case "empty":
            file.write_bytes(b"")
        case "text":
            file.write_text("no image")
        case "4D":
            sitk.WriteImage(sitk.JoinSeries([image(1), image(2)]), str(file))
        case "2D":
            sitk.WriteImage(image(1)[:, :, 0], str(file))
        case "colours":
            sitk.WriteImage(sitk.Compose([image(1), image(2)]), str(file))
        case "another grid":
            sitk.WriteImage(image(1, origin=(0.0, 0.0, 0.0)), str(file))
        case "another size":
            sitk.WriteImage(image(1, (7, 26, 27)), str(file))
        case "capitals":
            file.rename(file.with_suffix(".MHA"))
        case "no spacing":
            file.write_bytes(b"".join(line for line in file.read_bytes().splitlines(True) if b"Spacing" not in line))
        case "NaN":
            voxels = sitk.Cast(image(1), sitk.sitkFloat32)
            voxels[1, 2, 3] = float("nan")
            sitk.WriteImage(voxels, str(file))
        case "TIFF":
            sitk.WriteImage(image(1), str(file.with_suffix(".tif")))
            file.unlink()
        case "plain without a channel":
            shutil.rmtree(source / "images")
            sitk.WriteImage(image(), str(source / "case_0000.mha"))
            told = None
        case "plain of two cases":
            shutil.rmtree(source / "images")
            for case in ("a", "b"):
                sitk.WriteImage(image(), str(source / f"{case}_0000.mha"))
            told = None
        case "empty input":
            shutil.rmtree(source / "images")
            told = None
    if source.is_dir():
        (source / "inputs.json").write_text(json.dumps(told))
        if told is None:
            (source / "inputs.json").unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no input", "no folder"),
        ("empty input", "no inputs.json and no image in"),
        ("socket missing", "no socket mr-contrast in"),
        ("socket twice", "2 sockets mr-contrast in"),
        ("no slug", "without a socket and its slug"),
        ("path out of the input", "the relative_path '../elsewhere'"),
        ("an object", "got an object in"),
        ("two images", "2 images (of-a-uuid.mha, second.mha) in"),
        ("no image", "no image in"),
        ("no folder", "no folder"),
        ("cut off", "an unreadable file"),
        ("empty", "empty, 0 bytes"),
        ("text", "an unreadable file"),
        ("4D", "with 4 dimensions"),
        ("2D", "with 2 dimensions"),
        ("colours", "2 values per voxel"),
        ("another grid", "origin"),
        ("another size", "size"),
        ("capitals", "of-a-uuid.MHA; expected the ending .mha in small letters; rename it"),
        ("no spacing", "no spacing in its header"),
        ("NaN", "1 voxels of"),
        ("TIFF", "a TIFF file, which does not tell the distance between its slices"),
        ("plain without a channel", "1 image (case_0000.mha)"),
        ("plain of two cases", "2 images (a_0000.mha, b_0000.mha)"),
    ],
)
def test_a_wrong_case_is_one_sentence(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str, words: str
) -> None:
    source = hand_over(tmp_path / "input", {SLUG: image(), "mr-contrast": image(1)})
    spoil(source, how)
    assert serve(make(2), source, tmp_path / "output") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("nnunetv2_ext: got ") and words in err
    assert not list(tmp_path.glob("output/**/*.mha"))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no model", "container.json; expected a JSON file there; mount the container's folder model"),
        ("damaged", "a damaged"),
        ("of another version", "of the format 'x'"),
        ("no such model", "no folder"),
        ("weights", "another digest than in model.json"),
    ],
)
def test_a_wrong_model_is_one_sentence(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str, words: str
) -> None:
    source, container = hand_over(tmp_path / "input", {SLUG: image()}), tmp_path / "made"
    shutil.copytree(make(), container)
    file = container / "model" / "container.json"
    told = json.loads(file.read_text())
    match how:
        case "no model":
            shutil.rmtree(container / "model")
        case "damaged":
            told["inputs"] = "mr"
        case "of another version":
            told["format"] = "x"
        case "no such model":
            told["models"] = ["other"]
        case "weights":
            weights = next(container.glob("model/*/fold_0/weights.safetensors"))
            weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    if file.exists():
        file.write_text(json.dumps(told))
    assert serve(container, source, tmp_path / "output") == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1) and words in err


def test_what_is_no_fault_of_the_input_is_one_sentence_too(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(self: Any, case: Any, progress: Any = None) -> None:
        raise RuntimeError("CUDA out of memory.\nSecond line")

    monkeypatch.setattr(Predictor, "logits", none_left)
    source = hand_over(tmp_path / "input", {SLUG: image()})
    assert serve(make(), source, tmp_path / "output") == 1
    assert capfd.readouterr().err == "nnunetv2_ext: RuntimeError: CUDA out of memory.\n"


@pytest.mark.parametrize(
    ("told", "cores"),
    [
        ("200000 100000\n", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 64),
        ("max 1", 64),
        ("", 64),
    ],
)
def test_a_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    (tmp_path / "cpu.max").write_text(told)
    assert cpus(tmp_path / "cpu.max") == cores
    assert cpus(tmp_path / "none") == 64


def test_the_models_predict_as_the_container_was_told(make: Make, tmp_path: Path, monkeypatch: Any) -> None:
    class Asked(Exception):
        pass

    def ask(folders: Any, **more: Any) -> None:
        asked.append(([folder.name for folder in folders], more))
        raise Asked("enough")

    asked: list[Any] = []
    container = make(models=2, weights=(0.25, 0.75), step_size=0.3, mirroring=False)
    monkeypatch.setattr("nnunetv2_ext.inference.predictor.Predictor", ask)
    assert serve(container, hand_over(tmp_path / "input", {SLUG: image()}), tmp_path / "output") == 1
    ((names, more),) = asked
    assert names == [f"nnUNetTrainer__nnUNetPlans__{configuration}" for configuration in ("3d_fullres", "2d")]
    assert more == {"weights": (0.25, 0.75), "options": Options(step_size=0.3, mirroring=False)}


@pytest.mark.parametrize("flags", [["--once"], ["--every", "3"]])
def test_flags_of_a_watch_are_refused(make: Make, tmp_path: Path, capfd: Any, flags: list[str]) -> None:
    assert serve(make(), tmp_path, tmp_path / "output", *flags) == 2
    assert f"got {flags[0]}; expected the container of a folder" in capfd.readouterr().err


def test_a_gpu_that_cannot_be_used_is_told(make: Make, tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr("nnunetv2_ext.container.serve.GPU", tmp_path / "nvidia0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert serve(make(), hand_over(tmp_path / "input", {SLUG: image()}), tmp_path / "output") == 0
    first, second = capfd.readouterr().out.splitlines()
    assert "cannot use the GPU here" in first and second.endswith("predicted on the device cpu")
