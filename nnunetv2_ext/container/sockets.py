"""The files of the one case that a platform of sockets hands over, and where it takes the labels.

The platform writes `inputs.json`, a list with an object for each socket; an image lies alone in the folder `images/...`
that the `relative_path` of its socket names. Older files say `interface` where newer ones say `socket`. Where there is
no `inputs.json`, the folders are looked for by slug, or the input is a plain folder of the files of one case.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import SimpleITK as sitk

from nnunetv2_ext.container.case import ENDINGS, ending, write_image
from nnunetv2_ext.container.settings import Settings
from nnunetv2_ext.data.cases import by_channel
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_json, unwritable
from nnunetv2_ext.text import counted, listed

INPUTS = "inputs.json"
ALONE = (*ENDINGS, ".mhd")


def case_files(folder: Path, settings: Settings) -> list[Path]:
    """The file of each channel, in their order.

    Raises:
        InputError: a socket, its folder or its file is missing, or there are several.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}", "the input there", "mount it")
    if (folder / INPUTS).exists():
        told = read_json(folder / INPUTS, "hand over what the platform writes", kind=list)
        return [_only_image(_folder_of(slug, told, folder)) for slug in settings.inputs]
    if any((folder / "images" / slug).is_dir() for slug in settings.inputs):
        return [_only_image(folder / "images" / slug) for slug in settings.inputs]
    return _plain(folder, settings.channels)


def _folder_of(slug: str, told: Sequence[Any], folder: Path) -> Path:
    """The folder of a socket, by the entries of `inputs.json`."""
    sockets = []
    for entry in told:
        socket = (entry.get("socket") or entry.get("interface")) if isinstance(entry, dict) else None
        if not isinstance(socket, dict) or not isinstance(socket.get("slug"), str):
            what = f"an entry of {folder / INPUTS} without a socket and its slug"
            raise InputError(what, "an object with one for each socket", "hand over what the platform writes")
        path = socket.get("relative_path") or f"images/{socket['slug']}"
        place = PurePosixPath(path) if isinstance(path, str) else PurePosixPath("/")
        if place.is_absolute() or ".." in place.parts:
            what = f"the relative_path {path!r} in {folder / INPUTS}"
            raise InputError(what, "a path below the input", "hand over what the platform writes")
        sockets.append((socket["slug"], place))
    found = [place for name, place in sockets if name == slug] or [at for _, at in sockets if at.name == slug]
    if len(found) != 1:
        there = f"{len(found)} sockets {slug}" if found else f"no socket {slug}"
        names = listed(name for name, _ in sockets) or "none"
        raise InputError(
            f"{there} in {folder / INPUTS}, which has {names}",
            "each that the container was built for once",
            "add it to the algorithm's interface, or build the container again with other --inputs",
        )
    return folder / found[0]


def _images(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())
    return sorted(path for path in files if ending(path, ALONE))


def _only_image(folder: Path) -> Path:
    files = _images(folder) if folder.is_dir() else []
    if len(files) == 1:
        return files[0]
    kinds = ", ".join(f"*{one}" for one in ALONE)
    if files:
        raise InputError(f"{counted([path.name for path in files], 'image')} in {folder}", "one", "remove the others")
    what = "no image in" if folder.is_dir() else "no folder"
    raise InputError(f"{what} {folder}", f"one file {kinds} in it", "put the image of this socket there")


def _plain(folder: Path, channels: Sequence[str]) -> list[Path]:
    """The files of one case in a plain folder: one image, or CASE_0000.mha, CASE_0001.mha, ..."""
    files = _images(folder)
    names = [path.name for path in files]
    wanted = f"one case of the {len(channels)} channels {listed(channels)}" if len(channels) > 1 else "one image"
    if not files:
        raise InputError(f"no {INPUTS} and no image in {folder}", f"sockets, or {wanted}", "put them there")
    if len(files) == len(channels) == 1:
        return files
    endings = {ending(path, ALONE) for path in files}
    numbered, unnumbered = by_channel(files, endings.pop()) if len(endings) == 1 else ({}, names)
    if unnumbered or len(numbered) != 1 or sorted(next(iter(numbered.values()))) != [*range(len(channels))]:
        remedy = "leave one there" if len(channels) == 1 else "name them CASE_0000.mha, CASE_0001.mha, ..."
        raise InputError(f"{counted(names, 'image')} in {folder}", wanted, remedy)
    (by_number,) = numbered.values()
    return [by_number[number] for number in sorted(by_number)]


def output_file(folder: Path, settings: Settings) -> Path:
    """Where the labels belong."""
    return folder / "images" / settings.output / "output.mha"


def write_output(labels: sitk.Image, target: Path) -> None:
    """Write the labels beside their place and rename them, so that they appear whole or not at all.

    Raises:
        InputError: they cannot be written, for instance on a full disk.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished_", dir=target.parent) as unfinished:
            part = Path(unfinished, target.name)
            write_image(labels, part)
            part.replace(target)
    except OSError as error:
        raise unwritable(target, error) from None
