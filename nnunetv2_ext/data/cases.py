"""The training cases of a raw data set as nnU-Net finds them, and what is wrong with their files' names."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_ext.data.description import ENDINGS, Fault
from nnunetv2_ext.text import counted

IMAGES, LABELS = "imagesTr", "labelsTr"


@dataclass(frozen=True)
class Case:
    """The files of a training case: an image per channel, and its label file."""

    images: tuple[Path, ...]
    label: Path


def name_within(folder: Path, path: Path) -> str:
    """A file's path within the data set, where it lies there."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


class Collected:
    """Faults that several cases or files share, told once with their number and the first of them."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._where: dict[tuple[str, str, str, bool, bool], list[str]] = defaultdict(list)

    def add(
        self, what: str, where: str, expected: str, remedy: str, *, fatal: bool = True, doubtful: bool = False
    ) -> None:
        """One more of them: `what` is wrong in the case or file `where`."""
        self._where[what, expected, remedy, fatal, doubtful].append(where)

    def faults(self) -> list[Fault]:
        return [
            Fault(f"{what} in {counted(where, self.noun)}", expected, remedy, fatal, doubtful)
            for (what, expected, remedy, fatal, doubtful), where in self._where.items()
        ]


def find_cases(folder: Path, description: Mapping[str, Any]) -> tuple[dict[str, Case], list[Fault]]:
    """The training cases of a raw data set as nnU-Net finds them, with what is wrong with their files.

    Args:
        folder: of the data set.
        description: its `dataset.json`; without faults in `file_ending` and `dataset`.

    Returns:
        The cases whose files are all there, by name; the faults.
    """
    cases: dict[str, Case] = {}
    if "dataset" in description:
        return cases, list(_take_cases(folder, description["dataset"], cases))
    return cases, list(_find_in_folders(folder, description["file_ending"], cases))


def _find_in_folders(folder: Path, ending: str, cases: dict[str, Case]) -> Iterator[Fault]:
    """The cases of imagesTr and labelsTr, by nnU-Net's rule for names."""
    for name in (IMAGES, LABELS):
        if not (folder / name).is_dir():
            yield Fault(f"no folder {folder / name}", f"the files of {name}", "put them there")
            return
    files = sorted(path.name for path in (folder / IMAGES).iterdir() if path.is_file())
    ours = [name for name in files if name.endswith(ending)]
    others = [name for name in files if not name.endswith(ending) and ending_of(name)]
    if not ours:
        got, remedy = f"no files *{ending} in {folder / IMAGES}", "put the images there"
        if others:
            most, number = Counter(map(ending_of, others)).most_common(1)[0]
            got, remedy = f"{got}, but {number} of *{most}", f'write "file_ending": "{most}" in dataset.json'
        yield Fault(got, "those that file_ending names", remedy)
        return
    if others:
        what = f"{counted(others, 'file')} of another ending than {ending} in {IMAGES}, which nnU-Net passes over"
        yield Fault(what, f"images *{ending}", "convert or remove them", fatal=False)
    channels, unnumbered = by_channel((folder / IMAGES / name for name in ours), ending)
    if unnumbered:
        first = unnumbered[0]
        yield Fault(
            f"{counted(unnumbered, 'image')} without the number of a channel in {folder / IMAGES}",
            f"names like {first.removesuffix(ending)}_0000{ending}",
            f"rename {IMAGES}/{first} to {IMAGES}/{first.removesuffix(ending)}_0000{ending}"
            + ", and so on" * (len(unnumbered) > 1),
        )
    gaps = Collected("case")
    for case, by_number in channels.items():
        if sorted(by_number) != list(range(len(by_number))):
            lacking = ", ".join(f"_{number:04d}" for number in range(max(by_number)) if number not in by_number)
            gaps.add(f"no channel {lacking}", case, "channels _0000, _0001, ... without a gap", "restore its file")
        cases[case] = Case(tuple(by_number[n] for n in sorted(by_number)), folder / LABELS / f"{case}{ending}")
    yield from gaps.faults()
    yield from _label_file_faults(folder / LABELS, ending, cases, {name.removesuffix(ending) for name in unnumbered})


def by_channel(files: Iterable[Path], ending: str) -> tuple[dict[str, dict[int, Path]], list[str]]:
    """The files of each case by the number of their channel, and the names of those that have none."""
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    unnumbered = []
    for path in files:
        match = re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending))
        if match:
            channels[match[1]][int(match[2])] = path
        else:
            unnumbered.append(path.name)
    return channels, unnumbered


def ending_of(name: str) -> str:
    """The longest ending of a file that is one of those that nnU-Net knows, or nothing."""
    return next((ending for ending in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(ending)), "")


def _label_file_faults(folder: Path, ending: str, cases: dict[str, Case], told: set[str]) -> Iterator[Fault]:
    """A label file for each case, and no other; images without number are `told` already."""
    labels = {path.name.removesuffix(ending) for path in folder.iterdir() if path.name.endswith(ending)}
    lacking = sorted(cases.keys() - labels)
    numbered = [case for case in lacking if f"{case}_0000" in labels]
    plain = [case for case in lacking if case not in numbered]
    if numbered:
        names = [f"{case}_0000{ending}" for case in numbered]
        yield Fault(
            f"{counted(names, 'label file')} with the number of a channel in {folder}",
            f"the name of the case alone, such as {numbered[0]}{ending}",
            f"rename {LABELS}/{names[0]} to {LABELS}/{numbered[0]}{ending}" + ", and so on" * (len(names) > 1),
        )
    if plain:
        yield Fault(
            f"no label file for {counted(plain, 'case')} in {folder}",
            f"one per case, such as {plain[0]}{ending}",
            f"restore it, or remove the images of the case from {IMAGES} and correct numTraining",
        )
    left = sorted(labels - cases.keys() - told - {f"{case}_0000" for case in numbered})
    if left:
        more = ", and so on," * (len(left) > 1)
        yield Fault(
            f"no image for {counted(left, 'label file')} of {folder}, which nnU-Net passes over",
            f"an image for each, such as {left[0]}_0000{ending} in {IMAGES}",
            f"restore it, or remove {LABELS}/{left[0]}{ending}{more} and correct numTraining",
        )
    for case in [*plain, *numbered]:
        del cases[case]


def _take_cases(folder: Path, listing: Mapping[str, Any], cases: dict[str, Case]) -> Iterator[Fault]:
    """The cases that `dataset.json` names with their files."""
    missing = []
    for name, entry in listing.items():
        case = Case(tuple(_expanded(folder, image) for image in entry["images"]), _expanded(folder, entry["label"]))
        lacking = [path for path in (*case.images, case.label) if not path.is_file()]
        missing += lacking
        if not lacking:
            cases[name] = case
    if missing:
        names = [name_within(folder, path) for path in missing]
        got = f'{counted(names, "missing file")} that "dataset" in {folder / "dataset.json"} names'
        yield Fault(got, "every file that it names", "restore them, or take their cases out of it and of numTraining")


def _expanded(folder: Path, written: str) -> Path:
    """The path of a file as nnU-Net takes it: with variables, and from the folder of the data set."""
    return (folder / os.path.expandvars(written)).absolute()


def files_of(cases: Mapping[str, Case]) -> list[tuple[Path, bool]]:
    """Every file of some cases once, and whether it is a label file."""
    images = {(path, False) for case in cases.values() for path in case.images}
    return sorted(images | {(case.label, True) for case in cases.values()})
