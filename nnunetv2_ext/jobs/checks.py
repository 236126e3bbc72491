"""What would make all trainings of a model fail the same way, seen before any is submitted: the doctor's checks."""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_ext.data.splits import NNUNET_FOLDS, SPLITS, read_splits
from nnunetv2_ext.doctor.dataset import check_data, check_slabs, check_splits
from nnunetv2_ext.doctor.examination import DATA, FAIL, OK, Check, Examination, Subject, examine
from nnunetv2_ext.doctor.installation import check_commands
from nnunetv2_ext.doctor.training import TRAINING, check_trainer
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES, REFERENCES, nnunet_folder, raw_folder, read_plans
from nnunetv2_ext.inference.models import Model
from nnunetv2_ext.locks import held
from nnunetv2_ext.planning.record import find_sources, other_cases
from nnunetv2_ext.text import counted, listed
from nnunetv2_ext.weights.files import FINAL, has_begun

_QUICK = (
    *("data set", "dataset.json", "fingerprint", "plans", "trainer", "configuration"),
    *("preprocessed data", "slabs", "results", "network", "training block"),
)
_FILES = 2
"""Checkpoints of a trained fold: the final and the best one; while it is trained, it has as many more."""
_STATE = 2
"""Numbers that a checkpoint holds for each parameter, at the least: itself and its momentum."""


class Trainable(NamedTuple):
    """A model whose training can be submitted."""

    model: Model
    data: Path
    """The folder of its preprocessed data."""
    preprocessed: bool
    """Whether they are there, as plans and raw data ask for."""
    cases: frozenset[str]
    folds: tuple[dict[str, list[str]], ...] | None
    """Those of `splits_final.json`; None where it is not written yet."""
    previous: str | None
    """The configuration of a cascade's first stage."""
    fold_bytes: int
    """What the checkpoints of a trained fold take on the disk, at the least."""

    @property
    def numbers(self) -> tuple[str, ...]:
        """All folds of its cross-validation."""
        return tuple(map(str, range(NNUNET_FOLDS if self.folds is None else len(self.folds))))

    def validated_by(self, fold: str) -> frozenset[str]:
        """The cases that a fold validates."""
        if fold == "all" or self.folds is None:
            return self.cases
        return frozenset(self.folds[int(fold)]["val"])

    def validated_together(self, folds: Sequence[str]) -> int:
        """How many cases the numbered ones of some folds validate, which were not trained with them."""
        numbered = [fold for fold in dict.fromkeys(folds) if fold != "all"]
        if self.folds is None:  # nnU-Net will make them, as equal as may be, larger ones first
            return sum((len(self.cases) + NNUNET_FOLDS - 1 - int(fold)) // NNUNET_FOLDS for fold in numbered)
        return len(frozenset[str]().union(*map(self.validated_by, numbered)))


def check(dataset: str, model: Model, folds: Sequence[str], device: str | None = None) -> Trainable:
    """See whether folds of a model can be trained, without reading voxels.

    Args:
        dataset: its whole name.
        folds: numbers or "all".

    Raises:
        InputError: what would stop the training; not that preprocessed data are missing where raw data are there.
    """
    nnunet_folder("nnUNet_results")
    subject = Subject(dataset, model.configuration, model.trainer, model.plans, device=device, named=True)
    known = {examination.name: examination for examination in TRAINING}
    known["preprocessed data"] = Examination("preprocessed data", _check_data, ("configuration",), DATA)
    known["slabs"] = Examination("slabs", _check_slabs, ("preprocessed data", "trainer"), DATA)
    _pass(model, examine([known[name] for name in _QUICK], subject))
    for fold in folds:
        subject.fold = fold
        _pass(model, check_splits(subject))
    _refuse_another_training(dataset, model, folds, subject)
    file = subject.found["folder"] / SPLITS
    network = subject.found.get("network")
    parameters = sum(parameter.numel() for parameter in network.parameters()) if network is not None else 0
    return Trainable(
        model,
        subject.found["data"],
        subject.found["preprocessed"],
        frozenset(subject.found["cases"]),
        tuple(read_splits(file, f"restore {file}")) if file.is_file() else None,
        subject.found["configuration"].previous_stage_name,
        _FILES * _STATE * 4 * parameters,
    )


def refuse_no_nnunet() -> None:
    """Refuse a half-installed environment, in which no training could begin.

    Raises:
        InputError: nnU-Net's command is neither beside this Python nor on the PATH.
    """
    for found in check_commands(Subject()):
        if found.status == FAIL:
            raise InputError(found.what, "nnU-Net's commands", found.remedy)


def refuse_unknown_trainers(dataset: str, models: Sequence[Model]) -> None:
    """Refuse trainers that nobody knows, before there are plans.

    Raises:
        InputError: there are such.
    """
    for model in models:
        _pass(model, check_trainer(Subject(dataset, model.configuration, model.trainer, model.plans)))


def _pass(model: Model, checks: Iterator[Check]) -> None:
    """Refuse the first check that fails.

    Raises:
        InputError: it says what, and what to do.
    """
    for found in checks:
        if found.status == FAIL:
            raise InputError(f"{model}, {found.what}", "a training that can run", found.remedy)


def _check_data(subject: Subject) -> Iterator[Check]:
    """The doctor's check where data are there; else the raw data that they can be made from. Sets `preprocessed`."""
    folder: Path = subject.found["data"]
    name, description = subject.found["name"], subject.found["dataset_json"]
    lost = _lost(folder, name, description)
    subject.found["preprocessed"] = not lost
    if not lost:
        yield from check_data(subject)
        return
    raw = raw_folder(name)
    sources = find_sources(raw, description) if raw is not None else {}
    if not sources:
        where = f"{lost}, and no raw data of {name} in {FOLDER_VARIABLES[0]} to preprocess"
        yield Check(FAIL, where, f"copy it from where it was preprocessed, or set {FOLDER_VARIABLES[0]}")
        return
    subject.found["cases"] = set(sources)
    yield Check(OK, f"{lost}; {len(sources)} cases are to be preprocessed")


def _check_slabs(subject: Subject) -> Iterator[Check]:
    """The doctor's check; of data that are to be made, there is nothing to look at."""
    if subject.found["preprocessed"]:
        yield from check_slabs(subject)


def _lost(folder: Path, name: str, description: dict[str, Any]) -> str:
    """In words, which preprocessed data are not there; empty where they are whole."""
    from nnunetv2_ext.planning.sharing import cases_in

    try:
        cases = cases_in(folder)
    except InputError as error:
        got, _, remedy = error.args
        if remedy != "preprocess again":
            raise
        return str(got)
    references, ending = folder.parent / REFERENCES, description["file_ending"]
    lacking = [case for case in cases if not (references / f"{case}{ending}").is_file()]
    if lacking:
        return f"{counted(lacking, 'case')} without a reference in {references}"
    raw = raw_folder(name)
    # a kill of preprocessing leaves the first cases; what is there of others is for the doctor's check to tell
    sources = find_sources(raw, description) if raw is not None else {}
    if sources and not cases.keys() - sources.keys():
        return other_cases(sources, cases)
    return ""


def _refuse_another_training(dataset: str, model: Model, folds: Sequence[str], subject: Subject) -> None:
    """Refuse folds that were trained with other plans than those of now: they would fail, or be taken for whole.

    Raises:
        InputError: the folds, and what is different.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_ext.block import differences, resolve_block
    from nnunetv2_ext.training.checkpoints import network_changes

    folder = nnunet_folder("nnUNet_results") / dataset / model.folder_name
    places = {fold: folder / f"fold_{fold}" for fold in folds}
    begun = [fold for fold, place in places.items() if (place / FINAL).is_file() or has_begun(place)]
    if not begun or not (folder / "plans.json").is_file():
        return
    remedy = f"move {folder} aside to train anew"
    trained = read_plans(folder / "plans.json", remedy)
    if model.configuration not in trained["configurations"]:
        return
    before = PlansManager(trained).get_configuration(model.configuration).configuration
    now = subject.found["configuration"].configuration
    changed = network_changes(before, now, model.configuration)
    if subject.found["ours"]:
        published = subject.found["trainer"].published_block
        old, new = (resolve_block(one.get("training"), published) for one in (before, now))
        changed += differences(old, new)
    if changed:
        how = listed(changed, shown=3, separator="; ")
        raise InputError(
            f"folds {listed(begun)} of {model} that were trained otherwise ({how})",
            "folds of one model trained alike",
            f"write the old values back into the plans to go on with them, or {remedy}",
        )


def check_disk(wanted: Mapping[Path, int]) -> None:
    """Refuse a disk that cannot hold the checkpoints of all trainings.

    Args:
        wanted: each fold's folder with the bytes that it will hold, of `Trainable.fold_bytes`.

    Raises:
        InputError: too little is free.
    """
    if not wanted:
        return
    folder = nnunet_folder("nnUNet_results")
    needed = max(wanted.values())  # that of those in training, one at a time
    for fold, size in wanted.items():
        needed += max(0, size - sum(path.stat().st_size for path in fold.glob("checkpoint_*")))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{free / 1e9:.1f} GB free in {folder}",
            f"{math.ceil(needed / 1e8) / 10:g} GB for the checkpoints of {len(wanted)} folds, at the least",
            "free some, set another nnUNet_results, or train fewer folds at a time",
        )


def refuse_trained_elsewhere(fold: Path) -> None:
    """Refuse a fold that another process trains, which is not one of our jobs.

    Raises:
        InputError: it says which; a lock that a killed process left does not count.
    """
    if (fold.parent / f".{fold.name}.lock").exists():
        with held(fold.parent, fold.name, "a training"):
            pass
