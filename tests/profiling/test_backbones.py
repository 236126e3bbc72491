"""The table of every backbone: which patch a row is of."""

import pytest

from nnunetv2_ext.profiling.backbones import costs, nearest


@pytest.mark.parametrize(
    ("patch", "divisor", "minimum", "expected"),
    [
        ((96, 96, 96), (32, 32, 32), (32, 32, 64), (96, 96, 96)),
        ((20, 100, 100), (16, 16, 16), (16, 16, 32), (16, 96, 96)),
        ((24, 104, 120), (16, 16, 16), (16, 16, 32), (32, 112, 128)),
        ((3, 20, 20), (32, 32, 32), (32, 32, 64), (32, 32, 64)),
        ((5, 33, 40), (1, 1, 1), (1, 16, 32), (5, 33, 40)),
    ],
)
def test_the_nearest_patch_of_a_size_rule(patch, divisor, minimum, expected):
    assert nearest(patch, divisor, minimum) == expected


@pytest.mark.parametrize(("spacing", "divisor"), [((1, 1, 1), (4, 8, 8)), ((5, 1, 1), (2, 8, 8))])
def test_planned_arguments_follow_from_the_spacing(spacing, divisor):
    alone, refined = costs(["PlainConvUNet"], (16, 32, 32), spacing, channels=1, classes=3, step=None)
    assert alone.divisor == refined.divisor == divisor
    assert alone.patch == refined.patch == (16, 32, 32)
    assert (refined.parameters or 0) > (alone.parameters or 0) > 0


@pytest.mark.parametrize(
    ("patch", "expected"),
    [((32, 16, 16), (32, 16, 16)), ((16, 16, 16), (16, 16, 32)), ((17, 8, 40), (16, 16, 48))],
)
def test_a_patch_below_the_minimum_is_taken_where_the_network_takes_it(patch, expected):
    alone, refined = costs(["BasicUNet"], patch, (1, 1, 1), channels=1, classes=3, step=None)
    assert alone.patch == refined.patch == expected
    note = f"nearest patch to {' x '.join(map(str, patch))}"
    assert alone.note == refined.note == ("" if patch == expected else note)


def test_a_backbone_that_takes_nothing_has_a_reason():
    alone, refined = costs(["VNet"], (16, 16, 32), (1, 1, 1), channels=3, classes=3, step=None)
    for row in (alone, refined):
        assert row.patch is row.parameters is None
        assert row.note.startswith("got VNet(") and "expected arguments that it takes" in row.note
