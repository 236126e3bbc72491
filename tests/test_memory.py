"""The measure of memory is nnU-Net's own."""

import inspect
import re

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunetv2_ext.memory import REFERENCE_GB, REFERENCES, memory_gb


@pytest.mark.parametrize(
    ("elements", "batch_size", "expected"),
    [(560_000_000, 2, 8.0), (560_000_000, 4, 16.0), (280_000_000, 2, 4.0), (1_680_000_000, 2, 24.0), (0, 2, 0.0)],
)
def test_memory(elements: int, batch_size: int, expected: float) -> None:
    assert memory_gb(elements, batch_size) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("UNet_reference_val_2d", REFERENCES[2][0]),
        ("UNet_reference_val_corresp_bs_2d", REFERENCES[2][1]),
        ("UNet_reference_val_3d", REFERENCES[3][0]),
        ("UNet_reference_val_corresp_GB", REFERENCE_GB),
        ("UNet_reference_val_corresp_bs_3d", REFERENCES[3][1]),
    ],
)
def test_the_reference_is_that_of_the_installed_nnunet(attribute: str, value: int) -> None:
    found = re.search(rf"self\.{attribute} = (\d+)", inspect.getsource(ExperimentPlanner.__init__))
    assert found is not None
    assert int(found[1]) == value
