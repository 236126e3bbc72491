"""Activation checkpointing: the same outputs, gradients, statistics and chance, for less memory."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures import BackboneNetwork, ConvFreeTransformer, HierarchicalSegmentor, MNet, PaRNetwork
from nnunetv2_ext.architectures.backbones import BACKBONES, find_backbone
from nnunetv2_ext.architectures.layers.checkpointing import make_stages, stages_of
from nnunetv2_ext.architectures.measure import kept_elements, without_values
from nnunetv2_ext.errors import InputError

NAMES = [record.name for record in BACKBONES if not record.name.startswith("ResidualEncoderUNet")]
FEATURES = (4, 6, 8, 10, 12)


def backbone(name: str, again: bool, **options: Any) -> Any:
    record = find_backbone(name)
    return BackboneNetwork(
        1,
        2,
        backbone=name,
        spatial_shape=record.patches[0],
        backbone_kwargs=record.small,
        activation_checkpointing=again,
        **options,
    )


def transformer(context: str) -> Callable[[bool], nn.Module]:
    small: dict[str, Any] = {"embed_dim": 12, "depth": 3, "num_heads": 2, "dropout": 0.2, "drop_path": 0.2}
    return lambda again: ConvFreeTransformer(
        1, 2, spatial_shape=(4, 8, 8), token_size=(2, 4, 4), context=context, activation_checkpointing=again, **small
    )


def refined(again: bool) -> nn.Module:
    record = find_backbone("PlainConvUNet")
    return PaRNetwork(
        1,
        2,
        backbone="PlainConvUNet",
        spatial_shape=record.patches[0],
        backbone_kwargs=record.small,
        activation_checkpointing=again,
    )


def hierarchical(again: bool) -> nn.Module:
    small: dict[str, Any] = {"features": 4, "tokens": 20, "deep_supervision": True, "activation_checkpointing": again}
    strides, kernels = [[1, 1, 1], [1, 2, 2]], [[1, 3, 3], [3, 3, 3]]
    return HierarchicalSegmentor(1, 2, spatial_shape=(6, 8, 12), strides=strides, kernel_sizes=kernels, **small)


# name: builder, patch
CASES: dict[str, tuple[Callable[[bool], Any], tuple[int, ...]]] = {
    **{name: (partial(backbone, name), find_backbone(name).patches[0]) for name in [*NAMES, "ResidualEncoderUNet"]},
    "MNet alone": (lambda again: MNet(1, 2, features_per_stage=FEATURES, activation_checkpointing=again), (9, 33, 37)),
    "PaR": (refined, find_backbone("PlainConvUNet").patches[0]),
    "ConvFree": (transformer("patch"), (4, 8, 8)),
    "Hierarchical": (hierarchical, (6, 8, 12)),
    "ConvFree blocks": (transformer("block"), (4, 8, 8)),
}


def built(name: str, again: bool) -> Any:
    torch.manual_seed(0)
    return CASES[name][0](again)


def stepped(network: Any, patch: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Any]:
    """Outputs and gradients of a step; the same chance each time."""
    torch.manual_seed(1)
    x = torch.randn(2, 1, *patch, dtype=dtype)
    outputs = network(x)
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    # two passes before one goes back, as thin-thick training makes them
    more = network(x.flip(0))
    more = [more] if isinstance(more, Tensor) else more
    torch.stack([y.float().square().mean() + y.float().sin().mean() for y in (*outputs, *more)]).sum().backward()
    parameters = getattr(network, "_orig_mod", network).named_parameters()  # of a compiled one
    return outputs, {name: p.grad for name, p in parameters if p.grad is not None}


def like(name: str, network: Any, other: Any, dtype: torch.dtype = torch.float64) -> None:
    patch = CASES[name][1]
    (expected, gradients), (outputs, found) = (stepped(one, patch, dtype) for one in (network, other))
    for output, one in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, one, rtol=1e-9, atol=1e-12)
    assert found.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-12 * largest, msg=key)
    for (key, buffer), (_, one) in zip(network.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(buffer, one), f"{key}: statistics move once a pass"


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_same(name: str) -> None:
    plain, again = (built(name, one).double().train() for one in (False, True))
    assert plain.state_dict().keys() == again.state_dict().keys()
    assert [key for key, _ in plain.named_modules()] == [key for key, _ in again.named_modules()]
    again.load_state_dict(plain.state_dict())
    like(name, plain, again)


@pytest.mark.parametrize("name", ["PlainConvUNet", "SegResNet", "MNet", "ConvFree"])
def test_pickles_and_copies_are_checkpointed_themselves(name: str) -> None:
    plain, again = (built(name, one).double().train() for one in (False, True))
    for other in (pickle.loads(pickle.dumps(again)), copy.deepcopy(again)):
        again.zero_grad()
        assert len(stages_of(other)) == len(stages_of(again))
        assert all(vars(stage)["forward"].module is stage for stage in stages_of(other))
        like(name, copy.deepcopy(plain), other)
    file = io.BytesIO()
    torch.save(again.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("name", [name for name in CASES if "MNet" not in name])
def test_less_is_kept(name: str) -> None:
    with without_values():
        plain, again = built(name, False), built(name, True)
    shape = (1, 1, *CASES[name][1])
    if name != "ConvFree blocks":  # chunks of blocks are computed again in any case
        assert kept_elements(again, shape) < 0.9 * kept_elements(plain, shape)
        size = again.compute_conv_feature_map_size(shape[2:])
        assert 0 < size < plain.compute_conv_feature_map_size(shape[2:])


def test_mnets_formula_counts_less() -> None:
    """test_mnet.py holds it against what a step keeps."""
    again, plain = (MNet(1, 2, features_per_stage=FEATURES, activation_checkpointing=one) for one in (True, False))
    patch = (8, 64, 64)
    assert again.compute_conv_feature_map_size(patch) < 0.75 * plain.compute_conv_feature_map_size(patch)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 8), nn.Sigmoid())
        self.end = nn.Sequential(nn.Linear(8, 4), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.end(self.body(x))
        return out


@pytest.mark.parametrize(
    ("patterns", "stages", "elements"),
    [
        ((), [], 4 + 4 + 8 + 4),  # the input and the results of the sigmoids
        (("body",), ["body"], 4 + 8 + 4),
        (("body", "body.*", "end"), ["body", "end"], 4 + 4 + 8),  # the body in its turn
    ],
    ids=str,
)
def test_counts_by_hand(patterns: tuple[str, ...], stages: list[str], elements: int) -> None:
    network = Layers()
    assert make_stages(network, patterns) == stages
    assert kept_elements(network, (1, 4)) == elements


def test_nothing_is_computed_again_in_evaluation_or_without_gradients() -> None:
    network, calls = Layers(), []
    make_stages(network, ("body",))
    network.body[0].register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 4)
    network(x).sum().backward()
    assert len(calls) == 2
    network.eval()(x).sum().backward()
    with torch.no_grad():
        network.train()(x)
    assert len(calls) == 4


@pytest.mark.parametrize("name", ["PlainConvUNet", "MNet alone"])
def test_autocast(name: str) -> None:
    """What is computed again has the precision of the first time."""
    found = []
    for again in (False, True):
        network = built(name, again).train()
        with torch.autocast("cpu", torch.bfloat16):
            found.append(stepped(network, CASES[name][1], torch.float32))
    for output, one in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(output, one, rtol=0, atol=0)
    one, other = (torch.cat([gradient.flatten() for gradient in gradients.values()]) for _, gradients in found)
    assert F.cosine_similarity(one, other, dim=0) > 0.99


@pytest.mark.parametrize("name", ["PlainConvUNet", "ConvFree", "Hierarchical"])
def test_compiled(name: str) -> None:
    plain, again = (built(name, one).double().train() for one in (False, True))
    for module in (*plain.modules(), *again.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_path"):
            module.drop_path = 0.0
    torch._dynamo.reset()
    like(name, plain, torch.compile(again, backend="aot_eager"))


class Unknown(nn.Module):
    """A network of the user that keeps the contract and tells no stages."""

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = True):
        super().__init__()
        self.head = nn.Conv3d(input_channels, num_classes, 1)
        self.deep_supervision = deep_supervision

    def deep_supervision_shapes(self, patch_size: Any) -> list[Any]:
        return [tuple(patch_size)]

    def forward(self, x: Tensor) -> Any:
        return [self.head(x)] if self.deep_supervision else self.head(x)


def test_a_network_without_stages_is_refused() -> None:
    path = f"{__name__}.Unknown"
    with pytest.raises(InputError, match="no stages are known"):
        BackboneNetwork(1, 2, backbone=path, spatial_shape=(4, 4, 4), activation_checkpointing=True)
    BackboneNetwork(1, 2, backbone=path, spatial_shape=(4, 4, 4))
