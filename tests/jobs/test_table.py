"""The table of jobs: what its lines say, at any width, and which jobs a name means."""

import json
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.cli import jobs as command
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.record import (
    BLOCKED,
    CANCELLED,
    FAILED,
    FINISHED,
    RUNNING,
    TIMED_OUT,
    WAITING,
    Attempt,
    Job,
    State,
    write_job,
    write_state,
)
from nnunetv2_ext.jobs.table import chosen, lines, rows, summary, with_jobs
from tests.jobs.fake import FakeEngine, use
from tests.jobs.test_progress import DONE, FIRST, HEAD, begun, epoch, predicted

DATASET = "Dataset901_Boxes"
MODEL = "MNetTrainer__MNetPlans__3d_fullres"


@pytest.fixture
def engine(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    return use(monkeypatch)


@pytest.fixture
def folder(nnunet_folders: Path, engine: FakeEngine) -> Path:
    """Jobs in every state."""
    results = nnunet_folders / "nnUNet_results" / DATASET
    jobs = results / "jobs"
    for fold, (state, reason, log) in enumerate(
        (
            (Seen(FINISHED, 0), "", HEAD + epoch(0) + epoch(1) + DONE),
            (Seen(RUNNING), "", HEAD + epoch(0) + begun(1)),
            (Seen(RUNNING), "", HEAD + epoch(0) + epoch(1) + DONE + predicted("a", "b")),
            (Seen(FAILED, 137), "killed by signal 9 (SIGKILL)", HEAD + begun(0)),
            (Seen(WAITING), "", ""),
        )
    ):
        place = results / MODEL / f"fold_{fold}"
        name = f"{MODEL}__fold_{fold}"
        write_job(jobs, Job(name, ("nnUNetv2_train", "901"), fold=place, id="7"))
        engine.states[name] = state
        if log:
            place.mkdir(parents=True)
            (place / FIRST).write_text(log)
            (place / "debug.json").write_text(json.dumps({"num_epochs": "2"}))
            attempt = Attempt(1000.0, 1060.0, state.exit, reason, 1)
            write_state(jobs, name, State(state.state, (attempt,), "node", 12))
            (jobs / name / "log.txt").touch()
    write_job(jobs, Job("find_best", ("nnunetv2_ext", "find_best"), needs=(f"{MODEL}__fold_3", f"{MODEL}__fold_0")))
    write_job(jobs, Job("report", ("nnunetv2_ext", "report"), needs=("find_best",), retries=0))
    return jobs


def test_off_a_terminal_nothing_is_said_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "QUIET_SECONDS", -1.0)
    show = command._Lines()
    for _ in range(3):
        show(rows(DATASET))
    told = capsys.readouterr().out.splitlines()
    assert told.count(f"{MODEL}__fold_2: running, validates") == 1
    assert told.count(f"{MODEL}__fold_1: running, epoch 1 of 2") == 1


def test_each_job_has_its_line(folder: Path) -> None:
    found = rows(DATASET)
    told = lines(found, 200)
    assert told[0] == f"{DATASET}: 2 running, 1 waiting, 1 finished, 1 failed, 2 not to run"
    cells = {tuple(line.split("  ")[0:1]) + tuple(line.split()[1:]) for line in told[1:9]}
    name = MODEL.replace("__", ":")
    assert cells == {
        ("job", "fold", "state", "epoch", "s/epoch", "left", "Dice"),
        (name, "0", "finished", "2/2", "10", "0.600"),
        (name, "1", "running", "1/2", "10", "10", "s", "0.600"),
        (name, "2", "validates", "2/5", "2/2", "10", "0.600"),
        (name, "3", "failed", "137", "0/2"),
        (name, "4", "waiting"),
        ("find_best", "not", "to", "run"),
        ("report", "not", "to", "run"),
    }
    assert told[9:] == [
        f"{MODEL}__fold_3: killed by signal 9 (SIGKILL)",
        f"  log: {folder / f'{MODEL}__fold_3' / 'log.txt'}",
        f"find_best: it needs {MODEL}__fold_3: failed",
        "report: it needs find_best: not to run",
        f"logs: {folder / 'NAME' / 'log.txt'}",
    ]


@pytest.mark.parametrize("width", [200, 80, 60, 40, 30])
def test_a_line_is_as_wide_as_the_terminal_at_the_most(folder: Path, width: int) -> None:
    told = lines(rows(DATASET), width)
    assert max(len(line) for line in told[1:9]) <= width
    assert f"{MODEL}__fold_3: killed by signal 9 (SIGKILL)" in told, "why one is not well is told whole"
    for word in ("fold", "state"):
        assert word in told[1], "what a narrow terminal keeps"
    assert ("Dice" in told[1]) == (width >= 60)


@pytest.mark.parametrize(
    ("models", "width", "told"),
    [
        (["A:P:c", "A:Q:c"], 200, ["A:P:c", "A:Q:c", "predict_A:P:c"]),
        (["LongTrainer:PlansOne:3d_fullres", "LongTrainer:PlansTwo:3d_fullres"], 71, ["LongTrainer:PlansOne"]),
        (["LongTrainer:PlansOne:3d_fullres", "LongTrainer:PlansTwo:3d_fullres"], 70, ["PlansOne", "predict_PlansOne"]),
        (["LongTrainer:Plans:3d_fullres", "OtherTrainer:Plans:3d_fullres"], 70, ["OtherTrainer:Plans"]),
        (["LongTrainer:Plans:3d_fullres", "LongTrainer:Plans:3d_lowres"], 56, ["LongTr…lowres"]),
    ],
)
def test_a_name_without_room_loses_what_all_share(
    engine: FakeEngine, nnunet_folders: Path, models: list[str], width: int, told: list[str]
) -> None:
    results = nnunet_folders / "nnUNet_results" / DATASET
    for model in models:
        name = model.replace(":", "__")
        write_job(results / "jobs", Job(f"{name}__fold_0", ("true",), fold=results / name / "fold_0"))
        write_job(results / "jobs", Job(f"predict_{name}", ("true",)))
        engine.states |= {f"{name}__fold_0": Seen(WAITING), f"predict_{name}": Seen(WAITING)}
    names = [line.split()[0] for line in lines(rows(DATASET), width)[2:-1]]
    assert {*told} <= {*names}


def test_rows_stand_in_the_order_in_which_jobs_run(engine: FakeEngine, nnunet_folders: Path) -> None:
    ordered = ["plan_P", "preprocess_P", "M__P__c__fold_0", "find_best", "predict_best", "evaluate", "report"]
    for name in ordered:
        write_job(nnunet_folders / "nnUNet_results" / DATASET / "jobs", Job(name, ("true",)))
        engine.states[name] = Seen(FINISHED)
    assert [row.job.name for row in rows(DATASET)] == ordered


def test_json_tells_all_that_is_known(folder: Path) -> None:
    objects = {one["name"]: one for one in (row.to_json() for row in rows(DATASET))}
    assert objects[f"{MODEL}__fold_3"] == {
        "dataset": DATASET,
        "name": f"{MODEL}__fold_3",
        "model": MODEL.replace("__", ":"),
        "fold": "3",
        "state": "failed",
        "exit": 137,
        "reason": "killed by signal 9 (SIGKILL)",
        "attempts": 1,
        "retries": 2,
        "epochs_done": 0,
        "epochs": 2,
        "seconds_per_epoch": None,
        "seconds_left": None,
        "pseudo_dice": None,
        "cases_validated": 0,
        "cases": 5,
        "began": 1000.0,
        "ended": 1060.0,
        "engine": "local",
        "id": "7",
        "host": "node",
        "device": None,
        "needs": [],
        "command": ["nnUNetv2_train", "901"],
        "log": str(folder / f"{MODEL}__fold_3" / "log.txt"),
    }
    unknown: dict[str, Any] = objects["find_best"]
    assert {key for key, value in unknown.items() if value is None} == {
        *("model", "fold", "exit", "epochs_done", "epochs", "seconds_per_epoch", "seconds_left", "pseudo_dice"),
        *("cases_validated", "cases", "began", "ended", "id", "host", "device"),
    }
    assert json.loads(json.dumps(objects)) == objects


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ([], 7),
        (["fold_3"], [f"{MODEL}__fold_3"]),
        ([f"{MODEL}__fold_1", "report"], [f"{MODEL}__fold_1", "report"]),
        ([MODEL.replace("__", ":")], 5),
        ([MODEL], 5),
        (["*fold_[01]"], [f"{MODEL}__fold_0", f"{MODEL}__fold_1"]),
        (["report", "report"], ["report"]),
    ],
)
def test_names_of_jobs(folder: Path, patterns: list[str], names: list[str] | int) -> None:
    found = [row.job.name for row in chosen(rows(DATASET), patterns)]
    assert found == names if isinstance(names, list) else len(found) == names


def test_a_name_of_no_job(folder: Path) -> None:
    with pytest.raises(InputError, match="got no job 'fold_7'; expected a name, a model or a fold of MNetTrainer__"):
        chosen(rows(DATASET), ["fold_0", "fold_7"])


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({"a": FINISHED, "b": WAITING}, WAITING),
        ({"a": RUNNING, "b": WAITING}, WAITING),
        ({"a": FAILED, "b": WAITING}, BLOCKED),
        ({"a": CANCELLED, "b": WAITING}, BLOCKED),
        ({"a": TIMED_OUT, "b": WAITING}, BLOCKED),
        ({"a": FAILED, "b": FINISHED}, WAITING),
    ],
)
def test_a_job_is_not_to_run_where_one_that_it_needs_is_not_well(
    engine: FakeEngine, nnunet_folders: Path, states: dict[str, str], expected: str
) -> None:
    """c needs b, which needs a."""
    jobs = nnunet_folders / "nnUNet_results" / DATASET / "jobs"
    engine.states = {name: Seen(state) for name, state in states.items()}
    for name, needs in (("a", ()), ("b", ("a",)), ("c", ("b",))):
        write_job(jobs, Job(name, ("true",), needs))
    found = {row.job.name: row.seen.state for row in rows(DATASET)}
    assert found["c"] == expected
    assert with_jobs() == [DATASET]


def test_the_summary_of_no_jobs(engine: FakeEngine) -> None:
    assert (with_jobs(), rows(DATASET), summary([])) == ([], [], "")
