"""What is done, and that neither a kill nor a full disk makes more of it."""

from pathlib import Path

import pytest

from nnunetv2_ext.files import file_state
from nnunetv2_ext.inference.record import Record


def publish(record: Record, image: str, label: str = "a.mha") -> None:
    """Make the labels of an image: its words in capitals."""
    source, part = record.folder / "a_0000.mha", record.folder / "part"
    source.write_text(image)
    part.write_text(image.upper())
    record.publish("a", {source.name: file_state(source)}, {label: part}, {})


def test_labels_of_other_inputs_go_before_the_record_tells_of_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(tmp_path, {})
    publish(record, "one")
    (tmp_path / "theirs.mha").touch()

    def stop(path: Path, target: Path) -> Path:
        if path.name == "part":
            raise KeyboardInterrupt
        return replace(path, target)

    replace = Path.replace
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", stop)
        publish(record, "another")
    assert not (tmp_path / "a.mha").exists() and (tmp_path / "theirs.mha").exists()
    publish(record, "a third", "a.nii.gz")
    publish(record, "a fourth")
    assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.mha"]


def test_a_record_that_could_not_be_written_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Record) -> None:
        raise OSError(28, "No space left on device")

    record = Record(tmp_path, {})
    publish(record, "one")
    before = dict(record.cases)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Record, "write", full)
        publish(record, "another")
    assert record.cases == before
    record.write()
    assert not Record(tmp_path, {}).is_of("a", {"a_0000.mha": tmp_path / "a_0000.mha"})
