"""What a container installs: the distributions that prediction needs, as they are here, with their licences."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import nnunetv2_ext
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed

OURS = "nnunetv2_ext"
REQUIRED = {OURS, "torch", "nnunetv2", "dynamic_network_architectures"}
"""Packages that ours requires, whatever the network."""
OF_TORCH = ("nvidia-", "cuda-", "triton")
"""Names of what comes with a build of PyTorch."""
IMPORTED = """
import importlib, json, sys
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
places = {name: getattr(module, "__file__", None) for name, module in sys.modules.items() if name not in before}
print(json.dumps([[name.partition(".")[0], place] for name, place in places.items() if place]))
"""
"""Code that tells the packages, and their files, that trainers import beside those of nnU-Net's own trainer."""
INSTALLED = {"site-packages", "dist-packages"}
MAPPED = ("trainers", "plans")
"""Packages of ours that an editable install keeps elsewhere."""


class Package(NamedTuple):
    """A distribution, as an index has it."""

    name: str
    version: str
    """Without the name of a build (`+cu130`), which no index has."""
    licence: str


def needed(networks: Iterable[Any], imported: Iterable[str] = ()) -> list[Package]:
    """What a container needs beside our package, with all that it requires, by name.

    What comes with PyTorch is left out where its version has the name of a build (`+cu126`): an index has the version
    alone, which may be of another CUDA.

    Args:
        networks: of the models; whatever brings one of their layers is needed too, such as MONAI.
        imported: packages that are needed too.

    Raises:
        InputError: one that is required is not installed.
    """
    tops = {type(module).__module__.partition(".")[0] for network in networks for module in network.modules()}
    tops |= set(imported)
    owners = packages_distributions() if tops - REQUIRED else {}  # which reads every installed file's name
    roots = {canonicalize_name(name) for top in tops - REQUIRED for name in owners.get(top, ())}
    found: dict[tuple[str, str], Distribution] = {}
    waiting = [(name, "") for name in (canonicalize_name(OURS), *sorted(roots))]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        try:
            here = found[name, extra] = distribution(name)
        except PackageNotFoundError:
            remedy = f"run pip install {name}"
            raise InputError(f"no distribution {name} here", "all that prediction needs, to pin it", remedy) from None
        for line in here.requires or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(wanted.name), more) for more in ("", *wanted.extras)]
    by_name = {name: here for (name, _), here in found.items() if name != canonicalize_name(OURS)}
    if "torch" in by_name and Version(by_name["torch"].version).local:
        by_name = {name: here for name, here in by_name.items() if not name.startswith(OF_TORCH)}
    return [described(by_name[name]) for name in sorted(by_name)]


def described(here: Distribution) -> Package:
    """Name, version and licence, in the words of the metadata."""
    metadata = here.metadata  # parsed anew each time
    entries = {key: metadata.get_all(key) or [""] for key in ("License-Expression", "License", "Classifier")}
    told = entries["License-Expression"][0]
    classified = [name for name in entries["Classifier"] if name.startswith("License ::")]
    lines = entries["License"][0].strip().splitlines() or [""]
    if not told and len(lines) == 1 and lines[0] != "UNKNOWN" and len(lines[0]) <= 60:  # and not the whole text
        told = lines[0]
    names = [name.rpartition(" :: ")[2] for name in classified if name.count(" :: ") > 1 or "Other" in name]
    licence = told or listed(names) or lines[0][:60] or "see its files"
    return Package(canonicalize_name(metadata["Name"]), Version(metadata["Version"]).public, licence)


def copy_package(target: Path) -> None:
    """Our package as it runs here, from a wheel's installation, an editable one or a clone, and its licence.

    Args:
        target: the folder that becomes part of Python's path.
    """
    leave_out = shutil.ignore_patterns("__pycache__", "*.pyc", "*.part")
    shutil.copytree(Path(nnunetv2_ext.__file__).parent, target / OURS, ignore=leave_out)
    for name in MAPPED:
        (folder,) = __import__(f"{OURS}.{name}", fromlist=["__path__"]).__path__
        shutil.copytree(folder, target / OURS / name, ignore=leave_out, dirs_exist_ok=True)
    for file in distribution(OURS).files or ():
        if file.name == "LICENSE":
            shutil.copyfile(str(file.locate()), target / "LICENSE")


def copy_trainers(trainers: Iterable[Any], target: Path) -> list[str]:
    """The folders of `nnUNet_extTrainer` that trainers other than ours and nnU-Net's come from.

    Returns:
        The modules of these trainers.

    Raises:
        InputError: a trainer of none of these folders.
    """
    folders = [Path(one).resolve() for one in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if one.strip()]
    modules = []
    for trainer in trainers:
        if trainer.__module__.partition(".")[0] in ("nnunetv2", OURS):
            continue
        # nnU-Net's finder forgets the module, but not its name
        place = Path(*trainer.__module__.split("."))
        files = (place.with_suffix(".py"), place / "__init__.py")
        home = next((folder for folder in folders if any((folder / file).is_file() for file in files)), None)
        if home is None:
            what = f"the trainer {trainer.__name__} of the module {trainer.__module__}"
            raise InputError(what, "one in a folder of nnUNet_extTrainer", "name its folder there")
        shutil.copytree(home, target, ignore=_all_but_python, dirs_exist_ok=True)
        modules.append(trainer.__module__)
    return modules


def imports_of(modules: Sequence[str], folder: Path) -> list[str]:
    """The installed packages that copied trainers import.

    Args:
        modules: of the trainers.
        folder: where they were copied to.

    Raises:
        InputError: something that they import is neither in their folder nor installed.
    """
    if not modules:
        return []
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", IMPORTED, *modules]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables)
    lacking = ended.stderr.strip().rpartition("\n")[2] if ended.returncode else ""
    owners, found = packages_distributions(), set()

    def beside(place: str) -> bool:
        return Path(place).is_relative_to(folder.resolve()) or bool(INSTALLED & {*Path(place).parts})

    for name, place in json.loads(ended.stdout.splitlines()[-1]) if ended.returncode == 0 else ():
        if name in owners:
            found.add(name)
        elif name not in sys.stdlib_module_names and not beside(place):
            lacking = f"it needs {place}"
    if lacking:
        what = (
            f"the trainer{'s' * (len(modules) > 1)} {listed(modules)}, which cannot be imported elsewhere ({lacking})"
        )
        remedy = "put what is lacking into the folder that nnUNet_extTrainer names"
        raise InputError(what, "one whose imports lie beside it or are installed", remedy)
    return sorted(found)


def _all_but_python(folder: str, names: list[str]) -> list[str]:
    places = {name: Path(folder, name) for name in names}
    return [name for name, at in places.items() if name == "__pycache__" or not (at.is_dir() or at.suffix == ".py")]


def base_image() -> str:
    """A public image with the Python that runs here; PyTorch and CUDA's libraries come with the requirements."""
    return f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
