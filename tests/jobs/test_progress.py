"""How far a training is, read from logs as nnU-Net writes them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_ext.jobs.progress import Progress, progress

TIME = "2026-03-04 05:06:07.123456: "
HEAD = (
    "\n#######################################################################\nPlease cite the following paper\n \n"
    f"{TIME}do_dummy_2d_data_aug: True \n{TIME}Desired fold for training: 0 \n"
    f"{TIME}This split has 19 training and 5 validation cases. \n"
    "\nThis is the configuration used by this training:\nConfiguration name: 3d_fullres\n {'batch_size': 2} \n \n"
)
VALIDATED = f"{TIME}Validation complete \n{TIME}Mean Validation Dice:  0.8360838128102926 \n"
DONE = f"{TIME}Training done. \n"


def begun(epoch: int) -> str:
    return f"{TIME} \n{TIME}Epoch {epoch} \n{TIME}Current learning rate: 0.01 \n"


def epoch(number: int, seconds: float = 10.0, dice: str = "np.float32(0.5), np.float32(0.7)") -> str:
    return (
        f"{begun(number)}{TIME}train_loss -0.3 \n{TIME}val_loss -0.4 \n{TIME}Pseudo dice [{dice}] \n"
        f"{TIME}Epoch time: {seconds} s \n{TIME}Yayy! New best EMA pseudo Dice: 0.5999 \n"
    )


def predicted(*cases: str) -> str:
    lines = (f"{TIME}predicting {case} \n{TIME}{case}, shape torch.Size([1, 12, 56, 56]), rank 0 \n" for case in cases)
    return "".join(lines)


SIX = "".join(map(epoch, range(6)))
FIRST, SECOND, TENTH = (f"training_log_2026_{date}_05_06_07.txt" for date in ("3_4", "3_9", "3_10"))
CASES = {
    "just begun": ({FIRST: HEAD}, Progress(0, 6, cases=5)),
    "in the first epoch": ({FIRST: HEAD + begun(0)}, Progress(0, 6, cases=5)),
    "one epoch": ({FIRST: HEAD + epoch(0) + begun(1)}, Progress(1, 6, 10.0, 50.0, 0.6, cases=5)),
    "a half-written time": (
        {FIRST: HEAD + epoch(0) + begun(1) + f"{TIME}Epoch time: 10"},
        Progress(1, 6, 10.0, 50.0, 0.6, cases=5),
    ),
    "a half-written epoch": (
        {FIRST: HEAD + epoch(0) + epoch(1) + f"{TIME}Epoch 1"},
        Progress(2, 6, 10.0, 40.0, 0.6, cases=5),
    ),
    "the median of the last five": (
        {FIRST: HEAD + "".join(map(epoch, range(5), (99.0, 1.0, 2.0, 3.0, 50.0))) + epoch(5, 4.0)},
        Progress(6, 6, 3.0, 0.0, 0.6, cases=5),
    ),
    "a label that no case has": (
        {FIRST: HEAD + epoch(0, dice="nan, np.float32(0.7)")},
        Progress(1, 6, 10.0, 50.0, 0.7, cases=5),
    ),
    "plain numbers of numpy 1": (
        {FIRST: HEAD + epoch(0, dice="0.25, 1e-04, 0.0")},
        Progress(1, 6, 10.0, 50.0, 0.2501 / 3, cases=5),
    ),
    "no label at all": ({FIRST: HEAD + epoch(0, dice="nan, np.float32(nan)")}, Progress(1, 6, 10.0, 50.0, cases=5)),
    "resumed, an epoch repeated": (
        {SECOND: HEAD + epoch(0) + epoch(1) + begun(2), TENTH: HEAD + epoch(1, 20.0) + begun(2)},
        Progress(2, 6, 10.0, 40.0, 0.6, cases=5),
    ),
    "resumed, not yet in an epoch": (
        {SECOND: HEAD + epoch(0) + epoch(1), TENTH: HEAD},
        Progress(2, 6, 10.0, 40.0, 0.6, cases=5),
    ),
    "begun anew": ({SECOND: HEAD + SIX + DONE, TENTH: HEAD + begun(0)}, Progress(0, 6, cases=5)),
    "trained": ({FIRST: HEAD + SIX + DONE}, Progress(6, 6, 10.0, 0.0, 0.6, trained=True, cases=5)),
    "validates": (
        {FIRST: HEAD + SIX + DONE + predicted("a", "b")},
        Progress(6, 6, 10.0, 0.0, 0.6, trained=True, cases_done=2, cases=5),
    ),
    "validates again after a kill": (
        {SECOND: HEAD + SIX + DONE + predicted("a", "b", "c"), TENTH: HEAD + DONE + predicted("a")},
        Progress(6, 6, 10.0, 0.0, 0.6, trained=True, cases_done=1, cases=5),
    ),
    "whole": (
        {FIRST: HEAD + SIX + DONE + predicted(*"abcde") + VALIDATED},
        Progress(6, 6, 10.0, 0.0, 0.6, trained=True, validated=True, cases_done=5, cases=5),
    ),
    "validated again": (
        {SECOND: HEAD + SIX + DONE + predicted(*"abcde") + VALIDATED, TENTH: HEAD + predicted("a")},
        Progress(6, 6, 10.0, 0.0, 0.6, trained=True, cases_done=1, cases=5),
    ),
}


@pytest.mark.parametrize(("logs", "expected"), CASES.values(), ids=CASES)
def test_logs_tell_how_far_a_training_is(tmp_path: Path, logs: dict[str, str], expected: Progress) -> None:
    (tmp_path / "debug.json").write_text(json.dumps({"num_epochs": "6"}))
    for name, text in logs.items():
        (tmp_path / name).write_text(text)
    found = progress(tmp_path)
    assert found is not None
    assert found.dice == pytest.approx(expected.dice)
    assert vars(found) | {"dice": None} == vars(expected) | {"dice": None}
    assert found.validates == (expected.cases_done > 0 and not expected.validated)


def test_cases_of_a_run_before_do_not_count(tmp_path: Path) -> None:
    log = tmp_path / FIRST
    log.write_text(HEAD + SIX + DONE + predicted("a", "b"))
    assert (found := progress(tmp_path, log.stat().st_mtime - 1)) is not None and found.cases_done == 2
    assert (found := progress(tmp_path, log.stat().st_mtime + 1)) is not None and not found.validates
    (tmp_path / SECOND).write_text(HEAD)
    assert (found := progress(tmp_path)) is not None and not found.validates, "of this run no case has begun"


@pytest.mark.parametrize("text", [None, "", '{"num_epo', '{"num_epochs": "many"}', "[]", '{"num_epochs": null}'])
def test_epochs_in_all_are_unknown_where_debug_json_does_not_tell(tmp_path: Path, text: str | None) -> None:
    (tmp_path / FIRST).write_text(HEAD + epoch(0))
    if text is not None:
        (tmp_path / "debug.json").write_text(text)
    assert progress(tmp_path) == Progress(1, None, 10.0, None, 0.6, cases=5)


def test_a_fold_without_a_log_has_none_and_earlier_trainings_do_not_count(tmp_path: Path) -> None:
    assert progress(tmp_path / "fold_0") is None
    aside = tmp_path / "before-20260304-0506" / "fold_0"
    aside.mkdir(parents=True)
    (aside / FIRST).write_text(HEAD + epoch(0))
    (tmp_path / "fold_0").mkdir()
    assert progress(tmp_path / "fold_0") is None


def test_what_has_not_changed_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FIRST).write_text(HEAD + epoch(0))
    assert progress(tmp_path) == Progress(1, None, 10.0, None, 0.6, cases=5)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", lambda *_, **__: pytest.fail("read again"))
        assert progress(tmp_path) == Progress(1, None, 10.0, None, 0.6, cases=5)
    with (tmp_path / FIRST).open("a") as log:
        log.write(epoch(1))
    (tmp_path / "debug.json").write_text('{"num_epochs": "4"}')
    assert progress(tmp_path) == Progress(2, 4, 10.0, 20.0, 0.6, cases=5)


def test_reading_progress_imports_no_torch() -> None:
    code = "import sys, nnunetv2_ext.jobs.progress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
