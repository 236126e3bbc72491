"""What is read of a foreign file of weights, and what is not without trust."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2_ext.cli import main
from nnunetv2_ext.weights.files import read_torch_file
from tests.weights.made import checkpoint, in_v1_checkpoint, published, start_of_par, trained


@pytest.mark.parametrize("flags", [[], ["--trust"]], ids=["restricted", "trusted"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) * 2 // 3],
        lambda whole: whole[:100],
        lambda whole: b"",
        lambda whole: b"hello world, this is no file of weights",
        lambda whole: b"garbage",
        lambda whole: b"version https://git-lfs.github.com/spec/v1\n",
        lambda whole: b"\0" * len(whole),
        lambda whole: b"cpathlib\nPath\n.",
    ],
    ids=["truncated", "hardly begun", "empty", "text", "garbage", "a stand-in", "zeros", "a bare pickle"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file(damage, flags, zipped, tmp_path, capsys):
    source = tmp_path / "published.pth"
    torch.save(published().state_dict(), source, _use_new_zipfile_serialization=zipped)
    source.write_bytes(damage(source.read_bytes()))
    assert main(["import_weights", "mnet", str(source), "-o", str(tmp_path / "ours.pth"), *flags]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_trusted_file_may_hold_objects_but_only_then(tmp_path):
    source = tmp_path / "published.model"
    torch.save(in_v1_checkpoint(published().state_dict()), source)
    assert read_torch_file(source, trust=True)["epoch"] == 500
    with pytest.raises(ValueError, match="--trust"):
        read_torch_file(source)


def test_other_objects_than_numbers_still_need_trust(tmp_path, capsys):
    backbone, plans = trained()
    content = {**checkpoint(backbone.network, plans), "notes": Path("notes")}
    assert start_of_par(tmp_path, content)[0] == 2
    assert "--trust" in capsys.readouterr().err
    assert start_of_par(tmp_path, content, "--trust")[0] == 0


class Reduced:
    """Pickled as a call of a function with arguments."""

    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize(
    "forged",
    [
        Reduced(np.ndarray, ((1,), Reduced(np.dtype, ("O",)), b"A" * 8)),
        Reduced(np.float64(0).__reduce__()[0], (Reduced(np.dtype, ("O",)), b"A" * 8)),
    ],
    ids=["array of pointers", "pointer"],
)
def test_no_pointers_come_from_an_untrusted_file(forged, tmp_path, capsys):
    file = tmp_path / "forged.pth"
    torch.save({"network_weights": forged}, file)
    assert main(["import_weights", "par", str(file), "-o", str(tmp_path / "start.pth")]) == 2
    assert "add --trust" in capsys.readouterr().err
