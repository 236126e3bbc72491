"""The pictures of listed cases: which planes they show, and what is done where a file is missing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_ext.audit.pictures import Shown, cases_to_show, read_shown, save_picture, viewed_case, worst_place
from nnunetv2_ext.audit.report import write_audit
from nnunetv2_ext.audit.result import Audit, Files
from nnunetv2_ext.report.figure import telling_place
from tests.audit.audits import ODD, OTHER, SHIFT, WORST, make_audit

SHAPE = (8, 10, 12)


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return make_audit(tmp_path_factory.mktemp("data"))


def box(*slices: tuple[int, int], value: int = 1) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(*one) for one in slices)] = value
    return labels


@pytest.mark.parametrize(
    ("label", "prediction", "values", "ignore", "place"),
    [
        # a slab of slices 5 and 6 is missing in the label
        (box((1, 5), (2, 8), (3, 9)), box((1, 7), (2, 8), (3, 9)), {"a": 1}, None, (5, 2, 3)),
        # label 2 differs in slice 1, but that of label 1 is asked for
        (box((1, 2), (0, 9), (0, 9), value=2), box((6, 7), (4, 5), (4, 5)), {"a": 1}, None, (6, 4, 4)),
        # a region counts as one
        (box((1, 2), (0, 9), (0, 9), value=2), box((1, 2), (0, 8), (0, 9)), {"a": (1, 2)}, None, (1, 8, 0)),
        # what is ignored does not count
        (box((1, 2), (0, 9), (0, 9), value=3), box((1, 3), (0, 9), (0, 9)), {"a": 1}, 3, (2, 0, 0)),
    ],
)
def test_planes_are_those_where_label_and_prediction_differ_most(
    label: np.ndarray,
    prediction: np.ndarray,
    values: dict[str, int | tuple[int, ...]],
    ignore: int | None,
    place: tuple[int, int, int],
) -> None:
    assert worst_place(label, prediction, values, ignore) == place


def test_equal_ones_are_shown_where_they_are_largest() -> None:
    same = box((2, 7), (2, 8), (3, 9))
    assert worst_place(same, same, {"a": 1}, None) == telling_place(same, same, {"a": 1})


def test_the_worst_come_first_and_findings_after_them(audit: Audit) -> None:
    shown = cases_to_show(audit)
    assert [*shown] == [WORST, OTHER, ODD]
    assert shown[WORST] == ("1. probably wrong", "liver")
    assert shown[ODD] == ("far away", "")


def test_a_case_keeps_its_planes_where_it_is_cut_to_its_labels() -> None:
    label, prediction = np.zeros((60, 60, 60), np.uint8), np.zeros((60, 60, 60), np.uint8)
    label[30:40, 30:40, 30:40] = prediction[30:36, 30:40, 30:40] = 1
    whole = Shown(
        "case", "1.", np.arange(label.size).reshape(label.shape), label, prediction, (1.0, 1.0, 5.0), (36, 30, 31)
    )
    cut = whole.cropped()
    assert cut.image.shape == (40, 40, 16)  # 15 mm around the label
    assert cut.image[cut.place] == whole.image[whole.place]


def test_the_viewer_shows_label_and_prediction(audit: Audit) -> None:
    shown, note = read_shown(audit, WORST, "1. probably wrong", "liver")
    assert shown is not None and note == ""
    view = viewed_case(audit, shown)
    np.testing.assert_array_equal(view.reference, np.roll(view.prediction, SHIFT, axis=1))
    assert view.title == f"{WORST} (1. probably wrong)"


@pytest.mark.parametrize(
    ("lost", "told", "pictured"),
    [
        ({"image": None}, "shown without its image: got no image", True),
        ({"image": Path("gone.nii.gz")}, "shown without its image: got an unreadable file gone.nii.gz", True),
        ({"prediction": None}, "", True),
        ({"prediction": Path("gone.nii.gz")}, f"No picture of {WORST}: got", False),
        ({"label": Path("gone.nii.gz")}, f"No picture of {WORST}: got", False),
    ],
)
def test_what_is_missing_is_told(
    audit: Audit, tmp_path: Path, lost: dict[str, Path | None], told: str, pictured: bool
) -> None:
    files: Files = audit.files[WORST]._replace(**lost)  # type: ignore[arg-type]
    lacking = write_audit(replace(audit, files={**audit.files, WORST: files}), tmp_path, pictures=1, viewer=1)
    assert told in " ".join(lacking) and bool(told) == bool(lacking)
    assert (tmp_path / "cases" / f"{WORST}.png").is_file() == pictured
    text = (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert ("data:image/png" in text) == pictured


def test_a_label_alone_is_no_prediction(audit: Audit, tmp_path: Path) -> None:
    files = {**audit.files, WORST: audit.files[WORST]._replace(prediction=None)}
    shown, _ = read_shown(replace(audit, files=files), WORST, "1.", "liver")
    assert shown is not None
    assert not shown.prediction.any() and shown.label.any()
    assert shown.read.truth is None and shown.read.prediction is shown.label
    save_picture(audit, shown, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
