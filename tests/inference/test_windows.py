"""The sliding window against nnU-Net's: bit for bit on a network whose sums have no rounding, closely on a U-Net."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunetv2_ext.architectures import MNet
from nnunetv2_ext.architectures.layers.instance_norm import ChannelsLastInstanceNorm
from nnunetv2_ext.inference.windows import SlidingWindow

LABELS = {"labels": {"background": 0, "organ": 1, "tumour": 2}}
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "tumour": [2]}, "regions_class_order": [1, 2]}
PATCH = (4, 6, 8)
CPU = torch.device("cpu")
Folds = list[dict[str, Tensor]]


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3  # as the caller had it
    torch.set_num_threads(before)


def exact(folds: int, *, axes: int = 3, heads: int = 3) -> tuple[nn.Module, Folds]:
    """A network, with weights of folds, in which float32 has no rounding, so that no order of sums matters."""
    conv = (nn.Conv2d, nn.Conv3d)[axes - 2]
    network = nn.Sequential(conv(2, 4, 3, padding=1), nn.LeakyReLU(0.5), conv(4, heads, 3, padding=1))
    random = torch.Generator().manual_seed(0)
    weights = [
        {key: torch.randint(-4, 5, value.shape, generator=random) / 16 for key, value in network.state_dict().items()}
        for _ in range(folds)
    ]
    return network.eval(), weights


def volume(*shape: int) -> Tensor:
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(1)).float()


def arguments(
    network: nn.Module, folds: Folds, patch: tuple[int, ...], mirroring_axes: Any, dataset: dict[str, Any]
) -> tuple[Any, ...]:
    plans = PlansManager(
        {"configurations": {"c": {"patch_size": list(patch), "architecture": {}}}, "label_manager": "LabelManager"}
    )
    return network, plans, plans.get_configuration("c"), folds, dataset, "nnUNetTrainer", mirroring_axes


def ours(*of: Any, **options: Any) -> SlidingWindow:
    network, plans, configuration, folds, dataset, trainer, axes = arguments(*of)
    return SlidingWindow(
        deepcopy(network), plans, configuration, dataset, trainer, axes, folds, **{"device": CPU, **options}
    )


def nnunets(*of: Any, step_size: float = 0.5, mirroring: bool = True) -> nnUNetPredictor:
    predictor = nnUNetPredictor(step_size, use_mirroring=mirroring, device=CPU, allow_tqdm=False)
    predictor.manual_initialization(*arguments(*of))
    return predictor


@pytest.mark.parametrize(
    ("patch", "shape", "mirroring_axes", "folds", "options"),
    [
        (PATCH, (9, 13, 11), (0, 1, 2), 2, {}),
        (PATCH, (4, 6, 8), (0, 1, 2), 1, {}),
        (PATCH, (3, 5, 20), (0, 1, 2), 3, {}),  # padded
        (PATCH, (5, 7, 9), (0, 2), 1, {}),
        (PATCH, (5, 7, 9), (1,), 2, {"step_size": 1.0}),
        (PATCH, (5, 7, 9), None, 2, {"step_size": 0.3}),
        (PATCH, (5, 7, 9), (), 1, {}),
        (PATCH, (5, 7, 9), (0, 1, 2), 1, {"mirroring": False}),
        ((6, 8), (3, 7, 9), (0, 1), 2, {}),
        ((6, 8), (1, 5, 4), None, 1, {}),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 1, 3, 16])
def test_bit_for_bit(
    patch: tuple[int, ...],
    shape: tuple[int, ...],
    mirroring_axes: Any,
    folds: int,
    options: dict[str, Any],
    batch_size: int | None,
) -> None:
    network, weights = exact(folds, axes=len(patch))
    image = volume(2, *shape)
    of = network, weights, patch, mirroring_axes, LABELS
    if mirroring_axes == ():  # nnU-Net asks for the largest of no axes
        expected = nnunets(*of[:3], None, LABELS, **options).predict_logits_from_preprocessed_data(image)
    else:
        expected = nnunets(*of, **options).predict_logits_from_preprocessed_data(image)
    logits = ours(*of, batch_size=batch_size, **options).logits(image)
    assert logits.dtype == expected.dtype == torch.half
    assert not logits.requires_grad
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", ["PlainConvUNet", "2d", "MNet"])
@pytest.mark.filterwarnings("error")
def test_networks_with_norms(name: str) -> None:
    torch.manual_seed(0)
    patch = (32, 32) if name == "2d" else (4, 32, 32)
    axes = len(patch)
    if name == "MNet":
        network: nn.Module = MNet(2, 3, features_per_stage=(4, 6, 8, 10, 12), deep_supervision=False)
    else:
        network = PlainConvUNet(
            2,
            3,
            (4, 6, 8),
            (nn.Conv2d, nn.Conv3d)[axes - 2],
            3,
            [1, 2, 2],
            1,
            3,
            1,
            conv_bias=True,
            norm_op=(nn.InstanceNorm2d, nn.InstanceNorm3d)[axes - 2],
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
        )
    network.eval()
    folds = [{k: v + 0.1 * torch.randn_like(v) for k, v in network.state_dict().items()} for _ in range(2)]
    image = torch.randn(2, 5, 32, 36) + 3
    of = network, folds, patch, (0, axes - 1), LABELS
    expected = nnunets(*of).predict_logits_from_preprocessed_data(image)
    window = ours(*of)
    assert window.channels_last
    assert ours(window.network, *of[1:]).channels_last  # a network that has been another's
    assert window.network.state_dict().keys() == network.state_dict().keys()
    logits = window.logits(image)
    assert (logits.argmax(0) != expected.argmax(0)).float().mean() <= 1e-4
    # where the weights of the windows are smallest, half precision has steps of 1 / folds
    assert ((logits - expected).abs() > 2e-3 * expected.abs().clamp(min=1)).float().mean() < 1e-3


def test_instance_norm_keeps_layout_and_digits() -> None:
    norm = nn.InstanceNorm3d(5, affine=True)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 6, 20, 20) * torch.rand(5, 1, 1, 1) + 3
    x = x.contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        result = ChannelsLastInstanceNorm(norm)(x)
        mean, std = (f(x.double(), dim=(2, 3, 4), keepdim=True) for f in (torch.mean, torch.std))
        deviation = (std.square() * (1 - 1 / 2400) + norm.eps).sqrt()
        expected = (x - mean) / deviation * norm.weight[:, None, None, None] + norm.bias[:, None, None, None]
    assert result.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(result, expected.float(), rtol=1e-4, atol=1e-4)


class _Chosen(SlidingWindow):
    """Every window but those that the test leaves out."""

    left_out: Any = ()

    def _internal_get_sliding_window_slicers(self, image_size: tuple[int, ...]) -> Any:
        windows = super()._internal_get_sliding_window_slicers(image_size)
        return [window for n, window in enumerate(windows) if n not in self.left_out]


@pytest.mark.parametrize(("dataset", "heads"), [(LABELS, [10, -10, -10]), (REGIONS, [-10, -10])])
@pytest.mark.parametrize("left_out", [{0}, {1, 2}, set(range(99))])
def test_without_some_windows(dataset: dict[str, Any], heads: list[int], left_out: set[int]) -> None:
    network, folds = exact(2, heads=len(heads))
    image = volume(2, 4, 6, 12)  # windows at 0, 2 and 4 of the last axis
    network_, plans, configuration, weights, dataset_, trainer, axes = arguments(
        network, folds, PATCH, (0, 1, 2), dataset
    )
    window = _Chosen(deepcopy(network_), plans, configuration, dataset_, trainer, axes, weights, device=CPU)
    window.left_out = left_out
    logits = window.logits(image)
    starts = [start for n, start in enumerate((0, 4)) if n not in left_out]
    covered = np.zeros(12, bool)
    for start in starts:
        covered[start : start + 8] = True
    assert logits[..., ~covered].flatten(1).unique(dim=1).T.tolist() == ([heads] if not covered.all() else [])
    assert window.windows == (len(starts), len(starts))
    if len(starts) == 1:  # one window alone is what nnU-Net makes of its part of the image
        alone = nnunets(network, folds, PATCH, (0, 1, 2), dataset).predict_logits_from_preprocessed_data(
            image[..., covered].contiguous()
        )
        assert torch.equal(logits[..., covered], alone)


@pytest.mark.parametrize("chosen", [[0], [1], [2], [0, 1], [1, 2]])
def test_a_window_gives_the_same_bits_in_any_company(chosen: list[int]) -> None:
    """PyTorch takes another convolution for a single sample than for several."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 32, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(32, 3, 3, padding=1)).eval()
    image = torch.randn(1, 8, 32, 64)
    window = ours(network, [network.state_dict()], (8, 32, 32), None, LABELS)
    windows = [(slice(None), slice(0, 8), slice(0, 32), slice(start, start + 32)) for start in (0, 16, 32)]
    whole, part = window.logits(image), window.logits(image, windows=[windows[n] for n in chosen])
    left_out = [windows[n] for n in range(3) if n not in chosen]
    complete = torch.zeros(64, dtype=torch.bool)
    for n in chosen:
        complete[windows[n][3]] = True
    for one in left_out:
        complete[one[3]] = False
    assert complete.any() == (chosen != [1])
    assert torch.equal(part[..., complete], whole[..., complete])


def test_empty_windows_are_skipped_where_asked() -> None:
    network, folds = exact(2)
    image = volume(2, 4, 6, 24)
    image[0, ..., :14], image[1, ..., :14] = -1.0, 2.0
    of = network, folds, PATCH, (0, 1, 2), LABELS
    whole, skipping = ours(*of), ours(*of, skip_empty=True)
    logits = skipping.logits(image)
    assert torch.equal(whole.logits(image), nnunets(*of).predict_logits_from_preprocessed_data(image))
    assert whole.windows == (5, 5)  # at 0, 4, 8, 12, 16
    assert skipping.windows == (3, 5)
    assert logits[0, ..., :8].unique().tolist() == [10]
    assert logits[1:, ..., :8].unique().tolist() == [-10]
    assert torch.equal(logits[..., 16:], whole.logits(image)[..., 16:])
    assert torch.equal(skipping.logits(torch.zeros(2, 4, 6, 24))[0], torch.full((4, 6, 24), 10).half())
    assert skipping.windows == (0, 5)


def test_progress_counts_windows_of_all_folds() -> None:
    network, folds = exact(2)
    seen: list[tuple[int, int]] = []
    ours(network, folds, PATCH, (0,), LABELS).logits(volume(2, 4, 6, 12), progress=lambda *n: seen.append(n))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_prints_nothing_and_passes_errors_on(capfd: pytest.CaptureFixture[str]) -> None:
    network, folds = exact(1)
    window = ours(network, folds, PATCH, (0, 1, 2), LABELS)

    def fails(_: Tensor) -> Tensor:
        raise ValueError("of the network")

    window.network.forward = fails
    with pytest.raises(ValueError, match="of the network"):
        window.logits(volume(2, 9, 13, 11))
    assert capfd.readouterr() == ("", "")


def test_overflow_is_an_error_as_in_nnunet() -> None:
    network, folds = exact(1)
    folds[0]["2.bias"] += 60_000
    with pytest.raises(RuntimeError, match="half precision"):
        ours(network, folds, PATCH, (0,), LABELS).logits(volume(2, 4, 6, 12))


def test_batches_shrink_where_memory_ends() -> None:
    class Small(nn.Module):
        def __init__(self, network: nn.Module):
            super().__init__()
            self.network, self.sizes = network, list[int]()

        def forward(self, x: Tensor) -> Any:
            self.sizes.append(len(x))
            if len(x) > 2:
                raise torch.OutOfMemoryError("as CUDA raises")
            return self.network(x)

        def load_state_dict(self, *of: Any, **options: Any) -> Any:
            return self.network.load_state_dict(*of, **options)

    network, folds = exact(2)
    of = folds, PATCH, (0, 1, 2), LABELS
    window = ours(Small(network), *of, batch_size=8)
    window.streams = 1
    image = volume(2, 4, 6, 12)
    expected = nnunets(network, *of).predict_logits_from_preprocessed_data(image)
    assert torch.equal(window.logits(image), expected)
    assert window.batch_size == 2
    sizes = window.network.sizes
    assert sizes[:7] == [8, 4, 2, 2, 4, 2, 2]
    assert sizes[-8:] == [2] * 8
