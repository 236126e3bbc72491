"""What is wrong with a data set's `dataset.json`: all that nnU-Net stops at, or takes otherwise than it is meant."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name

from nnunetv2_ext.errors import InputError, is_whole
from nnunetv2_ext.text import listed

ENDINGS = sorted({ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings})
"""Of the files that nnU-Net reads."""
BACKGROUND, IGNORE = "background", "ignore"


class Fault(NamedTuple):
    """Something wrong with raw data, in the parts of an `InputError`."""

    got: str
    expected: str
    remedy: str
    fatal: bool = True
    """nnU-Net stops at it or trains on something else than what the files mean; otherwise it is only worth a word."""
    doubtful: bool = False
    """nnU-Net goes on with it, as other readers would not: worth a word when planning, but in doctor a fault."""


def description_faults(content: Mapping[str, Any], path: Path) -> list[Fault]:
    """All faults of a `dataset.json` that can be told without looking at the files.

    Args:
        content: what it holds.
        path: its own, for the messages.
    """
    return [
        *_channel_faults(content, path),
        *label_faults(content, path),
        *_number_faults(content, path),
        *ending_faults(content, path),
        *_reader_faults(content, path),
        *listing_faults(content, path),
    ]


def channel_names(content: Mapping[str, Any]) -> Any:
    """The entry `channel_names`, or `modality`, its older name, which nnU-Net still reads."""
    return content.get("channel_names", content.get("modality"))


def label_values(content: Mapping[str, Any]) -> list[int]:
    """The values that the label files may hold, in order, of a `dataset.json` without faults."""
    values = (value if isinstance(value, list) else [value] for value in content["labels"].values())
    return sorted({number for numbers in values for number in numbers})


def overwriting_reader(content: Mapping[str, Any]) -> type[BaseReaderWriter] | None:
    """nnU-Net's reader that a `dataset.json` asks for by name.

    Returns:
        None where it asks for none, or for one that there is not: nnU-Net then goes by the files' ending.
    """
    name = content.get("overwrite_image_reader_writer", "None")
    try:
        return None if name == "None" or not isinstance(name, str) else recursive_find_reader_writer_by_name(name)
    except RuntimeError:
        return None


def _written(entry: str, value: Any) -> str:
    return f'"{entry}": {json.dumps(value, ensure_ascii=False)}'


def _channel_faults(content: Mapping[str, Any], path: Path) -> Iterator[Fault]:
    names = channel_names(content)
    if not isinstance(names, dict) or not names:
        got = f"no channel_names in {path}" if names is None else f"channel_names = {names!r} in {path}"
        example = list(names) if isinstance(names, list) and names else ["MR"]
        written = _written("channel_names", {str(number): str(name) for number, name in enumerate(example)})
        yield Fault(got, "an object of numbers from 0 with their names", f"write {written} there, one name per channel")
        return
    if list(names) != [str(number) for number in range(len(names))]:
        numbers = {str(number) for number in range(len(names))}
        ordered = [names[key] for key in sorted(names, key=int)] if names.keys() == numbers else list(names.values())
        written = _written("channel_names", {str(number): name for number, name in enumerate(ordered)})
        yield Fault(
            f"the channels {listed(names)} in {path}",
            "0, 1, ... in this order, the numbers _0000, _0001, ... of the files",
            f"number them anew, such as {written}",
        )
    if not all(isinstance(name, str) for name in names.values()):
        yield Fault(f"channel_names = {names} in {path}", "names as texts", "put the names into quotes")


def label_faults(content: Mapping[str, Any], path: Path) -> Iterator[Fault]:
    """What is wrong with the names and values of `labels`, and with `regions_class_order`."""
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        what = "no labels" if labels is None else f"labels = {labels!r}"
        example = _written("labels", {BACKGROUND: 0, "organ": 1})
        yield Fault(f"{what} in {path}", "names with their values", f"write them, such as {example}")
        return
    if all(key.isdecimal() for key in labels) and all(isinstance(value, str) for value in labels.values()):
        turned = {BACKGROUND: 0} | {name: int(value) for value, name in labels.items() if int(value)}
        yield Fault(
            f"{_written('labels', labels)} in {path}, as nnU-Net v1 had it",
            "the name first, then the value",
            f"write {_written('labels', turned)}",
        )
        return
    if BACKGROUND not in labels:
        zero = next((name for name, value in labels.items() if value == 0), None)
        remedy = f"write {_written(BACKGROUND, 0)}" + (f" instead of {_written(zero, 0)}" if zero is not None else "")
        yield Fault(f"no label {BACKGROUND} among {listed(labels)} in {path}", f"{BACKGROUND} with the value 0", remedy)
        return
    odd = {name: value for name, value in labels.items() if not _is_label(value, name)}
    if odd:
        name, value = next(iter(odd.items()))
        whole = str(value).removesuffix(".0").isdecimal() and not isinstance(value, bool)
        yield Fault(
            f"the label {_written(name, value)} in {path}",
            "0, for the background" if name == BACKGROUND else "a whole number, or a list of them for a region",
            f"write {_written(name, 0 if name == BACKGROUND else int(float(value)))}"
            if whole
            else "give it a whole number, there and in the label files",
        )
        return
    yield from _value_faults(labels, path)
    yield from _region_faults(labels, content.get("regions_class_order"), path)


def _is_label(value: Any, name: str) -> bool:
    if name == BACKGROUND:
        return is_whole(value, 0) and value == 0
    if isinstance(value, list) and name != IGNORE:
        return bool(value) and all(is_whole(one, 0) for one in value)
    return is_whole(value, 0)


def _value_faults(labels: Mapping[str, Any], path: Path) -> Iterator[Fault]:
    """Labels of whole numbers: consecutive, each value once, `ignore` above all."""
    ordinary = {name: value for name, value in labels.items() if name != IGNORE}
    values = label_values({"labels": ordinary})
    wanted = list(range(len(values)))
    if values == [0]:
        yield Fault(f"no label beside {BACKGROUND} in {path}", "at least one", "name the values of the label files")
        return
    if values != wanted:
        missing = sorted(set(range(values[-1])) - set(values))
        yield Fault(
            f"the label values {listed(values)} in {path}",
            f"consecutive ones, {listed(wanted)}",
            f"give the labels the values {listed(wanted)} in the label files and there, or name the missing "
            f"{listed(missing)} as well",
        )
    elif IGNORE in labels and labels[IGNORE] != values[-1] + 1:
        yield Fault(
            f"{_written(IGNORE, labels[IGNORE])} beside the values {listed(values)} in {path}",
            f"the value above all others, {values[-1] + 1}",
            f"give {IGNORE} the value {values[-1] + 1} in the label files and there",
        )
    numbers = [json.dumps(value) for value in labels.values()]
    if len(set(numbers)) < len(numbers):
        twice = sorted(name for name, value in labels.items() if numbers.count(json.dumps(value)) > 1)
        what = f"one value for {listed(twice)} in {path}, one output of the network"
        yield Fault(what, "a value of its own for each", "keep one of them, or give the others values", fatal=False)
    for name in labels:
        if name != IGNORE and name.strip().lower() == IGNORE:
            remedy = f"write {IGNORE} if its voxels are to be ignored"
            yield Fault(f"the label '{name}' in {path}, an ordinary one for nnU-Net", IGNORE, remedy, fatal=False)


def _region_faults(labels: Mapping[str, Any], order: Any, path: Path) -> Iterator[Fault]:
    """Regions (lists of values) need the order in which they are painted over each other."""
    if not any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
        return
    lists = [value if isinstance(value, list) else [value] for name, value in labels.items() if name != IGNORE]
    regions = [numbers for numbers in lists if set(numbers) != {0}]
    known = {number for numbers in regions for number in numbers}
    if isinstance(order, list) and len(order) == len(regions) and all(is_whole(n) and n in known for n in order):
        return
    # what a region has and no later one paints over
    later = [{number for numbers in regions[index + 1 :] for number in numbers} for index in range(len(regions))]
    proposed = [next((n for n in one if n not in over), one[-1]) for one, over in zip(regions, later, strict=True)]
    yield Fault(
        f"no regions_class_order in {path}" if order is None else f"regions_class_order = {order!r} in {path}",
        f"a list of {len(regions)} label values, one per region, painted in this order",
        f"write {_written('regions_class_order', proposed)}, or another order of yours",
    )


def _number_faults(content: Mapping[str, Any], path: Path) -> Iterator[Fault]:
    number = content.get("numTraining")
    if not is_whole(number):
        got = f"no numTraining in {path}" if number is None else f"numTraining = {number!r} in {path}"
        listing = content.get("dataset")
        count = len(listing) if isinstance(listing, dict) else _training_cases(content, path)
        yield Fault(got, "the number of training cases", f"write {_written('numTraining', count)} there")


def _training_cases(content: Mapping[str, Any], path: Path) -> int:
    """As many as there are labels."""
    return len(list((path.parent / "labelsTr").glob(f"*{content.get('file_ending', '')}")))


def ending_faults(content: Mapping[str, Any], path: Path) -> Iterator[Fault]:
    ending = content.get("file_ending")
    if isinstance(ending, str) and ending.startswith(".") and ending.strip() == ending:
        if ending.lower() in ENDINGS or overwriting_reader(content):
            return
        remedy = "convert the files to .nii.gz and name that"
    else:
        fitting = f".{ending.strip().lstrip('.')}" if isinstance(ending, str) else None
        remedy = f"write {_written('file_ending', fitting if fitting in ENDINGS else '.nii.gz')}, that of the files"
    got = f"no file_ending in {path}" if ending is None else f"file_ending = {ending!r} in {path}"
    yield Fault(got, f"one of {listed(ENDINGS)}", remedy)


def _reader_faults(content: Mapping[str, Any], path: Path) -> Iterator[Fault]:
    name = content.get("overwrite_image_reader_writer", "None")
    if name != "None" and overwriting_reader(content) is None:
        yield Fault(
            f"overwrite_image_reader_writer = {name!r} in {path}, which nnU-Net passes over",
            f"one of {listed(reader.__name__ for reader in LIST_OF_IO_CLASSES)}",
            "correct it, or remove the entry",
        )


def listing_faults(content: Mapping[str, Any], path: Path) -> Iterator[Fault]:
    """The entry "dataset", which may name the files of each case."""
    listing = content.get("dataset")
    if "dataset" not in content:
        return
    if isinstance(listing, dict) and listing and all(map(_is_case, listing.values())):
        paths = [name for name in listing if name != Path(name).name or not name]
        if paths:
            got = f"the case {listed(paths, shown=3)} in {path}, which becomes the name of files"
            yield Fault(got, "names without /", "rename it there")
        return
    example = {"case": {"images": ["imagesTr/case_0000.nii.gz"], "label": "labelsTr/case.nii.gz"}}
    yield Fault(
        f'an entry "dataset" in {path} that does not name the files of each case',
        f"something like {json.dumps(example)}",
        "correct it, or remove it and keep the files in imagesTr and labelsTr",
    )


def _is_case(case: Any) -> bool:
    images = case.get("images") if isinstance(case, dict) else None
    if not isinstance(images, list) or not images:
        return False
    return all(isinstance(image, str) for image in images) and isinstance(case.get("label"), str)


def refuse_faults(faults: list[Fault], dataset: int | str) -> None:
    """Refuse raw data with a fatal fault: the first in whole, the next ones named, all of them counted.

    Raises:
        InputError: with the remedy of the first.
    """
    fatal = [fault for fault in faults if fault.fatal]
    if not fatal:
        return
    first, *others = fatal
    more = ""
    if others:
        told = listed((fault.got for fault in others), shown=3, separator="; ")
        more = f" (1 of {len(fatal)} faults; the others: {told}; nnunetv2_ext doctor -d {dataset} tells the remedies)"
    raise InputError(first.got, first.expected, first.remedy + more)
