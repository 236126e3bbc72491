"""Counts against sums done by hand, the paper's figures, and what the measurements are charged to."""

import shutil
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._networks import REFERENCE, builder
from nnunetv2_ext.architectures.measure import kept_elements
from nnunetv2_ext.architectures.mnet import MNet
from nnunetv2_ext.architectures.par import PaR
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.profiling import step as profiled_step
from nnunetv2_ext.profiling.count import Watch, count, on_meta
from nnunetv2_ext.profiling.step import loss, measure
from nnunetv2_ext.profiling.subject import Subject, architecture_subject
from nnunetv2_ext.resident_memory import rise

MEBIBYTE = 2**20
HEADS, TOKENS, FEATURES = 2, 40, 8
ATTENTION = 2 * HEADS * TOKENS**2 * FEATURES


class Products(torch.autograd.Function):
    """Attention whose products autograd never sees."""

    @staticmethod
    def forward(ctx, x):
        return torch.bmm(torch.bmm(x, x.transpose(1, 2)), x)

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def chunked(x: Tensor) -> Tensor:
    return torch.cat([F.scaled_dot_product_attention(one, one, one) for one in x.split(1, dim=1)], dim=1)


def counted(network, *shape: int, depth: int = 2):
    return {row.name: row for row in count(on_meta(lambda: network).to("meta"), shape, depth=depth)}


@pytest.mark.parametrize(
    ("network", "shape", "expected"),
    [
        (nn.Conv3d(2, 4, 3, padding=1), (2, 5, 6, 7), 27 * 2 * 4 * 210),
        (nn.Conv3d(4, 4, (1, 3, 3), groups=4), (4, 1, 5, 5), 9 * 4 * 9),
        (nn.Conv3d(2, 4, 2, stride=2), (2, 4, 4, 4), 8 * 2 * 4 * 8),
        (nn.ConvTranspose3d(2, 4, 2, stride=2), (2, 3, 3, 3), 8 * 2 * 4 * 27),
        (nn.Linear(6, 5), (7, 6), 7 * 6 * 5),
        (nn.Linear(6, 5, bias=False), (3, 7, 6), 21 * 6 * 5),
        (nn.Sequential(nn.GroupNorm(2, 2), nn.ReLU(), nn.MaxPool3d(2)), (2, 4, 4, 4), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_products_with_weights(network, shape, expected):
    row = counted(network, *shape)[""]
    assert (row.multiply_adds, row.attention_multiply_adds) == (expected, 0)
    assert row.parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.scaled_dot_product_attention(x, x, x),
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(TOKENS, TOKENS, device="meta")),
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
        lambda x: F.scaled_dot_product_attention(x[0], x[0], x[0]),
        lambda x: F.scaled_dot_product_attention(x, x, x.unsqueeze(-1).flatten(3), scale=1.0),
        lambda x: F.scaled_dot_product_attention(query=x, key=x, value=x),
        lambda x: (x @ x.transpose(2, 3)).softmax(-1) @ x,
        lambda x: torch.einsum("bnqk,bnkc->bnqc", torch.einsum("bnqc,bnkc->bnqk", x, x), x),
        lambda x: torch.baddbmm(x[0], torch.baddbmm(x.new_zeros(1), x[0], x[0].transpose(1, 2)), x[0]),
        lambda x: Products.apply(x[0]),
        chunked,
    ],
)
def test_attention_products_in_any_form(function):
    row = counted(Called(function), HEADS, TOKENS, FEATURES)[""]
    assert (row.multiply_adds, row.attention_multiply_adds) == (0, ATTENTION)


def test_multihead_attention_of_pytorch():
    class SelfAttention(nn.MultiheadAttention):
        def forward(self, x):  # type: ignore[override]
            return super().forward(x, x, x, need_weights=False)[0]

    row = counted(SelfAttention(FEATURES, HEADS, batch_first=True), TOKENS, FEATURES)[""]
    assert row.multiply_adds == 4 * TOKENS * FEATURES**2
    assert row.attention_multiply_adds == 2 * TOKENS**2 * FEATURES


class Mixed(nn.Module):
    """A module called twice and known by two names, a list that is never called, and work of its own."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Sequential(nn.Conv3d(2, 2, 1, bias=False), nn.ReLU())
        self.steps = nn.ModuleList([nn.Conv3d(2, 2, 3, padding=1), nn.Conv3d(2, 2, 1)])
        self.alias = self.twice
        self.weight = nn.Parameter(torch.ones(3, 2, 1, 1, 1))

    def forward(self, x):
        x = self.alias(self.twice(x))
        for step in self.steps:
            x = step(x)
        return F.conv3d(x, self.weight)


def test_attribution_to_modules():
    voxels = 64
    rows = counted(Mixed(), 2, 4, 4, 4)
    figures = {name: (row.parameters, row.multiply_adds) for name, row in rows.items()}
    assert list(figures) == ["", "twice", "twice.0", "twice.1", "steps", "steps.0", "steps.1"]
    assert figures["twice"] == figures["twice.0"] == (4, 2 * 4 * voxels)
    assert figures["steps.0"] == (110, 108 * voxels)
    assert figures["steps"] == (116, 112 * voxels)
    # the last convolution is the network's own
    assert figures[""] == (4 + 116 + 6, (8 + 112 + 6) * voxels)


@pytest.mark.parametrize(
    ("depth", "names"), [(0, [""]), (1, ["", "twice", "steps"]), (9, ["", "twice", "twice.0", "twice.1", "steps"])]
)
def test_depth(depth, names):
    rows = counted(Mixed(), 2, 4, 4, 4, depth=depth)
    assert list(rows)[: len(names)] == names
    whole = counted(Mixed(), 2, 4, 4, 4)[""]
    assert rows[""] == whole


def test_memory_kept():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.LeakyReLU(inplace=True), nn.Conv3d(2, 3, 1), nn.Conv3d(3, 1, 1))
    rows = counted(network, 1, 2, 3, 4, depth=1)
    # the image; the activation, which its own output and the next input are; the last input; nothing twice
    assert [rows[name].kept_bytes for name in ("0", "1", "2", "3")] == [24 * 4, 2 * 24 * 4, 0, 3 * 24 * 4]
    assert rows[""].kept_bytes == 6 * 24 * 4


def test_frozen_parts_keep_nothing():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(), nn.Conv3d(2, 1, 1)).requires_grad_(False)
    assert counted(network, 1, 2, 3, 4)[""].kept_bytes == 0


def test_fused_attention_keeps_no_matrix():
    def kept(function) -> int:
        return counted(nn.Sequential(nn.Conv2d(HEADS, HEADS, 1), Called(function)), HEADS, 400, FEATURES)[""].kept_bytes

    matrix = HEADS * 400**2 * 4
    assert kept(lambda x: (x @ x.transpose(2, 3)).softmax(-1) @ x) > matrix
    assert kept(lambda x: F.scaled_dot_product_attention(x, x, x)) < matrix / 4
    assert kept(lambda x: F.scaled_dot_product_attention(query=x, key=x, value=x, is_causal=True)) < matrix / 4


def unet():
    return builder(REFERENCE)(1, 3, (16, 64, 64)).network


@pytest.mark.parametrize("build", [lambda: MNet(1, 3), unet], ids=["MNet", "PlainConvUNet"])
def test_memory_kept_is_what_planners_count(build):
    rows = count(on_meta(build), (1, 16, 64, 64), depth=0)
    assert rows[0].kept_bytes / 4 == kept_elements(on_meta(build), (1, 1, 16, 64, 64))


def test_columns_of_the_paper():
    """Table 1 of the PaR paper, 5 classes at 96 x 96 x 96, and the same figures as its text gives them."""
    rows = {row.name: row for row in count(on_meta(lambda: PaR(5, (96, 96, 96))), (5, 96, 96, 96), depth=1)}
    whole = rows[""]
    assert whole.parameters == 168_053
    spatial_bias = 96 // (2 * 8) * 96 * 96
    assert round((whole.parameters - spatial_bias) / 1e6, 2) == 0.11
    assert round(whole.multiply_adds / 1e9, 2) == 5.97
    assert round((whole.multiply_adds + whole.attention_multiply_adds) / 1e9, 2) == 7.71
    # by hand: four products per direction with 96 x 96 weights; attention over 5, 96 and 96 tokens
    assert rows["pdi"].multiply_adds == 3 * 4 * 96**2 * 5 * 96**2
    assert rows["pdi"].attention_multiply_adds == 2 * 96 * (96**2 * 5**2 + 2 * 5 * 96 * 96**2)
    assert rows["sai"].attention_multiply_adds == 0


def test_large_patches_cost_nothing():
    (row,) = count(on_meta(lambda: MNet(1, 3)), (1, 512, 1024, 1024), depth=0)
    assert row.kept_bytes > 10**12


def test_a_network_that_fails_on_a_patch():
    with pytest.raises(InputError, match=r"a patch of \(4, 30, 30\) with 1 channels, on which PlainConvUNet fails"):
        count(on_meta(unet), (1, 4, 30, 30))


def test_watch_follows_the_forward_pass():
    charged: list[str] = []
    network = Mixed()
    with Watch(network, 1, charged.append):
        network(torch.zeros(1, 2, 2, 2, 2))
    assert charged == ["", "twice", "", "twice", "", "steps", "", "steps", ""]
    network(torch.zeros(1, 2, 2, 2, 2))
    assert len(charged) == 9  # the hooks are gone


@pytest.mark.parametrize("outputs", [torch.full((2, 3), 2.0), [torch.full((2, 3), 1.0), torch.full((1,), 3.0**0.5)]])
def test_loss_of_one_output_and_of_several(outputs):
    assert loss(outputs) == pytest.approx(4)


def subject(network: nn.Module, *shape: int) -> Subject:
    return Subject("test", lambda: network, shape, {})


def test_time_is_charged_to_modules(monkeypatch):
    def slow(x):
        time.sleep(0.02)
        return x

    monkeypatch.setattr(profiled_step, "_cpu_peak", lambda subject, batch_size: 7)
    twice = nn.Sequential(Called(slow), Called(slow))
    network = nn.Sequential(nn.Conv3d(1, 1, 1), nn.ModuleDict({"slow": twice}), Called(lambda x: x))
    network.forward = lambda x: twice(network[0](x))  # type: ignore[method-assign]
    measured = measure(subject(network, 1, 2, 2, 2), depth=2, rounds=3)
    seconds = measured.forward_seconds
    assert list(seconds) == ["", "0", "1", "1.slow", "2"]
    assert seconds["1"] == seconds["1.slow"] >= 0.04
    assert 0 < seconds["0"] < seconds[""] >= seconds["1"]
    assert seconds["2"] == 0
    assert len(measured.step_seconds) == 3 and min(measured.step_seconds) >= 0.04
    assert measured.peak_bytes == 7
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 0}, "a batch of 0"),
        ({"rounds": 0}, "0 rounds"),
        ({"device": "mps"}, "the device mps"),
        ({"device": "cuda"}, "cuda where PyTorch sees a GPU"),
    ],
)
def test_what_cannot_be_measured(options, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=told):
        measure(subject(nn.Conv3d(1, 1, 1), 1, 2, 2, 2), **options)


def test_peak_in_a_process_of_its_own_holds_weights_and_gradients():
    found = architecture_subject("MNet", [2, 32, 32])
    assert 2 * 4 * 8_700_000 < profiled_step._cpu_peak(found, 1) < 400 * MEBIBYTE


def test_a_measuring_process_that_dies(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(InputError, match="ended with 1"):
        profiled_step._cpu_peak(architecture_subject("MNet", [2, 32, 32]), 1)


@pytest.mark.parametrize("used_before", [False, True], ids=["fresh", "used before"])
def test_peak_sees_a_tensor_that_is_freed_before_the_end(used_before):
    size = 200 * MEBIBYTE
    blocks = [torch.ones(MEBIBYTE // 4) for _ in range(400 if used_before else 1)]
    del blocks[:-1]  # the last one keeps the others' place in the heap
    # the kernel counts in batches of pages, hence the slack
    assert 0.99 * size <= rise(lambda: torch.ones(size // 4)) <= 1.2 * size
