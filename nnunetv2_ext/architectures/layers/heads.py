"""Segmentation heads, under the name by which nnU-Net knows them, in the module or in its state dict alone.

nnU-Net's `-pretrained_weights` leaves out keys that contain `.seg_layers.`: heads of other names need it, and heads
that are to be taken over must not have it.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from nnunetv2_ext.architectures.layers.few_channels import Pointwise

Pairs = Sequence[tuple[str, str]]


class Heads(nn.Module):
    """The 1x1x1 convolutions to logits, one for each output.

    Args:
        channels: of each output's features.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, *, bias: bool):
        super().__init__()
        self.seg_layers = nn.ModuleList(Pointwise(width, num_classes, 1, bias=bias) for width in channels)


def rename_in_state_dict(module: nn.Module, pairs: Pairs) -> None:
    """Let the module's state dict have `new` for `old` in its keys, and take it back when it is loaded.

    Args:
        pairs: (old, new), parts of keys below the module; replaced wherever they stand, in the order of the keys.
    """
    module.register_state_dict_post_hook(_Renaming(pairs))
    module.register_load_state_dict_pre_hook(_Renaming([(new, old) for old, new in pairs]))


class _Renaming:
    """A hook that can be pickled and copied with its module."""

    def __init__(self, pairs: Pairs):
        self.pairs = tuple(pairs)

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        for key in list(state_dict):
            value = state_dict.pop(key)
            state_dict[prefix + self.renamed(key.removeprefix(prefix)) if key.startswith(prefix) else key] = value

    def renamed(self, key: str) -> str:
        for old, new in self.pairs:
            key = key.replace(old, new)
        return key
