#!/usr/bin/env bash
# Jobs of submitit's LocalExecutor that fail, are killed, or run over their time; the caller has chosen GPU 3. Guessed:
# states that tell them apart, and that the jobs see GPU 3.
# Seen with submitit 1.5.4: all of them are FINISHED, as is the one that is well, no exit status is told, and every job
# is given no GPU: CUDA_VISIBLE_DEVICES is empty unless gpus_per_node is set.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q submitit==1.5.4
cd "$folder"
CUDA_VISIBLE_DEVICES=3 venv/bin/python - <<'PYTHON'
import os
import signal
import time

import submitit


def well():
    return os.environ["CUDA_VISIBLE_DEVICES"]


def fails():
    raise ValueError("a failure")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def over_time():
    time.sleep(60)


executor = submitit.LocalExecutor("logs")
executor.update_parameters(timeout_min=0.05)
jobs = [executor.submit(function) for function in (well, fails, killed, over_time)]
while not all(job.done() for job in jobs):
    time.sleep(0.2)
states, devices = [job.state for job in jobs], jobs[0].result()
print("states:", states, "CUDA_VISIBLE_DEVICES:", repr(devices))
assert states == ["FINISHED"] * 4 and devices == ""
PYTHON
