"""Slim UNETR against the published network's outputs and against a plain version, gradients included."""

import ast
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_ext.architectures import SlimUNETR
from nnunetv2_ext.architectures.backbones.network import BackboneNetwork, record_of
from nnunetv2_ext.errors import InputError

GOLDEN = os.environ.get("NNUNETV2_EXT_GOLDEN")
SMALL: dict[str, Any] = {
    "embed_dim": 12,
    "channels": (4, 8, 10),
    "blocks": (1, 2, 1, 1),
    "heads": (1, 2, 2, 4),
    "r": (4, 2, 2, 1),
}
PATCH = (32, 32, 64)


class Plain:
    """The network as a function of an image and a state dict, without dropout, the matrix of attention at hand."""

    def __init__(self, state: dict[str, Tensor], options: dict[str, Any]):
        self.state, self.options = state, options

    def conv(self, x: Tensor, name: str, **settings: Any) -> Tensor:
        return F.conv3d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **settings)

    def up(self, x: Tensor, name: str, step: int, groups: int = 1) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.conv_transpose3d(x, weight, bias, stride=step, groups=groups)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 1, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias)

    def attention(self, x: Tensor, heads: int) -> Tensor:
        """Of (B, 3 C, z, y, x) to (B, C, z, y, x)."""
        _, channels, *grid = x.shape
        attended = []
        for of_head in x.flatten(2).chunk(heads, 1):
            query, key, value = of_head.chunk(3, 1)
            weights = (query.mT @ key).softmax(-1)
            attended.append((weights @ value.mT).mT)
        return torch.cat(attended, 1).reshape(len(x), channels // 3, *grid)

    def block(self, x: Tensor, name: str, heads: int, r: int) -> Tensor:
        depthwise = {"padding": 1, "groups": x.shape[1]}
        x = x + self.conv(x, f"{name}.patch1.positional_encoding", **depthwise)
        y = self.conv(self.batch_norm(x, f"{name}.LocalRC.bn1"), f"{name}.LocalRC.pointwise_conv_0")
        y = self.batch_norm(self.conv(y, f"{name}.LocalRC.depthwise_conv", **depthwise), f"{name}.LocalRC.bn2")
        x = x + self.conv(y, f"{name}.LocalRC.pointwise_conv_1")
        x = x + self.features(x, f"{name}.LineConv1")
        x = x + self.conv(x, f"{name}.patch2.positional_encoding", **depthwise)
        seen = self.attention(self.conv(x[:, :, ::r, ::r, ::r], f"{name}.GlobalST.qkv"), heads)
        spread = self.norm(self.up(seen, f"{name}.LocalRD.conv_trans", r, x.shape[1]), f"{name}.LocalRD.norm")
        x = x + self.conv(spread, f"{name}.LocalRD.pointwise_conv")
        return x + self.features(x, f"{name}.LineConv2")

    def features(self, x: Tensor, name: str) -> Tensor:
        return self.conv(F.gelu(self.conv(x, f"{name}.line_conv_0")), f"{name}.line_conv_1")

    def __call__(self, x: Tensor) -> Tensor:
        levels = list(zip(self.options["blocks"], self.options["heads"], self.options["r"], strict=True))

        def blocks(x: Tensor, side: str, level: int) -> Tensor:
            number, heads, r = levels[level - 1]
            for block in range(number):
                x = self.block(x, f"{side}.block{level}.{block}", heads, r)
            return x

        skips = []
        for level, step in enumerate((4, 2, 2, 2), 1):
            x = self.norm(self.conv(x, f"Encoder.DWconv{level}.depth_wise", stride=step), f"Encoder.DWconv{level}.norm")
            x = blocks(x, "Encoder", level)
            skips.append(x)
        tokens = x.flatten(2).mT + self.state["Encoder.position_embeddings"]
        x = blocks(tokens.contiguous().view(x.shape), "Decoder", 4)
        for number, level in enumerate((3, 2, 1), 1):
            x = self.norm(self.up(x, f"Decoder.TSconv{number}.transposed", 2), f"Decoder.TSconv{number}.norm")
            x = blocks(x + skips[level - 1], "Decoder", level)
        return self.norm(self.up(x, "Decoder.SegHead.transposed", 4), "Decoder.SegHead.norm")


@pytest.mark.skipif(GOLDEN is None, reason="the published network's outputs are not here")
def test_golden() -> None:
    with np.load(Path(str(GOLDEN)) / "golden" / "slimunetr.npz") as arrays:
        meta = ast.literal_eval(str(arrays["meta"]))
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "meta"}
    names = ("embed_dim", "channels", "blocks", "heads", "r", "dropout", "spatial_shape")
    network = SlimUNETR(meta["in_channels"], meta["out_channels"], **{name: meta[name] for name in names}).double()
    weights = {name.removeprefix("w/"): tensor for name, tensor in tensors.items() if name.startswith("w/")}
    network.load_state_dict(weights, strict=True)
    assert sum(parameter.numel() for parameter in network.parameters()) == meta["params"]
    difference = (network.eval()(tensors["x"]) - tensors["y"]).abs().max()
    assert difference <= 1e-8 * tensors["y"].abs().max()


@pytest.mark.parametrize(
    ("options", "patch"), [({}, (32, 32, 64)), ({"heads": (2, 1, 5, 3), "r": (2, 4, 1, 1)}, (64, 32, 32))], ids=str
)
def test_outputs_and_gradients_are_those_of_the_plain_version(options: dict[str, Any], patch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    options = {**SMALL, **options}
    network = SlimUNETR(2, 3, spatial_shape=patch, **options).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.5 * (parameter.ndim == 1), 0.3)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            buffer.normal_()
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    parameters = [name for name, _ in network.named_parameters()]
    for name in parameters:
        state[name].requires_grad_()
    x = torch.randn(2, 2, *patch, dtype=torch.float64)
    found, expected = network(x), Plain(state, options)(x)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    weights = torch.rand_like(found)
    ours = torch.autograd.grad((found * weights).sum(), list(network.parameters()))
    plain = torch.autograd.grad((expected * weights).sum(), [state[name] for name in parameters])
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9 * float(other.abs().max()) + 1e-12)


def test_positions_belong_to_the_patch() -> None:
    record = record_of("SlimUNETR")
    assert record.positions is not None
    ((name, grid),) = record.positions(record.small, (96, 64, 32)).items()
    assert grid == (3, 2, 1)
    network = SlimUNETR(1, 2, spatial_shape=(96, 64, 32), **SMALL)
    assert network.get_parameter(name).shape == (1, 3 * 2 * 1, 12)
    other = BackboneNetwork(1, 2, backbone="SlimUNETR", spatial_shape=PATCH, backbone_kwargs=dict(record.small))
    with pytest.raises(InputError, match=r"a patch of \(64, 32, 32\) for SlimUNETR; expected the size \(32, 32, 64\)"):
        other.deep_supervision_shapes((64, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (1, 2, 3)}, r"blocks=\(1, 2, 3\); expected 4 whole numbers from 1, one per level"),
        ({"blocks": (1, 0, 2, 1)}, "blocks="),
        ({"blocks": (1, -1, 2, 1)}, "blocks="),
        ({"channels": (4, 8)}, r"channels=\(4, 8\); expected 3 whole numbers"),
        ({"channels": (4, 8.5, 10)}, "channels="),
        ({"heads": [0, 2, 2, 1]}, r"heads=\[0, 2, 2, 1\]; expected 4 whole"),
        ({"r": [0, 2, 2, 1]}, r"r=\[0, 2, 2, 1\]; expected 4 whole"),
        ({"r": 2}, "r=2; expected 4 whole"),
        ({"embed_dim": 0}, "embed_dim=0; expected a whole number from 1"),
        ({"dropout": 1}, r"dropout=1; expected a number in \[0, 1\)"),
        ({"dropout": "a"}, "dropout='a'"),
        ({"heads": (3, 2, 2, 4)}, "3 heads of 4 features"),
        ({"r": (4, 2, 2, 2)}, "every 2-th voxel of .1, 1, 2."),
        ({"spatial_shape": (32, 32, 48)}, r"a patch of \(32, 32, 48\) for SlimUNETR; expected multiples of 32"),
    ],
    ids=str,
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SlimUNETR(1, 2, **{"spatial_shape": PATCH, **SMALL, **options})
