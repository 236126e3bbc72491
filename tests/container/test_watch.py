"""A folder that is watched: whole files alone are taken, labels appear whole, and no failure ends the watch."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import filelock
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.container.case import predict_case, write_image
from nnunetv2_ext.container.serve import main
from nnunetv2_ext.container.settings import read_settings
from nnunetv2_ext.container.watch import AGAIN, LOOKS, Watch
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference.predictor import Predictor
from tests.container.conftest import Make, image, same_place

FOLDER: dict[str, Any] = {"interface": "folder", "inputs": (), "output": ""}


def put(one: sitk.Image, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(one, str(path))


def serve(container: Path, folder: Path, *more: str) -> int:
    places = ["--model", str(container / "model"), "--input", str(folder / "in"), "--output", str(folder / "out")]
    return main([*places, "--every", "0.1", *more])


def names(folder: Path) -> set[str]:
    """Of all that is there but the record and its lock, to be seen or not."""
    return {path.name for path in folder.iterdir() if "predict.json" not in path.name}


def test_every_whole_case_gets_its_labels_and_every_other_a_sentence(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    container = make(**FOLDER)
    put(image(), tmp_path / "in" / "a.mha")
    put(image(1), tmp_path / "in" / "b_0000.nii.gz")
    put(image(2), tmp_path / "in" / "c.nrrd")
    (tmp_path / "in" / "d.mha").write_text("no image")
    put(image(3), tmp_path / "in" / "e.tif")
    put(image(4), tmp_path / "in" / ".hidden.mha")
    put(image(5), tmp_path / "in" / "f.MHA.mha")
    (tmp_path / "in" / "f.MHA.mha").rename(tmp_path / "in" / "f.MHA")
    for name in ("j_0001", "j_0002", "k_2024"):  # of one channel, no number is cut off but _0000
        put(image(7), tmp_path / "in" / f"{name}.mha")
    (tmp_path / "in" / "g.mha.part").write_text("on its way")
    (tmp_path / "in" / "h.mha").mkdir()
    put(image(6), tmp_path / "in" / "i.mha")
    put(image(6), tmp_path / "in" / "i.nii.gz")
    assert serve(container, tmp_path, "--once") == 1
    said = {line.partition(": not taken")[0] for line in capsys.readouterr().out.splitlines() if ": not taken" in line}
    assert said == {"g.mha.part", "h.mha"}
    errors = {f"{case}.error.txt" for case in "defi"}
    assert names(tmp_path / "out") == {
        "a.mha", "b.nii.gz", "c.nrrd", "j_0001.mha", "j_0002.mha", "k_2024.mha", *errors
    }  # fmt: skip
    for name in ("a.mha", "c.nrrd"):
        images = [sitk.ReadImage(str(tmp_path / folder / name)) for folder in ("in", "out")]
        assert same_place(*images)
    sentences = {case: (tmp_path / "out" / f"{case}.error.txt").read_text() for case in "defi"}
    assert all(told.startswith("got ") and told.count("\n") == 1 for told in sentences.values())
    words = {"d": "d.mha", "e": "a TIFF file", "f": "expected the ending .mha in small letters; rename it"}
    assert all(words[case] in sentences[case] for case in words)


def test_a_second_pass_does_what_is_left(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    container = make(**FOLDER)
    put(image(), tmp_path / "in" / "a.mha")
    (tmp_path / "in" / "b.mha").write_text("no image")
    assert serve(container, tmp_path, "--once") == 1
    before = (tmp_path / "out" / "a.mha").stat()
    put(image(1), tmp_path / "in" / "b.mha")
    put(image(2), tmp_path / "in" / "c.mha")
    capsys.readouterr()
    assert serve(container, tmp_path, "--once") == 0
    assert names(tmp_path / "out") == {"a.mha", "b.mha", "c.mha"}
    assert (tmp_path / "out" / "a.mha").stat() == before
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["b", "c"]
    # corrected by hand, they stay; of another image they are made anew
    sitk.WriteImage(image(9), str(tmp_path / "out" / "a.mha"))
    put(image(8), tmp_path / "in" / "c.mha")
    before, c = (tmp_path / "out" / "a.mha").stat(), (tmp_path / "out" / "c.mha").read_bytes()
    assert serve(container, tmp_path, "--once") == 0
    assert (tmp_path / "out" / "a.mha").stat() == before
    assert (tmp_path / "out" / "c.mha").read_bytes() != c


@pytest.mark.parametrize("name", ["a.mha", "a.npz", "a.pkl"])
def test_a_file_of_somebody_else_is_not_replaced(make: Make, tmp_path: Path, name: str) -> None:
    put(image(), tmp_path / "in" / "a.mha")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    assert serve(make(**FOLDER), tmp_path, "--once") == 1
    assert (tmp_path / "out" / name).read_text() == "mine"
    assert "of which no predict.json tells" in (tmp_path / "out" / "a.error.txt").read_text()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no input", "got no folder"),
        ("input closed", "in, which cannot be read or written (Permission denied)"),
        ("one folder", "as input and output"),
        ("output closed", "out (no permission to write)"),
        ("other models", "expected those of the same models, folds and options; mount another folder as the output"),
        ("other spacing", "got predictions with other tif_spacing in"),
        ("in use", "got a watch in"),
        ("lock of another user", ".predict.json.lock, which this user may not open"),
    ],
)
def test_what_cannot_be_watched_is_one_sentence(
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    words: str,
) -> None:
    container = make(**FOLDER)
    put(image(), tmp_path / "in" / "a.mha")
    match how:
        case "input closed":  # not by its permissions, which root passes over
            closed = OSError(13, "Permission denied", str(tmp_path / "in"))
            monkeypatch.setattr(Path, "iterdir", Mock(side_effect=closed))
        case "output closed":
            monkeypatch.setattr("nnunetv2_ext.container.watch.why_not_writable", lambda _: "no permission to write")
        case "lock of another user":
            monkeypatch.setattr(
                filelock.FileLock, "acquire", Mock(side_effect=PermissionError(13, "Permission denied"))
            )
            monkeypatch.setattr(os, "access", lambda path, _: not str(path).endswith(".lock"))
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / ".predict.json.lock").touch()
        case "other spacing":
            assert serve(container, tmp_path, "--once") == 0
            container = make(**FOLDER, tif_spacing=(3.5, 1.2, 0.9))
        case "no input":
            (tmp_path / "in").rename(tmp_path / "elsewhere")
        case "one folder":
            (tmp_path / "out").symlink_to(tmp_path / "in")
        case "other models":
            assert serve(container, tmp_path, "--once") == 0
            container = make(models=2, **FOLDER)
        case "in use":
            (tmp_path / "out").mkdir()
            code = "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
            command = [sys.executable, "-c", code + "print(flush=True); time.sleep(60)"]
            other = subprocess.Popen([*command, str(tmp_path / "out" / ".predict.json.lock")], stdout=subprocess.PIPE)
            assert other.stdout is not None and other.stdout.readline()
    capsys.readouterr()
    assert serve(container, tmp_path, "--once") == 2
    err = capsys.readouterr().err
    assert err.startswith("nnunetv2_ext: got ") and err.count("\n") == 1 and words in err
    if how == "in use":
        other.kill()
        other.communicate()


class Ended(Exception):
    """Raised to end a watch."""


def watched(container: Path, folder: Path, steps: Sequence[Callable[[], object]], monkeypatch: Any) -> list[str]:
    """What a watch tells while something happens between every two looks."""
    told: list[str] = []
    settings = read_settings(container / "model")
    predictor = Predictor([container / "model" / name for name in settings.models])
    watch = Watch(predictor, settings, folder / "in", folder / "out", told.append)
    todo = iter(steps)

    def happen(seconds: float) -> None:
        if (step := next(todo, None)) is None:
            raise Ended
        step()

    monkeypatch.setattr(time, "sleep", happen)
    with pytest.raises(Ended):
        watch.run(every=1, once=False)
    return [line.partition(",")[0].partition(" got")[0] for line in told]


def test_a_file_that_grows_and_channels_that_come_are_waited_for(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = make(2, **FOLDER)
    source = tmp_path / "in"
    put(image(), source / "a_0000.mha")
    put(image(1), tmp_path / "whole" / "a_0001.mha")
    whole, second = (tmp_path / "whole" / "a_0001.mha").read_bytes(), source / "a_0001.mha"
    output = tmp_path / "out"
    seen: list[set[str]] = []

    def look_and(write: bytes | None = None) -> None:
        seen.append(names(output))
        if write is not None:
            second.write_bytes(write)

    growing = [partial(look_and, whole[:length]) for length in (3000, 6000, None)]
    steps: list[Callable[[], object]] = [look_and, *growing, look_and, look_and, look_and]
    assert watched(container, tmp_path, steps, monkeypatch) == ["a: written"]
    assert seen == [set(), set(), set(), set(), set(), {"a.mha"}, {"a.mha"}]


def test_a_case_that_failed_is_tried_again_when_its_file_changes(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container, file = make(**FOLDER), tmp_path / "in" / "a.mha"
    put(image(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[:2000])
    away = partial(shutil.rmtree, file.parent)  # a share, for a while
    again = partial(put, image(2), file)
    steps: list[Callable[[], object]] = [int, int, lambda: file.write_bytes(whole), int, away, int, again, int]
    told = watched(container, tmp_path, steps, monkeypatch)
    assert told == [
        "a: failed:",
        "a: written",
        f"{tmp_path / 'in'} cannot be read (No such file or directory): waiting for it",
        "a: written",
    ]
    assert names(tmp_path / "out") == {"a.mha"}


def test_a_full_disk_ends_no_watch(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, calls = OSError(28, "No space left on device", str(tmp_path / "out" / "a.mha")), []

    def write(*args: Any) -> None:
        calls.append(args)
        if len(calls) < 3:
            raise full
        write_image(*args)

    def look() -> None:
        assert names(tmp_path / "out") == {"a.error.txt"}
        sentence = (tmp_path / "out" / "a.error.txt").read_text()
        assert "a.mha, which cannot be read or written (No space left" in sentence

    put(image(), tmp_path / "in" / "a.mha")
    monkeypatch.setattr("nnunetv2_ext.container.watch.write_image", write)
    now = iter([0.0, 1.0, AGAIN + 1, AGAIN + 1, 3 * AGAIN])  # a first failure, too early, a second one, at last
    monkeypatch.setattr(time, "monotonic", lambda: next(now, 4 * AGAIN))
    told = watched(make(**FOLDER), tmp_path, [int, look, look, look, int], monkeypatch)
    assert (told, len(calls)) == (["a: failed:", "a: written"], 3)
    assert names(tmp_path / "out") == {"a.mha"}


def test_sigterm_ends_it_within_the_case_at_work(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Any, case: Any, progress: Any = None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(5)

    put(image(), tmp_path / "in" / "a.mha")
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "logits", stop)
        with pytest.raises(SystemExit) as ended:
            serve(make(**FOLDER), tmp_path)
    assert ended.value.code == 128 + signal.SIGTERM
    assert names(tmp_path / "out") == set()
    assert serve(make(**FOLDER), tmp_path, "--once") == 0
    assert names(tmp_path / "out") == {"a.mha"}
    assert np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "a.mha")))).size > 1


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ("", 0, "a.mha: on the grid of a.mha, labels 0, "),
        ("no image", 2, "got no image in"),
        ("no labels", 2, "got no file"),
        ("another place", 2, "with origin"),
    ],
)
def test_labels_of_a_folder_are_checked(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, status: int, words: str
) -> None:
    put(image(), tmp_path / "in" / "a.mha")
    assert serve(make(**FOLDER), tmp_path, "--once") == 0
    match how:
        case "no image":
            (tmp_path / "in" / "a.mha").unlink()
        case "no labels":
            (tmp_path / "out" / "a.mha").unlink()
        case "another place":
            put(image(origin=(0.0, 0.0, 0.0)), tmp_path / "in" / "a.mha")
    capsys.readouterr()
    assert serve(make(**FOLDER), tmp_path, "--check") == status
    assert words in "".join(capsys.readouterr())


@pytest.mark.parametrize("fails", [False, True])
def test_a_file_that_changes_while_it_is_read_is_no_result(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    calls: list[object] = []

    def predict(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            put(image(2), tmp_path / "in" / "a.mha")
            if fails:
                raise InputError("half a file", "a whole one", "wait")
        return predict_case(*args)

    put(image(1), tmp_path / "in" / "a.mha")
    monkeypatch.setattr("nnunetv2_ext.container.watch.predict_case", predict)
    seen: list[set[str]] = []
    look = partial(lambda: seen.append(names(tmp_path / "out")))
    assert watched(make(**FOLDER), tmp_path, [int, look, look], monkeypatch) == ["a: written"]
    assert seen == [set(), set()]


def test_what_is_not_taken_is_told_once_when_it_lasts(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(image(), tmp_path / "in" / "a_0001.mha")
    (tmp_path / "in" / "b.dcm").write_text("a slice")
    container = make(2, **FOLDER)
    assert watched(container, tmp_path, [int] * (LOOKS - 1), monkeypatch) == []
    told = watched(container, tmp_path, [int] * (LOOKS + 5), monkeypatch)
    assert told == ["a: waits for the channels a_0000", "b.dcm: not taken"]


def test_a_share_without_locks_is_told(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.setattr(filelock.FileLock, "acquire", Mock(side_effect=OSError(37, "No locks available")))
    with pytest.warns(UserWarning, match="cannot be locked"):
        (told,) = watched(make(**FOLDER), tmp_path, [], monkeypatch)
    assert told.startswith(f"{tmp_path / 'out' / '.predict.json.lock'} cannot be locked: see to it")
