"""What a trained fold lacks for what comes after it, and the command that makes it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_ext.data.cases import ending_of
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import nnunet_folder, read_json, read_plans
from nnunetv2_ext.inference.models import Model
from nnunetv2_ext.text import counted
from nnunetv2_ext.weights.files import FINAL, has_begun

SUMMARY = "summary.json"
"""Of nnU-Net's, in the folder of a validation."""


class Fault(NamedTuple):
    """What is missing, and the command that makes it."""

    what: str
    command: str


def as_script(faults: Sequence[Fault]) -> list[str]:
    """Each command once, below the faults that it mends, as lines to copy into a shell."""
    lines: dict[str, list[str]] = {}
    for fault in faults:
        lines.setdefault(fault.command, []).append(f"# {fault.what}")
    return [line for command, whats in lines.items() for line in (*whats, command)]


def fault_of_fold(
    dataset_folder: Path, model: Model, fold: int | str, *, probabilities: bool = False, flags: str = ""
) -> Fault | None:
    """What one trained fold lacks for the search, with the nnUNetv2_train command that makes it."""
    name = f"{model.folder_name}/fold_{fold}"
    folder = dataset_folder / name
    train = f"nnUNetv2_train {dataset_folder.name} {model.configuration} {fold} -tr {model.trainer} -p {model.plans}"
    train += " --npz" * probabilities + flags
    if not folder.is_dir():
        return Fault(f"{name} was not trained", train)
    if not (folder / FINAL).is_file():
        return Fault(f"{name} is not finished", f"{train} --c" if has_begun(folder) else train)
    if fault := fault_of_validation(folder, probabilities=probabilities):
        return Fault(f"{name}{fault}", f"{train} --val")
    preprocessed = nnunet_folder("nnUNet_preprocessed") / dataset_folder.name
    for file, source in (("plans.json", f"{model.plans}.json"), ("dataset.json", "dataset.json")):
        copy = f"cp '{preprocessed / source}' '{folder.parent / file}'"
        try:
            read_plans(folder.parent / file, "") if file == "plans.json" else description_of(folder.parent, "")
        except InputError as error:
            return Fault(f"{folder.parent.name} has no {file} as training wrote it: {error.args[0]}", copy)
    return None


def fault_of_validation(fold: Path, *, probabilities: bool) -> str:
    """What the validation of a trained fold lacks, as words behind the fold's name; empty where it is whole.

    Read without torch: the supervisor of a training asks, too.

    Args:
        probabilities: whether those of each case are wanted.
    """
    validation = fold / "validation"
    if not (validation / SUMMARY).is_file():
        return f" has no validation/{SUMMARY}"
    if reference_voxels(validation) is None:
        return f"/validation/{SUMMARY} is damaged"
    if lost := lost_predictions(validation):
        return f"/validation lacks {counted(lost, 'prediction')} that its {SUMMARY} tells of"
    names = {path.name for path in validation.iterdir() if path.is_file()}
    predicted = {name for name in names if Path(name).suffix not in (".npz", ".pkl", ".json")}
    trained = (fold / FINAL).stat().st_mtime
    if older := [name for name in sorted({*predicted, SUMMARY}) if (validation / name).stat().st_mtime < trained]:
        what = f"/validation holds {counted(older, 'file')} older than {FINAL}"
        return f"{what} (where copying changed the times of files, copy again with cp -a)"
    if probabilities:
        cases = {name.removesuffix(ending_of(name) or Path(name).suffix) for name in predicted}
        lacking = [case for case in cases if not {f"{case}.npz", f"{case}.pkl"} <= names]
        if lacking:
            return f"/validation lacks the probabilities of {len(lacking)} of {len(cases)} cases"
    return ""


def lost_predictions(validation: Path) -> list[str]:
    """The files that the summary of a fold's validation tells of, and that are no longer there."""
    try:
        cases = read_json(validation / SUMMARY, "")["metric_per_case"]
        told = [Path(case["prediction_file"]).name for case in cases if case.get("prediction_file")]
    except (InputError, LookupError, TypeError, AttributeError):
        return []
    return [name for name in told if not (validation / name).is_file()]


def description_of(folder: Path, remedy: str) -> Any:
    """The dataset.json of a model or of merged predictions.

    Raises:
        InputError: no file, a damaged one, or one without labels or file ending.
    """
    content = read_json(folder / "dataset.json", remedy)
    if not isinstance(content.get("labels"), dict) or not isinstance(content.get("file_ending"), str):
        raise InputError(f"no labels or no file_ending in {folder / 'dataset.json'}", "nnU-Net's dataset.json", remedy)
    return content


def reference_voxels(validation: Path) -> Counter[str] | None:
    """How many voxels of each label the references of a fold's validation hold; None where its summary is damaged."""
    voxels: Counter[str] = Counter()
    try:
        for case in read_json(validation / SUMMARY, "")["metric_per_case"]:
            voxels.update({key: int(metrics["n_ref"]) for key, metrics in case["metrics"].items()})
    except (InputError, LookupError, TypeError, ValueError, AttributeError):
        return None
    return voxels if voxels else None
