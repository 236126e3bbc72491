"""Augmentation of few slices: what each transform needs, and that ours change nothing else."""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, blur_dimension
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_ext.trainers.mnet import MNetTrainer
from nnunetv2_ext.training.augmentation import SAFE_SLICES, blur_radius, for_few_slices

IN_PLANE = 8
SEEDS = range(6)


def walk(transform: BasicTransform) -> Iterator[BasicTransform]:
    """A transform and all that it is made of."""
    yield transform
    for part in getattr(transform, "transforms", [getattr(transform, "transform", None)]):
        if part is not None:
            yield from walk(part)


def blur(sigma: float) -> GaussianBlurTransform:
    return GaussianBlurTransform((sigma, sigma), p_per_channel=1)


def spatial(slices: int) -> SpatialTransform:
    return SpatialTransform(
        (slices, IN_PLANE, IN_PLANE), 0, False, p_rotation=1, rotation=(-0.5, 0.5), p_scaling=1, scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1, border_mode_seg="constant", padding_value_seg=-1,
    )  # fmt: skip


# of each of nnU-Net's transforms, at its largest effect: the fewest slices that it takes
NEEDED: dict[str, tuple[Callable[[int], BasicTransform], int]] = {
    "rotation and scaling": (spatial, 1),
    "noise": (lambda _: GaussianNoiseTransform((0, 0.1), 1, True), 1),
    "blur of sigma 0.58": (lambda _: blur(0.58), 2),
    "blur of sigma 0.59": (lambda _: blur(0.59), 3),
    "blur of sigma 0.91": (lambda _: blur(0.91), 3),
    "blur of sigma 0.92": (lambda _: blur(0.92), 4),
    "blur of sigma 1": (lambda _: blur(1.0), 4),
    "brightness": (lambda _: MultiplicativeBrightnessTransform((0.75, 1.25), False), 1),
    "contrast": (lambda _: ContrastTransform((0.75, 1.25), True, False), 1),
    "low resolution": (lambda _: SimulateLowResolutionTransform((0.5, 0.5), False, True, None), 2),
    "low resolution within the slices": (lambda _: SimulateLowResolutionTransform((0.5, 0.5), False, True, (0,)), 1),
    "gamma": (lambda _: GammaTransform((0.7, 1.5), 1, False, 1, 1), 1),
    "mirroring": (lambda _: MirrorTransform((0, 1, 2)), 1),
    "a cascade's morphology": (lambda _: ApplyRandomBinaryOperatorTransform([1], strel_size=(1, 8)), 1),
    "a cascade's components": (
        lambda _: RemoveRandomConnectedComponentFromOneHotEncodingTransform([1], p_per_label=1), 1
    ),
}  # fmt: skip


def sample(slices: int, seed: int, in_plane: int = IN_PLANE) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(2, slices, in_plane, in_plane, generator=random)
    image[1] = (image[1] > 0.7).float()  # as a cascade's channel of a label
    return {"image": image, "segmentation": (image[:1] > 0.5).to(torch.int16)}


@pytest.mark.parametrize("slices", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NEEDED)
def test_which_axis_each_transform_needs(name: str, slices: int) -> None:
    make, needed = NEEDED[name]
    for seed in SEEDS:
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        if slices < needed:
            with pytest.raises((RuntimeError, ValueError)):
                make(slices)(**sample(slices, seed))
        else:
            make(slices)(**sample(slices, seed))
        result = for_few_slices(make(slices))(**sample(slices, seed))["image"]
        assert torch.isfinite(result).all()
        assert result.shape == (2, slices, IN_PLANE, IN_PLANE)
    assert needed <= SAFE_SLICES


@pytest.mark.parametrize("sigma", np.linspace(0.01, 2, 60))
def test_the_radius_is_that_of_the_kernel(sigma: float) -> None:
    image = torch.rand(1, 16)
    reach = max(abs(place - 8) for place in np.flatnonzero(blur_dimension(torch.eye(16)[8:9], sigma, 0)[0].numpy()))
    assert blur_radius(sigma) == reach
    assert torch.equal(blur_dimension(image, 1e-3, 0), image)


def test_a_short_axis_is_left_and_the_others_are_blurred() -> None:
    made = sample(1, 0)["image"]
    blurred = for_few_slices(blur(1.0))(image=made.clone())["image"]
    flat = GaussianBlurTransform((1.0, 1.0), p_per_channel=1)(image=made[:, 0].clone())["image"]
    assert torch.allclose(blurred[:, 0], flat, atol=1e-6)
    assert not torch.equal(blurred, made)


@pytest.mark.parametrize("synchronized", list(product([False, True], repeat=2)), ids=str)
def test_ours_keep_the_settings(synchronized: tuple[bool, bool]) -> None:
    stock = GaussianBlurTransform((0.5, 1.0), *synchronized, p_per_channel=0.3, benchmark=True)
    ours = for_few_slices(stock)
    ignored = {"benchmark", "benchmark_use_fft"}
    assert {key: value for key, value in vars(ours).items() if key not in ignored} == {
        key: value for key, value in vars(stock).items() if key not in ignored
    }
    low = SimulateLowResolutionTransform((0.5, 1), *synchronized, (0,), (1,), 0.3)
    assert vars(for_few_slices(low)) == vars(low)


def transforms(trainer: type[nnUNetTrainer], patch: tuple[int, int, int], flat: bool) -> BasicTransform:
    return trainer.get_training_transforms(patch, (-0.5, 0.5), [[1, 1, 1], [1, 0.5, 0.5]], (0, 1, 2), flat)


@pytest.mark.parametrize(("patch", "flat"), [((4, 12, 12), True), ((8, 12, 12), False)], ids=["in planes", "3D"])
def test_ordinary_patches_are_augmented_as_nnunets(patch: tuple[int, int, int], flat: bool) -> None:
    outcomes = []
    for trainer in (nnUNetTrainer, MNetTrainer):
        made = transforms(trainer, patch, flat)
        for part in walk(made):
            if isinstance(part, GaussianBlurTransform):
                part.benchmark = False  # else nnU-Net's last bits depend on the machine's load
        np.random.seed(5)  # noqa: NPY002
        torch.manual_seed(5)
        results = [made(**sample(patch[0], seed, 12)) for seed in range(40)]
        outcomes.append((results, torch.rand(1), np.random.rand()))  # noqa: NPY002
    (theirs, their_torch, their_numpy), (ours, our_torch, our_numpy) = outcomes
    assert (their_torch, their_numpy) == (our_torch, our_numpy), "another number of random numbers was drawn"
    for expected, result in zip(theirs, ours, strict=True):
        assert torch.equal(expected["image"], result["image"])
        assert all(map(torch.equal, expected["segmentation"], result["segmentation"]))


@pytest.mark.parametrize("slices", [1, 2, 3])
@pytest.mark.parametrize("flat", [True, False], ids=["in planes", "3D"])
def test_few_slices_are_augmented(slices: int, flat: bool) -> None:
    made = transforms(MNetTrainer, (slices, 12, 12), flat)
    for part in walk(made):
        if hasattr(part, "apply_probability"):
            part.apply_probability = 1
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    for seed in range(20):
        result = made(**sample(slices, seed, 12))
        assert torch.isfinite(result["image"]).all()
        assert [tuple(part.shape) for part in result["segmentation"]] == [(1, slices, 12, 12), (1, slices, 6, 6)]
