"""Fingerprint, plan and preprocess with any planner, ours or nnU-Net's, over nnU-Net's own API."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

import nnunetv2
from nnunetv2.configuration import default_num_processes
from nnunetv2.experiment_planning import plan_and_preprocess_api as api
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunetv2_ext.data.volumes import VOLUME_ENDINGS
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import REFERENCES, dataset_name, dataset_number, nnunet_folder, read_json
from nnunetv2_ext.locks import held
from nnunetv2_ext.planning.guards import (
    check_raw,
    nnunet_step,
    refuse_configurations,
    refuse_fingerprint,
    refuse_plans_name,
    refuse_processes,
    refuse_unwritable,
    refuse_workers,
    usual_configurations,
)
from nnunetv2_ext.planning.planner import with_options
from nnunetv2_ext.planning.record import (
    FINGERPRINT,
    Sources,
    find_sources,
    fingerprint_settings,
    is_copy,
    recording,
    stale_fingerprint,
)
from nnunetv2_ext.planning.sharing import STOCK_PLANS, faults_of_data, settings
from nnunetv2_ext.planning.summary import blocks_in
from nnunetv2_ext.registry import PLANNERS, find


def planner_class(name: str) -> type[ExperimentPlanner]:
    """The planner of that name, ours or nnU-Net's, or the class of a dotted path.

    Raises:
        InputError: unknown name; the message lists ours.
    """
    if name in {entry.name for entry in PLANNERS}:
        return find("planner", name).load()
    if "." in name:
        located = locate(name)
        if isinstance(located, type) and issubclass(located, ExperimentPlanner):
            return located
    planner = _find_in_nnunet(name)
    return planner if planner is not None else find("planner", name).load()


def _find_in_nnunet(name: str, room: str = "experiment_planning") -> Any:
    """nnU-Net's class of that name, by default among its planners and fingerprint extractors, or None."""
    folder = Path(nnunetv2.__path__[0]) / room
    return recursive_find_python_class(str(folder), name, current_module=f"nnunetv2.{room}")


def _planned(folder: Path) -> set[str]:
    """The configurations of all plans in a folder of preprocessed data."""
    return {name for blocks in blocks_in(folder).values() for name in blocks}


def plan_and_preprocess(
    dataset: int | str,
    *,
    planner: str,
    training: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    configurations: Sequence[str] | None = None,
    processes: Sequence[int] = (default_num_processes,),
    fingerprint_processes: int = default_num_processes,
    fingerprint_extractor: str = "DatasetFingerprintExtractor",
    gpu_memory_target: float | None = None,
    preprocessor: str = "DefaultPreprocessor",
    target_spacing: Sequence[float] | None = None,
    plans_name: str | None = None,
    verify: bool = False,
    preprocess: bool = True,
    clean: bool = False,
    verbose: bool = False,
    progress: bool = True,
) -> str:
    """What `nnunetv2_ext plan_and_preprocess` does for one data set; data that lie preprocessed already are kept.

    Args:
        dataset: id or name of a data set in nnUNet_raw.
        training: keys of the `training` block.
        options: what the planner lets the user choose, patch_size or backbone, for instance.
        configurations: to preprocess, those of them that the plans have; None: see `usual_configurations`.
        processes: for preprocessing, one number or one per configuration.
        gpu_memory_target: GB.
        target_spacing: mm, in the order of the axes as nnU-Net reads them (z, y, x).

    Returns:
        The plans identifier.

    Raises:
        InputError: nnU-Net's folders are unset, no such data set or planner, raw data that nnU-Net would stop at or
            misread, images of which the target spacing leaves nothing, a bad training block or option, a memory target
            too small, a failure of nnU-Net's.
    """
    raw, preprocessed = nnunet_folder("nnUNet_raw"), nnunet_folder("nnUNet_preprocessed")
    name = dataset_name(dataset)
    folder = preprocessed / name
    dataset_json = read_json(raw / name / "dataset.json", "put the data set into nnUNet_raw")
    chosen = with_options(planner_class(planner), training or {}, options or {})
    configurations = usual_configurations(chosen) if configurations is None else configurations
    refuse_plans_name(plans_name, chosen, folder)
    refuse_configurations(configurations, chosen, _planned(folder))
    refuse_processes(processes, configurations, fingerprint_processes)
    refuse_workers(chosen)
    if gpu_memory_target is not None and not math.isfinite(gpu_memory_target):
        raise InputError(f"-gpu_memory_target {gpu_memory_target}", "GB above 0", "correct -gpu_memory_target")
    for what, flag, class_name, room, usual in (
        ("fingerprint extractor", "-fpe", fingerprint_extractor, "experiment_planning", "DatasetFingerprintExtractor"),
        ("preprocessor", "-preprocessor_name", preprocessor, "preprocessing", "DefaultPreprocessor"),
    ):
        if _find_in_nnunet(class_name, room) is None:
            raise InputError(f"the {what} '{class_name}'", f"one of nnU-Net's, {usual}", f"correct {flag}")
    if not clean:
        refuse_fingerprint(folder / FINGERPRINT)
    refuse_unwritable(preprocessed, name)
    with held(preprocessed, name, "a planning"):
        check_raw(raw / name, folder, processes=fingerprint_processes, progress=progress, spacing=target_spacing)
        identifier = dataset_number(name)
        sources = find_sources(raw / name, dataset_json)
        stale = not clean and _is_stale(folder, sources, dataset_json, fingerprint_extractor)
        made = fingerprint_settings(dataset_json, fingerprint_extractor)
        fresh = clean or stale or not (folder / FINGERPRINT).exists()
        with (
            nnunet_step("the fingerprint", folder, verbose=verbose),
            recording(folder, sources, {FINGERPRINT: made} if fresh else {}, progress=progress),
        ):
            api.extract_fingerprints(
                [identifier],
                fingerprint_extractor,
                fingerprint_processes,
                verify,
                clean or stale,
                verbose,
                show_progress_bar=progress,
            )
        with nnunet_step("the plans", folder, verbose=verbose):
            _, plans_identifier = api.plan_experiment_dataset(
                identifier,
                chosen,
                gpu_memory_target,
                preprocessor,
                None if target_spacing is None else tuple(target_spacing),
                plans_name,
            )
        if preprocess:
            with nnunet_step("the preprocessed data", folder, verbose=verbose):
                _preprocess(
                    folder / f"{plans_identifier}.json",
                    sources,
                    identifier,
                    list(configurations),
                    list(processes),
                    clean,
                    verbose,
                    progress,
                )
    return plans_identifier


def _is_stale(folder: Path, sources: Sources, dataset_json: Mapping[str, Any], extractor: str) -> bool:
    """Whether there is a fingerprint that is not that of the raw data; says why."""
    why = stale_fingerprint(folder, sources, dataset_json, extractor)
    if why:
        tqdm.write(f"the fingerprint is made anew: {why}")
    return bool(why)


def _preprocess(
    plans_file: Path,
    sources: Sources,
    identifier: int,
    configurations: list[str],
    processes: list[int],
    clean: bool,
    verbose: bool,
    progress: bool,
) -> None:
    per_configuration = dict(zip(configurations, processes * len(configurations), strict=False))
    folder, manager = plans_file.parent, PlansManager(str(plans_file))
    dataset_json = read_json(folder / "dataset.json", "plan again")
    # each of them decides on data that nothing else tells of; the plans of this call are always newer
    made_before = [folder / FINGERPRINT, folder / f"{STOCK_PLANS}.json"]
    making: dict[str, dict[str, Any]] = {}
    wanted = []
    for name in configurations:
        if name not in manager.available_configurations:
            continue
        data = manager.get_configuration(name).data_identifier
        if data in making:  # a cascade's second stage reads the data of 3d_fullres
            continue
        own = [plans_file] * (not data.startswith(f"{STOCK_PLANS}_"))
        faults = faults_of_data(folder, manager, name, dataset_json, sources, made_before=[*made_before, *own])
        fault = None if clean else next(faults, None)
        if not clean and fault is None:
            tqdm.write(f"{name}: the {len(sources)} cases in {data} agree with the plans and are kept")
            continue
        if fault is not None and (folder / data).is_dir():
            tqdm.write(f"{name}: the cases in {data} are preprocessed anew: {fault.told}")
        making[data] = settings(manager.plans, manager.get_configuration(name).configuration)
        wanted.append(name)
    _remove_old_references(folder / REFERENCES, sources, dataset_json["file_ending"])
    with recording(folder, sources, making, progress=progress):
        # with no configuration left, nnU-Net still copies the ground truth
        api.preprocess_dataset(
            identifier, plans_file.stem, wanted, [per_configuration[name] for name in wanted], verbose, progress
        )


def _remove_old_references(folder: Path, sources: Sources, ending: str) -> None:
    """Remove what is no copy of a raw label, for nnU-Net to copy it anew: it looks at the time alone."""
    copies = {f"{case}{ending}": label for case, (label, *_) in sources.items()}
    for path in folder.glob("*") if sources else ():
        label = copies.get(path.name)
        if path.is_file() and path.name.endswith((ending, *VOLUME_ENDINGS)) and not is_copy(path, label):
            path.unlink()
