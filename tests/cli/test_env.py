"""`env` prints one line that a shell can evaluate and that keeps what the variable holds."""

import os
import subprocess
import sys

import pytest

from nnunetv2_ext import DISCOVERY_FOLDER
from nnunetv2_ext.cli import main

OURS = str(DISCOVERY_FOLDER)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ("", OURS),
        ("/mine", f"/mine{os.pathsep}{OURS}"),
        ("/with space/and 'quote'", f"/with space/and 'quote'{os.pathsep}{OURS}"),
        ("/$HOME/`id`", f"/$HOME/`id`{os.pathsep}{OURS}"),
        (OURS, OURS),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell is needed")
def test_a_shell_evaluates_the_line(held, expected, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_extTrainer", held)
    assert main(["env"]) == 0
    line = capsys.readouterr().out
    assert len(line.splitlines()) == 1
    shell = f'{line}\n"{sys.executable}" -c \'import os; print(os.environ["nnUNet_extTrainer"])\''
    finished = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert finished.stdout.rstrip("\n") == expected


def test_runs_as_a_module():
    finished = subprocess.run([sys.executable, "-m", "nnunetv2_ext", "env"], capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("export nnUNet_extTrainer=")
    assert OURS in finished.stdout
