import re
from xml.etree import ElementTree

import numpy as np
import pytest

from nnunetv2_ext.report.charts import HATCHES, box_chart, curves_chart, letter
from nnunetv2_ext.report.models import Fold

SVG = "{http://www.w3.org/2000/svg}"


def parsed(chart: str) -> ElementTree.Element:
    """The chart, which stands in a page without a namespace."""
    return ElementTree.fromstring(chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def texts(chart: str) -> list[str]:
    return ["".join(text.itertext()) for text in parsed(chart).iter(f"{SVG}text")]


def folds(epochs: int, count: int = 2) -> list[Fold]:
    numbers = np.linspace(0.1, 0.8, epochs)
    curves = {"train_losses": -numbers, "val_losses": -numbers, "mean_fg_dice": numbers, "ema_fg_dice": numbers}
    return [Fold(str(fold), epochs, {key: list(values) for key, values in curves.items()}) for fold in range(count)]


@pytest.mark.parametrize(("number", "expected"), [(0, "A"), (25, "Z"), (26, "A2")])
def test_letter(number, expected):
    assert letter(number) == expected


def test_curves_are_named_small_and_the_same_each_time():
    chart = curves_chart(folds(1000, 5), "curves")
    assert chart == curves_chart(folds(1000, 5), "curves")
    assert len(chart) < 120_000
    assert {"0", "1", "2", "3", "fold 4"} <= set(texts(chart))
    assert parsed(chart).get("aria-label") == "curves"


@pytest.mark.parametrize("curves", [{}, {"ema_fg_dice": [float("nan"), 0.5]}, {"train_losses": [float("nan")]}])
def test_curves_with_gaps(curves):
    assert parsed(curves_chart([Fold("0", 1, curves)], "x")).tag == f"{SVG}svg"


@pytest.mark.parametrize(
    "values",
    [
        {"organ": [([0.5], [])]},
        {"organ": [([], [])], "lesion": [([0.5, 0.6], [0.0])]},
        {"organ": [([0.5] * 9, []), ([], [0.0])], "lesion": [([], []), ([0.1, 0.9], [])]},
        {"organ": [([float(number) for number in range(40)], [])] * 9},
        {f"organ {number}": [([0.5, 0.6, 0.7], [])] * 3 for number in range(16)},
    ],
)
@pytest.mark.parametrize("options", [{"bounded": True}, {"zero": True, "unit": "mm"}, {"unit": "ml"}])
def test_every_label_and_model_is_named(values, options):
    found = texts(box_chart(values, "boxes", **options))
    assert set(values) <= set(found)
    models = len(next(iter(values.values())))
    assert models == 1 or found.count(letter(models - 1)) == len(values)


def test_every_value_is_a_point():
    chart = box_chart({"organ": [(list(np.linspace(0.2, 0.9, 37)), [])]}, "boxes")
    points = max((path.get("d") or "" for path in parsed(chart).iter(f"{SVG}path")), key=lambda d: d.count("M"))
    assert points.count("M") == 37


def test_decided_values_do_not_flatten_the_others():
    values = {"organ": [([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [500.0])]}
    ticks = [
        float(text) for text in texts(box_chart(values, "HD", unit="mm", zero=True)) if re.fullmatch(r"[\d.]+", text)
    ]
    assert max(ticks) < 20


@pytest.mark.parametrize(("values", "top"), [([0.0, 0.0], 1.0), ([0.0, 1e-9], 1.0), ([0.001, 0.002], 0.002)])
def test_perfect_distances_lie_on_an_axis_in_mm(values, top):
    chart = box_chart({"organ": [(values, [])]}, "HD", unit="mm", zero=True)
    ticks = [float(text) for text in texts(chart) if re.fullmatch(r"[\d.]+", text)]
    assert max(ticks) == pytest.approx(top)


def test_models_are_told_apart_without_colour():
    chart = box_chart({"organ": [([0.1, 0.2, 0.3], [])] * len(HATCHES)}, "boxes")
    assert chart.count("<pattern") == len(HATCHES) - 1


@pytest.mark.parametrize("name", ["<b>", "a & b", '"quoted"', "$a_b$", "x" * 100])
def test_names_are_text(name):
    chart = box_chart({name: [([0.5, 0.6], [])]}, name)
    assert parsed(chart).get("aria-label") == name
    assert texts(chart)[-1].partition("…")[0] in name or name in texts(chart)


def test_no_id_stands_twice_on_a_page():
    charts = "".join(box_chart({"organ": [([0.5, 0.6], [])] * 2}, f"chart {number}") for number in range(3))
    ids = re.findall(r' id="([^"]*)"', charts)
    assert len(ids) == len(set(ids))
