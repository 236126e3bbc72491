"""What is kept for the backward pass, against counts by hand and nnU-Net's own."""

import pytest
import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_ext.architectures.measure import kept_elements, without_values


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.exp()
        return F.scaled_dot_product_attention(x, key=2 * x, value=3 * x)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layers, x, use_reentrant=False)


class Views(nn.Module):
    """Saves the same storage three times, once in part."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.weight  # x
        return (y * y.flip(0)).sum() + y[1:].square().sum() + y.square().sum()  # y and its flipped copy


@pytest.mark.parametrize(
    ("network", "shape", "elements"),
    [
        (nn.Conv3d(2, 5, 3, padding=1), (3, 2, 4, 4, 4), 3 * 2 * 64),  # its input
        (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), (8, 4), 8 * 4 * 2),  # its input, the sigmoid's output
        (Views(), (8, 4), 8 * 4 * 3),
        (nn.Identity(), (8, 4), 0),
        (Checkpointed(), (8, 4), 8 * 4),  # its input
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_counts_by_hand(network: nn.Module, shape: tuple[int, ...], elements: int) -> None:
    assert kept_elements(network, shape) == elements
    with torch.inference_mode():
        assert kept_elements(network.double().eval(), shape) == elements
    assert not network.training


def test_attention_counts_without_its_matrix() -> None:
    network = nn.Sequential(nn.Linear(16, 16), Attention())
    tensors, tokens = 4 * 1024 * 16, 4 * 1024
    # the linear layer's input; query (which is what exp keeps), key, value, result, and a number per query
    assert kept_elements(network, (1, 4, 1024, 16)) == 5 * tensors + tokens


def test_half_of_it_is_nnunets_count() -> None:
    network = PlainConvUNet(
        input_channels=1,
        num_classes=3,
        n_stages=5,
        features_per_stage=[32, 64, 128, 256, 320],
        conv_op=nn.Conv3d,
        kernel_sizes=[[1, 3, 3]] + [[3, 3, 3]] * 4,
        strides=[[1, 1, 1], [1, 2, 2]] + [[2, 2, 2]] * 3,
        n_conv_per_stage=[2] * 5,
        n_conv_per_stage_decoder=[2] * 4,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    patch = (32, 128, 128)
    half = kept_elements(network, (1, 1, *patch)) / 2
    assert half / network.compute_conv_feature_map_size(patch) == pytest.approx(1, abs=0.03)
    assert kept_elements(network, (2, 1, *patch)) == pytest.approx(4 * half, rel=1e-3)


def test_without_values_nothing_is_drawn() -> None:
    def build() -> nn.Module:
        options: dict = {"n_stages": 2, "features_per_stage": [4, 8], "kernel_sizes": 3, "strides": [1, 2]}
        blocks: dict = {"n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1}
        unet = PlainConvUNet(1, conv_op=nn.Conv3d, num_classes=2, **options, **blocks)
        unet.apply(InitWeights_He(1e-2))
        return unet

    before = torch.get_rng_state()
    with without_values():
        network = build()
        real = nn.init.normal_(torch.zeros(100, device="cpu"))
    assert all(parameter.is_meta for parameter in network.parameters())
    shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == shapes
    assert real.std() > 0.5
    torch.set_rng_state(before)
    assert torch.equal(real, nn.init.normal_(torch.zeros(100)))
