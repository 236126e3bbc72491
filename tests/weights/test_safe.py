"""Trained models as safetensors and JSON: the same weights to the last bit, whole or not at all, and no code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

from nnunetv2_ext.cli import main
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.weights.safe import read_safe_model, write_safe_model
from tests.training.conftest import UNET
from tests.training.test_checkpoints import Marker
from tests.weights.made import DESCRIPTION, checkpoint, trained

FINAL = "checkpoint_final.pth"


def weights_of(fold: str) -> dict[str, torch.Tensor]:
    """Weights that differ between folds, of several kinds, some of them views of one storage."""
    generator = torch.Generator().manual_seed(int(fold, 36))
    backbone, _ = trained(UNET)
    weights = {key: torch.randn(value.shape, generator=generator) for key, value in backbone.state_dict().items()}
    shared = torch.randn(6, 4, generator=generator)
    more = {
        "half": shared.half(),
        "view": shared.t(),
        "row": shared[1],
        "count": torch.tensor(3),
        "no": torch.tensor(1 > 2),
    }
    return {**weights, **more}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A trained model of three folds, one of them unfinished."""
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    backbone, plans = trained(UNET)
    for fold in ("0", "1"):
        (folder / f"fold_{fold}").mkdir(parents=True)
        content = {**checkpoint(backbone, plans), "network_weights": weights_of(fold)}
        torch.save(content, folder / f"fold_{fold}" / FINAL)
    (folder / "fold_2").mkdir()
    shutil.copy(folder / "fold_1" / FINAL, folder / "fold_2" / "checkpoint_best.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_same_weights_to_the_last_bit(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "safe"
    assert main(["safe_export", str(model), str(output)]) == 0
    assert "checkpoint_final.pth of fold 0 1, as safetensors beside JSON" in capsys.readouterr().out
    of_folds = [f"fold_{fold}/{name}" for fold in (0, 1) for name in ("training.json", "weights.safetensors")]
    assert files(output) == sorted(["dataset.json", "model.json", "plans.json", *of_folds])
    safe = read_safe_model(output)
    assert list(safe.weights) == ["0", "1"]
    for fold, weights in safe.weights.items():
        expected = torch.load(model / f"fold_{fold}" / FINAL, weights_only=False)["network_weights"]
        assert weights.keys() == expected.keys()
        for key, tensor in expected.items():
            assert weights[key].dtype == tensor.dtype
            # as bytes: NaN, signs of zero and all
            assert weights[key].contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes(), key
    assert (safe.trainer_name, safe.configuration, safe.mirroring_axes) == ("nnUNetTrainer", "3d_fullres", (0, 1, 2))
    assert safe.plans == json.loads((model / "plans.json").read_text())
    assert safe.dataset_json == DESCRIPTION
    training = json.loads((output / "fold_0" / "training.json").read_text())
    assert training["current_epoch"] == 3
    assert training["logging"]["val_losses"] == [-0.5, float(np.float32(-0.6)), -0.7]
    assert training["init_args"]["plans"] == safe.plans
    assert list(read_safe_model(output, ["1"]).weights) == ["1"]


def test_a_log_with_nan_is_valid_json(model: Path, tmp_path: Path) -> None:
    content = torch.load(model / "fold_0" / FINAL, weights_only=False)
    content["logging"]["val_losses"] = [np.float64("nan"), float("inf")]
    torch.save(content, model / "fold_0" / FINAL)
    write_safe_model(model, tmp_path / "safe")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "safe" / "fold_0" / "training.json").read_text()
    assert json.loads(text, parse_constant=refuse)["logging"]["val_losses"] == [None, None]


@pytest.mark.parametrize(
    ("flags", "folds"),
    [(["-f", "1"], ["1"]), (["-f", "1", "0", "1"], ["1", "0"]), (["-chk", "checkpoint_best.pth"], ["2"])],
)
def test_what_is_asked_for(model: Path, tmp_path: Path, flags: list[str], folds: list[str]) -> None:
    assert main(["safe_export", str(model), str(tmp_path / "safe"), *flags]) == 0
    assert list(read_safe_model(tmp_path / "safe").weights) == folds


def put(key: str, value: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        content = torch.load(model / "fold_1" / FINAL, weights_only=False)
        torch.save({**content, key: value}, model / "fold_1" / FINAL)

    return change


def truncate(name: str) -> Callable[[Path], object]:
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:-20])


NAN = {"a": torch.tensor([torch.nan])}
REFUSED: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "no folder": (shutil.rmtree, [], "no file .*plans.json.*give the folder of a trained model"),
    "no plans": (lambda model: (model / "plans.json").unlink(), [], "no file .*plans.json"),
    "damaged plans": (truncate("plans.json"), [], "damaged file .*plans.json"),
    "other plans": (
        lambda model: (model / "plans.json").write_text('{"configurations": {"2d": {}}}'),
        [],
        "without the configuration 3d_fullres",
    ),
    "no such fold": (lambda model: None, ["-f", "0", "3"], "no checkpoint_final.pth in fold_3.*choose -f from 0 1"),
    "an unfinished fold": (lambda model: None, ["-f", "2"], "no checkpoint_final.pth in fold_2.*choose -f from 0 1"),
    "no such checkpoint": (
        lambda model: None,
        ["-chk", "x.pth"],
        "no x.pth in any fold.*nnunetv2_ext train .* -chk",
    ),
    "damaged checkpoint": (truncate(f"fold_1/{FINAL}"), [], "damaged checkpoint .*fold_1"),
    "NaN": (put("network_weights", NAN), [], r"no finite numbers: 1 tensor \(a\)"),
    "an object": (put("more", Path("x")), [], r"pickled Python objects \(pathlib.*add --trust"),
    "two models": (put("trainer_name", "MNetTrainer"), [], "expected folds of one model; choose them with -f"),
}


@pytest.mark.parametrize(("change", "flags", "told"), REFUSED.values(), ids=REFUSED)
def test_refused_and_nothing_left(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], object],
    flags: list[str],
    told: str,
) -> None:
    change(model)
    (tmp_path / "out").mkdir()
    assert main(["safe_export", str(model), str(tmp_path / "out" / "safe"), *flags]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(message)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("output", "told"), [("there", "the existing output"), ("none/safe", "no folder")])
def test_an_output_that_cannot_be(model: Path, tmp_path: Path, output: str, told: str) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match=told):
        write_safe_model(model, tmp_path / output)


def test_trust_runs_code_and_leaves_objects_out(model: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    put("more", Marker(ran))(model)
    assert main(["safe_export", str(model), str(tmp_path / "safe")]) == 2
    assert not ran.exists()
    assert main(["safe_export", str(model), str(tmp_path / "safe"), "--trust"]) == 0
    assert ran.exists()
    assert list(read_safe_model(tmp_path / "safe").weights) == ["0", "1"]


def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=r"No space left on device.*make room there"):
        write_safe_model(model, tmp_path / "safe")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def flip(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(data)

    return change


def tell(**entries: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        told = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps({**told, **entries}))

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (shutil.rmtree, "no file .*model.json"),
        (truncate("model.json"), "damaged file .*model.json"),
        (truncate("plans.json"), "damaged file .*plans.json"),
        (truncate("fold_0/weights.safetensors"), "damaged file .*weights.safetensors .another digest"),
        (flip("fold_1/weights.safetensors"), "damaged file .*weights.safetensors .another digest"),
        (lambda folder: shutil.rmtree(folder / "fold_1"), "damaged file .*weights.safetensors .*No such file"),
        (tell(format="2"), "of the format '2'"),
        (tell(folds={}), "a damaged .*model.json"),
        (tell(folds=["0"]), "a damaged .*model.json"),
        (tell(folds={"../0": "x"}), "a damaged .*model.json"),
        (tell(trainer_name=3), "a damaged .*model.json"),
        (tell(inference_allowed_mirroring_axes=[-1]), "a damaged .*model.json"),
    ],
)
def test_a_damaged_export(model: Path, tmp_path: Path, change: Callable[[Path], object], told: str) -> None:
    folder = tmp_path / "safe"
    write_safe_model(model, folder)
    change(folder)
    with pytest.raises(InputError, match=f"{told}.*export the model again with nnunetv2_ext safe_export"):
        read_safe_model(folder)


def test_a_fold_that_is_not_there(model: Path, tmp_path: Path) -> None:
    write_safe_model(model, tmp_path / "safe")
    with pytest.raises(InputError, match="the fold 4; expected one of 0, 1"):
        read_safe_model(tmp_path / "safe", ["4"])
