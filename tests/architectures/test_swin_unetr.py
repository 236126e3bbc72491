"""The two orders of patch merging; networks of older plans."""

import inspect
from typing import Any

import pytest
import torch
from monai.networks.nets import swin_unetr

from nnunetv2_ext.architectures import SwinUNETR
from nnunetv2_ext.architectures.backbones.network import BackboneNetwork, record_of
from nnunetv2_ext.architectures.swin_unetr import merging_class
from nnunetv2_ext.errors import InputError
from tests.architectures.plain_swinsmt import CURRENT, PUBLISHED, joined

SMALL: dict[str, Any] = {"feature_size": 12, "depths": [1, 1, 1, 1], "window_size": [2, 4, 4]}
PATCH = (32, 32, 64)


@pytest.mark.parametrize(("merging", "order"), [("published", PUBLISHED), ("current", CURRENT)])
def test_the_order_of_the_octants(merging: str, order: list[str]) -> None:
    torch.manual_seed(0)
    layer = merging_class(merging)(3)
    x = torch.randn(2, 4, 2, 6, 3)
    torch.testing.assert_close(layer(x), layer.reduction(layer.norm(joined(x, order))))


def test_both_mergings_have_the_same_weights_and_other_outputs() -> None:
    published, current = (SwinUNETR(1, 2, **SMALL, merging=merging).eval() for merging in ("published", "current"))
    published.load_state_dict(current.state_dict(), strict=True)
    shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (published, current)]
    assert shapes[0] == shapes[1]
    x = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        assert (published(x) - current(x)).abs().max() > 0.1 * current(x).std()


@pytest.mark.parametrize("name", ["SwinUNETR", "monai.networks.nets.swin_unetr.SwinUNETR"])
def test_plans_and_weights_of_older_versions(name: str) -> None:
    torch.manual_seed(0)
    trained = swin_unetr.SwinUNETR(1, 2, **SMALL).eval()
    network = BackboneNetwork(1, 2, backbone=name, spatial_shape=PATCH, backbone_kwargs=SMALL, deep_supervision=False)
    assert network.backbone == "SwinUNETR"
    heads = "out."
    state = {
        f"network.{'seg_layers.' * key.startswith(heads)}{key}": tensor for key, tensor in trained.state_dict().items()
    }
    network.eval().load_state_dict(state, strict=True)
    x = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        assert torch.equal(network(x), trained(x))


def test_it_takes_what_monais_takes() -> None:
    theirs, ours = (inspect.signature(one).parameters for one in (swin_unetr.SwinUNETR, SwinUNETR))
    assert list(ours) == [*theirs, "merging"]
    assert record_of("SwinUNETR").load() is SwinUNETR


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merging": "new"}, "merging='new'; expected one of published, current"),
        ({"merging": "published", "downsample": "mergingv2"}, "downsample='mergingv2'; expected one of the two"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BackboneNetwork(1, 2, backbone="SwinUNETR", spatial_shape=PATCH, backbone_kwargs={**SMALL, **options})
