"""The contract of a network, one function for each part of it."""

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from inspect import signature
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnunetv2_ext.architectures.contract import Auxiliary
from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.errors import InputError

Patch = tuple[int, ...]
CHANNELS, CLASSES = 2, 3
IMPOSSIBLE: tuple[Patch, ...] = ((0, 32, 32), (8, 32), (1, 1, 8, 32, 32))
"""No axis of a patch may be missing, too many or empty."""


@dataclass(frozen=True)
class NetworkCase:
    """A network as plans hold it, small enough for tests."""

    path: str
    """Its dotted name, as plans have it."""
    patch: Patch
    """The planned one."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Its arguments, as JSON holds them."""
    patches: tuple[Patch, ...] = ()
    """Others that it takes: odd ones, few slices."""
    impossible: tuple[Patch, ...] = ()
    """Patches that it has to refuse, beside `IMPOSSIBLE`."""
    fixed: bool = False
    """Whether it takes no other patch than that it was built for."""
    random: bool = False
    """Whether samples of a batch and chance play a part in training: batch normalisation, dropout."""
    rounded_gradients: bool = True
    """Whether to look at gradients in bfloat16."""
    transfers_heads: bool = False
    """Whether nnU-Net's -pretrained_weights are to take the heads too."""
    after_head: str = ""
    """What the names of parameters begin with that act on the logits, as a refiner's."""
    resizes: bool = False
    """Whether it brings every patch to one size, so that its feature maps hardly grow with the patch."""

    @cached_property
    def built_for_a_patch(self) -> bool:
        """Whether plans tell the patch to the constructor."""
        from pydoc import locate

        network_class = locate(self.path)
        assert isinstance(network_class, type), f"{self.path} is no class that plans can name"
        return "spatial_shape" in signature(network_class).parameters

    def build(
        self,
        patch: Patch | None = None,
        *,
        classes: int = CLASSES,
        allow_init: bool = True,
        deep_supervision: bool = True,
    ) -> Any:
        """The network as nnU-Net builds it from plans, always with the same weights."""
        torch.manual_seed(0)
        shape = {"spatial_shape": list(patch or self.patch)} if self.built_for_a_patch else {}
        return get_network_from_plans(
            self.path,
            {**self.kwargs, **shape},
            [],
            CHANNELS,
            classes,
            allow_init=allow_init,
            deep_supervision=deep_supervision,
        )


def check_network(
    network_class: type[nn.Module],
    patch_size: Sequence[int],
    *,
    patches: Sequence[Sequence[int]] = (),
    impossible: Sequence[Sequence[int]] = (),
    fixed: bool = False,
    random: bool = False,
    rounded_gradients: bool = True,
    transfers_heads: bool = False,
    after_head: str = "",
    resizes: bool = False,
    **kwargs: Any,
) -> None:
    """Run a network through the contract (`nnunetv2_ext.architectures.contract.Network`).

    Args:
        network_class: importable by its name, as plans need it.
        patch_size: a small patch (z, y, x) that it takes, in voxels.
        patches: more of them.
        impossible: those that it has to refuse, beside `IMPOSSIBLE`.
        fixed: it takes no other patch than that it was built for.
        random: samples of a batch and chance play a part in training: batch normalisation, dropout.
        rounded_gradients: look at gradients in bfloat16, too.
        transfers_heads: its heads' weights are to be taken over by nnU-Net's -pretrained_weights.
        after_head: what the names of parameters begin with that act on the logits, as a refiner's.
        resizes: it brings every patch to one size, so that its feature maps hardly grow with the patch.
        kwargs: arguments that make it small, as JSON holds them.

    Raises:
        AssertionError: what does not hold.
    """
    case = NetworkCase(
        f"{network_class.__module__}.{network_class.__qualname__}",
        tuple(patch_size),
        kwargs,
        tuple(map(tuple, patches)),
        tuple(map(tuple, impossible)),
        fixed=fixed,
        random=random,
        rounded_gradients=rounded_gradients,
        transfers_heads=transfers_heads,
        after_head=after_head,
        resizes=resizes,
    )
    for check in NETWORK_CHECKS:
        check(case)


def image(patch: Sequence[int], batch: int = 2) -> Tensor:
    """A random image (B, channels, *patch), always the same."""
    return torch.randn(batch, CHANNELS, *patch, generator=torch.Generator().manual_seed(1))


def run(network: nn.Module, x: Tensor) -> Any:
    """`network(x)`, with the same chance each time."""
    torch.manual_seed(2)
    return network(x)


def _backward(network: nn.Module, outputs: Sequence[Tensor]) -> dict[str, Tensor | None]:
    """Gradients of a sum over all outputs, by parameter; of those that are trained."""
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.requires_grad}


def _flat(gradients: Mapping[str, Tensor | None]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values() if gradient is not None])


def _refuses(function: Callable[[], object], what: str) -> None:
    try:
        function()
    except InputError as error:
        assert "patch" in str(error), f"{what}: the InputError does not name the patch: {error}"
        return
    raise AssertionError(f"{what}: no InputError")


def _likeness(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.detach().float().flatten(), other.detach().float().flatten(), dim=0))


def check_sizes_and_gradients(case: NetworkCase) -> None:
    """Outputs have the sizes that it reports, the first the patch's; every parameter gets a gradient.

    From the logits, or from what else it puts out in training for its method's loss.
    """
    for patch in (case.patch, *case.patches):
        network = case.build(patch if case.fixed else None)
        outputs = network(image(patch))
        shapes = network.deep_supervision_shapes(patch)
        assert [tuple(output.shape) for output in outputs] == [(2, CLASSES, *shape) for shape in shapes]
        assert tuple(shapes[0]) == patch
        assert all(output.isfinite().all() for output in outputs), f"outputs that are not finite at {patch}"
        more = network.auxiliary_outputs if isinstance(network, Auxiliary) else []
        without = [name for name, gradient in _backward(network, [*outputs, *more]).items() if gradient is None]
        assert without == [], f"DistributedDataParallel fails on parameters without a gradient: {without}"


def check_head(case: NetworkCase) -> None:
    """The input of `head` is the last feature map: all that makes the logits makes it, but for the head."""
    network = case.build(deep_supervision=False).eval()
    features: list[Tensor] = []
    network.head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    logits = network(image(case.patch))
    parameters = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}

    def reached(output: Tensor) -> set[str]:
        gradients = torch.autograd.grad(output, list(parameters.values()), allow_unused=True, retain_graph=True)
        return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}

    after = {id(parameter) for parameter in network.head.parameters()}
    last = {
        name
        for name in parameters
        if id(parameters[name]) in after or (case.after_head and name.startswith(case.after_head))
    }
    assert reached(logits.sum()) - reached(torch.stack([one.sum() for one in features]).sum()) == last


def check_deep_supervision(case: NetworkCase) -> None:
    """Deep supervision is a switch over the same weights, in training and in evaluation."""
    on, off = case.build(), case.build(deep_supervision=False)
    assert (on.deep_supervision, off.deep_supervision) == (True, False)
    x = image(case.patch)
    for mode in (True, False):
        off.load_state_dict(on.state_dict(), strict=True)  # again, for the statistics of batch normalisation
        on.train(mode)
        off.train(mode)
        with torch.no_grad():
            on.deep_supervision = True
            outputs, alone = run(on, x), run(off, x)
            assert isinstance(outputs, list)
            assert len(outputs) == len(on.deep_supervision_shapes(case.patch))
            assert isinstance(alone, Tensor)
            torch.testing.assert_close(outputs[0], alone, rtol=0, atol=0)
            on.deep_supervision = False
            torch.testing.assert_close(run(on, x), alone, rtol=0, atol=0)


def check_inference(case: NetworkCase) -> None:
    """Without gradients the outputs are the same."""
    patch = (case.patch, *case.patches)[-1]
    network, x = case.build(patch if case.fixed else None), image(patch)
    with torch.inference_mode():
        expected = network.eval()(x)
    for output, one in zip(network.train(not case.random)(x), expected, strict=True):
        torch.testing.assert_close(output, one, rtol=1e-5, atol=1e-5)


def check_batch(case: NetworkCase) -> None:
    """A sample does not depend on its batch."""
    network, x = case.build(deep_supervision=False).double(), image(case.patch).double()
    network.train(not case.random)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[1:], network(x[1:]), rtol=1e-6, atol=1e-9)


def check_autocast(case: NetworkCase) -> None:
    """In half precision, outputs and gradients point where those in full precision do."""
    network, x = case.build(), image(case.patch)
    exact = run(network, x)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = run(network, x)
    for output, one in zip(outputs, exact, strict=True):
        assert _likeness(output, one) > 0.95, "outputs under autocast differ"
    if not case.rounded_gradients:
        return
    expected = _flat(_backward(network, exact))
    network.zero_grad()
    found = _flat(_backward(network, outputs))
    assert found.isfinite().all(), "gradients under autocast that are not finite"
    # rounding to bfloat16 turns signs of differences and places of maxima, so gradients agree only in direction
    assert _likeness(found, expected) > 0.4, "gradients under autocast differ"


def check_round_trips(case: NetworkCase) -> None:
    """The state dict there and back, and pickling, give the same network."""
    for mode in (True, False):
        network, x = case.build(), image(case.patch, batch=1)
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
        file.seek(0)
        loaded = case.build()
        for parameter in loaded.parameters():
            nn.init.zeros_(parameter)
        loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
        unpickled = pickle.loads(pickle.dumps(network))
        with torch.no_grad():
            expected = run(network.train(mode), x)
            for other in (loaded, unpickled):
                assert all(torch.equal(a, b) for a, b in zip(run(other.train(mode), x), expected, strict=True))


def check_impossible_sizes(case: NetworkCase) -> None:
    """A size that cannot work is refused with an InputError, wherever a patch is told."""
    network = case.build()
    refused = (*IMPOSSIBLE, *case.impossible)
    another = (tuple(2 * size for size in case.patch),) if case.fixed else ()
    for patch in (*refused, *another):
        for measure in (network.deep_supervision_shapes, network.compute_conv_feature_map_size):
            _refuses(partial(measure, patch), f"{measure.__name__}({patch})")
        _refuses(partial(network, torch.zeros(1, CHANNELS, *patch)), f"forward of a patch of {patch}")
    if case.built_for_a_patch:
        for patch in refused:
            with without_values():
                _refuses(partial(case.build, patch), f"the constructor with spatial_shape {patch}")


def check_memory(case: NetworkCase) -> None:
    """What nnU-Net's planner compares grows with the patch."""
    depth, height, width = case.patch
    sizes = []
    for patch in [(depth, height, width), (2 * depth, height, width), (2 * depth, 2 * height, 2 * width)]:
        with without_values():
            sizes.append(case.build(patch).compute_conv_feature_map_size(patch))
    assert 0 < sizes[0] < sizes[1] < sizes[2], f"feature maps {sizes} that do not grow with the patch"
    least = 1.0 if case.resizes else 3.5
    assert least < sizes[2] / sizes[1] < 4.5, f"feature maps {sizes}, not about four times as many in a patch of four"


def check_heads(case: NetworkCase) -> None:
    """Heads lie where nnU-Net's -pretrained_weights leaves them out, under `.seg_layers.`."""
    fewer, more = (case.build(classes=classes).state_dict() for classes in (2, 4))
    assert fewer.keys() == more.keys()
    if case.transfers_heads:
        assert not any(".seg_layers." in key for key in fewer)
        return
    differing = {key for key, tensor in fewer.items() if tensor.shape != more[key].shape}
    assert differing, "no weights that depend on the number of classes"
    outside = sorted(key for key in differing if ".seg_layers." not in key)
    assert not outside, f"heads outside a module seg_layers: {outside}"


def check_initialisation(case: NetworkCase) -> None:
    """nnU-Net applies a network's `initialize` in training only; plans must give the same network with and without."""
    plain, initialised = case.build(allow_init=False).state_dict(), case.build().state_dict()
    assert plain.keys() == initialised.keys()
    assert all(torch.equal(tensor, initialised[key]) for key, tensor in plain.items())


NETWORK_CHECKS: tuple[Callable[[NetworkCase], None], ...] = (
    check_sizes_and_gradients,
    check_head,
    check_deep_supervision,
    check_inference,
    check_batch,
    check_autocast,
    check_round_trips,
    check_impossible_sizes,
    check_memory,
    check_heads,
    check_initialisation,
)
"""The contract of a network, one function for each part of it."""
