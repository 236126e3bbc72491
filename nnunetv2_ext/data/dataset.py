"""What writing a new raw data set takes: cases in threads, and its `dataset.json`."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import write_json

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    ended = threading.Event()

    def unless_ended(item: Item) -> Result:
        if ended.is_set():
            raise CancelledError
        try:
            return function(item)
        except BaseException:
            ended.set()
            raise

    with ThreadPoolExecutor(processes) as pool:
        try:
            return list(tqdm(pool.map(unless_ended, items), total=len(items), desc=label, disable=not progress))
        finally:
            # What ends it may come from outside, as Ctrl-C does.
            ended.set()


def write_dataset_json(folder: Path, entries: Mapping[str, Any], *, training: int) -> None:
    """Write nnU-Net's `dataset.json` for `training` training cases in the ordinary layout.

    Args:
        folder: of the data set.
        entries: `channel_names`, `labels`, `file_ending` and whatever shall stand there too, as it is. Those of another
            data set serve: its number of cases and the paths that it spells out under "dataset" are left out.
        training: number of training cases.
    """
    kept = {key: value for key, value in entries.items() if key != "dataset"}
    write_json(folder / "dataset.json", kept | {"numTraining": training})
