"""A prediction that is killed at random moments and started again each time ends as one that nobody disturbed.

NNUNETV2_EXT_KILLS=20 kills one of 12 cases 20 times.
"""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunetv2_ext.testing.trainer import Shell
from tests.pipeline.conftest import survivors
from tests.tiny_models import NUMBER, write_images, write_model
from tests.warm import Running, WarmProcess

KILLS = int(os.environ.get("NNUNETV2_EXT_KILLS", "3"))
CASES = max(4, 3 * KILLS // 5)
# a shell may have these tests ignore Ctrl-C, and then what they start ignores it too
INTERRUPT = [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []
SIGNALS = (signal.SIGKILL, signal.SIGTERM, *INTERRUPT)


class Commands(Shell):
    """Commands that are forked from the warm process."""

    def __init__(self, folder: Path, warm: WarmProcess):
        super().__init__(folder, warm.environment)
        self.warm = warm

    def start(self, command: str) -> Running:
        return self.warm.start(command.split(), environment=self.environment, folder=self.folder)


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nibabel.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


def half_made(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part") or ".unfinished" in path.name]


def test_killed_at_random_moments(tmp_path: Path, warm: WarmProcess, capsys: pytest.CaptureFixture[str]) -> None:
    commands = Commands(tmp_path, warm)
    write_model(tmp_path, folds=(0, 1))
    images = write_images(tmp_path / "images", CASES)
    command = f"nnunetv2_ext predict -i {images} -d {NUMBER} -c 3d_fullres -device cpu -o "
    commands.run("nnunetv2_ext list")  # once the warm process has imported everything
    start = time.monotonic()
    commands.run(command + str(tmp_path / "unbroken"))
    length = time.monotonic() - start
    expected, output = labels_in(tmp_path / "unbroken"), tmp_path / "output"
    assert len(expected) == CASES
    moments, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        runs += 1
        assert runs <= 20 * KILLS, "runs that end before they are killed"
        number = SIGNALS[kills % len(SIGNALS)]
        if len(labels_in(output)) > CASES // 2:  # so that there is something to do
            for name in moments.sample(sorted(expected), CASES // 2):
                (output / name).unlink(missing_ok=True)
        left_before = half_made(output)  # by SIGKILL; the next run removes it once it has begun
        running = commands.start(command + str(output))
        time.sleep(moments.uniform(0, length * (CASES - len(labels_in(output))) / CASES))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, number) if number == signal.SIGKILL else os.kill(running.pid, number)
        printed = running.communicate(timeout=60)[0]
        assert not survivors(running.pid)
        status = running.wait()
        assert status in (0, 128 + number, -number), printed  # -number: before anything was begun
        assert number == signal.SIGKILL or left_before or not half_made(output), printed
        kills += status != 0
        length *= 1 if status else 0.7  # the machine got faster
        for name, labels in labels_in(output).items():
            assert np.array_equal(labels, expected[name]), name
        if (output / "predict.json").exists():
            assert json.loads((output / "predict.json").read_text())["cases"].keys() <= {n[:-7] for n in expected}
    commands.run(command + str(output))
    found = labels_in(output)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    record = json.loads((output / "predict.json").read_text())
    assert {f"{case}.nii.gz" for case in record["cases"]} == set(expected) and not record["failed"]
    assert not half_made(output)
    kept = {path: path.stat().st_mtime_ns for path in output.glob("*.nii.gz")}
    assert f"0 cases predicted, {CASES} were there already" in commands.run(command + str(output))
    assert kept == {path: path.stat().st_mtime_ns for path in output.glob("*.nii.gz")}
    with capsys.disabled():
        print(f"\n{kills} kills in {runs} runs of {CASES} cases")
