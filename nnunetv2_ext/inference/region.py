"""Where a region of interest comes from: a model that is asked first, masks in a folder, or a cascade's first stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.data.description import channel_names, label_values
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.inference.roi import ROI
from nnunetv2_ext.text import listed

if TYPE_CHECKING:
    from nnunetv2_ext.inference.predictor import Predictor

PREVIOUS = "previous"


@dataclass(frozen=True)
class Region:
    """A region of interest: how boxes are made of a mask, and where the mask comes from."""

    roi: ROI
    predictor: "Predictor | None" = None
    """Of the model that is asked first."""
    folder: Path | None = None
    """Of masks, named as the cases; where there is neither, the labels of a cascade's first stage are the mask."""

    def description(self) -> dict[str, Any]:
        """What decides the region, as JSON has it."""
        source: Any = PREVIOUS if self.folder is None else "masks"
        return {**vars(self.roi), "of": self.predictor.description() if self.predictor else source}


def check_labels(labels: Sequence[int], known: Mapping[str, Any], *, of: str) -> None:
    """Refuse values of --roi-labels that the ROI model does not predict.

    Args:
        known: `labels` of its dataset.json.
        of: the model's name.

    Raises:
        InputError: an unknown label, or background.
    """
    values = {*label_values({"labels": known})} - {0}
    unknown = [label for label in labels if label not in values]
    if unknown:
        raise InputError(
            f"--roi-labels {listed(unknown, separator=' ')}", f"labels of {of}: {listed(sorted(values))}", "correct it"
        )


def margin_of(plans: dict[str, Any], configuration: str) -> float | None:
    """The margin (mm) that `calibrate_roi` wrote into the plans of a model, None where it was not calibrated."""
    block = plans["configurations"].get(configuration, {}).get("roi")
    margin = block.get("margin_mm") if isinstance(block, dict) else None
    return float(margin) if isinstance(margin, int | float) else None


def region_of_model(roi: ROI, predictor: "Predictor", margin: float | None) -> Region:
    """The region that a model predicts, with the margin that was asked for, or the calibrated one.

    Raises:
        InputError: it was not calibrated and no margin was given, or it does not predict the labels.
    """
    model = predictor.models[0].model
    if roi.labels is not None:
        check_labels(roi.labels, predictor.dataset_json["labels"], of=model.name)
    known = margin_of(model.trained.plans, model.trained.configuration) if margin is None else margin
    if known is None:
        raise InputError(
            f"no roi block in {model.folder / 'plans.json'} and no --roi-margin",
            "the margin in mm that a model of a region needs",
            f"run nnunetv2_ext calibrate_roi -d {model.trained.plans['dataset_name']} -m {model.name}, "
            "or give --roi-margin",
        )
    return Region(replace(roi, margin=known), predictor)


def check_region(region: Region, predictor: "Predictor") -> None:
    """Refuse a region that cannot be one for these models.

    Raises:
        InputError: a model of other channels or files, or a cascade's first stage where there is no cascade.
    """
    if region.predictor is None:
        if region.folder is None and all(one.model.previous_stage is None for one in predictor.models):
            remedy = "name a model or a folder of masks"
            raise InputError(f"--roi {PREVIOUS} without a cascade", "a model with a first stage", remedy)
        if region.folder is None and region.roi.labels is not None:
            check_labels(region.roi.labels, predictor.dataset_json["labels"], of="the first stage")
        return
    ours, theirs = (
        [
            [str(channel).casefold() for channel in channel_names(one.dataset_json).values()],
            one.file_ending,
            type(one.reader).__name__,
        ]
        for one in (predictor, region.predictor)
    )
    if ours != theirs:
        name = region.predictor.models[0].model.name
        what, wanted = ((listed(side[0]), *side[1:]) for side in (theirs, ours))
        raise InputError(
            f"the model of the region {name} of {listed(what, separator='; ')}",
            f"{listed(wanted, separator='; ')}, as the models that predict in it",
            "train one on the same channels",
        )
