"""SegFormer3D written down plainly, from its description: attention with its matrix, each axis reduced by a loop.

Slow, wasteful and easy to check; what tests compare with. It takes our parameters by name.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class PlainSegFormer3D:
    """The forward pass in training, from a dictionary of parameters.

    Args:
        weights: by their published names.
        depths: blocks of each level.
        heads: of each level.
        reductions: of each level's keys.
        stride: of the first level (z, y, x).
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        depths: Sequence[int],
        heads: Sequence[int],
        reductions: Sequence[int],
        stride: Sequence[int],
    ):
        self.weights, self.depths, self.heads = weights, depths, heads
        self.reductions, self.stride = reductions, tuple(stride)

    def __call__(self, image: Tensor) -> Tensor:
        x, levels = image, []
        for level in range(4):
            x = self.level(x, level)
            levels.append(x)
        features = []
        for number in (4, 3, 2, 1):
            name = f"segformer_decoder.linear_c{number}"
            part = self.norm(f"{name}.bn", self.linear(f"{name}.proj", levels[number - 1]))
            features.append(resized(part, levels[0].shape[2:]))
        fused = F.conv3d(torch.cat(features, 1), self.weights["segformer_decoder.linear_fuse.0.weight"])
        fused = self.batch_norm("segformer_decoder.linear_fuse.1", fused).relu()
        return resized(self.conv("segformer_decoder.linear_pred", fused), image.shape[2:])

    def level(self, x: Tensor, level: int) -> Tensor:
        name = f"segformer_encoder.embed_{level + 1}"
        stride, padding = ((2, 2, 2), 1) if level else (self.stride, 3)
        x = self.norm(f"{name}.norm", self.conv(f"{name}.patch_embeddings", x, stride=stride, padding=padding))
        for block in range(self.depths[level]):
            name = f"segformer_encoder.tf_block{level + 1}.{block}"
            x = x + self.attention(f"{name}.attention", self.norm(f"{name}.norm1", x), level)
            y = self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x))
            y = self.conv(f"{name}.mlp.dwconv.dwconv", y, padding=1, groups=y.shape[1])
            x = x + self.linear(f"{name}.mlp.fc2", F.gelu(self.batch_norm(f"{name}.mlp.dwconv.bn", y)))
        return self.norm(f"segformer_encoder.norm{level + 1}", x)

    def attention(self, name: str, x: Tensor, level: int) -> Tensor:
        width, reduction = x.shape[1] // self.heads[level], self.reductions[level]
        source = self.norm(f"{name}.sr_norm", self.reduced(f"{name}.sr", x, reduction)) if reduction > 1 else x
        query = self.linear(f"{name}.query", x).flatten(2)
        key, value = self.linear(f"{name}.key_value", source).flatten(2).chunk(2, dim=1)
        results = []
        for first in range(0, x.shape[1], width):
            q, k, v = (one[:, first : first + width] for one in (query, key, value))
            matrix = (q.transpose(1, 2) @ k / width**0.5).softmax(-1)  # (B, queries, keys)
            results.append(v @ matrix.transpose(1, 2))
        return self.linear(f"{name}.proj", torch.cat(results, 1).reshape(x.shape))

    def reduced(self, name: str, x: Tensor, reduction: int) -> Tensor:
        """The sum over the places of the kernel of every `reduction`-th voxel; none beyond a small map."""
        steps = [min(reduction, size) for size in x.shape[2:]]
        counts = [size // step for size, step in zip(x.shape[2:], steps, strict=True)]
        total = self.weights[f"{name}.bias"][:, None, None, None]
        for place in torch.cartesian_prod(*(torch.arange(step) for step in steps)).tolist():
            voxels = x
            for axis, (start, step, count) in enumerate(zip(place, steps, counts, strict=True), start=2):
                voxels = voxels.index_select(axis, start + step * torch.arange(count))
            weight = self.weights[f"{name}.weight"][:, :, place[0], place[1], place[2]]
            total = total + torch.einsum("oc,bczyx->bozyx", weight, voxels)
        return total

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = torch.einsum("oc,bczyx->bozyx", self.weights[f"{name}.weight"], x)
        return y + self.weights[f"{name}.bias"][:, None, None, None]

    def conv(self, name: str, x: Tensor, **options: int | tuple[int, ...]) -> Tensor:
        return F.conv3d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **options)  # type: ignore[arg-type]

    def norm(self, name: str, x: Tensor) -> Tensor:
        return self.affine(name, (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt())

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        axes = (0, 2, 3, 4)
        return self.affine(
            name, (x - x.mean(axes, keepdim=True)) / (x.var(axes, keepdim=True, correction=0) + 1e-5).sqrt()
        )

    def affine(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.weights[f"{name}.{one}"][:, None, None, None] for one in ("weight", "bias"))
        return weight * x + bias


def resized(x: Tensor, shape: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(shape), mode="trilinear", align_corners=False)
