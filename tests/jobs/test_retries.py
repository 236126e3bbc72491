"""Why a job failed and whether it runs again."""

import pytest

from nnunetv2_ext.jobs.record import Attempt
from nnunetv2_ext.jobs.retries import TIME_LIMIT, reason, why_not_again

TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
    raise SomeError
{error}
"""
WORKERS = TRACEBACK.format(
    error="RuntimeError: One or more background workers are no longer alive. Exiting. Please check the print statements"
    " above for the actual error message"
)


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (137, "Epoch 3", "killed by signal 9 (SIGKILL), as by the system when memory runs out"),
        (139, "", "killed by signal 11 (SIGSEGV)"),
        (1, TRACEBACK.format(error="KeyError: 'patch_size'"), "KeyError: 'patch_size'"),
        (
            1,
            "Epoch 0\n" + TRACEBACK.format(error="nnunetv2_ext.errors.InputError: got a; expected b; choose c.") + "\n",
            "got a; expected b; choose c.",
        ),
        (1, TRACEBACK.format(error="AssertionError"), "AssertionError"),
        (1, TRACEBACK.format(error="ValueError: no\nsecond line\n  third"), "ValueError: no"),
        (1, TRACEBACK.format(error="OSError: bad volume") + WORKERS, "OSError: bad volume"),
        (1, WORKERS, WORKERS.splitlines()[-1]),
        (
            1,
            TRACEBACK.format(error="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB") + WORKERS,
            "CUDA out of memory",
        ),
        (
            1,
            TRACEBACK.format(error="OSError: [Errno 28] No space left on device") + TRACEBACK.format(error="E: x"),
            "no space left on the device",
        ),
        (2, "usage: nnUNetv2_train\nnnUNetv2_train: error: no -x\n", "nnUNetv2_train: error: no -x"),
        (3, "it broke\n 40%|####      | 4/10 [00:01<00:02, 3.1it/s]\r100%|####| 10/10 [00:01]\n", "it broke"),
        (3, "", "exit status 3 without a word"),
    ],
)
def test_the_reason_is_one_line(status: int, output: str, expected: str) -> None:
    assert reason(status, output) == expected


def failed(status: int, why: str, epochs: int | None = None) -> Attempt:
    return Attempt(0, 1, status, why, epochs)


KILL = "killed by signal 9 (SIGKILL)"


@pytest.mark.parametrize(
    ("attempts", "retries", "expected"),
    [
        ([failed(1, "a")], 2, None),
        ([failed(1, "a")], 0, "no retries"),
        ([failed(1, "a"), failed(1, "a")], 2, "it failed twice in the same way"),
        ([failed(1, "a"), failed(1, "b")], 2, None),
        ([failed(1, "a"), failed(3, "a")], 2, None),
        ([failed(1, "a", 3), failed(1, "a", 3)], 2, "it failed twice in the same way"),
        ([failed(1, "a", 3), failed(1, "a", 4)], 2, None),
        ([failed(1, "a", 3), failed(1, "a", 2)], 2, "it failed twice in the same way"),
        ([failed(1, "a"), failed(1, "b"), failed(1, "c")], 2, "3 failures without progress"),
        ([failed(1, "a", 1), failed(1, "b", 2), failed(1, "c", 3), failed(1, "d", 4)], 1, None),
        ([failed(137, KILL), failed(137, KILL)], 2, None),
        ([failed(137, KILL)] * 3, 2, "3 failures without progress"),
        ([failed(143, TIME_LIMIT, 1)] * 9 + [failed(1, "a", 1)], 2, None),
        ([failed(1, "a", 1), failed(143, TIME_LIMIT, 2), failed(1, "a", 2)], 2, None),
        ([failed(1, "a", 1), failed(143, TIME_LIMIT, 1), failed(1, "a", 1)], 2, "it failed twice in the same way"),
        ([failed(2, "usage")], 2, "it was refused, and would be again"),
        ([failed(1, "got a; expected b; choose c.")], 2, "it was refused, and would be again"),
        ([failed(127, "sh: 1: exec: nnUNetv2_trein: not found")], 2, "it was refused, and would be again"),
    ],
)
def test_a_job_runs_again_while_that_may_help(attempts: list[Attempt], retries: int, expected: str | None) -> None:
    assert why_not_again(attempts, retries) == expected
