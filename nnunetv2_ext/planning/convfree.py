"""What a planner of tokens does: their size in mm, patches of whole tokens, windows, memory with the weights."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from nnunetv2_ext.architectures.convfree import SIZES, ConvFreeTransformer
from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.tokens import token_size_for, window_for
from nnunetv2_ext.memory import weights_gb
from nnunetv2_ext.planning.planner import ExtPlanner

DEFAULT_SIZE = "S"
POST_NORM_LEARNING_RATE = 1e-4  # at that of pre-norm, deep networks of post-norm collapse
_MIN_TOKENS = (1, 2, 2)

_token_size_for = lru_cache(token_size_for)


class PlannerOfTokens(ExtPlanner):
    """Plans tokens that are nearly cubes in mm, a patch of whole tokens, and global or windowed attention.

    Attention is global up to N = 2 D + F tokens (D: `embed_dim`, F: `mlp_dim`): from there on its products, 4 N^2 D
    operations per layer, cost more than all linear layers, 8 N D^2 + 4 N D F.
    """

    size: str
    token_size: list[int] | None
    context: str
    block_tokens: int
    post_norm: bool

    def __init__(self, *args: Any, **kwargs: Any):
        if self.size not in SIZES:
            raise InputError(f"the size '{self.size}'", f"one of {', '.join(SIZES)}", "correct --size")
        token = (8, 8, 8) if self.token_size is None else self.token_size
        with without_values():  # the network refuses what it cannot take
            ConvFreeTransformer(
                1,
                2,
                spatial_shape=token,
                token_size=token,
                context=self.context,
                block_tokens=self.block_tokens,
            )
        super().__init__(*args, **kwargs)

    def default_plans_name(self) -> str:
        # networks of the same weights, too: a model applied in another context would go unnoticed
        chosen = "" if self.size == DEFAULT_SIZE else self.size.capitalize()
        chosen += "Block" if self.context == "block" else ""
        chosen += "PostNorm" if self.post_norm else ""
        return f"{self.plans_name.removesuffix('Plans')}{chosen}Plans"

    @property
    def pre_norm(self) -> bool:
        return not (self.post_norm or self.size == "paper")

    def published_block(self) -> Mapping[str, Any]:
        published = super().published_block()
        if self.pre_norm:
            return published
        return {**published, "optimizer": {**published["optimizer"], "lr": POST_NORM_LEARNING_RATE}}

    def tokens_of(self, patch_size: Sequence[int] | np.ndarray, spacing: np.ndarray) -> list[int]:
        """Tokens along z, y, x of a patch (voxels) at a spacing (mm)."""
        return [int(size) // token for size, token in zip(patch_size, self._token_size(spacing), strict=True)]

    def fitted_patch(self, patch_size: np.ndarray, spacing: np.ndarray) -> np.ndarray:
        token = np.array(self._token_size(spacing))
        tokens = np.ceil(np.maximum(patch_size, self.min_patch) / token)
        return (np.maximum(tokens, _MIN_TOKENS) * token).astype(int)

    def suits(self, patch_size: np.ndarray, spacing: np.ndarray) -> bool:
        tokens = self.tokens_of(patch_size, spacing)
        return not self._is_large(tokens) or window_for(tokens) is not None

    def architecture_kwargs(self, patch_size: list[int], spacing: np.ndarray) -> dict[str, Any]:
        tokens = self.tokens_of(patch_size, spacing)
        return {
            "spatial_shape": patch_size,
            "token_size": list(self._token_size(spacing)),
            **SIZES[self.size],
            "context": self.context,
            "block_tokens": self.block_tokens,
            "pre_norm": self.pre_norm,
            "dropout": 0.0,
            "drop_path": 0.0,
            "window": window_for(tokens) if self._is_large(tokens) else None,
            "activation_checkpointing": self.activation_checkpointing,
        }

    def weights_gb(
        self, patch_size: list[int], spacing: np.ndarray, input_channels: int, output_channels: int
    ) -> float:
        parameters = self._counted(patch_size, spacing, input_channels, output_channels)[1]
        return weights_gb(parameters, "AdamW")

    def further_entries(self, arch_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {"attention": _in_words(arch_kwargs)}

    def _token_size(self, spacing: np.ndarray) -> tuple[int, ...]:
        if self.token_size is not None:
            return tuple(self.token_size)
        return _token_size_for(tuple(float(mm) for mm in spacing))

    def _is_large(self, tokens: Sequence[int]) -> bool:
        """Whether global attention over these tokens would cost more than everything else."""
        size = SIZES[self.size]
        return self.context == "patch" and math.prod(tokens) > 2 * size["embed_dim"] + size["mlp_dim"]


def _in_words(arch_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """For readers of the plans: the grid of tokens, and how many of them a token attends to in one layer."""
    grid = [size // token for size, token in zip(arch_kwargs["spatial_shape"], arch_kwargs["token_size"], strict=True)]
    if arch_kwargs["context"] == "block":
        kind, attended = "blocks", arch_kwargs["block_tokens"] ** 3
    elif arch_kwargs["window"] is not None:
        kind, attended = "windowed", math.prod(arch_kwargs["window"])
    else:
        kind, attended = "global", math.prod(grid)
    return {"tokens": grid, "kind": kind, "tokens_per_window": attended}
