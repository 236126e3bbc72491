"""A forked command is what a fresh interpreter would be: entry point, environment, group, exit status, pools."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.pipeline.conftest import processes_of_group, survivors
from tests.warm import ROOT, Command, WarmProcess, light_nnunet

BIN = Path(sys.executable).parent
TELL = """
    import json, multiprocessing, os, sys
    from pathlib import Path

    import torch
    from nnunetv2 import paths
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    if __name__ == "__main__":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            worker = pool.apply(os.getpid), pool.apply(os.getppid), pool.apply(torch.get_num_threads)
        told = {
            "arguments": sys.argv[1:],
            "folder": os.getcwd(),
            "path": sys.path[0],
            "group": os.getpgid(0) == os.getpid(),
            "variables": dict(os.environ),
            "raw": str(paths.nnUNet_raw),
            "processes": [default_num_processes, get_allowed_n_proc_DA(), torch.get_num_threads()],
            "worker": [worker[0] != os.getpid(), worker[1] == os.getpid(), worker[2]],
            "threads": len(os.listdir("/proc/self/task")) if Path("/proc/self/task").exists() else 1,
        }
        Path("told.json").write_text(json.dumps(told, sort_keys=True, indent=1))
"""
ENDINGS = {
    "pass": 0,
    "sys.exit(7)": 7,
    "sys.exit('a sentence')": 1,
    "raise ValueError('a sentence')": 1,
    "os.kill(os.getpid(), signal.SIGTERM)": -signal.SIGTERM,
}


def script(folder: Path, text: str) -> list[str]:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(text))
    return ["python", str(path)]


def test_a_command_sees_what_it_would_in_an_interpreter_of_its_own(warm: WarmProcess, tmp_path: Path) -> None:
    words = [*script(tmp_path, TELL), "--an", "argument"]
    environment = {
        **warm.environment,
        "nnUNet_raw": "/some/where/else",
        "PATH": f"{BIN}{os.pathsep}{warm.environment['PATH']}",
    }
    told = []
    for folder in (tmp_path / "warm", tmp_path / "fresh"):
        folder.mkdir()
        if folder.name == "warm":
            command = warm.start(words, environment=environment, folder=folder)
            output, _ = command.communicate(timeout=60)
            assert command.wait() == 0, output
        else:
            subprocess.run(words, cwd=folder, env=environment, check=True, start_new_session=True)
        told.append((folder / "told.json").read_text().replace(str(folder), "FOLDER"))
    assert told[0] == told[1]


@pytest.mark.parametrize("variable", ["nnUNet_def_n_proc", "nnUNet_n_proc_DA", "OMP_NUM_THREADS", "PYTHONHASHSEED"])
def test_what_imports_may_have_read_needs_an_interpreter(warm: WarmProcess, tmp_path: Path, variable: str) -> None:
    environment = {**warm.environment, variable: "3"}
    assert warm.serves(warm.environment)
    assert not warm.serves(environment)
    with pytest.raises(ValueError, match=f"got another {variable}; expected"):
        warm.start(["nnunetv2_ext", "env"], environment=environment, folder=tmp_path)


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ("nnUNetv2_train --help", 0, "usage: nnUNetv2_train"),
        ("nnUNetv2_train", 2, "the following arguments are required"),
        ("nnUNetv2_predict -i a --no_such_flag", 2, "nnUNetv2_predict: error:"),
        ("nnunetv2_ext env", 0, "nnUNet_extTrainer"),
        ("nnunetv2_ext list", 0, "MNetTrainer"),
        ("python -m nnunetv2_ext env", 0, "nnUNet_extTrainer"),
    ],
)
def test_installed_scripts(warm: WarmProcess, tmp_path: Path, line: str, status: int, told: str) -> None:
    command = warm.start(line.split(), environment=warm.environment, folder=tmp_path)
    output, _ = command.communicate(timeout=60)
    assert command.poll() == status, output
    assert told in output


@pytest.mark.parametrize("ending", ENDINGS)
def test_exit_status_and_output(warm: WarmProcess, tmp_path: Path, ending: str) -> None:
    words = script(tmp_path, f"import os, signal, sys\nprint('printed', flush=True)\n{ending}")
    command = warm.start(words, environment=warm.environment, folder=tmp_path)
    output, _ = command.communicate(timeout=60)
    assert command.wait(timeout=60) == ENDINGS[ending]
    assert output.startswith("printed\n")
    assert ("a sentence" in output) == ("a sentence" in ending)


def test_commands_draw_other_numbers(warm: WarmProcess, tmp_path: Path) -> None:
    words = script(tmp_path, "import random, numpy\nprint(random.random(), numpy.random.rand())")
    drawn = []
    for _ in range(2):
        output, _ = warm.start(words, environment=warm.environment, folder=tmp_path).communicate(timeout=60)
        drawn += output.split()
    assert len({*drawn, str(random.random())}) == 5


WITH_A_WORKER = """
    import os, time
    if os.fork():
        print("started", flush=True)
    time.sleep(600)
"""


def start_with_a_worker(warm: WarmProcess, folder: Path) -> Command:
    command = warm.start(script(folder, WITH_A_WORKER), environment=warm.environment, folder=folder)
    assert command.output_so_far().startswith("started")
    return command


def test_the_group_is_killed_with_its_workers(warm: WarmProcess, tmp_path: Path) -> None:
    command = start_with_a_worker(warm, tmp_path)
    assert command.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        command.wait(timeout=0.2)
    with pytest.raises(subprocess.TimeoutExpired):
        command.communicate(timeout=0.2)
    assert len(processes_of_group(command.pid)) == 2
    os.killpg(command.pid, signal.SIGKILL)
    assert command.wait(timeout=60) == -signal.SIGKILL
    assert not survivors(command.pid)


def test_a_worker_outlives_the_command_that_alone_is_killed(warm: WarmProcess, tmp_path: Path) -> None:
    """What the tests of nnU-Net's workers look for must be there to be found."""
    command = start_with_a_worker(warm, tmp_path)
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait(timeout=60) == -signal.SIGKILL
    assert len(processes_of_group(command.pid)) == 1
    os.killpg(command.pid, signal.SIGKILL)
    assert not survivors(command.pid)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc to count threads")
def test_the_process_to_fork_from_has_started_no_threads(warm: WarmProcess, tmp_path: Path) -> None:
    warm.start(["nnunetv2_ext", "env"], environment=warm.environment, folder=tmp_path).communicate(timeout=60)
    # but those that Blosc starts when imported, and forgets in a forked process
    program = "import os, blosc2; print(len(os.listdir('/proc/self/task')))"
    blosc = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert len(list(Path(f"/proc/{warm.pid}/task").iterdir())) == int(blosc)


STATE = {"imported": "anew"}


def state() -> tuple[str, int]:
    import torch

    return STATE["imported"], torch.get_num_threads()


def test_pools_fork_with_one_thread_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STATE, "imported", "before")
    with light_nnunet():
        for context in (multiprocessing.get_context("spawn"), multiprocessing.get_context("fork")):
            with context.Pool(1) as pool:
                assert pool.apply(state) == ("before", 1)
    assert multiprocessing.get_context("spawn").get_start_method() == "spawn"


def test_files_are_found_and_fingerprints_taken_with_less(nnunet_folders: Path) -> None:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    folder = nnunet_folders / "nnUNet_raw" / "Dataset901_Empty"
    (folder / "imagesTr").mkdir(parents=True)
    for case in "ab":
        (folder / "imagesTr" / f"{case}_0000.nii.gz").touch()
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0}, "numTraining": 2}
    (folder / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))
    with light_nnunet():
        light = DatasetFingerprintExtractor(901)
    whole = DatasetFingerprintExtractor(901)
    assert list(light.dataset) == ["a", "b"] and light.dataset == whole.dataset
    assert light.num_foreground_voxels_for_intensitystats < whole.num_foreground_voxels_for_intensitystats == 10e7


OWNER = """
    import os, sys, time
    from pathlib import Path
    from tests.warm import WarmProcess

    warm = WarmProcess(imports=False)
    command = warm.start(["python", sys.argv[1]], environment=warm.environment, folder=Path.cwd())
    print(warm.pid, command.pid, flush=True)
    time.sleep(600)
"""


def test_it_ends_with_its_owner_even_a_killed_one(tmp_path: Path) -> None:
    program = [sys.executable, "-c", textwrap.dedent(OWNER), script(tmp_path, WITH_A_WORKER)[1]]
    owner = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    groups = [int(word) for word in owner.stdout.readline().split()]
    assert len(groups) == 2 and all(map(processes_of_group, groups))
    owner.kill()
    owner.communicate()
    assert not any(map(survivors, groups))


def test_a_warm_process_that_ended_says_so(tmp_path: Path) -> None:
    process = WarmProcess(imports=False)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises((RuntimeError, BrokenPipeError, ConnectionResetError)):
        process.start(["nnunetv2_ext", "env"], environment=process.environment, folder=tmp_path)
    process.close()
