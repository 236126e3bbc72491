import subprocess
import sys
import textwrap

import pytest

from nnunetv2_ext.cli import steps
from nnunetv2_ext.cli.steps import Steps

CHATTER = """
    import os, sys
    from pathlib import Path
    from nnunetv2_ext.cli.steps import Steps

    progress = Steps(total=2, log=Path(sys.argv[1]))
    print("before")
    with progress.step("first"):
        print("printed")
        sys.stderr.write("warned\\n")
        os.system("echo from a child")
    print("between")
    with progress.step("second"):
        os.system("echo a child complains >&2")
        if sys.argv[2] == "fail":
            raise RuntimeError("broken")
    print("after")
"""


def chat(log, ending) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(CHATTER), str(log), ending]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_chatter_goes_to_the_log(tmp_path):
    log = tmp_path / "log.txt"
    done = chat(log, "finish")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "before",
        "[1/2] first ...",
        "[1/2] first: done in 0 s",
        "between",
        "[2/2] second ...",
        "[2/2] second: done in 0 s",
        "after",
    ]
    lines = log.read_text().split("\n")
    assert [line for line in lines if line] == [
        "===== [1/2] first",
        "printed",
        "warned",
        "from a child",
        "===== [2/2] second",
        "a child complains",
    ]


def test_an_error_is_shown_with_the_end_of_the_log(tmp_path):
    done = chat(tmp_path / "log.txt", "fail")
    assert done.returncode == 1
    assert "a child complains" in done.stdout
    assert "RuntimeError: broken" in done.stderr
    assert "after" not in done.stdout


@pytest.mark.parametrize(("pause", "expected"), [(30.0, 0), (-1.0, 2)])
def test_epochs_are_reported_now_and_then(tmp_path, capsys, monkeypatch, pause, expected):
    monkeypatch.setattr(steps, "QUIET_SECONDS", pause)
    progress = Steps(total=1, log=tmp_path / "log.txt")
    with progress.step("train"):
        print("2026-01-01 00:00:00.000000:", "Epoch 0")
        print("Epoch time: 3 s")
        print("2026-01-01 00:00:03.000000:", "Epoch 1")
    shown = capsys.readouterr().out
    assert shown.count(": epoch ") == expected
    assert (": epoch 2, " in shown) == (expected > 0)
    assert "Epoch 1" in (tmp_path / "log.txt").read_text()
