import json
import os
import re
from argparse import Namespace

import pytest

from nnunetv2_ext.cli import demo, main
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.scores import read_scores


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


def settings(**given) -> Namespace:
    return Namespace(**{"overwrite": False, "epochs": 1} | given)


@pytest.mark.parametrize(
    ("content", "overwrite", "message"),
    [
        (["file"], False, "not empty"),
        ([demo.SETTINGS], False, "not empty"),
        # Somebody's own nnU-Net folders.
        (["nnUNet_raw"], True, "no demo made"),
    ],
)
def test_folder_in_use_stays_as_it_is(tmp_path, content, overwrite, message):
    for name in content:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        demo._make_folder(tmp_path, settings(overwrite=overwrite))
    assert sorted(path.name for path in tmp_path.iterdir()) == content


def test_overwrite_replaces_an_earlier_demo(tmp_path):
    demo._make_folder(tmp_path / "demo", settings(epochs=3))
    (tmp_path / "demo" / "old").touch()
    demo._make_folder(tmp_path / "demo", settings(overwrite=True))
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [demo.SETTINGS]
    assert json.loads((tmp_path / "demo" / demo.SETTINGS).read_text(encoding="utf-8"))["epochs"] == "1"


def test_output_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file"):
        demo._make_folder(tmp_path / "file", settings())
    with pytest.raises(InputError, match="can be written"):
        demo._make_folder(tmp_path / "file" / "demo", settings())


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"nnUNet_n_proc_DA": "3"}, "3")])
def test_environment(tmp_path, monkeypatch, given, expected):
    environment = dict(given)
    monkeypatch.setattr(os, "environ", environment)
    demo._set_environment(tmp_path, "cpu")
    assert environment["nnUNet_n_proc_DA"] == expected
    assert environment["nnUNet_results"] == str(tmp_path / "nnUNet_results")
    assert (tmp_path / "nnUNet_results").is_dir()
    assert "discovery" in environment["nnUNet_extTrainer"]


WITH_NARROW_NETWORKS = """
import json, os, sys
from pathlib import Path
from nnunetv2_ext.cli import demo, main

def plan_narrow():
    plan_and_preprocess()
    for path in Path(os.environ["nnUNet_preprocessed"]).glob("*/*Plans.json"):
        plans = json.loads(path.read_text(encoding="utf-8"))
        arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        arguments["features_per_stage"] = [width // 8 for width in arguments["features_per_stage"]]
        path.write_text(json.dumps(plans))

plan_and_preprocess, demo._plan_and_preprocess = demo._plan_and_preprocess, plan_narrow
sys.exit(main())
"""


@pytest.mark.pipeline
def test_all_steps_with_two_iterations(tmp_path, warm):
    sizes = ["--epochs", "1", "--iterations", "2", "--training-cases", "5", "--unseen-cases", "2"]
    script = tmp_path / "demo.py"
    script.write_text(WITH_NARROW_NETWORKS)
    words = ["python", str(script), "demo", "--output", str(tmp_path / "demo"), *sizes]
    command = warm.start(words, environment=warm.environment, folder=tmp_path)
    output, _ = command.communicate(timeout=600)
    assert command.wait() == 0, output
    assert "[9/9] write the report: done" in output
    report = tmp_path / "demo" / "report"
    scores = read_scores(report)
    assert scores.models == (
        "MNet, fold 0",
        "MNet, fold 1",
        "MNet, ensemble of 2",
        "nnU-Net, fold 0",
        "nnU-Net, fold 1",
        "nnU-Net, ensemble of 2",
    )
    assert scores.labels == ("liver", "kidney", "lesion")
    assert len(scores.cases) == 2
    assert (report / "cases.png").stat().st_size > 10_000
    table = (report / "table.md").read_text(encoding="utf-8")
    baseline = re.search(
        r"Threshold per label: mean Dice (0\.\d+) \(liver 0\.\d+, kidney 0\.\d+, lesion 0\.\d+\)", table
    )
    assert baseline is not None
    assert float(baseline[1]) <= 0.6
    for told in (baseline[0], demo.MEANING, demo.CAVEAT, "| mean of labels |"):
        assert told in output
        assert told in table
    page = report / "report.html"
    assert f"python -m webbrowser {page.as_uri()}" in output
    text = page.read_text(encoding="utf-8")
    for told in ("MNet, ensemble of 2", demo.CAVEAT, baseline[0]):
        assert told in text
    # whatever the trainings in this process have made of matplotlib's fonts
    assert set(re.findall(r"font-size: (\d+)px", text)) == {"8", "9"}
    assert "refuse" not in (tmp_path / "demo" / demo.SETTINGS).read_text(encoding="utf-8")
    assert page.stat().st_size < 8e6
