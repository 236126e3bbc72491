"""Plans for the convolution-free transformer: tokens, patch, memory with weights, attention, block, refusals."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_ext.architectures.convfree import SIZES, ConvFreeTransformer
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.tokens import token_size_for, window_for
from nnunetv2_ext.memory import memory_gb
from nnunetv2_ext.planning.api import plan_and_preprocess
from tests.planning.conftest import Described, network_of

Describe = Callable[..., Described]
THIN = {"shape": (36, 50, 35), "spacing": (1.0, 1.0, 1.0)}
THICK = {"shape": (9, 50, 35), "spacing": (4.0, 1.0, 1.0)}
CT = {"shape": (24, 156, 156), "spacing": (5.0, 0.8, 0.8)}


def planned(data: Described, *, target: float = 8, training: Any = None, **options: Any) -> dict[str, Any]:
    """The configuration 3d_fullres as planned."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the patch")
        identifier = plan_and_preprocess(
            901,
            planner="ConvFreePlanner",
            preprocess=False,
            progress=False,
            options=options,
            gpu_memory_target=target,
            training=training,
        )
    chosen = {"S": "", "B": "B", "L": "L", "paper": "Paper"}[options.get("size", "S")]
    chosen += "Block" * (options.get("context") == "block") + "PostNorm" * ("post_norm" in options)
    assert identifier == f"ConvFree{chosen}Plans"
    return data.configuration(identifier)


def needed_gb(configuration: dict[str, Any]) -> float:
    """Feature maps of the batch, and 16 bytes per parameter."""
    network = network_of(configuration)
    feature_maps = network.compute_conv_feature_map_size(configuration["patch_size"])
    weights = 16e-9 * sum(parameter.numel() for parameter in network.parameters())
    return memory_gb(feature_maps, configuration["batch_size"]) + weights


@pytest.mark.parametrize(
    ("data", "options", "token", "patch"),
    [
        (THIN, {}, [8, 8, 8], [40, 56, 40]),
        (THICK, {}, [3, 12, 12], [9, 60, 36]),
        (CT, {}, [2, 12, 12], [24, 156, 156]),
        (THIN, {"token_size": [6, 10, 10]}, [6, 10, 10], [36, 50, 40]),
        (THIN, {"patch_size": [16, 40, 32]}, [8, 8, 8], [16, 40, 32]),
        # nnU-Net's 32 voxels in plane, rounded up, and one token along z
        ({"shape": (3, 20, 20), "spacing": (1.0, 1.0, 1.0)}, {}, [8, 8, 8], [8, 32, 32]),
        # two tokens in plane
        (THIN, {"token_size": [2, 60, 60]}, [2, 60, 60], [36, 120, 120]),
    ],
    ids=str,
)
def test_token_and_patch(
    described: Describe, data: dict[str, Any], options: dict[str, Any], token: list[int], patch: list[int]
) -> None:
    configuration = planned(described(**data), **options)
    arguments = configuration["architecture"]["arch_kwargs"]
    assert arguments["token_size"] == token
    assert configuration["patch_size"] == arguments["spatial_shape"] == patch
    assert network_of(configuration).deep_supervision_shapes(patch) == [tuple(patch)]


@pytest.mark.parametrize("size", SIZES)
def test_all_that_users_may_edit_stands_in_the_plans(described: Describe, size: str) -> None:
    arguments = planned(described(**THIN), size=size)["architecture"]["arch_kwargs"]
    assert arguments == {
        "spatial_shape": [40, 56, 40],
        "token_size": [8, 8, 8],
        **SIZES[size],
        "context": "patch",
        "block_tokens": 3,
        "pre_norm": size != "paper",
        "dropout": 0.0,
        "drop_path": 0.0,
        "window": None,
        "activation_checkpointing": False,
    }


@pytest.mark.parametrize("target", [8, 24])
@pytest.mark.parametrize("size", ["S", "B", "L"])
def test_what_is_planned_fills_the_memory_target(described: Describe, size: str, target: float) -> None:
    data = described(shape=(80, 160, 160), spacing=(1.0, 1.0, 1.0), cases=1000)
    configuration = planned(data, size=size, target=target)
    assert 0.75 * target <= needed_gb(configuration) <= target
    assert configuration["batch_size"] >= 2


def test_a_low_resolution_has_tokens_of_its_own(described: Describe) -> None:
    data = described(shape=(100, 512, 512), spacing=(5.0, 0.8, 0.8))
    planned(data, patch_size=[40, 120, 120])  # a search for every spacing that nnU-Net tries would take longer
    configurations = data.plans("ConvFreePlans")["configurations"]
    low = configurations["3d_lowres"]
    token = low["architecture"]["arch_kwargs"]["token_size"]
    assert configurations["3d_fullres"]["architecture"]["arch_kwargs"]["token_size"] == [2, 12, 12]
    assert token == list(token_size_for(low["spacing"])) != [2, 12, 12]
    assert not any(np.array(low["patch_size"]) % token)
    assert (np.array(low["patch_size"]) - [40, 120, 120] < token).all()


def test_checkpointing_makes_room(described: Describe) -> None:
    data = described(shape=(80, 160, 160), spacing=(1.0, 1.0, 1.0))
    without, with_it = (
        np.prod(planned(data, target=1, activation_checkpointing=chosen)["patch_size"]) for chosen in (False, True)
    )
    assert with_it > 2 * without


@pytest.mark.parametrize(
    ("shape", "options", "attention", "window"),
    [
        (THIN["shape"], {}, {"tokens": [5, 7, 5], "kind": "global", "tokens_per_window": 175}, None),
        # 2 x 384 + 1536 tokens, and more of them
        ((64, 128, 144), {}, {"tokens": [8, 16, 18], "kind": "global", "tokens_per_window": 2304}, None),
        ((64, 144, 144), {}, {"tokens": [8, 18, 18], "kind": "windowed", "tokens_per_window": 432}, [8, 6, 9]),
        ((64, 144, 144), {"size": "B"}, {"tokens": [8, 18, 18], "kind": "global", "tokens_per_window": 2592}, None),
        (THIN["shape"], {"context": "block"}, {"tokens": [5, 7, 5], "kind": "blocks", "tokens_per_window": 27}, None),
        # a user's patch is kept though no window suits it
        (
            (152, 152, 152),
            {"patch_size": [152, 152, 152]},
            {"tokens": [19, 19, 19], "kind": "global", "tokens_per_window": 6859},
            None,
        ),
    ],
    ids=str,
)
def test_attention(
    described: Describe,
    shape: tuple[int, ...],
    options: dict[str, Any],
    attention: dict[str, Any],
    window: list[int] | None,
) -> None:
    configuration = planned(described(shape=shape, spacing=(1.0, 1.0, 1.0)), **options)
    assert configuration["attention"] == attention
    assert configuration["architecture"]["arch_kwargs"]["window"] == window


def test_the_search_passes_over_grids_without_a_window(described: Describe) -> None:
    configuration = planned(described(shape=(152, 152, 152), spacing=(1.0, 1.0, 1.0)), target=24)
    assert configuration["patch_size"] == [144, 144, 144]
    assert configuration["architecture"]["arch_kwargs"]["window"] == [6, 9, 9]


@pytest.mark.parametrize(
    ("grid", "window"),
    [
        ((16, 16, 16), [8, 8, 8]),
        ((32, 32, 32), [8, 8, 8]),
        ((30, 25, 25), [15, 5, 5]),
        ((2, 40, 40), [2, 10, 20]),
        ((1, 48, 48), [1, 16, 24]),
        ((3, 3, 3), [3, 3, 3]),
        ((3, 28, 28), [3, 7, 14]),
        ((19, 19, 19), None),
        ((8, 18, 18), [8, 6, 9]),
    ],
    ids=str,
)
def test_windows(grid: tuple[int, ...], window: list[int] | None) -> None:
    assert window_for(grid) == window


@pytest.mark.parametrize("grid", [(9, 10, 12), (3, 28, 28)], ids=str)
def test_two_layers_of_windows_reach_every_token(grid: tuple[int, ...]) -> None:
    network = ConvFreeTransformer(
        1, 2, spatial_shape=grid, token_size=(1, 1, 1), embed_dim=12, depth=2, num_heads=1, window=window_for(grid)
    ).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    image = torch.randn(1, 1, *grid, dtype=torch.float64, requires_grad=True)
    network(image)[0, 0, 0, 0, 0].backward()
    assert image.grad is not None
    assert (image.grad != 0).all()


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({}, 3e-4),
        ({"size": "L"}, 3e-4),
        ({"post_norm": True}, 1e-4),
        ({"size": "paper"}, 1e-4),
        ({"size": "paper", "training": {"optimizer": {"lr": 0.5}}}, 0.5),
    ],
    ids=str,
)
def test_learning_rate(described: Describe, options: dict[str, Any], rate: float) -> None:
    configuration = planned(described(**THICK), **options)
    assert configuration["training"]["optimizer"]["lr"] == rate
    assert configuration["training"]["optimizer"]["name"] == "AdamW"
    assert configuration["training"]["scheduler"]["name"] == "warmup_poly"
    assert configuration["architecture"]["arch_kwargs"]["pre_norm"] == (rate == 3e-4)


def test_the_smallest_memory_target_is_told_with_the_weights(described: Describe) -> None:
    data = described(shape=(10, 40, 40), spacing=(1.0, 1.0, 1.0))
    with pytest.raises(InputError, match=r"of which weights and optimizer take 4\.8") as refused:
        planned(data, size="L", target=4)
    found = re.search(r"at least ([\d.]+) GB for the smallest patch (\[8, 32, 32\])", str(refused.value))
    assert found is not None
    configuration = planned(data, size="L", target=float(found[1]))
    assert str(configuration["patch_size"]) == found[2]
    with pytest.raises(InputError, match="memory target"):
        planned(data, size="L", target=float(found[1]) - 0.002)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "XL"}, "the size 'XL'; expected one of S, B, L, paper; correct --size"),
        ({"context": "volume"}, "context = 'volume'; expected patch or block"),
        ({"block_tokens": 4, "context": "block"}, "block_tokens = 4; expected an odd number"),
        ({"block_tokens": 0}, "block_tokens = 0; expected an odd number"),
        ({"token_size": [8, 0, 8]}, r"token_size = \[8, 0, 8\]; expected three whole numbers of voxels"),
        ({"token_size": [8, 8]}, r"token_size = \[8, 8\]; expected three whole numbers of voxels"),
        ({"patch_size": [20, 50, 40]}, r"a patch of \[20, 50, 40\]; .* \[16, 48, 40\] or \[24, 56, 40\] for instance"),
        ({"patch_size": [8, 16, 40]}, r"a patch of \[8, 16, 40\]; expected .* takes, \[8, 32, 40\] for instance"),
        ({"patch_size": [4, 40, 40]}, r"a patch of \[4, 40, 40\]; expected .* takes, \[8, 40, 40\] for instance"),
        ({"backbone": "UNet"}, "the option --backbone for ConvFreePlanner; expected some of --patch-size, .*--size"),
        ({"training": {"freeze_backbone": True}}, "freeze_backbone for ConvFreePlanner"),
    ],
    ids=str,
)
def test_refused(described: Describe, options: dict[str, Any], message: str) -> None:
    data = described(**THIN)
    with pytest.raises(InputError, match=message):
        planned(data, **options)
    assert not list(data.preprocessed.glob("*Plans.json"))
