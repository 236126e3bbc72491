"""nnU-Net's folders and the data sets in them; JSON, pickles and the states of files; files whole or not at all."""

import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed, one_line

FOLDER_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
REFERENCES = "gt_segmentations"
"""The folder of the labels of preprocessed cases, copies of the raw ones, in that of the preprocessed data set."""


def nnunet_folder(variable: str) -> Path:
    """The existing folder that `nnUNet_raw`, `nnUNet_preprocessed` or `nnUNet_results` names.

    Raises:
        InputError: the variable is unset or names no folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise InputError(
            f"no value of {variable}", "the path of a folder in it", f"run export {variable}=/path/to/{variable}"
        )
    folder = Path(value)
    if not folder.is_dir():
        raise InputError(f"{variable}={value}", "an existing folder", f"run mkdir -p '{value}' or correct the variable")
    return folder


def raw_folder(dataset: str) -> Path | None:
    """Where the raw data of a data set lie, by its name; None on a machine that has none, which can train too."""
    raw = os.environ.get("nnUNet_raw")
    return Path(raw) / dataset if raw and (Path(raw) / dataset).is_dir() else None


def dataset_name(dataset: int | str) -> str:
    """The folder name `DatasetXXX_Name` of a data set given by id or by name, looked up in nnU-Net's folders.

    Raises:
        InputError: neither an id nor a data set's name, no such data set, or one id with several names.
    """
    text = str(dataset)
    searched = [Path(os.environ[variable]) for variable in FOLDER_VARIABLES if os.environ.get(variable)]
    there = {child.name for folder in searched if folder.is_dir() for child in folder.iterdir() if child.is_dir()}
    known = sorted(name for name in there if re.fullmatch(r"Dataset\d{3}_.+", name))
    choose = f"choose one of {listed(known, shown=10)}, or check" if known else "check the id and"
    choose += " the nnU-Net variables"
    if re.fullmatch(r"Dataset\d{3}_.+", text):
        pattern, wanted = re.escape(text), f"a folder {text}"
    elif text.isdecimal() and int(text) <= 999:
        pattern, wanted = rf"Dataset{int(text):03d}_.+", f"one folder Dataset{int(text):03d}_*"
    else:
        raise InputError(f"the data set '{text}'", "an id of 0 to 999 or a name like Dataset004_Hippocampus", choose)
    if not searched:
        nnunet_folder("nnUNet_raw")
    found = [name for name in known if re.fullmatch(pattern, name)]
    if len(found) == 1:
        return found[0]
    where = ", ".join(str(folder) for folder in searched)
    if not found:
        raise InputError(f"no data set {text}", f"{wanted} in {where}", choose)
    raise InputError(
        f"{len(found)} data sets with id {text} ({', '.join(found)})", wanted, "rename or remove one of them"
    )


def dataset_number(name: str) -> int:
    """The id of a data set, from its whole name."""
    return int(name[7:10])


def new_dataset_name(output: int | str, name: str) -> str:
    """The folder name `DatasetXXX_Name` of a data set that is to be made.

    Args:
        output: its id.
        name: what follows `DatasetXXX_`.

    Raises:
        InputError: no id, no name, or an id that a data set has in one of nnU-Net's folders.
    """
    if not str(output).isdecimal() or int(output) > 999:
        raise InputError(f"the output data set '{output}'", "an id of 0 to 999", "choose a free id, such as 104")
    if not re.fullmatch(r"[\w.+-]+", name) or re.match(r"Dataset\d{3}_", name):
        raise InputError(f"the name '{name}'", "what follows DatasetXXX_: letters, digits, _ . + -", "choose another")
    prefix = f"Dataset{int(output):03d}_"
    # One id with two names, wherever they are, makes nnU-Net refuse both.
    for folder in filter(None, map(os.environ.get, FOLDER_VARIABLES)):
        if taken := sorted(path for path in Path(folder).glob(f"{prefix}*") if path.is_dir()):
            raise InputError(
                f"the output id {output}, which {taken[0]} has", "an id without data", "choose another id or remove it"
            )
    return prefix + name


def read_json(path: Path, remedy: str, *, kind: type = dict) -> Any:
    """The content of a JSON file.

    Args:
        kind: what it holds: a dict (JSON's object) or a list.

    Raises:
        InputError: the file is missing, no valid JSON (truncated, for instance) or holds another kind; ends with
            `remedy`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no file {path}", "a JSON file there", remedy) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"a damaged file {path} ({error})", "valid JSON", remedy) from None
    except OSError as error:
        raise InputError(f"an unreadable file {path} ({error.strerror})", "a JSON file there", remedy) from None
    if not isinstance(content, kind):
        names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
        raise InputError(f"{names.get(type(content), 'a number')} in {path}", names[kind], remedy)
    return content


def read_plans(path: Path, remedy: str) -> dict[str, Any]:
    """nnU-Net's plans: an object of configurations, each an object that may hold or inherit a `training` block.

    Raises:
        InputError: as `read_json`, or no such configurations.
    """
    plans = read_json(path, remedy)
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or not configurations:
        raise InputError(f"no configurations in {path}", "nnU-Net's plans", remedy)
    for name, of_it in configurations.items():
        if not isinstance(of_it, dict) or not isinstance(of_it.get("training"), dict | None):
            what = "training of " if isinstance(of_it, dict) else ""
            raise InputError(f"no object as {what}configuration {name} in {path}", "nnU-Net's plans", remedy)
        line = [name]  # of those that inherit from each other
        while "inherits_from" in (held := configurations[line[-1]]):
            if not isinstance(parent := held["inherits_from"], str) or parent in line or parent not in configurations:
                told = f"configuration {line[-1]} of {path} that inherits from {parent!r}"
                raise InputError(told, "another configuration of these plans", remedy)
            line.append(parent)
    return dict(plans)


class _DataUnpickler(pickle.Unpickler):
    """Reads numbers, texts, containers and numpy's numbers and arrays of them; refuses whatever else a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        whole = f"{module}.{name}"
        allowed = {f"numpy.{name}" for name in ("dtype", "ndarray")}
        for core in ("numpy.core", "numpy._core"):
            allowed |= {f"{core}.multiarray.{name}" for name in ("scalar", "_reconstruct")}
            allowed.add(f"{core}.numeric._frombuffer")
        if whole not in allowed and whole not in {"collections.OrderedDict", "builtins.set", "builtins.slice"}:
            raise pickle.UnpicklingError(f"{whole} in it, which could run code")
        return super().find_class(module, name)


def read_pickle(path: Path, remedy: str) -> Any:
    """The content of a pickle that holds data alone, as nnU-Net's properties of a case; nothing in it is run.

    Raises:
        InputError: the file is missing or damaged, or names anything but numbers, texts and arrays of numbers.
    """
    try:
        with path.open("rb") as stream:
            return _DataUnpickler(stream).load()
    except FileNotFoundError:
        raise InputError(f"no file {path}", "nnU-Net's properties of a case", remedy) from None
    except Exception as error:  # unpickling damaged bytes raises anything
        what = f"an unreadable file {path} ({one_line(error)})"
        raise InputError(what, "numbers, texts and arrays of them", remedy) from None


class FileState(NamedTuple):
    """What a file held when it was looked at, to tell later whether it holds the same."""

    size: int
    """Bytes."""
    mtime: int
    """Nanoseconds, of its content; what copies may take over (`cp -p`, `rsync -a`)."""
    ctime: int
    """Nanoseconds, of its entry; what no copy can take over."""
    digest: str
    """BLAKE2b of the content, in hexadecimal."""


def file_state(path: Path) -> FileState:
    """The state of a file; reads all of it.

    Raises:
        OSError: it cannot be read.
    """
    status = path.stat()
    times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return FileState(*times, _digest(path, times))


@cache
def _digest(path: Path, times: tuple[int, int, int]) -> str:
    """Of the content that a file has at these times; read once by a process."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_unchanged(path: Path, state: FileState) -> bool:
    """Whether a file holds what it held; read only where its times are others but its size is the same."""
    try:
        status = path.stat()
        if status.st_size != state.size:
            return False
        return (status.st_mtime_ns, status.st_ctime_ns) == state[1:3] or file_state(path).digest == state.digest
    except OSError:
        return False


def write_json(path: Path, content: Any, *, indent: int = 4) -> None:
    """Write a JSON file in UTF-8, see `write_beside`.

    Raises:
        OSError: as `write_beside`.
    """
    write_beside(lambda part: part.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8"), path)


def write_beside(write: Callable[[Path], object], path: Path, *, keep_as: Path | None = None) -> None:
    """Let `write` fill a file beside `path`, then rename it into place; readers see the old file or the whole new one.

    Args:
        write: called with the path of the file to write.
        keep_as: where the file that is replaced stays available.

    Raises:
        OSError: the file could not be written, for instance on a full disk; the old file is untouched.
    """
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            _keep(path, keep_as)
        part.replace(path)
    except RuntimeError as error:
        part.unlink(missing_ok=True)
        # torch.save(path) tells of a full disk with a RuntimeError of its zip writer, in one of several wordings
        if any(word in str(error) for word in ("inline_container", "PytorchStreamWriter", "iostream")):
            raise OSError(f"could not write {path}: {error}") from error
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _keep(path: Path, keep_as: Path) -> None:
    """Give the file a second name, replacing what had it; at no moment is either name without a whole file."""
    part = keep_as.with_name(keep_as.name + ".part")
    part.unlink(missing_ok=True)
    if keep_as.exists() and keep_as.samefile(path):  # after a kill; renaming one name of a file to another does nothing
        return
    try:
        try:
            os.link(path, part)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, part)
        part.replace(keep_as)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def changed(path: Path) -> float:
    """When a file, or a folder or a file in it, was last written or put there, in seconds since 1970; 0 for none."""
    times = [0.0]
    for one in (path, *(path.iterdir() if path.is_dir() else ())):
        with suppress(OSError):
            times += [(state := one.stat()).st_mtime, state.st_ctime]
    return max(times)


def unwritable(path: Path, error: Exception) -> InputError:
    """The error of a file or folder that could not be written."""
    what = error.args[0] if isinstance(error, InputError) else one_line(error, last=True)
    return InputError(f"an error on writing {path} ({what})", "a writable folder with free space", "make room there")


def check_output_file(path: Path | None, flag: str) -> None:
    """Refuse a path that cannot become a file before the work is done, not after it.

    Args:
        path: None where the flag was not given.
        flag: the one that gave the path, for the message.

    Raises:
        InputError: its folder is missing, or it is a folder itself.
    """
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise InputError(f"{flag} {path}", "a file in an existing folder", "create the folder or choose another file")


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be written into an existing folder, or None; a file is written and removed for it."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return "no permission to write"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return error.strerror or one_line(error)
    return None
