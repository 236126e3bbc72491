"""A soft mixture of experts: Puigcerver et al., "From Sparse to Soft Mixtures of Experts", ICLR 2024."""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.attention import attend
from nnunetv2_ext.architectures.layers.recompute import recomputed


class RMSNorm(nn.Module):
    """x / |x| * sqrt(features) * gamma."""

    def __init__(self, features: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        eps = 1e-24  # for vectors of zeros alone
        return F.rms_norm(x.to(self.gamma.dtype), self.gamma.shape, self.gamma, eps)


class SoftMixture(nn.Module):
    """Every expert sees a few slots, weighted means of all tokens; every token takes a weighted mean of the results.

    A slot's vector (its embedding) comes from the mean of as many consecutive tokens as there are experts. The products
    of tokens and embeddings are softmaxed twice: over the tokens they mix the slots' inputs (dispatch), over the slots
    the tokens' outputs (combine). Both are attention, so that neither matrix, tokens x slots, is ever held; the price
    is to compute the products twice.

    Args:
        features: of a token.
        experts: their number E; each is a linear layer to 4 x features, GELU, and one back.

    Shapes: (B, ..., features) -> the same; all that lies between is one row of tokens.
    """

    def __init__(self, features: int, experts: int):
        super().__init__()
        self.norm = RMSNorm(features)
        self.to_slot_embeds = nn.Sequential(
            nn.Linear(features, experts * features, bias=False),
            Rearrange("b s (e d) -> b (e s) d", e=experts),
            RMSNorm(features),
        )
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(features, 4 * features), nn.GELU(), nn.Identity(), nn.Linear(4 * features, features)
            )
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(1, -2))  # (B, N, D)
        embeddings = self.to_slot_embeds(self._means(tokens))  # (B, E S, D)
        tokens, embeddings = tokens[:, None], embeddings[:, None]  # one head
        slots = attend(embeddings, tokens, tokens, scale=1.0)
        parts = zip(self.experts, rearrange(slots, "b 1 (e s) d -> e b 1 s d", e=len(self.experts)), strict=True)
        results = torch.cat([recomputed(expert, part) for expert, part in parts], 2)
        return attend(tokens, embeddings, results, scale=1.0).reshape(x.shape)

    def _means(self, tokens: Tensor) -> Tensor:
        """The mean of every E consecutive tokens, at the end of those that are left: (B, N, D) -> (B, S, D)."""
        size = len(self.experts)
        left = tokens.shape[1] % size
        if not left:
            return reduce(tokens, "b (s e) d -> b s d", "mean", e=size)
        whole, rest = tokens[:, :-left], tokens[:, -left:]
        return torch.cat([reduce(whole, "b (s e) d -> b s d", "mean", e=size), rest.mean(1, keepdim=True)], 1)
