"""Folders of predictions against their references: every case measured in parallel, scores and summaries written.

A run that was stopped goes on where it was; see `journal`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_ext import __version__
from nnunetv2_ext.data.cases import ending_of
from nnunetv2_ext.data.dataset import for_each
from nnunetv2_ext.data.sidecar import Sidecar
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation import scores, summary
from nnunetv2_ext.evaluation.journal import FILE as JOURNAL
from nnunetv2_ext.evaluation.journal import Journal, states
from nnunetv2_ext.evaluation.metrics import Settings
from nnunetv2_ext.evaluation.scores import Score, Scores, write_scores
from nnunetv2_ext.evaluation.segmentations import Labels, Pair, check_headers, measure_pair, read_pair
from nnunetv2_ext.evaluation.slabs import count_slabs, of_slabs
from nnunetv2_ext.evaluation.summary import Summary, is_ours, read_summaries, write_summary
from nnunetv2_ext.files import unwritable
from nnunetv2_ext.locks import ended_in_order, held
from nnunetv2_ext.text import counted, listed

OTHER = "choose another -o, or replace it with --overwrite"
OWN = (scores.FILE, summary.FILE, JOURNAL)
"""Files of the output, whose names no model's folder can have."""
LONGEST = 255
"""Bytes of a folder's name that file systems take."""


class Predicted(NamedTuple):
    """The predictions of one model."""

    model: str
    """Its name."""
    files: Mapping[str, Path]
    """By case."""
    model_folders: tuple[Path, ...] = ()
    folds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """What is to be evaluated, and how."""

    references: Mapping[str, Path]
    """By case."""
    models: Sequence[Predicted]
    labels: Labels
    settings: Settings = field(default_factory=Settings)
    sidecar: Sidecar | None = None
    """Of thin-thick references: laid annotations, so that predictions are scored on slabs too."""
    images: Path | None = None
    """The folder of the images, for those who show them."""

    def summaries(self) -> dict[str, Summary]:
        """What is kept of each model beside its scores."""
        return {
            one.model: Summary(
                one.model,
                {case: (path.absolute(), one.files[case].absolute()) for case, path in self.references.items()},
                self.labels.values,
                self.labels.ignore,
                self.settings,
                tuple(folder.absolute() for folder in one.model_folders),
                one.folds,
                None if self.images is None else self.images.absolute(),
            )
            for one in self.models
        }


def files_in(folder: Path, ending: str) -> dict[str, Path]:
    """The label files of a folder, by case.

    Raises:
        InputError: no such folder, one that cannot be read, or none with this ending in it.
    """
    if not folder.is_dir():
        what = f"{folder}, a file" if folder.exists() else f"no folder {folder}"
        raise InputError(what, f"a folder of label files *{ending}", "check the path")
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        what = f"a folder {folder} that cannot be read ({error.strerror})"
        raise InputError(what, f"label files *{ending}", "see to its permissions, or to the disk") from None
    files = {path.name.removesuffix(ending): path for path in paths if path.name.endswith(ending)}
    if not files:
        others = [path.name for path in paths if ending_of(path.name)]
        beside = f" beside {counted(others, 'other file')}" if others else ""
        remedy = "correct file_ending in dataset.json, or convert them" if others else "check the path"
        raise InputError(f"no file *{ending} in {folder}{beside}", "label files, one per case", remedy)
    return files


def validated(model: Path, folds: Sequence[object], ending: str) -> dict[str, Path]:
    """The predictions of a model's cross-validation, by case.

    Args:
        model: its folder.

    Raises:
        InputError: a fold without any, or a case that stands in two folds.
    """
    files: dict[str, Path] = {}
    twice = []
    for fold in folds:
        for case, path in files_in(model / f"fold_{fold}" / "validation", ending).items():
            twice += [case] * (case in files)
            files[case] = path
    if twice:
        raise InputError(
            f"{counted(twice, 'case')} in the validation of several folds of {model.name}",
            "folds that share no case",
            "leave out folds that splits_final.json does not hold, or remove stale files from their validation",
        )
    return files


def evaluate(
    evaluation: Evaluation, output: Path, *, processes: int = 1, overwrite: bool = False, progress: bool = False
) -> Scores:
    """Measure every case of every model, and write `metrics.csv` and the summaries.

    Args:
        output: folder to write to; made where there is none.
        processes: cases that are measured at the same time.
        overwrite: replace another evaluation that is there.
        progress: show a bar on stderr.

    Raises:
        InputError: references and predictions that do not belong together; a case that cannot be measured, after all
            others are; an output that cannot be written, or holds another evaluation.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"-o {output}, a file", "a folder", "choose another name")
    check_cases(evaluation)
    _check_output(evaluation, output, overwrite)
    pairs = [
        (one.model, Pair(case, path, one.files[case]))
        for one in evaluation.models
        for case, path in evaluation.references.items()
    ]
    _refuse(pairs, for_each(_header_fault, pairs, processes=processes, label="", progress=False))
    try:
        output.mkdir(parents=True, exist_ok=True)
        with held(output, "evaluate", "an evaluation"), ended_in_order():
            _check_output(evaluation, output, overwrite)  # of one that ended meanwhile
            journal = Journal(output, _about(evaluation))
            journal.open()
            measure = partial(_measured, evaluation, journal)
            results = for_each(measure, pairs, processes=processes, label="evaluate", progress=progress)
            if all(isinstance(result, InputError) for result in results):
                journal.path.unlink()  # nothing to go on from
            _refuse(pairs, results)
            found = _write(evaluation, pairs, results, output)
            journal.path.unlink()
    except OSError as error:
        raise unwritable(output, error) from None
    return found


def check_cases(evaluation: Evaluation) -> None:
    """Refuse models whose cases are not those of the references.

    Raises:
        InputError: with what is missing and what there is beside.
    """
    for one in evaluation.models:
        lacking = [case for case in evaluation.references if case not in one.files]
        beside = [case for case in one.files if case not in evaluation.references]
        if not lacking and not beside:
            continue
        got = [f"no prediction of {counted(lacking, 'case')}"] * bool(lacking)
        got += [f"predictions of {counted(beside, 'case')} without a reference"] * bool(beside)
        remedies = ["predict the missing cases, or evaluate against a folder with the references of the others alone"]
        remedies = remedies * bool(lacking) + ["remove the others, or add their references"] * bool(beside)
        raise InputError(
            f"{listed(got, separator=' and ')} in {one.model}",
            "one prediction for each reference",
            listed(remedies, separator="; "),
        )


def _header_fault(item: tuple[str, Pair]) -> InputError | None:
    try:
        check_headers(item[1])
    except InputError as error:
        return error
    return None


def _measured(evaluation: Evaluation, journal: Journal, item: tuple[str, Pair]) -> dict[str, Any] | InputError:
    """The result of a case by label, as the journal keeps it, or why there is none."""
    model, pair = item
    if (known := journal.result(model, pair.case, pair.files)) is not None:
        return dict(known)
    try:
        try:
            files = states(pair.files)
        except OSError as error:
            what = f"an unreadable file {error.filename} ({error.strerror})"
            raise InputError(what, "a readable file", "see to its permissions, or to the disk") from None
        reference, prediction = read_pair(pair, evaluation.labels)
        measured = measure_pair(reference, prediction, evaluation.labels, evaluation.settings)
        result: dict[str, Any] = {label: of_label._asdict() for label, of_label in measured.items()}
        if evaluation.sidecar is not None:
            both = (reference.values, prediction.values)
            for label, counts in count_slabs(*both, evaluation.sidecar, pair.case, evaluation.labels).items():
                result[label]["slabs"] = counts
    except InputError as error:
        return error
    except MemoryError:
        return InputError(f"too little memory for {pair.reference}", "enough for a case", "run again with -np 1")
    journal.add(model, pair.case, files, result)
    return result


def _refuse(pairs: Sequence[tuple[str, Pair]], results: Sequence[object]) -> None:
    """Refuse cases that have a fault, all at once.

    Raises:
        InputError: of the one, or of all.
    """
    faults = [
        (f"{pair.case} of {model}", result)
        for (model, pair), result in zip(pairs, results, strict=True)
        if isinstance(result, InputError)
    ]
    if not faults:
        return
    if len(faults) == 1:
        raise faults[0][1]
    got, expected, remedies = ([fault.args[place] for _, fault in faults] for place in range(3))
    told = listed((f"{name}: {one}" for (name, _), one in zip(faults, got, strict=True)), shown=10, separator="; ")
    raise InputError(
        f"{len(faults)} faulty cases ({told})",
        listed(dict.fromkeys(expected), shown=3, separator="; "),
        listed(dict.fromkeys(remedies), shown=3, separator="; "),
    )


def _about(evaluation: Evaluation) -> dict[str, Any]:
    """What tells an evaluation from another one, as JSON has it."""
    return {
        "version": __version__,
        "slabs": None if evaluation.sidecar is None else evaluation.sidecar.digest,
        "models": [_traits(one) for one in evaluation.summaries().values()],
    }


def _traits(one: Summary) -> dict[str, Any]:
    """What two evaluations of a model must have in common to be the same."""
    references, predictions = (sorted({str(files[place].parent) for files in one.files.values()}) for place in (0, 1))
    return {
        "model": one.model,
        "references": references,
        "predictions": predictions,
        "folds": list(one.folds),
        "labels": {name: list(values) for name, values in one.labels.items()},
        "ignore label": one.ignore_label,
        "settings": asdict(one.settings),
    }


def _check_output(evaluation: Evaluation, output: Path, overwrite: bool) -> None:
    """Refuse an output that holds another evaluation.

    Raises:
        InputError: it does, or a summary that nnU-Net wrote is in the way.
    """
    places = _places(evaluation, output)
    if len(set(places.values())) < len(evaluation.models):
        names = listed(one.model for one in evaluation.models)
        raise InputError(f"the models {names}", "a folder of its own for each name", "give them other --names")
    for model, path in places.items():
        if path.parent != output:
            _check_folder(model, path.parent)
        for file in (path, output / scores.FILE):
            if file.is_dir():
                raise InputError(f"a folder {file}", "none where a file of ours goes", "choose another -o")
        if path.exists() and not is_ours(path):
            raise InputError(f"{path}, which nnU-Net wrote", "no other summary where ours goes", "choose another -o")
    if overwrite:
        return
    journal = Journal(output, _about(evaluation))
    if (told := journal.told()) is not None:
        if told != journal.about:
            what = f"an evaluation in {output} that was stopped, with other {_differing(told, journal.about)}"
            raise InputError(what, "the same evaluation, to go on with it", OTHER)
    elif (output / scores.FILE).exists() or any(path.exists() for path in places.values()):
        try:
            there = [_traits(one) for one in read_summaries(output).values()] if summary.paths_in(output) else []
        except InputError as error:
            raise InputError(error.args[0], "no other evaluation there", OTHER) from None
        differing = _differing({"models": there}, journal.about)
        if differing:
            raise InputError(f"the scores of another evaluation in {output}, with other {differing}", "none", OTHER)


def _check_folder(model: str, folder: Path) -> None:
    """Refuse the folder of one of several models that cannot be made, before anything is measured.

    Raises:
        InputError: its name is too long or that of a file of ours, or a file is there.
    """
    name = folder.name
    if len(os.fsencode(name)) > LONGEST or name.removesuffix(".part") in OWN or name.startswith(".evaluate."):
        told = model if len(model) <= 100 else f"{model[:50]}... of {len(model)} letters"
        raise InputError(
            f"the model {told}", f"a name that a folder in {folder.parent} can have", "give another with --names"
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}, a file", f"a folder for the summary of {model}", "choose another -o")


def _differing(there: Any, new: Mapping[str, Any]) -> str:
    """In what two evaluations differ, in words; nothing where they do not.

    Args:
        there: as `_about`; of what it does not tell, nothing differs.
    """
    try:
        of_version = there.get("version", __version__)
        differing = [f"version of nnunetv2_ext ({of_version}; this is {__version__})"] * (of_version != __version__)
        differing += ["slabs of the thick slices"] * (there.get("slabs", new["slabs"]) != new["slabs"])
        models, others = ({str(one["model"]): one for one in about["models"]} for about in (there, new))
        if models.keys() != others.keys():
            differing.append("models")
        else:
            traits = [key for name, one in others.items() for key in one if models[name].get(key) != one[key]]
            differing += dict.fromkeys(traits)
    except (LookupError, TypeError, AttributeError):  # a line of something else
        return "content"
    return listed(differing)


def _places(evaluation: Evaluation, output: Path) -> dict[str, Path]:
    """Where the summary of each model goes."""
    if len(evaluation.models) == 1:
        return {evaluation.models[0].model: output / summary.FILE}
    return {one.model: output / one.model.replace(":", "__") / summary.FILE for one in evaluation.models}


def _write(evaluation: Evaluation, pairs: Sequence[tuple[str, Pair]], results: Sequence[Any], output: Path) -> Scores:
    """Write the scores and the summaries; what is there of an earlier evaluation goes first."""
    places = _places(evaluation, output)
    (output / scores.FILE).unlink(missing_ok=True)
    for path in summary.paths_in(output):
        if is_ours(path):
            path.unlink()
            if path.parent != output and not any(path.parent.iterdir()):
                path.parent.rmdir()
    lines: list[Score] = []
    metrics: dict[str, dict[str, dict[str, dict[str, float]]]] = {model: {} for model in places}
    for (model, pair), result in zip(pairs, results, strict=True):
        of_case = metrics[model][pair.case] = {}
        for label, of_label in result.items():
            values = {**of_label["metrics"], **of_slabs(of_label.get("slabs"))}
            of_case[label] = {**of_label["counts"], **{name: value for name, (value, _) in values.items()}}
            for name, (value, note) in values.items():
                how = evaluation.settings.how(name, label)
                lines.append(Score(model, pair.case, label, name, value, how, note))
    for model, one in evaluation.summaries().items():
        places[model].parent.mkdir(exist_ok=True)
        write_summary(places[model], one, metrics[model], keys=evaluation.labels.keys)
    found = Scores(tuple(lines))
    write_scores(found, output / scores.FILE)
    return found
