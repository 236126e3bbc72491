"""HyperSORT against the published network's outputs, loss and gradients, and a plain U-Net of the same tensors."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunetv2_ext.architectures.hypersort import HyperNetwork, HyperSORT, SmallUNet, parameter_count
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.losses.hypersort import case_loss, latent_penalty

SMALL: dict[str, Any] = {"n_down": 2, "n_fix": 1, "features": 2}
PUBLISHED_NAMES = (
    (r"(conv|norm)_init", "stem.{0}"),
    (r"(conv|norm)_(\d+)_(\d+)", "encoder.{1}.{2}.{0}"),
    (r"down_(norm_)?(\d+)", "down.{1}.{0}"),
    (r"up_(norm_)?(\d+)", "up.{1}.{0}"),
    (r"dec_(conv|norm)_(\d+)_(\d+)", "decoder.{1}.{2}.{0}"),
    (r"conv_final", "head"),
)
PLACE = {"conv": "0", "norm": "2", None: "0", "norm_": "2"}


def ours(published: str) -> str:
    """Our name of a published network's parameter."""
    module, kind = published.split(";")
    for pattern, name in PUBLISHED_NAMES:
        if match := re.fullmatch(pattern, module):
            first, *numbers = match.groups() or (None,)
            return f"{name.format(PLACE[first], *numbers)}.{kind}"
    raise AssertionError(published)


def published(file: Any) -> HyperSORT:
    """The network that the file holds: its heads, one per tensor, as the rows of ours."""
    network = HyperSORT(1, 2, hidden=(20, 20, 20), **SMALL).double()
    heads: dict[str, dict[str, Tensor]] = {"weight": {}, "bias": {}}
    state = {}
    for key in file.files:
        if match := re.fullmatch(r"w/heads\.(.+)\.(weight|bias)", key):
            heads[match[2]][ours(match[1])] = torch.from_numpy(file[key])
        elif match := re.fullmatch(r"w/hypernetwork\.(\d)\.0\.(weight|bias)", key):
            state[f"trunk.{2 * int(match[1])}.{match[2]}"] = torch.from_numpy(file[key])
    for kind, of_it in heads.items():
        assert of_it.keys() == network.hypernetwork.shapes.keys()
        state[f"heads.{kind}"] = torch.cat([of_it[name] for name in network.hypernetwork.shapes])
    network.hypernetwork.load_state_dict(state, strict=True)
    return network


def test_published_outputs_loss_and_gradients(golden: Path) -> None:
    file = np.load(golden / "hypersort.npz")
    network = published(file)
    for number in range(2):
        latent = torch.from_numpy(file["z"][number]).requires_grad_()
        logits = network(torch.from_numpy(file["x"][number : number + 1]), latent)[0]
        loss = case_loss(logits, torch.from_numpy(file["target"][number]).long()) + latent_penalty(latent)
        loss.backward()
        assert latent.grad is not None
        for found, expected in ((logits, file["y"]), (loss, file["loss"]), (latent.grad, file["grad_z"])):
            np.testing.assert_allclose(found.detach().numpy(), expected[number], rtol=0, atol=1e-9)


@pytest.mark.parametrize("sizes", [SMALL, {"n_down": 1, "n_fix": 3, "features": 3}], ids=str)
def test_it_is_a_plain_unet_of_the_tensors_that_it_makes(sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network, plain = HyperSORT(2, 3, **sizes).double(), SmallUNet(2, 3, **sizes).double()
    latent, x = torch.randn(2, dtype=torch.float64), torch.randn(1, 2, 8, 12, 16, dtype=torch.float64)
    plain.load_state_dict(network.hypernetwork(latent), strict=True)
    output = network(x, latent)
    assert output.shape == (1, 3, 8, 12, 16)
    torch.testing.assert_close(output, plain(x), rtol=0, atol=1e-12)
    output.square().mean().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in network.parameters())


def test_parameters_start_as_five_times_the_tanh_of_the_unets() -> None:
    unet = SmallUNet(1, 2, **SMALL)
    hyper = HyperNetwork(unet)
    torch.nn.init.zeros_(hyper.heads.weight)
    made = hyper(torch.zeros(2))
    for name, parameter in unet.named_parameters():
        torch.testing.assert_close(made[name], 5 * torch.tanh(parameter))


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [({}, 169.7), ({"n_down": 3, "n_fix": 1, "features": 8}, 23.8), ({"n_down": 2, "n_fix": 1, "features": 8}, 5.8)],
    ids=["published", "ours", "ours, small blocks"],
)
def test_parameters_are_counted_without_making_them(sizes: dict[str, Any], millions: float) -> None:
    count = parameter_count(1, 2, **sizes)
    assert round(count / 1e6, 1) == millions
    if count < 1e7:
        assert count == sum(parameter.numel() for parameter in HyperSORT(1, 2, **sizes).parameters())


@pytest.mark.parametrize("side", [10, 4])
def test_a_side_that_cannot_be_halved_is_refused(side: int) -> None:
    with pytest.raises(InputError, match=r"multiples of 4, at least 8"):
        SmallUNet(1, 2, **SMALL)(torch.zeros(1, 1, 16, side, 16))
