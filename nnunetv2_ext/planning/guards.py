"""What planning refuses before anything is computed or removed, and nnU-Net's own failures told in one sentence."""

import math
import re
import shutil
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from tqdm import tqdm

from nnunetv2_ext.data.description import refuse_faults
from nnunetv2_ext.data.raw import MOST_VOXELS, Raw, examine, extents
from nnunetv2_ext.data.voxels import RECORD, keep_voxels, known_voxels, look_at_all, voxel_faults
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import dataset_number, read_json, unwritable, why_not_writable
from nnunetv2_ext.planning.planner import ExtPlanner
from nnunetv2_ext.planning.sharing import STOCK_PLANS
from nnunetv2_ext.processes import WORKERS, check_processes
from nnunetv2_ext.text import listed

TAKEN_NAMES = ("dataset", "dataset_fingerprint", "splits_final", "sources", Path(RECORD).stem)
"""Of other files that lie beside the plans."""
FEWEST_VOXELS = 4
"""A target spacing leaves so many along each axis of the largest case, where it has as many."""


def refuse_processes(processes: Sequence[int], configurations: Sequence[str], fingerprint_processes: int) -> None:
    """Refuse numbers of processes that nnU-Net would stop at after it has removed the old data.

    Raises:
        InputError: less than one, or not one number nor one per configuration.
    """
    for flag, numbers in (("-np", processes), ("-npfp", [fingerprint_processes])):
        if any(number < 1 for number in numbers):
            raise InputError(f"{flag} {listed(numbers, separator=' ')}", "1 process or more", f"correct {flag}")
    if len(processes) not in (1, len(configurations)):
        raise InputError(
            f"{len(processes)} numbers of processes",
            f"1 or {len(configurations)}, one per configuration",
            "correct -np",
        )


def refuse_workers(planner: type[ExperimentPlanner]) -> None:
    """Refuse to plan with nnU-Net's planners without a data worker: they take that number for one of threads.

    Raises:
        InputError: nnUNet_n_proc_DA is 0, or no number.
    """
    if not issubclass(planner, ExtPlanner) and check_processes(WORKERS) == 0:
        raise InputError(
            f"{WORKERS}=0 with nnU-Net's {planner.__name__}",
            "1 or more for nnU-Net's planners; 0 is for training",
            f"run export {WORKERS}=1, plan, and set it to 0 again",
        )


def usual_configurations(planner: type[ExperimentPlanner]) -> list[str]:
    """What is preprocessed unless the user says otherwise; a cascade's second stage has no data of its own."""
    return [name for name in _of_planner(planner) if name != "3d_cascade_fullres"]


def _of_planner(planner: type[ExperimentPlanner]) -> tuple[str, ...]:
    """The 3D configurations that a planner may plan."""
    return planner.configurations if issubclass(planner, ExtPlanner) else ExtPlanner.configurations


def refuse_configurations(
    configurations: Sequence[str], planner: type[ExperimentPlanner], planned: Collection[str]
) -> None:
    """Refuse configurations that no plans of this planner can have.

    Args:
        planned: those of the plans that are there, in which users write their own.

    Raises:
        InputError: an unknown one, or 2D for a planner of ours.
    """
    ours = issubclass(planner, ExtPlanner)
    if not ours and not planner.__module__.startswith("nnunetv2."):
        return  # whatever a planner of the user's own may plan
    own, nnunets = _of_planner(planner), (*ExtPlanner.configurations, "2d")
    known = [*own, *(() if ours else ("2d",)), *(name for name in planned if name not in (*own, *nnunets))]
    for name in configurations:
        if name in known:
            continue
        remedy = "correct -c"
        if name == "2d":
            remedy = "drop it, our planners plan 3D alone; -pl ExperimentPlanner -c 2d plans nnU-Net's own"
        raise InputError(f"the configuration '{name}' for {planner.__name__}", f"some of {listed(known)}", remedy)


def refuse_plans_name(name: str | None, planner: type[ExperimentPlanner], folder: Path) -> None:
    """Refuse a plans identifier that leads elsewhere, or to files that are not this planner's.

    Args:
        name: the one that the user gave, if any.
        folder: of the preprocessed data set.

    Raises:
        InputError: no plain name, nnU-Net's own for a planner of ours, or one that another planner's plans have.
    """
    if name is None:
        return
    flag = f"-overwrite_plans_name {name}"
    if not re.fullmatch(r"\w[\w.+-]*", name) or "__" in name or name in TAKEN_NAMES:
        taken = f"not {listed(TAKEN_NAMES)}, and no two _ beside each other"
        raise InputError(flag, f"a name of letters, digits, _ . + -, {taken}", "choose another name")
    if name == STOCK_PLANS and issubclass(planner, ExtPlanner):
        what = f"{flag}, the name of nnU-Net's own plans, for {planner.__name__}"
        raise InputError(what, "a name of its own, which leaves those as they are", "choose another name")
    path = folder / f"{name}.json"
    if not path.is_file():
        return
    made_by = read_json(path, "remove it and plan again").get("experiment_planner_used", planner.__name__)
    if made_by != planner.__name__:
        what = f"{flag} for {planner.__name__}, the name of plans that {made_by} made"
        raise InputError(what, "a name of its own, which leaves those as they are", f"choose another or remove {path}")


def refuse_unwritable(preprocessed: Path, name: str) -> None:
    """Refuse a folder of preprocessed data that cannot be written, before the work is done.

    Raises:
        InputError: with the reason.
    """
    folder = preprocessed / name if (preprocessed / name).is_dir() else preprocessed
    if reason := why_not_writable(folder):
        remedy = "change its permissions, make room, or set another nnUNet_preprocessed"
        raise InputError(f"{folder}, which cannot be written ({reason})", "a folder for the preprocessed data", remedy)


def refuse_target_spacing(spacing: Sequence[float] | None, raw: Raw) -> None:
    """Refuse a target spacing that makes no sense for the data.

    Args:
        spacing: mm (z, y, x).

    Raises:
        InputError: no numbers above 0, cases that would become endless, or of hardly a voxel.
    """
    if spacing is None:
        return
    told = f"a target spacing of {tuple(spacing)}"
    if not all(map(math.isfinite, spacing)) or min(spacing) <= 0:
        raise InputError(told, "mm above 0", "correct -overwrite_target_spacing")
    sizes = extents(raw)
    if not sizes:
        return
    voxels, millimetres = max(sizes, key=lambda item: float(np.prod(item[0] * item[1])))
    resampled = voxels * millimetres / np.array(spacing)
    are = f"{listed(np.round(millimetres, 4).tolist(), separator=' x ')} mm in the largest case"
    if float(np.prod(resampled)) > max(MOST_VOXELS, float(np.prod(voxels, dtype=float))):
        got = f"{told}, {float(np.prod(resampled)):.1e} voxels in the largest case"
        remedy = f"choose a coarser -overwrite_target_spacing; the data have {are}"
        raise InputError(got, f"one that makes at most {MOST_VOXELS:.0e} voxels of a case", remedy)
    if np.any(resampled < np.minimum(voxels, FEWEST_VOXELS) * (1 - 1e-3)):
        got = f"{told}, {listed(np.round(resampled, 3).tolist(), separator=' x ')} voxels in the largest case"
        remedy = f"choose a finer -overwrite_target_spacing; the data have {are}"
        raise InputError(got, f"one that leaves {FEWEST_VOXELS} voxels along each axis that has as many", remedy)


def check_raw(
    folder: Path, preprocessed: Path, *, processes: int, progress: bool, spacing: Sequence[float] | None
) -> None:
    """Refuse raw data that nnU-Net would stop at or misread: first the headers, then the voxels not on record.

    Args:
        folder: of the raw data set.
        preprocessed: folder of the preprocessed one, where the record lies.
        spacing: the target spacing that the user asks for, see `refuse_target_spacing`.

    Raises:
        InputError: the first fault with its remedy, and how many others there are.
    """
    raw = examine(folder, processes=processes)
    dataset = dataset_number(folder.name)
    refuse_faults(raw.faults, dataset)
    refuse_target_spacing(spacing, raw)
    known = known_voxels(raw, preprocessed)
    seen = look_at_all(raw, known, processes=processes, progress=progress)
    faults = voxel_faults(raw, seen)
    refused = any(fault.fatal for fault in faults)
    if len(known) < len(seen) and (preprocessed.is_dir() or not refused):
        try:
            preprocessed.mkdir(exist_ok=True)
            keep_voxels(raw, seen, preprocessed)
        except OSError as error:
            raise unwritable(preprocessed / RECORD, error) from None
    refuse_faults(faults, dataset)
    for fault in (*raw.faults, *faults):
        tqdm.write(f"warning: {fault.got}; expected {fault.expected}; {fault.remedy}.")


def refuse_fingerprint(path: Path) -> None:
    """Refuse a fingerprint that is there, but is none.

    Raises:
        InputError: damaged, or without what planning reads.
    """
    if not path.exists():
        return
    content = read_json(path, "run again with --clean")
    needed = ("spacings", "shapes_after_crop", "foreground_intensity_properties_per_channel")
    if lacking := [key for key in needed if not content.get(key)]:
        raise InputError(f"{path} without {listed(lacking)}", "a fingerprint of nnU-Net's", "run again with --clean")


@contextmanager
def nnunet_step(step: str, folder: Path, *, verbose: bool) -> Iterator[None]:
    """A step of nnU-Net's, whose failure is told in one sentence; its traceback goes into a file beside the data.

    Args:
        step: what nnU-Net does, in words.
        folder: of the preprocessed data set.
        verbose: print the traceback instead.

    Raises:
        InputError: nnU-Net failed.
    """
    there = folder.is_dir()
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # nnU-Net and the libraries below it raise anything
        lines, where = "".join(traceback.format_exception(error)), ""
        if verbose:
            tqdm.write(lines)
        elif there:
            with suppress(OSError):
                log = folder / "plan_and_preprocess_error.txt"
                log.write_text(lines, encoding="utf-8")
                where = f"; nnU-Net's traceback is in {log}"
        else:
            with suppress(OSError):
                folder.rmdir()  # made by nnU-Net for this, and empty
            where = "; --verbose shows nnU-Net's traceback"
        got, expected, remedy = _told(error, step, folder if folder.is_dir() else folder.parent)
        raise InputError(got, expected, remedy + where) from None


def _told(error: Exception, step: str, folder: Path) -> tuple[str, str, str]:
    """The sentence on a failure of nnU-Net's: what came, what was expected, what to do."""
    line = next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)[:300]
    told = f"{type(error).__name__}: {line}" if line != type(error).__name__ else line
    if "background worker" in str(error) or "background processes" in str(error) or isinstance(error, MemoryError):
        got = f"a worker that was killed while nnU-Net made {step}, probably for memory"
        return got, "memory for each process", "try -np 1 -npfp 1"
    if "NDArray" in str(error) or getattr(error, "errno", None) == 28:
        free = shutil.disk_usage(folder).free / 2**30
        got = f"a failure to write while nnU-Net made {step} ({told}), with {free:.2f} GiB free in {folder}"
        return got, "space for the preprocessed data", "make room there, then run the same command again"
    if isinstance(error, UnicodeDecodeError):
        got = f"a locale in which nnU-Net cannot read UTF-8 ({told})"
        return got, "UTF-8", "run export PYTHONUTF8=1, then the same command again"
    if isinstance(error, OSError):
        remedy = "see to its permissions, then run the same command again"
        return f"a file that nnU-Net could not use while it made {step} ({told})", "readable and writable files", remedy
    got = f"an error in nnU-Net while it made {step} ({told})"
    return got, "data and flags that nnU-Net takes", "mend what it names, see also the lines above"
