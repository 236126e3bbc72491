"""What a trained fold lacks for what comes after it, and the command that makes it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import nnunet_folder, read_json, read_plans
from nnunetv2_ext.inference.models import Model
from nnunetv2_ext.text import counted
from nnunetv2_ext.weights.files import FINAL


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
    from nnunetv2_ext.evaluation.folder import lost_predictions

    name = f"{model.folder_name}/fold_{fold}"
    folder = dataset_folder / name
    validation = folder / "validation"
    train = f"nnUNetv2_train {dataset_folder.name} {model.configuration} {fold} -tr {model.trainer} -p {model.plans}"
    train += " --npz" * probabilities + flags
    trained = (folder / FINAL).is_file()
    if not folder.is_dir():
        return Fault(f"{name} was not trained", train)
    if not trained and not validation.is_dir():
        started = (folder / "checkpoint_latest.pth").is_file() or (folder / "checkpoint_best.pth").is_file()
        return Fault(f"{name} is not finished", f"{train} --c" if started else train)
    validate = f"{train} --val" if trained else train
    if not (validation / "summary.json").is_file():
        return Fault(f"{name} has no validation/summary.json", validate)
    if reference_voxels(validation) is None:
        return Fault(f"{name}/validation/summary.json is damaged", validate)
    preprocessed = nnunet_folder("nnUNet_preprocessed") / dataset_folder.name
    for file, source in (("plans.json", f"{model.plans}.json"), ("dataset.json", "dataset.json")):
        copy = f"cp '{preprocessed / source}' '{folder.parent / file}'"
        try:
            read_plans(folder.parent / file, "") if file == "plans.json" else description_of(folder.parent, "")
        except InputError as error:
            return Fault(f"{folder.parent.name} has no {file} as training wrote it: {error.args[0]}", copy)
    if lost := lost_predictions(validation):
        return Fault(f"{name}/validation lacks {counted(lost, 'prediction')} that its summary.json tells of", validate)
    if probabilities:
        ending = description_of(folder.parent, "")["file_ending"]
        cases = sorted(path.name.removesuffix(ending) for path in validation.iterdir() if path.name.endswith(ending))
        lacking = [case for case in cases for end in ("npz", "pkl") if not (validation / f"{case}.{end}").is_file()]
        if lacking:
            unique = list(dict.fromkeys(lacking))
            told = f"{name}/validation lacks the probabilities of {len(unique)} of {len(cases)} cases"
            return Fault(told, validate)
    return None


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
        for case in read_json(validation / "summary.json", "")["metric_per_case"]:
            voxels.update({key: int(metrics["n_ref"]) for key, metrics in case["metrics"].items()})
    except (InputError, LookupError, TypeError, ValueError, AttributeError):
        return None
    return voxels if voxels else None
