"""HyperSORT: a network of two numbers per case that makes the parameters of a small U-Net.

Paper: Joutard et al., "HyperSORT: Self-Organising Robust Training with hyper-networks", MICCAI 2025 (arXiv 2506.21430).
Original code: https://github.com/ImFusionGmbH/HyperSORT (MIT); written anew here.

Every case has its latent vector, which is trained together with the hyper-network. Cases that are annotated alike come
to lie beside each other.

Departures from the original: the U-Net holds no parameters, it is called with those that are made for it; one linear
layer makes all of them where there it is one per tensor, which is the same. As there, a parameter is 5 tanh(h), and
the bias of h starts as the U-Net's initial tensor, so that norms start at 5 tanh(1) = 3.8.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nnunetv2_ext.architectures.layers.halves import HalvedConv3d
from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.errors import InputError, check_whole

LATENT = 2
HIDDEN = (50, 50, 50)
LIMIT = 5.0
"""Of a parameter's size."""


def _unit(convolution: nn.Conv3d | nn.ConvTranspose3d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.ReLU(), nn.InstanceNorm3d(convolution.out_channels, affine=True))


def _convolutions(first: int, channels: int, count: int) -> nn.Sequential:
    inputs = [first, *[channels] * (count - 1)]
    return nn.Sequential(*(_unit(HalvedConv3d(of_it, channels, 3, padding=1)) for of_it in inputs))


class SmallUNet(nn.Module):
    """The U-Net whose parameters are made; C 2^level channels at each level.

    Args:
        n_down: halvings, each by a convolution of stride 2.
        n_fix: convolutions at each level.
        features: C.
    """

    def __init__(self, input_channels: int, num_classes: int, *, n_down: int = 3, n_fix: int = 3, features: int = 16):
        super().__init__()
        check_whole(input_channels=input_channels, num_classes=num_classes)
        check_whole(n_down=n_down, n_fix=n_fix, features=features)
        channels = [features * 2**level for level in range(n_down + 1)]
        self.divisor = 2**n_down
        self.stem = _unit(HalvedConv3d(input_channels, features, 3, padding=1))
        self.encoder = nn.ModuleList(_convolutions(one, one, n_fix) for one in channels)
        self.down = nn.ModuleList(
            _unit(HalvedConv3d(fine, coarse, 3, stride=2, padding=1)) for fine, coarse in pairwise(channels)
        )
        self.up = nn.ModuleList(
            _unit(nn.ConvTranspose3d(coarse, fine, 4, stride=2, padding=1)) for fine, coarse in pairwise(channels)
        )
        self.decoder = nn.ModuleList(_convolutions(2 * one, one, n_fix) for one in channels[:-1])
        self.head = HalvedConv3d(features, num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, input channels, Z, Y, X) -> logits (B, classes, Z, Y, X).

        Raises:
            InputError: a side that cannot be halved so often.
        """
        if any(side % self.divisor or side <= self.divisor for side in x.shape[2:]):
            expected = f"sides of multiples of {self.divisor}, at least {2 * self.divisor}"
            raise InputError(f"an image of {tuple(x.shape[2:])} voxels", expected, "pad it, or choose a smaller n_down")
        x, skips = self.encoder[0](self.stem(x)), []
        for down, convolutions in zip(self.down, self.encoder[1:], strict=True):
            skips.append(x)
            x = convolutions(down(x))
        for up, convolutions in zip(reversed(self.up), reversed(self.decoder), strict=True):
            x = convolutions(torch.cat([up(x), skips.pop()], dim=1))
        return self.head(x)


class HyperNetwork(nn.Module):
    """From a latent vector to the parameters of a network.

    Args:
        network: whose parameters are made; the biases of the heads start as they are.
        latent: numbers of the vector.
        hidden: neurons of each layer.
    """

    def __init__(self, network: nn.Module, *, latent: int = LATENT, hidden: Sequence[int] = HIDDEN):
        super().__init__()
        self.shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
        layers = (nn.Linear(before, after) for before, after in pairwise((latent, *hidden)))
        self.trunk = nn.Sequential(*(one for layer in layers for one in (layer, nn.ReLU())))
        self.heads = nn.Linear(hidden[-1], sum(map(math.prod, self.shapes.values())))
        with torch.no_grad():
            self.heads.bias.copy_(torch.cat([parameter.flatten() for parameter in network.parameters()]))

    def forward(self, latent: Tensor) -> dict[str, Tensor]:
        """(numbers of a latent,) -> the parameters by their names."""
        made = LIMIT * torch.tanh(self.heads(self.trunk(latent)))
        parts = made.split([math.prod(shape) for shape in self.shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}


class HyperSORT(nn.Module):
    """The hyper-network and its U-Net.

    Args:
        latent: numbers of a case's vector.
        hidden: neurons of each layer of the hyper-network.
        n_down, n_fix, features: of `SmallUNet`; by default the published ones.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        latent: int = LATENT,
        hidden: Sequence[int] = HIDDEN,
        n_down: int = 3,
        n_fix: int = 3,
        features: int = 16,
    ):
        super().__init__()
        unet = SmallUNet(input_channels, num_classes, n_down=n_down, n_fix=n_fix, features=features)
        self.hypernetwork = HyperNetwork(unet, latent=latent, hidden=hidden)
        self._unet = (unet.to("meta"),)  # in a tuple: its parameters are none of this module's

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """(B, input channels, Z, Y, X) and one latent vector for all of them -> logits (B, classes, Z, Y, X)."""
        return self.segment(x, self.hypernetwork(latent))

    def segment(self, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """As `forward`, with parameters that `hypernetwork` made before."""
        logits: Tensor = functional_call(self._unet[0], dict(parameters), (x,))
        return logits


def parameter_count(
    input_channels: int, num_classes: int, *, latent: int = LATENT, hidden: Sequence[int] = HIDDEN, **sizes: int
) -> int:
    """How many parameters a `HyperSORT` of these arguments would have; nothing is allocated."""
    with without_values():
        network = HyperSORT(input_channels, num_classes, latent=latent, hidden=hidden, **sizes)
    return sum(parameter.numel() for parameter in network.parameters())
