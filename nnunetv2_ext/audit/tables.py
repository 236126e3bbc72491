"""What an audit's tables hold: a column each of its CSV and its page, and the words for what is listed."""

import csv
import math
from collections.abc import Callable
from io import StringIO
from typing import NamedTuple

from nnunetv2_ext.audit.result import Audit, LabelScore, LatentMap
from nnunetv2_ext.report.tables import rounded

WRONG, STYLE = "probably wrong", "other style"
"""As what a case is listed."""


class Column(NamedTuple):
    """A value of a case and label."""

    name: str
    """In audit.csv."""
    heading: str
    """In the page, with the unit."""
    digits: int
    """Behind the point, in the page."""
    value: Callable[[LabelScore], float]
    meaning: str


COLUMNS = (
    Column("disagreement", "1 - Dice", 3, lambda of: of.disagreement, "of label and prediction"),
    Column("rank", "rank", 2, lambda of: of.rank, "the share of the cases that disagree less in this label"),
    Column("voxels", "voxels", 0, lambda of: of.voxels, "of the label"),
    Column("predicted_voxels", "predicted voxels", 0, lambda of: of.predicted, "of the prediction"),
    Column("volume_ml", "ml", 2, lambda of: of.voxels * of.voxel_volume, "of the label"),
    Column("predicted_ml", "predicted ml", 2, lambda of: of.predicted * of.voxel_volume, "of the prediction"),
    Column("size", "size", 2, lambda of: of.size, "ln((voxels + 1) / (predicted + 1)), above 0: larger"),
    Column("hd95_mm", "HD95 (mm)", 1, lambda of: of.distance, "95 % percentile of the distances of both surfaces"),
    Column("left_mm", "left (mm)", 1, lambda of: of.shift[0], "of the prediction lies the label, for the patient"),
    Column("back_mm", "back (mm)", 1, lambda of: of.shift[1], "of the prediction, nearer to the patient's back"),
    Column("head_mm", "head (mm)", 1, lambda of: of.shift[2], "of the prediction, nearer to the patient's head"),
    Column("components", "components", 0, lambda of: of.components, "parts of the label that do not touch"),
    Column("empty_slices", "empty slices", 0, lambda of: of.empty_slices, "between those that have the label"),
)
"""Beside case, label and as what the case is listed; NaN is left empty."""
OF_MAP = {
    "rarity": "mean distance to the five nearest latents",
    "cluster": "of the latents, 0 the largest",
    "latent_1": "the first number of the case's latent",
    "latent_2": "the second one",
}
"""Columns of audit.csv where there is a map: name and meaning."""


def listed_as(audit: Audit) -> dict[str, str]:
    """The listed cases by name, with as what."""
    return {verdict.case: WRONG if verdict.wrong else STYLE for verdict in audit.verdicts}


def table(audit: Audit) -> str:
    """All cases and labels as CSV, the same for the same audit."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    listed = listed_as(audit)
    places = None if audit.map is None else _places(audit.map)
    of_map = () if places is None else tuple(OF_MAP)
    writer.writerow(["case", "label", "listed_as", *(column.name for column in COLUMNS), *of_map])
    for of in audit.scores:
        values = [column.value(of) for column in COLUMNS]
        if places is not None:
            values += places.get(of.case, [math.nan] * len(of_map))
        writer.writerow([of.case, of.label, listed.get(of.case, ""), *map(_exact, values)])
    return text.getvalue()


def _places(of: LatentMap) -> dict[str, list[float]]:
    """The values of `OF_MAP` by case."""
    return {
        case: [float(rarity), int(cluster), *map(float, latent)]
        for case, rarity, cluster, latent in zip(of.cases, of.rarity, of.clusters, of.latents, strict=True)
    }


def _exact(value: float) -> str:
    return "" if math.isnan(value) else repr(value) if isinstance(value, int) else repr(float(value))


def page_rows(audit: Audit) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """Case, label, as what it is listed, and its cells, each a value and a note, as a page's table has them."""
    listed = listed_as(audit)
    return [
        (of.case, of.label, listed.get(of.case, ""), [(rounded(one.value(of), one.digits), "") for one in COLUMNS])
        for of in audit.scores
    ]
