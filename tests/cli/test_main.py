"""`nnunetv2_ext` itself: the order of commands, and what becomes of a command or a flag that is none."""

import argparse
import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.cli import COMMANDS, main
from nnunetv2_ext.cli.options import Help, meaning_and_default


def test_help_tells_every_command_and_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert re.search(rf"^    {name}\s+{summary.split()[0]}", printed, re.MULTILINE)
    order = [
        "nnunetv2_ext env",
        "nnunetv2_ext doctor ",
        "plan_and_preprocess -d 42",
        "doctor -d 42",
        "nnunetv2_ext train -d 42",
        "nnunetv2_ext jobs -d 42",
        "find_best -d 42",
        "nnunetv2_ext predict -d 42",
    ]
    places = [printed.index(command) for command in order]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("plan_experiment", "other commands are nnU-Net's: run nnUNetv2_plan_experiment."),
        ("evaluate_folder", "are nnU-Net's: run nnUNetv2_evaluate_folder."),
        ("plan", "expected one of env, doctor, list, plan_and_preprocess"),
    ],
)
def test_a_command_that_is_not_ours(command: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "42", "3d_fullres", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nnunetv2_ext: got the command '{command}'; expected one of ")
    assert told in error


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "required: COMMAND" in capsys.readouterr().err


def test_an_unknown_flag_is_told_by_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["schedule", "-d", "42", "--batches", "4"])
    error = capsys.readouterr().err
    assert error.startswith("usage: nnunetv2_ext schedule")
    assert "nnunetv2_ext schedule: error: unrecognized arguments: --batches 4" in error


@pytest.mark.parametrize("flags", [["--val_iterations", "5"], ["--val_iterations=5"], ["--val-iterations", "5"]])
def test_underscores_and_dashes_of_flags_are_one(
    flags: list[str], nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", "-d", "42", "-p", "MNetPlans", *flags]) == 2
    assert "got no data set 42" in capsys.readouterr().err


PATHS = [
    (command, flag)
    for command, flags in {
        "evaluate": ("-r", "-p", "-o", "-djfile"),
        "compare": ("SCORES", "-o"),
        "look": ("-i", "-p", "-r", "-o", "-djfile"),
        "report": ("EVALUATION", "-o", "-i"),
        "predict": ("-i", "-o", "-prev_stage_predictions"),
    }.items()
    for flag in flags
]


@pytest.mark.parametrize(("command", "flag"), PATHS)
@pytest.mark.parametrize(
    ("path", "told"), [("", "an empty {}; expected a path"), ("x" * 300, "{} xxx"), ("loop", "{} loop (")]
)
def test_a_path_that_names_nothing(
    command: str, flag: str, path: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    required = {"evaluate": ["-o"], "look": ["-i", "-p", "-o"], "report": ["EVALUATION", "-o"], "compare": ["SCORES"]}
    given = dict.fromkeys(required.get(command, ["-i", "-o"]), "there") | {flag: path}
    flags = [text for name, value in given.items() for text in ([name] * name.startswith("-") + [value])]
    assert main([command, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nnunetv2_ext {command}: got {told.format(flag)}"), error
    assert error.count("\n") == 1 and len(error) < 400
    assert [entry.name for entry in tmp_path.iterdir()] == ["loop"]


@pytest.mark.parametrize("arguments", [["predict", "-i", ".", "-o", "out", "-m"], ["evaluate", "-o", "out", "-d"]])
def test_a_name_that_is_too_long(arguments: list[str], nnunet_folders: Path, capsys: Any) -> None:
    flags = ["-m", "a:b:c"] * (arguments[0] == "evaluate")
    assert main([*arguments, "x" * 300, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nnunetv2_ext {arguments[0]}: got ") and error.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_tells_its_meaning_and_default(command: str) -> None:
    parser = argparse.ArgumentParser(formatter_class=Help)
    importlib.import_module(f"nnunetv2_ext.cli.{command}").add_arguments(parser)
    for action in parser._actions:
        if action.dest != "help":
            assert all(meaning_and_default(action)), action.option_strings
    told = re.sub(r"\s+", " ", parser.format_help())
    flags = len(parser._actions) - 1
    assert told.count("(default: ") + told.count("(required)") == flags


@pytest.mark.parametrize("command", COMMANDS)
def test_our_flags_have_dashes(command: str) -> None:
    """nnU-Net's own are spelled as nnU-Net spells them."""
    nnunets = {"--verify_dataset_integrity", "--no_pp", "--no_pbar", "--disable_ensembling", "--no_overwrite"}
    nnunets |= {"--save_probabilities", "--save_npz", "--disable_tta", "--continue_prediction", "--not_on_device"}
    nnunets |= {"--disable_progress_bar"}
    parser = argparse.ArgumentParser()
    importlib.import_module(f"nnunetv2_ext.cli.{command}").add_arguments(parser)
    ours = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")} - nnunets
    assert not [flag for flag in ours if "_" in flag]


FULL = "nnunetv2_ext: got an error on writing what this command tells (No space left on device); expected room for it"


@pytest.mark.parametrize("words", [["list"], ["--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_words_that_cannot_be_written(words: list[str], unbuffered: str) -> None:
    command = [sys.executable, "-m", "nnunetv2_ext", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert (ended.returncode, ended.stderr.startswith(FULL), ended.stderr.count("\n")) == (2, True, 1)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_went_away(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "nnunetv2_ext", "list"]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_names_that_the_terminal_cannot_show(nnunet_folders: Path) -> None:
    (nnunet_folders / "nnUNet_raw" / "Dataset042_L\u00e4sion").mkdir()
    command = [sys.executable, "-m", "nnunetv2_ext", "make_thick", "-d", "43", "-o", "44", "--factor", "2"]
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run(command, capture_output=True, env=ascii_only, check=False)
    assert ended.returncode == 2
    assert b"Dataset042_L" in ended.stderr and b"Traceback" not in ended.stderr


def test_signals_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that nnU-Net forks and ends at once can lose a signal that Python is to handle, and is waited for."""
    found: list[Any] = []
    numbers = (signal.SIGTERM, signal.SIGHUP)

    def run(args: argparse.Namespace) -> int:
        found.extend(map(signal.getsignal, numbers))
        return 0

    monkeypatch.setattr("nnunetv2_ext.cli.list.run", run)
    assert main(["list"]) == 0
    assert found == [*map(signal.getsignal, numbers)]


def test_an_error_of_a_file_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: argparse.Namespace) -> int:
        raise FileNotFoundError("a file of the command's own")

    monkeypatch.setattr("nnunetv2_ext.cli.list.run", run)
    with pytest.raises(FileNotFoundError, match="of the command's own"):
        main(["list"])


@pytest.mark.parametrize(("variable", "value"), [("nnUNet_n_proc_DA", "abc"), ("nnUNet_def_n_proc", "0")])
def test_a_wrong_number_of_processes(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    assert main(["list"]) == 0
    assert main(["schedule", "-d", "42"]) == 2
    assert f"got {variable}={value}; expected a number of processes from" in capsys.readouterr().err
