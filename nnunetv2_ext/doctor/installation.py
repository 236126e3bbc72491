"""What the doctor checks of an installation."""

import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import nnunetv2_ext
from nnunetv2_ext import registry
from nnunetv2_ext.doctor.examination import (
    FAIL,
    INSTALLED,
    OK,
    WARN,
    Check,
    Examination,
    Subject,
    said,
)
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES, why_not_writable
from nnunetv2_ext.processes import LEAST, WORKERS, check_processes

EXT_TRAINER, COMPILE = "nnUNet_extTrainer", "nnUNet_compile"
TRAIN = "nnUNetv2_train"
NNUNET_AT_LEAST = (2, 8)
DISK_WARN_GB, DISK_FAIL_GB, SHARED_MEMORY_WARN_GB = 10.0, 1.0, 1.0
ENV_COMMAND = 'run eval "$(nnunetv2_ext env)"'
SWITCHED_ON = ("true", "1", "t")
"""The values of nnUNet_compile that nnU-Net takes for yes."""


def find_trainer(name: str) -> Any:
    """What nnU-Net's own finder gives for a trainer's name, without what it prints and what its imports remark."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        return recursive_find_trainer_class_by_name(name)


def check_python(subject: Subject) -> Iterator[Check]:
    yield Check(OK, f"{platform.python_version()} at {sys.executable}")


def check_versions(subject: Subject) -> Iterator[Check]:
    for name in ("nnunetv2_ext", "nnunetv2", "torch"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(FAIL, f"{name} is not installed", f"run pip install {name}")
            continue
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        if name == "nnunetv2" and numbers < NNUNET_AT_LEAST:
            least = ".".join(map(str, NNUNET_AT_LEAST))
            yield Check(FAIL, f"{name} {version}, older than {least}", f"run pip install --upgrade 'nnunetv2>={least}'")
        else:
            yield Check(OK, f"{name} {version}")


def check_commands(subject: Subject) -> Iterator[Check]:
    """The command that trains is found as jobs look for it: beside this Python first."""
    folder = str(Path(sys.executable).parent)
    found = shutil.which(TRAIN, path=os.pathsep.join((folder, os.environ.get("PATH", os.defpath))))
    if found is None:
        remedy = "run pip install --force-reinstall --no-deps nnunetv2, or activate the environment that has it"
        yield Check(FAIL, f"no command {TRAIN} in {folder} or on PATH", remedy)
    else:
        yield Check(OK, found)


def check_imports(subject: Subject) -> Iterator[Check]:
    """Which nnU-Net this Python imports: the one meant, a stray folder of that name, or one of several."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nnunetv2
            import torch  # noqa: F401
    except Exception as error:
        yield Check(
            FAIL, f"importing nnunetv2 ends in {said(error)}", "run pip install --force-reinstall nnunetv2 torch"
        )
        return
    if getattr(nnunetv2, "__file__", None) is None:
        where = ", ".join(nnunetv2.__path__)
        yield Check(FAIL, f"the folder {where} stands for nnunetv2 and is no package", "go elsewhere or rename it")
        return
    yield Check(OK, f"nnunetv2 from {Path(nnunetv2.__file__).parent}")
    places = {
        str(distribution.locate_file(""))
        for distribution in importlib.metadata.distributions()
        if re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower() == "nnunetv2"
    }
    if len(places) > 1:
        yield Check(WARN, f"several nnunetv2 are installed ({', '.join(sorted(places))})", "uninstall all but one")
    if importlib.util.find_spec("nnunet") is not None:
        yield Check(
            WARN,
            "nnU-Net v1 (package nnunet) is here too; its commands nnUNet_* and its variables do not concern v2",
            "use the commands nnUNetv2_*, or run pip uninstall nnunet",
        )


def check_folder(variable: str) -> Callable[[Subject], Iterator[Check]]:
    """A check of one of nnU-Net's three folders; raw data need not be writable."""

    def check(subject: Subject) -> Iterator[Check]:
        value = os.environ.get(variable, "")
        setting = f"run export {variable}=/path/to/{variable} (and write it to ~/.bashrc)"
        if not value:
            yield Check(FAIL, "not set", setting)
        elif value != value.strip() or value[0] in "'\"~":
            yield Check(FAIL, f"'{value}' holds spaces, quotes or ~ that belong to no path", setting)
        elif not Path(value).is_dir():
            yield Check(FAIL, f"{value} is no folder", f"run mkdir -p '{value}' or correct the variable")
        elif variable != "nnUNet_raw" and (reason := why_not_writable(Path(value))):
            yield Check(
                FAIL, f"{value} cannot be written ({reason})", "change its permissions or choose another folder"
            )
        elif any(
            os.path.realpath(value) == os.path.realpath(os.environ[other])
            for other in FOLDER_VARIABLES
            if other != variable and os.environ.get(other)
        ):
            yield Check(WARN, f"{value} stands for another of nnU-Net's folders too", "give each a folder of its own")
        else:
            yield Check(OK, value if Path(value).is_absolute() else f"{value}, relative to {Path.cwd()}")

    return check


def check_external_trainers(subject: Subject) -> Iterator[Check]:
    folders = [folder for folder in os.environ.get(EXT_TRAINER, "").split(os.pathsep) if folder.strip()]
    ours = os.path.realpath(nnunetv2_ext.DISCOVERY_FOLDER)
    if not folders:
        yield Check(FAIL, "not set, so that nnU-Net does not know our trainers", ENV_COMMAND)
        return
    if ours not in [os.path.realpath(folder) for folder in folders]:
        yield Check(FAIL, f"{os.pathsep.join(folders)} lacks {ours}", ENV_COMMAND)
    else:
        yield Check(OK, os.pathsep.join(folders))
    for folder in folders:
        if not Path(folder).is_dir():
            yield Check(WARN, f"{folder} is no folder", "take it out of nnUNet_extTrainer")


def check_trainers(subject: Subject) -> Iterator[Check]:
    """Every registered trainer is what nnU-Net's own finder gives for its name."""
    for entry in registry.TRAINERS:
        try:
            expected = entry.load()
        except InputError as error:
            got, expected, remedy = error.args
            yield Check(WARN, f"{got}; expected {expected}", f"{remedy} if you want to use it")
            continue
        except ImportError as error:
            yield Check(FAIL, said(error), "run pip install --force-reinstall nnunetv2_ext")
            continue
        try:
            found = find_trainer(entry.name)
        except Exception as error:
            yield Check(
                FAIL,
                f"nnU-Net does not find {entry.name} ({said(error)})",
                "mend or remove the module named there: a broken module in any folder of nnUNet_extTrainer stops "
                "nnU-Net's search",
            )
            continue
        if found is expected:
            yield Check(OK, f"{entry.name} is found by nnU-Net")
        else:
            yield Check(
                FAIL,
                f"nnU-Net finds another {entry.name}, from {found.__module__}",
                "rename that one or take its folder out of nnUNet_extTrainer",
            )


def check_cuda(subject: Subject) -> Iterator[Check]:
    """The GPUs, each used once; sets `gpu_bytes` to the first one's memory."""
    import torch

    if subject.device in ("cpu", "mps"):
        if subject.device == "mps" and not torch.backends.mps.is_available():
            yield Check(FAIL, "no MPS for -device mps", "add -device cpu or -device cuda")
        else:
            yield Check(OK, f"not needed with -device {subject.device}")
        return
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        reason = "torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU"
        reason += "".join(f" ({str(remark.message).splitlines()[0][:200]})" for remark in remarks[:1])
        # nnU-Net trains on CUDA unless it is told otherwise
        status = FAIL if subject.device == "cuda" or subject.dataset is not None else WARN
        remedy = "add -device cpu to this and to nnU-Net's commands, or install a torch that fits the driver"
        yield Check(status, reason, remedy)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        name = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB (CUDA {torch.version.cuda})"
        try:
            torch.ones(8, device=f"cuda:{index}").sum().item()
        except RuntimeError as error:
            yield Check(FAIL, f"{name} does not compute: {said(error)}", "install a torch built for this GPU")
            return
        yield Check(OK, name)
        if index == 0:
            subject.found["gpu_bytes"] = properties.total_memory


def check_compile(subject: Subject) -> Iterator[Check]:
    """torch.compile needs a C compiler and triton; nnU-Net uses it on CUDA unless it is told otherwise."""
    setting = os.environ.get(COMPILE)
    if "gpu_bytes" not in subject.found:
        yield Check(OK, "not used without CUDA")
    elif os.name == "nt" or (setting is not None and setting.lower() not in SWITCHED_ON):
        yield Check(OK, "off")
    else:
        compilers = [name for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and shutil.which(name)]
        missing = [] if compilers else ["a C compiler"]
        if importlib.util.find_spec("triton") is None:
            missing.append("triton")
        if missing:
            remedy = "install it, or run export nnUNet_compile=f to train without torch.compile"
            yield Check(FAIL, f"on, but there is no {' and no '.join(missing)}", remedy)
        else:
            yield Check(OK, f"on, with {compilers[0]} and triton (export nnUNet_compile=f turns it off)")


def check_disk(subject: Subject) -> Iterator[Check]:
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        folder = Path(os.environ.get(variable, ""))
        if not os.environ.get(variable) or not folder.is_dir():
            continue  # told by the check of the variable
        free = shutil.disk_usage(folder).free / 2**30
        status = FAIL if free < DISK_FAIL_GB else WARN if free < DISK_WARN_GB else OK
        yield Check(status, f"{free:.1f} GiB free in {variable}", "" if status == OK else "free or choose another disk")


def check_shared_memory(subject: Subject) -> Iterator[Check]:
    """Data workers hand batches over through /dev/shm, which containers often keep at 64 MB."""
    folder = Path("/dev/shm")
    if not sys.platform.startswith("linux") or not folder.is_dir():
        yield Check(OK, "not limited on this system")
        return
    free = shutil.disk_usage(folder).free / 2**30
    if free < SHARED_MEMORY_WARN_GB:
        yield Check(WARN, f"{free:.2f} GiB free in {folder}", "start the container with --ipc=host or --shm-size=8g")
    else:
        yield Check(OK, f"{free:.1f} GiB free in {folder}")


def check_workers(subject: Subject) -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for variable in LEAST:
        processes = check_processes(variable)
        if processes is not None and processes > cores:
            yield Check(WARN, f"{variable}={processes} on {cores} cores", f"run export {variable}={cores}")
        elif processes is not None:
            yield Check(OK, f"{variable}={processes} on {cores} cores")
        elif variable == WORKERS:
            yield Check(OK, f"{variable} is not set: nnU-Net takes up to 12 processes, {cores} cores are here")


_examination = partial(Examination, group=INSTALLED)
INSTALLATION = (
    _examination("python", check_python),
    _examination("versions", check_versions),
    _examination("commands", check_commands),
    _examination("data workers", check_workers),  # nnU-Net reads their variables when it is imported
    _examination("import", check_imports, needs=("versions", "data workers")),
    *(_examination(variable, check_folder(variable)) for variable in FOLDER_VARIABLES),
    _examination(EXT_TRAINER, check_external_trainers),
    _examination("trainers", check_trainers, needs=("import", EXT_TRAINER)),
    _examination("CUDA", check_cuda, needs=("import",)),
    _examination("torch.compile", check_compile, needs=("CUDA",)),
    _examination("disk", check_disk),
    _examination("shared memory", check_shared_memory),
)
