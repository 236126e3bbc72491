"""SegFormer3D against the published network's outputs and against a plain version, gradients included."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunetv2_ext.architectures import SegFormer3D
from nnunetv2_ext.architectures.backbones import find_backbone
from nnunetv2_ext.architectures.backbones.record import size_rule
from nnunetv2_ext.errors import InputError
from tests.architectures.plain_segformer3d import PlainSegFormer3D

SMALL: dict[str, Any] = {
    "embed_dims": (4, 6, 8, 12),
    "num_heads": (1, 2, 2, 3),
    "depths": (2, 1, 1, 2),
    "decoder_head_embedding_dim": 8,
}


def built(**options: Any) -> SegFormer3D:
    """A small network in float64 with weights of ordinary size."""
    torch.manual_seed(0)
    network = SegFormer3D(2, 3, **{**SMALL, **options}).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_published_outputs(golden: Path) -> None:
    file = np.load(golden / "segformer3d.npz")
    arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
    state = {key[2:]: tensor for key, tensor in arrays.items() if key.startswith("w/")}
    network = SegFormer3D(
        1, 2, embed_dims=(4, 8, 10, 16), num_heads=(1, 2, 5, 4), decoder_head_embedding_dim=16
    ).double()
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        outputs = {"y": network.eval()(arrays["x"]), "y_train": network.train()(arrays["x"])[:1]}
    outputs |= {f"after/{key}": tensor for key, tensor in network.state_dict().items()}
    for key, expected in arrays.items():
        if key in outputs:
            assert (outputs[key] - expected).abs().max() <= 1e-8 * expected.abs().max(), key


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 2, 20, 36, 28), {}),
        ((1, 2, 3, 40, 24), {"patch_stride": (1, 4, 2)}),  # one map smaller than its reduction, one not divided by it
        ((2, 2, 9, 18, 5), {"patch_stride": 2, "sr_ratios": (3, 2, 2, 1), "mlp_ratios": (2, 4, 1, 3)}),
    ],
    ids=str,
)
def test_plain_outputs_and_gradients(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    network, x, same = built(**options), image(*shape).requires_grad_(), image(*shape).requires_grad_()
    leaves = {name: parameter.detach().clone().requires_grad_() for name, parameter in network.named_parameters()}
    plain = PlainSegFormer3D(
        leaves,
        SMALL["depths"],
        SMALL["num_heads"],
        options.get("sr_ratios", (4, 2, 1, 1)),
        network.patch_stride,
    )
    output, expected = network(x), plain(same)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10 * float(expected.detach().abs().max()))
    weights = image(*output.shape)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters()} | {"image": x.grad}
    wanted = {name: leaf.grad for name, leaf in leaves.items()} | {"image": same.grad}
    largest = max(float(one.abs().max()) for one in wanted.values() if one is not None)
    for name, gradient in found.items():
        assert gradient is not None, name
        assert wanted[name] is not None, name
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-10 * largest, msg=name)


def test_initialisation() -> None:
    state = SegFormer3D(1, 3).segformer_encoder.state_dict()
    deviations = {
        "embed_2.patch_embeddings.weight": (2 / (64 * 27)) ** 0.5,
        "tf_block4.0.mlp.dwconv.dwconv.weight": (2 / 27) ** 0.5,
        "tf_block4.0.attention.query.weight": 0.02,
    }
    for name, deviation in deviations.items():
        assert float(state[name].std()) == pytest.approx(deviation, rel=0.02), name
        assert not state[name.replace("weight", "bias")].any()


def test_one_token_at_the_bottleneck() -> None:
    network, x = SegFormer3D(2, 3, **SMALL), image(1, 2, 32, 32, 32).float()
    with pytest.raises(InputError, match=r"patch of \(32, 32, 32\); .*batch norm needs two; .*at least 36, 36 or 36"):
        network(x)
    assert network(torch.cat([x, x])).shape == (2, 3, 32, 32, 32)  # two samples have two tokens
    assert network.eval()(x).isfinite().all()
    with pytest.raises(InputError, match="patch"):
        network.deep_supervision_shapes((32, 32, 32))
    assert network.deep_supervision_shapes((4, 36, 8)) == [(4, 36, 8)]


@pytest.mark.parametrize(
    ("spacing", "stride"),
    [
        ((1, 1, 1), [4, 4, 4]),
        ((5, 1, 1), [1, 4, 4]),
        ((3, 0.9, 0.9), [2, 4, 4]),
        ((1.9, 1, 1), [4, 4, 4]),
        ((1, 4, 2), [4, 1, 2]),
    ],
)
def test_strides_by_spacing(spacing: tuple[float, ...], stride: list[int]) -> None:
    rule = find_backbone("SegFormer3D").planned_by_spacing
    assert rule is not None
    assert rule(spacing) == {"patch_stride": stride}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dims": (4, 6, 8)}, r"embed_dims=\(4, 6, 8\); expected 4 whole numbers from 1, one per level"),
        ({"depths": (1, 1, 0, 1)}, "depths="),
        ({"sr_ratios": 2}, "sr_ratios=2"),
        ({"mlp_ratios": (4, 4, 4, 1.5)}, "mlp_ratios="),
        ({"num_heads": (1, 4, 2, 3)}, r"num_heads=\(1, 4, 2, 3\); .*choose a multiple of 4 for 6"),
        ({"decoder_head_embedding_dim": 0}, "decoder_head_embedding_dim=0"),
        ({"patch_stride": 3}, "patch_stride=3; expected 1, 2 or 4"),
        ({"patch_stride": (4, 4)}, "patch_stride="),
        ({"patch_stride": (4, 4, 2.5)}, "patch_stride="),
        ({"patch_stride": True}, "patch_stride=True"),
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SegFormer3D(1, 2, **{**SMALL, **options})


@pytest.mark.parametrize("stride", [3, (4, 4), (4, 4, 2.5)], ids=str)
def test_the_size_rule_asks_for_the_same_strides(stride: Any) -> None:
    with pytest.raises(InputError, match=r"patch_stride=.*; expected 1, 2 or 4, one number or three"):
        size_rule(find_backbone("SegFormer3D"), {"patch_stride": stride})
