"""JSON of a wrong kind in nnU-Net's files: every command that reads them ends in a sentence, and writes nothing."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.cli import main
from nnunetv2_ext.files import read_plans
from tests.cli.test_find_best import write_summary
from tests.doctor.conftest import Prepared

MODEL = "MNetTrainer__MNetPlans__3d_fullres"
ON_PLANS = ["-d", "901", "-p", "MNetPlans"]
COMMANDS = {
    "schedule": ["schedule", *ON_PLANS, "--epochs", "5"],
    "profile": ["profile", *ON_PLANS, "-tr", "MNetTrainer", "--no-time", "--depth", "0"],
    "find_best": ["find_best", "-d", "901", "-m", "MNetTrainer:MNetPlans:3d_fullres", "-f", "0"],
}
FILES = ["preprocessed/MNetPlans.json", "preprocessed/dataset.json"]
OF_MODEL = [f"results/{MODEL}/{name}" for name in ("plans.json", "dataset.json", "fold_0/validation/summary.json")]
READS = {"schedule": FILES[:1], "profile": FILES, "find_best": [FILES[0], *OF_MODEL]}
WRONG: tuple[Any, ...] = (5, None, [], "x")
DEPTH = {"schedule": 2, "find_best": 2, "profile": 0}
"""How deep to change things. `profile`, which builds a network, sees one wrong value of each entry only."""


class HandedOver(BaseException):
    """nnU-Net's search would begin."""


def _hand_over(*_: Any, **__: Any) -> Any:
    raise HandedOver


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    made = Prepared(tmp_path)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    validation = made.results / MODEL / "fold_0" / "validation"
    validation.mkdir(parents=True)
    (validation.parent / "checkpoint_final.pth").touch()
    (validation / "case_0.nii.gz").touch()
    write_summary(validation, {"case_0": {1: 5, 2: 5}})
    for name, copied in {"MNetPlans.json": "plans.json", "dataset.json": "dataset.json"}.items():
        (made.results / MODEL / copied).write_text((made.preprocessed / name).read_text())
    return made


def changed(content: Any, depth: int) -> Iterator[Any]:
    """The content with each of its entries, and of those below, gone or of another kind in turn."""
    for key in list(content):
        for value in WRONG if depth else WRONG[:1]:
            yield {**content, key: value}
        yield {other: value for other, value in content.items() if other != key}
        if isinstance(content[key], dict) and depth:
            for below in changed(content[key], depth - 1):
                yield {**content, key: below}


@pytest.mark.parametrize(
    ("command", "file"), [(command, file) for command, files in READS.items() for file in files], ids=str
)
def test_no_traceback(
    command: str, file: str, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nnunetv2.evaluation.find_best_configuration.find_best_configuration", _hand_over)
    room, _, name = file.partition("/")
    path = getattr(prepared, room) / name
    whole = path.read_text()
    texts = ["null", "{", "[]", *map(json.dumps, changed(json.loads(whole), DEPTH[command]))]
    statuses = set()
    for text in texts:
        path.write_text(text)
        try:
            status = main(COMMANDS[command])
        except HandedOver:
            status = 0
        printed = capsys.readouterr()
        statuses.add(status)
        if status == 2:
            assert printed.err.count("got ") >= 1, text
            assert not printed.out, text
            assert path.read_text() == text
    assert 2 in statuses
    assert statuses <= {0, 2}


PLANS = {"configurations": {"a": {"patch_size": [8, 8, 8]}, "b": {"inherits_from": "a", "training": None}}}


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["configurations"], None, "no configurations in "),
        (["configurations"], {}, "no configurations in "),
        (["configurations", "a"], [], "no object as configuration a in "),
        (["configurations", "b", "training"], [1], "no object as training of configuration b in "),
        (["configurations", "b", "inherits_from"], "c", "b of .* that inherits from 'c'"),
        (["configurations", "b", "inherits_from"], 5, "b of .* that inherits from 5"),
        (["configurations", "a", "inherits_from"], "b", "configuration b of .* that inherits from 'a'"),
    ],
)
def test_plans_that_are_none(path: list[str], value: Any, told: str, tmp_path: Path) -> None:
    content: Any = deepcopy(PLANS)
    file = tmp_path / "plans.json"
    file.write_text(json.dumps(content))
    assert read_plans(file, "plan again") == PLANS
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=told):
        read_plans(file, "plan again")
