from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from nnunetv2_ext.evaluation.palette import COLOURS
from nnunetv2_ext.report import figure
from nnunetv2_ext.report.figure import LINES, Shown, label_styles, save_cases, telling_index

LABELS = {"background": 0, "organ": 1, "lesion": 2}


def case(*, prediction=True, size=(6, 20, 24), title="Best case") -> Shown:
    image = np.random.default_rng(0).normal(size=size)
    truth = np.zeros(size, np.uint8)
    truth[1:5, 4:16, 6:18] = 1
    truth[2:4, 8:12, 9:14] = 2
    return Shown(title, image, truth, truth if prediction else np.zeros_like(truth), (4.0, 1.0, 1.0))


def coloured(path, colour) -> int:
    """Pixels of the picture that have about this colour."""
    picture = imread(path)[..., :3]
    return int((np.abs(picture - to_rgb(colour)).max(axis=-1) < 0.08).sum())


@pytest.mark.parametrize("count", [1, 3])
def test_picture_grows_with_the_cases(tmp_path, count):
    path = tmp_path / "new" / "cases.png"
    save_cases([case(title=f"case {number}") for number in range(count)], LABELS, path, heading="Heading")
    height, width = imread(path).shape[:2]
    # A row is as high as its highest plane, 24 mm of slices beside 20 to 24 mm of columns.
    assert width > 1000
    assert 150 * count < height - 150 < 320 * count


def test_labels_are_drawn_in_truth_and_prediction(tmp_path):
    both, truth_only = tmp_path / "both.png", tmp_path / "truth.png"
    save_cases([case()], LABELS, both)
    save_cases([case(prediction=False)], LABELS, truth_only)
    for colour in COLOURS[:2]:
        outlines, half = coloured(both, colour), coloured(truth_only, colour)
        # The legend's patch is in both.
        assert 0 < half < outlines


def test_a_note_stands_above_the_cases(tmp_path):
    for name, note in (("with", "A note"), ("without", "")):
        save_cases([case()], LABELS, tmp_path / f"{name}.png", heading="Heading", note=note)
    pictures = {name: imread(tmp_path / f"{name}.png") for name in ("with", "without")}
    added = len(pictures["with"]) - len(pictures["without"])
    assert 20 < added < 40
    # what the note is written on: nothing stands there without it, and all below it is the same
    assert (pictures["with"][45:62] < 0.5).any()
    np.testing.assert_allclose(pictures["with"][-100:], pictures["without"][-100:], atol=0.02)


@pytest.mark.parametrize(
    "name", ["$", "a$b$c", "$\\frac{1}{2}$", "$\\nothing$", "a_b", "_a", "\u809d\u81d3", "%", "{}", "a\\"]
)
def test_names_are_drawn_as_they_are(tmp_path, monkeypatch, name):
    drawn: list[str] = []
    told = RendererAgg.draw_text

    def tell(self: Any, gc: Any, x: Any, y: Any, text: str, *rest: Any, ismath: Any = False, **more: Any) -> None:
        assert not ismath
        drawn.append(text)
        told(self, gc, x, y, text, *rest, ismath=ismath, **more)  # type: ignore[misc]

    monkeypatch.setattr(RendererAgg, "draw_text", tell)
    save_cases([case(title=f"case {name}")], {f"label {name}": 1, name: 2}, tmp_path / "a.png", heading=name, note=name)
    for text in (f"case {name}", f"label {name}", name):
        assert text in drawn
    assert drawn.count(name) == 3  # of the heading, the note and the legend


def test_different_grids_in_one_picture(tmp_path):
    save_cases([case(), case(size=(8, 30, 26))], LABELS, tmp_path / "cases.png", window=(-1.0, 1.0))
    assert (tmp_path / "cases.png").stat().st_size > 0


def testtelling_index():
    labels = np.zeros((5, 4, 4), int)
    labels[1, :, :] = 1
    labels[2, :3, :] = 1
    labels[2, 3, :2] = 2
    both, one = (label_styles(names).values() for names in ({"one": 1, "two": 2}, {"one": 1}))
    # Slice 1 holds most of label 1, but slice 2 nearly as much and all of label 2.
    assert telling_index(labels, 0, both) == 2
    assert telling_index(labels, 0, one) == 1
    assert telling_index(np.zeros((5, 4, 4), int), 0, both) == 2


@pytest.fixture
def panels(monkeypatch):
    """Plane, index and labels of every panel that is drawn."""
    drawn = []
    draw = figure._draw

    def keep(axes, case, plane, index, overlay, *style):
        drawn.append((plane, index, overlay))
        draw(axes, case, plane, index, overlay, *style)

    monkeypatch.setattr(figure, "_draw", keep)
    return drawn


@pytest.mark.parametrize(("truths", "count"), [((False, False), 12), ((True, False), 15), ((True,), 9)])
def test_cases_without_a_truth_have_fewer_panels(tmp_path, panels, truths, count):
    cases = [case() if there else replace(case(), truth=None) for there in truths]
    save_cases(cases, LABELS, tmp_path / "cases.png")
    assert len(panels) == count
    assert sum(overlay is not None for _, _, overlay in panels) == count - 3 * len(truths)


@pytest.mark.parametrize(("true_slices", "shown"), [(None, 4), ([], 4), ([1], 1)])
def test_planes_go_through_the_prediction_where_there_is_no_true_label(tmp_path, panels, true_slices, shown):
    prediction, truth = np.zeros((2, 6, 20, 24), np.uint8)
    prediction[4], truth[true_slices or []] = 1, 1
    shown_case = replace(case(), truth=None if true_slices is None else truth, prediction=prediction)
    save_cases([shown_case], LABELS, tmp_path / "cases.png")
    assert {index for plane, index, _ in panels if plane == 0} == {shown}


def test_long_names_and_many_labels_fit(tmp_path):
    labels = {"background": 0, **{f"a structure with a long name {number}": number for number in range(1, 17)}}
    styles = label_styles(labels)
    assert len({(style.colour, style.line) for style in styles.values()}) == len(styles) == 16
    assert {style.line for style in styles.values()} == set(LINES)
    long = "\n".join(["x" * 100, *(f"line {number}" for number in range(30))])
    save_cases([case(title=long)], labels, tmp_path / "cases.png", heading="y" * 300)
    picture = imread(tmp_path / "cases.png")[..., :3]
    # nothing is cut off: the border stays white
    for border in (picture[:6], picture[-6:], picture[:, :6], picture[:, -6:]):
        assert border.min() > 0.99


def test_regions_are_drawn_whole(tmp_path):
    save_cases([case()], {"background": 0, "both": (1, 2)}, tmp_path / "cases.png")
    assert coloured(tmp_path / "cases.png", COLOURS[0]) > 100
    assert coloured(tmp_path / "cases.png", COLOURS[1]) == 0


@pytest.mark.parametrize("values", [np.nan, np.inf, 3.0])
def test_images_without_a_range(tmp_path, values):
    save_cases([replace(case(), image=np.full((6, 20, 24), values))], LABELS, tmp_path / "cases.png")
    assert coloured(tmp_path / "cases.png", COLOURS[0]) > 100
