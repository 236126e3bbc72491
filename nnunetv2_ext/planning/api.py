"""Fingerprint, plan and preprocess with any planner, ours or nnU-Net's, over nnU-Net's own API."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

import nnunetv2
from nnunetv2.configuration import default_num_processes
from nnunetv2.experiment_planning import plan_and_preprocess_api as api
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from tqdm import tqdm

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import dataset_name, nnunet_folder, read_json
from nnunetv2_ext.planning.planner import with_options
from nnunetv2_ext.planning.sharing import STOCK_PLANS, preprocessed_cases
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


def _find_in_nnunet(name: str) -> Any:
    """nnU-Net's class of that name among its planners and fingerprint extractors, or None."""
    folder = Path(nnunetv2.__path__[0]) / "experiment_planning"
    return recursive_find_python_class(str(folder), name, current_module="nnunetv2.experiment_planning")


def plan_and_preprocess(
    dataset: int | str,
    *,
    planner: str,
    training: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    configurations: Sequence[str] = ("3d_fullres", "3d_lowres"),
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
        processes: for preprocessing, one number or one per configuration.
        gpu_memory_target: GB.
        target_spacing: mm, in the order of the axes as nnU-Net reads them (z, y, x).

    Returns:
        The plans identifier.

    Raises:
        InputError: nnU-Net's folders are unset, no such data set or planner, images of which the target spacing leaves
            nothing, a bad training block or option, a memory target too small.
    """
    raw, preprocessed = nnunet_folder("nnUNet_raw"), nnunet_folder("nnUNet_preprocessed")
    name = dataset_name(dataset)
    dataset_json = read_json(raw / name / "dataset.json", "put the data set into nnUNet_raw")
    chosen = with_options(planner_class(planner), training or {}, options or {})
    if preprocess and len(processes) not in (1, len(configurations)):
        raise InputError(
            f"{len(processes)} numbers of processes",
            f"1 or {len(configurations)}, one per configuration",
            "correct -np",
        )
    if target_spacing is not None and min(target_spacing) <= 0:
        raise InputError(
            f"a target spacing of {tuple(target_spacing)}", "mm above 0", "correct -overwrite_target_spacing"
        )
    if _find_in_nnunet(fingerprint_extractor) is None:
        raise InputError(
            f"the fingerprint extractor '{fingerprint_extractor}'",
            "one of nnU-Net's, DatasetFingerprintExtractor",
            "correct -fpe",
        )
    fingerprint = preprocessed / name / "dataset_fingerprint.json"
    if fingerprint.exists() and not clean:
        read_json(fingerprint, "run again with --clean")
    identifier = int(name[7:10])
    api.extract_fingerprints(
        [identifier], fingerprint_extractor, fingerprint_processes, verify, clean, verbose, show_progress_bar=progress
    )
    _, plans_identifier = api.plan_experiment_dataset(
        identifier,
        chosen,
        gpu_memory_target,
        preprocessor,
        None if target_spacing is None else tuple(target_spacing),
        plans_name,
    )
    if preprocess:
        _preprocess(
            preprocessed / name / f"{plans_identifier}.json",
            dataset_json["numTraining"],
            identifier,
            list(configurations),
            list(processes),
            clean,
            verbose,
            progress,
        )
    return plans_identifier


def _preprocess(
    plans_file: Path,
    cases: int,
    identifier: int,
    configurations: list[str],
    processes: list[int],
    clean: bool,
    verbose: bool,
    progress: bool,
) -> None:
    per_configuration = dict(zip(configurations, processes * len(configurations), strict=False))
    planned = read_json(plans_file, "plan again")["configurations"]
    stock, raw = plans_file.with_name(f"{STOCK_PLANS}.json"), nnunet_folder("nnUNet_raw") / plans_file.parent.name
    sources = [plans_file.with_name("dataset_fingerprint.json"), stock, *raw.glob("*Tr/*")]
    wanted = []
    for name in configurations:
        if name not in planned:
            continue
        shared = planned[name]["data_identifier"] != f"{plans_file.stem}_{name}"
        if not clean and shared and len(preprocessed_cases(plans_file, name, newer_than=sources)) == cases:
            tqdm.write(
                f"{name}: the {cases} cases in {planned[name]['data_identifier']} agree with the plans and are kept"
            )
        else:
            wanted.append(name)
    # with no configuration left, nnU-Net still copies the ground truth
    api.preprocess_dataset(
        identifier, plans_file.stem, wanted, [per_configuration[name] for name in wanted], verbose, progress
    )
