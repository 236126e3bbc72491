"""From a request to jobs: preprocessing and trainings, each with the jobs that it needs."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from nnunetv2_ext import external_trainer_folders
from nnunetv2_ext.data.splits import SPLITS, default_splits
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES, dataset_number, nnunet_folder, unwritable, write_beside
from nnunetv2_ext.inference.models import Model
from nnunetv2_ext.inference.trained import fault_of_fold
from nnunetv2_ext.jobs.checks import Trainable, check, check_disk, refuse_trained_elsewhere
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.queue import cores
from nnunetv2_ext.jobs.record import RUNNING, WAITING, Job, Resources
from nnunetv2_ext.text import listed

_PASSED_ON = ("nnUNet_", "OMP_", "MKL_", "TORCHINDUCTOR_")
"""Variables of the submitting shell that a job runs with begin so."""


class Request(NamedTuple):
    """The jobs of a request."""

    jobs: tuple[Job, ...]
    """To be submitted, each behind those that it needs."""
    told: tuple[str, ...] = ()
    """What is not to be done, one sentence each: done already, under way, or not possible."""
    last: tuple[str, ...] = ()
    """Names of the jobs that end the request, submitted here or under way: what comes after needs them."""
    cases: frozenset[str] = frozenset()
    """Of the preprocessed data, there or to be made."""
    validated: int = 0
    """Cases that the numbered folds of its first model validate."""
    reads: Mapping[str, tuple[Path, ...]] = MappingProxyType({})
    """Files and folders that no other of the jobs writes, by the name of the job that reads them."""


class How(NamedTuple):
    """What all jobs of a request share."""

    engine: str = "local"
    resources: Resources = Resources()
    retries: int = 2
    device: str | None = None
    """cpu, cuda, mps, or None for the commands' own defaults."""

    @property
    def device_flags(self) -> list[str]:
        """For nnU-Net's commands and ours."""
        return [] if self.device is None else ["-device", self.device]

    @property
    def processes(self) -> int:
        """Of a command that counts them by nnUNet_def_n_proc: no more than a job has cores, of SLURM one by default."""
        from nnunetv2.configuration import default_num_processes

        return min(default_num_processes, cores() if self.engine == "local" else self.resources.cpus or 1)

    def job(
        self,
        name: str,
        command: Sequence[str],
        needs: Iterable[str] = (),
        fold: Path | None = None,
        *,
        on_gpu: bool = False,
    ) -> Job:
        """A job that runs with nnU-Net's folders and settings as they are for this process.

        Args:
            on_gpu: whether it computes on the device of the request; others hold no GPU.
        """
        resources = self.resources if on_gpu else self.resources.without_gpu()
        kept = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
        folders = {key: str(Path(kept[key]).resolve()) for key in FOLDER_VARIABLES if kept.get(key)}
        kept |= {**folders, "nnUNet_extTrainer": external_trainer_folders()}
        kept.setdefault("nnUNet_def_n_proc", str(self.processes))
        return Job(name, tuple(command), tuple(needs), fold, kept, resources, self.retries, engine=self.engine)


def job_name(model: Model, fold: str) -> str:
    """The name of the job that trains a fold."""
    return f"{model.folder_name}__fold_{fold}"


def under_way(seen: Seen | None) -> bool:
    """Whether a job waits or runs."""
    return seen is not None and seen.state in (WAITING, RUNNING)


def trainings(
    dataset: str,
    models: Sequence[Model],
    folds: Sequence[str],
    standing: Mapping[str, Seen],
    how: How,
) -> Request:
    """The jobs that train every fold of every model, and those that preprocess for them; nothing is written.

    A fold that is whole gets none, nor one whose job waits or runs. The second stage of a cascade needs the folds of
    its first one, which gets jobs too where predictions of it are lacking.

    Args:
        dataset: its whole name.
        folds: numbers or "all".
        standing: how the jobs of the data set stand, by name; of `engine.standing`.

    Raises:
        InputError: a training that would fail, see `checks.check`, or a fold that somebody else trains.
    """
    planned = _Planned(dataset, standing, how)
    for model in models:
        planned.last += planned.train(model, folds)
    check_disk(planned.sizes)
    last = tuple(dict.fromkeys(planned.last))
    validated = planned.validated[models[0]]
    return Request(tuple(planned.jobs.values()), tuple(planned.told), last, frozenset(planned.cases), validated)


@dataclass
class _Planned:
    """The jobs of a request, as they gather."""

    dataset: str
    standing: Mapping[str, Seen]
    how: How
    jobs: dict[str, Job] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)
    cases: set[str] = field(default_factory=set)
    validated: dict[Model, int] = field(default_factory=dict)
    """Cases that the folds of a model validate."""
    sizes: dict[Path, int] = field(default_factory=dict)
    """The folders of folds that are to be trained, with the bytes that they will hold."""

    def train(self, model: Model, folds: Sequence[str], *, lacking: frozenset[str] | None = None) -> list[str]:
        """Add the jobs of a model's folds; returns the names of those that it waits for.

        Args:
            lacking: of a cascade's first stage, the cases whose predictions the second one lacks; a whole fold that
                validates one of them is validated again.
        """
        one = check(self.dataset, model, folds, self.how.device)
        self.validated.setdefault(model, one.validated_together(folds))
        results = nnunet_folder("nnUNet_results") / self.dataset
        needs: list[str] | None = None
        names = []
        for fold in folds:
            name = job_name(model, fold)
            if name in self.jobs:
                names.append(name)
                continue
            if under_way(self.standing.get(name)):
                names.append(name)
                self.told.append(f"{model}, fold {fold}: its job is {self.standing[name].state} already")
                continue
            place = results / model.folder_name / f"fold_{fold}"
            fault = fault_of_fold(results, model, fold, probabilities=True)
            again = fault is None and bool(lacking and lacking & one.validated_by(fold))
            if fault is None and not again:
                self.told.append(f"{model}, fold {fold}: trained and validated already")
                continue
            if fault is not None and not fault.command.startswith("nnUNetv2_train "):
                raise InputError(fault.what, "a model folder as training wrote it", f"run {fault.command}")
            refuse_trained_elsewhere(place)
            if needs is None:
                needs = [*self._first_stage(one), *self._preprocess(one)]
            command = ["nnUNetv2_train", self.dataset, model.configuration, fold]
            command += ["-tr", model.trainer, "-p", model.plans, "--npz", *self.how.device_flags]
            self.jobs[name] = self.how.job(name, [*command, *["--val"] * again], needs, place, on_gpu=True)
            names.append(name)
            self.sizes[place] = one.fold_bytes
            self.cases |= one.cases
        return names

    def _first_stage(self, one: Trainable) -> list[str]:
        """The jobs that make the predictions which the second stage of a cascade reads."""
        if one.previous is None:
            return []
        first = one.model._replace(configuration=one.previous)
        results = nnunet_folder("nnUNet_results") / self.dataset / first.folder_name
        folder = results / "predicted_next_stage" / one.model.configuration
        predicted = {file.stem for file in folder.glob("*") if file.suffix in (".b2nd", ".npz", ".npy")}
        lacking = one.cases - predicted
        if not lacking:
            return []
        numbers = one.numbers
        if one.folds is not None:
            numbers = tuple(number for number, fold in zip(numbers, one.folds, strict=True) if lacking & {*fold["val"]})
        return self.train(first, numbers, lacking=lacking)

    def _preprocess(self, one: Trainable) -> list[str]:
        """The job that preprocesses for a model, once for all that read the same data."""
        if one.preprocessed:
            return []
        name = f"preprocess_{one.data.name}"
        if name not in self.jobs and not under_way(self.standing.get(name)):
            number = str(dataset_number(self.dataset))  # the command takes no name
            command = ["nnUNetv2_preprocess", "-d", number, "-plans_name", one.model.plans]
            command += ["-c", one.model.configuration, "-np", str(self.how.processes)]
            self.jobs[name] = self.how.job(name, [*command, "--no_pbar"])
        return [name]


def refuse_other_engine(jobs: Sequence[Job], known: Mapping[str, Job], engine: str) -> None:
    """Refuse jobs that need one which another engine runs: neither could wait for it.

    Args:
        jobs: of the request.
        known: those of the data set.

    Raises:
        InputError: there are such.
    """
    new = {job.name for job in jobs}
    needed = {need for job in jobs for need in job.needs if need not in new}
    if other := sorted(need for need in needed if need in known and known[need].engine != engine):
        where = known[other[0]].engine
        raise InputError(
            f"jobs on {engine} that need {listed(other, shown=2)} on {where}",
            "all on one engine",
            f"submit with --on {where}, or wait until they have ended",
        )


def write_splits(dataset: str, cases: Iterable[str]) -> None:
    """Write the folds as nnU-Net's first training would, so that no two write them at once; those there are kept.

    Args:
        cases: all that are or will be preprocessed.

    Raises:
        InputError: fewer than five cases, or the file cannot be written.
    """
    file = nnunet_folder("nnUNet_preprocessed") / dataset / SPLITS
    if file.is_file():
        return
    from batchgenerators.utilities.file_and_folder_operations import save_json

    splits = default_splits(cases)
    try:
        write_beside(lambda part: save_json(splits, str(part)), file)
    except OSError as error:
        raise unwritable(file, error) from None
