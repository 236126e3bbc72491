"""What the doctor checks of a data set: its description, the preprocessed data, the references, the splits."""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunetv2_ext import registry
from nnunetv2_ext.block import flags_from
from nnunetv2_ext.data.splits import NNUNET_FOLDS, SPLITS, check_number, check_split, read_splits
from nnunetv2_ext.doctor.examination import FAIL, OK, WARN, Check, Subject
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES, dataset_name, nnunet_folder, read_json
from nnunetv2_ext.planning.options import flag_of
from nnunetv2_ext.text import counted

RAW, PREPROCESSED, RESULTS = FOLDER_VARIABLES
DATASET_KEYS = ("channel_names", "labels", "numTraining", "file_ending")
NNUNET_OPTIONS = ("gpu_memory_target", "preprocessor_name", "overwrite_target_spacing", "overwrite_plans_name")
"""Options of planners that are nnU-Net's own flags."""


def replan(subject: Subject) -> str:
    """The command that makes the plans and data that a training needs: as they were made, or for its trainer."""
    from nnunetv2_ext.planning.sharing import STOCK_PLANS

    plans = _plans(subject)
    made_by = (plans or {}).get("made_by")
    if isinstance(made_by, dict) and "planner" in made_by:
        flags = [_flag(name, value) for name, value in made_by.get("options", {}).items()]
        flags += flags_from({}, made_by.get("training", {})) or []
        return " ".join([f"run nnunetv2_ext plan_and_preprocess -d {subject.dataset} -pl {made_by['planner']}", *flags])
    if plans is None and subject.plans != STOCK_PLANS:
        for entry in registry.PLANNERS:
            planner = entry.load()
            if planner.trainer == subject.trainer:
                named = "" if subject.plans == planner.plans_name else f" -overwrite_plans_name {subject.plans}"
                return f"run nnunetv2_ext plan_and_preprocess -d {subject.dataset} -pl {entry.name}{named}"
    return f"run nnUNetv2_plan_and_preprocess -d {subject.dataset}"


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
    return f"run nnUNetv2_preprocess -d {subject.dataset} -plans_name {subject.plans} -c {subject.configuration}"


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
    raw = Path(os.environ.get(RAW, "")) / subject.found["name"] / "dataset.json"
    if raw.is_file() and read_json(raw, "mend it") != content:
        yield Check(WARN, f"{raw} differs from the copy that training reads", replan(subject))


def check_fingerprint(subject: Subject) -> Iterator[Check]:
    """nnU-Net copies the fingerprint when training starts, and fails without it."""
    read_json(subject.found["folder"] / "dataset_fingerprint.json", replan(subject))
    yield Check(OK, "present")


def check_data(subject: Subject) -> Iterator[Check]:
    """Every case preprocessed, in one of nnU-Net's two layouts; sets `cases`."""
    folder: Path = subject.found["data"]
    if not folder.is_dir():
        yield Check(FAIL, f"no folder {folder}", preprocess(subject))
        return
    files = {file.name: file for file in folder.iterdir() if file.is_file()}
    endings = {name.rpartition(".")[2] for name in files} - {"pkl", "npy"}
    # nnU-Net decides by the one ending that is there, and stops when there are several
    if not endings:
        yield Check(FAIL, f"no cases in {folder}", preprocess(subject))
        return
    if len(endings) > 1 or not endings <= {"b2nd", "npz"}:
        odd = sorted(endings - {"b2nd", "npz"}) or sorted(endings)
        yield Check(FAIL, f"{folder} holds files of several kinds ({', '.join(odd)})", "remove those that are no data")
        return
    parts: tuple[str, ...]
    if endings == {"b2nd"}:
        parts = (".b2nd", "_seg.b2nd", ".pkl")
        cases = {name.removesuffix(".b2nd") for name in files if name.endswith(".b2nd")}
        cases = {case for case in cases if not case.endswith("_seg")}
    else:
        parts = (".npz", ".pkl")
        cases = {name.removesuffix(".npz") for name in files if name.endswith(".npz")}
    broken = sorted(
        case for case in cases if any(case + p not in files or not files[case + p].stat().st_size for p in parts)
    )
    if broken:
        yield Check(FAIL, f"incomplete files of {counted(broken, 'case')} in {folder}", preprocess(subject))
        return
    reference = subject.found["folder"] / "gt_segmentations"
    ending = subject.found["dataset_json"]["file_ending"]
    labelled = {f.name.removesuffix(ending) for f in reference.glob(f"*{ending}")} if reference.is_dir() else set()
    lacking = sorted(labelled - cases)
    stated = subject.found["dataset_json"]["numTraining"]
    if lacking:
        yield Check(FAIL, f"{counted(lacking, 'case')} not preprocessed in {folder}", preprocess(subject))
    elif len(cases) < stated:
        yield Check(
            FAIL,
            f"{len(cases)} of the {stated} cases that dataset.json states are in {folder}",
            f"{preprocess(subject)}, or correct numTraining in dataset.json",
        )
    else:
        subject.found["cases"] = cases
        yield Check(OK, f"{len(cases)} cases in {folder}")
        if len(cases) > stated:
            yield Check(WARN, f"more than the {stated} that dataset.json states", "correct numTraining in dataset.json")


def check_slabs(subject: Subject) -> Iterator[Check]:
    """What the trainer's method asks of the preprocessed data: where each case's thick annotation lies, for one."""
    if not subject.found["ours"]:
        yield Check(OK, f"{subject.trainer} needs none")
        return
    manager, configuration = subject.found["plans_manager"], subject.found["configuration"]
    yield Check(OK, subject.found["trainer"].check_data(manager, configuration, subject.found["data"]))


def check_references(subject: Subject) -> Iterator[Check]:
    """The validation that ends a training compares with gt_segmentations."""
    folder = subject.found["folder"] / "gt_segmentations"
    ending = subject.found["dataset_json"]["file_ending"]
    lacking = sorted(case for case in subject.found["cases"] if not (folder / f"{case}{ending}").is_file())
    if lacking:
        yield Check(FAIL, f"{counted(lacking, 'case')} without a reference in {folder}", preprocess(subject))
    else:
        yield Check(OK, f"a reference for each case in {folder}")


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
        both = check_split(splits, number, cases, preprocess=preprocess(subject), restore=restore)
        if both:
            yield Check(WARN, f"fold {number} trains and validates with {counted(sorted(both), 'case')}", restore)
    yield Check(OK, f"{len(splits)} folds")
