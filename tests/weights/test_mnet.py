"""From published weights of MNet to what nnU-Net's -pretrained_weights loads."""

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunetv2_ext.architectures import MNet
from nnunetv2_ext.cli import main
from nnunetv2_ext.weights.mnet import convert_published_state_dict
from tests.weights.made import FEATURES, in_parallel, in_plain_checkpoint, in_v1_checkpoint, published


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


def test_nnunet_loads_all_but_the_heads(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # PyTorch's switch against code in files
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
    "a number": (with_more(**{"outputs.0.weight": torch.zeros(())}), [], ["outputs.0.weight of shape ()"]),
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
