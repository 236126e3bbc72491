"""What is special about ConvFreeTransformer: no convolution, two contexts of the same weights, windows, tokens."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nnunetv2_ext.architectures import ConvFreeTransformer, convfree
from nnunetv2_ext.architectures.convfree import SIZES
from nnunetv2_ext.architectures.measure import kept_elements, without_values
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.tokens import token_size_for
from tests.architectures.plain_convfree import centre_of_block, whole_patch

TOKEN, PATCH, HEADS = (1, 2, 2), (4, 6, 4), 2
GRID = (4, 3, 2)
SMALL: dict[str, Any] = {"embed_dim": 20, "depth": 2, "num_heads": HEADS, "mlp_dim": 24, "token_size": TOKEN}


def build(**kwargs: Any) -> ConvFreeTransformer:
    """A small network whose weights are large enough for every part of it to show in the output."""
    torch.manual_seed(0)
    network = ConvFreeTransformer(2, 3, **{"spatial_shape": PATCH, **SMALL, **kwargs})
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network


def image(batch: int = 2, patch: tuple[int, ...] = PATCH) -> Tensor:
    return torch.randn(batch, 2, *patch, generator=torch.Generator().manual_seed(1))


class Dispatched(TorchDispatchMode):
    """The names of all operations that reach a device, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def dispatched(network: nn.Module) -> set[str]:
    with Dispatched() as mode:
        network(image()).square().mean().backward()
    return mode.names


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"pre_norm": False},
        {"window": (2, 3, 1)},
        {"activation_checkpointing": True},
        {"context": "block", "dropout": 0.1, "drop_path": 0.1},
    ],
    ids=str,
)
def test_no_convolution_is_dispatched(kwargs: dict[str, Any]) -> None:
    names = dispatched(build(**kwargs))
    assert any("mm" in name for name in names)
    assert not [name for name in names if "conv" in name]
    assert [name for name in dispatched(nn.Conv3d(2, 3, 1)) if "conv" in name], "the search finds convolutions"


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize(("block_tokens", "chunk"), [(3, 2**27), (3, 5000), (5, 2**27), (1, 1)])
def test_block_context_is_the_papers_network_on_cut_out_blocks(
    monkeypatch: pytest.MonkeyPatch, pre_norm: bool, block_tokens: int, chunk: int
) -> None:
    monkeypatch.setattr(convfree, "_CHUNK_ELEMENTS", chunk)
    network = build(context="block", block_tokens=block_tokens, pre_norm=pre_norm).double()
    volumes = image().double()
    logits = network(volumes)
    for volume, predicted in zip(volumes, logits, strict=True):
        for token in product(*map(range, GRID)):
            expected = centre_of_block(network, volume, token, heads=HEADS, pre_norm=pre_norm)
            z, y, x = (slice(index * edge, (index + 1) * edge) for index, edge in zip(token, TOKEN, strict=True))
            torch.testing.assert_close(predicted[:, z, y, x], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_patch_context_is_one_sequence_of_all_tokens(pre_norm: bool) -> None:
    network = build(pre_norm=pre_norm).double()
    volumes = image().double()
    for volume, predicted in zip(volumes, network(volumes), strict=True):
        expected = whole_patch(network, volume, heads=HEADS, pre_norm=pre_norm)
        torch.testing.assert_close(predicted, expected, rtol=1e-6, atol=1e-6)


def test_one_state_dict_serves_all_forms() -> None:
    source, x = build(), image()
    forms: list[dict[str, Any]] = [
        {"context": "block"},
        {"context": "block", "block_tokens": 5},
        {"window": (2, 3, 1)},
        {"dropout": 0.1},
    ]
    for form in forms:
        network = build(**form)
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
        network.load_state_dict(source.state_dict(), strict=True)
        assert all(
            torch.equal(one, other) for one, other in zip(network.parameters(), source.parameters(), strict=True)
        )
        same = torch.allclose(network.eval()(x), source(x), rtol=1e-4, atol=1e-4)
        assert same == ("dropout" in form), "the same weights are another function in another context"


def influenced(network: ConvFreeTransformer, token: tuple[int, int, int]) -> set[tuple[int, ...]]:
    """The tokens whose logits change with one token of the image."""
    x = image(batch=1)
    changed = x.clone()
    z, y, width = (slice(index * edge, (index + 1) * edge) for index, edge in zip(token, TOKEN, strict=True))
    changed[:, :, z, y, width] += 1
    with torch.no_grad():
        difference = (network(changed) - network(x)).abs().amax((0, 1))
    return {(z // TOKEN[0], y // TOKEN[1], x // TOKEN[2]) for z, y, x in (difference > 1e-7).nonzero().tolist()}


EVERYWHERE = set(product(*map(range, GRID)))


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"depth": 1}, EVERYWHERE),
        # neighbours in windows of 2 x 3 x 1
        ({"depth": 1, "window": (2, 3, 1)}, set(product((0, 1), (0, 1, 2), (1,)))),
        # and from there, slices two apart and both columns
        ({"depth": 2, "window": (2, 3, 1)}, set(product(range(4), range(3), (1,)))),
        ({"depth": 2, "window": (2, 1, 2)}, set(product(range(4), (1,), range(2)))),
        ({"depth": 3, "window": GRID}, EVERYWHERE),
        ({"depth": 5, "context": "block"}, set(product((0, 1), range(3), range(2)))),
        ({"depth": 1, "context": "block", "block_tokens": 5}, set(product((0, 1, 2), range(3), range(2)))),
        ({"depth": 1, "context": "block", "block_tokens": 1}, {(0, 1, 1)}),
    ],
    ids=str,
)
def test_what_a_token_can_influence(kwargs: dict[str, Any], expected: set[tuple[int, ...]]) -> None:
    assert influenced(build(**kwargs), (0, 1, 1)) == expected


def test_a_window_of_all_tokens_is_global_attention() -> None:
    windowed, whole, x = build(window=GRID), build(), image()
    torch.testing.assert_close(windowed(x), whole(x), rtol=1e-5, atol=1e-5)


def gradients(network: ConvFreeTransformer) -> list[Tensor]:
    torch.manual_seed(3)
    network.zero_grad()
    network(image()).square().mean().backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("kwargs", [{}, {"window": (2, 3, 1)}, {"dropout": 0.2, "drop_path": 0.5}], ids=str)
def test_checkpointing_changes_no_gradient_and_keeps_less(kwargs: dict[str, Any]) -> None:
    plain = build(depth=6, **kwargs)
    recomputed = build(depth=6, activation_checkpointing=True, **kwargs)
    for one, other in zip(gradients(plain), gradients(recomputed), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    sizes = [network.compute_conv_feature_map_size(PATCH) for network in (plain, recomputed)]
    assert sizes[1] < 0.6 * sizes[0]


def test_the_size_of_chunks_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(context="block")
    whole = gradients(network)
    monkeypatch.setattr(convfree, "_CHUNK_ELEMENTS", 1)
    for one, other in zip(gradients(network), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_blocks_are_held_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight times the voxels cost eight times the tokens, but not eight times the chunk."""
    monkeypatch.setattr(convfree, "_CHUNK_ELEMENTS", 8 * 27 * 2 * (8 * 20 + 24))  # eight whole blocks
    small, large = (4, 8, 8), (8, 16, 16)
    network = build(context="block", spatial_shape=small)
    held = [kept_elements(network, (1, 2, *patch)) for patch in (small, large)]
    estimated = [2 * network.compute_conv_feature_map_size(patch) for patch in (small, large)]
    chunk = 8 * 27 * 2 * (8 * 20 + 24)
    assert held[1] < 8.1 * held[0], "chunks are not kept"
    for whole, kept in zip(estimated, held, strict=True):
        assert whole == pytest.approx(kept + chunk, rel=0.15)
    without_checkpoint = 27 * len(network.layers) * (8 * 20 + 24) * math.prod(large) / math.prod(TOKEN)
    assert estimated[1] < 0.1 * without_checkpoint


def compiled_nodes(network: ConvFreeTransformer) -> list[int]:
    """The sizes of the graphs into which `torch.compile` cuts a network; its output is checked on the way."""
    sizes = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    x = image()
    compiled: Any = torch.compile(network, backend=backend)  # type: ignore[call-overload]
    torch.testing.assert_close(compiled(x), network(x))
    return sizes


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # within PyTorch
def test_compilation_sees_one_graph_or_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(compiled_nodes(build(window=(2, 3, 1), activation_checkpointing=True))) == 1
    whole = compiled_nodes(build(context="block"))
    monkeypatch.setattr(convfree, "_CHUNK_ELEMENTS", 1)
    assert compiled_nodes(build(context="block")) == whole


def test_stochastic_depth_skips_sublayers_of_whole_samples() -> None:
    network = build(depth=2, drop_path=0.5)
    layer: Any = network.layers[1]
    branch = torch.ones(400, 3, 5)
    torch.manual_seed(0)
    kept = layer._dropped(branch).flatten(1)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert (kept == kept[:, :1]).all()
    assert kept.mean().item() == pytest.approx(1, abs=0.2)
    first: Any = network.layers[0]
    assert torch.equal(first._dropped(branch), branch)
    assert torch.equal(layer.eval()._dropped(branch), branch)


@pytest.mark.parametrize(
    ("spacing", "patch_size", "expected"),
    [
        ((5, 0.8, 0.8), None, (2, 12, 12)),
        ((5, 0.7999998, 0.8000001), None, (2, 12, 12)),
        ((1, 1, 1), None, (8, 8, 8)),
        ((4, 1, 1), None, (3, 12, 12)),
        ((3, 1, 1), None, (4, 12, 12)),
        ((10, 0.5, 0.5), None, (1, 20, 20)),
        ((30, 0.2, 0.2), None, (1, 32, 32)),
        ((1, 1.2, 0.8), None, (10, 8, 12)),
        ((4, 1, 1), (10, 56, 40), (2, 8, 8)),
        ((1, 1, 1), (40, 56, 40), (8, 8, 8)),
        ((5, 0.8, 0.8), (16, 320, 320), (2, 10, 10)),
    ],
)
def test_tokens_are_nearly_cubic_in_millimetres(
    spacing: tuple[float, ...], patch_size: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    assert token_size_for(spacing, patch_size) == expected


@pytest.mark.parametrize(
    ("size", "millions"),
    [("S", 21.3), ("B", 85.1), ("L", 302.3), ("paper", 44.1)],
)
def test_named_sizes(size: str, millions: float) -> None:
    """Parameters of the layers: depth x (4 D^2 + 2 D F), biases and norms."""
    with without_values():
        network = ConvFreeTransformer(1, 2, **{"spatial_shape": (8, 8, 8), **SIZES[size]})  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in network.layers.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"spatial_shape": (4, 7, 4)}, ["[4, 7, 4]", "[4, 6, 4]", "[4, 8, 4]"]),
        ({"spatial_shape": (4, 1, 4)}, ["[4, 1, 4]", "[4, 2, 4]"]),
        ({"spatial_shape": (8, 8)}, ["2 axes", "3D configuration"]),
        ({"token_size": (8, 8)}, ["token_size = (8, 8)"]),
        ({"token_size": (0, 8, 8)}, ["token_size = (0, 8, 8)"]),
        ({"token_size": 8}, ["token_size = 8"]),
        ({"token_size": (2.0, 4, 4)}, ["token_size = (2.0, 4, 4)"]),
        ({"embed_dim": "S"}, ["embed_dim = 'S'"]),
        ({"mlp_dim": 0}, ["mlp_dim = 0"]),
        ({"pre_norm": "false"}, ["pre_norm = 'false'"]),
        ({"drop_path": None}, ["drop_path = None"]),
        ({"window": 5}, ["window = 5"]),
        ({"embed_dim": 21}, ["embed_dim = 21", "num_heads = 2"]),
        ({"depth": 0}, ["depth = 0"]),
        ({"context": "slice"}, ["'slice'", "patch or block"]),
        ({"block_tokens": 2}, ["block_tokens = 2", "odd"]),
        ({"dropout": 1.0}, ["dropout = 1.0"]),
        ({"window": (2, 2, 2)}, ["[2, 2, 2]", "[4, 3, 2]"]),
        ({"window": (2, 2)}, ["window = (2, 2)"]),
        ({"window": (2, 3, 1), "context": "block"}, ["window = (2, 3, 1)", "'block'"]),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_in_one_sentence(kwargs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        build(**kwargs)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("patch_size", [(7, 31, 31), (34, 38, 46)])
def test_a_patch_that_no_token_divides_is_refused(patch_size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=rf"{patch_size[0]}, {patch_size[1]}.*nearly cubic"):
        token_size_for((1, 1, 1), patch_size)
