"""How a training goes on from what stands in its fold."""

import json
import os
import shlex
import zipfile
from pathlib import Path

import pytest

from nnunetv2_ext.inference.trained import SUMMARY
from nnunetv2_ext.jobs.folds import command_now, set_damaged_aside

TRAIN = "nnUNetv2_train 42 3d_fullres 0 -tr MNetTrainer"
LATEST, FINAL, BEST, PREVIOUS = (f"checkpoint_{name}.pth" for name in ("latest", "final", "best", "previous"))
DONE = f"validation/{SUMMARY}"


@pytest.mark.parametrize(
    ("command", "files", "expected"),
    [
        (TRAIN, "", TRAIN),
        (TRAIN, "training_log_2026_1_2_3_4_5.txt debug.json", TRAIN),
        (TRAIN, LATEST, f"{TRAIN} --c"),
        (TRAIN, BEST, f"{TRAIN} --c"),
        (TRAIN, PREVIOUS, f"{TRAIN} --c"),
        (TRAIN, f"{LATEST} {FINAL}", f"{TRAIN} --val"),
        (TRAIN, f"{FINAL} validation/a.nii.gz", f"{TRAIN} --val"),
        (TRAIN, f"{FINAL} validation/a.nii.gz {DONE}", None),
        (TRAIN, f"validation/a.nii.gz {DONE} {FINAL}", f"{TRAIN} --val"),
        (TRAIN, f"{DONE} {FINAL} validation/a.nii.gz", f"{TRAIN} --val"),
        (TRAIN, f"validation/a.nii.gz {DONE}", TRAIN),
        (TRAIN, f"validation/a.nii.gz {DONE} {LATEST}", f"{TRAIN} --c"),
        (TRAIN, f"{FINAL} {DONE}", f"{TRAIN} --val"),
        (f"{TRAIN} --val", f"{FINAL} validation/a.nii.gz {DONE}", f"{TRAIN} --val"),
        (f"{TRAIN} --val", LATEST, f"{TRAIN} --c"),
        (f"{TRAIN} --npz", f"{FINAL} validation/a.nii.gz {DONE}", f"{TRAIN} --npz --val"),
        (f"{TRAIN} --npz", f"{FINAL} validation/a.nii.gz validation/a.pkl validation/a.npz {DONE}", None),
        (
            f"{TRAIN} --npz",
            f"{FINAL} validation/a.mha validation/b.mha validation/a.npz {DONE}",
            f"{TRAIN} --npz --val",
        ),
        (f"{TRAIN} -pretrained_weights w.pth --npz", "", f"{TRAIN} -pretrained_weights w.pth --npz"),
        (f"{TRAIN} -pretrained_weights w.pth --npz", LATEST, f"{TRAIN} --npz --c"),
    ],
)
def test_a_training_goes_on_where_it_was(tmp_path: Path, command: str, files: str, expected: str | None) -> None:
    """Each file is ten days younger than the one before."""
    metrics = {"metrics": {"1": {"n_ref": 3}}, "prediction_file": "/then/validation/a.nii.gz"}
    mha = "a.mha" in files
    for number, name in enumerate(files.split()):
        path = tmp_path / "fold_0" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"metric_per_case": [metrics | ({"prediction_file": "a.mha"} if mha else {})]}
        path.write_text(json.dumps(told) if name == DONE else "")
        os.utime(path, (number * 864_000.0,) * 2)
    now = command_now(command.split(), tmp_path / "fold_0")
    assert (None if now is None else shlex.join(now)) == expected


def test_what_a_kill_left_half_written_is_set_aside(tmp_path: Path) -> None:
    """nnU-Net's own trainer writes its checkpoints into place; a zip's list of contents comes last."""
    for name in (LATEST, BEST):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("data.pkl", b"x" * 1000)
    half = (tmp_path / LATEST).read_bytes()[:500]
    (tmp_path / LATEST).write_bytes(half)
    (told,) = set_damaged_aside(tmp_path)
    assert f"{LATEST} is damaged; it is now {LATEST}.damaged" in told
    assert (tmp_path / f"{LATEST}.damaged").read_bytes() == half
    assert command_now(["train"], tmp_path) == ["train", "--c"] and (tmp_path / BEST).is_file()
    assert set_damaged_aside(tmp_path) == []
