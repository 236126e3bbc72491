"""What `nnunetv2_ext doctor -d ...` checks of one training: all that nnUNetv2_train would stumble over."""

import inspect
import io
import math
from collections.abc import Iterator
from contextlib import redirect_stdout
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2_ext import registry
from nnunetv2_ext.doctor.dataset import (
    PREPROCESSED,
    RESULTS,
    check_data,
    check_dataset,
    check_dataset_json,
    check_fingerprint,
    check_references,
    check_slabs,
    check_splits,
    replan,
)
from nnunetv2_ext.doctor.examination import (
    DATA,
    FAIL,
    OK,
    TRAINED,
    WARN,
    Check,
    Examination,
    Subject,
    said,
)
from nnunetv2_ext.doctor.installation import ENV_COMMAND, find_trainer
from nnunetv2_ext.doctor.raw import check_raw
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import nnunet_folder, read_json, why_not_writable
from nnunetv2_ext.text import counted, listed
from nnunetv2_ext.weights.files import FINAL, ForeignObject


def check_plans(subject: Subject) -> Iterator[Check]:
    """A whole plans file of this data set; sets `plans_manager`."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    file = subject.found["folder"] / f"{subject.plans}.json"
    if not file.is_file():
        there = sorted(other.stem for other in file.parent.glob("*lans*.json"))
        remedy = f"{subject.choose('-p', *there)}, or {replan(subject)}" if there else replan(subject)
        yield Check(FAIL, f"no plans file {file}", remedy)
        return
    anew = f"remove {file}, then {replan(subject)}"  # planning keeps what it does not know of plans that are there
    plans = read_json(file, anew)
    kinds = {"dataset_name": str, "plans_name": str, "configurations": dict}
    missing = [key for key, kind in kinds.items() if not isinstance(plans.get(key), kind)]
    if missing:
        yield Check(FAIL, f"{file} lacks {', '.join(missing)}, or holds another kind of value", anew)
        return
    odd = sorted(name for name, content in plans["configurations"].items() if not isinstance(content, dict))
    if odd:
        yield Check(FAIL, f"{counted(odd, 'configuration')} of {file} hold no object", anew)
        return
    if plans["dataset_name"] != subject.found["name"]:
        yield Check(FAIL, f"{file} was made for {plans['dataset_name']}", anew)
        return
    manager = PlansManager(plans)
    try:
        manager.get_label_manager(subject.found["dataset_json"])
    except KeyError as error:
        yield Check(FAIL, f"{file} lacks {error}", replan(subject))
        return
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
    from nnunetv2_ext.training.trainer import ExtTrainer

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
    subject.found["trainer"] = trainer
    subject.found["ours"] = issubclass(trainer, ExtTrainer)
    yield Check(OK, f"{subject.trainer} from {trainer.__module__}")


def check_configuration(subject: Subject) -> Iterator[Check]:
    """The configuration exists and goes with the trainer; sets `configuration`."""
    from nnunetv2_ext.training.checks import check_configuration as check_sizes

    manager = subject.found["plans_manager"]
    if subject.configuration not in manager.available_configurations:
        remedy = subject.choose("-c", *manager.available_configurations)
        yield Check(FAIL, f"{subject.plans} has no {subject.configuration}", remedy)
        return
    try:
        configuration = manager.get_configuration(subject.configuration)
        check_sizes(subject.configuration, configuration.configuration)
        patch, architecture = list(configuration.patch_size), configuration.network_arch_class_name
        subject.found["batch_size"] = configuration.batch_size
        subject.found["data"] = subject.found["folder"] / configuration.data_identifier
    except InputError:
        raise
    except Exception as error:
        yield Check(FAIL, f"{subject.configuration} is incomplete or damaged ({said(error)})", replan(subject))
        return
    our_network = architecture.startswith("nnunetv2_ext.")
    three = [n for n in manager.available_configurations if len(_patch_size(manager, n)) == 3]
    if len(patch) != 3 and (subject.found["ours"] or our_network):
        what = subject.trainer if subject.found["ours"] else architecture
        remedy = ", or ".join((*[subject.choose("-c", *three)] * bool(three), subject.choose("-tr", "nnUNetTrainer")))
        yield Check(FAIL, f"{what} needs 3D, the patch of {subject.configuration} is {patch}", remedy)
    elif our_network and not subject.found["ours"]:
        remedy = subject.choose("-tr", *(entry.name for entry in registry.TRAINERS))
        remedy += f", or {subject.choose('-p', 'nnUNetPlans')}"
        yield Check(FAIL, f"{subject.trainer} cannot train {architecture}", remedy)
    else:
        subject.found["configuration"] = configuration
        yield Check(OK, f"{subject.configuration}, patch {patch}, batch {configuration.batch_size}")
        if not subject.found["ours"]:
            yield from _check_augmentation(subject, patch)


def _check_augmentation(subject: Subject, patch: list[int]) -> Iterator[Check]:
    """nnU-Net's own augmentation ends at random on a short axis; that of our trainers takes any."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunetv2_ext.training.augmentation import SAFE_SLICES

    if min(patch) >= SAFE_SLICES:
        return
    larger = f"set its patch_size to {[max(size, SAFE_SLICES) for size in patch]}"
    same = f"{subject.choose('-tr', 'BackboneTrainer')}, which trains the same network, or "
    remedy = same * (len(patch) == 3) + larger
    # a trainer with transforms of its own may do without the blur
    stock = subject.found["trainer"].get_training_transforms is nnUNetTrainer.get_training_transforms
    yield Check(
        FAIL if stock else WARN,
        f"a patch of {patch} with {subject.trainer}: nnU-Net's blur needs {SAFE_SLICES} voxels of each axis and ends "
        "the training at random",
        remedy,
    )


def _patch_size(manager: Any, configuration: str) -> list[int]:
    try:
        return list(manager.get_configuration(configuration).patch_size)
    except Exception:  # a damaged neighbour is not what was asked about
        return []


def check_block_of_plans(subject: Subject) -> Iterator[Check]:
    """The `training` block, which only trainers of ours read; they check it when training starts."""
    from nnunetv2_ext.block import check_block
    from nnunetv2_ext.memory import passes

    block = subject.found["configuration"].configuration.get("training")
    if not subject.found["ours"]:
        if block is None:
            yield Check(OK, "no training block in the plans: the trainer's own numbers")
            return
        check_block(block)
        yield Check(WARN, f"{subject.trainer} does not read the training block", "choose one of our trainers to use it")
        return
    plans = deepcopy(subject.found["plans_manager"].plans)
    block = subject.found["trainer"].check_plans(plans, subject.configuration).block
    subject.found["passes"] = passes(block, subject.found["configuration"].patch_size[0])
    subject.found["batch_size"] = block.get("batch_size") or subject.found["batch_size"]
    told = [f"{key} {block[key]}" for key in ("epochs", "iterations_per_epoch") if block.get(key)]
    yield Check(OK, ", ".join(told) or "valid")


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
        yield Check(FAIL, f"{counted(lacking, 'case')} without a prediction in {folder}", first)
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
    """Checkpoints of earlier trainings of the fold are whole, and no surprise to who goes on or starts anew."""

    model, ours = results_folder(subject, subject.configuration), subject.found["ours"]
    files = sorted(model.glob(f"fold_{subject.fold or '*'}/checkpoint_*.pth"))
    looked_at: dict[Path, tuple[int, list[str]]] = {}
    faults: dict[Path, InputError] = {}
    for file in files:
        try:
            looked_at[file] = _epochs_and_changes(file, subject)
        except InputError as error:
            faults[file] = error
    for file, fault in faults.items():
        whole = [other.name for other in looked_at if other.parent == file.parent]
        if isinstance(fault, ForeignObject):
            yield Check(FAIL, fault.args[0], f"do not load it; {fault.args[2]}")
        elif whole and ours:
            yield Check(WARN, fault.args[0], "leave it: --c falls back to the newest whole one by itself")
        else:
            remedy = f"remove it; --c then goes on from {whole[0]}" if whole else "remove it and train the fold anew"
            yield Check(FAIL, fault.args[0], remedy)
    if not faults:
        yield Check(OK, f"{len(files)} checkpoints, all readable" if files else "none yet")
    for fold in sorted({file.parent for file in looked_at}):
        found = {file.name: epochs for file, (epochs, _) in looked_at.items() if file.parent == fold}
        changed = next((changes for file, (_, changes) in looked_at.items() if file.parent == fold and changes), [])
        told = f"{fold.name} holds {'a finished' if FINAL in found else 'an unfinished'} training of"
        told += f" {max(found.values())} epochs; without --c it is"
        told += " moved aside" if ours else f" overwritten by {subject.trainer}"
        remedy = "add --c to keep it" if FINAL in found else "add --c to go on with it"
        if changed:
            told += f"; it was another training ({listed(changed, shown=3, separator='; ')})"
            told += ", so that --c is refused" if ours else ", which --c would mix with this one"
            remedy = "train anew without --c, or write the old values back to go on with it"
        yield Check(WARN, told, remedy)


def _epochs_and_changes(file: Path, subject: Subject) -> tuple[int, list[str]]:
    """How many epochs a checkpoint is from the start, and in what the plans have changed since.

    Raises:
        InputError: a training cannot go on from it.
    """
    from nnunetv2_ext.architectures.contract import Freezable
    from nnunetv2_ext.block import differences, resolve_block
    from nnunetv2_ext.training.checkpoints import configuration_of, network_changes, task_changes
    from nnunetv2_ext.weights.checkpoint import differing_weights, optimizer_faults, read_checkpoint

    content, network = read_checkpoint(file), subject.found.get("network")
    trained, now = configuration_of(file, content), subject.found["configuration"].configuration
    changed = network_changes(trained, now, subject.configuration)
    changed += task_changes(content["init_args"]["dataset_json"], subject.found["dataset_json"])
    if subject.found["ours"]:
        published = subject.found["trainer"].published_block
        changed += differences(
            resolve_block(trained.get("training"), published), resolve_block(now.get("training"), published)
        )
    if changed or network is None:
        return int(content["current_epoch"]), changed
    faults = differing_weights(content["network_weights"], network.state_dict())
    # which parameters of a network with a backbone are trained stands in the training block
    if subject.found["ours"] and not isinstance(network, Freezable):
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        faults = faults or optimizer_faults(content["optimizer_state"], [parameters])
    if faults:
        told = f"the damaged checkpoint {file} ({listed(faults, shown=3, separator='; ')})"
        raise InputError(told, "one of this network", "train the fold anew")
    return int(content["current_epoch"]), []


def check_network(subject: Subject) -> Iterator[Check]:
    """The trainer builds its network, on torch's meta device, and the patch suits it; sets `network`."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    from nnunetv2_ext.architectures.contract import Supervised
    from nnunetv2_ext.architectures.measure import without_values

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
        with without_values(), redirect_stdout(io.StringIO()):
            network = trainer.build_network_architecture(manager, configuration, channels, classes, True)
        sizes = network.deep_supervision_shapes(patch) if isinstance(network, Supervised) else []
        if configuration.network_arch_init_kwargs.get("n_stages") == 1:
            remedy = "plan for a patch of 8 voxels or more along an axis (--patch-size of our planners)"
            raise InputError("a U-Net of 1 stage, which makes no logits", "two or more", remedy)
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


def check_batch(subject: Subject) -> Iterator[Check]:
    """Batch normalisation needs more than one image."""
    from nnunetv2_ext.training.checks import told_of_batch

    network, batch = subject.found.get("network"), subject.found["batch_size"]
    told, _, remedy = (told_of_batch(network, batch) if network is not None else "").partition("; ")
    yield Check(WARN, told, remedy) if told else Check(OK, f"a batch of {batch}")


def check_memory(subject: Subject) -> Iterator[Check]:
    """nnU-Net's estimate of the memory a training takes, against the GPU; an estimate only warns."""
    from nnunetv2_ext.architectures.contract import Measured
    from nnunetv2_ext.memory import memory_gb

    network = subject.found.get("network")
    patch, batch = list(subject.found["configuration"].patch_size), subject.found["batch_size"]
    if not isinstance(network, Measured):
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


_of_data, _of_training = partial(Examination, group=DATA), partial(Examination, group=TRAINED)
TRAINING = (
    _of_data("raw data", check_raw, needs=("import",)),
    _of_data("data set", check_dataset, needs=("import", PREPROCESSED)),
    _of_data("dataset.json", check_dataset_json, needs=("data set",)),
    _of_data("fingerprint", check_fingerprint, needs=("data set",)),
    _of_training("plans", check_plans, needs=("dataset.json",)),
    _of_training("trainer", check_trainer, needs=("import",)),
    _of_training("configuration", check_configuration, needs=("plans", "trainer")),
    _of_data("preprocessed data", check_data, needs=("configuration",)),
    _of_data("slabs", check_slabs, needs=("preprocessed data", "trainer")),
    _of_data("references", check_references, needs=("preprocessed data",)),
    _of_data("splits", check_splits, needs=("preprocessed data",)),
    _of_data("previous stage", check_previous_stage, needs=("preprocessed data", RESULTS)),
    _of_training("results", check_results, needs=("configuration", RESULTS)),
    _of_training("network", check_network, needs=("configuration",)),
    _of_training("checkpoints", check_checkpoints, needs=("results", "network")),
    _of_training("training block", check_block_of_plans, needs=("network", RESULTS)),
    _of_training("batch", check_batch, needs=("network", "training block")),
    _of_training("memory", check_memory, needs=("network", "training block")),
)
