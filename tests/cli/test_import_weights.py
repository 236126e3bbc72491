"""`import_weights`: from published or trained weights to what nnU-Net's -pretrained_weights loads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunetv2_ext.architectures.backbones.network import BackboneNetwork
from nnunetv2_ext.architectures.mnet import MNet
from nnunetv2_ext.architectures.par import PaRNetwork
from nnunetv2_ext.cli import import_weights, main
from nnunetv2_ext.trainers.par import PaRTrainer
from nnunetv2_ext.weights.mnet import convert_published_state_dict
from tests.architectures.plain_mnet import PlainMNet
from tests.training.conftest import DATASET, LABELS, MNET, UNET, hand_made_plans

FEATURES = (2, 3, 4, 5, 6)


def published(merge: str = "difference", input_channels: int = 2, num_classes: int = 3) -> PlainMNet:
    """A network whose state dict has the published names."""
    torch.manual_seed(3)
    return PlainMNet(input_channels, num_classes, features_per_stage=FEATURES, merge=merge)


def in_parallel(state_dict):
    return {f"module.{key}": value for key, value in state_dict.items()}


def in_v1_checkpoint(state_dict):
    return {"epoch": 500, "state_dict": state_dict, "plot_stuff": [np.float64(0.5), np.zeros(2)], "at": Path("x")}


def in_plain_checkpoint(state_dict):
    return {"epoch": 500, "state_dict": state_dict}


@pytest.mark.parametrize(
    ("wrap", "zipped", "flags"),
    [
        (dict, True, []),
        (dict, False, []),
        (in_parallel, True, []),
        (in_plain_checkpoint, True, []),
        (in_v1_checkpoint, True, ["--trust"]),
        (in_v1_checkpoint, False, ["--trust"]),
        (lambda state_dict: in_v1_checkpoint(in_parallel(state_dict)), True, ["--trust"]),
        (dict, True, ["--input-channels", "2", "--num-classes", "3"]),
    ],
    ids=["bare", "old format", "parallel", "checkpoint", "v1", "v1 old format", "v1 parallel", "as asked"],
)
def test_every_wrapping_gives_the_same_weights(wrap, zipped, flags, tmp_path, capsys):
    source, output = tmp_path / "published.model", tmp_path / "ours.pth"
    state_dict = published().state_dict()
    torch.save(wrap(state_dict), source, _use_new_zipfile_serialization=zipped)
    assert main(["import_weights", "mnet", str(source), "-o", str(output), *flags]) == 0
    assert f"2 input channels, 3 classes, features {FEATURES}" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir() if file != source] == ["ours.pth"]
    weights = torch.load(output, weights_only=True)["network_weights"]
    expected = convert_published_state_dict(state_dict)
    assert weights.keys() == expected.keys()
    for key, value in weights.items():
        assert value.device.type == "cpu"
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("merge", ["difference", "concat"])
def test_the_outcome_computes_what_the_published_network_does(merge, tmp_path, capsys):
    source, output = tmp_path / "published.pth", tmp_path / "ours.pth"
    plain = published(merge)
    torch.save(plain.state_dict(), source)
    assert main(["import_weights", "mnet", str(source), "-o", str(output)]) == 0
    assert ("merge concat" if merge == "concat" else "merge difference or sum") in capsys.readouterr().out
    ours = MNet(2, 3, features_per_stage=FEATURES, merge=merge)
    ours.load_state_dict(torch.load(output, weights_only=True)["network_weights"], strict=True)
    x = torch.randn(1, 2, 8, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        for result, expected in zip(ours.double()(x), plain.double()(x), strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_nnunet_loads_all_but_the_heads(tmp_path, capsys):
    source, output = tmp_path / "published.pth", tmp_path / "ours.pth"
    torch.save(published(num_classes=3).state_dict(), source)
    assert main(["import_weights", "mnet", str(source), "-o", str(output)]) == 0
    weights = torch.load(output, weights_only=True)["network_weights"]
    # another number of classes: fine-tuning on another task is what the file is for
    ours = MNet(2, 5, features_per_stage=FEATURES)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    load_pretrained_weights(ours, output)
    heads = [key for key in before if ".seg_layers." in key]
    assert len(heads) == 7
    for key, value in ours.state_dict().items():
        assert torch.equal(value, before[key] if key in heads else weights[key]), key


def without(key):
    def change(state_dict):
        del state_dict[key]
        return state_dict

    return change


def with_more(**more):
    return lambda state_dict: {**state_dict, **more}


def transposed(state_dict):
    key = "up11.CB2d.conv1.conv.weight"
    return {**state_dict, key: state_dict[key].transpose(0, 1)}


CONTENT_FAULTS = {
    "missing key": (without("down22.CB3d.conv1.conv.weight"), [], ["down22.CB3d.conv1.conv.weight"]),
    "missing key that tells the features": (without("bottleneck1.CB2d.conv1.conv.weight"), [], ["bottleneck1"]),
    "missing head": (without("outputs.0.weight"), [], ["outputs.0.weight"]),
    "unexpected key": (with_more(extra_layer=torch.zeros(1)), [], ["extra_layer"]),
    "shape": (transposed, [], ["shape"]),
    "classes": (dict, ["--num-classes", "4"], ["3 classes", "4 classes"]),
    "channels": (dict, ["--input-channels", "1"], ["2 input channels", "1 input channels"]),
    "another network": (lambda _: {"encoder.weight": torch.zeros(1)}, [], ["encoder.weight", "MNet"]),
    "an nnU-Net v2 checkpoint": (lambda s: {"network_weights": s}, [], ["v2", "-pretrained_weights as it is"]),
    "no tensors": (lambda _: {"epoch": 3, "lr": 0.1}, [], ["epoch, lr are no tensor"]),
    "a list": (lambda s: list(s.values()), [], ["a list", "a dict of tensors"]),
    "empty": (lambda _: {}, [], ["a dict of tensors"]),
    "pickled objects": (in_v1_checkpoint, [], ["pickled Python objects", "--trust"]),
}


@pytest.mark.parametrize(("change", "flags", "told"), CONTENT_FAULTS.values(), ids=CONTENT_FAULTS)
def test_wrong_content(change, flags, told, tmp_path, capsys):
    source, output = tmp_path / "published.pth", tmp_path / "ours.pth"
    torch.save(change(dict(published().state_dict())), source)
    assert main(["import_weights", "mnet", str(source), "-o", str(output), *flags]) == 2
    message = capsys.readouterr().err
    for text in told:
        assert text in message
    assert not output.exists()


@pytest.mark.parametrize("flags", [[], ["--trust"]], ids=["restricted", "trusted"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) * 2 // 3],
        lambda whole: whole[:100],
        lambda whole: b"",
        lambda whole: b"hello world, this is no file of weights",
    ],
    ids=["truncated", "hardly begun", "empty", "text"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file(damage, flags, zipped, tmp_path, capsys):
    source = tmp_path / "published.pth"
    torch.save(published().state_dict(), source, _use_new_zipfile_serialization=zipped)
    source.write_bytes(damage(source.read_bytes()))
    assert main(["import_weights", "mnet", str(source), "-o", str(tmp_path / "ours.pth"), *flags]) == 2
    assert "cannot be read" in capsys.readouterr().err


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


def test_a_trusted_file_may_hold_objects_but_only_then(tmp_path):
    source = tmp_path / "published.model"
    torch.save(in_v1_checkpoint(published().state_dict()), source)
    assert import_weights.read_torch_file(source, trust=True)["epoch"] == 500
    with pytest.raises(ValueError, match="--trust"):
        import_weights.read_torch_file(source)


# method par: PlainConvUNet on stock plans, as nnUNetTrainer and BackboneTrainer hold it, and MNet
TRAINED = {
    "nnUNetTrainer": (UNET, lambda backbone: backbone.network),
    "BackboneTrainer": (UNET, lambda backbone: backbone),
    "MNetTrainer": (MNET, lambda backbone: backbone.network),
}
DESCRIPTION = {"channel_names": {"0": "MRI"}, "numTraining": 5, "file_ending": ".nii.gz", **LABELS}


def trained(architecture=UNET, **changes):
    """A trained backbone, and the plans that it was trained with."""
    torch.manual_seed(5)
    plans = hand_made_plans(architecture, **changes)
    backbone = BackboneNetwork(
        1,
        3,
        backbone=architecture["network_class_name"],
        spatial_shape=plans["configurations"]["3d_fullres"]["patch_size"],
        backbone_kwargs=architecture["arch_kwargs"],
    )
    return backbone, plans


def checkpoint(network, plans, trainer="nnUNetTrainer", configuration="3d_fullres"):
    """What nnU-Net's trainer saves, with the numbers of numpy in its logs."""
    losses = [np.float64(-0.5), np.float32(-0.6), np.float64(-0.7)]
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"val_losses": losses, "dice_per_class_or_region": [[np.float64(0.1), np.float32(0)]]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 3,
        "init_args": {
            "plans": plans,
            "configuration": configuration,
            "fold": 0,
            "dataset_json": DESCRIPTION,
            "device": torch.device("cpu"),
        },
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def start_of_par(tmp_path, content, *flags):
    source, output = tmp_path / "checkpoint_final.pth", tmp_path / "start.pth"
    torch.save(content, source)
    return main(["import_weights", "par", str(source), "-o", str(output), *flags]), output


@pytest.mark.parametrize("flags", [[], ["--num-classes", "3", "--input-channels", "1"], ["-c", "3d_cascade_fullres"]])
@pytest.mark.parametrize(("trainer", "architecture", "held"), [(name, *held) for name, held in TRAINED.items()])
def test_a_trained_network_becomes_the_backbone(trainer, architecture, held, flags, tmp_path, capsys):
    backbone, plans = trained(architecture)
    if "3d_cascade_fullres" in flags:  # one that takes the segmentation of the stage before beside the image
        del plans["configurations"]["3d_cascade_fullres"]["previous_stage"]
    status, output = start_of_par(tmp_path, checkpoint(held(backbone), plans, trainer), *flags)
    assert status == 0
    told = capsys.readouterr().out
    assert f"of {trainer}, 1 input channels, 3 classes, patch [8, 32, 32], the refiner fresh" in told
    torch.manual_seed(6)
    ours = PaRNetwork(
        1,
        3,
        backbone=architecture["network_class_name"],
        spatial_shape=(8, 32, 32),
        backbone_kwargs=architecture["arch_kwargs"],
    )
    weights = torch.load(output, weights_only=True)["network_weights"]
    assert weights.keys() == ours.state_dict().keys()
    load_pretrained_weights(ours, str(output))
    x = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        expected = backbone(x)
        assert all(torch.equal(one, other) for one, other in zip(ours.backbone(x), expected, strict=True))
        torch.testing.assert_close(ours(x)[0], ours.refiner(expected[0]))


def write_plans(folder, name, plans, description=DESCRIPTION):
    folder = folder / "nnUNet_preprocessed" / DATASET
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**plans, "plans_name": name}))
    (folder / "dataset.json").write_text(json.dumps(description))


WIDER = {**UNET, "arch_kwargs": {**UNET["arch_kwargs"], "features_per_stage": [4, 8, 12]}}
DEEPER = {
    **UNET,
    "arch_kwargs": {
        **UNET["arch_kwargs"],
        "n_stages": 4,
        "features_per_stage": [4, 8, 8, 8],
        "kernel_sizes": [[3, 3, 3]] * 4,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
        "n_conv_per_stage": [2] * 4,
        "n_conv_per_stage_decoder": [2] * 3,
    },
}


@pytest.mark.parametrize("dataset", [[], ["-d", "901"], ["-d", DATASET]], ids=str)
def test_other_plans_of_the_same_network(dataset, nnunet_folders, tmp_path, capsys):
    backbone, plans = trained()
    write_plans(nnunet_folders, "OtherPlans", hand_made_plans(UNET, patch_size=[16, 48, 64]))
    status, output = start_of_par(tmp_path, checkpoint(backbone.network, plans), "-p", "OtherPlans", *dataset)
    assert status == 0
    assert "patch [16, 48, 64]" in capsys.readouterr().out
    weights = torch.load(output, weights_only=True)["network_weights"]
    assert weights["refiner.sai.spatial_bias"].shape[1:] == (48, 64)


def without_seg_layers(content):
    weights = content["network_weights"]
    return {**content, "network_weights": {k: v for k, v in weights.items() if "seg_layers.0.bias" not in k}}


def refined(content):
    _, plans = trained()
    network = PaRTrainer.network_class(
        1, 3, backbone="MNet", spatial_shape=(4, 32, 32), backbone_kwargs={"features_per_stage": [2, 3, 4, 5, 6]}
    )
    return checkpoint(network, plans, "PaRTrainer")


def in_the_plans(*path, value):
    """A checkpoint whose init_args hold another value at the path."""

    def change(content):
        held = content["init_args"]
        for key in path[:-1]:
            held = held[key]
        held[path[-1]] = value
        return content

    return change


# what is changed in a checkpoint of PlainConvUNet, flags, and what the message says
PAR_FAULTS = {
    "no checkpoint": (lambda c: {"network_weights": c["network_weights"]}, [], ["a checkpoint that a training of"]),
    "a bare state dict": (lambda c: c["network_weights"], [], ["a checkpoint that a training of"]),
    "a list": (lambda c: [1, 2], [], ["a checkpoint that a training of"]),
    "refined already": (refined, [], ["has a refiner already", "-pretrained_weights as it is"]),
    "configuration": (dict, ["-c", "3d_lowres"], ["the configuration '3d_lowres'", "3d_fullres", "correct -c"]),
    "2D": (dict, ["-c", "2d"], ["3D configuration"]),
    "classes": (dict, ["--num-classes", "4"], ["plans with 3 classes", "expected 4 classes"]),
    "channels": (dict, ["--input-channels", "2"], ["plans with 1 input channels", "expected 2 input channels"]),
    "no such plans": (dict, ["-p", "NoPlans"], ["NoPlans.json", "plan_and_preprocess"]),
    "no such data set": (dict, ["-d", "902"], ["no data set 902"]),
    "wider": (dict, ["-p", "WiderPlans"], ["differs from the plans' backbone", "stages.2", "(8,) instead of (12,)"]),
    "deeper": (dict, ["-p", "DeeperPlans"], ["differs from the plans' backbone", "missing instead of (8,)"]),
    "another network": (dict, ["-p", "MNetPlans"], ["differs from the plans' backbone", "instead of"]),
    "other labels": (
        in_the_plans("dataset_json", value={**DESCRIPTION, "labels": {"background": 0, "organ": 1}}),
        [],
        ["differs from the plans' backbone", "refined_layers", "(3,) instead of (2,)"],
    ),
    "other channels": (
        in_the_plans("dataset_json", value={**DESCRIPTION, "channel_names": {"0": "T1", "1": "T2"}}),
        [],
        ["encoder.stages.0", "(4, 1, 3, 3, 3) instead of (4, 2, 3, 3, 3)"],
    ),
    "a missing head": (without_seg_layers, [], ["refined_layers.0.bias missing instead of (3,)"]),
}


@pytest.mark.parametrize(("change", "flags", "told"), PAR_FAULTS.values(), ids=PAR_FAULTS)
def test_what_cannot_start_a_refiner(change, flags, told, nnunet_folders, tmp_path, capsys):
    for name, architecture in {"WiderPlans": WIDER, "DeeperPlans": DEEPER, "MNetPlans": MNET}.items():
        write_plans(nnunet_folders, name, hand_made_plans(architecture))
    backbone, plans = trained()
    status, output = start_of_par(tmp_path, change(checkpoint(backbone.network, plans)), *flags)
    assert status == 2
    message = capsys.readouterr().err
    for text in told:
        assert text in message
    assert not output.exists()


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


def test_the_input_is_not_overwritten(tmp_path, capsys):
    file = tmp_path / "checkpoint_final.pth"
    file.write_bytes(b"whatever")
    assert main(["import_weights", "par", str(file), "-o", str(file)]) == 2
    assert "as the output" in capsys.readouterr().err
    assert file.read_bytes() == b"whatever"
