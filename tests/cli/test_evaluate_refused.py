"""What `evaluate` refuses: files, folders, flags and models, each in one sentence; nothing half made stays."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunetv2_ext.cli import main
from nnunetv2_ext.evaluation.summary import read_summaries
from nnunetv2_ext.files import file_state
from tests.cli.boxes import (
    DATASET,
    DESCRIPTION,
    MODEL,
    SPACING,
    broken,
    evaluate,
    reference,
    write,
    write_folders,
    write_models,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folders(tmp_path)


@pytest.fixture
def models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_models(folder, monkeypatch)


def _missing(folder: Path) -> None:
    broken(folder).unlink()


def _extra(folder: Path) -> None:
    shutil.copy(broken(folder), broken(folder, "d"))


def _shape(folder: Path) -> None:
    write(broken(folder), reference()[:5])


def _spacing(folder: Path) -> None:
    write(broken(folder), reference(), (4.0, 1.0, 0.51))


def _origin(folder: Path) -> None:
    write(broken(folder), reference(), origin=(0.0, 0.0, 0.01))


def _unknown_label(folder: Path, name: str = "predictions") -> None:
    write(broken(folder, name=name), reference() + np.uint8(4))


def _unknown_reference(folder: Path) -> None:
    _unknown_label(folder, "raw/labelsTs")


def _fractions(folder: Path) -> None:
    write(broken(folder), reference().astype(np.float32) / 2)


def _nan(folder: Path) -> None:
    volume = reference().astype(np.float32)
    volume[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(volume.T, np.diag([-0.5, -1.0, 4.0, 1.0])), broken(folder))


def _flat(folder: Path) -> None:
    image = sitk.GetImageFromArray(reference()[0])
    sitk.WriteImage(image, str(broken(folder)))


def _pictures(folder: Path) -> None:
    (folder / "raw" / "dataset.json").write_text(json.dumps({**DESCRIPTION, "file_ending": ".png"}))
    for name in ("raw/labelsTs", "predictions"):
        sitk.WriteImage(sitk.GetImageFromArray(reference()[0]), str(folder / name / "a.png"))


def _flat_tiff(folder: Path) -> None:
    (folder / "raw" / "dataset.json").write_text(json.dumps({**DESCRIPTION, "file_ending": ".tif"}))
    for name in ("raw/labelsTs", "predictions"):
        tifffile.imwrite(folder / name / "a.tif", reference()[0])
        (folder / name / "a.json").write_text(json.dumps({"spacing": SPACING}))


def _tiff(content: str | None) -> Callable[[Path], None]:
    def write_tiff(folder: Path) -> None:
        (folder / "raw" / "dataset.json").write_text(json.dumps({**DESCRIPTION, "file_ending": ".tif"}))
        for name in ("raw/labelsTs", "predictions"):
            tifffile.imwrite(folder / name / "a.tif", reference())
            (folder / name / "a.json").write_text(json.dumps({"spacing": SPACING}))
        if content is None:
            (folder / "predictions" / "a.json").unlink()
        else:
            (folder / "predictions" / "a.json").write_text(content)

    return write_tiff


def _empty_folder(folder: Path) -> None:
    for path in (folder / "predictions").iterdir():
        path.unlink()


def _other_ending(folder: Path) -> None:
    (folder / "raw" / "dataset.json").write_text(json.dumps({**DESCRIPTION, "file_ending": ".mha"}))


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder / "predictions")


def _a_file(folder: Path) -> None:
    _no_folder(folder)
    (folder / "predictions").write_text("")


def _truncated(folder: Path) -> None:
    for case in ("a", "c"):
        content = broken(folder, case).read_bytes()
        broken(folder, case).write_bytes(content[:-20])


def _output_is_a_file(folder: Path) -> None:
    (folder / "out").write_text("")


def _no_description(folder: Path) -> None:
    (folder / "raw" / "dataset.json").unlink()


def _damaged_description(folder: Path) -> None:
    (folder / "raw" / "dataset.json").write_text("{")


def _no_labels(folder: Path) -> None:
    (folder / "raw" / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))


def _other_labels(folder: Path) -> None:
    turned = {"background": 0, "left": 2, "right": 1}
    (folder / "predictions" / "dataset.json").write_text(json.dumps({**DESCRIPTION, "labels": turned}))


def _summary_of_nnunet(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "summary.json").write_text(json.dumps({"mean": {}, "metric_per_case": []}))


def _nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "flags", "told"),
    [
        (_missing, [], "got no prediction of 1 case (b) in predictions; expected one prediction for each"),
        (_extra, [], "got predictions of 1 case (d) without a reference"),
        (_shape, [], "size (12, 12, 5) instead of (12, 12, 6)"),
        (_spacing, [], "spacing (0.51, 1, 4) instead of (0.5, 1, 4)"),
        (_origin, [], "origin (0, 0, 0.01) instead of (0, 0, 0)"),
        (_unknown_label, [], "the label value 4, 5, 6 in"),
        (_unknown_reference, [], "labelsTs/b.nii.gz; expected those of"),
        (_fractions, [], "values such as 0.5 in"),
        (_nan, [], "1 voxels of NaN or infinity in"),
        (_flat, [], "2 dimensions and 1 values per voxel"),
        (_pictures, [], "a.png, a picture of two dimensions"),
        (_flat_tiff, [], "a.tif, a picture of two dimensions"),
        (_tiff(None), [], "no spacing of"),
        (_tiff("{"), [], "predictions/a.json (Expecting"),
        (_tiff("[4, 1, 1]"), [], "a list in"),
        (_tiff("{}"), [], "predictions/a.json; expected three numbers of mm above 0; write"),
        (_tiff('{"spacing": ["4", "1", "x"]}'), [], 'got the spacing ["4", "1", "x"] in'),
        (_tiff('{"spacing": [4, 1]}'), [], "got the spacing [4, 1] in"),
        (_tiff('{"spacing": [4, 1, 0]}'), [], '{"spacing": [Z, Y, X]} in mm into a.json beside it'),
        (_tiff('{"spacing": [4, 1, NaN]}'), [], "three numbers of mm above 0"),
        (_tiff('{"spacing": 4}'), [], "got the spacing 4 in"),
        (_empty_folder, [], "no file *.nii.gz in"),
        (_other_ending, [], "no file *.mha in"),
        (_no_folder, [], "got no folder"),
        (_a_file, [], "predictions, a file; expected a folder"),
        (_truncated, [], "2 faulty cases (a of predictions: an unreadable file"),
        (_output_is_a_file, [], "out, a file; expected a folder"),
        (_no_description, [], "give it with -djfile"),
        (_damaged_description, [], "damaged file"),
        (_no_labels, [], "no labels in"),
        (_other_labels, [], "'left' = 2 in"),
        (_summary_of_nnunet, ["--overwrite"], "which nnU-Net wrote"),
        (_nothing, ["-np", "0"], "-np 0"),
        (_nothing, ["-np", "two"], "-np two"),
        (_nothing, ["--tolerance", "1", "2"], "one number for all labels"),
        (_nothing, ["--tolerance", "left=2", "left=3"], "--tolerance left=2 left=3; expected one number for left"),
        (_nothing, ["--tolerance", "0"], "the tolerance 0.0; expected a number of mm above 0"),
        (_nothing, ["--tolerance", "middle=1"], "--tolerance of middle; expected labels of"),
        (_nothing, ["--tolerance", "left=much"], "--tolerance much"),
        (_nothing, ["--empty", "-1"], "-1.0 as distance to an empty mask"),
        (_nothing, ["--connectivity", "8"], "8 as connectivity"),
        (_nothing, ["--lesion-iou", "2"], "2.0 as intersection over union"),
        (_nothing, ["--names", "A", "B"], "--names A B"),
        (_nothing, ["--names", "a/b"], "--names a/b"),
        (_nothing, ["-d", "901"], "-r, -p beside -d"),
        (_nothing, ["-djfile", "nowhere.json"], "no file nowhere.json"),
    ],
)
def test_bad_input(
    folder: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], flags: list[str], told: str
) -> None:
    spoil(folder)
    assert evaluate(folder, *flags) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("nnunetv2_ext evaluate: got ") and err.count("\n") == 1
    assert not (folder / "out" / "metrics.csv").exists()


TWO = ["-r", "raw/labelsTs", "-p", "predictions", "-p", "other", "--names", "A"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["-r", "a"], "no -p"),
        (["-p", "a"], "no -r"),
        (["-d", "1"], "no -m"),
        ([], "no -p, -r"),
        (["-r", "raw/labelsTs", "-p", "raw/labelsTs"], "as -r and as -p"),
        (["-r", "raw/labelsTs", "-p", "predictions", "-p", "predictions/"], "twice"),
        (["-r", "raw/labelsTs", "-p", "predictions", "-p", "raw", "--names", "A", "A"], "--names A A"),
        (["-d", "1", "-m", MODEL, "-f", "x/../0"], "-f x/../0; expected numbers of folds, or all"),
        *(
            ([*TWO, name], f"the model {told}; expected a name that a folder in out can have; give another with")
            for name, told in {
                **{name: name for name in ("metrics.csv", "summary.json", "evaluate.unfinished.jsonl")},
                ".evaluate.lock": ".evaluate.lock",
                "x" * 300: "x" * 50 + "... of 300 letters",
            }.items()
        ),
    ],
)
def test_flags_that_do_not_go_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    monkeypatch.chdir(folder)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, ".")
    Path("Dataset001_Boxes").mkdir()
    shutil.copytree("predictions", "other")
    assert main(["evaluate", "-o", "out", *flags]) == 2
    assert told in capsys.readouterr().err
    assert not (folder / "out").exists()


# --- another evaluation in the output, predictions that are older than their model ---


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--tolerance", "2"], "with other settings"),
        (["--names", "MNet"], "with other models"),
    ],
)
@pytest.mark.parametrize("stopped", [False, True])
def test_another_evaluation_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str, stopped: bool
) -> None:
    if stopped:
        _truncated(folder)
    assert evaluate(folder) == (2 if stopped else 0)
    before = {path: path.read_bytes() for path in (folder / "out").glob("*.*")}
    capsys.readouterr()
    assert evaluate(folder, *flags) == 2
    assert told in (err := capsys.readouterr().err) and "--overwrite" in err
    assert before == {path: path.read_bytes() for path in (folder / "out").glob("*.*")}
    if not stopped:
        assert evaluate(folder) == 0  # the same, made again
        assert before == {path: path.read_bytes() for path in (folder / "out").glob("*.*")}
        assert evaluate(folder, *flags, "--overwrite") == 0


@pytest.mark.parametrize("damaged", ["{", "[]", '{"nnunetv2_ext": {}}', ""])
def test_a_damaged_summary_is_another_evaluation(
    folder: Path, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    assert evaluate(folder) == 0
    path = folder / "out" / "summary.json"
    whole = path.read_bytes()
    path.write_text(damaged)
    assert evaluate(folder) == 2
    err = capsys.readouterr().err
    assert f"{path}" in err and "choose another -o, or replace it with --overwrite" in err
    assert path.read_text() == damaged
    assert evaluate(folder, "--overwrite") == 0
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["summary.json", "metrics.csv"])
def test_a_folder_where_a_file_goes(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / "out" / name).mkdir(parents=True)
    assert evaluate(folder, "--overwrite") == 2
    assert f"got a folder {folder / 'out' / name};" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["5", "{}", '{"models": [1]}'])
def test_a_damaged_journal_is_another_evaluation(folder: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "evaluate.unfinished.jsonl").write_text(line + "\n")
    assert evaluate(folder) == 2
    assert "that was stopped, with other content;" in capsys.readouterr().err
    assert evaluate(folder, "--overwrite") == 0


def test_a_model_that_changed_after_its_predictions(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder / "results" / DATASET / MODEL.replace(":", "__")
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("weights")
    monkeypatch.setenv("nnUNet_results", str(folder / "results"))
    made_of = {"fold_0/checkpoint_final.pth": file_state(checkpoint).digest}
    made_by = [{"model": MODEL, "folds": ["0"], "files": made_of}]
    for name in ("predict.json", "predict_1_of_2.json"):  # of two processes, the first without a case
        (folder / "predictions" / name).write_text(json.dumps({"models": made_by if "2" in name else []}))
    (folder / "predictions" / "plans.json").write_text(json.dumps({"dataset_name": DATASET}))
    os.utime(checkpoint)  # newer than the predictions, but what made them
    assert evaluate(folder) == 0
    assert read_summaries(folder / "out")["predictions"].model_folders == (model,)
    checkpoint.write_text("trained anew")
    assert evaluate(folder) == 2
    assert f"older than {checkpoint}" in capsys.readouterr().err
    members = [[str(folder / "predictions"), 1.0]]
    shutil.copytree(folder / "predictions", folder / "ensemble", copy_function=shutil.copy2)
    (folder / "ensemble" / "predict_1_of_2.json").unlink()
    (folder / "ensemble" / "predict.json").write_text(json.dumps({"models": members}))
    assert evaluate(folder, predictions=("ensemble",)) == 2
    assert f"older than {checkpoint}" in (err := capsys.readouterr().err) and "nnunetv2_ext ensemble" in err
