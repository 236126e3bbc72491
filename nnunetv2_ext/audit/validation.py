"""The evidence that a cross-validation leaves: each case's held-out prediction beside its label."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from nnunetv2_ext.audit import FEWEST
from nnunetv2_ext.audit.result import LabelScore
from nnunetv2_ext.audit.scores import ranked, score_case
from nnunetv2_ext.data.dataset import for_each
from nnunetv2_ext.data.splits import NNUNET_FOLDS, SPLITS, read_splits
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.folder import files_in, validated
from nnunetv2_ext.evaluation.segmentations import Labels, Pair, check_headers, labels_of
from nnunetv2_ext.files import REFERENCES, nnunet_folder, read_json
from nnunetv2_ext.inference.models import Model, model_folder, parse_models
from nnunetv2_ext.inference.trained import fault_of_fold
from nnunetv2_ext.text import counted, listed


class Validation(NamedTuple):
    """The held-out predictions of a model."""

    model: Model
    folds: tuple[str, ...]
    labels: Labels
    references: Mapping[str, Path]
    """The labels by case, of those that are validated."""
    predictions: Mapping[str, Path]
    """Of the same cases, in the same order."""
    notes: tuple[str, ...] = ()
    """What a reader must know, a sentence each."""


def whole_folds(folder: Path, model: Model) -> tuple[list[str], list[str]]:
    """The folds of a model that are trained and validated, and why others are not.

    Fold `all` is none: it predicts cases that it was trained with.

    Args:
        folder: the data set's, in nnUNet_results.
    """
    splits = nnunet_folder("nnUNet_preprocessed") / folder.name / SPLITS
    number = len(read_splits(splits, f"restore {splits}")) if splits.is_file() else NNUNET_FOLDS
    faults = {str(fold): fault_of_fold(folder, model, fold) for fold in range(number)}
    whole = [fold for fold, fault in faults.items() if fault is None]
    return whole, [fault.what.removeprefix(f"{model.folder_name}/") for fault in faults.values() if fault is not None]


def most_validated(dataset: str) -> Model | None:
    """The model with most folds that are trained and validated, of several the first by name; None where there is none.

    Args:
        dataset: its name.
    """
    folder = nnunet_folder("nnUNet_results") / dataset
    best, most = None, 0
    for path in sorted(folder.glob("*__*__*")):
        try:
            (model,) = parse_models([path.name.replace("__", ":")])
        except InputError:  # an ensemble's folder
            continue
        if (number := len(whole_folds(folder, model)[0])) > most:
            best, most = model, number
    return best


def find_validation(dataset: str, model: Model | None = None) -> Validation:
    """The held-out predictions of a model and the labels that belong to them.

    Args:
        dataset: its name.
        model: None for the one with most folds.

    Raises:
        InputError: no fold that is trained and validated, no labels of the preprocessed cases, or fewer than ten
            cases.
    """
    chosen = model or most_validated(dataset)
    results = nnunet_folder("nnUNet_results") / dataset
    train = f"run nnunetv2_ext train -d {dataset} -m {chosen or 'TRAINER:PLANS:CONFIG'}"
    remedy = f"{train}, or take nnunetv2_ext audit -d {dataset} --from map, which needs none"
    if chosen is None:
        raise InputError(f"no fold in {results} that is trained and validated", "one or more", remedy)
    folder = model_folder(str(chosen), dataset)
    folds, faults = whole_folds(results, chosen)
    if not folds:
        raise InputError(f"{chosen}: {listed(faults, separator='; ')}", "a fold that is trained and validated", remedy)
    description = folder / "dataset.json"
    labels = labels_of(read_json(description, "train the model again"), description)
    references = references_of(dataset, labels)
    predictions = validated(folder, folds, labels.ending)
    of_folds = f"fold{'s' * (len(folds) != 1)} {listed(folds)}"
    notes = [f"Audited are the cases of {of_folds} alone: {listed(faults, separator='; ')}."] * bool(faults)
    cases = [case for case in references if case in predictions]
    notes += lacking(references, predictions, "of these folds")
    refuse_few(len(cases), f"cases of {of_folds} of {chosen}")
    if changed := [case for case in cases if _is_older(predictions[case], references[case])]:
        notes.append(
            f"{counted(changed, 'label')} newer than the prediction: the network was trained with the label as it was."
        )
    label_files, predicted = ({case: files[case] for case in cases} for files in (references, predictions))
    return Validation(chosen, tuple(folds), labels, label_files, predicted, tuple(notes))


def references_of(dataset: str, labels: Labels) -> dict[str, Path]:
    """The labels of the preprocessed cases, by case.

    Args:
        dataset: its name.

    Raises:
        InputError: there are none.
    """
    folder = nnunet_folder("nnUNet_preprocessed") / dataset / REFERENCES
    if not folder.is_dir():
        remedy = f"run nnunetv2_ext plan_and_preprocess -d {dataset}, or nnUNetv2_preprocess"
        raise InputError(f"no folder {folder}", "the labels of the preprocessed cases", remedy)
    return files_in(folder, labels.ending)


def lacking(references: Collection[str], predictions: Collection[str], where: str) -> list[str]:
    """A sentence each for the cases that have no label, and for those that have no prediction.

    Args:
        where: the predictions are, in words.
    """
    told = []
    if beside := [case for case in predictions if case not in references]:
        told.append(f"{counted(beside, 'prediction')} without a label in {REFERENCES}: not audited.")
    if unpredicted := [case for case in references if case not in predictions]:
        told.append(f"{counted(unpredicted, 'case')} without a prediction {where}: not audited.")
    return told


def refuse_few(number: int, what: str) -> None:
    """Refuse so few cases that none can be told to be unlike the others.

    Raises:
        InputError: fewer than ten.
    """
    if number < FEWEST:
        raise InputError(f"{number} {what}", f"{FEWEST} or more", "look at each of them: nnunetv2_ext look")


def _is_older(prediction: Path, label: Path) -> bool:
    return prediction.stat().st_mtime < label.stat().st_mtime


def score_cases(
    references: Mapping[str, Path],
    predictions: Mapping[str, Path],
    labels: Labels,
    *,
    processes: int = 1,
    progress: bool = False,
) -> tuple[list[LabelScore], list[str]]:
    """The scores of all cases with their ranks, and a sentence for each case that cannot be scored.

    Args:
        references: label files by case.
        predictions: of the same cases, on their grids.
        processes: cases at the same time.
        progress: show a bar on stderr.

    Raises:
        InputError: fewer than ten cases can be scored.
    """

    def score(case: str) -> list[LabelScore] | InputError:
        pair = Pair(case, references[case], predictions[case])
        try:
            check_headers(pair)
            return score_case(pair, labels)
        except InputError as error:
            return error
        except MemoryError:
            return InputError(f"too little memory for {pair.reference}", "enough for a case", "run again with -np 1")

    results = for_each(score, list(references), processes=processes, label="score", progress=progress)
    faults = [(case, found) for case, found in zip(references, results, strict=True) if isinstance(found, InputError)]
    if len(references) - len(faults) < FEWEST:
        if faults:
            raise faults[0][1]
        refuse_few(len(references), "cases")
    scores = [score for found in results if not isinstance(found, InputError) for score in found]
    return ranked(scores), [f"{case} is not audited: {error}" for case, error in faults]
