"""A watch that ends at any step leaves no labels of another image."""

from pathlib import Path

import pytest
import SimpleITK as sitk

from nnunetv2_ext.container.watch import UNFINISHED
from nnunetv2_ext.inference.record import Record
from tests.container.conftest import Make, image
from tests.container.test_serve import of_predict
from tests.container.test_watch import FOLDER, names, put, serve


class Killed(BaseException):
    """As a kill, nothing but `finally` comes after it."""


def ended_at(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end of the process before the record is written, after it, or a disk that is full then, for once."""
    write, replace, steps = Record.write, Path.replace, iter([step])

    def write_or_not(record: Record) -> None:
        match next(steps, ""):
            case "before":
                raise Killed
            case "full":
                raise OSError(28, "No space left on device")
        write(record)

    def replace_or_not(path: Path, target: Path) -> Path:
        if path.name == "a.mha":
            raise Killed
        return replace(path, target)

    monkeypatch.setattr(Record, "write", write_or_not)
    if step == "after":
        monkeypatch.setattr(Path, "replace", replace_or_not)


@pytest.mark.parametrize("step", ["before", "after", "full"])
def test_labels_of_another_image_never_stay(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    container = make(**FOLDER)
    put(image(1), tmp_path / "in" / "a.mha")
    assert serve(container, tmp_path, "--once") == 0
    first = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "a.mha")))
    put(image(2), tmp_path / "in" / "a.mha")
    with monkeypatch.context() as patch:
        ended_at(step, patch)
        if step == "full":
            put(image(3), tmp_path / "in" / "b.mha")  # with which the record is written
            assert serve(container, tmp_path, "--once") == 1
        else:
            with pytest.raises(Killed):
                serve(container, tmp_path, "--once")
    assert "a.mha" not in names(tmp_path / "out")
    assert serve(container, tmp_path, "--once") == 0
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "a.mha")))
    assert (labels == of_predict(container, [image(2)], tmp_path / "predict")).all() and (labels != first).any()


def test_a_case_of_another_format_replaces_its_labels(make: Make, tmp_path: Path) -> None:
    container, source = make(**FOLDER), tmp_path / "in"
    put(image(1), source / "a.mha")
    assert serve(container, tmp_path, "--once") == 0
    (source / "a.mha").unlink()
    put(image(2), source / "a.nii.gz")
    assert serve(container, tmp_path, "--once") == 0
    assert names(tmp_path / "out") == {"a.nii.gz"}


def test_what_a_killed_watch_left_is_removed(make: Make, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out" / UNFINISHED).mkdir(parents=True)
    assert serve(make(**FOLDER), tmp_path, "--once") == 0
    assert names(tmp_path / "out") == set()
