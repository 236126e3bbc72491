"""The interactive view: its parts of a page, and the page in a real browser (software drawing, no window)."""

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.palette import COLOURS
from nnunetv2_ext.report import viewer as module
from nnunetv2_ext.report.page import write_report
from nnunetv2_ext.report.viewer import CSP, HOW_TO_ADD, ViewedCase, viewer
from tests.report.chromium import CHROMIUM, Chromium
from tests.report.evaluations import boxes, write_evaluation

EVIL = "</script><!--<script>\"'&{legend}"
LABELS = {f"liver {EVIL}": (1,), "lesion": (2,)}
SPACING = (5.0, 1.0, 1.0)
with_niivue = pytest.mark.skipif(not importlib.util.find_spec("ipyniivue"), reason="ipyniivue is not installed")


def cases() -> list[ViewedCase]:
    """A cube of 20 mm, front right, with a lesion in the reference alone; a lesion without a reference; two corners."""
    image = np.zeros((9, 40, 40)) + np.arange(40)
    liver, lesion = np.zeros(image.shape, np.uint8), np.zeros(image.shape, np.uint8)
    liver[1:5, 3:23, 3:23] = 1
    lesion[2:7, 10:30, 5:21] = 2
    both = liver.copy()
    both[6:8, 28:33, 28:33] = 2
    corners = np.zeros(image.shape, np.uint8)
    corners[:2, :4, :4] = corners[-1:, -3:, -3:] = 2
    return [
        ViewedCase(f"first {EVIL}", image, both, liver, SPACING, LABELS),
        ViewedCase("second", image, None, lesion, SPACING, LABELS),
        ViewedCase("corners", image, corners, corners, SPACING, LABELS),
    ]


@pytest.mark.parametrize("installed", [True, False])
def test_there_is_none_without_its_package_or_cases(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert viewer([] if installed else cases()) is None
    assert 'pip install "nnunetv2_ext[report]"' in HOW_TO_ADD


@with_niivue
def test_a_package_without_niivue_is_refused(tmp_path: Path) -> None:
    widget = tmp_path / "widget.js"
    filler = "a" * 200_000
    for text in (None, "", f'var module = "{filler}"', f'var module = "{filler}export%7BNiivue%7D%3B"'):
        if text is not None:
            widget.write_text(text)
        with pytest.raises(InputError, match=r"got ipyniivue [\d.]+, .*; run `pip install ipyniivue==2\.4\.4`, or"):
            module._niivue(widget)


@with_niivue
def test_the_licences_are_told() -> None:
    parts = viewer(cases())
    assert parts is not None
    assert "Copyright (c) 2025, Niivue" in parts.licence
    assert "Redistributions in binary form must reproduce the above copyright" in parts.licence
    assert "gl-matrix" in parts.licence


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = viewer(cases())
    assert parts is not None
    path = tmp_path_factory.mktemp("page") / "page.html"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{CSP}">'
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8">{policy}<title>Test</title>{parts.head}</head>'
    path.write_text(f"{head}<body>{parts.body}<p style='height: 200vh'></p></body></html>", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """The page, opened, in a browser that all tests below share."""
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(page)
        browser.wait("document.querySelector('#viewer')?.dataset.shown", seconds=10)
        yield browser


def put(browser: Chromium, **values: object) -> None:
    """Give controls of the view a value, and wait until it is drawn."""
    for name, value in values.items():
        control = f"document.querySelector('[data-part={name}]')"
        kind = "checked" if isinstance(value, bool) else "value"
        browser.run(f"{control}.{kind} = {str(value).lower()}; {control}.dispatchEvent(new Event('input'))")
    if "case" in values:
        browser.wait(f"document.querySelector('#viewer').dataset.shown == {values['case']}", seconds=10)
    browser.run("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")


def drawn(browser: Chromium) -> np.ndarray:
    """The canvas as (rows, columns, 3)."""
    box = browser.run("document.querySelector('#viewer canvas').getBoundingClientRect().toJSON()")
    window = np.asarray(Image.open(io.BytesIO(browser.picture())).convert("RGB")).astype(int)
    return window[int(box["top"]) : int(box["bottom"]), int(box["left"]) : int(box["right"])]


def coloured(canvas: np.ndarray, label: int) -> np.ndarray:
    """Where the canvas has the colour of a label."""
    colour = [int(COLOURS[label][place : place + 2], 16) for place in (1, 3, 5)]
    return np.asarray(np.abs(canvas - colour).max(axis=2) <= 12)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
@with_niivue
class TestInABrowser:
    def test_drawn_without_an_error_or_a_request(self, browser: Chromium, page: Path) -> None:
        canvas = drawn(browser)
        assert len(np.unique(canvas.reshape(-1, 3), axis=0)) > 50
        assert browser.errors == []
        assert browser.requests[0] == page.as_uri()
        assert all(address.startswith("data:") for address in browser.requests[1:])

    def test_words_of_users_are_words(self, browser: Chromium) -> None:
        assert browser.run("document.querySelector('[data-part=case] option').textContent") == f"first {EVIL}"
        assert browser.run("document.querySelector('.legend li').textContent") == f"liver {EVIL}"
        told = f"first {EVIL}: voxels of 5 x 1 x 1 mm."
        assert browser.run("document.querySelector('[data-part=message]').textContent") == told

    def test_right_and_front_are_left_and_top_and_a_cube_is_a_square(self, browser: Chromium) -> None:
        """5 mm slices and 1 mm pixels: 4 x 20 x 20 voxels are as wide as high in every plane."""
        for layout, corner in ((0, (0, 0)), (1, (1, 0)), (2, (1, 0))):  # slices count upwards
            put(browser, layout=layout, opacity=1, prediction=False)
            canvas = drawn(browser)
            rows, columns = np.nonzero(coloured(canvas, 0))
            assert len(rows) > 1000, layout
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert height / width == pytest.approx(1, abs=0.03), layout
            grey = np.nonzero(canvas.max(axis=2) > 0)
            middle = [(found.min() + found.max()) / 2 for found in grey]
            assert [bool(place.mean() > centre) for place, centre in zip((rows, columns), middle, strict=True)] == [
                bool(side) for side in corner
            ], layout
        put(browser, layout=3, prediction=True)

    def test_reference_and_prediction_are_switched(self, browser: Chromium) -> None:
        put(browser, layout=0, opacity=1, prediction=False)
        area = coloured(drawn(browser), 0).sum()
        put(browser, reference=False)
        assert coloured(drawn(browser), 0).sum() == 0
        put(browser, prediction=True)
        line = coloured(drawn(browser), 0).sum()
        assert 0 < line < area / 10
        put(browser, layout=3, reference=True)

    def test_a_label_can_be_hidden(self, browser: Chromium) -> None:
        put(browser, layout=0, opacity=1)
        for shown in (True, False, True):
            assert coloured(drawn(browser), 0).any() == shown
            browser.run("document.querySelector('.legend input').click()")
            put(browser)
        browser.run("document.querySelector('.legend input').click()")
        put(browser, layout=3)

    def test_another_case_is_chosen(self, browser: Chromium) -> None:
        put(browser, opacity=1)
        assert coloured(drawn(browser), 0).any()
        put(browser, case=1)
        canvas = drawn(browser)
        assert coloured(canvas, 1).any() and not coloured(canvas, 0).any()
        assert browser.run("document.querySelector('[data-part=message]').textContent") == (
            "second: voxels of 5 x 1 x 1 mm, cropped to the labels."
        )
        assert browser.run("document.querySelector('[data-part=reference]').disabled")
        assert browser.run("document.querySelector('[data-part=place]').textContent") == (
            "At the crosshair: prediction: lesion."
        )
        put(browser, case=0)

    def test_planes_go_through_labels_that_lie_in_corners(self, browser: Chromium) -> None:
        put(browser, case=2)
        told = browser.run("document.querySelector('[data-part=place]').textContent")
        assert told == "At the crosshair: reference: lesion, prediction: lesion."
        put(browser, case=0)

    def test_keys_work_and_the_wheel_is_the_page_s_until_a_click(self, browser: Chromium) -> None:
        middle = {"x": 300, "y": 300}
        for focused in (False, True):
            browser.run("scrollTo(0, 0)")
            if focused:
                browser.run("document.querySelector('#viewer canvas').focus()")
            browser.send("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=50, **middle)
            if not focused:
                browser.wait("scrollY > 0", seconds=5)
        assert browser.run("new Promise((later) => setTimeout(() => later(scrollY), 300))") == 0
        for key, part, kind in (
            ("p", "prediction", "checked"),
            ("r", "reference", "checked"),
            ("v", "layout", "value"),
        ):
            control = f"document.querySelector('[data-part={part}]').{kind}"
            before = browser.run(control)
            browser.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=f"Key{key.upper()}")
            assert browser.run(control) != before, key
        assert browser.errors == []

    def test_printed_a_sentence_stands_there(self, browser: Chromium) -> None:
        parts = "[...document.querySelector('#viewer').children]"
        seen = f"{parts}.filter((part) => part.offsetHeight).map((part) => part.className)"
        assert "screen" in browser.run(seen)
        browser.send("Emulation.setEmulatedMedia", media="print")
        assert browser.run(seen) == ["print"]
        browser.send("Emulation.setEmulatedMedia", media="")

    def test_without_webgl_a_sentence_stands_there(self, browser: Chromium, page: Path) -> None:
        source = "HTMLCanvasElement.prototype.getContext = () => null"
        script = browser.send("Page.addScriptToEvaluateOnNewDocument", source=source)
        browser.open(page)
        browser.wait("document.querySelector('[data-part=message]')?.textContent.includes('no WebGL 2')", seconds=10)
        assert browser.run("document.querySelector('#viewer canvas').offsetHeight") == 0
        assert browser.errors == []
        browser.send("Page.removeScriptToEvaluateOnNewDocument", **script)


@pytest.fixture(scope="module")
def report(browser: Chromium, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A whole page of two models in the same browser, its viewer drawn; its address."""
    root = tmp_path_factory.mktemp("report")
    models = {"ours": [boxes(0), boxes(2)], "theirs": [boxes(1), boxes(3, lesion=False)]}
    write_report([write_evaluation(root, models)], root / "report.html")
    browser.errors.clear()
    browser.requests.clear()
    browser.open(root / "report.html")
    browser.wait(
        "location.href.endsWith('report.html') && document.querySelector('#viewer')?.dataset.shown", seconds=10
    )
    return (root / "report.html").as_uri()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
@with_niivue
class TestTheWholePage:
    CELLS = "[...document.querySelectorAll('#cases tbody tr')].filter((row) => !row.hidden).map((row) => row.cells"

    def rows(self, browser: Chromium, column: int) -> list[str]:
        """The cells of a column in the table of all cases, those that are seen."""
        found = browser.run(f"{self.CELLS}[{column}].textContent)")
        assert isinstance(found, list)
        return found

    def test_all_of_it_is_drawn_without_an_error_or_a_request(self, browser: Chromium, report: str) -> None:
        browser.run("document.querySelector('#viewer').scrollIntoView()")
        put(browser, layout=3)
        assert len(np.unique(drawn(browser).reshape(-1, 3), axis=0)) > 50
        shown = "[...document.querySelectorAll('main svg, main img')].map((one) => one.getBoundingClientRect().height)"
        heights = browser.run(shown)
        assert len(heights) == 3 + 4 and min(heights) > 50  # charts of three metrics, pictures of two cases
        assert browser.errors == []
        assert browser.requests[0] == report
        assert all(address.startswith("data:") for address in browser.requests[1:])

    def test_a_heading_sorts(self, browser: Chromium, report: str) -> None:
        before = self.rows(browser, 3)
        for order in (sorted(before), sorted(before, reverse=True)):
            browser.run("document.querySelectorAll('#cases thead th button')[3].click()")
            assert self.rows(browser, 3) == order != before
        assert browser.errors == []

    def test_the_filter_hides_rows(self, browser: Chromium, report: str) -> None:
        field = "document.querySelector('#cases .filter input')"
        assert len(self.rows(browser, 1)) == 8
        browser.run(f"{field}.focus()")
        browser.send("Input.insertText", text="lesion case_1")
        assert self.rows(browser, 1) == ["lesion", "lesion"] and self.rows(browser, 0) == ["case_1", "case_1"]
        browser.run(f"{field}.value = ''; {field}.dispatchEvent(new Event('input'))")
        assert len(self.rows(browser, 1)) == 8
        assert browser.errors == []
