"""Every backbone keeps the contract of a network; what is special about some of them."""

import copy
import io
import json
import pickle
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_ext.architectures.backbones import BACKBONES, ours
from nnunetv2_ext.architectures.backbones.network import BackboneNetwork, record_of
from nnunetv2_ext.architectures.backbones.record import size_rule
from nnunetv2_ext.architectures.mnet import MNet
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.registry import find
from tests.architectures.test_contract import distinct_backbones

CHANNELS, CLASSES = 2, 3
SMALL_BACKBONES = {record.name: record.small for record in BACKBONES}
BACKBONE_PATCHES = {record.name: record.patches[0] for record in BACKBONES}
PLAIN, RESIDUAL = SMALL_BACKBONES["PlainConvUNet"], SMALL_BACKBONES["ResidualEncoderUNet"]
CARDIAC = {"patch_size": [1, 4, 4], "strides": [[1, 2, 2], [2, 2, 2], [2, 2, 2]]}
NAMES = list(SMALL_BACKBONES)
DISTINCT = [record.name for record in distinct_backbones()]
MONAI = [entry.name for entry in BACKBONES if entry.extra == "monai"]
SUPERVISED = {"PlainConvUNet": 2, "ResidualEncoderUNet": 2, "MNet": 7, "MedNeXt": 4, "nnFormer": 3}
IMPOSSIBLE = [(0, 32, 32), (8, 3, 32), (8, 32), (1, 1, 8, 32, 32)]


def build(name: str, **options: Any) -> Any:
    """The small network, always with the same weights."""
    torch.manual_seed(0)
    settings = {"spatial_shape": BACKBONE_PATCHES[name], "backbone_kwargs": SMALL_BACKBONES[name], **options}
    return BackboneNetwork(CHANNELS, settings.pop("num_classes", CLASSES), backbone=name, **settings)


def image(name: str, batch: int = 1) -> Tensor:
    return torch.randn(batch, CHANNELS, *BACKBONE_PATCHES[name], generator=torch.Generator().manual_seed(1))


def run(network: nn.Module, x: Tensor) -> Any:
    """The outputs; VNet's last two levels drop half of their channels, whatever their arguments say."""
    torch.manual_seed(2)
    return network(x)


@pytest.fixture(params=DISTINCT)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_small_arguments_and_patches_are_known_for_every_backbone() -> None:
    assert all(record.small and record.patches for record in BACKBONES)
    assert json.loads(json.dumps(SMALL_BACKBONES)) == SMALL_BACKBONES
    assert set(DISTINCT) == {
        "PlainConvUNet",
        "ResidualEncoderUNet",
        *(record.name for record in ours.BACKBONES),
        *MONAI,
    }


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(name: str) -> None:
    network = build(name)
    outputs = network(image(name, batch=2))
    shapes = network.deep_supervision_shapes(BACKBONE_PATCHES[name])
    assert [tuple(output.shape) for output in outputs] == [(2, CLASSES, *shape) for shape in shapes]
    assert tuple(shapes[0]) == BACKBONE_PATCHES[name]
    assert len(shapes) == SUPERVISED.get(name.rstrip("MLX") if name.startswith("Res") else name, 1)
    assert sorted(shapes, reverse=True) == list(shapes) or name == "MNet"
    sum(output.square().mean() for output in outputs).backward()
    without = {n for n, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None}
    assert without == set()


def test_parameters_that_unetr_never_uses_are_frozen() -> None:
    frozen = [n for n, parameter in build("UNETR").named_parameters() if not parameter.requires_grad]
    assert len(frozen) >= 24  # more of them before MONAI 1.6
    assert all("cross_attn" in n for n in frozen)


def test_deep_supervision_is_a_switch_in_both_modes(name: str) -> None:
    network, x = build(name), image(name)
    off = build(name, deep_supervision=False)
    for mode in (True, False):
        off.load_state_dict(network.state_dict(), strict=True)  # again: VNet's batch normalisation has seen one image
        network.train(mode)
        off.train(mode)
        with torch.no_grad():
            network.deep_supervision = True
            outputs, alone = run(network, x), run(off, x)
            network.deep_supervision = False
            switched = run(network, x)
        assert isinstance(outputs, list)
        assert len(outputs) == len(network.deep_supervision_shapes(BACKBONE_PATCHES[name]))
        assert isinstance(alone, Tensor)
        torch.testing.assert_close(outputs[0], alone)
        torch.testing.assert_close(switched, alone)


@pytest.mark.parametrize("name", ["PlainConvUNet", "MNet", "MedNeXt"])
def test_side_outputs_are_not_computed_when_off(name: str) -> None:
    network = build(name, deep_supervision=False)
    network(image(name)).mean().backward()
    idle = [n for n, parameter in network.named_parameters() if parameter.grad is None]
    assert {n.split(".")[1] for n in idle} <= {"decoder", "heads", "out_blocks"}
    assert len(idle) >= SUPERVISED[name] - 1


def test_modes_reach_the_network(name: str) -> None:
    network = build(name).eval()
    inner = [module.training for module in network.network.modules()][1:]
    assert not any(inner)
    assert not network.training
    assert all(module.training for module in network.train().modules())


def test_autocast(name: str) -> None:
    network, x = build(name).eval(), image(name)
    with torch.no_grad():
        exact = network(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(x)[0]
    assert torch.cosine_similarity(rounded.float().flatten(), exact.flatten(), dim=0) > 0.95


def test_state_dict_pickling_and_copies(name: str) -> None:
    network, x = build(name), image(name)
    with torch.no_grad():
        expected = network.eval()(x)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    torch.manual_seed(1)
    loaded = BackboneNetwork(
        CHANNELS,
        CLASSES,
        backbone=find("backbone", name).path,
        spatial_shape=BACKBONE_PATCHES[name],
        backbone_kwargs=SMALL_BACKBONES[name],
    )
    blank = pickle.loads(pickle.dumps(loaded))
    duplicate = copy.deepcopy(loaded)
    within = nn.ModuleDict({"inner": copy.deepcopy(loaded)})
    for other in (loaded, blank, duplicate):
        other.load_state_dict(state, strict=True)
    within.load_state_dict({f"inner.{key}": tensor for key, tensor in state.items()}, strict=True)
    assert list(within.state_dict()) == [f"inner.{key}" for key in network.state_dict()]
    for other in (loaded, blank, duplicate, within["inner"]):
        assert other.state_dict().keys() == state.keys()
        with torch.no_grad():
            for output, one in zip(other.eval()(x), expected, strict=True):
                torch.testing.assert_close(output, one)


def test_heads_are_what_pretrained_weights_leave_out(name: str) -> None:
    fewer, more = (build(name, num_classes=classes).state_dict() for classes in (2, 4))
    assert fewer.keys() == more.keys()
    differing = {key for key, tensor in fewer.items() if tensor.shape != more[key].shape}
    assert differing
    assert all(".seg_layers." in key for key in differing)


@pytest.mark.parametrize("patch", IMPOSSIBLE, ids=str)
def test_impossible_sizes(name: str, patch: tuple[int, ...]) -> None:
    network = build(name)
    for measure in (network.deep_supervision_shapes, network.compute_conv_feature_map_size):
        with pytest.raises(InputError, match="patch"):
            measure(patch)
    with pytest.raises(InputError, match="patch"):
        network(torch.zeros(1, CHANNELS, *patch))
    with pytest.raises(InputError, match="patch"):
        build(name, spatial_shape=patch)


@pytest.mark.parametrize(
    ("backbone", "kwargs", "divisor", "minimum"),
    [
        ("PlainConvUNet", PLAIN, (2, 4, 4), (2, 4, 8)),
        ("ResidualEncoderUNetL", RESIDUAL, (2, 4, 4), (2, 4, 8)),
        ("MNet", None, (1, 1, 1), (1, 16, 32)),
        ("nnFormer", None, (16, 32, 32), (16, 32, 32)),
        ("nnFormer", {"window_rule": "per_axis", **CARDIAC}, (1, 4, 4), (4, 32, 32)),
        ("nnFormer", CARDIAC, (4, 32, 32), (4, 32, 32)),
        ("UNet", None, (16, 16, 16), (16, 16, 32)),
        ("UNet", SMALL_BACKBONES["UNet"], (2, 4, 4), (2, 4, 8)),
        ("VNet", None, (16, 16, 16), (16, 16, 32)),
        ("SegResNet", None, (8, 8, 8), (8, 8, 16)),
        ("SegResNet", SMALL_BACKBONES["SegResNet"], (4, 4, 4), (4, 4, 8)),
        ("UNETR", None, (16, 16, 16), (16, 16, 16)),
        ("SwinUNETR", None, (32, 32, 32), (32, 32, 64)),
        ("UXNet", None, (16, 16, 16), (16, 16, 32)),
        ("UXNet", SMALL_BACKBONES["UXNet"], (2, 4, 8), (2, 4, 16)),
        ("SegFormer3D", None, (4, 4, 4), (16, 16, 36)),
        ("SegFormer3D", {"patch_stride": [1, 4, 4]}, (1, 4, 4), (4, 16, 36)),
        ("SwinSMT", None, (32, 32, 32), (32, 32, 64)),
        ("SlimUNETR", None, (32, 32, 32), (32, 32, 64)),
        ("MedNeXt", None, (16, 16, 16), (16, 16, 32)),
        ("MedNeXt", SMALL_BACKBONES["MedNeXt"], (8, 8, 8), (8, 8, 16)),
    ],
)
def test_size_rules(backbone: str, kwargs: Any, divisor: Sequence[int], minimum: Sequence[int]) -> None:
    assert size_rule(record_of(backbone), kwargs) == (divisor, minimum)
    # the smallest size works, in the network that the rule is for as in a small one of the same levels
    small = {**SMALL_BACKBONES[backbone], **{key: value for key, value in (kwargs or {}).items() if key != "norm"}}
    if kwargs is None:
        with torch.device("meta"):
            network: Any = BackboneNetwork(1, 2, backbone=backbone, spatial_shape=minimum)
        assert network.divisor == divisor
        assert network.compute_conv_feature_map_size(minimum) > 0
        return
    network = build(backbone, spatial_shape=minimum, backbone_kwargs=small)
    assert network.divisor == divisor
    network(torch.randn(1, CHANNELS, *minimum))[0].mean().backward()


def test_smallest_patches(name: str) -> None:
    _, minimum = size_rule(record_of(name), SMALL_BACKBONES[name])
    network = build(name, spatial_shape=minimum)
    outputs = network(torch.randn(1, CHANNELS, *minimum))
    sum(output.square().mean() for output in outputs).backward()
    assert all(output.isfinite().all() for output in outputs)


@pytest.mark.parametrize(
    ("backbone", "patch", "remedy"),
    [
        ("VNet", (20, 64, 64), "choose patch_size [16, 64, 64] or [32, 64, 64]"),
        ("VNet", (16, 16, 16), "choose patch_size [16, 16, 32]."),
        ("VNet", (8, 70, 1), "choose patch_size [16, 64, 16] or [16, 80, 16]"),
        ("UNETR", (15, 1, 1), "choose patch_size [16, 16, 16]."),
        ("UNETR", (32, 32, 32), "choose patch_size [16, 32, 16], or plan again"),
        ("UXNet", (5, 21, 17), "choose patch_size [4, 20, 16] or [6, 24, 24]"),
        ("SegFormer3D", (5, 21, 17), "choose patch_size [5, 20, 36] or [5, 22, 36]"),
        ("SegFormer3D", (8, 16, 32), "choose a patch_size of at least 9, 18 or 36 voxels along z, y or x."),
        ("PlainConvUNet", (5, 21, 16), "choose patch_size [4, 20, 16] or [6, 24, 16]"),
    ],
)
def test_a_refused_patch_names_the_nearest_that_would_do(backbone: str, patch: tuple[int, ...], remedy: str) -> None:
    with pytest.raises(InputError, match=re.escape(remedy)) as error:
        build(backbone).deep_supervision_shapes(patch)
    assert str(patch) in str(error.value)


def test_feature_map_size_grows_with_the_patch(name: str) -> None:
    divisor, minimum = size_rule(record_of(name), SMALL_BACKBONES[name])
    sizes = []
    for factor in (1, 2):
        patch = tuple(factor * size for size in minimum)
        network = build(name, spatial_shape=patch)
        sizes.append(network.compute_conv_feature_map_size(patch))
        assert network.compute_conv_feature_map_size(list(patch)) == sizes[-1]
    assert 5 < sizes[1] / sizes[0] < 16
    assert divisor == network.divisor


@pytest.mark.parametrize("name", MONAI)
def test_feature_map_size_does_not_depend_on_where_the_network_lies(name: str) -> None:
    patch, network = BACKBONE_PATCHES[name], build(name).double().eval()
    state = copy.deepcopy(network.state_dict())
    with torch.inference_mode():
        size = network.compute_conv_feature_map_size(patch)
    with torch.device("meta"):
        assert build(name).compute_conv_feature_map_size(patch) == size
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    assert not network.training
    network.deep_supervision = False
    assert network.compute_conv_feature_map_size(patch) <= size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "nnUNext"}, "one of PlainConvUNet, .*MedNeXt"),
        ({"backbone": "torch.nn.Nothing"}, "dotted path"),
        ({"backbone": "torch.nn.functional.relu"}, "dotted path"),
        ({"backbone": "torch.nn.Conv3d"}, "backbone_kwargs"),
        ({"backbone": "PlainConvUNet"}, "no n_stages, .*strides.*plans"),
        ({"backbone": "PlainConvUNet", "backbone_kwargs": {**PLAIN, "strides": [[1, 1]] * 3}}, "three axes"),
        ({"backbone": "PlainConvUNet", "backbone_kwargs": {**PLAIN, "nonlin": "torch.nn.Nothing"}}, "nonlin="),
        ({"backbone": "PlainConvUNet", "backbone_kwargs": {**PLAIN, "n_stages": 4}}, "correct them"),
        ({"backbone": "MNet", "backbone_kwargs": {"merge": "product"}}, "merge='product'"),
        ({"backbone": "MNet", "backbone_kwargs": {"features": [1]}}, "features in backbone_kwargs of MNet"),
        ({"backbone": "UNet", "backbone_kwargs": {"chanels": [1]}}, "chanels in .*expected some of channels"),
        ({"backbone": "UNet", "backbone_kwargs": {"in_channels": 1}}, "in_channels in"),
        ({"backbone": "UNet", "backbone_kwargs": {"strides": 2}}, "strides=2"),
        ({"backbone": "SegResNet", "backbone_kwargs": {"use_conv_final": False}}, "use_conv_final in"),
        ({"backbone": "SwinUNETR", "backbone_kwargs": {"feature_size": 16}}, "divisible by 12"),
        ({"backbone": "SwinSMT", "backbone_kwargs": {"feature_size": 16}}, "16, 32, 64, 128 features with 3, 6"),
        ({"backbone": "SlimUNETR", "backbone_kwargs": {"r": [3, 2, 2, 1]}}, "every 3-th voxel of .8, 8, 16."),
        # what the constructors raise: ZeroDivisionError, RuntimeError, AttributeError of nnU-Net's initialisation
        ({"backbone": "UNETR", "backbone_kwargs": {"num_heads": 0}}, "UNETR.*correct them"),
        ({"backbone": "MedNeXt", "backbone_kwargs": {"kernel_size": -1}}, "MedNeXt.*correct them"),
        ({"backbone": "ResidualEncoderUNet", "backbone_kwargs": {**RESIDUAL, "norm_op": None}}, "UNet.*correct them"),
        ({"backbone": "VNet", "input_channels": 3}, "in_channels=3"),
        ({"backbone": "VNet", "spatial_shape": (20, 32, 32)}, r"patch of \(20, 32, 32\).*multiples of \(16, 16, 16\)"),
        ({"backbone": "VNet", "spatial_shape": (32, 32)}, "3D configuration"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BackboneNetwork(**{"input_channels": 1, "num_classes": 2, "spatial_shape": (32, 32, 64), **settings})


@pytest.mark.parametrize(("backbone", "kwargs"), [("nnUNext", None), ("PlainConvUNet", None), ("UNet", {"strides": 2})])
def test_size_rules_of_bad_arguments(backbone: str, kwargs: Any) -> None:
    with pytest.raises(InputError):
        size_rule(record_of(backbone), kwargs)


@pytest.mark.parametrize("name", MONAI)
def test_missing_monai_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        """Finds no module of MONAI, as if it were not installed."""

        def find_spec(self, module: str, *_: object) -> None:
            if module.partition(".")[0] == "monai":
                raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    home = find("backbone", name).load().__module__
    for module in [*sys.modules]:
        if module.partition(".")[0] == "monai" or module == home:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(InputError, match=r"nnunetv2_ext\[monai\]"):
        build(name)
    assert size_rule(record_of(name), SMALL_BACKBONES[name])[0] == size_rule(record_of(name), SMALL_BACKBONES[name])[0]


class OwnNetwork(MNet):
    """A user's network with our contract."""


class WithoutLayout(nn.Module):
    """A user's network with neither our contract nor a decoder."""

    def __init__(self, input_channels: int, num_classes: int, strides: Sequence[Any], deep_supervision: bool = True):
        super().__init__()


def test_networks_of_the_user() -> None:
    path = f"{__name__}.OwnNetwork"
    network: Any = BackboneNetwork(
        1, 2, backbone=path, spatial_shape=(5, 33, 32), backbone_kwargs=SMALL_BACKBONES["MNet"]
    )
    assert isinstance(network.network, OwnNetwork)
    assert len(network(torch.randn(1, 1, 5, 33, 32))) == 7
    assert size_rule(record_of(path)) == ((1, 1, 1), (1, 1, 1))

    path = "dynamic_network_architectures.architectures.unet.ResidualUNet"
    network = BackboneNetwork(1, 2, backbone=path, spatial_shape=(6, 20, 16), backbone_kwargs=RESIDUAL)
    assert [tuple(output.shape[2:]) for output in network(torch.randn(1, 1, 6, 20, 16))] == [(6, 20, 16), (6, 10, 8)]
    assert size_rule(record_of(path), RESIDUAL) == size_rule(record_of("ResidualEncoderUNet"), RESIDUAL)

    with pytest.raises(InputError, match="nnU-Net's layout"):
        BackboneNetwork(
            1,
            2,
            backbone=f"{__name__}.WithoutLayout",
            spatial_shape=(4, 4, 8),
            backbone_kwargs={"strides": [[1, 1, 1], [2, 2, 2]]},
        )


def test_a_path_of_the_list_is_its_entry() -> None:
    network = BackboneNetwork(1, 2, backbone=find("backbone", "UNETR").path, spatial_shape=(16, 16, 16))
    assert network.backbone == "UNETR"
    assert sum(parameter.numel() for parameter in network.parameters()) > 90e6


def test_nnunets_own_initialisation_is_applied() -> None:
    biases = [m.bias for m in build("PlainConvUNet").modules() if isinstance(m, nn.Conv3d)]
    assert all(bias is not None and not bias.any() for bias in biases)
    assert not hasattr(build("PlainConvUNet"), "initialize"), "nnU-Net would apply it to a refiner too"


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["UNETR", "MedNeXt"])
def test_distributed(name: str, one_process: None) -> None:
    network = build(name)
    parallel = DistributedDataParallel(network)
    for _ in range(2):  # the second step fails if a parameter of the first had no gradient
        sum(output.square().mean() for output in parallel(image(name))).backward()
    assert {f"module.{key}" for key in network.state_dict()} == parallel.state_dict().keys()
    network.load_state_dict({k.removeprefix("module."): v for k, v in parallel.state_dict().items()}, strict=True)
