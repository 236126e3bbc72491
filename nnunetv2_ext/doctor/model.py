"""What `nnunetv2_ext doctor MODEL_FOLDER` checks of a trained model: whole for prediction, nothing that runs code."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2_ext.data.description import channel_names
from nnunetv2_ext.doctor.examination import FAIL, MODEL, OK, WARN, Check, Examination, Subject, said
from nnunetv2_ext.doctor.installation import ENV_COMMAND
from nnunetv2_ext.doctor.training import check_network, check_trainer
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_json, read_pickle
from nnunetv2_ext.text import counted, listed
from nnunetv2_ext.weights.files import FINAL, ForeignObject

AGAIN = "export or copy the model again"
FOLD = re.compile(r"fold_(all|\d+)")
LIBRARIES = ("nnunetv2_ext", "dynamic_network_architectures", "nnunetv2", "torch", "monai", "timm")
"""Where the names in an architecture may come from; building the network imports and calls what they name."""


def check_folder(subject: Subject) -> Iterator[Check]:
    """A model's folder with folds; sets `folder`, and `files`, the checkpoints of each fold."""
    model = _folder(subject)
    if model.is_file():
        unpack = f"unpack it: nnUNetv2_install_pretrained_model_from_zip {model}"
        inside = model.suffix == ".pth" and FOLD.fullmatch(model.parent.name)
        yield Check(FAIL, f"{model} is a file", f"give {model.parent.parent}" if inside else unpack)
        return
    if not model.is_dir():
        yield Check(FAIL, f"no folder {model}", "check the path")
        return
    folds = sorted(path for path in model.glob("fold_*") if path.is_dir())
    files = {fold.name: sorted(fold.glob("checkpoint_*.pth")) for fold in folds if FOLD.fullmatch(fold.name)}
    files = {name: found for name, found in files.items() if found}
    if not files:
        parent = model.parent if FOLD.fullmatch(model.name) else None
        inner = sorted(path.parent for path in model.glob("*/fold_*") if path.is_dir())
        remedy = f"give {parent or inner[0]}" if parent or inner else AGAIN
        yield Check(FAIL, f"{model} holds no fold_* with a checkpoint", remedy)
        return
    if subject.fold is not None:
        if f"fold_{subject.fold}" not in files:
            remedy = f"choose -f from {_f(list(files))}, or train it"
            yield Check(FAIL, f"no fold_{subject.fold} with a checkpoint in {model}", remedy)
            return
        files = {f"fold_{subject.fold}": files[f"fold_{subject.fold}"]}
    subject.found.update(folder=model, files=files)
    for fold in folds:
        if not FOLD.fullmatch(fold.name) and (fold / FINAL).is_file():
            rename = f"rename it to something that does not begin with fold_, or nnU-Net takes it for a fold of {model}"
            yield Check(WARN, f"{fold.name} is no fold", rename)
    finished = [name for name, found in files.items() if FINAL in [file.name for file in found]]
    if not finished:
        yield Check(FAIL, f"no {FINAL} in {listed(files)}", "continue the training with --c")
        return
    for name in files.keys() - set(finished):
        yield Check(
            WARN, f"{name} has no {FINAL}", f"continue its training with --c, or predict with -f {_f(finished)}"
        )
    yield Check(OK, f"{len(finished)} finished of {len(files)} folds ({listed(files)})")


def _folder(subject: Subject) -> Path:
    assert subject.model is not None
    return subject.model


def _f(folds: list[str]) -> str:
    """What stands after nnU-Net's -f."""
    return " ".join(name.removeprefix("fold_") for name in folds)


def check_description(subject: Subject) -> Iterator[Check]:
    """plans.json and dataset.json are read by nnU-Net; sets `plans_manager` and `dataset_json`."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = subject.found["folder"]
    description, plans = (read_json(folder / name, AGAIN) for name in ("dataset.json", "plans.json"))
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or not all(isinstance(value, dict) for value in configurations.values()):
        yield Check(FAIL, f"{folder / 'plans.json'} without configurations", AGAIN)
        return
    manager = PlansManager(plans)
    try:
        labels = manager.get_label_manager(description)
        channels = channel_names(description)
        if not isinstance(channels, dict) or not isinstance(description.get("file_ending"), str):
            raise ValueError("no channel_names or file_ending")
    except Exception as error:
        yield Check(FAIL, f"nnU-Net refuses plans.json and dataset.json ({said(error)})", AGAIN)
        return
    subject.found.update(plans_manager=manager, dataset_json=description)
    yield Check(OK, f"{len(channels)} channels, {labels.num_segmentation_heads} outputs, {listed(configurations)}")


def check_contents(subject: Subject) -> Iterator[Check]:
    """Every checkpoint holds tensors and numbers alone, all finite; sets `contents`, the final ones by fold."""
    from nnunetv2_ext.weights.checkpoint import read_checkpoint, resume_faults

    contents: dict[str, dict[str, Any]] = {}
    for fold, files in subject.found["files"].items():
        for file in files:
            name = f"{fold}/{file.name}"
            try:
                content = read_checkpoint(file, resume=False, remedy=AGAIN)
            except ForeignObject as error:
                yield Check(FAIL, error.args[0], f"predict and train nothing with it; {error.args[2]}")
                continue
            except InputError as error:
                got, _, remedy = error.args
                others = FINAL in [other.name for other in files] and file.name != FINAL
                remedy = "remove it, prediction needs it not" if others else remedy
                yield Check(WARN if others else FAIL, got, remedy)
                continue
            if file.name == FINAL:
                contents[fold] = content
            told = f"{name}: tensors and numbers alone, all finite"
            complete = {"current_epoch", "logging", "optimizer_state"} <= content.keys()
            if not complete or resume_faults(content):
                yield Check(OK, f"{told}; good for prediction, not for going on with the training")
            else:
                yield Check(OK, f"{told}, epoch {content['current_epoch']}")
    subject.found["contents"] = contents
    yield from _properties(subject.found["folder"])


def _properties(folder: Path) -> Iterator[Check]:
    """The other pickles of a model folder: of a validation with --npz, properties of its cases."""
    pickles = sorted(folder.rglob("*.pkl"))
    for file in pickles:
        try:
            read_pickle(file, "remove it, prediction needs it not")
        except InputError as error:
            yield Check(FAIL, error.args[0], error.args[2])
            return
    if pickles:
        yield Check(OK, f"{counted([file.name for file in pickles], 'pickle')} of data alone")


def check_sameness(subject: Subject) -> Iterator[Check]:
    """All folds are of one trainer and one configuration of plans.json; sets `configuration`, and the trainer."""
    contents, manager = subject.found["contents"], subject.found["plans_manager"]
    made = {
        fold: (content["trainer_name"], content["init_args"]["configuration"]) for fold, content in contents.items()
    }
    if len(set(made.values())) > 1:
        told = listed(f"{fold} of {' '.join(names)}" for fold, names in made.items())
        yield Check(FAIL, f"folds of several models: {told}", "keep those of one model in this folder")
        return
    subject.trainer, subject.configuration = next(iter(made.values()))
    if subject.configuration not in manager.plans["configurations"]:
        yield Check(FAIL, f"plans.json has no {subject.configuration}, which was trained", f"restore it: {AGAIN}")
        return
    try:
        configuration = manager.get_configuration(subject.configuration)
        architecture = configuration.configuration["architecture"]
        if not isinstance(architecture, dict):
            raise TypeError("no architecture")
    except Exception as error:
        yield Check(FAIL, f"{subject.configuration} of plans.json is damaged ({said(error)})", f"restore it: {AGAIN}")
        return
    strangers = [name for name in _names(architecture) if name.partition(".")[0] not in LIBRARIES]
    if strangers:
        what = (
            f"the architecture in plans.json names {listed(strangers, shown=3)}, which building the network would run"
        )
        yield Check(FAIL, what, f"look at what it is; networks of {listed(LIBRARIES)} are built")
        return
    subject.found["configuration"] = configuration
    yield Check(OK, f"{subject.trainer}, {subject.configuration}, patch {list(configuration.patch_size)}")


def _names(value: Any) -> Iterator[str]:
    """Everything in an architecture that reads like a dotted name."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _names(item)
    elif isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)+", value):
        yield value


def check_known(subject: Subject) -> Iterator[Check]:
    """nnU-Net's finder knows the trainer; sets `trainer` and `ours`."""
    bring = f"install what brings it, then {ENV_COMMAND} (or set nnUNet_extTrainer to its folder)"
    for check in check_trainer(subject):
        unknown = check.status == FAIL and check.remedy != ENV_COMMAND
        yield check._replace(remedy=bring) if unknown else check


def check_built(subject: Subject) -> Iterator[Check]:
    """The trainer builds the network of the plans; sets `network`."""
    for check in check_network(subject):
        yield check._replace(remedy=f"restore plans.json: {AGAIN}") if check.status == FAIL else check


def check_weights(subject: Subject) -> Iterator[Check]:
    """The weights of every fold fit the network that the plans build."""
    from nnunetv2_ext.block import differences
    from nnunetv2_ext.weights.checkpoint import differing_weights

    network = subject.found.get("network")
    if network is None:
        yield Check(OK, "not compared: the network was not built")
        return
    for fold, content in subject.found["contents"].items():
        faults = differing_weights(content["network_weights"], network.state_dict())
        if not faults:
            continue
        trained = content["init_args"]["plans"]["configurations"][subject.configuration]
        planned = subject.found["plans_manager"].plans["configurations"][subject.configuration]
        changed = differences(trained.get("architecture", {}), planned.get("architecture", {}), "architecture")
        why = f"; plans.json was changed since: {listed(changed, shown=3, separator='; ')}" if changed else ""
        told = f"{fold} holds weights of another network ({listed(faults, shown=3, separator='; ')}{why})"
        yield Check(FAIL, told, f"restore plans.json, dataset.json and the checkpoint of one training: {AGAIN}")
        return
    yield Check(OK, f"those of {listed(subject.found['contents'])} fit")


def check_safe(subject: Subject) -> Iterator[Check]:
    """What `nnunetv2_ext safe_export` wrote is whole; sets what the examinations of any model set before `contents`."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_ext.weights.safe import read_safe_model

    folder = _folder(subject)
    model = read_safe_model(folder, None if subject.fold is None else [subject.fold])
    made_with = {"plans": model.plans, "configuration": model.configuration, "dataset_json": model.dataset_json}
    subject.found.update(
        folder=folder,
        plans_manager=PlansManager(model.plans),
        dataset_json=model.dataset_json,
        contents={
            f"fold_{fold}": {"network_weights": weights, "trainer_name": model.trainer_name, "init_args": made_with}
            for fold, weights in model.weights.items()
        },
    )
    yield Check(OK, f"safetensors and JSON of fold {listed(model.weights)}, all finite")


_of_model = partial(Examination, group=MODEL)
_OF_CONTENTS = (
    _of_model("model", check_sameness, needs=("contents",)),
    _of_model("trainer", check_known, needs=("model",)),
    _of_model("network", check_built, needs=("trainer",)),
    _of_model("weights", check_weights, needs=("network",)),
)
TRAINED_MODEL = (
    _of_model("folder", check_folder),
    _of_model("description", check_description, needs=("folder",)),
    _of_model("contents", check_contents, needs=("description",)),
    *_OF_CONTENTS,
)
SAFE_MODEL = (_of_model("contents", check_safe), *_OF_CONTENTS)
