"""The plain TransBTS: the readable oracle that the package's own is compared with.

Wang et al., TransBTS: Multimodal Brain Tumor Segmentation Using Transformer, MICCAI 2021. Only PyTorch's own layers,
one after the other, without dropout; submodules carry the published names.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Holder(nn.Module):
    """Modules under the names given."""

    def __init__(self, **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def conv3(channels_in: int, channels_out: int, stride: Sequence[int] = (1, 1, 1)) -> nn.Conv3d:
    return nn.Conv3d(channels_in, channels_out, 3, stride=tuple(stride), padding=1)  # type: ignore[arg-type]


class EnBlock(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.bn1, self.bn2 = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
        self.conv1, self.conv2 = conv3(channels, channels), conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.bn1(x)))
        return x + self.conv2(functional.relu(self.bn2(y)))


class DeBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, *, residual: bool):
        super().__init__()
        self.residual = residual
        self.conv1, self.bn1 = conv3(channels_in, channels), nn.BatchNorm3d(channels)
        self.conv2, self.bn2 = conv3(channels, channels), nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return x + y if self.residual else y


class DeUp(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: Sequence[int]):
        super().__init__()
        kernel = tuple(stride)
        self.conv1 = nn.Conv3d(channels_in, channels, 1)
        self.conv2 = nn.ConvTranspose3d(channels, channels, kernel, stride=kernel)  # type: ignore[arg-type]
        self.conv3 = nn.Conv3d(2 * channels, channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self.conv3(torch.cat([skip, self.conv2(self.conv1(x))], dim=1))
        return joined


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        width = query.shape[-1] // self.heads
        results = []
        for head in range(self.heads):
            part = slice(head * width, (head + 1) * width)
            products = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(width)
            results.append(products.softmax(-1) @ value[..., part])
        attended: Tensor = self.proj(torch.cat(results, dim=-1))
        return attended


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width), nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class PlainTransBTS(nn.Module):
    """TransBTS on (B, input_channels, z, y, x); the arguments are those of `nnunetv2_ext.architectures.TransBTS`."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        spatial_shape: Sequence[int],
        base_channels: int = 16,
        groups: int = 8,
        hidden_dim: int = 4096,
        num_heads: int = 8,
        num_layers: int = 4,
        strides: Sequence[Sequence[int]] = ((2, 2, 2),) * 3,
    ):
        super().__init__()
        c, width = base_channels, 32 * base_channels
        tokens = math.prod(spatial_shape) // math.prod(math.prod(stride) for stride in strides)
        self.Unet = Holder(
            InitConv=Holder(conv=conv3(input_channels, c)),
            EnBlock1=EnBlock(c, groups),
            EnDown1=Holder(conv=conv3(c, 2 * c, strides[0])),
            EnBlock2_1=EnBlock(2 * c, groups),
            EnBlock2_2=EnBlock(2 * c, groups),
            EnDown2=Holder(conv=conv3(2 * c, 4 * c, strides[1])),
            EnBlock3_1=EnBlock(4 * c, groups),
            EnBlock3_2=EnBlock(4 * c, groups),
            EnDown3=Holder(conv=conv3(4 * c, 8 * c, strides[2])),
            **{f"EnBlock4_{block}": EnBlock(8 * c, groups) for block in (1, 2, 3, 4)},
        )
        self.bn = nn.BatchNorm3d(8 * c)
        self.conv_x = conv3(8 * c, width)
        self.position_encoding = nn.ParameterDict({"position_embeddings": torch.zeros(1, tokens, width)})
        layers = [
            layer for _ in range(num_layers) for layer in (Attention(width, num_heads), FeedForward(width, hidden_dim))
        ]
        self.transformer = Holder(
            net=nn.ModuleList(Holder(fn=Holder(norm=nn.LayerNorm(width), fn=layer)) for layer in layers)
        )
        self.Enblock8_1 = DeBlock(width, 8 * c, residual=False)
        self.Enblock8_2 = DeBlock(8 * c, 8 * c, residual=True)
        for level, wide in ((4, 4 * c), (3, 2 * c), (2, c)):
            self.add_module(f"DeUp{level}", DeUp(2 * wide, wide, strides[level - 2]))
            self.add_module(f"DeBlock{level}", DeBlock(wide, wide, residual=True))
        self.endconv = nn.Conv3d(c, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = {}
        x = self.Unet.get_submodule("InitConv.conv")(x)
        for name, module in list(self.Unet.named_children())[1:]:
            x = (module.get_submodule("conv") if name.startswith("EnDown") else module)(x)
            skips[name] = x
        x = self.conv_x(functional.relu(self.bn(x)))
        tokens = x.flatten(2).transpose(1, 2) + self.position_encoding["position_embeddings"]
        for layer in self.transformer.get_submodule("net").children():
            tokens = tokens + layer.get_submodule("fn.fn")(layer.get_submodule("fn.norm")(tokens))
        x = self.Enblock8_2(self.Enblock8_1(tokens.transpose(1, 2).reshape(x.shape)))
        for level, skip in ((4, "EnBlock3_2"), (3, "EnBlock2_2"), (2, "EnBlock1")):
            x = self.get_submodule(f"DeUp{level}")(x, skips[skip])
            x = self.get_submodule(f"DeBlock{level}")(x)
        logits: Tensor = self.endconv(x)
        return logits
