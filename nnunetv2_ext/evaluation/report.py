"""Dice of predicted folders, case by case, and a table of several models: Markdown to read, JSON to go on with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import write_json
from nnunetv2_ext.text import markdown_table


def dice_by_case(
    truth: Path, prediction: Path, labels: Mapping[str, int], *, file_ending: str = ".nii.gz"
) -> dict[str, dict[str, float]]:
    """Dice of every case of a folder of predictions, as nnU-Net computes it.

    Args:
        truth: folder of reference segmentations, CASE.nii.gz.
        prediction: folder of predicted ones under the same names.
        labels: value of each foreground label by name; background, if given, is left out.
        file_ending: of both.

    Returns:
        Dice of 0 to 1 by case and label name; nan where neither truth nor prediction holds the label

    Raises:
        InputError: no predictions, or predictions of other cases than the reference.
    """
    # nnU-Net's function for whole folders starts worker processes, which takes longer than reading a few small cases.
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending

    wanted, found = ({path.name for path in folder.glob(f"*{file_ending}")} for folder in (truth, prediction))
    if not wanted or wanted != found:
        differing = ", ".join(sorted(wanted ^ found)) or f"no file *{file_ending}"
        raise InputError(
            f"predictions in {prediction} that differ from the cases in {truth} ({differing})",
            "one prediction for each reference segmentation",
            "predict the missing cases or remove what does not belong there",
        )
    foreground = {name: value for name, value in labels.items() if value != 0}
    # By the ending alone: nnU-Net's readers leave files open where they try in vain to read one.
    reader = determine_reader_writer_from_file_ending(file_ending, verbose=False)()
    dice = {}
    for file in sorted(wanted):
        values = list(foreground.values())
        metrics = compute_metrics(str(truth / file), str(prediction / file), reader, values)["metrics"]
        dice[file.removesuffix(file_ending)] = {
            name: float(metrics[value]["Dice"]) for name, value in foreground.items()
        }
    return dice


@dataclass(frozen=True)
class Row:
    """One line of the table: a model, its Dice by label (averaged over cases) and the seconds that training it took."""

    name: str
    dice: Mapping[str, float]
    seconds: float | None = None

    @property
    def mean(self) -> float:
        """Mean Dice over the labels."""
        return float(np.mean(list(self.dice.values())))

    @classmethod
    def of_cases(cls, name: str, cases: Mapping[str, Mapping[str, float]], seconds: float | None = None) -> "Row":
        """The average over what `dice_by_case` returns; a label that a case lacks does not count there."""
        labels = next(iter(cases.values()))
        return cls(
            name, {label: float(np.nanmean([case[label] for case in cases.values()])) for label in labels}, seconds
        )


def rank_cases(cases: Mapping[str, Mapping[str, float]]) -> list[tuple[str, float]]:
    """Cases with their mean Dice over labels, best first; of equal ones the first by name."""
    means = {case: float(np.nanmean(list(dice.values()))) for case, dice in cases.items()}
    return sorted(means.items(), key=lambda item: (-item[1], item[0]))


def dice_table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table: Dice of each label, their mean, training time in seconds where it is known."""
    labels = list(rows[0].dice)
    timed = any(row.seconds is not None for row in rows)
    body = []
    for row in rows:
        dice = (f"{row.dice[label]:.3f}" for label in labels)
        seconds = ["-" if row.seconds is None else f"{row.seconds:.0f}"] * timed
        body.append([row.name, *dice, f"{row.mean:.3f}", *seconds])
    return markdown_table(["model", *labels, "mean Dice", *["training (s)"] * timed], body)


def write_table(rows: Sequence[Row], folder: Path, *, notes: Sequence[str] = ()) -> None:
    """Write `table.md` and `table.json` (a list of objects: name, dice by label, mean, seconds) into a folder.

    Args:
        notes: paragraphs below the table in `table.md`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text("\n\n".join([dice_table(rows), *notes]) + "\n", encoding="utf-8")
    content = [{"name": row.name, "dice": dict(row.dice), "mean": row.mean, "seconds": row.seconds} for row in rows]
    write_json(folder / "table.json", content)
