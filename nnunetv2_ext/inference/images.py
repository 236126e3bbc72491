"""The images to predict: which cases lie in a folder, and the reading of one, with all that can be wrong with it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_ext.data.cases import by_channel, ending_of
from nnunetv2_ext.data.damage import unreadable
from nnunetv2_ext.data.description import channel_names
from nnunetv2_ext.data.nifti import is_nifti, missing_values
from nnunetv2_ext.data.raw import Header, read_header
from nnunetv2_ext.data.volumes import check_complete, check_told
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import counted, listed


class Image(NamedTuple):
    """An image as nnU-Net's reader gives it."""

    voxels: np.ndarray
    """(channels, z, y, x), float32."""
    properties: dict[str, Any]
    """The reader's: the spacing in mm and what it needs to write a label file."""


def find_images(source: Path, ending: str) -> dict[str, list[Path]]:
    """The files of each case, by its name, in a folder with nnU-Net's names, or of the one case that a file is of.

    Args:
        source: a folder of CASE_0000.nii.gz, CASE_0001.nii.gz, ..., or one of these files, or any file of one channel.
        ending: that of the model's training images.

    Raises:
        InputError: no such folder or file, no image in it, or names without the number of a channel.
    """
    if source.is_file():
        if not source.name.endswith(ending):
            raise InputError(f"the file {source}", f"one of the model's kind, *{ending}", "convert it")
        channels, unnumbered = by_channel([source], ending)
        if unnumbered:
            return {source.name.removesuffix(ending): [source]}
        (case,) = channels
        channels, _ = by_channel(sorted(source.parent.glob(f"*{ending}")), ending)
        return {case: [channels[case][number] for number in sorted(channels[case])]}
    if not source.is_dir():
        raise InputError(f"no folder {source}", "a folder of images, or an image", "check the path")
    # a folder or a dead link in the place of an image is told when it is read
    files = sorted(path for path in source.iterdir() if not path.name.startswith("."))
    ours = [path for path in files if path.name.endswith(ending)]
    if not ours:
        others = sorted({ending_of(path.name) for path in files} - {""})
        what = f"no files *{ending} in {source}" + f", but {listed(f'*{other}' for other in others)}" * bool(others)
        remedy = f"convert them to {ending}" if others else "put them there, or check the path"
        raise InputError(what, "images named as in imagesTr", remedy)
    channels, unnumbered = by_channel(ours, ending)
    if unnumbered:
        name = unnumbered[0].removesuffix(ending)
        what = f"{counted(unnumbered, 'image')} without the number of a channel in {source}"
        remedy = f"rename it to {name}_0000{ending}, and so on"
        images = source.with_name(source.name.replace("labels", "images"))
        if images.name != source.name and images.is_dir():
            what, remedy = f"{what}, a folder of labels by its name", f"give the images, {images} for instance"
        raise InputError(what, f"names like {name}_0000{ending}", remedy)
    return {case: [numbers[number] for number in sorted(numbers)] for case, numbers in sorted(channels.items())}


def check_channels(files: Sequence[Path], ending: str) -> None:
    """Refuse a case whose files leave a channel out.

    Raises:
        InputError: a gap in _0000, _0001, ...
    """
    numbers = [path.name.removesuffix(ending)[-4:] for path in files]
    unnumbered = len(files) == 1 and not re.fullmatch(r".+_\d{4}", files[0].name.removesuffix(ending))
    if not unnumbered and numbers != [f"{number:04d}" for number in range(len(files))]:
        told = listed(path.name for path in files)
        raise InputError(f"the files {told}", "channels _0000, _0001, ... without a gap", "restore the missing one")


def read_image(
    files: Sequence[Path], reader: BaseReaderWriter, description: Mapping[str, Any], *, dimensions: int = 2
) -> Image:
    """Read the channels of one case as nnU-Net does, and refuse what it would take in silence or fail on.

    Args:
        files: one per channel, in their order.
        description: the model's dataset.json, which tells the channels.
        dimensions: the least that the model takes.

    Raises:
        InputError: a file is unreadable or cut off, has no spacing or NaN in it, or they are of several grids, of
            another number of channels, or of too few dimensions.
    """
    names = channel_names(description)
    headers = [_header(path, type(reader), dimensions) for path in files]
    held = [header.channels for header in headers if header is not None]
    if len(held) == len(files) and sum(held) != len(names):
        what = f"{counted([path.name for path in files], 'file')} of {sum(held)} channel{'s' * (sum(held) != 1)}"
        raise InputError(what, f"the {len(names)} channels {listed(names.values())}", "restore what is missing")
    for path, header in zip(files[1:], headers[1:], strict=True):
        if header is not None and headers[0] is not None and (differing := headers[0].grid.differences(header.grid)):
            what = f"{path} with {listed(differing)}"
            raise InputError(what, f"the grid of {files[0].name}", "resample it to that one, or correct its header")
    try:
        voxels, properties = reader.read_images([str(path) for path in files])
    except Exception as error:  # of a damaged file anything
        raise unreadable(next((path for path in files if not _is_whole(path)), files[0]), error) from None
    if len(voxels) != len(names):
        raise InputError(f"{len(voxels)} channels in {files[0]}", f"the {len(names)} of the model", "convert it")
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(np.sum(voxels, dtype=np.float64))
    hidden = sum(missing_values(path) for path in files if is_nifti(path))
    if not finite or hidden:
        number = int(np.count_nonzero(~np.isfinite(voxels))) or hidden
        raise InputError(
            f"{number} voxels of {listed(path.name for path in files)} that are NaN or infinite",
            "numbers",
            "replace them, in an image by the value of its background",
        )
    return Image(voxels, properties)


def _header(path: Path, reader: type[BaseReaderWriter], dimensions: int) -> Header | None:
    """What the header tells, None where a format has none that is known.

    Raises:
        InputError: see `read_image`.
    """
    if path.is_dir():  # of which ITK's libraries write a trace
        raise InputError(f"a folder {path}", "an image there", "put the image's file there, or remove the folder")
    try:
        header = read_header(path, reader)
    except InputError as error:
        got, expected, remedy = error.args
        raise InputError(got if str(path) in got else f"{path} with {got}", expected, remedy) from None
    if header is None:
        return None
    if header.dimensions < dimensions:
        what = f"{path} of {header.dimensions} dimensions"
        raise InputError(what, f"the {dimensions} of the model", "predict it with a model of configuration 2d")
    if header.dimensions == 3 and header.channels == 1:
        check_complete(path)
        check_told(path)
    return header


def _is_whole(path: Path) -> bool:
    try:
        check_complete(path, unpack=True)
        return path.stat().st_size > 0
    except (InputError, OSError):
        return False
