"""What comes after trainings: our own commands as jobs, each with those that it needs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from nnunetv2_ext.audit import FEWEST
from nnunetv2_ext.files import changed, nnunet_folder
from nnunetv2_ext.inference.models import Model
from nnunetv2_ext.inference.record import RECORD
from nnunetv2_ext.jobs.graph import How, Request, job_name
from nnunetv2_ext.jobs.record import Job
from nnunetv2_ext.weights.files import FINAL

STEPS = ("find_best", "predict", "evaluate", "report", "audit")
"""What can come after trainings, in this order."""
BEST, PREDICTIONS, EVALUATION, PAGE, AUDIT = "best.json", "predictions", "evaluation", "report.html", "audit"
"""What the steps write into their folder."""
VALIDATION = "validation/summary.json"
"""Of a fold."""


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
    validated: int = 0,
    wishes: Wishes = AS_USUAL,
) -> Request:
    """The jobs of our own commands that come after trainings, in the order of `STEPS`; nothing is written.

    `find_best` writes OUTPUT/best.json. `predict` writes below OUTPUT/predictions, into a folder for each model and one
    for their ensemble, or, of more than two, for what `find_best` has chosen; `evaluate` into OUTPUT/evaluation, of
    these where there are labels of the images, else of the validations; `report` writes OUTPUT/report.html. `audit`
    looks for wrong labels by the validation of the first model, and writes OUTPUT/audit; no other job needs it.

    Args:
        steps: some of `STEPS`.
        after: the jobs that train the models, as far as they are not done: `last` of what `trainings` gives.
        images: to predict; None where there are none.
        validated: the cases that the numbered folds of the first model validate.
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
    if "audit" in steps:
        following.audit(after, validated)
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

    def audit(self, after: Sequence[str], validated: int) -> None:
        """Which labels are probably wrong, by what the first model's folds say of cases unknown to them."""
        if validated < FEWEST:
            told = f"it needs {FEWEST} cases that folds validate and were not trained with, and there are {validated}"
            self.told.append(f"audit is left out: {told}")
            return
        model, place = self.models[0], self.output / AUDIT
        command = ["audit", "-d", self.dataset, "--from", "validation", "-m", str(model), "-o", str(place)]
        needs = [name for name in (job_name(model, fold) for fold in self.folds if fold != "all") if name in after]
        reads = self._of_folds(VALIDATION, [model])
        self._add("audit", [*command, "--overwrite", "--disable_progress_bar"], needs, reads)

    @property
    def _of_models(self) -> list[str]:
        return ["-d", self.dataset, "-m", *map(str, self.models)]

    def _of_folds(self, name: str, models: Sequence[Model] = ()) -> list[Path]:
        """That file of every fold of some models; none given: all."""
        results = nnunet_folder("nnUNet_results") / self.dataset
        folders = [results / model.folder_name for model in models or self.models]
        return [folder / f"fold_{fold}" / name for folder in folders for fold in self.folds]

    @property
    def _validations(self) -> list[Path]:
        return self._of_folds(VALIDATION)

    def _add(self, name: str, command: Sequence[str], needs: Iterable[str], reads: Iterable[Path] = ()) -> None:
        """A job of one of our commands, whose first word is the step."""
        self.jobs[name] = self.how.job(name, ("nnunetv2_ext", *command), needs, on_gpu=command[0] == "predict")
        self.reads[name] = tuple(reads)
