"""The contract of a trainer, through nnU-Net's own commands: planned, trained, killed, resumed, validated, applied."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import SimpleITK as sitk

from nnunetv2_ext import external_trainer_folders
from nnunetv2_ext.data.phantom import write_phantoms
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES
from nnunetv2_ext.weights.checkpoint import read_checkpoint
from nnunetv2_ext.weights.files import FINAL

EPOCHS = 2
SHORT = f"--epochs {EPOCHS} --iterations 2 --val-iterations 1 --batch-size 2"
CASES = 5  # one for each fold to validate on
PHANTOMS = "Dataset901_Phantoms"


class Commands(Protocol):
    """Runs command lines in an environment with nnU-Net's three folders."""

    folder: Path
    """It holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results."""

    def start(self, command: str) -> Any:
        """Start a command in a process group of its own, its output in one pipe; as `subprocess.Popen`."""

    def run(self, command: str, *, status: int = 0) -> str:
        """Run a command to its end and return what it printed; AssertionError on another exit status."""


class Shell:
    """Commands in processes of their own.

    Args:
        folder: where nnU-Net's three folders are made, unless they are there.
        environment: of the commands, by default this process's; the three folders, the folders of external trainers
            of this process and ours, and Python's commands go over it.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None):
        self.folder = folder
        self.environment = {**(os.environ if environment is None else environment)}
        self.environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self.environment["nnUNet_extTrainer"] = external_trainer_folders()
        self.environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), self.environment["PATH"]])
        for variable in FOLDER_VARIABLES:
            (folder / variable).mkdir(exist_ok=True)
            self.environment[variable] = str(folder / variable)

    def start(self, command: str) -> Any:
        return subprocess.Popen(
            shlex.split(command),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str, *, status: int = 0) -> str:
        return finish(self.start(command), command, status)


def finish(process: Any, command: str, status: int) -> str:
    """Wait for a command's end and return what it printed; AssertionError on another exit status."""
    try:
        output: str = process.communicate(timeout=900)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    ended = process.wait()
    assert ended == status, f"{command}\nended with {ended}:\n{output[-6000:]}"
    return output


def check_trainer(
    trainer: str,
    *,
    planner: str = "ExperimentPlanner",
    options: str = "",
    configuration: str = "3d_fullres",
    dataset: str = PHANTOMS,
    commands: Commands | None = None,
) -> None:
    """Take a trainer the whole way on the CPU, with a training block of two short epochs; some minutes.

    Plan, preprocess, doctor, train, kill, resume, validate again, predict with nnU-Net's command and with ours; then
    what it has to refuse: to go on with another training block, and a damaged checkpoint.

    Args:
        trainer: its name, as nnU-Net finds it.
        planner: ours or nnU-Net's, or the dotted path of yours.
        options: flags of `plan_and_preprocess` that make the network small.
        configuration: of its plans.
        dataset: folder name of a raw data set of five cases or more, among those of `commands`.
        commands: runs the command lines; by default in a temporary folder, on synthetic data.

    Raises:
        AssertionError: what does not hold, with the end of what the command printed.
        InputError: a data set of its own without commands.
    """
    if commands is None:
        if dataset != PHANTOMS:
            raise InputError(f"the data set {dataset} without commands", "commands whose folder holds it", "pass both")
        with tempfile.TemporaryDirectory() as folder:
            shell = Shell(Path(folder))
            write_phantoms(Path(folder) / "nnUNet_raw" / PHANTOMS, training=CASES, test=0)
            check_trainer(trainer, planner=planner, options=options, configuration=configuration, commands=shell)
            return
    number, plans = dataset.removeprefix("Dataset")[:3], f"{trainer}CheckPlans"
    commands.run(
        f"nnunetv2_ext plan_and_preprocess -d {number} -pl {planner} -c {configuration} --verify_dataset_integrity"
        f" -overwrite_plans_name {plans} {options}"
    )
    commands.run(f"nnunetv2_ext schedule -d {number} -p {plans} -c {configuration} {SHORT}")
    examined = f"-d {number} -c {configuration} -tr {trainer} -p {plans}"
    assert "ok" in commands.run(f"nnunetv2_ext doctor {examined} -device cpu")

    model = commands.folder / "nnUNet_results" / dataset / f"{trainer}__{plans}__{configuration}"
    fold, final = model / "fold_0", model / "fold_0" / FINAL
    train = f"nnUNetv2_train {number} {configuration} 0 -tr {trainer} -p {plans} --npz -device cpu"
    kill_at_first_checkpoint(commands, train, fold)
    assert "next epoch 1" in commands.run(f"{train} --c"), "the killed training did not go on at its second epoch"
    _check_finished(fold)

    (fold / "validation" / "summary.json").unlink()
    commands.run(f"{train} --val")
    assert (fold / "validation" / "summary.json").is_file(), "--val wrote no summary.json"

    images, predictions = commands.folder / f"images_of_{trainer}", commands.folder / f"predictions_of_{trainer}"
    images.mkdir()
    for path in sorted((commands.folder / "nnUNet_raw" / dataset / "imagesTr").iterdir())[:2]:
        shutil.copy(path, images)
    predicted = f"-i {images} -d {number} -c {configuration} -tr {trainer} -p {plans} -f 0 -device cpu --disable_tta"
    commands.run(f"nnUNetv2_predict {predicted} -o {predictions} -npp 1 -nps 1")
    ours = commands.folder / f"predictions_of_{trainer}_by_nnunetv2_ext"
    commands.run(f"nnunetv2_ext predict {predicted} -o {ours}")
    ending = json.loads((model / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
    labels = sorted(path.name for path in predictions.glob(f"*{ending}"))
    assert len(labels) == 2, "two images, but not two predictions"
    for name in labels:
        first, second = (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name))) for folder in (predictions, ours))
        assert (first != second).mean() < 1e-3, f"nnunetv2_ext predict and nnUNetv2_predict differ in {name}"

    commands.run(f"nnunetv2_ext schedule -d {number} -p {plans} -c {configuration} --epochs {EPOCHS + 1}")
    refused = commands.run(f"{train} --c", status=1)
    assert f"training.epochs: {EPOCHS} and {EPOCHS + 1}" in refused, "another training block was not refused"
    final.write_bytes(final.read_bytes()[:100_000])
    assert "damaged checkpoint" in commands.run(f"{train} --val", status=1), "a damaged checkpoint was not refused"


def kill_at_first_checkpoint(commands: Commands, train: str, fold: Path) -> None:
    """Start a training and kill it, with its data workers, as soon as the fold's folder holds a checkpoint."""
    training = commands.start(train)
    while not (fold / "checkpoint_latest.pth").is_file():
        assert training.poll() is None, training.communicate()[0][-6000:]
        time.sleep(0.05)
    os.killpg(training.pid, signal.SIGKILL)
    training.communicate()


def _check_finished(fold: Path) -> None:
    content = read_checkpoint(fold / FINAL)
    assert content["current_epoch"] == EPOCHS
    lengths = [len(content["logging"][key]) for key in ("train_losses", "val_losses", "lrs")]
    assert lengths == [EPOCHS] * 3, f"logs of {lengths} epochs"
    left = [name for name in ("latest", "previous") if (fold / f"checkpoint_{name}.pth").exists()]
    assert not left, f"checkpoints left after the training: {left}"
    assert list((fold / "validation").glob("*.npz")), "--npz left no probabilities"
