"""The evidence of an audit: which source it has, and the scores of its cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnunetv2_ext.audit.result import MAP, VALIDATION, LabelScore, LatentMap
from nnunetv2_ext.audit.validation import (
    find_validation,
    lacking,
    most_validated,
    references_of,
    refuse_few,
    score_cases,
    whole_folds,
)
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.segmentations import Labels, labels_of
from nnunetv2_ext.files import nnunet_folder, read_json, read_plans
from nnunetv2_ext.inference.models import Model

if TYPE_CHECKING:
    from nnunetv2_ext.audit.map import MapResult


@dataclass(frozen=True)
class AuditRequest:
    """What an audit is asked for."""

    dataset: str
    """Its name."""
    source: str | None = None
    """`VALIDATION` or `MAP`; None: validation where a fold has one, else the map."""
    model: Model | None = None
    """None: the one with most folds; for the map, plans and configuration that are preprocessed."""
    map_settings: Mapping[str, Any] = field(default_factory=dict)
    """By name, those that differ from the map's own."""
    device: str = "cpu"
    """Of the map."""
    pictures: int = 20
    """Listed cases with pictures, at the most."""
    viewer: int = 3
    """Listed cases in the viewer, at the most."""


class Scored(NamedTuple):
    """The evidence, scored."""

    source: str
    model: str
    labels: Labels
    references: Mapping[str, Path]
    predictions: Mapping[str, Path]
    scores: list[LabelScore]
    latents: LatentMap | None
    preprocessed: Path | None
    """The folder of the preprocessed cases that were read."""
    notes: tuple[str, ...]


def source_of(request: AuditRequest) -> str:
    """The source of evidence: what is asked for, else validation where a fold has one."""
    if request.source is not None:
        return request.source
    results = nnunet_folder("nnUNet_results") / request.dataset
    if request.model is not None:
        return VALIDATION if whole_folds(results, request.model)[0] else MAP
    return VALIDATION if most_validated(request.dataset) is not None else MAP


def from_validation(request: AuditRequest, *, processes: int, progress: bool) -> Scored:
    """The scores of the held-out predictions of a model.

    Raises:
        InputError: as `find_validation` and `score_cases`.
    """
    found = find_validation(request.dataset, request.model)
    scores, faults = score_cases(
        found.references, found.predictions, found.labels, processes=processes, progress=progress
    )
    data = nnunet_folder("nnUNet_preprocessed") / request.dataset
    return Scored(
        VALIDATION,
        str(found.model),
        found.labels,
        found.references,
        found.predictions,
        scores,
        None,
        _data_folder(data, found.model.plans, found.model.configuration),
        (*found.notes, *faults),
    )


def from_map(request: AuditRequest, output: Path, *, processes: int, overwrite: bool, progress: bool) -> Scored:
    """The scores of a map, which is made where it is not there.

    Args:
        output: folder of its checkpoint and predictions.
        overwrite: make it anew.

    Raises:
        InputError: no preprocessed 3D cases; as `run_map` and `score_cases`.
    """
    data = nnunet_folder("nnUNet_preprocessed") / request.dataset
    description = data / "dataset.json"
    again = f"run nnunetv2_ext plan_and_preprocess -d {request.dataset}"
    content = read_json(description, again)
    labels = labels_of(content, description)
    plans, configuration = _preprocessed(data, request.model, again)
    folder = _data_folder(data, plans, configuration)
    if folder is None:
        raise InputError(f"no preprocessed cases of {plans}:{configuration}", "cases to map", again)
    references = references_of(request.dataset, labels)
    refuse_few(len(references), f"cases of {request.dataset}")

    from nnunetv2_ext.audit.map import MapSettings, run_map

    result = run_map(
        folder,
        read_plans(data / f"{plans}.json", again),
        configuration,
        content,
        labels,
        output,
        settings=MapSettings(**request.map_settings),
        device=request.device,
        progress=progress,
        overwrite=overwrite,
    )
    of_map = {case: references[case] for case in result.predictions if case in references}
    notes = lacking(references, result.predictions, "of the map")
    scores, faults = score_cases(of_map, result.predictions, labels, processes=processes, progress=progress)
    return Scored(
        MAP,
        f"{plans}:{configuration}",
        labels,
        of_map,
        result.predictions,
        _over_readings(scores, result),
        result.map,
        folder,
        (*notes, *result.notes, *faults),
    )


def _over_readings(scores: Sequence[LabelScore], result: "MapResult") -> list[LabelScore]:
    """The scores with the disagreements and ranks of all readings in place of those of the last."""
    rows = {case: row for row, case in enumerate(result.map.cases)}
    columns = {label: column for column, label in enumerate(result.labels)}
    disagreements, ranks = result.disagreement, result.ranks
    found = []
    for score in scores:
        place = rows[score.case], columns[score.label]
        disagreement, rank = float(disagreements[place]), float(ranks[place])
        # what a shift or a mirroring mends of the last prediction's disagreement, it is to mend of their mean
        share = disagreement / score.disagreement if score.disagreement else 1.0
        moved, left, back, head = np.minimum(1.0, share * np.array([score.moved, *score.mirrored])).tolist()
        mirrored = (left, back, head)
        found.append(score._replace(disagreement=disagreement, rank=rank, moved=moved, mirrored=mirrored))
    return found


def _preprocessed(data: Path, model: Model | None, again: str) -> tuple[str, str]:
    """Plans and configuration whose cases are preprocessed: the model's, else a 3D one, 3d_fullres first.

    Raises:
        InputError: there are none.
    """
    if model is not None:
        return model.plans, model.configuration
    found = []
    for path in sorted(data.glob("*.json")):
        try:
            configurations = read_plans(path, again)["configurations"]
        except InputError:  # dataset.json and others
            continue
        found += [
            (path.stem, name)
            for name in configurations
            if name.startswith("3d") and _data_folder(data, path.stem, name) is not None
        ]
    if not found:
        raise InputError(f"no preprocessed 3D configuration in {data}", "cases to map", again)
    return min(found, key=lambda one: (one[1] != "3d_fullres", one))


def _data_folder(data: Path, plans: str, configuration: str) -> Path | None:
    """Where the cases of a configuration lie; None where they are not preprocessed."""
    try:
        configurations = read_plans(data / f"{plans}.json", "")["configurations"]
        planned = configurations[configuration]
        while "data_identifier" not in planned:
            planned = configurations[planned["inherits_from"]]
        folder = data / planned["data_identifier"]
    except (InputError, LookupError, TypeError):
        return None
    return folder if folder.is_dir() and any(folder.iterdir()) else None
