"""The raw files of a data set, and what the fingerprint and the preprocessed data were made from, in `sources.json`."""

import filecmp
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_ext.data.cases import find_cases
from nnunetv2_ext.data.dataset import for_each
from nnunetv2_ext.data.description import channel_names
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FileState, file_state, is_unchanged, read_json, unwritable, write_json
from nnunetv2_ext.text import counted

RECORD = "sources.json"
FINGERPRINT = "dataset_fingerprint.json"
Sources = Mapping[str, tuple[Path, ...]]
"""The files of each training case, the label first."""


def find_sources(raw: Path, dataset_json: Mapping[str, Any]) -> dict[str, tuple[Path, ...]]:
    """The files of each training case as nnU-Net lists them; none where no raw data lie on this machine."""
    if not raw.is_dir():
        return {}
    return {name: (case.label, *case.images) for name, case in find_cases(raw, dataset_json)[0].items()}


def is_copy(path: Path, original: Path | None) -> bool:
    """Whether a file holds what a raw file holds, whatever their times; not where there is no such file."""
    return original is not None and original.is_file() and filecmp.cmp(path, original, shallow=False)


class Made(NamedTuple):
    """How something that lies among the preprocessed data was made."""

    settings: dict[str, Any]
    """What decided on it beside the raw files."""
    files: dict[str, tuple[int, int]]
    """Size and mtime (ns) of its files by their path in the folder: of others than these, nothing is known."""
    sources: dict[str, list[FileState]]
    """The raw files that it was made from."""

    def speaks_of(self, folder: Path) -> bool:
        """Whether the files are those that were made then, and not made anew by a command that keeps no record."""
        return _stamps(folder, self.files) == self.files


def _stamps(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    there = {name: (folder / name).stat() for name in names if (folder / name).is_file()}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in there.items()}


def read_record(folder: Path) -> dict[str, Made]:
    """What is known of the fingerprint and of each folder of preprocessed data, by name; nothing if it is damaged."""
    try:
        content = read_json(folder / RECORD, "")
        return {
            name: Made(
                dict(made["settings"]),
                {file: (stamp[0], stamp[1]) for file, stamp in made["files"].items()},
                {case: [FileState(*state) for state in states] for case, states in made["sources"].items()},
            )
            for name, made in content.items()
        }
    except (InputError, LookupError, TypeError, AttributeError, ValueError):
        return {}


@contextmanager
def recording(
    folder: Path, sources: Sources, making: Mapping[str, Mapping[str, Any]], *, progress: bool
) -> Iterator[None]:
    """Keep what is made within the block was made from, once it ends well; before that nothing is known of it.

    Args:
        folder: of the preprocessed data set.
        making: the settings of what is made, by name: the fingerprint's or a folder's of preprocessed data.
        progress: show a bar while raw files are read.

    Raises:
        InputError: a raw file cannot be read, or the record not be written.
    """
    record = read_record(folder)
    # as they are before: what changes meanwhile counts as changed
    before = _states(sources, record, progress=progress) if making else {}
    if record.keys() & making.keys():
        record = {name: made for name, made in record.items() if name not in making}
        _write_record(folder, record)
    yield
    for name, settings in making.items():
        properties = sorted(f"{name}/{path.name}" for path in (folder / name).glob("*.pkl"))
        record[name] = Made(dict(settings), _stamps(folder, properties or [name]), before)
    if making:
        _write_record(folder, record)


def _write_record(folder: Path, record: Mapping[str, Made]) -> None:
    try:
        write_json(folder / RECORD, {name: made._asdict() for name, made in record.items()}, indent=1)
    except OSError as error:
        raise unwritable(folder / RECORD, error) from None


def _states(sources: Sources, record: Mapping[str, Made], *, progress: bool) -> dict[str, list[FileState]]:
    """The state of every raw file; read only where the record does not know it.

    Raises:
        InputError: one cannot be read.
    """
    known = {
        (case, number, *state[:3]): state
        for made in record.values()
        for case, of_case in made.sources.items()
        for number, state in enumerate(of_case)
    }

    def state_of(file: tuple[str, int, Path]) -> FileState:
        case, number, path = file
        try:
            status = path.stat()
            times = (status.st_mtime_ns, status.st_ctime_ns)
            return known.get((case, number, status.st_size, *times)) or file_state(path)
        except OSError as error:
            what = f"an unreadable file {path} ({error.strerror})"
            raise InputError(what, "every image and label of the data set", "restore it or remove its case") from None

    files = [(case, number, path) for case, paths in sources.items() for number, path in enumerate(paths)]
    found = iter(for_each(state_of, files, processes=4, label="Raw files", progress=progress))
    return {case: [next(found) for _ in paths] for case, paths in sources.items()}


def other_cases(raw: Iterable[str], made: Iterable[str]) -> str:
    """In words, which cases only the raw data have and which they have no more; empty where they are the same."""
    new, gone = sorted(set(raw) - set(made)), sorted(set(made) - set(raw))
    told = [f"{counted(new, 'case')} of the raw data not in it"] * bool(new)
    return " and ".join(told + [f"{counted(gone, 'case')} in it that the raw data lack"] * bool(gone))


def changed_sources(sources: Sources, made: Made) -> str:
    """In words, which cases have other raw files than those that something was made from; empty where none has."""
    common = sources.keys() & made.sources.keys()
    changed = sorted(case for case in common if not _all_unchanged(sources[case], made.sources[case]))
    return f"images or labels of {counted(changed, 'case')} have changed since it was made" if changed else ""


def _all_unchanged(paths: tuple[Path, ...], recorded: list[FileState]) -> bool:
    return len(paths) == len(recorded) and all(map(is_unchanged, paths, recorded))


class Age(NamedTuple):
    """What times tell of something that no record tells of."""

    certain: bool
    """False where content of the raw files is older, but they were put there later: copied, or replaced."""
    told: str


def newer_sources(sources: Sources, written: Mapping[str, int]) -> Age | None:
    """Cases with raw files that are newer than what was made of them, or None.

    Args:
        written: by case, when that was written (mtime, ns).
    """
    newer: dict[bool, list[str]] = {True: [], False: []}
    for case in sorted(sources.keys() & written.keys()):
        status = [path.stat() for path in sources[case] if path.is_file()]
        by_content = any(one.st_mtime_ns > written[case] for one in status) or len(status) < len(sources[case])
        if by_content or any(one.st_ctime_ns > written[case] for one in status):
            newer[by_content].append(case)
    if newer[True]:
        return Age(True, f"images or labels of {counted(newer[True], 'case')} are newer than it or gone")
    if newer[False]:
        return Age(False, f"images or labels of {counted(newer[False], 'case')} came after it, by their time of change")
    return None


def stale_fingerprint(
    folder: Path, sources: Sources, dataset_json: Mapping[str, Any], extractor: str | None = None
) -> str:
    """Why the fingerprint, if there is one, is not that of the raw data; empty where it is, or nothing tells otherwise.

    Args:
        folder: of the preprocessed data set.
        extractor: the class that is to extract it, if that matters.

    Raises:
        InputError: a damaged fingerprint.
    """
    file = folder / FINGERPRINT
    if not sources or not file.is_file():
        return ""
    content = read_json(file, "remove it and plan again")
    parts = [content.get(key) for key in ("spacings", "foreground_intensity_properties_per_channel")]
    cases, channels = (len(part) if isinstance(part, list | dict) else 0 for part in parts)
    if cases != len(sources):
        return f"it is of {cases} cases and the raw data have {len(sources)}"
    if channels != len(stated := channel_names(dataset_json) or {}):
        return f"it is of {channels} channels and the raw data have {len(stated)}"
    made = read_record(folder).get(FINGERPRINT)
    if made is None or not made.speaks_of(folder):
        age = newer_sources(sources, dict.fromkeys(sources, file.stat().st_mtime_ns))
        return age.told if age else ""
    now = fingerprint_settings(dataset_json, extractor or made.settings.get("extractor"))
    if made.settings != now:
        return f"it was made with {_in_words(made.settings)}, not with {_in_words(now)}"
    return other_cases(sources, made.sources) or changed_sources(sources, made)


def fingerprint_settings(dataset_json: Mapping[str, Any], extractor: str | None) -> dict[str, Any]:
    """What decides on the fingerprint beside the raw files."""
    return {"extractor": extractor, "reader": dataset_json.get("overwrite_image_reader_writer")}


def _in_words(settings: Mapping[str, Any]) -> str:
    return " and ".join(f"the {name} {value or 'of the file ending'}" for name, value in settings.items())
