"""A new raw data set: written beside its place by threads, there only when it is complete."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from nnunetv2_ext.data.volumes import unwritable
from nnunetv2_ext.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def complete_or_absent(target: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `target` when the block ends and vanishes when it fails.

    Raises:
        InputError: an error of the file system within the block or on making or renaming the folder.
    """
    try:
        # On the same file system, so that the renaming is one step.
        with tempfile.TemporaryDirectory(prefix=f".{target.name}_", dir=target.parent) as parent:
            unfinished = Path(parent, target.name)
            unfinished.mkdir()
            yield unfinished
            unfinished.rename(target)
    except OSError as error:
        raise unwritable(target, error) from None


def for_each(
    function: Callable[[Item], Result], items: Sequence[Item], *, processes: int, label: str, progress: bool
) -> list[Result]:
    """`function` of each item, several at the same time in threads, in the order of the items; the first error ends it.

    Args:
        function: spends its time outside Python's lock, as reading, compressing and averaging do.
        items: what it is called with.
        processes: threads.
        label: of the progress bar.
        progress: show one.

    Raises:
        InputError: no process.
    """
    if processes < 1:
        raise InputError(f"{processes} processes", "1 or more", "choose 1 or more")
    with ThreadPoolExecutor(processes) as pool:
        return list(tqdm(pool.map(function, items), total=len(items), desc=label, disable=not progress))


def write_dataset_json(folder: Path, entries: Mapping[str, Any], *, training: int) -> None:
    """Write nnU-Net's `dataset.json` for `training` training cases in the ordinary layout.

    Args:
        folder: of the data set.
        entries: `channel_names`, `labels`, `file_ending` and whatever shall stand there too, as it is. Those of another
            data set serve: its number of cases and the paths that it spells out under "dataset" are left out.
        training: number of training cases.
    """
    kept = {key: value for key, value in entries.items() if key != "dataset"}
    (folder / "dataset.json").write_text(json.dumps(kept | {"numTraining": training}, indent=4))
