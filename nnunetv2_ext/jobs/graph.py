"""From a request to jobs: preprocessing, trainings, and what comes after them, each with the jobs that it needs."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from nnunetv2_ext import external_trainer_folders
from nnunetv2_ext.data.splits import SPLITS
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import FOLDER_VARIABLES, changed, dataset_number, nnunet_folder, unwritable, write_beside
from nnunetv2_ext.inference.models import Model
from nnunetv2_ext.inference.record import RECORD
from nnunetv2_ext.inference.trained import fault_of_fold
from nnunetv2_ext.jobs.checks import Trainable, check, check_disk, refuse_trained_elsewhere
from nnunetv2_ext.jobs.engine import Seen
from nnunetv2_ext.jobs.queue import cores
from nnunetv2_ext.jobs.record import RUNNING, WAITING, Job, Resources
from nnunetv2_ext.text import listed
from nnunetv2_ext.weights.files import FINAL

STEPS = ("find_best", "predict", "evaluate", "report")
"""What can come after trainings, in this order."""
BEST, PREDICTIONS, EVALUATION, PAGE = "best.json", "predictions", "evaluation", "report.html"
"""What the steps write into their folder."""
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
    reads: Mapping[str, tuple[Path, ...]] = MappingProxyType({})
    """Files and folders that no other of the jobs writes, by the name of the job that reads them."""


class Wishes(NamedTuple):
    """What may be different about the steps after trainings."""

    titles: Mapping[Model, str] = MappingProxyType({})
    """What tables call a model, where not TRAINER:PLANS:CONFIG."""
    labels: Path | None = None
    """Of the images; None for those beside them."""
    title: str | None = None
    """Heading of the report."""
    note: str | None = None
    """Below it."""


AS_USUAL = Wishes()


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
    return Request(tuple(planned.jobs.values()), tuple(planned.told), last, frozenset(planned.cases))


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
    sizes: dict[Path, int] = field(default_factory=dict)
    """The folders of folds that are to be trained, with the bytes that they will hold."""

    def train(self, model: Model, folds: Sequence[str], *, lacking: frozenset[str] | None = None) -> list[str]:
        """Add the jobs of a model's folds; returns the names of those that it waits for.

        Args:
            lacking: of a cascade's first stage, the cases whose predictions the second one lacks; a whole fold that
                validates one of them is validated again.
        """
        one = check(self.dataset, model, folds, self.how.device)
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
        InputError: the file cannot be written.
    """
    file = nnunet_folder("nnUNet_preprocessed") / dataset / SPLITS
    if file.is_file():
        return
    from batchgenerators.utilities.file_and_folder_operations import save_json
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    splits = generate_crossval_split(sorted(cases), seed=12345, n_splits=5)
    try:
        write_beside(lambda part: save_json(splits, str(part)), file)
    except OSError as error:
        raise unwritable(file, error) from None


def afterwards(
    dataset: str,
    models: Sequence[Model],
    folds: Sequence[str],
    steps: Sequence[str],
    output: Path,
    how: How,
    *,
    after: Sequence[str] = (),
    images: Path | None = None,
    wishes: Wishes = AS_USUAL,
) -> Request:
    """The jobs of our own commands that come after trainings, in the order of `STEPS`; nothing is written.

    `find_best` writes OUTPUT/best.json. `predict` writes below OUTPUT/predictions, into a folder for each model and one
    for their ensemble, or, of more than two, for what `find_best` has chosen; `evaluate` into OUTPUT/evaluation, of
    these where there are labels of the images, else of the validations; `report` writes OUTPUT/report.html.

    Args:
        steps: some of `STEPS`.
        after: the jobs that train the models, as far as they are not done: `last` of what `trainings` gives.
        images: to predict; None where there are none.
    """
    output = output.resolve()
    following = _Following(dataset, models, folds, output, how, wishes)
    if "find_best" in steps:
        following.find_best(after)
    predicted: dict[str, Path] = {}
    if "predict" in steps and images is not None:
        predicted = following.predict(images.resolve(), after)
    elif "predict" in steps:
        following.told.append(f"predict is left out: no images, neither given with -i nor in imagesTs of {dataset}")
    if "evaluate" in steps:
        following.evaluate(images, predicted, after)
    if "report" in steps:
        following.report()
    jobs = tuple(following.jobs.values())
    return Request(jobs, tuple(following.told), tuple(following.jobs), reads=following.reads)


@dataclass
class _Following:
    """The jobs after trainings, as they gather."""

    dataset: str
    models: Sequence[Model]
    folds: Sequence[str]
    output: Path
    how: How
    wishes: Wishes
    jobs: dict[str, Job] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    reads: dict[str, tuple[Path, ...]] = field(default_factory=dict)

    def find_best(self, after: Sequence[str]) -> None:
        """nnU-Net's search, over the numbered folds."""
        if "all" in self.folds:
            self.told.append("find_best is left out: a fold `all` validates the cases that it was trained with")
            return
        command = [*self._of_models, "-f", *self.folds, *self.how.device_flags]
        self._add("find_best", ["find_best", *command, "-o", str(self.output / BEST)], after, self._validations)

    def predict(self, images: Path, after: Sequence[str]) -> dict[str, Path]:
        """Each model, and of several their ensemble; returns the folders of the predictions by name."""
        folders, models = {}, self._of_folds(FINAL)
        trained = max(map(changed, models), default=0.0)
        for title, name, flags, needs in self._predictors(after):
            folder = folders[title] = self.output / PREDICTIONS / name
            command = [*flags, "-i", str(images), "-o", str(folder), "--disable_progress_bar", *self.how.device_flags]
            # those of an earlier training of these folds
            command += ["--overwrite"] * bool(folder.is_dir() and (after or trained > changed(folder / RECORD)))
            self._add(f"predict_{name}", ["predict", *command], needs, [images, *models])
        return folders

    def _predictors(self, after: Sequence[str]) -> Iterator[tuple[str, str, list[str], Sequence[str]]]:
        """Title, name of the folder, flags and needs of all that predict the images."""
        for model in self.models:
            title, flags = self.wishes.titles.get(model, str(model)), ["-d", self.dataset, "-m", str(model), "-f"]
            yield title, model.folder_name, [*flags, *self.folds], after
        if len(self.models) > 2 and "find_best" in self.jobs:  # of two there is one ensemble
            yield "best", "best", ["-m", str(self.output / BEST)], ["find_best"]
        elif len(self.models) > 1:
            yield "ensemble", "ensemble", [*self._of_models, "-f", *self.folds], after

    def evaluate(self, images: Path | None, predicted: Mapping[str, Path], after: Sequence[str]) -> None:
        """The predictions where there are labels of the images; else the validations of the models."""
        labels = self.wishes.labels
        if labels is None and images is not None:
            labels = images.with_name(images.name.replace("images", "labels"))
        if predicted and labels is not None and labels != images and labels.is_dir() and any(labels.iterdir()):
            command = ["-r", str(labels.resolve()), "-p", *map(str, predicted.values()), "--names", *predicted]
            needs, reads = [name for name in self.jobs if name.startswith("predict_")], [labels]
        else:
            if predicted:
                self.told.append(f"evaluate measures the validations: no labels beside {images}")
            command, needs, reads = [*self._of_models, "-f", *self.folds], [*after], self._validations
        place = str(self.output / EVALUATION)
        flags = ["-o", place, "--overwrite", "--disable_progress_bar"]
        self._add("evaluate", ["evaluate", *command, *flags], needs, reads)

    def report(self) -> None:
        """The page of the evaluation."""
        evaluation = self.output / EVALUATION
        needs = [name for name in self.jobs if name == "evaluate"]
        if not needs and not (evaluation / "metrics.csv").is_file():
            self.told.append(f"report is left out: no evaluation in {evaluation}, and evaluate is not asked for")
            return
        about = ["--title", self.wishes.title] if self.wishes.title else []
        about += ["--note", self.wishes.note] if self.wishes.note else []
        self._add("report", ["report", str(evaluation), "-o", str(self.output / PAGE), *about], needs)

    @property
    def _of_models(self) -> list[str]:
        return ["-d", self.dataset, "-m", *map(str, self.models)]

    def _of_folds(self, name: str) -> list[Path]:
        """That file of every fold of every model."""
        results = nnunet_folder("nnUNet_results") / self.dataset
        return [results / model.folder_name / f"fold_{fold}" / name for model in self.models for fold in self.folds]

    @property
    def _validations(self) -> list[Path]:
        return self._of_folds("validation/summary.json")

    def _add(self, name: str, command: Sequence[str], needs: Iterable[str], reads: Iterable[Path] = ()) -> None:
        """A job of one of our commands, whose first word is the step."""
        self.jobs[name] = self.how.job(name, ("nnunetv2_ext", *command), needs, on_gpu=command[0] == "predict")
        self.reads[name] = tuple(reads)
