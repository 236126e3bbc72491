"""Self-attention of few features per head: the CPU's fused kernel for it uses little of its width."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunetv2_ext.architectures.layers.attention import attend

# scores that are held at a time: they stay in the processor's caches
_SCORES = 2**18
# up to this exponent of two neither weights nor their sums come near the ends of float32
_HARMLESS = 32


def is_meant_for(x: Tensor) -> bool:
    """Whether `self_attention` is to be used: by one thread of a CPU, but not in half precision or in compiled code.

    Its products are too small for several threads, which take twice the time of one; the fused kernel shares its work.
    """
    alone = x.device.type == "cpu" and torch.get_num_threads() == 1
    return alone and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


def self_attention(x: Tensor, to_qkv: nn.Linear, to_out: nn.Linear, heads: int) -> Tensor:
    """Multi-head self-attention along T, vectors along W: (B, W, R, S, T) -> the same.

    Tokens are the columns of every matrix, features its rows, which makes the products wide. The sequences, one for
    each of R and S, go in pieces of few scores. Kept for the backward pass are `x`, the results of the heads and the
    sums of their weights; the rest is computed again.

    Args:
        to_qkv: W -> 3 W, without bias.
        to_out: W -> W.
    """
    result: Tensor = _SelfAttention.apply(x, to_qkv.weight, to_out.weight, to_out.bias, heads)  # type: ignore[no-untyped-call]
    return result


class SelfAttention(nn.Module):
    """Multi-head self-attention along one dimension, vectors along W: (B, C, W, H, D) -> (B, C, W, H, D).

    Args:
        length: size of W.
        order: of the dimensions, in the notation of einops: batch, W, two of the sequences, tokens.
    """

    def __init__(self, length: int, heads: int, order: str):
        super().__init__()
        self.heads, self.order = heads, order
        self.to_qkv = nn.Linear(length, 3 * length, bias=False)
        self.to_out = nn.Linear(length, length)

    def forward(self, y: Tensor) -> Tensor:
        attended = self._attended(rearrange(y, f"b c w h d -> {self.order}"))
        return rearrange(attended, f"{self.order} -> b c w h d")

    def _attended(self, x: Tensor) -> Tensor:
        """(B, W, R, S, T) -> the same: sequences of all R and S, tokens along T."""
        if is_meant_for(x):
            return self_attention(x, self.to_qkv, self.to_out, self.heads)
        projected = self.to_qkv(rearrange(x, "b w r s t -> (b r s) t w"))
        query, key, value = (rearrange(one, "s t (n e) -> s n t e", n=self.heads) for one in projected.chunk(3, dim=-1))
        attended = self.to_out(rearrange(attend(query, key, value), "s n t e -> s t (n e)"))
        return rearrange(attended, "(b r s) t w -> b w r s t", r=x.shape[2], s=x.shape[3])


class _SelfAttention(torch.autograd.Function):
    """See `self_attention`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_qkv: Tensor, to_out: Tensor, bias: Tensor, heads: int) -> Tensor:
        result, attended = torch.empty_like(x), torch.empty_like(x)
        sums = x.new_empty(len(x), heads, *x.shape[2:])
        with torch.autocast("cpu", enabled=False):
            scaled = _with_scale(to_qkv, heads)
            for piece, (weights, _) in _pieces(x):
                shape = x[piece].shape
                qkv = _by_head(scaled @ x[piece].flatten(1), heads, x.shape)
                ours, our_sums = torch.empty_like(qkv[:1]), sums.new_empty(heads, *weights.shape[:2])
                for head in range(heads):
                    query, key, value = qkv[:, head]
                    ours[0, head], our_sums[head] = _attend(query, key, value, weights)
                sums[piece] = our_sums.view(heads, *shape[1:])
                attended[piece] = _by_feature(ours).view(shape)
                result[piece] = torch.addmm(bias[:, None], to_out, _by_feature(ours)).view(shape)
        ctx.save_for_backward(x, to_qkv, to_out, attended, sums)
        ctx.heads = heads
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            return _SelfAttention._backward(ctx, gradient)

    @staticmethod
    def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, to_qkv, to_out, attended, sums = ctx.saved_tensors
        heads, scaled = ctx.heads, _with_scale(to_qkv, ctx.heads)
        of_x, of_bias = torch.empty_like(x), to_out.new_zeros(len(to_out))
        of_scaled, of_out = torch.zeros_like(to_qkv), torch.zeros_like(to_out)
        for piece, scores in _pieces(x):
            inputs, outer, middle = (tensor[piece].flatten(1) for tensor in (x, gradient, attended))
            qkv = _by_head(scaled @ inputs, heads, x.shape)
            inner = to_out.T @ outer
            means = _by_head(inner * middle, heads, x.shape)[0].sum(2)
            our_sums, inner = sums[piece].reshape(means.shape), _by_head(inner, heads, x.shape)[0]
            below = torch.empty_like(qkv)
            for head in range(heads):
                query, key, value = qkv[:, head]
                of_query, of_key, of_value = _attend_backward(
                    query, key, value, inner[head], our_sums[head], means[head], scores
                )
                below[0, head], below[1, head], below[2, head] = of_query, of_key, of_value
            below[:2] *= math.log(2)
            of_out.addmm_(outer, middle.T)
            of_bias += outer.sum(1)
            of_scaled.addmm_(_by_feature(below), inputs.T)
            of_x[piece] = (scaled.T @ _by_feature(below)).view(x[piece].shape)
        return of_x, _with_scale(of_scaled, heads), of_out, of_bias, None


def _attend(query: Tensor, key: Tensor, value: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of (S, E, T), and (S, T), the logarithms of the sums of its weights, which are powers of two."""
    torch.bmm(query.mT, key, out=weights)
    if query.shape[1] * query.abs().amax() * key.abs().amax() <= _HARMLESS:
        total = weights.exp2_().sum(-1, keepdim=True)
        sums = total.log2()
    else:
        largest = weights.amax(-1, keepdim=True)
        total = weights.sub_(largest).exp2_().sum(-1, keepdim=True)
        sums = total.log2().add_(largest)
    return torch.bmm(value, weights.mT).div_(total.mT), sums[..., 0]


def _attend_backward(
    query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, sums: Tensor, means: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query and key, but for the factor log 2, and of value.

    Args:
        sums: (S, T), as `_attend` gives them.
        means: (S, T), products of gradient and attention.
        scores: (2, S, T, T), written into.
    """
    weights, of_scores = scores
    torch.baddbmm(sums.neg()[..., None].expand(weights.shape), query.mT, key, out=weights).exp2_()
    torch.baddbmm(means.neg()[..., None].expand(weights.shape), gradient.mT, value, out=of_scores).mul_(weights)
    return torch.bmm(key, of_scores.mT), torch.bmm(query, of_scores), torch.bmm(gradient, weights)


def _pieces(x: Tensor) -> Iterator[tuple[tuple[int, slice, slice, slice], Tensor]]:
    """The sequences of (B, W, R, S, T) in parts of one sample and of few scores per head, with room for these twice."""
    batch, _, rows, columns, tokens = x.shape
    sequences = max(1, min(_SCORES, x.numel()) // tokens**2)
    wide, high = min(columns, sequences), max(1, sequences // columns)
    room = x.new_empty(2, min(high, rows) * wide, tokens, tokens)  # made once: fresh memory costs more than the scores
    for sample in range(batch):
        for row in range(0, rows, high):
            for column in range(0, columns, wide):
                taken = min(high, rows - row) * min(wide, columns - column)
                yield (sample, slice(None), slice(row, row + high), slice(column, column + wide)), room[:, :taken]


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
