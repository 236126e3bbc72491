"""A transformer's layer."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.attention import attend
from nnunetv2_ext.architectures.layers.drop_path import drop_path
from nnunetv2_ext.architectures.layers.neighbourhoods import Windows


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward network, each with residual and layer norm."""

    def __init__(self, width: int, heads: int, mlp_dim: int, *, pre_norm: bool, dropout: float, drop_path: float):
        super().__init__()
        self.heads = heads
        self.pre_norm = pre_norm
        self.drop_path = drop_path
        self.dropout = nn.Dropout(dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expansion = nn.Linear(width, mlp_dim)
        self.contraction = nn.Linear(mlp_dim, width)

    def kept_per_token(self) -> int:
        """Elements that the backward pass needs: inputs of norms and linear layers, attention's queries to values."""
        return 8 * self.projection.in_features + self.expansion.out_features

    def forward(self, x: Tensor, windows: Windows | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); attention within windows, or among all N."""
        if self.pre_norm:
            x = x + self._dropped(self._attend(self.attention_norm(x), windows))
            return x + self._dropped(self._feed_forward(self.mlp_norm(x)))
        x = self.attention_norm(x + self._dropped(self._attend(x, windows)))
        return self.mlp_norm(x + self._dropped(self._feed_forward(x)))

    def _attend(self, x: Tensor, windows: Windows | None) -> Tensor:
        if windows is not None:
            x = windows.split(x)
        # (B, N, 3 D) -> (3, B, heads, N, D / heads)
        query, key, value = rearrange(self.query_key_value(x), "b n (r h d) -> r b h n d", r=3, h=self.heads)
        attended = rearrange(attend(query, key, value), "b h n d -> b n (h d)")
        out: Tensor = self.projection(attended)
        return out if windows is None else windows.join(out)

    def _feed_forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.contraction(F.relu(self.expansion(x), inplace=True))
        return out

    def _dropped(self, branch: Tensor) -> Tensor:
        """Dropout, and stochastic depth over the samples."""
        return drop_path(self.dropout(branch), self.drop_path, training=self.training)
