#!/usr/bin/env bash
# submitit where SLURM is, or seems to be. Guessed: it asks the cluster whether there is one; a job without a time gets
# the partition's; a job preempted after a second was preempted.
# Seen with submitit 1.5.4: any program called srun makes a SLURM, be it one that fails; such a job gets 5 minutes; under
# a limit of up to ten minutes every preemption counts as a time-out, of which a job may have three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q submitit==1.5.4
cd "$folder"
mkdir bin
printf '#!/bin/sh\nexit 1\n' > bin/srun
chmod +x bin/srun
PATH="$folder/bin:$PATH" venv/bin/python - <<'PYTHON'
import time

import submitit
from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmJobEnvironment

cluster = submitit.AutoExecutor(folder="jobs").cluster
script = submitit.SlurmExecutor("jobs")._make_submission_file_text("true", "1")
limit = [line for line in script.splitlines() if "--time" in line]
timed_out = {}
for minutes in (5, 10, 11, 60):
    job = DelayedSubmission(print)
    job.set_timeout(minutes, 3)
    handler = SignalHandler(SlurmJobEnvironment(), None, job)
    time.sleep(1)
    timed_out[minutes] = handler.has_timed_out()
print(cluster, limit, "timed out after a second, by limit in minutes:", timed_out)
assert cluster == "slurm" and limit == ["#SBATCH --time=5"]
assert timed_out == {5: True, 10: True, 11: False, 60: False}
PYTHON
