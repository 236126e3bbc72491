"""Bad input into `nnunetv2_ext predict`: a sentence, an exit status, nothing lost, nothing half made left."""

import contextlib
import gzip
import io
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from nnunetv2_ext.cli import main
from tests.tiny_models import DESCRIPTION, LABELS, NUMBER, plans, write_image, write_images, write_model

MODEL = f"-d {NUMBER} -c 2d"
BOTH = f"-d {NUMBER} -m nnUNetTrainer:nnUNetPlans:2d"
OTHER = "Dataset711_Other:nnUNetTrainer:nnUNetPlans:2d"
CHECKPOINT = "nnUNet_results/Dataset710_Small/nnUNetTrainer__nnUNetPlans__2d/fold_0/checkpoint_final.pth"
Change = Callable[[Path], object]


def nothing(root: Path) -> None:
    """The flags are at fault."""


def other_model(**of_model: Any) -> Change:
    """A model of another data set."""

    def change(root: Path) -> None:
        description = {**DESCRIPTION, **of_model.pop("description", {})}
        write_model(root, "2d", name="Dataset711_Other", description=description, **of_model)

    return change


def image_of(edit: Callable[[Path], object], case: str = "c1") -> Change:
    return lambda root: edit(root / "images" / f"{case}_0000.nii.gz")


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def voxels(edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(edit(np.asarray(image.dataobj).copy()), image.affine), path)

    return change


def no_number(values: np.ndarray) -> np.ndarray:
    values[0, 0, 0] = np.nan
    return values


def no_spacing(path: Path) -> None:
    """A header of NIfTI whose voxels have no size."""
    header = bytearray(gzip.decompress(path.read_bytes()))
    header[80:92] = bytes(12)  # pixdim
    header[252:256] = bytes(4)  # the codes of qform and sform
    path.write_bytes(gzip.compress(bytes(header)))


def second_channel(path: Path) -> None:
    write_image(path.with_name(path.name.replace("_0000", "_0001")), 5)


def folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dead_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def picture(path: Path) -> None:
    """An image of two axes."""
    write_image(path, 5, shape=(26, 28), spacing=(1.2, 0.9))


def labels_of_another_model(root: Path) -> None:
    write_model(root, "3d_fullres")
    run("-c 3d_fullres", root)


def stranger(root: Path) -> None:
    (root / "output").mkdir()
    shutil.copy(root / "images" / "c1_0000.nii.gz", root / "output" / "c1.nii.gz")


def plans_of_model(**changes: Any) -> Change:
    """Something else in the configuration that was trained."""

    def change(root: Path) -> None:
        path = root / CHECKPOINT
        content = json.loads((path.parents[1] / "plans.json").read_text())
        content["configurations"]["2d"].update(changes)
        (path.parents[1] / "plans.json").write_text(json.dumps(content))

    return change


# what is done, the flags, words of the sentence: nothing is predicted, status 2
REFUSED: dict[str, tuple[Change, str, str]] = {
    "labels in another order": (
        other_model(description={"labels": {"background": 0, "tumour": 1, "liver": 2}}), f"{BOTH} {OTHER}",
        "the label 'liver' = 1",
    ),
    "other labels": (
        other_model(description={"labels": {**LABELS, "cyst": 3}}), f"{BOTH} {OTHER}", "the label 'cyst' = none",
    ),
    "other channels": (
        other_model(description={"channel_names": {"0": "CT"}}), f"{BOTH} {OTHER}", "the channel 0 = mr",
    ),
    "another number of channels": (
        other_model(description={"channel_names": {"0": "MR", "1": "T2"}}, of_plans=plans(channels=2)),
        f"{BOTH} {OTHER}", "the number of channels = 1",
    ),
    "another ending": (other_model(description={"file_ending": ".nrrd"}), f"{BOTH} {OTHER}", "file_ending = .nii.gz"),
    "a fold that is missing": (nothing, f"{MODEL} -f 0 3", "fold_3"),
    "a checkpoint that is missing": (nothing, f"{MODEL} -chk checkpoint_best.pth", "checkpoint_best.pth"),
    "a checkpoint cut off": (lambda root: truncate(root / CHECKPOINT), MODEL, "the damaged checkpoint"),
    "a model that is missing": (nothing, f"-d {NUMBER} -c 3d_fullres", "no trained model"),
    "no model": (nothing, "", "got no model"),
    "a model twice": (nothing, f"{BOTH} nnUNetTrainer:nnUNetPlans:2d", "a model twice"),
    "weights for others": (nothing, f"{BOTH} -w 1 2", "weight"),
    "a weight below 0": (nothing, f"{BOTH} -w -1", "-1"),
    "output in the input": (nothing, f"{MODEL} -o images", "as input and output"),
    "output in the model": (nothing, f"{MODEL} -o {Path(CHECKPOINT).parents[1]}", "which holds a trained model"),
    "output in a data set": (
        lambda root: (root / "nnUNet_raw/Dataset710_Small/imagesTr").mkdir(parents=True),
        f"{MODEL} -o nnUNet_raw/Dataset710_Small", "which holds a data set",
    ),
    "output beside data sets": (nothing, f"{MODEL} -o nnUNet_results", "which holds data sets"),
    "output of another model": (labels_of_another_model, MODEL, "predictions of another model"),
    "labels of a stranger": (stranger, MODEL, "of which no predict.json tells"),
    "output that is a file": (lambda root: (root / "output").write_text(""), MODEL, "a file; expected a folder"),
    "no images": (lambda root: (root / "empty").mkdir(), f"{MODEL} -i empty", "no files *.nii.gz in"),
    "no folder of images": (nothing, f"{MODEL} -i nowhere", "no folder or file nowhere"),
    "images of another kind": (
        lambda root: write_images(root / "mha", 1, ending=".mha"), f"{MODEL} -i mha", "but *.mha",
    ),
    "a step of 0": (nothing, f"{MODEL} -step_size 0", "a step size of 0"),
    "no part": (nothing, f"{MODEL} -num_parts 2 -part_id 2", "-part_id"),
    "a patch of letters": (plans_of_model(patch_size="ab"), MODEL, "the patch_size 'ab'"),
    "a spacing of 0": (plans_of_model(spacing=[0.0, 1.0]), MODEL, "a spacing of 0, 1 mm"),
    "a preprocessor that is gone": (plans_of_model(preprocessor_name="Gone"), MODEL, "no class Gone"),
    "a normalisation that is gone": (plans_of_model(normalization_schemes=["Gone"]), MODEL, "no class Gone"),
    "labels of a stage before, without a cascade": (
        nothing, f"{MODEL} -prev_stage_predictions images", "without a model that reads them",
    ),
    "no GPU": (nothing, f"{MODEL} -device cuda", "choose -device cpu"),
}  # fmt: skip

# what is done to one of three images, and words of its sentence: the others are predicted, status 1
FAILED: dict[str, tuple[Change, str]] = {
    "an image cut off": (image_of(truncate), "restore"),
    "an empty file": (image_of(lambda path: path.write_bytes(b"")), "c1_0000.nii.gz"),
    "text": (image_of(lambda path: path.write_text("no image")), "c1_0000.nii.gz"),
    "a folder": (image_of(folder_in_place), "a folder"),
    "a dead link": (image_of(dead_link), "c1_0000.nii.gz"),
    "NaN": (image_of(voxels(no_number)), "that are NaN or infinite"),
    "two channels": (image_of(second_channel), "2 channels"),
    "micrometres": (
        image_of(lambda path: write_image(path, 1, spacing=(3500.0, 1200.0, 900.0))),
        "is it in mm?",
    ),
    "no spacing": (image_of(no_spacing), "spacing"),
    "four axes": (image_of(voxels(lambda values: np.stack([values] * 2, -1))), "c1_0000.nii.gz"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("refused")
    write_model(folder, "2d")
    write_images(folder / "images", 3)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, three images and nnU-Net's folders, for one test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir(exist_ok=True)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    return tmp_path


def run(flags: str, root: Path) -> tuple[int, str]:
    """The exit status and what stands on stderr."""
    words = flags.split()
    given = {"-i": "images", "-o": "output", "-device": "cpu"}
    words += [word for flag, value in given.items() if flag not in words for word in (flag, value)]
    words += ["-d", str(NUMBER)] if "-d" not in words and "-c" in words else []
    with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(["predict", "--disable_progress_bar", "--disable_tta", *words])
        except SystemExit as ended:
            status = int(ended.code or 0)
    return status, told.getvalue()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_nothing_half_made(root: Path) -> None:
    left = [path for path in root.rglob("*") if path.suffix == ".part" or path.name.startswith(".unfinished")]
    left += [path for path in root.rglob(".*") if path.is_dir()]
    assert not left


@pytest.mark.parametrize("name", REFUSED)
def test_refused(root: Path, name: str) -> None:
    change, flags, words = REFUSED[name]
    change(root)
    before = files_of(root)
    status, told = run(flags, root)
    last = told.strip().splitlines()[-1]
    assert status == 2 and words in last and "; expected " in last and last.endswith("."), told
    assert "Traceback" not in told and "rror" not in last.split(":")[0]
    after = files_of(root)
    assert {file: after.get(file) for file in before} == before
    assert not [file for file in after.keys() - before.keys() if not file.endswith((".lock", ".running.json"))]
    check_nothing_half_made(root)


@pytest.mark.parametrize("name", FAILED)
def test_one_bad_image(root: Path, name: str) -> None:
    change, words = FAILED[name]
    change(root)
    status, told = run(MODEL, root)
    assert status == 1, told
    assert "| failed | why |" in told and "Traceback" not in told
    last = told.strip().splitlines()[-1]
    assert last.startswith("| c1 | got ") and words in last and "; expected " in last, told
    assert sorted(path.name for path in (root / "output").glob("*.nii.gz")) == ["c0.nii.gz", "c2.nii.gz"]
    record = json.loads((root / "output" / "predict.json").read_text())
    assert sorted(record["cases"]) == ["c0", "c2"] and list(record["failed"]) == ["c1"]
    check_nothing_half_made(root)
    # the image is mended, and only this one is predicted
    before = {path: path.stat().st_mtime_ns for path in (root / "output").glob("*.nii.gz")}
    for path in (root / "images").glob("c1*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_image(root / "images" / "c1_0000.nii.gz", 10)
    assert run(MODEL, root) == (0, "")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(list((root / "output").glob("*.nii.gz"))) == 3
    assert not json.loads((root / "output" / "predict.json").read_text())["failed"]


def test_pictures_for_a_model_of_volumes(root: Path) -> None:
    write_model(root, "3d_fullres")
    for path in (root / "images").iterdir():
        picture(path)
    status, told = run("-c 3d_fullres", root)
    assert status == 1
    assert told.count("of 2 dimensions; expected the 3 of the model; predict it with a model of configuration 2d") == 3
    check_nothing_half_made(root)


def test_a_single_file(root: Path) -> None:
    shutil.copy(root / "images" / "c1_0000.nii.gz", root / "any.nii.gz")
    for source, case in (("images/c1_0000.nii.gz", "c1"), ("any.nii.gz", "any")):
        assert run(f"{MODEL} -i {source} -o one", root) == (0, "")
        assert (root / "one" / f"{case}.nii.gz").is_file()
    assert run(MODEL, root) == (0, "")
    labels = [np.asarray(nibabel.load(root / path).dataobj) for path in ("one/c1.nii.gz", "output/c1.nii.gz")]
    assert np.array_equal(labels[0], labels[1])


def test_a_full_disk(root: Path) -> None:
    """The third image is large, and no file may become so: what came before it stays, and the next run goes on."""
    write_image(root / "images" / "c2_0000.nii.gz", 5, shape=(7, 150, 150), spacing=(3.5, 1, 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))
    try:
        status, told = run(f"{MODEL} -step_size 1", root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last = told.strip().splitlines()[-1]
    assert status == 2 and "got an error on writing" in last and last.endswith("make room there."), told
    assert "Traceback" not in told
    assert sorted(path.name for path in (root / "output").glob("*.nii.gz")) == ["c0.nii.gz", "c1.nii.gz"]
    assert sorted(json.loads((root / "output" / "predict.json").read_text())["cases"]) == ["c0", "c1"]
    check_nothing_half_made(root)
    before = {path: path.stat().st_mtime_ns for path in (root / "output").glob("*.nii.gz")}
    assert run(f"{MODEL} -step_size 1", root) == (0, "")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert nibabel.load(root / "output" / "c2.nii.gz").shape == (150, 150, 7)
