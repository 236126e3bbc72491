"""Attention by PyTorch's fused kernels, which never hold the matrix of weights, within CUDA's limits."""

import torch
import torch.nn.functional as F
from torch import Tensor

# CUDA's fused attention takes the sequences as a dimension of the launch grid
MAX_SEQUENCES_CUDA = 65_535
CUDA_FEATURES = 8


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Softmax attention of (S, heads, T, E) -> the same.

    Args:
        bias: added to the products of queries and keys, (S or 1, heads or 1, T, T).
        scale: of the products; None: E^-0.5.
    """
    if query.device.type == "cuda":
        return attend_on_cuda(query, key, value, bias=bias, scale=scale)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


def attend_on_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    limit: int = MAX_SEQUENCES_CUDA,
) -> Tensor:
    """Attention, (S, heads, T, E) -> the same, in the sizes that CUDA's fused kernels take.

    Features are filled up to a multiple of `CUDA_FEATURES` with zeros, which change no product, and the sequences go
    in chunks of at most `limit`.
    """
    width = query.shape[-1]
    scale = width**-0.5 if scale is None else scale
    tensors = [query, key, value]
    if width % CUDA_FEATURES:
        tensors = [F.pad(tensor, (0, -width % CUDA_FEATURES)) for tensor in tensors]
    attended = []
    for start in range(0, len(query), limit):
        part = slice(start, start + limit)
        mask = bias[part] if bias is not None and len(bias) > 1 else bias
        q, k, v = (tensor[part] for tensor in tensors)
        attended.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale))
    return (attended[0] if len(attended) == 1 else torch.cat(attended))[..., :width]


def padded_elements(features: int, width: int) -> float:
    """What CUDA's filling adds to so many elements of queries, keys, values or results of heads of that width."""
    return features * (-width % CUDA_FEATURES) / width
