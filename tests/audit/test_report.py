"""The files of an audit: what they hold, that they hold it alike at each run, and that names are text in them."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from nnunetv2_ext.audit.report import write_audit
from nnunetv2_ext.audit.result import MAP, Audit, Finding, Verdict
from nnunetv2_ext.errors import InputError
from tests.audit.audits import CASES, FINE, HOSTILE, ODD, OTHER, SENTENCE, WORST, make_audit, make_map, score
from tests.report.chromium import CHROMIUM, Chromium
from tests.report.test_page import Page


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return make_audit(tmp_path_factory.mktemp("data"), map=make_map(), source=MAP, notes=("Fold 3 is <missing>.",))


@pytest.fixture(scope="module")
def output(audit: Audit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output") / "new" / "audit"
    assert write_audit(audit, folder, pictures=10, viewer=0) == []
    return folder


@pytest.fixture(scope="module")
def page(output: Path) -> Page:
    return Page((output / "audit.html").read_text(encoding="utf-8"))


def test_all_files_are_there_and_nothing_else(output: Path) -> None:
    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    pictures = {f"cases/{case}.png" for case in (WORST, OTHER, ODD)}
    assert files == {"audit.csv", "audit.md", "audit.html", "map.png", "run.json", *pictures}
    for name in (*pictures, "map.png"):
        Image.open(output / name).verify()


def test_links_lead_somewhere(output: Path, page: Page) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (output / "audit.md").read_text(encoding="utf-8"))
    assert len(links) == 3
    assert all((output / unquote(link)).is_file() for link in links)
    anchors = [str(link["href"]) for link in page.of("a")]
    assert len(anchors) >= 8
    assert {anchor.removeprefix("#") for anchor in anchors} <= page.ids.keys()


def test_the_page_is_well_made_and_loads_nothing(output: Path, page: Page) -> None:
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert not [name for name, count in page.ids.items() if count > 1]
    assert all(image["alt"] and str(image["src"]).startswith("data:") for image in page.of("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.of("svg"))
    text = (output / "audit.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import|<link", text)
    assert "default-src 'none'" in next(str(meta["content"]) for meta in page.of("meta") if "http-equiv" in meta)
    assert not re.search(r"\b(nan|None)\b", page.text)


def test_what_is_listed_is_told_in_the_page_and_in_the_text(output: Path, page: Page) -> None:
    text = (output / "audit.md").read_text(encoding="utf-8")
    order = [text.index(word) for word in ("## Probably wrong", WORST, "## Other style", OTHER, "## Findings", ODD)]
    assert order == sorted(order)
    for told in ("4 cases: 1 probably wrong, 1 of another style, 2 findings", "a part of kidney lies 30 mm off"):
        assert told in text and told in page.text
    assert "all is 9 % larger" in page.text
    assert "Fold 3 is <missing>." in page.text and r"Fold 3 is \<missing\>." in text
    assert FINE not in text


def test_names_and_sentences_are_text(output: Path, page: Page) -> None:
    assert page.text.count(SENTENCE) == 2  # in the list and beside the picture
    assert len(page.of("script")) == 1
    assert r"\<b\>" in (output / "audit.md").read_text(encoding="utf-8")


def test_the_table_holds_every_case_and_label(audit: Audit, output: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((output / "audit.csv").read_text(encoding="utf-8"))))
    assert [(row["case"], row["label"]) for row in rows] == [(of.case, of.label) for of in audit.scores]
    listed = {row["case"]: row["listed_as"] for row in rows}
    assert listed == {WORST: "probably wrong", OTHER: "other style", ODD: "", FINE: ""}
    first = rows[0]
    assert (first["disagreement"], first["volume_ml"], first["predicted_ml"]) == ("0.6", "0.45", "0.5")
    assert (first["hd95_mm"], first["left_mm"]) == ("", "")
    assert [rows[-1][name] for name in ("rarity", "cluster", "latent_1", "latent_2")] == ["1", "1", "3", "0"]


def test_the_run_tells_settings_and_counts(output: Path) -> None:
    run = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert run["settings"] == {"a": 1}
    assert (run["cases"], run["probably_wrong"], run["other_style"], run["findings"]) == (4, 1, 1, 2)
    assert {"nnunetv2_ext", "nnunetv2"} <= run["versions"].keys()


def test_the_same_audit_gives_the_same_files(audit: Audit, output: Path, tmp_path: Path) -> None:
    write_audit(audit, tmp_path, pictures=3, viewer=0)
    for name in ("audit.csv", "audit.md", "run.json", "map.png"):
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes(), name


def test_pictures_of_an_audit_before_are_gone(audit: Audit, tmp_path: Path) -> None:
    write_audit(audit, tmp_path, pictures=3, viewer=0)
    write_audit(replace(audit, verdicts=audit.verdicts[:1], findings=()), tmp_path, pictures=3, viewer=0)
    assert [path.name for path in (tmp_path / "cases").iterdir()] == [f"{WORST}.png"]


def test_names_are_on_the_map_where_the_mouse_is(output: Path) -> None:
    text = (output / "audit.html").read_text(encoding="utf-8")
    titles = re.findall(r'<g class="titled"><title>([^<]*)</title>', text)
    assert sorted(titles) == sorted([f"1. {WORST}: probably wrong", f"2. {OTHER}: other style", ODD, FINE])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_the_page_without_an_error(output: Path, tmp_path: Path) -> None:
    with Chromium(tmp_path) as browser:
        browser.open(output / "audit.html")
        browser.wait("document.readyState === 'complete' && document.querySelector('.filter input')", 20)
        assert browser.run("document.querySelectorAll('img').length") == 3
        assert browser.run("[...document.querySelectorAll('img')].every(one => one.naturalWidth > 300)")
        at = "((box) => document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2))"
        script = (
            "[...document.querySelectorAll('.titled')].map(point => { point.scrollIntoView({block: 'center'});"
            f"return {at}(point.getBoundingClientRect()).closest('.titled') === point; }})"
        )
        assert browser.run(script) == [True] * len(CASES), "the mouse meets each point"
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off"
        assert browser.errors == []
        assert all(address.startswith(("file:", "data:")) for address in browser.requests)


def test_hundreds_of_cases_stay_small(audit: Audit, tmp_path: Path) -> None:
    names = [f"case_{number:03}" for number in range(300)]
    many = Audit(
        **{
            **vars(audit),
            "scores": [score(case, label, disagreement=0.1) for case in names for label in audit.labels.of],
            "files": dict.fromkeys(names, audit.files[WORST]),
            "verdicts": [Verdict(case, True, 1.0, "liver", "it is") for case in names[:40]],
            "map": make_map(names, latents=np.random.default_rng(0).normal(size=(300, 2)), clusters=np.zeros(300, int)),
        }
    )
    write_audit(many, tmp_path, pictures=1, viewer=0)
    assert (tmp_path / "audit.html").stat().st_size < 1_500_000


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"verdicts": [], "findings": [], "map": None}, "4 cases: 0 probably wrong, 0 of another style, 0 findings"),
        ({"scores": [], "verdicts": []}, "All cases"),
        ({"findings": [Finding((ODD,), "far away", "x")]}, "1 finding that needs no model"),
    ],
)
def test_little_makes_a_page_too(audit: Audit, tmp_path: Path, changes: dict[str, object], told: str) -> None:
    write_audit(Audit(**{**vars(audit), **changes}), tmp_path, pictures=0, viewer=0)  # type: ignore[arg-type]
    page = Page((tmp_path / "audit.html").read_text(encoding="utf-8"))
    assert told in page.text
    assert not page.of("img")
    anchors = {str(link["href"]) for link in page.of("a")}
    assert {anchor.removeprefix("#") for anchor in anchors} <= page.ids.keys()


def test_a_hostile_name_and_label(audit: Audit, tmp_path: Path) -> None:
    case = "a b_[x](y)<i>&$z$"
    changes = {
        "files": {case: audit.files[WORST]},
        "scores": [score(case, HOSTILE)],
        "verdicts": [Verdict(case, True, 1.0, HOSTILE, "it is")],
        "map": make_map([case, "other"]),
    }
    write_audit(Audit(**{**vars(audit), **changes}), tmp_path, pictures=3, viewer=0)
    page = Page((tmp_path / "audit.html").read_text(encoding="utf-8"))
    assert case in page.text and HOSTILE in page.text and not page.of("i")
    (link, _) = re.findall(r"\]\(([^)]+)\)", (tmp_path / "audit.md").read_text(encoding="utf-8"))[-2:]
    assert (tmp_path / unquote(link)).is_file()


def test_a_folder_that_cannot_be_written(audit: Audit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="an error on writing"):
        write_audit(audit, tmp_path / "file", pictures=0, viewer=0)
