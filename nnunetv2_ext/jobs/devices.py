"""The GPUs of this machine: which are there, and which a job of this user has to itself."""

import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.locks import hold, is_held, let_go

SECONDS = 60
"""That the driver, or torch, may take to answer."""


COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
"""What torch is asked; its own count alone may be that of a driver with which it does not go."""


def gpus_there() -> dict[int, str]:
    """The GPUs of this machine by number, as `nvidia-smi` counts them or, where it lists none, as torch does.

    The values are their UUIDs, empty where torch has counted.
    """
    listing = _said("nvidia-smi", "-L")
    if found := re.findall(r"^GPU (\d+):.*?(?:\(UUID: ([^)]*)\))?$", listing, re.MULTILINE):
        return {int(number): uuid for number, uuid in found}
    return dict.fromkeys(range(_counted_by_torch()), "")


def gpus_visible() -> list[int]:
    """Those that this shell may use: all, or those that its CUDA_VISIBLE_DEVICES names, in that order.

    Raises:
        InputError: it names a part of a GPU (MIG), which has no number.
    """
    there, named = gpus_there(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [*there]
    visible = []
    for one in map(str.strip, named.split(",")):
        if one.startswith("MIG-"):
            what = f"CUDA_VISIBLE_DEVICES={named}, parts of GPUs"
            raise InputError(what, "whole GPUs for jobs", "say --gpus or -device cpu, or unset the variable")
        # CUDA sees nothing behind what it does not know
        if one.isdecimal() and int(one) in there:
            visible.append(int(one))
        elif fitting := [number for number, uuid in there.items() if one and uuid.startswith(one)]:
            visible.append(fitting[0])
        else:
            break
    return visible


def has_mps() -> bool:
    """Whether torch can use the GPU of this Mac."""
    if platform.system() != "Darwin":
        return False
    return _said(sys.executable, "-c", "import torch; print(torch.backends.mps.is_available())").strip() == "True"


def _counted_by_torch(gpus: tuple[int, ...] | None = None) -> int:
    """How many of the GPUs torch can use; None: of all."""
    order = (
        {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    )
    count = _said(sys.executable, "-c", COUNT, **order).strip()
    return int(count) if count.isdecimal() else 0


def _said(*command: str, **variables: str) -> str:
    """What a command prints; nothing where it fails. All GPUs are to be seen, not only those of this shell."""
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"} | variables
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def check_gpus(gpus: tuple[int, ...]) -> None:
    """Refuse GPUs that jobs could not use.

    Raises:
        InputError: no GPU, one that is not there, one named twice, or one that torch does not see.
    """
    named, there = ", ".join(map(str, gpus)), gpus_there()
    if not there:
        raise InputError(
            f"GPU {named} on {platform.node()}, which has none that CUDA can use",
            "a GPU",
            "say -device cpu to train without",
        )
    choose = f"choose from {', '.join(map(str, there))}"
    if missing := [gpu for gpu in gpus if gpu not in there]:
        raise InputError(f"GPU {', '.join(map(str, missing))}", f"a GPU of {platform.node()}", choose)
    if not gpus or len(set(gpus)) < len(gpus):
        raise InputError(f"the GPUs '{named}'", "one or more, each once", choose)
    if _counted_by_torch(gpus) < len(gpus):
        raise InputError(
            f"GPU {named}, which PyTorch {version('torch')} cannot use",
            "a PyTorch that goes with the GPU and its driver",
            "install one (see pytorch.org), or say -device cpu",
        )


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
