"""From a published state dict to files from which nnU-Net starts BackboneTrainer and PaRTrainer."""

import inspect
import json

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunetv2_ext.architectures import BackboneNetwork, PaRNetwork
from nnunetv2_ext.architectures.backbones import BACKBONES, find_backbone
from nnunetv2_ext.cli import main
from nnunetv2_ext.weights.backbone import INDEX, resampled
from tests.training.conftest import DATASET, LABELS, hand_made_plans

SMALL = {entry.name: json.dumps(entry.small) for entry in BACKBONES}
FILE_PATCH = ["--file-patch", "8", "8", "8"]
PUBLISHED = [entry.name for entry in BACKBONES if entry.preset_gb is None and entry.name != "VNet"]
"""Those that can be made small."""


def published(name, patch=None, input_channels=1, classes=3, **kwargs):
    """The network within, as the authors would publish it."""
    record = find_backbone(name)
    torch.manual_seed(3)
    shape = patch or record.patches[0]
    options = {"backbone": name, "spatial_shape": shape, "backbone_kwargs": {**record.small, **kwargs}}
    return BackboneNetwork(input_channels, classes, **options).network.state_dict()


def convert(folder, content, name, *flags, patch=None, kwargs=None):
    """The exit status of the command without plans, and the file that it writes."""
    source, output = folder / "published.pth", folder / "start.pth"
    torch.save(content, source)
    sizes = map(str, patch or find_backbone(name).patches[0])
    shape = ["--patch-size", *sizes, "--backbone-kwargs", json.dumps(kwargs) if kwargs else SMALL[name]]
    command = ["import_weights", "backbone", "--backbone", name, str(source), "-o", str(output), *shape, *flags]
    return main(command), output


def started(output, network_class, name, patch=None, channels=1, classes=3):
    """A network that nnU-Net has started from the file."""
    options = {"backbone": name, "spatial_shape": patch or find_backbone(name).patches[0]}
    torch.manual_seed(4)
    network = network_class(channels, classes, **options, backbone_kwargs=find_backbone(name).small)
    load_pretrained_weights(network, str(output))
    return network


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_reach_both_trainers(name, tmp_path, capsys):
    record, weights = find_backbone(name), published(name)
    used = [key for key in weights if not record.never_used or record.never_used not in key]
    content = {f"module.network.{key}": weights[key] for key in used}
    content |= {f"{prefix}more": torch.ones(1) for prefix in record.unused}
    status, output = convert(tmp_path, {"state_dict": content, "epoch": 3}, name)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert f"{name}, 1 input channels, 3 classes, patch {list(record.patches[0])}" in printed.out
    takes_order = "merging" in inspect.signature(record.load()).parameters
    assert ("weights that were made with MONAI 1.4 or older" in printed.out) == takes_order
    under_refiner = started(output, PaRNetwork, name).backbone.network.state_dict()
    assert all(torch.equal(under_refiner[key], weights[key]) for key in used)
    alone = started(output, BackboneNetwork, name)
    names = zip(alone.network.state_dict(), alone.state_dict().items(), strict=True)
    for key, (ours, value) in names:
        assert key not in used or ".seg_layers." in ours or torch.equal(value, weights[key]), key


def test_the_file_holds_each_tensor_once(tmp_path):
    weights = published("SegResNet")
    _, output = convert(tmp_path, weights, "SegResNet")
    values = sum(tensor.numel() for tensor in weights.values())
    assert output.stat().st_size < 1.5 * 4 * values + 600_000


def test_channels_and_classes_are_those_of_the_file(tmp_path, capsys):
    status, output = convert(tmp_path, published("UNet", input_channels=2, classes=5), "UNet")
    assert status == 0
    assert "2 input channels, 5 classes" in capsys.readouterr().out
    started(output, PaRNetwork, "UNet", channels=2, classes=5)


def test_fresh_heads_let_the_classes_be_others(tmp_path, capsys):
    weights = published("UNet", classes=5)
    status, output = convert(tmp_path, weights, "UNet", "--num-classes", "3", "--fresh-heads")
    assert status == 0
    assert "3 classes" in (told := capsys.readouterr().out) and "segmentation heads: fresh" in told
    ours = started(output, PaRNetwork, "UNet", classes=3).backbone.network.state_dict()
    other = [key for key in ours if ours[key].shape != weights[key].shape or not torch.equal(ours[key], weights[key])]
    assert other and all(key.startswith("model.2.") for key in other)


@pytest.mark.parametrize(
    ("row", "told"), [(27, "from 0 to 27; expected rows of its table, 0 to 26"), (-1, "from -1 to")]
)
def test_an_index_past_its_table(row, told, tmp_path, capsys):
    weights = published("nnFormer")
    weights["model_down.layers.1.blocks.0.attn.relative_position_index"][0, 0] = row
    status, output = convert(tmp_path, weights, "nnFormer")
    assert status == 2 and not output.exists()
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "flags", "told"),
    [
        ((32, 32, 32), [], "from 2 x 2 x 2 tokens, patch 32 x 32 x 32 (taken for a cube, else pass --file-patch)"),
        ((16, 48, 16), ["--file-patch", "16", "48", "16"], "from 1 x 3 x 1 tokens, patch 16 x 48 x 16, to 1 x 2 x 1"),
        ((16, 32, 16), [], None),
    ],
)
def test_positions_of_another_patch_are_resampled_and_said(before, flags, told, tmp_path, capsys):
    name, key = "UNETR", "vit.patch_embedding.position_embeddings"
    weights = published(name, patch=before)
    status, output = convert(tmp_path, weights, name, *flags)
    assert status == 0
    assert ("resampled" in (printed := capsys.readouterr().out)) == (told is not None)
    assert told is None or told in printed
    ours = started(output, PaRNetwork, name).backbone.network.state_dict()[key]
    grid = tuple(size // 16 for size in before)
    assert torch.equal(ours, resampled(weights[key], grid, (1, 2, 1)))


def test_a_ramp_of_positions_stays_a_ramp():
    """Centres of voxels stay where they are: along z twice as fine, along x half as fine."""
    z, y, x = torch.meshgrid(torch.arange(4.0), torch.arange(3.0), torch.arange(6.0), indexing="ij")
    finer = resampled(torch.stack([z, y, x], -1).reshape(1, -1, 3), (4, 3, 6), (8, 3, 3)).reshape(8, 3, 3, 3)
    assert torch.allclose(finer[:, 0, 0, 0], ((torch.arange(8) + 0.5) / 2 - 0.5).clamp(0, 3))
    assert torch.allclose(finer[0, :, 0, 1], torch.arange(3.0))
    assert torch.allclose(finer[0, 0, :, 2], 2 * torch.arange(3) + 0.5)


def plans_of(backbone, folder, **kwargs):
    """Plans of a backbone on disk, as BackbonePlanner writes them."""
    record = find_backbone(backbone)
    arguments = {
        "backbone": backbone,
        "spatial_shape": record.patches[0],
        "backbone_kwargs": {**record.small, **kwargs},
    }
    network = {"network_class_name": "nnunetv2_ext.architectures.BackboneNetwork", "_kw_requires_import": []}
    plans = hand_made_plans({**network, "arch_kwargs": arguments}, patch_size=list(record.patches[0]))
    folder = folder / "nnUNet_preprocessed" / DATASET
    folder.mkdir()
    (folder / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
    dataset_json = {"channel_names": {"0": "T1", "1": "T2"}, "numTraining": 5, "file_ending": ".nii.gz", **LABELS}
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return ["-d", "901", "-p", plans["plans_name"]]


def test_plans_tell_the_network(nnunet_folders, tmp_path, capsys):
    flags = plans_of("SegResNet", nnunet_folders)
    source, output = tmp_path / "published.pth", tmp_path / "start.pth"
    torch.save(published("SegResNet", input_channels=2), source)
    command = ["import_weights", "backbone", str(source), "-o", str(output), *flags]
    assert main(command) == 0
    assert "SegResNet, 2 input channels, 3 classes, patch [4, 12, 16]" in capsys.readouterr().out
    started(output, PaRNetwork, "SegResNet", channels=2)
    for more, told in (
        (["--backbone", "VNet"], "of SegResNet; expected VNet"),
        (["--patch-size", "8", "8", "8"], "--patch-size beside plans"),
        (["--num-classes", "4"], "plans with 3 classes; expected 4"),
        (["-c", "3d_lowres"], "the configuration '3d_lowres'"),
        (["-p", "None"], "None.json"),
    ):
        assert main([*command, *more]) == 2
        assert told in capsys.readouterr().err, more
    torch.save(published("SegResNet", input_channels=2, classes=4), source)
    assert main(command) == 2
    assert "with 4 classes; expected 3, as" in (error := capsys.readouterr().err) and "--fresh-heads" in error
    assert main([*command, "--fresh-heads"]) == 0


def of_unet(change=lambda weights: weights, **kwargs):
    return lambda: change(published("UNet", **kwargs))


FAULTS = {
    "another network": (
        lambda: published("BasicUNet"),
        [],
        ["differs from UNet at patch [6, 20, 16] in", "missing"],
    ),
    "a tensor more": (of_unet(lambda weights: {**weights, "more": torch.ones(1)}), [], ["(more (1,)"]),
    "a tensor less": (
        of_unet(lambda weights: dict([*weights.items()][1:])),
        [],
        ["in 1 tensor (model.0", "missing"],
    ),
    "other widths": (of_unet(channels=[4, 6, 10]), [], ["(10", "--backbone-kwargs"]),
    "other classes": (of_unet(), ["--num-classes", "4"], ["with 3 classes; expected 4, as the flags say", "--fresh"]),
    "other channels": (of_unet(), ["--input-channels", "2"], ["with 1 input channels; expected 2"]),
    "no numbers": (of_unet(lambda weights: {k: v / 0 for k, v in weights.items()}), [], ["no finite numbers"]),
    "a checkpoint": (of_unet(lambda weights: {"network_weights": weights}), [], ["with the trainer that wrote it"]),
    "no tensors": (lambda: {"a": 1}, [], ["a is no tensor", "check the file"]),
    "under another name": (
        of_unet(lambda weights: {"model": weights, "optimizer": {"state": {}}}),
        [],
        ["model, optimizer are no tensor", "save its model alone"],
    ),
}


@pytest.mark.parametrize(("make", "flags", "told"), FAULTS.values(), ids=FAULTS)
def test_what_is_refused(make, flags, told, tmp_path, capsys):
    status, output = convert(tmp_path, make(), "UNet", *flags)
    assert status == 2 and not output.exists()
    error = capsys.readouterr().err
    assert "got " in error and "; expected " in error
    assert all(words in error for words in told), error


def others(patch=(8, 16, 24), **kwargs):
    """TransBTS with other arguments than the target's."""
    return lambda: published("TransBTS", patch=patch, **kwargs)


def narrow():
    """TransBTS whose positions lack a feature."""
    weights, key = published("TransBTS", patch=(8, 16, 24)), "position_encoding.position_embeddings"
    return {**weights, key: weights[key][..., 1:]}


WRONG = {
    "arguments before positions": (
        "TransBTS",
        others(base_channels=4),
        [],
        ["--backbone-kwargs", "bias (4,) instead of (2,)"],
    ),
    "and with the patch told": (
        "TransBTS",
        others(base_channels=4, patch=(4, 16, 24)),
        ["--file-patch", "4", "16", "24"],
        ["--backbone-kwargs", "differs from TransBTS"],
    ),
    "features of positions": ("TransBTS", narrow, [], ["in 1 tensor", "position_embeddings (1, 12, 63) instead of"]),
    "a patch of negative sizes": (
        "TransBTS",
        others(),
        ["--file-patch", "-8", "-16", "24"],
        ["multiples of (4, 8, 8)"],
    ),
    "half tokens": ("TransBTS", others(), ["--file-patch", "11", "39", "31"], ["--file-patch 11 39 31", "(4, 8, 8)"]),
    "no index": (
        "nnFormer",
        lambda: {key: value for key, value in published("nnFormer").items() if INDEX not in key},
        [],
        [INDEX, "do not follow from its windows", "with its buffers"],
    ),
}


@pytest.mark.parametrize(("name", "make", "flags", "told"), WRONG.values(), ids=WRONG)
def test_which_fault_is_told(name, make, flags, told, tmp_path, capsys):
    status, output = convert(tmp_path, make(), name, *flags)
    assert status == 2 and not output.exists()
    error = capsys.readouterr().err
    assert all(words in error for words in told), error


@pytest.mark.parametrize("name", ["SwinSMT", "SwinUNETR"])
def test_an_index_that_follows_from_the_windows_may_be_missing(name, tmp_path):
    weights = published(name)
    status, output = convert(tmp_path, {key: value for key, value in weights.items() if INDEX not in key}, name)
    assert status == 0
    ours = started(output, PaRNetwork, name).backbone.network.state_dict()
    assert all(torch.equal(ours[key], weights[key]) for key in weights)


def test_nnformer_of_other_levels_starts_with_other_classes(tmp_path, capsys):
    name, patch = "nnFormer", (32, 64, 64)
    five = {"depths": [1] * 5, "num_heads": [1, 2, 2, 4, 4], "window_size": [2] * 5}
    kwargs = {**find_backbone(name).small, **five}
    weights = published(name, patch, classes=4, **five)
    flags = ["--num-classes", "2", "--fresh-heads"]
    status, output = convert(tmp_path, weights, name, *flags, patch=patch, kwargs=kwargs)
    assert status == 0, capsys.readouterr().err
    network = BackboneNetwork(1, 2, backbone=name, spatial_shape=patch, backbone_kwargs=kwargs)
    assert network.head is network.network.final[0].up
    load_pretrained_weights(network, str(output))
    heads = [key for key in network.state_dict() if ".seg_layers." in key]
    assert len(heads) == 8  # weight and bias of each level but the lowest
    ours = network.network.state_dict()
    assert all(torch.equal(ours[key], weights[key]) for key in weights if not key.startswith("final."))


@pytest.mark.parametrize(
    ("before", "flags", "told"),
    [
        ((16, 48, 16), [], ["of 3 tokens", "has 2", "--file-patch Z Y X"]),
        ((16, 48, 16), ["--file-patch", "16", "16", "16"], ["of 3 tokens", "1, as a patch of [16, 16, 16]"]),
        ((16, 48, 16), ["--file-patch", "16", "x", "16"], ["--file-patch 16 x 16"]),
    ],
)
def test_positions_of_no_known_patch(before, flags, told, tmp_path, capsys):
    status, _ = convert(tmp_path, published("UNETR", patch=before), "UNETR", *flags)
    error = capsys.readouterr().err
    assert status == 2
    assert all(words in error for words in told), error


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["backbone"], "neither plans nor a network"),
        (["backbone", "--backbone", "UNet"], "neither plans nor a network"),
        (["backbone", "--backbone", "None", "--patch-size", "8", "8", "8"], "the backbone 'None'"),
        (["backbone", "--backbone", "UNet", "--patch-size", "8", "9", "8"], "multiples of"),
        (["backbone", "--backbone", "UNet", "--patch-size", "16", "16", "32", *FILE_PATCH], "leave it out"),
        (["backbone", "-p", "Plans"], "no -d"),
        (["mnet", "--fresh-heads"], "--fresh-heads beside mnet"),
        (["par", "--backbone", "UNet"], "--backbone beside par"),
    ],
)
def test_flags_that_do_not_go_together(command, told, tmp_path, capsys):
    source = tmp_path / "published.pth"
    torch.save(published("UNet"), source)
    assert main(["import_weights", command[0], str(source), "-o", str(tmp_path / "start.pth"), *command[1:]]) == 2
    assert told in capsys.readouterr().err
