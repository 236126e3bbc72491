"""`nnunetv2_ext jobs`: the table once, live and as JSON; cancel and retry."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_ext.cli import jobs as command
from nnunetv2_ext.cli import main
from nnunetv2_ext.jobs import queue
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.record import CANCELLED, FAILED, FINISHED, RUNNING, TIMED_OUT, WAITING, Job, Resources, write_job
from tests.jobs.fake import FakeEngine, use

DATASET, OTHER = "Dataset901_Boxes", "Dataset902_Other"
NAMES = [f"M__P__c__fold_{fold}" for fold in range(4)]
STATES = dict(zip(NAMES, (FINISHED, RUNNING, FAILED, TIMED_OUT), strict=True))


@pytest.fixture
def engine(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Four folds, what comes after two of them, and a job of another data set."""
    results = nnunet_folders / "nnUNet_results"
    for name in NAMES:
        write_job(results / DATASET / "jobs", Job(name, ("true",), fold=results / DATASET / "M__P__c" / name[-6:]))
    write_job(results / DATASET / "jobs", Job("find_best", ("true",), (NAMES[0], NAMES[2])))
    write_job(results / DATASET / "jobs", Job("report", ("true",), ("find_best",)))
    write_job(results / OTHER / "jobs", Job("predict", ("true",), resources=Resources(gpus=(9,))))
    engine = use(monkeypatch)
    engine.states = {name: Seen(state) for name, state in STATES.items()} | {"predict": Seen(CANCELLED)}
    return engine


def states(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    main(["jobs", *arguments, "--json"])
    return {one["name"]: one["state"] for one in json.loads(capsys.readouterr().out)}


def test_the_table_once_and_its_exit_status(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs"]) == 1
    told = capsys.readouterr().out
    assert f"{DATASET}: 1 running, 1 finished, 1 failed, 1 timed out, 2 not to run" in told
    assert f"\n\n{OTHER}: 1 cancelled" in told
    assert main(["jobs", "-d", "902"]) == 0, "who cancels knows"
    engine.states = dict.fromkeys(NAMES, Seen(FINISHED))
    assert main(["jobs", "-d", "901", "--once"]) == 0


def test_json_of_all_data_sets(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert states(capsys) == {**STATES, "find_best": "not to run", "report": "not to run", "predict": CANCELLED}
    assert main(["jobs", "-d", "902", "--json"]) == 0
    assert main(["jobs", "-d", "901", "--json"]) == 1


@pytest.mark.parametrize("arguments", [["-d", "903"], ["-d", "x"], ["-d", "901", "--cancel", "fold_9"]])
def test_bad_input(engine: FakeEngine, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["jobs", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nnunetv2_ext jobs: got ")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("nnunet_folders")
@pytest.mark.parametrize(("arguments", "told"), [([], "no jobs of any data set"), (["--json"], "[]")])
def test_no_jobs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    use(monkeypatch)
    assert main(["jobs", *arguments]) == 0
    assert capsys.readouterr().out.startswith(told)


@pytest.mark.parametrize("content", ['{"name": "rep', "[]", '{"name": "report", "command": ["true"]}'])
def test_a_damaged_job_is_one_that_has_failed_and_the_others_go_on(
    engine: FakeEngine, nnunet_folders: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    """Of a kill, or of another version: a record without what this one writes."""
    (nnunet_folders / "nnUNet_results" / DATASET / "jobs" / "find_best" / "job.json").write_text(content)
    assert main(["jobs", "-d", "901"]) == 1
    assert "find_best/job.json" in (told := capsys.readouterr().out) and "report: it needs find_best: failed" in told
    assert main(["jobs", "-d", "901", "--retry"]) == 0
    told = capsys.readouterr().out
    assert "find_best: is failed, and cannot be retried: got " in told
    assert f"{NAMES[2]}: was failed, submitted again" in told
    assert main(["jobs", "-d", "901", "--cancel"]) == 0
    assert f"{NAMES[1]}: was running, is cancelled now" in capsys.readouterr().out


def test_a_damaged_state_stops_no_table(engine: FakeEngine, nnunet_folders: Path) -> None:
    (nnunet_folders / "nnUNet_results" / DATASET / "jobs" / "report" / "state.json").write_text("{")
    assert main(["jobs", "-d", "901"]) == 1


def test_what_goes_to_a_file_is_not_cut(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    cause = f"RuntimeError: {'long ' * 100}end"
    engine.states[NAMES[2]] = Seen(FAILED, 1, cause)
    assert main(["jobs", "-d", "901"]) == 1
    assert f"{NAMES[2]}: {cause}" in capsys.readouterr().out


@pytest.mark.parametrize(("age", "needed", "told"), [(60, True, True), (60, False, False), (1, True, False)])
def test_a_queue_that_was_killed_goes_on_and_one_that_begins_is_left_alone(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, age: float, needed: bool, told: bool
) -> None:
    folder = nnunet_folders / "nnUNet_results" / DATASET / "jobs"
    folder.mkdir(parents=True)
    (folder / "queue.log").touch()
    os.utime(folder / "queue.log", (time.time() - age,) * 2)
    monkeypatch.setattr(queue, "ensure_queue", lambda asked: needed and asked == folder)
    expected = [f"the queue of {DATASET} had ended before its jobs; it goes on"]
    assert command.revive([DATASET]) == expected * told


def test_cancel_of_all_says_what_it_did(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "-d", "901", "--cancel"]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"{NAMES[1]}: was running, is cancelled now",
        "find_best: was not to run, is cancelled now",
        "report: was not to run, is cancelled now",
    ]
    assert states(capsys, "-d", "901")[NAMES[1]] == CANCELLED
    assert main(["jobs", "-d", "901", "--cancel"]) == 0
    assert capsys.readouterr().out == "nothing to cancel\n"
    assert main(["jobs", "--cancel", NAMES[0]]) == 0
    assert capsys.readouterr().out == f"{NAMES[0]}: is finished, nothing to cancel\n"


def test_cancel_of_all_data_sets_at_once_is_refused(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "--cancel"]) == 2
    assert "add -d ID, or names of jobs" in capsys.readouterr().err
    assert engine.states[NAMES[1]] == Seen(RUNNING)


def test_cancel_of_one_leaves_the_others(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.states |= {NAMES[0]: Seen(RUNNING)}
    assert main(["jobs", "-d", "901", "--cancel", "fold_1"]) == 0
    assert capsys.readouterr().out == f"{NAMES[1]}: was running, is cancelled now\n"
    assert states(capsys, "-d", "901")[NAMES[0]] == RUNNING


def test_retry_of_all_takes_what_waits_for_them(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "-d", "901", "--retry"]) == 0
    told = capsys.readouterr().out
    assert {job.name for job in engine.submitted} == {NAMES[2], NAMES[3], "find_best", "report"}
    order = [job.name for job in engine.submitted]
    assert order.index(NAMES[2]) < order.index("find_best") < order.index("report")
    assert f"{NAMES[2]}: was failed, submitted again" in told
    assert "nothing to retry" not in told, "of those that are well nothing is told"
    assert states(capsys, "-d", "901")["report"] == WAITING


def test_retry_of_one(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "-d", "901", "--retry", "fold_3"]) == 0
    assert [job.name for job in engine.submitted] == [NAMES[3]]
    assert main(["jobs", "-d", "901", "--retry", "report"]) == 0
    assert "it cannot run before find_best" in capsys.readouterr().out


def test_retry_where_the_gpu_has_gone(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "-d", "902", "--retry"]) == 2
    assert "--gpus 9" in capsys.readouterr().err
    assert not engine.submitted


def test_the_table_is_drawn_in_place_until_all_have_ended(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "9")

    def sleep(seconds: float) -> None:
        engine.states |= {NAMES[1]: Seen(FINISHED)}

    monkeypatch.setattr(command.time, "sleep", sleep)
    assert main(["jobs", "-d", "901"]) == 1
    first, second = capsys.readouterr().out.split("\x1b[J")[1:]
    assert second.startswith(f"{DATASET}: 2 finished")
    assert first.splitlines()[-1].startswith("\x1b[8A"), "to the first line, as many as the terminal shows"
    drawn = first.splitlines()[:-1]
    assert sum(1 + (len(line) - 1) // 60 for line in drawn) == 8, "a long line takes two"
    assert drawn[-1].startswith("... ")


def test_ctrl_c_ends_the_table_alone(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", sleep)
    assert main(["jobs", "--watch"]) == 130
    assert engine.states[NAMES[1]] == Seen(RUNNING)


@pytest.fixture
def script(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """What the jobs become while a command sleeps, once each; a command that sleeps longer waits for ever."""

    def play(*changes: dict[str, str]) -> None:
        left = iter(changes)

        def sleep(seconds: float) -> None:
            engine.states |= {name: Seen(state, 1) for name, state in next(left).items()}

        monkeypatch.setattr(command.time, "sleep", sleep)

    return play


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((FINISHED, FINISHED), 0),
        ((FINISHED, CANCELLED), 1),
        ((CANCELLED, CANCELLED), 1),
        ((FAILED, FINISHED), 1),
        ((FINISHED, TIMED_OUT), 1),
    ],
)
def test_who_waits_for_jobs_is_content_with_finished_ones_alone(
    engine: FakeEngine, script: Callable[..., None], states: tuple[str, str], expected: int
) -> None:
    engine.states |= dict.fromkeys(NAMES, Seen(RUNNING))
    script({NAMES[0]: states[0]}, {NAMES[1]: states[1]})  # and not for the third
    assert command.watch([DATASET], NAMES[:2]) == expected


def test_a_job_that_has_gone_has_not_finished(engine: FakeEngine) -> None:
    assert command.watch([DATASET], [NAMES[0], "gone"]) == 1


def test_without_a_terminal_a_line_tells_what_begins_and_ends(
    engine: FakeEngine, script: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine.states |= {NAMES[2]: Seen(WAITING), NAMES[3]: Seen(WAITING)}
    script({NAMES[1]: FINISHED}, {NAMES[2]: RUNNING}, {}, {NAMES[2]: FAILED}, {NAMES[3]: FINISHED})
    assert main(["jobs", "-d", "901", "--watch"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  log: ")]
    assert lines == [
        f"{NAMES[1]}: running",
        f"{NAMES[1]}: finished",
        f"{NAMES[2]}: running",
        f"{NAMES[2]}: failed: ",
        f"{NAMES[3]}: finished",
        "2 jobs (find_best, report) cannot run after that",
    ]


def test_who_waits_revives_a_queue_that_was_killed(
    engine: FakeEngine, script: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[list[str]] = []

    def revive(datasets: list[str]) -> list[str]:
        looks.append(datasets)
        return ["it goes on"]

    monkeypatch.setattr(command, "revive", revive)
    script({}, {NAMES[1]: FINISHED})
    assert command.watch([DATASET], [NAMES[1]]) == 0
    assert looks == [[DATASET]] * 3
    assert "it goes on" in capsys.readouterr().err
