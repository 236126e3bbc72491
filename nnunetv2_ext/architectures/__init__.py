"""Networks: PyTorch only, they know nothing of nnU-Net. Each is imported when it is asked for.

Plans name a network as `nnunetv2_ext.architectures.NAME`, so that they outlive a move of its file.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunetv2_ext.architectures.backbones.network import BackboneNetwork
    from nnunetv2_ext.architectures.contract import Entered, Freezable, Network, Tokenized
    from nnunetv2_ext.architectures.convfree import ConvFreeTransformer
    from nnunetv2_ext.architectures.detector import ROIDetector
    from nnunetv2_ext.architectures.hierarchical import HierarchicalSegmentor
    from nnunetv2_ext.architectures.mnet import MNet
    from nnunetv2_ext.architectures.multiresunet import MultiResUNet
    from nnunetv2_ext.architectures.nnformer import NNFormer
    from nnunetv2_ext.architectures.par import PaR, PaRNetwork
    from nnunetv2_ext.architectures.segformer3d import SegFormer3D
    from nnunetv2_ext.architectures.slimunetr import SlimUNETR
    from nnunetv2_ext.architectures.swin_unetr import SwinUNETR
    from nnunetv2_ext.architectures.swinsmt import SwinSMT
    from nnunetv2_ext.architectures.transbts import TransBTS
    from nnunetv2_ext.architectures.uxnet import UXNet

    # mypy checks the networks against the contract here
    _networks: tuple[type[Network], ...] = (
        BackboneNetwork,
        ConvFreeTransformer,
        HierarchicalSegmentor,
        MNet,
        PaRNetwork,
        ROIDetector,
    )
    _entered: tuple[type[Entered], ...] = (HierarchicalSegmentor,)
    _freezable: tuple[type[Freezable], ...] = (PaRNetwork,)
    _tokenized: tuple[type[Tokenized], ...] = (ConvFreeTransformer,)

_HOMES = {
    "BackboneNetwork": "backbones.network",
    "ConvFreeTransformer": "convfree",
    "HierarchicalSegmentor": "hierarchical",
    "MNet": "mnet",
    "MultiResUNet": "multiresunet",
    "NNFormer": "nnformer",
    "PaR": "par",
    "PaRNetwork": "par",
    "ROIDetector": "detector",
    "SegFormer3D": "segformer3d",
    "SlimUNETR": "slimunetr",
    "SwinSMT": "swinsmt",
    "SwinUNETR": "swin_unetr",
    "TransBTS": "transbts",
    "UXNet": "uxnet",
}

__all__ = [
    "BackboneNetwork",
    "ConvFreeTransformer",
    "HierarchicalSegmentor",
    "MNet",
    "MultiResUNet",
    "NNFormer",
    "PaR",
    "PaRNetwork",
    "ROIDetector",
    "SegFormer3D",
    "SlimUNETR",
    "SwinSMT",
    "SwinUNETR",
    "TransBTS",
    "UXNet",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
