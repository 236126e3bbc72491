"""`nnunetv2_ext run`: what is submitted at which step, what is done already, and bad input, which changes nothing."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nnunetv2_ext.cli import jobs, main, run, train
from nnunetv2_ext.jobs import whole_run
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.graph import Request
from nnunetv2_ext.jobs.record import FAILED, FINISHED, RUNNING, Attempt, Job, State, jobs_folder, write_state
from nnunetv2_ext.jobs.whole_run import to_submit
from tests.doctor.conftest import DATASET, Prepared, prepare
from tests.jobs.fake import FakeEngine, use

OURS, STOCK = "MNetTrainer:MNetPlans:3d_fullres", "BackboneTrainer:nnUNetPlans:3d_fullres"
TRAINED = ["BackboneTrainer__nnUNetPlans__3d_fullres", "MNetTrainer__MNetPlans__3d_fullres"]
QUICK = ("MNetQuickPlans", "BackboneQuickPlans")


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setattr(train, "gpus_visible", list)
    monkeypatch.setattr(train, "has_mps", lambda: False)
    monkeypatch.chdir(tmp_path)
    return prepare(tmp_path, monkeypatch)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Jobs finish as soon as they are waited for, and leave what they are to write, but for plans."""
    fake = use(monkeypatch)

    def finish(datasets: Sequence[str], names: Sequence[str]) -> int:
        for name in names:
            fake.states[name] = Seen(FINISHED)
        for job in fake.submitted:
            if "-o" in job.command and job.name != "submit_trainings":
                place = Path(job.command[job.command.index("-o") + 1])
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
        return 0

    monkeypatch.setattr(jobs, "watch", finish)
    monkeypatch.setattr(run, "tell_results", lambda way: None)
    monkeypatch.setattr(run, "_check_raw", lambda way: None)  # the raw data set of this test has no images
    return fake


def names(jobs: Sequence[Job]) -> list[str]:
    return [job.name for job in jobs]


def test_plans_are_jobs_first(prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    # the engine of this test plans nothing, so that trainings are refused
    assert main(["run", "-d", "901", "--epochs", "7"]) == 2
    assert "no plans file" in (refused := capsys.readouterr().err) and "MNetQuickPlans" in refused
    assert names(engine.submitted) == [*(f"plan_{name}" for name in QUICK), "submit_trainings"]
    first, second, rest = engine.submitted
    assert " ".join(first.command) == (
        "nnunetv2_ext plan_and_preprocess -d Dataset901_Boxes -pl MNetPlanner --no_pbar -c 3d_fullres"
        " -overwrite_plans_name MNetQuickPlans --preset short --epochs 7 --iterations 50 --val-iterations 3"
    )
    assert second.command[5] == "BackbonePlanner" and second.needs == ("plan_MNetQuickPlans",)
    # which needs no terminal, and asks for the same
    assert rest.needs == (first.name, second.name)
    output, models = Path("Dataset901_Boxes_quick").resolve(), " ".join(whole_run.PRESETS["quick"].models)
    assert " ".join(rest.command) == (
        f"nnunetv2_ext run -d Dataset901_Boxes --preset quick --no-wait -o {output} -m {models} -f 0 1"
        " --retries 2 -device cpu --epochs 7 --iterations 50 --jobs 1"
    )
    # of a run that was refused nothing stays, which another one would have to repeat
    assert not output.exists()


def test_plans_of_a_detector(prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-d", "901", "--preset", "full", "-m", "DetectorTrainer:DetectorPlans:3d_roi"]) == 2
    assert " ".join(engine.submitted[0].command[4:]) == "-pl ROIPlanner --no_pbar -c 3d_roi --network detector"


def test_the_steps_after_trainings(prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "-d", "901", "--preset", "full", "-m", OURS, STOCK, "-f", "0", "1", "-o", "out", "--jobs", "2"]
    (prepared.raw / "imagesTs").mkdir()
    assert main(command) == 0
    assert "no images" in capsys.readouterr().out
    steps = ["find_best", "evaluate", "report"]
    assert names(engine.submitted) == [f"{model}__fold_{n}" for model in reversed(TRAINED) for n in (0, 1)] + steps
    assert {job.resources.jobs for job in engine.submitted} == {2}
    by_name = {job.name: job for job in engine.submitted}
    assert by_name["evaluate"].command[2:8] == ("-d", "Dataset901_Boxes", "-m", OURS, STOCK, "-f")

    # with images, in another folder: what was trained (the files of this test say that it was not) and predicted
    images = prepared.raw / "imagesTs"
    (images / "new_0000.nii.gz").touch()
    (images.with_name("labelsTs")).mkdir()
    (images.with_name("labelsTs") / "new.nii.gz").touch()
    engine.submitted.clear()
    assert main([*command[:-4], "-o", "other", "--jobs", "2"]) == 0
    predicted = [f"predict_{model}" for model in reversed(TRAINED)]
    assert names(engine.submitted)[4:] == ["find_best", *predicted, "predict_ensemble", "evaluate", "report"]
    by_name = {job.name: job for job in engine.submitted}
    assert set(by_name["evaluate"].needs) == {*predicted, "predict_ensemble"}


@pytest.mark.parametrize("failing", [(), ("audit",), ("evaluate",)])
def test_a_failed_audit_stops_nothing(
    prepared: Prepared,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing: tuple[str, ...],
) -> None:
    monkeypatch.setattr("nnunetv2_ext.jobs.checks.Trainable.validated_together", lambda one, folds: 10)

    def watch(datasets: Sequence[str], names: Sequence[str]) -> int:
        engine.states |= {name: Seen(FAILED if name in failing else FINISHED) for name in names}
        return int(bool(failing))

    monkeypatch.setattr(jobs, "watch", watch)
    status = main(["run", "-d", "901", "--preset", "full", "-m", OURS, "-f", "0", "-o", "out"])
    assert [job.name for job in engine.submitted][-1] == "audit"
    assert status == ("evaluate" in failing)
    told = capsys.readouterr().out
    assert ("The audit of the labels has not finished" in told) == (failing == ("audit",))


def test_the_best_of_three_is_looked_up(prepared: Prepared, engine: FakeEngine) -> None:
    (prepared.raw / "imagesTs").mkdir()
    (prepared.raw / "imagesTs" / "new_0000.nii.gz").touch()
    models = [OURS, STOCK, "MNetTrainer:nnUNetPlans:3d_fullres"]
    assert main(["run", "-d", "901", "--preset", "full", "-m", *models, "-f", "0", "-o", "out"]) == 0
    (best,) = [job for job in engine.submitted if job.name == "predict_best"]
    file = str(Path("out/best.json").resolve())
    assert best.needs == ("find_best",) and best.command[2:4] == ("-m", file)
    (search,) = [job for job in engine.submitted if job.name == "find_best"]
    assert file in search.command


def folder(*files: str) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text("{}")

    return make


@pytest.mark.parametrize(
    ("flags", "told", "before"),
    [
        ("--preset fast", "--preset fast; expected one of quick, full", None),
        ("--preset full -m MNetTrainer:BarPlans:3d_fullres", "plans BarPlans, whose planner is not known", None),
        ("--preset full -m MNetTrainer:MNetPlans", "TRAINER:PLANS:CONFIG", None),
        ("-f one", "-f one; expected numbers of folds", None),
        ("--epochs 0", "--epochs 0; expected a number from 1", None),
        ("--iterations few", "--iterations few; expected a whole number", None),
        ("-i nowhere", "-i nowhere; expected a folder of images", None),
        ("-r somewhere", "-r somewhere without images", None),
        ("-o out", "-o {root}/out, a file", folder("out")),
        ("-o out", "out, in which no run has begun (it lacks run.json)", folder("out/notes.txt")),
        ("--gpus 9", "--gpus 9", None),
        ("-m nnUNetTrainer:nnUNetPlans:3d_fullres", "for nnUNetTrainer, which trains as long as nnU-Net's do", None),
        ("-m MNetTrainer:nnUNetTrialPlans:3d_fullres", "nnUNetTrialPlans, whose planner is nnU-Net's", None),
        (f"-m {OURS}", "MNetPlans.json, which says --epochs", None),
        ("-m MNetTranier:MNetPlans:3d_fullres", "no trainer MNetTranier; expected", None),
        ("-m PaRTrainer:PaRPlans:3d_fullres", "PaRPlans.json, which says --epochs as published", None),
    ],
)
def test_refused(
    prepared: Prepared,
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    told: str,
    before: Callable[[Path], object] | None,
) -> None:
    if before is not None:
        before(Path())
    assert main(["run", "-d", "901", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert told.format(root=Path().resolve()) in error and error.count("\n") == 1
    assert not engine.submitted
    assert not Path("Dataset901_Boxes_quick").exists()


@pytest.mark.parametrize(
    ("flags", "instead"),
    [
        (f"-m {OURS}", "MNetTrainer:MNetQuickPlans:3d_fullres"),
        ("-m PaRTrainer:PaRSwinUNETRPlans:3d_fullres", "PaRTrainer:PaRSwinUNETRQuickPlans:3d_fullres"),
        ("-m MNetTrainer:MNetTrialPlans:3d_fullres --epochs 7", None),
        (
            f"-m {OURS} nnUNetTrainer:nnUNetPlans:2d MNetTrainer:MNetTrialPlans:3d_fullres",
            "MNetTrainer:MNetQuickPlans:3d_fullres BackboneTrainer:BackboneQuickPlans:3d_fullres"
            " MNetTrainer:MNetTrialPlans:3d_fullres",
        ),
        (
            "--preset full --epochs 2",
            "MNetTrainer:MNetQuickPlans:3d_fullres BackboneTrainer:BackboneQuickPlans:3d_fullres",
        ),
    ],
)
def test_a_length_that_is_not_kept_is_refused_once_for_all_models(
    prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str], flags: str, instead: str | None
) -> None:
    command = ["run", "-d", "901", *flags.split(), "-o", "out"]
    if instead is not None:
        assert main(command) == 2
        assert f"; add -m {instead}" in capsys.readouterr().err
        assert not engine.submitted
        command += ["-m", *instead.split()]
    assert main(command) == 2  # planned, as far as this test's engine does
    assert "no plans file" in capsys.readouterr().err and engine.submitted


def test_a_trial_does_not_stand_in_the_way(
    prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """One refusal for both models, and what it says works, though the trial took the output, too."""
    plans = json.loads((prepared.preprocessed / "MNetPlans.json").read_text())
    for name in QUICK:
        (prepared.preprocessed / f"{name}.json").write_text(json.dumps(plans | {"plans_name": name}))
    folder("Dataset901_Boxes_quick/run.json")(Path())
    assert main(["run", "-d", "901"]) == 2
    told = capsys.readouterr().err
    assert all(f"{name}.json, which says --epochs" in told for name in QUICK)
    words = told.partition("; add ")[2].strip().rstrip(".").split()
    assert words == [
        *("-m", "MNetTrainer:MNetQuick2Plans:3d_fullres", "BackboneTrainer:BackboneQuick2Plans:3d_fullres"),
        *("-o", str(Path("Dataset901_Boxes_quick_2").resolve())),
    ]
    assert main(["run", "-d", "901", *words]) == 2
    assert [job.name for job in engine.submitted[:2]] == ["plan_MNetQuick2Plans", "plan_BackboneQuick2Plans"]


def test_what_is_told_before(prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    file = prepared.preprocessed / "MNetPlans.json"
    schedule = "schedule -d 901 -p MNetPlans -c 3d_fullres --epochs 20 --iterations 50"
    assert main(schedule.split()) == 0
    capsys.readouterr()
    stock = "nnUNetTrainer:nnUNetPlans:3d_fullres"
    assert main(["run", "-d", "901", "--preset", "full", "-m", OURS, stock, "-f", "0", "--no-wait", "-o", "out"]) == 0
    told = capsys.readouterr().out
    assert "Dataset901_Boxes, 2 trainings of fold 0 on the CPU, 1 at a time:" in told
    assert f"{OURS}: 20 epochs of 50 iterations, as {file.name} says, not as published" in told
    assert "-m MNetTrainer:MNet2Plans:3d_fullres makes new plans for that" in told
    assert f"{stock}: as long as nnU-Net's trainers do" in told
    assert f"then find_best, evaluate, report and audit, into {Path('out').resolve()}" in told
    assert {seen.state for seen in engine.states.values()} == {"waiting"}


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit(143)])
@pytest.mark.parametrize(
    ("under_way", "told"),
    [
        ((), "No job is under way; this command again goes on"),
        (("plan_MNetPlans",), "the trainings are not submitted yet: run this command again"),
        (("plan_MNetPlans", "submit_trainings"), "this command again waits for them"),
    ],
)
def test_the_end_of_the_waiting(
    prepared: Prepared,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ending: BaseException,
    under_way: Sequence[str],
    told: str,
) -> None:
    def end(*_: object, **__: object) -> int:
        engine.submit(jobs_folder(DATASET), [Job(name, ("true",)) for name in under_way])
        raise ending

    monkeypatch.setattr(run, "go", end)
    if ending is KeyboardInterrupt:
        assert main(["run", "-d", "901"]) == 130
    else:
        with pytest.raises(SystemExit):
            main(["run", "-d", "901"])
    assert told in capsys.readouterr().out


def test_raw_data_that_cannot_be_planned(prepared: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    assert main(["run", "-d", "901"]) == 2
    assert "imagesTr" in capsys.readouterr().err
    (prepared.raw / "dataset.json").unlink()
    assert main(["run", "-d", "901"]) == 2
    assert "dataset.json" in capsys.readouterr().err
    assert {*Path().rglob("*")} < {*before}


@pytest.mark.parametrize("command", [["run"], ["train", "-m", OURS]])
def test_no_nnunet(
    prepared: Prepared,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    monkeypatch.setattr(sys, "executable", str(Path("bin/python").resolve()))
    monkeypatch.setenv("PATH", str(Path("bin").resolve()))
    assert main([*command, "-d", "901"]) == 2
    assert "no command nnUNetv2_train" in capsys.readouterr().err and not engine.submitted


def test_no_data_set(prepared: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-d", "77"]) == 2
    assert "no data set 77" in capsys.readouterr().err


FULL = ["run", "-d", "901", "--preset", "full", "-m", OURS, "-f", "0", "-o", "out"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["-f", "0", "1"], "-f 0 1, which was 0, in"),
        (["-m", STOCK], f"-m {STOCK}, which was {OURS}, in"),
    ],
)
def test_a_run_with_other_settings(
    prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str], change: list[str], told: str
) -> None:
    assert main(FULL) == 0
    submitted = names(engine.submitted)
    assert main([*FULL, *change]) == 2
    error = capsys.readouterr().err
    assert told in error and "run.json" in error and "choose another -o" in error
    assert names(engine.submitted) == submitted
    assert main(FULL) == 0


def test_what_was_removed_is_made_again_with_what_needs_it(prepared: Prepared, engine: FakeEngine) -> None:
    assert main(FULL) == 0
    known = {job.name: job for job in engine.submitted[1:]}  # but for the training, which no file of this test tells of
    wanted, seen = Request(tuple(known.values())), dict.fromkeys(known, Seen(FINISHED))
    assert [*known] == ["find_best", "evaluate", "report"]
    assert not to_submit(wanted, known, seen, DATASET)
    Path("out/evaluation").unlink()
    assert names(to_submit(wanted, known, seen, DATASET)) == ["evaluate", "report"]
    Path("out/evaluation").touch()
    assert names(to_submit(wanted, known, seen | {"evaluate": Seen(FAILED)}, DATASET)) == ["evaluate", "report"]
    # a fold was trained again since, or is now
    for state, attempt in ((FINISHED, Attempt(1, 2)), (RUNNING, Attempt(1))):
        name = f"{TRAINED[1]}__fold_0"
        write_state(jobs_folder(DATASET), name, State(state, (attempt,)))
        again = to_submit(wanted, known, seen | {name: Seen(state)}, DATASET)
        assert names(again) == ["find_best", "evaluate", "report"]


@pytest.mark.parametrize(
    ("file", "again"),
    [
        (None, []),
        ("imagesTs/another_0000.nii.gz", ["predict", "evaluate", "report"]),
        ("imagesTs/new_0000.nii.gz", ["predict", "evaluate", "report"]),
        ("labelsTs/new.nii.gz", ["evaluate", "report"]),
        ("FOLD/checkpoint_final.pth", ["predict", "evaluate", "report"]),
        ("FOLD/validation/summary.json", ["find_best"]),
    ],
)
def test_what_was_made_of_older_files_is_made_again(
    prepared: Prepared, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, file: str | None, again: list[str]
) -> None:
    for place in ("imagesTs/new_0000.nii.gz", "labelsTs/new.nii.gz"):
        prepared.write(prepared.raw / place, b"")
    # that nothing is trained is for the training's own tests; here it is done
    monkeypatch.setattr(whole_run, "trainings", lambda *_: Request(()))
    assert main(FULL) == 0
    assert names(engine.submitted) == ["find_best", f"predict_{TRAINED[1]}", "evaluate", "report"]
    ended = time.time() + 60  # far from the clock of the file system
    for number, job in enumerate(engine.submitted):
        state = State(FINISHED, (Attempt(ended + number, ended + number + 1),))
        write_state(jobs_folder(DATASET), job.name, state)
    engine.submitted.clear()
    if file is not None:
        changed = prepared.raw / file
        if file.startswith("FOLD"):
            changed = prepared.results / TRAINED[1] / "fold_0" / file.removeprefix("FOLD/")
        prepared.write(changed, b"new")
        os.utime(changed, (ended + 60,) * 2)
    assert main(FULL) == 0
    assert [name.partition("_M")[0] for name in names(engine.submitted)] == again


def test_jobs_of_another_request_under_way(
    prepared: Prepared, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(FULL) == 0
    engine.states["report"] = Seen(RUNNING)
    assert main([*FULL[:-1], "other"]) == 2
    assert "a job report that is running for another request" in (told := capsys.readouterr().err)
    assert "nnunetv2_ext jobs -d Dataset901_Boxes --cancel report" in told


def test_plans_that_are_there_are_taken(prepared: Prepared, engine: FakeEngine) -> None:
    """Made by a job that has finished, and given another length since; one that has not finished makes them anew."""
    quick = ["run", "-d", "901", "-m", OURS.replace("MNetPlans", "MNetQuickPlans"), "--epochs", "7", "-o", "out"]
    assert main(quick) == 2  # planned, as far as this test's engine does
    plans = prepared.preprocessed / "MNetPlans.json"
    text = plans.read_text().replace('"MNetPlans"', '"MNetQuickPlans"')
    plans.with_name("MNetQuickPlans.json").write_text(text)
    length = "--epochs 7 --iterations 50 --val-iterations 3"
    assert main(f"schedule -d 901 -p MNetQuickPlans -c 3d_fullres {length}".split()) == 0
    engine.submitted.clear()
    assert main(quick) == 0
    assert names(engine.submitted)[0] == "MNetTrainer__MNetQuickPlans__3d_fullres__fold_0"
    engine.states["plan_MNetQuickPlans"] = Seen(FAILED)
    engine.submitted.clear()
    assert main(quick) == 0
    assert names(engine.submitted)[0] == "plan_MNetQuickPlans"
