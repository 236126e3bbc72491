"""The GPUs of this machine: which are there, and which a job of this user has to itself."""

import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.locks import hold, is_held, let_go

SECONDS = 60
"""That the driver, or torch, may take to answer."""


def gpus_there() -> list[int]:
    """The numbers of the GPUs of this machine as `nvidia-smi` counts them or, where it lists none, as torch does."""
    listing = _said("nvidia-smi", "-L")
    if numbers := re.findall(r"^GPU (\d+):", listing, re.MULTILINE):
        return [int(number) for number in numbers]
    count = _said(sys.executable, "-c", "import torch; print(torch.cuda.device_count())").strip()
    return [*range(int(count))] if count.isdecimal() else []


def _said(*command: str) -> str:
    """What a command prints; nothing where it fails. All GPUs are to be seen, not only those of this shell."""
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def check_gpus(gpus: tuple[int, ...]) -> None:
    """Refuse GPUs that are not there.

    Raises:
        InputError: no GPU, one that is not there, or one named twice.
    """
    named, there = ", ".join(map(str, gpus)), gpus_there()
    if not there:
        raise InputError(
            f"GPU {named} on {platform.node()}, which has none that CUDA can use",
            "a GPU",
            "leave out --gpus to train on the CPU",
        )
    choose = f"choose from {', '.join(map(str, there))}"
    if missing := [gpu for gpu in gpus if gpu not in there]:
        raise InputError(f"GPU {', '.join(map(str, missing))}", f"a GPU of {platform.node()}", choose)
    if not gpus or len(set(gpus)) < len(gpus):
        raise InputError(f"the GPUs '{named}'", "one or more, each once", choose)


def take_gpu(gpu: str, doing: str) -> None:
    """Keep a GPU from the other jobs of this user, of any data set, until this process ends or `leave_gpu`.

    Raises:
        InputError: another job has it.
    """
    hold(_places(), f"gpu_{gpu}", doing, patience=1)


def leave_gpu(gpu: str) -> None:
    """Let other jobs have what `take_gpu` took."""
    let_go(_places(), f"gpu_{gpu}")


def is_taken(gpu: str) -> bool:
    """Whether a job of this user has a GPU."""
    return is_held(_places(), f"gpu_{gpu}")


def _places() -> Path:
    """The folder of the locks of this machine's GPUs, one for all shells of the user."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache, "nnunetv2_ext", platform.node())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
        folder = Path(tempfile.gettempdir(), f"nnunetv2_ext_{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder
