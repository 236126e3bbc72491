"""The contract that every registered architecture keeps, around every registered backbone where it takes one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from nnunetv2_ext.architectures.backbones import BACKBONES
from nnunetv2_ext.architectures.backbones.record import Backbone
from nnunetv2_ext.registry import ARCHITECTURES, find
from nnunetv2_ext.testing import NETWORK_CHECKS, NetworkCase

_TOO_SMALL = (8, 3, 32)  # three voxels cannot be halved twice


@dataclass(frozen=True)
class Case(NetworkCase):
    """A registered architecture, small enough for the tests."""

    name: str = ""
    architecture: str = ""


def _case(
    name: str,
    architecture: str,
    patches: Any,
    kwargs: dict[str, Any],
    impossible: tuple[tuple[int, ...], ...] = (_TOO_SMALL,),
    **more: Any,
) -> Case:
    path = find("architecture", architecture).path
    return Case(path, patches[0], kwargs, tuple(patches[1:]), impossible, **more, name=name, architecture=architecture)


def of_backbone(record: Backbone, architecture: str) -> Case:
    """The small backbone of a record, as it is or under the refiner."""
    more: dict[str, Any] = {"random": record.random, "rounded_gradients": record.rounded_gradients}
    if architecture == "PaRNetwork":
        more |= {"fixed": True, "transfers_heads": True, "after_head": "refiner."}
    elif record.fixed_size:
        more |= {"fixed": True}
    kwargs = {"backbone": record.name, "backbone_kwargs": record.small}
    return _case(f"{architecture}-{record.name}", architecture, record.patches, kwargs, **more)


def distinct_backbones() -> list[Backbone]:
    """One record of each class: presets of the same network add nothing."""
    return list({record.path: record for record in reversed(BACKBONES)}.values())[::-1]


_MNET = next(record for record in BACKBONES if record.name == "MNet")
_CONVFREE = {"token_size": [2, 8, 8], "embed_dim": 24, "depth": 2, "num_heads": 2}
_FORMS: dict[str, dict[str, Any]] = {
    "patch": {},
    "block": {"context": "block"},
    "window": {"window": [1, 2, 1]},
    "post_norm": {"pre_norm": False, "activation_checkpointing": True},
}
_DETECTOR = {"size": 32, "features": 16, "stages": 2, "heads": 2, "points": 2}
_DETECTORS: dict[str, dict[str, Any]] = {
    "slabs": {},
    "central": {"view": "central", "head": "pooled"},
    "regions": {"regions": True},
}
_HIERARCHICAL = {
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "features": 6,
    "max_features": 20,
    "tokens": 32,
}
CASES = [
    _case("MNet", "MNet", [(8, 32, 32), *_MNET.patches[1:]], dict(_MNET.small)),
    *(
        _case(
            f"ConvFreeTransformer-{name}",
            "ConvFreeTransformer",
            [(8, 32, 32), (2, 16, 24), (6, 16, 8)],
            {**_CONVFREE, **kwargs},
        )
        for name, kwargs in _FORMS.items()
    ),
    *(
        _case(
            f"ROIDetector-{name}",
            "ROIDetector",
            [(8, 32, 32), (1, 7, 5), (19, 33, 40)],
            {**_DETECTOR, **kwargs},
            impossible=(),
            resizes=True,
        )
        for name, kwargs in _DETECTORS.items()
    ),
    *(
        _case(
            f"HierarchicalSegmentor-{name}",
            "HierarchicalSegmentor",
            [(8, 16, 24), (12, 24, 8), (4, 8, 40)],
            {**_HIERARCHICAL, **kwargs},
        )
        for name, kwargs in {"plain": {}, "checkpointed": {"activation_checkpointing": True}}.items()
    ),
    *(
        of_backbone(record, architecture)
        for record in distinct_backbones()
        for architecture in ("BackboneNetwork", "PaRNetwork")
    ),
]


def test_there_is_a_case_for_every_architecture_and_backbone() -> None:
    assert {case.architecture for case in CASES} == {entry.name for entry in ARCHITECTURES}
    for architecture in ("BackboneNetwork", "PaRNetwork"):
        held = {case.kwargs["backbone"] for case in CASES if case.architecture == architecture}
        assert {find("backbone", name).path for name in held} == {record.path for record in BACKBONES}


@pytest.mark.parametrize("check", NETWORK_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contract(case: Case, check: Callable[[NetworkCase], None]) -> None:
    check(case)
