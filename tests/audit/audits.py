"""Audits made by hand, of phantoms that are written as NIfTI: what the report is given, without a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_ext.audit.result import VALIDATION, Audit, Files, Finding, LabelScore, LatentMap, Verdict
from nnunetv2_ext.data.phantom import LABELS, SPACING, make_phantom
from nnunetv2_ext.data.volumes import Grid, write_volume
from nnunetv2_ext.evaluation.segmentations import labels_of

SHIFT = 4
"""Voxels by which the worst label lies too far back."""
WORST, OTHER, ODD, FINE = "case_0", "case_1", "case_2", "case_3"
"""Probably wrong, of another style, in a finding, listed nowhere."""
CASES = (WORST, OTHER, ODD, FINE)
HOSTILE = "<b>\"x\" & 'y' $a_b$ </script>"
SENTENCE = f"liver lies 4.0 mm further back than predicted {HOSTILE}"


def make_audit(root: Path, **changes: Any) -> Audit:
    """Four cases, predicted as they are: one shifted, one of another style, one in a finding, one as it should be.

    Args:
        root: where the files are written.
        changes: of the audit.
    """
    labels = labels_of({"labels": LABELS, "file_ending": ".nii.gz"}, root / "dataset.json")
    files, scores = {}, []
    for number, case in enumerate(CASES):
        phantom = make_phantom(number, size=48)
        label = np.roll(phantom.labels, SHIFT, axis=1) if case == WORST else phantom.labels
        files[case] = write_case(root, case, phantom.image, label, phantom.labels)
        scores += [score(case, name, disagreement=0.1 + 0.5 * (case == WORST)) for name in labels.of]
    verdicts = [Verdict(WORST, True, 5.0, "liver", SENTENCE), Verdict(OTHER, False, 4.0, "", "all is 9 % larger")]
    findings = [Finding((ODD,), "far away", "a part of kidney lies 30 mm off"), Finding((), "raw data", "got <none>")]
    audit = Audit(
        "Dataset999_Phantom", VALIDATION, "A:B:3d_fullres", labels, files, scores, verdicts, findings, settings={"a": 1}
    )
    return Audit(**{**vars(audit), **changes})


def write_case(root: Path, case: str, image: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> Files:
    """The files of a case on one grid; arrays are (Z, Y, X)."""
    grid = Grid(label.shape[::-1], SPACING[::-1], (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    paths = []
    for folder, values in (("images", image), ("labels", label), ("predictions", prediction)):
        paths.append(root / folder / f"{case}.nii.gz")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        write_volume(values, grid, paths[-1])
    return Files(*paths)


def score(case: str, label: str, **values: Any) -> LabelScore:
    given: dict[str, Any] = {"voxels": 90, "predicted": 100, "voxel_volume": 0.005, "disagreement": 0.1, "size": -0.1}
    return LabelScore(case, label, **{**given, **values})


def make_map(cases: Sequence[str] = CASES, **changes: Any) -> LatentMap:
    """Latents in a row, the last one in a cluster of its own."""
    number = len(cases)
    latents = np.stack([np.arange(number), np.zeros(number)], axis=1).astype(float)
    clusters = np.r_[np.zeros(number - 1, int), 1]
    found = LatentMap(tuple(cases), latents, clusters, 0.6, np.linspace(0, 1, number))
    return found._replace(**changes)
