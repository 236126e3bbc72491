"""Self-attention of few features per head: the CPU's fused kernel for it uses little of its width."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# scores that are held at a time: they stay in the processor's caches
_SCORES = 2**20


def is_meant_for(x: Tensor) -> bool:
    """Whether `self_attention` is to be used: on the CPU, but not in half precision or in compiled code."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


def self_attention(x: Tensor, to_qkv: nn.Linear, to_out: nn.Linear, heads: int) -> Tensor:
    """Multi-head self-attention along T, vectors along W: (B, W, R, S, T) -> the same.

    Tokens are the columns of every matrix, features its rows, which makes the products wide. The sequences, one for
    each of R and S, go in pieces of which few scores are held. Only `x` is kept for the backward pass; the rest is
    computed again.

    Args:
        to_qkv: W -> 3 W, without bias.
        to_out: W -> W.
    """
    result: Tensor = _SelfAttention.apply(x, to_qkv.weight, to_out.weight, to_out.bias, heads)
    return result


class _SelfAttention(torch.autograd.Function):
    """See `self_attention`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_qkv: Tensor, to_out: Tensor, bias: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(x, to_qkv, to_out)
        ctx.heads = heads
        result = torch.empty_like(x)
        with torch.autocast("cpu", enabled=False):
            to_qkv = _with_scale(to_qkv, heads)
            for piece in _pieces(x):
                qkv = _by_head(to_qkv @ x[piece].flatten(1), heads, x.shape)
                attended = torch.empty_like(qkv[:1])
                for head in range(heads):
                    attended[:, head] = _attend(*qkv[:, head])[0]
                result[piece] = torch.addmm(bias[:, None], to_out, _by_feature(attended)).view(x[piece].shape)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, to_qkv, to_out = ctx.saved_tensors
        heads, to_qkv = ctx.heads, _with_scale(to_qkv, ctx.heads)
        of_x, of_bias = torch.empty_like(x), to_out.new_zeros(len(to_out))
        of_qkv, of_out = torch.zeros_like(to_qkv), torch.zeros_like(to_out)
        for piece in _pieces(x):
            inputs, outer = x[piece].flatten(1), gradient[piece].flatten(1)
            qkv = _by_head(to_qkv @ inputs, heads, x.shape)
            inner = _by_head(to_out.T @ outer, heads, x.shape)
            attended, below = torch.empty_like(inner), torch.empty_like(qkv)
            for head in range(heads):
                attended[:, head], *gradients = _attend_backward(*qkv[:, head], inner[0, head])
                below[:, head] = torch.stack(gradients)
            of_out.addmm_(outer, _by_feature(attended).T)
            of_bias += outer.sum(1)
            of_qkv.addmm_(_by_feature(below), inputs.T)
            of_x[piece] = (to_qkv.T @ _by_feature(below)).view(x[piece].shape)
        return of_x, _with_scale(of_qkv, heads), of_out, of_bias, None


def _attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of (S, E, T), the weights (S, T, T) before they are divided by their sums, and these, (S, T, 1).

    The weights are powers of two, which the CPU computes faster than those of e.
    """
    scores = query.mT @ key
    weights = scores.sub_(scores.amax(-1, keepdim=True)).exp2_()
    total = weights.sum(-1, keepdim=True)
    return (value @ weights.mT).div_(total.mT), weights, total


def _attend_backward(query: Tensor, key: Tensor, value: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """The attention again, then the gradients of query, key and value, all of (S, E, T)."""
    attended, weights, total = _attend(query, key, value)
    gradient = gradient / total.mT
    mean = (gradient * attended).sum(1)[..., None]
    of_scores = torch.baddbmm(mean.expand(weights.shape), gradient.mT, value, beta=-1).mul_(weights)
    of_query, of_key = key @ of_scores.mT, query @ of_scores
    return attended, of_query.mul_(math.log(2)), of_key.mul_(math.log(2)), gradient @ weights


def _pieces(x: Tensor) -> Iterator[tuple[int, slice, slice, slice]]:
    """The sequences of (B, W, R, S, T) in parts of one sample and of few scores per head."""
    batch, _, rows, columns, tokens = x.shape
    sequences = max(1, min(_SCORES, x.numel()) // tokens**2)
    wide, high = min(columns, sequences), max(1, sequences // columns)
    for sample in range(batch):
        for row in range(0, rows, high):
            for column in range(0, columns, wide):
                yield sample, slice(None), slice(row, row + high), slice(column, column + wide)


def _with_scale(to_qkv: Tensor, heads: int) -> Tensor:
    """The projection whose queries hold the scale of scores, E^-0.5, for powers of two."""
    length = len(to_qkv) // 3
    scale = (length // heads) ** -0.5 / math.log(2)
    return torch.cat([scale * to_qkv[:length], to_qkv[length:]])


def _by_head(x: Tensor, heads: int, shape: torch.Size) -> Tensor:
    """A piece of queries, keys and values, (3 W, sequences T) -> (3, heads, sequences, E, T), a view."""
    _, length, *_, tokens = shape
    return rearrange(x, "(k n e) (s t) -> k n s e t", k=len(x) // length, n=heads, t=tokens)


def _by_feature(x: Tensor) -> Tensor:
    """What `_by_head` did, undone: a view."""
    return rearrange(x, "k n s e t -> (k n e) (s t)")
