"""What SLURM says is read right, and asked for without variables that change it."""

import os
from pathlib import Path

import pytest

from nnunetv2_ext.jobs import squeue
from nnunetv2_ext.jobs.squeue import Told

SQUEUE = """\
2|PENDING|PartitionDown|0|N/A|/data/jobs/a|Dataset001_Any/a|
1|RUNNING|None|0|2026-11-29T14:59:23|/data/jobs/b|Dataset001_Any/b|
24|COMPLETING|JobLaunchFailure|9|2026-11-29T15:03:00|/data|ab|c d|
29|COMPLETING|None|15|2026-11-29T15:03:40|/data|c|
30|FAILED|NonZeroExitCode|35072|2026-11-29T15:03:48|/data|d|
23|CANCELLED|DependencyNeverSatisfied|0|N/A|/data|e|

"""
"""As SLURM 22.05 printed it."""
SACCT = """\
7|FAILED|None|137:0|2026-11-29T15:20:10|a
8|CANCELLED by 0|None|0:15|2026-11-29T15:20:11|Dataset001_Any/b
9|FAILED|None|0:9|2026-11-29T15:20:12|b|c
10|TIMEOUT|None|0:0|2026-11-29T15:20:12|d
7|COMPLETED|None|0:0|2026-11-29T15:25:10|a
"""


def test_squeue_is_read() -> None:
    assert squeue.read_squeue(SQUEUE) == {
        "2": Told("PENDING", "PartitionDown", 0, "N/A", "Dataset001_Any/a", "/data/jobs/a"),
        "1": Told("RUNNING", "", 0, "2026-11-29T14:59:23", "Dataset001_Any/b", "/data/jobs/b"),
        "24": Told("COMPLETING", "JobLaunchFailure", 137, "2026-11-29T15:03:00", "ab|c d", "/data"),
        "29": Told("COMPLETING", "", 143, "2026-11-29T15:03:40", "c", "/data"),
        "30": Told("FAILED", "NonZeroExitCode", 137, "2026-11-29T15:03:48", "d", "/data"),
        "23": Told("CANCELLED", "DependencyNeverSatisfied", 0, "N/A", "e", "/data"),
    }


def test_sacct_is_read_the_last_of_each() -> None:
    told = squeue.read_sacct(SACCT)
    assert {id: (one.state, one.exit, one.name) for id, one in told.items()} == {
        "7": ("COMPLETED", 0, "a"),
        "8": ("CANCELLED", 143, "Dataset001_Any/b"),
        "9": ("FAILED", 137, "b|c"),
        "10": ("TIMEOUT", 0, "d"),
    }


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("01:00:00", 60), ("1-00:00:00", 1440), ("2-03:04:30", 3064.5), ("UNLIMITED", None), ("NONE", None), ("", None)],
)
def test_times(text: str, minutes: float | None) -> None:
    assert squeue.minutes_of(text) == minutes


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "waits for a free place"),
        ("QOSMaxJobsPerUserLimit", "a limit of its QOS (QOSMaxJobsPerUserLimit)"),
        ("AssocGrpCpuLimit", "a limit of its account (AssocGrpCpuLimit)"),
        ("ReqNodeNotAvail, UnavailableNodes:gpu[1-4]", "the nodes that it could run on are down or reserved"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_reasons_in_words(reason: str, words: str) -> None:
    assert squeue.words(reason) == words


def test_variables_of_an_allocation_are_kept_from_commands_of_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nenv\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    foreign = ("SLURM_MEM_PER_CPU", "SLURM_TIME_FORMAT", "SBATCH_TIMELIMIT", "SQUEUE_PARTITION", "SRUN_DEBUG")
    for name in (*foreign, "SLURM_CONF", "nnUNet_raw"):
        monkeypatch.setenv(name, "1")
    told = squeue.ask("squeue")
    assert not any(f"{name}=" in told for name in foreign)
    assert "SLURM_CONF=1\n" in told and "nnUNet_raw=1\n" in told
    assert os.environ["SBATCH_TIMELIMIT"] == "1"
