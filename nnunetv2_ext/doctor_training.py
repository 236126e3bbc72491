"""What `nnunetv2_ext doctor -d ...` checks of one training: all that nnUNetv2_train would stumble over."""

import inspect
import io
import math
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunetv2_ext import registry
from nnunetv2_ext.doctor import (
    ENV_COMMAND,
    FAIL,
    OK,
    WARN,
    Check,
    Examination,
    Subject,
    find_trainer,
    said,
    why_not_writable,
)
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.paths import FOLDER_VARIABLES, dataset_name, nnunet_folder, read_json

RAW, PREPROCESSED, RESULTS = FOLDER_VARIABLES
DATASET_KEYS = ("channel_names", "labels", "numTraining", "file_ending")


def replan(subject: Subject) -> str:
    """The command that makes the plans and data that a training needs."""
    for entry in registry.PLANNERS:
        method = entry.load().plans_name.removesuffix("Plans")
        backbone, plans, more = subject.plans.removeprefix(method).partition("Plans")
        if not subject.plans.startswith(method) or not plans:
            continue
        command = f"run nnunetv2_ext plan_and_preprocess -d {subject.dataset} -pl {entry.name}"
        if (named := _backbone_of(method, backbone)) is not None:
            command += f" --backbone {named}"
        elif backbone:
            more = backbone
        return command + (f" -overwrite_plans_name {subject.plans}" if more else "")
    return f"run nnUNetv2_plan_and_preprocess -d {subject.dataset}"


def _backbone_of(method: str, name: str) -> str | None:
    """What `--backbone` was where plans of a method are named by it, None where they are not."""
    known = {one.name for one in registry.BACKBONES}
    if method == "ThinThick":
        if name.startswith("ConvFree"):
            return "ConvFreeTransformer"
        if name.startswith("PaR") and (name == "PaR" or name[3:] in known):
            return name if name == "PaR" else f"PaR:{name[3:]}"
    return name if name in known else None


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


def check_plans(subject: Subject) -> Iterator[Check]:
    """A whole plans file of this data set; sets `plans_manager`."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    file = subject.found["folder"] / f"{subject.plans}.json"
    if not file.is_file():
        there = sorted(other.stem for other in file.parent.glob("*lans*.json"))
        remedy = f"choose -p from {', '.join(there)}, or {replan(subject)}" if there else replan(subject)
        yield Check(FAIL, f"no plans file {file}", remedy)
        return
    plans = read_json(file, replan(subject))
    missing = [
        key
        for key in ("dataset_name", "plans_name", "configurations")
        if not isinstance(plans, dict) or key not in plans
    ]
    if missing:
        yield Check(FAIL, f"{file} lacks {', '.join(missing)}", replan(subject))
        return
    if plans["dataset_name"] != subject.found["name"]:
        yield Check(FAIL, f"{file} was made for {plans['dataset_name']}", replan(subject))
        return
    manager = PlansManager(plans)
    try:
        manager.get_label_manager(subject.found["dataset_json"])
    except Exception as error:
        yield Check(
            FAIL, f"nnU-Net refuses the labels of dataset.json ({said(error)})", "correct labels in dataset.json"
        )
        return
    subject.found["plans_manager"] = manager
    yield Check(OK, f"{subject.plans} with {', '.join(manager.available_configurations)}")
    if plans["plans_name"] != subject.plans:
        # nnU-Net names the results folder by this entry, not by the file
        yield Check(WARN, f"{file.name} calls itself {plans['plans_name']}", f"set its plans_name to {subject.plans}")


def check_trainer(subject: Subject) -> Iterator[Check]:
    """nnU-Net's finder knows the trainer; sets `trainer` and `ours`."""
    known = {entry.name: entry for entry in registry.TRAINERS}
    try:
        trainer = find_trainer(subject.trainer)
    except RuntimeError:
        if subject.trainer in known:
            yield Check(FAIL, f"nnU-Net does not find {subject.trainer}", ENV_COMMAND)
        else:
            yield Check(
                FAIL,
                f"no trainer {subject.trainer}",
                f"choose {', '.join(known)} or one of nnU-Net's own, nnUNetTrainer",
            )
        return
    except Exception as error:
        yield Check(FAIL, f"{subject.trainer} cannot be loaded ({said(error)})", "mend what the message names")
        return
    ours = []
    for entry in known.values():
        try:
            ours.append(entry.load())
        except (ImportError, InputError):  # told by the check of all trainers
            continue
    subject.found["trainer"] = trainer
    subject.found["ours"] = any(issubclass(trainer, one) for one in ours)
    yield Check(OK, f"{subject.trainer} from {trainer.__module__}")


def check_configuration(subject: Subject) -> Iterator[Check]:
    """The configuration exists and goes with the trainer; sets `configuration`."""
    manager = subject.found["plans_manager"]
    if subject.configuration not in manager.available_configurations:
        there = ", ".join(manager.available_configurations)
        yield Check(FAIL, f"{subject.plans} has no {subject.configuration}", f"choose -c from {there}")
        return
    try:
        configuration = manager.get_configuration(subject.configuration)
        patch, architecture = list(configuration.patch_size), configuration.network_arch_class_name
        subject.found["batch_size"] = configuration.batch_size
        subject.found["data"] = subject.found["folder"] / configuration.data_identifier
    except Exception as error:
        yield Check(FAIL, f"{subject.configuration} is incomplete or damaged ({said(error)})", replan(subject))
        return
    our_network = architecture.startswith("nnunetv2_ext.")
    three = [n for n in manager.available_configurations if len(_patch_size(manager, n)) == 3]
    if len(patch) != 3 and (subject.found["ours"] or our_network):
        what = subject.trainer if subject.found["ours"] else architecture
        remedy = f"choose -c from {', '.join(three)}, or -tr nnUNetTrainer" if three else "choose -tr nnUNetTrainer"
        yield Check(FAIL, f"{what} needs 3D, the patch of {subject.configuration} is {patch}", remedy)
    elif our_network and not subject.found["ours"]:
        names = ", ".join(entry.name for entry in registry.TRAINERS)
        yield Check(FAIL, f"{subject.trainer} cannot train {architecture}", f"choose -tr {names}, or -p nnUNetPlans")
    else:
        subject.found["configuration"] = configuration
        yield Check(OK, f"{subject.configuration}, patch {patch}, batch {configuration.batch_size}")


def _patch_size(manager: Any, configuration: str) -> list[int]:
    try:
        return list(manager.get_configuration(configuration).patch_size)
    except Exception:  # a damaged neighbour is not what was asked about
        return []


def check_schedule(subject: Subject) -> Iterator[Check]:
    """The `training` block, which only trainers of ours read; they check it when training starts."""
    from nnunetv2_ext.training.schedule import check_schedule, passes

    block = subject.found["configuration"].configuration.get("training")
    if not subject.found["ours"]:
        if block is None:
            yield Check(OK, "no training block in the plans: the trainer's own schedule")
            return
        check_schedule(block)
        yield Check(WARN, f"{subject.trainer} does not read the training block", "choose one of our trainers to use it")
        return
    plans = deepcopy(subject.found["plans_manager"].plans)
    schedule = subject.found["trainer"].checked_schedule(plans, subject.configuration)
    subject.found["passes"] = passes(schedule, subject.found["configuration"].patch_size[0])
    subject.found["batch_size"] = schedule.get("batch_size") or subject.found["batch_size"]
    told = [f"{key} {schedule[key]}" for key in ("epochs", "iterations_per_epoch") if schedule.get(key)]
    yield Check(OK, ", ".join(told) or "valid")


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
        yield Check(FAIL, f"incomplete files of {_some(broken)} in {folder}", preprocess(subject))
        return
    reference = subject.found["folder"] / "gt_segmentations"
    ending = subject.found["dataset_json"]["file_ending"]
    labelled = {f.name.removesuffix(ending) for f in reference.glob(f"*{ending}")} if reference.is_dir() else set()
    lacking = sorted(labelled - cases)
    stated = subject.found["dataset_json"]["numTraining"]
    if lacking:
        yield Check(FAIL, f"{_some(lacking)} not preprocessed in {folder}", preprocess(subject))
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
    """Where each case's thick annotation lies, and that a patch covers some of it; for trainers that learn from it."""
    trainer = subject.found["trainer"]
    if not hasattr(trainer, "checked_slabs"):
        yield Check(OK, f"{subject.trainer} needs none")
        return
    manager, configuration = subject.found["plans_manager"], subject.found["configuration"]
    cases, slabs = trainer.checked_slabs(manager, configuration, subject.found["data"])
    yield Check(OK, f"of {len(cases)} cases, at most {slabs} in a patch")


def check_references(subject: Subject) -> Iterator[Check]:
    """The validation that ends a training compares with gt_segmentations."""
    folder = subject.found["folder"] / "gt_segmentations"
    ending = subject.found["dataset_json"]["file_ending"]
    lacking = sorted(case for case in subject.found["cases"] if not (folder / f"{case}{ending}").is_file())
    if lacking:
        yield Check(FAIL, f"{_some(lacking)} without a reference in {folder}", preprocess(subject))
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
    file = subject.found["folder"] / "splits_final.json"
    if not file.is_file():
        if len(cases) < 5:
            yield Check(
                FAIL, f"{len(cases)} cases are too few for nnU-Net's five folds", f"train fold all or write {file}"
            )
        else:
            yield Check(OK, "none yet: nnU-Net will make five folds")
            if fold is not None and int(fold) >= 5:
                yield _beyond(fold, 5)
        return
    restore = f"restore {file}, or delete it if no fold was trained with it yet: nnU-Net makes new folds"
    splits = read_json(file, restore)
    if not isinstance(splits, list) or not splits or not all(_is_split(split) for split in splits):
        yield Check(FAIL, f"{file} is no list of folds with train and val", restore)
        return
    if fold is not None and int(fold) >= len(splits):
        yield _beyond(fold, len(splits))
        return
    for number in range(len(splits)) if fold is None else [int(fold)]:
        train, validation = set(splits[number]["train"]), set(splits[number]["val"])
        unknown = sorted((train | validation) - cases)
        if unknown:
            yield Check(
                FAIL, f"fold {number} names {_some(unknown)}, not preprocessed", f"{preprocess(subject)}, or {restore}"
            )
            return
        if not train or not validation:
            yield Check(FAIL, f"fold {number} has no cases to {'validate' if train else 'train'} with", restore)
            return
        if train & validation:
            yield Check(WARN, f"fold {number} trains and validates with {_some(sorted(train & validation))}", restore)
    yield Check(OK, f"{len(splits)} folds")


def _beyond(fold: str, folds: int) -> Check:
    what = f"fold {fold} of {folds}: nnU-Net would take a random split that overlaps with the other folds"
    return Check(WARN, what, f"choose -f from 0 to {folds - 1}")


def _is_split(split: Any) -> bool:
    return isinstance(split, dict) and all(
        isinstance(split.get(part), list) and all(isinstance(case, str) for case in split[part])
        for part in ("train", "val")
    )


def check_previous_stage(subject: Subject) -> Iterator[Check]:
    """The second stage of a cascade needs the first stage's predictions of every case."""
    previous = subject.found["configuration"].previous_stage_name
    if previous is None:
        yield Check(OK, "none")
        return
    folder = results_folder(subject, previous) / "predicted_next_stage" / subject.configuration
    predicted = {file.stem for file in folder.glob("*") if file.suffix in (".b2nd", ".npz", ".npy")}
    lacking = sorted(subject.found["cases"] - predicted)
    if lacking:
        first = f"train all folds of {previous} with -tr {subject.trainer} -p {subject.plans} first"
        yield Check(FAIL, f"{_some(lacking)} without a prediction in {folder}", first)
    else:
        yield Check(OK, f"predictions of {previous} for each case")


def results_folder(subject: Subject, configuration: str) -> Path:
    """Where nnU-Net keeps the folds of a model."""
    plans_name = subject.found["plans_manager"].plans_name
    return nnunet_folder(RESULTS) / subject.found["name"] / f"{subject.trainer}__{plans_name}__{configuration}"


def check_results(subject: Subject) -> Iterator[Check]:
    """The fold's folder, or the nearest that exists above it, can be written."""
    model = results_folder(subject, subject.configuration)
    folder = model / f"fold_{subject.fold}" if subject.fold is not None else model
    while not folder.exists():
        folder = folder.parent
    reason = why_not_writable(folder) if folder.is_dir() else "a file stands in its place"
    if reason:
        yield Check(
            FAIL, f"{folder} cannot be written ({reason})", "change its permissions or set another nnUNet_results"
        )
    else:
        yield Check(OK, f"{folder} can be written")


def check_checkpoints(subject: Subject) -> Iterator[Check]:
    """Checkpoints of earlier trainings of the fold are whole."""
    from nnunetv2_ext.training.checkpoints import is_readable

    model = results_folder(subject, subject.configuration)
    files = sorted(model.glob(f"fold_{subject.fold or '*'}/checkpoint_*.pth"))
    damaged = [file for file in files if not is_readable(file)]
    for file in damaged:
        whole = [other.name for other in files if other.parent == file.parent and other not in damaged]
        if whole and subject.found["ours"]:
            yield Check(WARN, f"{file} cannot be read", "leave it: --c falls back to the newest whole one by itself")
        else:
            remedy = f"remove it; --c then goes on from {whole[0]}" if whole else "remove it and train the fold anew"
            yield Check(FAIL, f"{file} cannot be read", remedy)
    if not damaged:
        yield Check(OK, f"{len(files)} checkpoints, all readable" if files else "none yet")


def check_network(subject: Subject) -> Iterator[Check]:
    """The trainer builds its network, on torch's meta device, and the patch suits it; sets `network`."""
    import torch
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    trainer, manager = subject.found["trainer"], deepcopy(subject.found["plans_manager"])
    configuration = deepcopy(subject.found["configuration"])
    if "plans_manager" not in inspect.signature(trainer.build_network_architecture).parameters:
        yield Check(OK, "not built here: the trainer has a signature of its own")
        return
    dataset_json = subject.found["dataset_json"]
    channels = determine_num_input_channels(manager, configuration, dataset_json)
    classes = manager.get_label_manager(dataset_json).num_segmentation_heads
    patch = tuple(configuration.patch_size)
    try:
        with torch.device("meta"), redirect_stdout(io.StringIO()):
            network = trainer.build_network_architecture(manager, configuration, channels, classes, True)
        sizes = network.deep_supervision_shapes(patch) if hasattr(network, "deep_supervision_shapes") else []
    except InputError:
        raise
    except Exception as error:
        yield Check(
            FAIL, f"{subject.trainer} cannot build its network for these plans ({said(error)})", replan(subject)
        )
        return
    subject.found["network"] = network
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    told = f", {len(sizes)} outputs" if sizes else ""
    yield Check(OK, f"{type(network).__name__}, {parameters:.1f} million parameters, patch {list(patch)}{told}")


def check_memory(subject: Subject) -> Iterator[Check]:
    """nnU-Net's estimate of the memory a training takes, against the GPU; an estimate only warns."""
    from nnunetv2_ext.planning.memory import memory_gb

    network = subject.found.get("network")
    patch, batch = list(subject.found["configuration"].patch_size), subject.found["batch_size"]
    if network is None or not hasattr(network, "compute_conv_feature_map_size"):
        yield Check(OK, "no estimate for this network")
        return
    size = float(network.compute_conv_feature_map_size(tuple(patch))) * subject.found.get("passes", 1.0)
    gigabytes = memory_gb(size, batch, axes=len(patch))
    told = f"about {gigabytes:.1f} GB of GPU memory at batch {batch}, by nnU-Net's estimate"
    available = subject.found.get("gpu_bytes", math.inf) / 2**30
    if gigabytes > available:
        remedy = f"plan with -gpu_memory_target {math.floor(available)} or take a smaller batch or patch"
        yield Check(WARN, f"{told}; the GPU has {available:.1f} GiB", remedy)
    else:
        yield Check(OK, told)


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} case{'s' * (len(names) != 1)} ({', '.join(names[:shown])}{more})"


TRAINING = (
    Examination("data set", check_dataset, needs=("import", PREPROCESSED)),
    Examination("dataset.json", check_dataset_json, needs=("data set",)),
    Examination("plans", check_plans, needs=("dataset.json",)),
    Examination("trainer", check_trainer, needs=("import",)),
    Examination("configuration", check_configuration, needs=("plans", "trainer")),
    Examination("fingerprint", check_fingerprint, needs=("data set",)),
    Examination("preprocessed data", check_data, needs=("configuration",)),
    Examination("slabs", check_slabs, needs=("preprocessed data", "trainer")),
    Examination("references", check_references, needs=("preprocessed data",)),
    Examination("splits", check_splits, needs=("preprocessed data",)),
    Examination("previous stage", check_previous_stage, needs=("preprocessed data", RESULTS)),
    Examination("results", check_results, needs=("configuration", RESULTS)),
    Examination("checkpoints", check_checkpoints, needs=("results",)),
    Examination("network", check_network, needs=("configuration",)),
    Examination("schedule", check_schedule, needs=("network", RESULTS)),
    Examination("memory", check_memory, needs=("network", "schedule")),
)
