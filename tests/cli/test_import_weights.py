"""`import_weights`: where it reads and writes; what it makes of weights is tested in tests/weights."""

import pytest
import torch

from nnunetv2_ext.cli import main
from tests.weights.made import published


def test_a_missing_file(tmp_path, capsys):
    assert main(["import_weights", "mnet", str(tmp_path / "none.pth"), "-o", str(tmp_path / "ours.pth")]) == 2
    assert "no file" in capsys.readouterr().err


@pytest.mark.parametrize("output", [".", "no_such_folder/ours.pth"])
def test_an_impossible_output(output, tmp_path, capsys):
    source = tmp_path / "published.pth"
    torch.save(published().state_dict(), source)
    assert main(["import_weights", "mnet", str(source), "-o", str(tmp_path / output)]) == 2
    assert "a file in an existing folder" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_disk_keeps_the_old_file(error, tmp_path, monkeypatch, capsys):
    source, output = tmp_path / "published.pth", tmp_path / "ours.pth"
    torch.save(published().state_dict(), source)
    output.write_text("the old file")

    def save_half(content, file):
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", save_half)
    assert main(["import_weights", "mnet", str(source), "-o", str(output)]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert output.read_text() == "the old file"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ours.pth", "published.pth"]


@pytest.mark.parametrize("count", ["0", "-1"])
@pytest.mark.parametrize("flag", ["--num-classes", "--input-channels"])
@pytest.mark.parametrize("method", [["mnet"], ["backbone", "--backbone", "UNet", "--fresh-heads"]])
def test_a_network_has_one_channel_and_class_at_least(method, flag, count, tmp_path, capsys):
    source = tmp_path / "published.pth"
    torch.save(published().state_dict(), source)
    command = ["import_weights", *method, str(source), "-o", str(tmp_path / "ours.pth"), flag, count]
    assert main(command) == 2
    assert f"got {flag} {count}; expected a whole number from 1" in capsys.readouterr().err


def test_the_input_is_not_overwritten(tmp_path, capsys):
    file = tmp_path / "checkpoint_final.pth"
    file.write_bytes(b"whatever")
    assert main(["import_weights", "par", str(file), "-o", str(file)]) == 2
    assert "as the output" in capsys.readouterr().err
    assert file.read_bytes() == b"whatever"
