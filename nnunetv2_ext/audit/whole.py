"""The whole audit of a data set: evidence, verdicts, findings, report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_ext import __version__
from nnunetv2_ext.audit.evidence import AuditRequest, Scored, from_map, from_validation, source_of
from nnunetv2_ext.audit.result import MAP, VALIDATION, Audit, Files
from nnunetv2_ext.audit.told import RUN
from nnunetv2_ext.audit.validation import references_of
from nnunetv2_ext.audit.verdicts import judge
from nnunetv2_ext.data.raw import Raw, examine
from nnunetv2_ext.data.splits import SPLITS, default_splits, read_splits, without
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import nnunet_folder, raw_folder, read_json, unwritable, write_json
from nnunetv2_ext.locks import ended_in_order, held
from nnunetv2_ext.planning.options import flag_of
from nnunetv2_ext.text import listed


def run_audit(
    request: AuditRequest, output: Path, *, processes: int = 1, overwrite: bool = False, progress: bool = False
) -> tuple[Audit, list[str]]:
    """Audit a data set, and write the report.

    Args:
        output: folder to write to; made where there is none.
        processes: cases at the same time.
        overwrite: replace an audit with other settings that is there.
        progress: show bars on stderr.

    Returns:
        What was found, and what the report lacks, a sentence each.

    Raises:
        InputError: nothing to audit, or not enough; an output that cannot be written, or holds an audit with other
            settings.
    """
    from nnunetv2_ext.audit.findings import find_all
    from nnunetv2_ext.audit.report import write_audit

    refuse_data(output, "-o", request.dataset)
    chosen = source_of(request)
    settings: dict[str, Any] = {
        "version": __version__,
        "data set": request.dataset,
        "source": chosen,
        "model": str(request.model or ""),
    }
    if chosen == MAP:
        settings["map"] = dict(request.map_settings)
    if not overwrite:
        _refuse_other(output, settings)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with held(output, "audit", "an audit"), ended_in_order():
            if chosen == VALIDATION:
                scored = from_validation(request, processes=processes, progress=progress)
            else:
                scored = from_map(request, output, processes=processes, overwrite=overwrite, progress=progress)
            raw, notes = _raw_of(request.dataset, processes)
            audit = Audit(
                request.dataset,
                chosen,
                scored.model,
                scored.labels,
                _files(scored, raw),
                scored.scores,
                judge(scored.scores, scored.latents),
                find_all(
                    raw, scored.labels, scored.references, scored.preprocessed, processes=processes, progress=progress
                ),
                scored.latents,
                (*scored.notes, *notes),
                settings,
            )
            return audit, write_audit(audit, output, pictures=request.pictures, viewer=request.viewer)
    except OSError as error:
        raise unwritable(output, error) from None


def refuse_data(path: Path, flag: str, dataset: str) -> None:
    """Refuse to write among the images and labels of a data set, of which nothing is changed.

    Args:
        path: to write to.
        flag: that gives it.

    Raises:
        InputError: it lies in the folder of the raw or of the preprocessed data set.
    """
    folders = {"raw": raw_folder(dataset), "preprocessed": nnunet_folder("nnUNet_preprocessed") / dataset}
    for kind, folder in folders.items():
        if folder is not None and path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{flag} {path} in the {kind} data set", "a place elsewhere", "choose another one")


def _refuse_other(output: Path, settings: Mapping[str, Any]) -> None:
    """Refuse an output that holds an audit with other settings.

    Raises:
        InputError: it does, or is a file.
    """
    remedy = "choose another -o, or replace it with --overwrite"
    if output.exists() and not output.is_dir():
        raise InputError(f"-o {output}, a file", "a folder", "choose another name")
    if not (output / RUN).is_file():
        return
    there = read_json(output / RUN, remedy).get("settings")
    differing = [key for key in settings if not isinstance(there, dict) or there.get(key) != settings[key]]
    before = there.get("map") if isinstance(there, dict) else None
    if "map" in differing and isinstance(before, dict):
        now = settings["map"]
        numbers = [flag_of(name) for name in {**before, **now} if before.get(name) != now.get(name)]
        differing[differing.index("map")] = f"map ({listed(numbers)})"
    if differing:
        raise InputError(f"an audit in {output} with another {listed(differing)}", "the same audit", remedy)


def _raw_of(dataset: str, processes: int) -> tuple[Raw | None, list[str]]:
    """The raw data set, None where there is none that can be looked at, and a sentence of why."""
    folder = raw_folder(dataset)
    if folder is None:
        return None, []
    try:
        return examine(folder, processes=processes), []
    except InputError as error:
        return None, [f"The raw data set is not looked at: {error}."]


def _files(scored: Scored, raw: Raw | None) -> dict[str, Files]:
    images = {} if raw is None else {case: files.images[0] for case, files in raw.cases.items()}
    audited = dict.fromkeys(score.case for score in scored.scores)
    return {case: Files(images.get(case), scored.references[case], scored.predictions[case]) for case in audited}


def own_splits(dataset: str) -> list[dict[str, list[str]]] | None:
    """The folds of a data set's own file; None where it has none.

    Raises:
        InputError: a damaged file.
    """
    own = nnunet_folder("nnUNet_preprocessed") / dataset / SPLITS
    return read_splits(own, f"restore {own}") if own.is_file() else None


def write_exclusion(audit: Audit, path: Path) -> list[str]:
    """Write folds without the cases that are probably wrong, in the shape of splits_final.json.

    The folds are those of the data set, or nnU-Net's five where it has none; its own file stays as it is.

    Returns:
        The cases that are left out.

    Raises:
        InputError: a fold has no other cases, or the file cannot be written.
    """
    splits = own_splits(audit.dataset)
    if splits is None:
        splits = default_splits(references_of(audit.dataset, audit.labels))
    wrong = [verdict.case for verdict in audit.verdicts if verdict.wrong]
    try:
        write_json(path, without(splits, wrong))
    except OSError as error:
        raise unwritable(path, error) from None
    return wrong
