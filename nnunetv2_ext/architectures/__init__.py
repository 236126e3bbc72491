"""Networks: PyTorch only, they know nothing of nnU-Net. Each is imported when it is asked for.

Plans name a network as `nnunetv2_ext.architectures.NAME`, so that they outlive a move of its file.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunetv2_ext.architectures.backbones.network import BackboneNetwork
    from nnunetv2_ext.architectures.contract import Freezable, Network, Tokenized
    from nnunetv2_ext.architectures.convfree import ConvFreeTransformer
    from nnunetv2_ext.architectures.mnet import MNet
    from nnunetv2_ext.architectures.par import PaR, PaRNetwork
    from nnunetv2_ext.architectures.slimunetr import SlimUNETR
    from nnunetv2_ext.architectures.swin_unetr import SwinUNETR
    from nnunetv2_ext.architectures.swinsmt import SwinSMT

    # mypy checks the networks against the contract here
    _networks: tuple[type[Network], ...] = (BackboneNetwork, ConvFreeTransformer, MNet, PaRNetwork)
    _freezable: tuple[type[Freezable], ...] = (PaRNetwork,)
    _tokenized: tuple[type[Tokenized], ...] = (ConvFreeTransformer,)

_HOMES = {
    "BackboneNetwork": "backbones.network",
    "ConvFreeTransformer": "convfree",
    "MNet": "mnet",
    "PaR": "par",
    "PaRNetwork": "par",
    "SlimUNETR": "slimunetr",
    "SwinSMT": "swinsmt",
    "SwinUNETR": "swin_unetr",
}

__all__ = ["BackboneNetwork", "ConvFreeTransformer", "MNet", "PaR", "PaRNetwork", "SlimUNETR", "SwinSMT", "SwinUNETR"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
