"""The entry point as it will run: its own code, another user, no network, nothing to write to but `/tmp`."""

from pathlib import Path

import pytest
import SimpleITK as sitk

from nnunetv2_ext.container.make import write_container
from tests.container.conftest import SLUG, image, settings, validated
from tests.container.sandbox import need_bwrap, on_host, run
from tests.container.test_serve import LABELS, hand_over, of_predict
from tests.tiny_models import write_model

pytestmark = pytest.mark.pipeline
FULL = "1000000"
"""Bytes, fewer than the image has."""


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two models, one of a trainer of ours, whose leaf lies elsewhere in an editable installation."""
    root = tmp_path_factory.mktemp("sandbox")
    models = [validated(write_model(root, trainer=trainer)) for trainer in ("MNetTrainer", "nnUNetTrainer")]
    write_container(models, root / "made", settings(weights=(0.1, 1.0)))
    return root / "made"


def test_a_case_in_the_sandbox(container: Path, tmp_path: Path) -> None:
    need_bwrap()
    source, output = hand_over(tmp_path / "input", {SLUG: image()}), tmp_path / "output"
    output.mkdir()
    ended = run(on_host(container, source, output))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"/output/{LABELS}: written, predicted on the device cpu\n"
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(output / LABELS)))
    assert (labels == of_predict(container, [image()], tmp_path / "predict")).all()
    assert labels.max() > 0
    ended = run(on_host(container, source, output, "--check"))
    assert ended.returncode == 0 and "on the grid of of-a-uuid.mha, labels 0, " in ended.stdout


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ("no model", 2, "no file /opt/ml/model/container.json"),
        ("no room in /tmp", 2, ", which cannot be read or written ("),
    ],
)
def test_one_sentence_in_the_sandbox(container: Path, tmp_path: Path, how: str, status: int, words: str) -> None:
    need_bwrap()
    shape = (40, 200, 200) if how == "no room in /tmp" else (7, 26, 28)
    source, output, none = (
        hand_over(tmp_path / "input", {SLUG: image(0, shape)}),
        tmp_path / "output",
        tmp_path / "none",
    )
    output.mkdir()
    none.mkdir()
    command = on_host(
        container, source, output, tmp=FULL * (how == "no room in /tmp"), model=none if how == "no model" else None
    )
    ended = run(command)
    assert ended.returncode == status
    assert ended.stderr.count("\n") == 1 and words in ended.stderr, ended.stderr
    assert ended.stdout == "" and not list(output.rglob("*"))
