"""What holds for jobs of every engine: which are not to run, which cannot be read, their order."""

from pathlib import Path

import pytest

from nnunetv2_ext.jobs.engine import Seen, blocked, in_order, unreadable
from nnunetv2_ext.jobs.record import (
    BLOCKED,
    CANCELLED,
    FAILED,
    FINISHED,
    JOB,
    RUNNING,
    TIMED_OUT,
    WAITING,
    Job,
    read_jobs,
    write_job,
)


@pytest.mark.parametrize(
    ("states", "needs", "expected"),
    [
        ({"a": RUNNING, "b": FINISHED}, {"c": ("a", "b")}, {}),
        ({"a": FINISHED, "b": CANCELLED}, {"c": ("a", "b")}, {"c": "it needs b: cancelled"}),
        ({"a": TIMED_OUT, "b": FAILED}, {"c": ("a", "b")}, {"c": "it needs a: timed out"}),
        ({"a": FAILED}, {"b": ("a",), "c": ("b",)}, {"b": "it needs a: failed", "c": "it needs b: not to run"}),
        ({}, {"c": ("gone",)}, {"c": "it needs gone, which is no job here"}),
        ({}, {"b": ("c",), "c": ("b",)}, {}),
    ],
)
def test_what_waits_for_a_job_that_will_not_finish_is_not_to_run(
    states: dict[str, str], needs: dict[str, tuple[str, ...]], expected: dict[str, str]
) -> None:
    jobs = {name: Job(name, ("true",), needs.get(name, ())) for name in (*states, *needs)}
    seen = {name: Seen(states.get(name, WAITING)) for name in jobs}
    after = blocked(jobs, seen)
    assert {name: one.reason for name, one in after.items() if one.state == BLOCKED} == expected
    assert all(one == seen[name] for name, one in after.items() if name not in expected)


def test_jobs_that_cannot_be_read_have_failed(tmp_path: Path) -> None:
    for name in "abc":
        write_job(tmp_path, Job(name, ("true",)))
    (tmp_path / "a" / JOB).write_text("{")
    (tmp_path / "b" / JOB).write_text("{}")
    found = unreadable(tmp_path, jobs := read_jobs(tmp_path))
    assert [*jobs] == ["a", "b", "c"] and {*found} == {"a", "b"}
    assert all(one.state == FAILED and str(tmp_path / name / JOB) in one.reason for name, one in found.items())


def test_jobs_stand_behind_those_that_they_need() -> None:
    needs = {"a": ("z",), "b": (), "z": ("b", "gone"), "c": ("d",), "d": ("c",)}
    order = [job.name for job in in_order(Job(name, ("true",), of) for name, of in needs.items())]
    assert order == ["b", "z", "a", "d", "c"]
