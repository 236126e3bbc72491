import base64
import io
import json
import math
import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.comparison import compare, comparison_notes
from nnunetv2_ext.evaluation.metrics import METRICS, Settings
from nnunetv2_ext.evaluation.palette import COLOURS
from nnunetv2_ext.evaluation.scores import Scores, read_scores, write_scores
from nnunetv2_ext.report import html
from nnunetv2_ext.report.cases import Read
from nnunetv2_ext.report.page import write_report
from nnunetv2_ext.report.pictures import planes
from nnunetv2_ext.report.viewer import HOW_TO_ADD, Viewer
from tests.report.evaluations import LABELS, SHAPE, SPACING, boxes, write, write_evaluation

VOID = {"meta", "img", "br", "input", "link", "hr"}
HOSTILE = "<b>\"x\" & 'y' $a_b$ </script>"


class Page(HTMLParser):
    """What a page holds: elements with their attributes, text, and headings in their order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.headings: list[int] = []
        self.ids: Counter[str | None] = Counter()
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.elements.append((tag, values))
        self.ids.update([values["id"]] if "id" in values else [])
        self._script = tag in ("script", "style")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        self.text += "" if self._script else f" {data}"

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, Page, list[str]]:
    """The page of two models on three cases, one of them without a lesion in one prediction."""
    root = tmp_path_factory.mktemp("two")
    models = {
        "ours": [boxes(0), boxes(1), boxes(2)],
        "theirs": [boxes(1), boxes(3, lesion=False), boxes(2)],
    }
    evaluation = write_evaluation(root, models, metrics=tuple(METRICS))
    (root / "predictions_evaluation_1" / "predict.json").write_text(
        json.dumps({"cases": {}, "failed": {"case_9": "got a <broken> image"}})
    )
    told = write_report([evaluation], root / "page.html", title="Boxes", viewer_cases=0)
    return root, Page((root / "page.html").read_text(encoding="utf-8")), told


def test_nothing_is_loaded_from_elsewhere(two):
    root, page, _ = two
    text = (root / "page.html").read_text(encoding="utf-8")
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster", "data", "background"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", text)
    policy = next(meta["content"] for meta in page.of("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_the_page_is_well_made(two):
    _, page, _ = two
    assert page.of("html")[0]["lang"] == "en"
    assert page.of("meta")[0] == {"charset": "utf-8"}
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert not [name for name, count in page.ids.items() if count > 1]
    assert all(image["alt"] for image in page.of("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.of("svg"))
    targets = {link["href"] for link in page.of("a")}
    assert {target.removeprefix("#") for target in targets} <= page.ids.keys()


def test_failures_come_first(two):
    _, page, told = two
    sections = ["failures", "models", "means", "comparison", "boxes", "cases", "pictures"]
    assert [section["id"] for section in page.of("section")] == sections
    assert "not predicted: got a <broken> image" in page.text
    assert "lesion missed: nothing is predicted" in page.text
    assert told == []


def test_means_are_those_of_the_scores(two):
    root, _, _ = two
    text = (root / "page.html").read_text(encoding="utf-8")
    scores = read_scores(root / "evaluation")
    for label in scores.labels:
        for model in scores.models:
            value = np.nanmean([line.value for line in scores.of(model, label, "Dice").values()])
            assert f"{value:.3f}" in text
    assert "0.333" in text  # a lesion of three columns, shifted by two


def test_pictures_show_reference_and_prediction(two):
    _, page, _ = two
    pictures = [Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) for image in page.of("img")]
    assert len(pictures) == 6  # three cases of two models
    wide, high = pictures[0].size
    # axial 30 x 16 mm, coronal 30 x 24, sagittal 16 x 24, and two gaps
    assert wide / high == pytest.approx((30 + 30 + 16 + 1.2) / 24, rel=0.02)
    for picture in pictures:
        pixels = np.asarray(picture.convert("RGB"), float) / 255
        assert (np.abs(pixels - to_rgb(COLOURS[0])).max(axis=-1) < 0.1).any()


@pytest.mark.parametrize("place", ["case", "model", "label", "title"])
def test_names_are_text(tmp_path, place):
    names = {"case": "c", "model": "m", "label": "organ", "title": "t", place: HOSTILE}
    evaluation = write_evaluation(
        tmp_path, {names["model"]: [boxes(1)]}, cases=[names["case"]], labels={names["label"]: (1, 2)}
    )
    write_report([evaluation], tmp_path / "page.html", title=names["title"], viewer_cases=0)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert HOSTILE in page.text
    assert len(page.of("script")) == 1
    assert len(page.of("b")) == len(re.findall("<b>[A-Z]</b>", (tmp_path / "page.html").read_text(encoding="utf-8")))


def test_one_case_has_no_interval_and_one_model_no_comparison(tmp_path):
    evaluation = write_evaluation(tmp_path, {"ours": [boxes(1)]})
    write_report([evaluation], tmp_path / "page.html", viewer_cases=0)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "of one case there is no interval" in page.text
    assert "nan" not in page.text.lower().replace("nanmean", "")
    assert "Comparison of models" not in page.text


def test_the_comparison_is_that_of_compare(tmp_path):
    models = {"a": [boxes(n, lesion=n > 0) for n in (0, 1, 2)], "b": [boxes(n) for n in (3, 4, 5)]}
    evaluation = write_evaluation(tmp_path, models)
    write_report([evaluation], tmp_path / "page.html", cases=0, viewer_cases=0)
    text = Page((tmp_path / "page.html").read_text(encoding="utf-8")).text
    notes = comparison_notes(compare(read_scores(evaluation)))
    assert any(note.startswith("Too few pairs") for note in notes)
    assert all(note in text for note in notes)
    assert "Decided" in text and "Left out" not in text


def test_metrics_alone_make_a_page(tmp_path):
    evaluation = write_evaluation(tmp_path, {"ours": [boxes(1), boxes(0)]})
    (evaluation / "summary.json").unlink()
    told = write_report([evaluation / "metrics.csv"], tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Models and pictures" in told[0]
    assert told[0] in page.text
    assert page.of("img") == []
    assert len(page.of("svg")) == 3


def test_a_model_without_its_summary_is_told(tmp_path):
    evaluation = write_evaluation(tmp_path, {"ours": [boxes(1)], "theirs": [boxes(0)]})
    (evaluation / "1" / "summary.json").unlink()
    told = write_report([evaluation], tmp_path / "page.html", viewer_cases=0)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert told == ["No summary.json of theirs: models and pictures of it are missing; evaluate again."]
    assert told[0] in page.text and len(page.of("img")) == 1


def test_flat_and_thin_volumes_have_pictures(tmp_path):
    for spacing in ((500.0, 0.01, 0.01), (0.01, 500.0, 500.0), (0.01, 0.01, 500.0)):
        volume = Read(boxes().astype(np.float32), boxes(1), boxes(), spacing)
        assert planes(volume, LABELS, (slice(None),) * 3).startswith("data:image/png;base64,")


def test_long_names_are_shortened_in_tables(tmp_path):
    scores = read_scores(write_evaluation(tmp_path, {"a": [boxes(1), boxes(2)], "b": [boxes(0), boxes(1)]}))
    lines = tuple(line._replace(label="x" * 300) for line in scores.lines if line.label == "organ")
    write_scores(Scores(lines), tmp_path / "metrics.csv")
    write_report([tmp_path / "metrics.csv"], tmp_path / "page.html")
    assert (
        max(map(len, re.findall(r"<t[dh][^>]*>([^<]*)", (tmp_path / "page.html").read_text(encoding="utf-8")))) <= 100
    )


def lose_prediction(root):
    (root / "predictions_evaluation_0" / "case_0.nii.gz").unlink()


def cut_prediction(root):
    path = root / "predictions_evaluation_0" / "case_0.nii.gz"
    path.write_bytes(path.read_bytes()[:60])


def change_prediction(root):
    path = root / "predictions_evaluation_0" / "case_0.nii.gz"
    write(boxes(2), path)
    later = path.stat().st_mtime + 60
    os.utime(path, (later, later))


def lose_images(root):
    for path in (root / "imagesTs").iterdir():
        path.unlink()


def lose_image_folder(root):
    (root / "imagesTs").rename(root / "elsewhere")


def cut_image(root):
    path = root / "imagesTs" / "case_0_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:60])


def image_of_another_size(root):
    write(np.zeros((6, 16, 21), np.float32), root / "imagesTs" / "case_0_0000.nii.gz")


def image_of_another_spacing(root):
    write(np.zeros(SHAPE, np.float32), root / "imagesTs" / "case_0_0000.nii.gz", (4.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("damage", "expected", "pictures"),
    [
        (lose_prediction, "No picture of case_0 by ours: got", 1),
        (cut_prediction, "No picture of case_0 by ours: got", 1),
        (change_prediction, "case_0.nii.gz) newer than", 2),
        (lose_images, "shown without its image: got no volume case_0_0000 or case_0", 2),
        (lose_image_folder, "name the folder of the images with -i", 2),
        (cut_image, "case_0 is shown without its image: got", 2),
        (image_of_another_size, "case_0 is shown without its image: got", 2),
        (image_of_another_spacing, "with spacing", 2),
    ],
)
def test_what_a_picture_lacks_is_told(tmp_path, damage, expected, pictures):
    evaluation = write_evaluation(tmp_path, {"ours": [boxes(3), boxes(0)]})
    damage(tmp_path)
    told = write_report([evaluation], tmp_path / "page.html", viewer_cases=0)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert any(expected in sentence for sentence in told)
    assert all(sentence in page.text for sentence in told)
    assert len(page.of("img")) == pictures


def test_several_evaluations_make_one_page(tmp_path):
    parts = [
        write_evaluation(tmp_path, {name: [boxes(shift), boxes(1)]}, output=name)
        for name, shift in (("ours", 0), ("theirs", 3))
    ]
    write_report(parts, tmp_path / "page.html", viewer_cases=0)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Comparison of models" in page.text
    assert len(page.of("img")) == 4


def test_models_of_other_cases_are_told_apart(tmp_path):
    parts = [
        write_evaluation(tmp_path, {name: [boxes(0), boxes(1)]}, output=name, cases=cases)
        for name, cases in (("ours", ["a", "b"]), ("theirs", ["a", "c"]))
    ]
    write_report(parts, tmp_path / "page.html", viewer_cases=0)
    assert "Not compared: got 2 cases (b, c) that only one of ours and theirs has" in (
        tmp_path / "page.html"
    ).read_text(encoding="utf-8").replace("&#39;", "'")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"output": "page.txt"}, "expected a file .html"),
        ({"output": "none/page.html"}, "expected a file in an existing folder"),
        ({"output": "evaluation"}, "expected a file in an existing folder"),
        ({"images": "none"}, "expected a folder of images"),
        ({"evaluations": ["none"]}, "expected the scores of an evaluation"),
        ({"evaluations": ["evaluation", "other"]}, "expected the same labels in all"),
        ({"evaluations": ["evaluation", "again"]}, "two models called ours"),
        (
            {"evaluations": ["evaluation", "wide"]},
            "NSD of organ with tolerance 1 mm for ours and with .* 3 mm for wide",
        ),
        ({"evaluations": ["evaluation", "near"]}, "HD of organ .* expected the same .* or make a report of each"),
    ],
)
def test_refused(tmp_path, change, expected):
    write_evaluation(tmp_path, {"ours": [boxes(1)]})
    write_evaluation(tmp_path, {"theirs": [boxes(1)]}, output="other", labels={"liver": (1,)})
    write_evaluation(tmp_path, {"ours": [boxes(2)]}, output="again")
    write_evaluation(tmp_path, {"wide": [boxes(1)]}, output="wide", settings=Settings(tolerance=3))
    write_evaluation(tmp_path, {"near": [boxes(1)]}, output="near", settings=Settings(empty=30))
    before = sorted(tmp_path.rglob("*"))
    evaluations = [tmp_path / name for name in change.get("evaluations", ["evaluation"])]
    images = tmp_path / change["images"] if "images" in change else None
    with pytest.raises(InputError, match=expected):
        write_report(evaluations, tmp_path / change.get("output", "page.html"), images=images)
    assert sorted(tmp_path.rglob("*")) == before


def without_nsd(line):
    return None if line.metric == "NSD" and line.model == "b" else line


def uncounted(line):
    return line._replace(value=math.nan, note="both empty")


def of_no_known_metric(line):
    return line._replace(metric=f"my {line.metric}")


def test_where_nothing_counts_the_page_says_so(tmp_path):
    scores = read_scores(write_evaluation(tmp_path, {"ours": [boxes(0)]}))
    write_scores(Scores(tuple(uncounted(line) for line in scores.lines)), tmp_path / "metrics.csv")
    write_report([tmp_path / "metrics.csv"], tmp_path / "page.html")
    text = Page((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "Nothing counts" in text and "No case failed" not in text


@pytest.mark.parametrize("change", [without_nsd, uncounted, of_no_known_metric])
def test_odd_scores_make_a_page(tmp_path, change):
    evaluation = write_evaluation(tmp_path, {"a": [boxes(0, lesion=False), boxes(1)], "b": [boxes(2), boxes(0)]})
    lines = (change(line) for line in read_scores(evaluation).lines)
    write_scores(Scores(tuple(line for line in lines if line is not None)), evaluation / "metrics.csv")
    assert write_report([evaluation], tmp_path / "page.html", cases=0, viewer_cases=0) == []
    text = Page((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_hundreds_of_cases_stay_small(tmp_path):
    scores = read_scores(write_evaluation(tmp_path, {name: [boxes(1)] for name in "ab"}))
    lines = tuple(line._replace(case=f"case_{number:03}") for number in range(200) for line in scores.lines)
    write_scores(Scores(lines), tmp_path / "metrics.csv")
    write_report([tmp_path / "metrics.csv"], tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 1_500_000


@pytest.mark.parametrize("installed", [True, False])
def test_the_viewer_or_how_to_add_it(tmp_path, monkeypatch, installed):
    seen = []

    def viewer(cases):
        seen.extend(cases)
        return Viewer("<style></style>", "<p id='body'>&amp;</p>", "<licence>") if installed else None

    monkeypatch.setattr(html, "viewer", viewer)
    evaluation = write_evaluation(tmp_path, {"ours": [boxes(shift) for shift in (2, 0, 3, 1)]})
    write_report([evaluation], tmp_path / "page.html", cases=0, viewer_cases=3)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [case.title for case in seen] == [
        "case_2 by ours (worst)",
        "case_0 by ours (median)",
        "case_1 by ours (best)",
    ]
    np.testing.assert_array_equal(seen[0].prediction, boxes(3))
    np.testing.assert_array_equal(seen[0].reference, boxes())
    assert seen[0].spacing == pytest.approx(SPACING)
    assert (page.ids["body"] == 1) == installed
    assert ("<licence>" in page.text) == installed
    assert (HOW_TO_ADD in page.text) == (not installed)
