"""Folders of thin images and their thick annotations, to be converted."""

import csv
from pathlib import Path

import numpy as np
import SimpleITK as sitk

MADE = "Dataset042_Liver"
OBLIQUE = (0.0, 0.6, 0.8, 1.0, 0.0, 0.0, 0.0, 0.8, -0.6)
STRAIGHT = tuple(np.eye(3).ravel())
NAMES = ("background", "liver", "tumour")


def write_image(path: Path, array: np.ndarray, *, spacing, origin, direction=OBLIQUE) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def write_case(
    folder: Path,
    case: str,
    *,
    ending: str = ".nii.gz",
    channels: int | None = None,
    slices: int = 12,
    thick: int = 3,
    ratio: float = 4,
    start: float = 0,
    values: tuple = (0, 1, 2),
    direction=OBLIQUE,
) -> np.ndarray:
    """Thin images of 2 mm slices and a thick annotation that begins `start` thin slices after them."""
    random = np.random.default_rng(len(case) + slices)
    for channel in range(channels or 1):
        name = case if channels is None else f"{case}_{channel:04d}"
        array = random.integers(-500, 500, (slices, 10, 8)).astype(np.int16)
        geometry = {"spacing": (0.8, 0.9, 2.0), "origin": (5.0, -6.0, 7.5), "direction": direction}
        write_image(folder / "images" / f"{name}{ending}", array, **geometry)
    centre = np.reshape(direction, (3, 3))[:, 2] * 2 * (start - 0.5 + ratio / 2)
    annotation = random.choice(np.array(values), (thick, 10, 8)).astype(np.uint8)
    geometry = {"spacing": (0.8, 0.9, 2 * ratio), "origin": tuple(np.add((5.0, -6.0, 7.5), centre).tolist())}
    write_image(folder / "labels" / f"{case}{ending}", annotation, **geometry, direction=direction)
    return annotation


def made(folder: Path) -> Path:
    return folder / "nnUNet_raw" / MADE


def report(folder: Path) -> dict[str, dict[str, str]]:
    with (made(folder) / "conversion.csv").open(newline="") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


def to_series(path: Path, *, uid: str) -> None:
    """Replace a volume by a folder of DICOM slices; images get voxels of their own, labels keep theirs."""
    volume = sitk.ReadImage(str(path), sitk.sitkInt16)
    if path.parent.name == "images":
        array = np.arange(volume.GetNumberOfPixels()).reshape(volume.GetSize()[::-1]) + int(uid[-1])
        thin = sitk.GetImageFromArray(array.astype(np.int16))
        thin.CopyInformation(volume)
        volume = thin
    folder = path.parent / path.name.removesuffix(".nii.gz")
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(volume.GetSize()[2]):
        single = volume[:, :, number : number + 1]
        single.SetMetaData("0008|0060", "CT")
        single.SetMetaData("0020|000d", "1.2.840.7")
        single.SetMetaData("0020|000e", uid)
        single.SetMetaData("0018|0050", str(volume.GetSpacing()[2]))
        single.SetMetaData("0020|0032", "\\".join(map(str, single.GetOrigin())))
        single.SetMetaData("0020|0037", "1\\0\\0\\0\\1\\0")
        writer.SetFileName(str(folder / f"{99 - number}.dcm"))
        writer.Execute(single)
    path.unlink()
