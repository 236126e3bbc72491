"""The contract that every registered architecture keeps, around every registered backbone where it takes one."""

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.registry import ARCHITECTURES, BACKBONES, find
from tests.architectures.test_backbones import BACKBONE_PATCHES, SMALL_BACKBONES

Shape = tuple[int, ...]
CHANNELS, CLASSES = 2, 3
# no axis of a patch may be missing, too many, empty or, of three voxels, halved twice
IMPOSSIBLE: list[Shape] = [(0, 32, 32), (8, 3, 32), (8, 32), (1, 1, 8, 32, 32)]


@dataclass(frozen=True)
class Case:
    """An architecture as a plan holds it, small enough for the tests."""

    name: str
    architecture: str
    patches: list[Shape]
    """The planned one, then others that the architecture takes: odd ones, few slices."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    impossible: list[Shape] = field(default_factory=lambda: IMPOSSIBLE)
    built_for_a_patch: bool = True
    """Whether a plan tells the patch to the constructor."""
    fixed: bool = False
    """Whether the architecture takes no other patch than that."""
    random: bool = False
    """Whether samples of a batch and chance play a part in training: batch normalisation, dropout."""
    rounded_gradients: bool = True
    """Whether to look at gradients in bfloat16: oneDNN leaves some of MONAI's unwritten (PyTorch 2.15 on the CPU)."""
    transfers_heads: bool = False
    """Whether nnU-Net's -pretrained_weights are to take the heads too."""


# beside the patches of the backbones' own tests
FURTHER: dict[str, list[Shape]] = {
    "PlainConvUNet": [(2, 12, 28)],
    "ResidualEncoderUNet": [(10, 4, 20)],
    "MNet": [(3, 37, 32), (17, 32, 35)],
    "UNet": [(2, 12, 20)],
    "SegResNet": [(12, 4, 20)],
    "UNETR": [(16, 16, 16)],
    "MedNeXt": [(8, 8, 24)],
}
CASES = [Case("MNet", "MNet", [(8, 32, 32), *FURTHER["MNet"]], SMALL_BACKBONES["MNet"], built_for_a_patch=False)]
_CONVFREE = {"token_size": [2, 8, 8], "embed_dim": 24, "depth": 2, "num_heads": 2}
CASES += [
    Case(
        f"ConvFreeTransformer-{name}",
        "ConvFreeTransformer",
        [(8, 32, 32), (2, 16, 24), (6, 16, 8)],
        {**_CONVFREE, **kwargs},
    )
    for name, kwargs in {
        "patch": {},
        "block": {"context": "block"},
        "window": {"window": [1, 2, 1]},
        "post_norm": {"pre_norm": False, "activation_checkpointing": True},
    }.items()
]
for _backbone in BACKBONES:
    if _backbone.name[-1] in "ML":  # ResidualEncoderUNetM, L and XL are the class of ResidualEncoderUNet
        continue
    _patches = [BACKBONE_PATCHES[_backbone.name], *FURTHER.get(_backbone.name, [])]
    _options: dict[str, Any] = {
        "patches": _patches,
        "kwargs": {"backbone": _backbone.name, "backbone_kwargs": SMALL_BACKBONES[_backbone.name]},
        "random": _backbone.name == "VNet",
        "rounded_gradients": _backbone.extra is None,
    }
    _another = [*IMPOSSIBLE, (32, 64, 96)]
    CASES += [
        Case(
            f"BackboneNetwork-{_backbone.name}",
            "BackboneNetwork",
            **_options,
            **({"fixed": True, "impossible": _another} if _backbone.name == "UNETR" else {}),
        ),
        Case(
            f"PaRNetwork-{_backbone.name}",
            "PaRNetwork",
            **_options,
            fixed=True,
            impossible=_another,
            transfers_heads=True,
        ),
    ]


def build(
    case: Case, patch: Shape | None = None, *, classes: int = CLASSES, allow_init: bool = True, supervised: bool = True
) -> Any:
    """The network as nnU-Net builds it from plans, always with the same weights."""
    torch.manual_seed(0)
    shape = {"spatial_shape": list(patch or case.patches[0])} if case.built_for_a_patch else {}
    path = find("architecture", case.architecture).path
    return get_network_from_plans(
        path, {**case.kwargs, **shape}, [], CHANNELS, classes, allow_init=allow_init, deep_supervision=supervised
    )


def image(patch: Sequence[int], batch: int = 2) -> Tensor:
    return torch.randn(batch, CHANNELS, *patch, generator=torch.Generator().manual_seed(1))


def run(network: nn.Module, x: Tensor) -> Any:
    torch.manual_seed(2)  # dropout
    return network(x)


def backward(network: nn.Module, outputs: list[Tensor]) -> dict[str, Tensor | None]:
    """Gradients of a sum over all outputs, by parameter; of those that are trained."""
    sum(output.float().square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.requires_grad}


def flat(gradients: dict[str, Tensor | None]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values() if gradient is not None])


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_there_is_a_case_for_every_architecture_and_backbone() -> None:
    assert {case.architecture for case in CASES} == {entry.name for entry in ARCHITECTURES}
    for architecture in ("BackboneNetwork", "PaRNetwork"):
        held = {case.kwargs["backbone"] for case in CASES if case.architecture == architecture}
        assert {find("backbone", name).path for name in held} == {entry.path for entry in BACKBONES}


def test_the_input_of_the_head_is_the_last_feature_map(case: Case) -> None:
    network = build(case, supervised=False).eval()
    features: list[Tensor] = []
    network.head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    logits = network(image(case.patches[0]))
    parameters = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}

    def reached(output: Any) -> set[str]:
        gradients = torch.autograd.grad(output, list(parameters.values()), allow_unused=True, retain_graph=True)
        return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}

    # all that makes the logits makes the features, but for the head and, under a refiner, the refiner
    after = {id(parameter) for parameter in network.head.parameters()}
    last = {name for name in parameters if id(parameters[name]) in after or name.startswith("refiner.")}
    assert reached(logits.sum()) - reached(sum(one.sum() for one in features)) == last


@pytest.mark.parametrize(
    ("case", "patch"),
    [pytest.param(case, patch, id=f"{case.name}-{patch}") for case in CASES for patch in case.patches],
)
def test_forward_and_backward(case: Case, patch: Shape) -> None:
    network = build(case, patch if case.fixed else None)
    outputs = network(image(patch))
    shapes = network.deep_supervision_shapes(patch)
    assert [tuple(output.shape) for output in outputs] == [(2, CLASSES, *shape) for shape in shapes]
    assert tuple(shapes[0]) == patch
    assert all(output.isfinite().all() for output in outputs)
    without = [name for name, gradient in backward(network, outputs).items() if gradient is None]
    assert without == [], "DistributedDataParallel fails on parameters without a gradient"


def test_deep_supervision_is_a_switch_over_the_same_weights(case: Case) -> None:
    on, off = build(case), build(case, supervised=False)
    assert (on.deep_supervision, off.deep_supervision) == (True, False)
    x = image(case.patches[0])
    for mode in (True, False):
        off.load_state_dict(on.state_dict(), strict=True)  # again, for the statistics of batch normalisation
        on.train(mode)
        off.train(mode)
        with torch.no_grad():
            on.deep_supervision = True
            outputs, alone = run(on, x), run(off, x)
            assert isinstance(outputs, list)
            assert len(outputs) == len(on.deep_supervision_shapes(case.patches[0]))
            assert isinstance(alone, Tensor)
            torch.testing.assert_close(outputs[0], alone, rtol=0, atol=0)
            on.deep_supervision = False
            torch.testing.assert_close(run(on, x), alone, rtol=0, atol=0)


def test_without_gradients_the_outputs_are_the_same(case: Case) -> None:
    network, x = build(case), image(case.patches[-1])
    if case.fixed:
        network = build(case, case.patches[-1])
    with torch.inference_mode():
        expected = network.eval()(x)
    for output, one in zip(network.train(not case.random)(x), expected, strict=True):
        torch.testing.assert_close(output, one, rtol=1e-5, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch(case: Case) -> None:
    network, x = build(case, supervised=False).double(), image(case.patches[0]).double()
    network.train(not case.random)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[1:], network(x[1:]), rtol=1e-6, atol=1e-9)


def test_autocast(case: Case) -> None:
    """Outputs and gradients point where those in full precision do."""
    network, x = build(case), image(case.patches[0])
    exact = run(network, x)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = run(network, x)
    for output, one in zip(outputs, exact, strict=True):
        assert torch.cosine_similarity(output.float().flatten(), one.flatten(), dim=0) > 0.95
    if not case.rounded_gradients:
        return
    expected = flat(backward(network, exact))
    network.zero_grad()
    found = flat(backward(network, outputs))
    assert found.isfinite().all()
    # rounding to bfloat16 turns signs of differences and places of maxima, so gradients agree only in direction
    assert torch.cosine_similarity(found, expected, dim=0) > 0.4


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_state_dict_and_pickling_round_trip(case: Case, mode: bool) -> None:
    network, x = build(case), image(case.patches[0], batch=1)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    loaded = build(case)
    for parameter in loaded.parameters():
        nn.init.zeros_(parameter)
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    unpickled = pickle.loads(pickle.dumps(network))
    with torch.no_grad():
        expected = run(network.train(mode), x)
        for other in (loaded, unpickled):
            assert all(torch.equal(a, b) for a, b in zip(run(other.train(mode), x), expected, strict=True))


def test_impossible_sizes(case: Case) -> None:
    network = build(case)
    for patch in case.impossible:
        for measure in (network.deep_supervision_shapes, network.compute_conv_feature_map_size):
            with pytest.raises(InputError, match="patch"):
                measure(patch)
        with pytest.raises(InputError, match="patch"):
            network(torch.zeros(1, CHANNELS, *patch))
        if case.built_for_a_patch and patch in IMPOSSIBLE:
            with pytest.raises(InputError, match="patch"), torch.device("meta"):
                build(case, patch)


def test_feature_map_size_grows_with_the_patch(case: Case) -> None:
    depth, height, width = case.patches[0]
    sizes = []
    for patch in [(depth, height, width), (2 * depth, height, width), (2 * depth, 2 * height, 2 * width)]:
        with torch.device("meta"):
            sizes.append(build(case, patch).compute_conv_feature_map_size(patch))
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert 3.5 < sizes[2] / sizes[1] < 4.5


def test_heads_are_what_pretrained_weights_leave_out(case: Case) -> None:
    fewer, more = (build(case, classes=classes).state_dict() for classes in (2, 4))
    assert fewer.keys() == more.keys()
    if case.transfers_heads:
        assert not any(".seg_layers." in key for key in fewer)
        return
    differing = {key for key, tensor in fewer.items() if tensor.shape != more[key].shape}
    assert differing
    assert all(".seg_layers." in key for key in differing)


def test_no_initialisation_of_its_own_is_needed(case: Case) -> None:
    """nnU-Net applies a network's `initialize` in training only; a plan must give the same network with and without."""
    plain, initialised = build(case, allow_init=False).state_dict(), build(case).state_dict()
    assert plain.keys() == initialised.keys()
    assert all(torch.equal(tensor, initialised[key]) for key, tensor in plain.items())
