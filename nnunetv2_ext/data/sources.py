"""Volumes as users keep them in folders: found by name, opened in any format, paired with their annotations."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from nnunetv2_ext.data.dicom import is_dicom, open_dicom, open_series
from nnunetv2_ext.data.volumes import VOLUME_ENDINGS, Volume, check_name, read_grid
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed


def find_volumes(folder: Path) -> dict[str, Path]:
    """Every volume of a folder by its name: files that SimpleITK reads, without their ending, and subfolders (DICOM).

    Raises:
        InputError: no such folder, two volumes of one name, or a name that is not in UTF-8.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}", "a folder of volumes", "correct the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        check_name(path)
        if path.name.startswith(".") or not (path.is_dir() or _is_volume(path)):
            continue
        name = path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem
        if name in found:
            raise InputError(f"{found[name].name} and {path.name} in {folder}", "one volume of a name", "remove one")
        found[name] = path
    return found


def find_others(folder: Path) -> list[Path]:
    """The files of a folder that `find_volumes` leaves out, but for hidden ones and the second files of volumes."""
    names = find_volumes(folder)
    others = [path for path in sorted(folder.iterdir()) if not path.is_dir() and not path.name.startswith(".")]
    return [path for path in others if not _is_volume(path) and Path(path.name.removesuffix(".gz")).stem not in names]


def _is_volume(path: Path) -> bool:
    # Of a pair of files the header counts, compressed or not.
    if path.name.endswith((".img", ".img.gz")) and path.with_name(".hdr".join(path.name.rsplit(".img", 1))).exists():
        return False
    # By its ending even where it is too damaged to be recognised, so that it is not left out silently.
    if path.name.endswith((*VOLUME_ENDINGS, ".tif", ".tiff")):
        return True
    return bool(sitk.ImageFileReader.GetImageIOFromFileName(str(path)))


def open_volume(path: Path) -> Volume:
    """Read the header of a volume: a file, or a folder that holds one DICOM series at any depth.

    Raises:
        InputError: missing or unreadable file, no volume of one value per voxel, a folder without exactly one series, a
            series that is no stack of evenly spaced slices, a DICOM object that holds no image.
    """
    if path.is_dir():
        return open_series(path)
    return open_dicom(path) if is_dicom(path) else Volume(path, read_grid(path))


@dataclass(frozen=True)
class Pair:
    """The images of a case, one per channel, and its annotation."""

    name: str
    images: tuple[Path, ...]
    label: Path


def pair_by_name(images: Path, labels: Path) -> tuple[list[Pair], list[Path]]:
    """Pair the volumes of two folders.

    The annotation of an image has the image's name, or the image's name without an underscore and four digits at its
    end, which then are the number of the channel.

    Returns:
        The pairs by name, and the volumes that are left over.

    Raises:
        InputError: no such folder, two volumes of one name or channel, channels that are not numbered 0000, 0001, ...
    """
    annotations = find_volumes(labels)
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    unmatched = []
    for name, path in find_volumes(images).items():
        numbered = re.fullmatch(r"(.+)_(\d{4})", name)
        if name in annotations:
            case, channel = name, 0
        elif numbered and numbered[1] in annotations:
            case, channel = numbered[1], int(numbered[2])
        else:
            unmatched.append(path)
            continue
        if channel in channels[case]:
            raise InputError(
                f"{channels[case][channel].name} and {path.name} for channel {channel} of case {case} in {images}",
                "one image per channel",
                "remove one or number them _0000, _0001, ...",
            )
        channels[case][channel] = path
    for case, found in channels.items():
        if sorted(found) != list(range(len(found))):
            raise InputError(
                f"the channels {listed(sorted(found))} of case {case} in {images}",
                "channels 0 (_0000), 1 (_0001), ...",
                "restore the missing one or number them anew",
            )
    unmatched += [path for name, path in annotations.items() if name not in channels]
    pairs = [
        Pair(case, tuple(found[channel] for channel in sorted(found)), annotations[case])
        for case, found in sorted(channels.items())
    ]
    return pairs, unmatched
