"""`container.json` beside the models: what the container reads, writes and predicts with; written and read again."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nnunetv2_ext
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_json, write_json
from nnunetv2_ext.text import listed

SETTINGS = "container.json"
FORMAT = "nnunetv2_ext container 1"
CHALLENGE, FOLDER = "grand-challenge", "folder"
MOUNTED = "mount the container's folder model at this place, or upload its model.tar.gz"
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Settings:
    """How a container is spoken to."""

    interface: str
    """`grand-challenge`: one case, by sockets; `folder`: a folder is watched."""
    models: tuple[str, ...]
    """Folders beside `container.json`."""
    channels: tuple[str, ...]
    """Names, in the order of dataset.json."""
    inputs: tuple[str, ...] = ()
    """The slug of each channel's socket."""
    output: str = ""
    """The slug of the socket of the labels."""
    weights: tuple[float, ...] | None = None
    """Of each model, None for equal ones."""
    step_size: float = 0.5
    mirroring: bool = True
    tif_spacing: tuple[float, ...] | None = None
    """mm along z, y, x, of TIFF files, which tell none; None refuses them."""


def check_interface(settings: Settings) -> None:
    """Refuse sockets that no platform has, or that do not fit the model.

    Raises:
        InputError: no such interface, no slugs, or not one per channel.
    """
    if settings.interface not in (CHALLENGE, FOLDER):
        raise InputError(f"--interface {settings.interface}", f"{CHALLENGE} or {FOLDER}", "choose one")
    if settings.interface == FOLDER:
        if settings.inputs or settings.output:
            what = "--inputs" if settings.inputs else "--output-slug"
            raise InputError(f"{what} with --interface {FOLDER}", "it for a platform of sockets alone", "leave it out")
    else:
        slugs = [*settings.inputs, settings.output]
        for slug in filter(None, slugs):
            if not SLUG.fullmatch(slug):
                raise InputError(
                    f"the slug '{slug}'", "small letters and digits, with '-' between", "copy it from the platform"
                )
        names, given = listed(settings.channels), len(settings.inputs)
        if given != len(settings.channels):
            what = f"--inputs {listed(settings.inputs, separator=' ')}" if given else "no --inputs"
            expected = f"a socket for each of the {len(settings.channels)} channels, {names}, in this order"
            count = f"{len(settings.channels)} slug{'s' * (len(settings.channels) > 1)}"
            where = "as the algorithm's interface on grand-challenge shows them, or take --interface folder"
            raise InputError(what, expected, f"name {count}, {where}")
        if len(set(settings.inputs)) < given:
            raise InputError("one slug twice in --inputs", f"a socket for each of {names}", "correct it")
        if not settings.output:
            raise InputError("no --output-slug", "the slug of the socket of the labels", "name it")
    spacing = settings.tif_spacing
    if spacing is not None and (len(spacing) != 3 or not all(0 < length < float("inf") for length in spacing)):
        raise InputError(f"--tif-spacing {listed(spacing, separator=' ')}", "three lengths in mm", "correct it")


def write_settings(settings: Settings, folder: Path) -> None:
    """Write `container.json`.

    Raises:
        OSError: as `files.write_json`.
    """
    told = {"format": FORMAT, "made_by": f"nnunetv2_ext {nnunetv2_ext.__version__}", **asdict(settings)}
    write_json(folder / SETTINGS, told)


def read_settings(folder: Path) -> Settings:
    """What `write_settings` wrote.

    Raises:
        InputError: no such file, or none that this version understands.
    """
    path = folder / SETTINGS
    told = read_json(path, MOUNTED)
    if told.get("format") != FORMAT:
        raise InputError(f"{path} of the format {told.get('format')!r}", repr(FORMAT), "build the container again")
    try:
        settings = Settings(
            interface=told["interface"],
            models=_texts(told["models"]),
            channels=_texts(told["channels"]),
            inputs=_texts(told["inputs"]),
            output=told["output"],
            weights=_numbers(told["weights"]),
            step_size=float(told["step_size"]),
            mirroring=bool(told["mirroring"]),
            tif_spacing=_numbers(told["tif_spacing"]),
        )
        if not settings.models:
            raise ValueError("no models")
        check_interface(settings)
    except (LookupError, TypeError, ValueError) as error:
        what = f"a damaged {path} ({error.args[0] if error.args else error})"
        raise InputError(what, "what nnunetv2_ext container wrote", MOUNTED) from None
    return settings


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"no names in {values!r}")
    return tuple(map(str, values))


def _numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))
