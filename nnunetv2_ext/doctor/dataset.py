"""What the doctor checks of a data set: its description, the preprocessed data, the references, the splits."""

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from nnunetv2_ext import registry
from nnunetv2_ext.block import flags_from
from nnunetv2_ext.data.description import channel_names
from nnunetv2_ext.data.splits import NNUNET_FOLDS, SPLITS, check_number, check_split, read_splits
from nnunetv2_ext.data.volumes import VOLUME_ENDINGS, check_complete, unreadable
from nnunetv2_ext.doctor.examination import FAIL, OK, WARN, Check, Subject
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import (
    FOLDER_VARIABLES,
    REFERENCES,
    dataset_name,
    dataset_number,
    nnunet_folder,
    raw_folder,
    read_json,
)
from nnunetv2_ext.planning.options import flag_of
from nnunetv2_ext.text import counted

RAW, PREPROCESSED, RESULTS = FOLDER_VARIABLES
DATASET_KEYS = ("channel_names", "labels", "numTraining", "file_ending")
TRAINED_KEYS = ("labels", "regions_class_order", "channel_names", "file_ending", "overwrite_image_reader_writer")
"""Those that decide on what is trained, and how it is read."""
NNUNET_OPTIONS = ("gpu_memory_target", "preprocessor_name", "overwrite_target_spacing", "overwrite_plans_name")
"""Options of planners that are nnU-Net's own flags."""


def replan(subject: Subject) -> str:
    """The command that makes the plans and data that a training needs: as they were made, or for its trainer.

    It makes anew what is not that of the raw data, fingerprint and references too, which nnU-Net's own command keeps.
    """
    plans = _plans(subject) or {}
    made_by = plans.get("made_by")
    if isinstance(made_by, dict) and "planner" in made_by:
        planner = made_by["planner"]
        flags = [_flag(name, value) for name, value in made_by.get("options", {}).items()]
        flags += flags_from({}, made_by.get("training", {})) or []
    else:
        planner, plans_name = _planner_of(subject, plans)
        flags = [] if plans_name == subject.plans else [f"-overwrite_plans_name {subject.plans}"]
    if subject.configuration not in ("3d_fullres", "3d_lowres", "3d_cascade_fullres"):
        flags.append(f"-c {subject.configuration}")
    return " ".join([f"run nnunetv2_ext plan_and_preprocess -d {subject.dataset} -pl {planner}", *flags])


def _planner_of(subject: Subject, plans: Mapping[str, Any]) -> tuple[str, str]:
    """The planner of plans without `made_by`, or of none, with its flags, and what it calls its plans."""
    from nnunetv2_ext.planning.api import planner_class
    from nnunetv2_ext.planning.sharing import STOCK_PLANS

    used = plans.get("experiment_planner_used")
    if preset := re.fullmatch("nnUNetPlannerResEnc(M|L|XL)", str(used)):
        return preset[0], f"nnUNetResEncUNet{preset[1]}Plans"
    if preset := re.fullmatch("nnUNetResEncUNet(M|L|XL)Plans", subject.plans):
        return f"nnUNetPlannerResEnc{preset[1]}", subject.plans
    if isinstance(used, str) and used != "ExperimentPlanner":
        with contextlib.suppress(InputError):  # a planner of another installation
            return planner_class(used).__name__, ""
    if not plans and subject.plans != STOCK_PLANS:
        planners = {entry.name: entry.load() for entry in registry.PLANNERS}
        fitting = [name for name, planner in planners.items() if planner.trainer == subject.trainer]
        if fitting:  # of several, that of these plans
            name = min(fitting, key=lambda name: planners[name].plans_name != subject.plans)
            return name, planners[name].plans_name
        with contextlib.suppress(InputError):  # a name that nobody gives
            named = registry.planner_of(subject.plans)
            return " ".join([named.planner, *named.flags]), subject.plans if named.by_default else ""
    return "ExperimentPlanner", STOCK_PLANS


def _plans(subject: Subject) -> dict[str, Any] | None:
    """The plans, if they are there and whole."""
    folder = subject.found.get("folder")
    try:
        plans = read_json(folder / f"{subject.plans}.json", "") if folder is not None else None
    except InputError:
        return None
    return plans


def _flag(name: str, value: Any) -> str:
    """An option of a planner as its command line has it."""
    flag = f"-{name}" if name in NNUNET_OPTIONS else flag_of(name)
    if value is True:
        return flag
    if isinstance(value, dict):
        value = json.dumps(value)
    return " ".join([flag, *(shlex.quote(str(one)) for one in (value if isinstance(value, list) else [value]))])


def preprocess(subject: Subject) -> str:
    """The command that preprocesses for one configuration of plans that exist."""
    number = dataset_number(subject.found["name"])  # the command takes no name
    return f"run nnUNetv2_preprocess -d {number} -plans_name {subject.plans} -c {subject.configuration}"


def check_dataset(subject: Subject) -> Iterator[Check]:
    """One data set of that id, preprocessed; sets `name` and `folder`."""
    name = dataset_name(subject.dataset or "")
    folder = nnunet_folder(PREPROCESSED) / name
    if not folder.is_dir():
        yield Check(FAIL, f"{name} was not preprocessed: no folder {folder}", replan(subject))
        return
    subject.found.update(name=name, folder=folder)
    yield Check(OK, f"{name} in {folder}")


def check_dataset_json(subject: Subject) -> Iterator[Check]:
    """nnU-Net trains with the copy among the preprocessed data; sets `dataset_json`."""
    file = subject.found["folder"] / "dataset.json"
    content = read_json(file, f"copy it from the raw data set again, or {replan(subject)}")
    missing = [key for key in DATASET_KEYS if not isinstance(content, dict) or key not in content]
    if missing == ["channel_names"] and "modality" in content:  # the older name, which nnU-Net still reads
        missing = []
    if missing:
        yield Check(FAIL, f"{file} lacks {', '.join(missing)}", "complete it as nnU-Net's dataset format asks")
        return
    subject.found["dataset_json"] = content
    yield Check(OK, f"{content['numTraining']} cases, labels {', '.join(map(str, content['labels']))}")
    raw, folder = _raw_description(subject), raw_folder(subject.found["name"])
    if raw is None or folder is None:
        return
    file = folder / "dataset.json"
    changed = [key for key in TRAINED_KEYS if _meaning(raw, key) != _meaning(content, key)]
    if changed:
        yield Check(
            FAIL, f"{file} has other {' and '.join(changed)} than the copy that training reads", replan(subject)
        )
    elif raw != content:
        yield Check(WARN, f"{file} differs from the copy that training reads", replan(subject))


def _meaning(description: Mapping[str, Any], key: str) -> Any:
    """What an entry says; regions are outputs of the network in their order, labels are so by value."""
    value: Any = channel_names(description) if key == "channel_names" else description.get(key)
    regions = isinstance(value, dict) and any(isinstance(one, list) for one in value.values())
    return list(value.items()) if regions else value


def _raw_description(subject: Subject) -> dict[str, Any] | None:
    """The `dataset.json` of the raw data; None on a machine that has none.

    Raises:
        InputError: a damaged one.
    """
    folder = raw_folder(subject.found["name"])
    file = None if folder is None else folder / "dataset.json"
    return read_json(file, "mend it") if file is not None and file.is_file() else None


def _sources(subject: Subject) -> dict[str, tuple[Path, ...]]:
    """The raw files of each case; none where there are none, or nothing tells which they are."""
    from nnunetv2_ext.planning.record import find_sources

    if "sources" not in subject.found:
        try:
            description, folder = _raw_description(subject), raw_folder(subject.found["name"])
            subject.found["sources"] = find_sources(folder, description) if description and folder else {}
        except (InputError, LookupError, TypeError, AttributeError):  # told elsewhere
            subject.found["sources"] = {}
    return subject.found["sources"]


def _compared(subject: Subject) -> str:
    """The end of a line on what was compared with the raw data, if it could be."""
    if _sources(subject):
        return ""
    there = raw_folder(subject.found["name"]) is not None
    return "; not compared with the raw data, see 'raw data'" if there else "; no raw data here to compare with"


def check_fingerprint(subject: Subject) -> Iterator[Check]:
    """nnU-Net copies the fingerprint when training starts, and fails without it; planning reads it."""
    from nnunetv2_ext.planning.record import FINGERPRINT, stale_fingerprint

    file = subject.found["folder"] / FINGERPRINT
    # planning refuses a damaged one
    read_json(file, f"remove {file}, then {replan(subject)}" if file.exists() else replan(subject))
    sources = _sources(subject)
    why = stale_fingerprint(subject.found["folder"], sources, _raw_description(subject) or {}) if sources else ""
    if why:
        yield Check(WARN, f"not that of the raw data: {why}", replan(subject))
    else:
        yield Check(OK, f"present{_compared(subject)}")


def check_data(subject: Subject) -> Iterator[Check]:
    """Every case preprocessed, whole, and as the plans and the raw data ask for; sets `cases`."""
    from nnunetv2_ext.planning.sharing import cases_in, faults_of_data

    folder: Path = subject.found["data"]
    sources = _sources(subject)
    try:
        cases = set(cases_in(folder))
    except InputError as error:
        got, _, remedy = error.args
        yield Check(FAIL, got, _files_again(subject) if remedy == "preprocess again" else remedy)
        return
    manager, dataset_json = subject.found["plans_manager"], subject.found["dataset_json"]
    sound = True
    for fault in faults_of_data(subject.found["folder"], manager, subject.configuration, dataset_json, sources):
        sound = sound and not fault.certain
        remedy = {"files": _files_again, "labels": _files_again, "plans": _as_planned, "raw": replan}[fault.kind](
            subject
        )
        yield Check(FAIL if fault.certain else WARN, f"{folder}: {fault.told}", remedy)
    stated = dataset_json["numTraining"]
    if not sound:
        return
    if not sources:
        reference, ending = subject.found["folder"] / REFERENCES, dataset_json["file_ending"]
        labelled = {path.name.removesuffix(ending) for path in reference.glob(f"*{ending}")}
        if lacking := sorted(labelled - cases):
            yield Check(FAIL, f"{counted(lacking, 'case')} not preprocessed in {folder}", _files_again(subject))
            return
        if len(cases) < stated:
            what = f"{len(cases)} of the {stated} cases that dataset.json states are in {folder}"
            yield Check(FAIL, what, f"{_files_again(subject)}, or correct numTraining in dataset.json")
            return
    subject.found["cases"] = cases
    yield Check(OK, f"{len(cases)} cases in {folder}{_compared(subject)}")
    if len(cases) != stated:
        where = "the raw data set and in its copy" if sources else "it"
        what = f"{'more' if len(cases) > stated else 'fewer'} than the {stated} that dataset.json states"
        yield Check(WARN, what, f"correct numTraining in dataset.json of {where}")


def _files_again(subject: Subject) -> str:
    """How files come back that are missing or damaged."""
    return (
        preprocess(subject)
        if _sources(subject)
        else f"copy it from where it was preprocessed, or {preprocess(subject)}"
    )


def _as_planned(subject: Subject) -> str:
    """How data come that are as the plans say, without taking them from other plans that share them."""
    from nnunetv2_ext.planning.sharing import differing, settings

    manager, folder = subject.found["plans_manager"], subject.found["folder"]
    mine = manager.get_configuration(subject.configuration).configuration
    for file in sorted(folder.glob("*.json")):
        try:
            plans = read_json(file, "")
            others = [
                one for one in plans["configurations"].values() if one.get("data_identifier") == mine["data_identifier"]
            ]
        except (InputError, LookupError, AttributeError):  # no plans
            continue
        planned = settings(manager.plans, mine)
        if file.stem != subject.plans and any(differing(settings(plans, one), planned) for one in others):
            name = subject.configuration
            own = f"set data_identifier of {name} in {subject.plans}.json to {subject.plans}_{name}"
            return f"{own}, since {file.stem} plans other data there, then {preprocess(subject)}"
    return preprocess(subject)


def check_slabs(subject: Subject) -> Iterator[Check]:
    """What the trainer's method asks of the preprocessed data: where each case's thick annotation lies, for one."""
    if not subject.found["ours"]:
        yield Check(OK, f"{subject.trainer} needs none")
        return
    manager, configuration = subject.found["plans_manager"], subject.found["configuration"]
    yield Check(OK, subject.found["trainer"].check_data(manager, configuration, subject.found["data"]))


def check_references(subject: Subject) -> Iterator[Check]:
    """The validation that ends a training compares with gt_segmentations, copies of the labels."""
    from nnunetv2_ext.planning.record import is_copy

    folder, sources = subject.found["folder"] / REFERENCES, _sources(subject)
    ending = subject.found["dataset_json"]["file_ending"]
    files = {case: folder / f"{case}{ending}" for case in sorted(subject.found["cases"])}
    lacking = [case for case, file in files.items() if not file.is_file()]
    if lacking:
        yield Check(FAIL, f"{counted(lacking, 'case')} without a reference in {folder}", _files_again(subject))
        return
    other = [case for case, file in files.items() if sources and not is_copy(file, sources[case][0])]
    if other:
        # nnU-Net copies what is missing or older
        again = f"remove {folder}, then {preprocess(subject)}"
        yield Check(FAIL, f"{counted(other, 'case')} in {folder} with another reference than the raw label", again)
        return
    damaged = {case: error for case, file in files.items() if (error := _damage(file))}
    if damaged:
        case, error = next(iter(damaged.items()))
        remedy = f"restore the label {sources[case][0]}, then {replan(subject)}" if sources else "copy them again"
        yield Check(FAIL, f"{counted(damaged, 'damaged reference')}: {error.args[0]}", remedy)
    else:
        yield Check(OK, f"a reference for each case in {folder}{_compared(subject)}")


def _damage(file: Path) -> InputError | None:
    """Why the header or the length of a volume cannot be a whole file's, or None."""
    if not file.name.endswith(VOLUME_ENDINGS):  # nnU-Net reads more formats than SimpleITK
        return None
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        check_complete(file)
    except RuntimeError as error:
        return unreadable(file, error)
    except InputError as error:
        return error
    return None


def check_splits(subject: Subject) -> Iterator[Check]:
    """splits_final.json, where there is one, and the fold in it."""
    cases, fold = subject.found["cases"], subject.fold
    if fold == "all":
        yield Check(OK, "fold all takes every case")
        return
    if fold is not None and not fold.isdecimal():
        yield Check(FAIL, f"the fold {fold}", "choose -f 0, 1, ... or all")
        return
    file = subject.found["folder"] / SPLITS
    if not file.is_file():
        if len(cases) < NNUNET_FOLDS:
            yield Check(
                FAIL, f"{len(cases)} cases are too few for nnU-Net's five folds", f"train fold all or write {file}"
            )
        else:
            check_number(int(fold or 0), NNUNET_FOLDS)
            yield Check(OK, "none yet: nnU-Net will make five folds")
        return
    restore = f"restore {file}, or delete it if no fold was trained with it yet: nnU-Net makes new folds"
    splits = read_splits(file, restore)
    for number in range(len(splits)) if fold is None else [int(fold)]:
        # those that the raw data have are preprocessed, as was checked before
        unknown = restore if _sources(subject) else f"{_files_again(subject)}, or {restore}"
        both = check_split(splits, number, cases, unknown=unknown, restore=restore)
        if both:
            yield Check(WARN, f"fold {number} trains and validates with {counted(sorted(both), 'case')}", restore)
    yield Check(OK, f"{len(splits)} folds")
    left = sorted(cases.difference(*(split[part] for split in splits for part in ("train", "val"))))
    if left:
        yield Check(WARN, f"{counted(left, 'case')} in no fold: neither trained nor validated with", restore)
