"""Slabs in what nnU-Net's own preprocessing makes of an image, which is put through it here."""

from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.data.preprocessed import preprocessed_slabs, takes_nearest_slices
from nnunetv2_ext.geometry.patches import PreprocessedSlabs
from nnunetv2_ext.geometry.slabs import CaseSlabs, slice_edges
from tests.training.conftest import UNET, hand_made_plans

DEFAULT = {"order": 3, "order_z": 0, "force_separate_z": None}
TORCH = {"resampling_fn_data": "resample_torch_fornnunet", "resampling_fn_data_kwargs": {"is_seg": False}}
DESCRIPTION = {"channel_names": {"0": "noNorm"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}


def plans_of(spacing: tuple[float, ...], **changes: Any) -> PlansManager:
    of_labels = {"resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_seg_kwargs": DEFAULT}
    scheme = {"normalization_schemes": ["NoNormalization"] * 99, "use_mask_for_norm": [False] * 99}
    plans = hand_made_plans(UNET, spacing=list(spacing), **scheme, **of_labels, **changes)
    return PlansManager(plans | {"foreground_intensity_properties_per_channel": {str(k): {} for k in range(99)}})


def preprocess(
    image: np.ndarray, spacing: tuple[float, ...], manager: PlansManager, case: CaseSlabs
) -> tuple[np.ndarray, PreprocessedSlabs]:
    """What nnU-Net makes of an image (channels, S, Y, X) whose slices are even: (channels, S'), and its slabs."""
    configuration = manager.get_configuration("3d_fullres")
    labels = np.zeros((1, *image.shape[1:]), np.int16)
    labels[0, -1, 0, 0] = 1  # nnU-Net samples places of foreground
    preprocessor = DefaultPreprocessor(verbose=False)
    data, _, properties = preprocessor.run_case_npy(
        image, labels, {"spacing": list(spacing)}, manager, configuration, DESCRIPTION
    )
    nearest = takes_nearest_slices(configuration, properties["spacing"])
    return data[:, :, 2, 2], preprocessed_slabs("case", case, 0, properties, data.shape[1], nearest=nearest)


def one_hot(slices: int, *, empty: int = 0) -> np.ndarray:
    """Channel s is 1 in slice s alone: what nnU-Net makes of it tells where that slice goes. (S, S, 6, 6)"""
    image = np.broadcast_to(np.eye(slices, dtype=np.float32)[:, :, None, None], (slices, slices, 6, 6)).copy()
    image[:, :empty] = 0
    return image


# stored and planned spacing (mm), whether nnU-Net takes the nearest slice
SPACINGS: list[tuple[tuple[float, ...], tuple[float, ...], bool]] = [
    ((2.5, 0.6, 0.6), (2.0, 0.6, 0.6), True),
    ((2.5, 0.6, 0.6), (3.0, 0.6, 0.6), True),
    ((2.5, 0.6, 0.6), (2.5, 0.5, 0.5), True),
    ((5.0, 1.0, 1.0), (1.0, 1.0, 1.0), True),  # the image's ratio decides, then the plans'
    ((1.0, 1.0, 1.0), (5.0, 1.0, 1.0), True),
    ((2.5, 0.5, 0.5), (1.25, 0.5, 0.5), True),  # in the middle between two slices
    ((1.25, 0.4, 0.4), (2.5, 0.4, 0.4), True),
    ((2.5, 1.0, 1.0), (2.0, 1.0, 1.0), False),
    ((2.5, 1.0, 1.0), (3.0, 1.25, 1.25), False),
    ((1.0, 1.0, 4.0), (1.5, 1.0, 4.0), False),  # the coarsest axis is another one
    ((1.0, 5.0, 5.0), (1.5, 5.0, 5.0), False),  # two coarsest axes are none
    # exactly 3 : 1 by the header, on either side of the threshold by rounding; to single precision as in NIfTI, too
    ((2.4, 0.8, 0.8), (2.0, 0.8, 0.8), False),
    ((2.1, 0.7, 0.7), (2.0, 0.7, 0.7), True),
    ((float(np.float32(2.4)), float(np.float32(0.8)), float(np.float32(0.8))), (2.0, 0.8, 0.8), False),
]


@pytest.mark.parametrize("resampling", [{}, TORCH], ids=["default", "torch"])
@pytest.mark.parametrize("slices", [7, 24, 41])
@pytest.mark.parametrize(("stored", "planned", "nearest"), SPACINGS)
def test_no_weight_lies_on_wrong_stored_slices(
    stored: tuple[float, ...], planned: tuple[float, ...], nearest: bool, slices: int, resampling: dict[str, Any]
) -> None:
    empty = slices // 8  # which nnU-Net crops
    thickness, origin = 4.3 * stored[0], 0.7 * stored[0]
    case = CaseSlabs(stored[0], slices, slice_edges(int((slices - 1) / 4.3), thickness, origin=origin))
    columns, slabs = preprocess(one_hot(slices, empty=empty), stored, plans_of(planned, **resampling), case)
    of_stored = slabs.matrix @ columns.T  # (slabs, stored slices): what each of these weighs in the end

    # by counting, in tenths of a slice: the share of each stored slice in each slab
    tenths = (np.arange(slices * 10) + 0.5) / 10 * stored[0]
    inside = (tenths >= case.slabs[:, :1]) & (tenths < case.slabs[:, 1:])
    share = inside.reshape(len(case.slabs), slices, 10).sum(axis=2) / 43
    share[:, :empty] = 0
    if nearest:
        shown = columns.sum(axis=1) > 0
        assert np.isin(columns, (0, 1)).all()
        left = np.where(shown, share, 0)
        told = np.asarray(slabs.matrix.any(axis=1))
        assert told.sum() >= len(told) / 2
        expected = left[told] * (share[told].sum(axis=1) / left[told].sum(axis=1))[:, None]
        np.testing.assert_allclose(of_stored[told], expected, atol=1e-6)
        middles = (np.arange(slices) + 0.5) * stored[0]
        for lower, upper in case.slabs[~told]:  # left out where no slice is left that the slab annotates
            assert not (shown & (middles >= lower) & (middles < upper)).any()
    else:
        # cubic splines take a little of slices on both sides
        assert np.abs(of_stored - share).sum(axis=1).max() / 2 < 0.35
        np.testing.assert_allclose(slabs.matrix.sum(axis=1), share.sum(axis=1), atol=1e-6)


def test_the_plans_may_settle_how_slices_are_resampled() -> None:
    spacing = (2.5, 0.6, 0.6)
    assert takes_nearest_slices(plans_of(spacing).get_configuration("3d_fullres"), spacing)
    for settings in ({"force_separate_z": False}, {"force_separate_z": None, "order_z": 1}):
        changed = plans_of(spacing, resampling_fn_data_kwargs={"is_seg": False, "order": 3} | settings)
        assert not takes_nearest_slices(changed.get_configuration("3d_fullres"), spacing)
    hack = plans_of(spacing, resampling_fn_data="no_resampling_hack", resampling_fn_data_kwargs={})
    assert not takes_nearest_slices(hack.get_configuration("3d_fullres"), spacing)
