"""HierarchicalSegmentor: each entry against a plain composition of its stages, what it costs, what it skips."""

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_ext.architectures import HierarchicalSegmentor
from nnunetv2_ext.architectures.contract import Entered, Shape
from nnunetv2_ext.architectures.hierarchical import attention_step
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.profiling.count import WHOLE, Row, count, on_meta

SMALL: dict[str, Any] = {
    "spatial_shape": [6, 20, 28],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 1, 1]],
    "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "features": 4,
    "max_features": 12,
    "tokens": 20,
}
PLANNED: dict[str, Any] = {"strides": [[1, 1, 1], *[[2, 2, 2]] * 5], "kernel_sizes": [[3, 3, 3]] * 6}
"""nnU-Net's strides and kernels for a patch of 128 voxels along each axis."""


def small(**options: Any) -> Any:
    """A network in float64 with weights of ordinary size."""
    torch.manual_seed(0)
    network = HierarchicalSegmentor(2, 3, **{**SMALL, **options}).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.5 * (parameter.ndim == 1), 0.3)
    return network


def image(*shape: int) -> Tensor:
    return torch.randn(2, 2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Plain:
    """The network as a function of an image, a state dict and an entry from 1, by PyTorch's functions alone."""

    def __init__(self, state: dict[str, Tensor], strides: list[list[int]], steps: list[Shape], heads: list[int]):
        self.state, self.strides, self.steps, self.heads = state, strides, steps, heads

    def conv(self, x: Tensor, name: str, **settings: Any) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        settings.setdefault("padding", tuple(size // 2 for size in weight.shape[2:]))
        return F.conv3d(x, weight, bias, **settings)

    def up(self, x: Tensor, name: str, stride: Any) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.conv_transpose3d(x, weight, bias, stride=tuple(stride), groups=x.shape[1])

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean = x.mean((1, 2, 3, 4), keepdim=True)
        variance = x.var((1, 2, 3, 4), correction=0, keepdim=True)
        weight, bias = (self.state[f"{name}.{part}"][:, None, None, None] for part in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def features(self, x: Tensor, name: str) -> Tensor:
        return self.conv(F.gelu(self.conv(x, f"{name}.line_conv_0")), f"{name}.line_conv_1")

    def attention(self, x: Tensor, heads: int) -> Tensor:
        """Of (B, 3 C, z, y, x) to (B, C, z, y, x)."""
        attended = []
        for of_head in x.flatten(2).chunk(heads, 1):
            query, key, value = of_head.chunk(3, 1)
            weights = (query.mT @ key / math.sqrt(query.shape[1])).softmax(-1)
            attended.append((weights @ value.mT).mT)
        return torch.cat(attended, 1).unflatten(2, x.shape[2:])

    def block(self, x: Tensor, side: str, stage: int) -> Tensor:
        name, (z, y, x_), groups = f"{side}.{stage}", self.steps[stage], x.shape[1]
        x = x + self.conv(x, f"{name}.patch1.positional_encoding", groups=groups)
        around = self.conv(self.norm(x, f"{name}.LocalRC.bn1"), f"{name}.LocalRC.pointwise_conv_0")
        around = self.norm(self.conv(around, f"{name}.LocalRC.depthwise_conv", groups=groups), f"{name}.LocalRC.bn2")
        x = x + self.conv(around, f"{name}.LocalRC.pointwise_conv_1")
        x = x + self.features(x, f"{name}.LineConv1")
        x = x + self.conv(x, f"{name}.patch2.positional_encoding", groups=groups)
        seen = self.attention(self.conv(x[:, :, ::z, ::y, ::x_], f"{name}.GlobalST.qkv"), self.heads[stage])
        spread = self.up(seen, f"{name}.LocalRD.conv_trans", (z, y, x_))
        spread = self.norm(spread[:, :, : x.shape[2], : x.shape[3], : x.shape[4]], f"{name}.LocalRD.norm")
        x = x + self.conv(spread, f"{name}.LocalRD.pointwise_conv")
        return x + self.features(x, f"{name}.LineConv2")

    def gate(self, image: Tensor, stage: int) -> Tensor:
        return self.norm(self.conv(image, f"gates.{stage}.conv"), f"gates.{stage}.norm")

    def __call__(self, image: Tensor, entry: int, entries: int = 3) -> list[Tensor]:
        """The logits of the stages from the entry to the last one, finest first."""
        x = self.block(self.gate(image, entry - 1), "encoder", entry - 1)
        skips = {entry - 1: x}
        down = [1, 1, 1]
        for stage in range(entry, len(self.strides)):
            stride = self.strides[stage]
            down = [above * step for above, step in zip(down, stride, strict=True)]
            name = f"downs.{stage - 1}"
            x = self.conv(x, f"{name}.depth_wise", stride=tuple(stride), padding=0, groups=x.shape[1])
            x = self.norm(self.conv(x, f"{name}.point_wise"), f"{name}.norm")
            if stage < entries:
                x = x + self.gate(F.avg_pool3d(image, down), stage)
            x = self.block(x, "encoder", stage)
            skips[stage] = x
        logits = {}
        for stage in range(len(self.strides) - 1, entry - 2, -1):
            if stage < len(self.strides) - 1:
                x = self.conv(self.up(x, f"ups.{stage}.depth_wise", self.strides[stage + 1]), f"ups.{stage}.point_wise")
                x = self.block(x + skips[stage], "decoder", stage)
            if stage < entries:
                logits[stage] = self.conv(x, f"heads.seg_layers.{stage}")
        return [logits[stage] for stage in sorted(logits)]


ENTRY_SHAPES = [(6, 20, 28), (6, 10, 14), (3, 5, 7)]


@pytest.mark.parametrize(
    ("shape", "entry"), [(ENTRY_SHAPES[0], 1), (ENTRY_SHAPES[1], 2), (ENTRY_SHAPES[2], 3), ((8, 12, 8), 1)], ids=str
)
def test_an_entry_is_a_plain_composition_of_its_stages(shape: Shape, entry: int) -> None:
    network = small(deep_supervision=True)
    state = {name: tensor.detach().clone().requires_grad_() for name, tensor in network.state_dict().items()}
    steps = [block.GlobalST.step for block in network.encoder]
    plain, x = Plain(state, SMALL["strides"], steps, [1] * 4), image(*shape)
    found, expected = network(x), plain(x, entry)
    assert [tuple(one.shape[2:]) for one in found] == network.deep_supervision_shapes(shape)
    assert len(found) == len(expected) == 4 - entry
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
    names, parameters = zip(*network.named_parameters(), strict=True)
    ours = torch.autograd.grad(_summed(found), parameters, allow_unused=True)
    theirs = torch.autograd.grad(_summed(expected), [state[name] for name in names], allow_unused=True)
    largest = max(float(gradient.abs().max()) for gradient in theirs if gradient is not None)
    for name, one, other in zip(names, ours, theirs, strict=True):
        assert (one is None) == (other is None) == _is_skipped(name, entry), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9 * largest, msg=name)


def _summed(outputs: list[Tensor]) -> Tensor:
    return torch.stack([one.sin().sum() for one in outputs]).sum()


def _is_skipped(name: str, entry: int) -> bool:
    """Whether an entry leaves out a module or parameter of that name."""
    _, *path = name.removeprefix("heads.").split(".")
    return bool(path) and int(path[0]) < entry - 1


@pytest.mark.parametrize("entry", [1, 2, 3])
def test_hooks_of_skipped_stages_never_fire(entry: int) -> None:
    network, fired = small(), set()
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=name: fired.add(name))
    network(image(*network.entry_shapes[entry - 1]))
    stages = {
        name for name, _ in network.named_modules() if re.fullmatch(r"(gates|encoder|decoder|downs|ups)\.\d", name)
    }
    assert len(stages) == 3 + 4 + 3 + 3 + 3
    assert fired & stages == {name for name in stages if not _is_skipped(name, entry)}
    assert not [name for name in fired if _is_skipped(name, entry)]
    assert [name for name in fired if ".seg_layers." in name] == [f"heads.seg_layers.{entry - 1}"]


def _counted(network: Any, shape: Shape) -> dict[str, Row]:
    return {row.name: row for row in count(network, (1, *shape), depth=2)}


def _multiply_adds(row: Row) -> int:
    return row.multiply_adds + row.attention_multiply_adds


def test_multiply_adds_and_parameters_at_128() -> None:
    """Those of the design: 51.5, 23.3 and 10.8 G, 6.65 M parameters; an entry's are those of its stages."""
    network = on_meta(lambda: HierarchicalSegmentor(1, 2, spatial_shape=[128] * 3, deep_supervision=True, **PLANNED))
    assert isinstance(network, Entered)
    rows = [_counted(network, shape) for shape in network.entry_shapes]
    found = [_multiply_adds(one[WHOLE]) / 1e9 for one in rows]
    assert found == pytest.approx([51.5, 23.3, 10.8], abs=0.05)
    assert rows[0][WHOLE].parameters / 1e6 == pytest.approx(6.65, abs=0.005)
    assert found[1] <= found[0] / 2
    assert found[2] <= found[0] / 4
    stages = {name for name in rows[0] if name.count(".") == 1 and name != "heads.seg_layers"}
    for entry in (2, 3):
        for name in stages:
            own = _multiply_adds(rows[entry - 1][name])
            assert own == (0 if _is_skipped(name, entry) else _multiply_adds(rows[0][name])), name
        of_heads = _multiply_adds(rows[entry - 1]["heads.seg_layers"])
        of_stages = sum(_multiply_adds(rows[0][name]) for name in stages if not _is_skipped(name, entry))
        assert _multiply_adds(rows[entry - 1][WHOLE]) == of_stages + of_heads


def test_memory_at_128() -> None:
    """Below that of PlainConvUNet, 555 million elements; a block keeps its residual steps' inputs and little else."""
    network = on_meta(lambda: HierarchicalSegmentor(1, 2, spatial_shape=[128] * 3, deep_supervision=True, **PLANNED))
    sizes = [network.compute_conv_feature_map_size(shape) for shape in network.entry_shapes]  # type: ignore[operator, union-attr]
    assert sizes[0] < 555e6
    assert sizes[1] < sizes[0] / 3
    assert sizes[2] < sizes[1] / 3


@pytest.mark.parametrize(("size", "entry"), [(128, 1), (64, 2), (32, 3), (96, 1), (160, 1), (32 * 8, 1)])
def test_the_entry_of_a_cube(size: int, entry: int) -> None:
    """r = N - log2(V0 / s0) where the cube is one of the entries' (section 3 of the paper); s0 = W_N = 4, N = 6."""
    network = on_meta(lambda: HierarchicalSegmentor(1, 2, spatial_shape=[128] * 3, deep_supervision=True, **PLANNED))
    assert network.entry_shapes == tuple((one,) * 3 for one in (128, 64, 32))
    outputs = network(torch.empty(1, 1, size, size, size, device="meta"))
    assert len(outputs) == 4 - entry
    if size in (128, 64, 32):
        assert entry == 6 - math.log2(size / 4)


@pytest.mark.parametrize(
    ("shape", "tokens", "step"),
    [
        ((128, 128, 128), 512, (16, 16, 16)),
        ((8, 8, 8), 512, (1, 1, 1)),
        ((16, 128, 128), 512, (2, 16, 16)),
        ((6, 20, 28), 20, (2, 8, 16)),
        ((5, 96, 96), 512, (1, 16, 8)),
        ((9, 9, 9), 512, (2, 1, 1)),
        ((3, 3, 3), 1, (4, 4, 4)),
        ((1, 1, 1), 1, (1, 1, 1)),
    ],
    ids=str,
)
def test_attention_step(shape: Shape, tokens: int, step: Shape) -> None:
    assert attention_step(shape, tokens) == step
    assert math.prod(-(-size // by) for size, by in zip(shape, step, strict=True)) <= tokens


@pytest.mark.parametrize(
    ("options", "heads"),
    [({"features": 16, "max_features": 320}, [1, 1, 2, 4]), ({"features": 96, "max_features": 100}, [3, 2, 2, 2])],
    ids=str,
)
def test_heads_divide_the_widths(options: dict[str, Any], heads: list[int]) -> None:
    network = on_meta(lambda: HierarchicalSegmentor(1, 2, **{**SMALL, **options}))
    assert [block.GlobalST.heads for block in network.encoder] == heads  # type: ignore[union-attr]


def test_fewer_stages_than_entries() -> None:
    network = small(entries=9)
    assert len(network.entry_shapes) == 4
    assert network.entry_shapes[:3] == tuple(ENTRY_SHAPES)
    alone = small(strides=[[1, 1, 1]], kernel_sizes=[[3, 3, 3]])
    assert alone(image(2, 3, 5)).shape == (2, 3, 2, 3, 5)


def test_compiled() -> None:
    """One compiled network takes the sizes of its entries one after the other."""
    network = small(strides=SMALL["strides"][:2], kernel_sizes=SMALL["kernel_sizes"][:2])
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager")
    for shape in network.entry_shapes:
        x = image(*shape)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), network(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": [[2, 2, 2], [1, 2, 2]]}, r"strides=.*those of the first \[1, 1, 1\]"),
        ({"strides": []}, r"strides=\[\]"),
        ({"strides": 2}, "strides=2; expected three whole numbers"),
        ({"strides": [[1, 1, 1], [0, 2, 2]]}, "strides="),
        ({"strides": [[1, 1], [2, 2]]}, "strides="),
        ({"kernel_sizes": [[3, 3, 3]]}, r"kernel_sizes=.*each of the 4 stages"),
        ({"kernel_sizes": [[3, 3, 3]] * 3 + [[3, 2, 3]]}, r"kernel_sizes=.*odd numbers"),
        ({"kernel_sizes": 3}, "kernel_sizes=3"),
        ({"entries": 0}, "entries=0; expected a whole number from 1"),
        ({"features": 2.5}, "features=2.5"),
        ({"max_features": -1}, "max_features=-1"),
        ({"tokens": True}, "tokens=True"),
        ({"spatial_shape": [6, 20, 30]}, r"a patch of \(6, 20, 30\) for .*multiples of \(2, 4, 4\).*\[6, 20, 28\] or"),
        ({"spatial_shape": [20, 28]}, "a patch of 2 axes"),
    ],
    ids=str,
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HierarchicalSegmentor(1, 2, **{**SMALL, **options})


@pytest.mark.parametrize("shape", [(3, 5, 6), (6, 10, 15), (5, 20, 28), (6, 10, 28)], ids=str)
def test_a_size_between_the_entries_is_refused(shape: Shape) -> None:
    with pytest.raises(InputError, match=r"multiples of \(2, 4, 4\).*choose patch_size"):
        small()(image(*shape))
