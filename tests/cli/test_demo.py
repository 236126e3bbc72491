"""`nnunetv2_ext demo`: its folder, its environment, what it draws and tells; the way itself is that of `run`."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from nnunetv2_ext.cli import demo, main
from nnunetv2_ext.evaluation.scores import read_scores
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.record import RUNNING, Job, write_job
from tests.jobs.fake import FakeEngine, use

SIZES = ["--training-cases", "5", "--unseen-cases", "2"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the demo sets stays in this test."""
    monkeypatch.setattr(os, "environ", {**os.environ})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs 0"),
        (["--iterations", "-3"], "--iterations -3"),
        (["--training-cases", "4"], "--training-cases 4"),
        (["--unseen-cases", "0"], "--unseen-cases 0"),
        (["--seed", "-1"], "--seed -1; expected a number from 0 to"),
        (["--seed", str(2**32)], f"--seed {2**32}"),
        (["--epochs", "99999999"], "--epochs 99999999; expected a number from 1 to 10000"),
        (["--training-cases", "99999999"], "--training-cases 99999999; expected a number from 5 to 1000"),
    ],
)
def test_bad_numbers(tmp_path, capsys, arguments, message):
    assert main(["demo", "--output", str(tmp_path / "demo"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("content", "overwrite", "message"),
    [
        (["file"], False, "not empty"),
        ([demo.SETTINGS], False, "not empty"),
        # Somebody's own nnU-Net folders.
        (["nnUNet_raw"], True, "no demo made"),
    ],
)
def test_folder_in_use_stays_as_it_is(tmp_path, capsys, content, overwrite, message):
    for name in content:
        (tmp_path / name).touch()
    assert main(["demo", "--output", str(tmp_path), *["--overwrite"] * overwrite]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == content


def test_output_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "--output", str(tmp_path / "file")]) == 2
    assert "a file" in capsys.readouterr().err
    assert main(["demo", "--output", str(tmp_path / "file" / "demo")]) == 2
    assert "can be written" in capsys.readouterr().err


def test_jobs_that_a_killed_demo_left(tmp_path, monkeypatch, capsys):
    engine: FakeEngine = use(monkeypatch)
    results = tmp_path / "nnUNet_results"
    write_job(results / demo.DATASET / "jobs", Job("evaluate", ("true",)))
    engine.states["evaluate"] = Seen(RUNNING)
    (tmp_path / demo.SETTINGS).touch()
    assert main(["demo", "--output", str(tmp_path), "--overwrite"]) == 2
    told = capsys.readouterr().err
    assert "a demo whose jobs run (evaluate)" in told
    assert f"nnUNet_results={results} nnunetv2_ext jobs -d 999 --cancel" in told
    assert (results / demo.DATASET / "jobs" / "evaluate" / "job.json").is_file()


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit(143)])
def test_jobs_end_with_the_demo(tmp_path, monkeypatch, capsys, ending):
    engine = use(monkeypatch)

    def submit_and_end(way, how):
        engine.submit(demo_jobs(tmp_path), [Job("report", ("true",))])
        raise ending

    monkeypatch.setattr(demo, "go", submit_and_end)
    monkeypatch.setattr(demo, "_draw", lambda raw, args: None)
    monkeypatch.setattr(demo, "_baseline", lambda raw: {"liver": 0.5})
    if ending is KeyboardInterrupt:
        assert main(["demo", "--output", str(tmp_path / "demo"), *SIZES]) == 130
    else:
        with pytest.raises(SystemExit):
            main(["demo", "--output", str(tmp_path / "demo"), *SIZES])
    assert engine.states["report"].state == "cancelled"
    assert "--overwrite begins anew" in capsys.readouterr().out


def test_what_is_told_where_the_demo_does_not_come_to_its_end(tmp_path, monkeypatch, capsys):
    use(monkeypatch)
    monkeypatch.setattr(demo, "go", lambda way, how: 1)
    monkeypatch.setattr(demo, "_draw", lambda raw, args: None)
    monkeypatch.setattr(demo, "_baseline", lambda raw: {"liver": 0.5})
    command = ["demo", "--output", str(tmp_path / "demo")]
    assert main(command) == 1
    assert "--overwrite begins anew" in capsys.readouterr().out

    def interrupt(raw, args):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_draw", interrupt)
    assert main([*command, "--overwrite"]) == 130
    assert "--overwrite begins anew" in capsys.readouterr().out


def demo_jobs(root: Path) -> Path:
    return root / "demo" / "nnUNet_results" / demo.DATASET / "jobs"


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"nnUNet_n_proc_DA": "3"}, "3")])
def test_environment(tmp_path, monkeypatch, given, expected):
    environment = dict(given)
    monkeypatch.setattr(os, "environ", environment)
    demo._set_environment(tmp_path, "cpu")
    assert environment["nnUNet_n_proc_DA"] == expected
    assert environment["nnUNet_results"] == str(tmp_path / "nnUNet_results")
    assert "discovery" in environment["nnUNet_extTrainer"]


def test_what_is_left_and_told_at_the_end(tmp_path, monkeypatch, capsys):
    """With the labels themselves for predictions; nothing is trained."""
    (tmp_path / "demo").mkdir()
    for name in (demo.SETTINGS, "old"):
        (tmp_path / "demo" / name).touch()

    noted = []

    def predict_and_evaluate(way, how):
        assert {model.plans for model in way.models} == {"MNetQuickPlans", "BackboneQuickPlans"}
        assert how.resources.jobs == 2 and how.device == "cpu" and way.epochs == 3
        labels = way.images.parent / "labelsTs"
        titled = {model.folder_name: title for model, title in way.wishes.titles.items()}
        for name in titled:
            shutil.copytree(labels, way.output / "predictions" / name)
        folders = [str(way.output / "predictions" / name) for name in titled]
        command = ["evaluate", "-r", str(labels), "-p", *folders, "--names", *titled.values()]
        assert main([*command, "-o", str(way.output / "evaluation"), "-np", "1", "--disable_progress_bar"]) == 0
        noted.append(way.wishes.note)
        return 0

    monkeypatch.setattr(demo, "go", predict_and_evaluate)
    assert main(["demo", "--output", str(tmp_path / "demo"), "--overwrite", "--epochs", "3", *SIZES]) == 0
    output = capsys.readouterr().out
    assert not (tmp_path / "demo" / "old").exists()
    assert json.loads((tmp_path / "demo" / demo.SETTINGS).read_text(encoding="utf-8"))["epochs"] == "3"
    report = tmp_path / "demo" / "report"
    scores = read_scores(report / "evaluation")
    assert scores.models == ("MNet", "nnU-Net")
    assert scores.labels == ("liver", "kidney", "lesion") and len(scores.cases) == 2
    assert (report / "cases.png").stat().st_size > 10_000
    table = (report / "table.md").read_text(encoding="utf-8")
    baseline = re.search(
        r"Threshold per label: mean Dice (0\.\d+) \(liver 0\.\d+, kidney 0\.\d+, lesion 0\.\d+\)", table
    )
    assert baseline is not None
    assert float(baseline[1]) <= 0.6
    (row,) = [line.split() for line in table.splitlines() if "Threshold per label | mean of labels" in line]
    assert baseline[1] in row, "beside what is to beat it"
    for told in (baseline[0], demo.MEANING, demo.CAVEAT, "| mean of labels |"):
        assert told in output
        assert told in table
    assert f"python -m webbrowser {(report / 'report.html').as_uri()}" in output
    assert demo.CAVEAT in noted[0] and baseline[0] in noted[0], "on the page, too"
