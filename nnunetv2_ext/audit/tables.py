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
    value: Callable[[LabelScore], float]
    meaning: str
    heading: str = ""
    """In the page, with the unit; none: it is not there."""
    digits: int = 0
    """Behind the point, in the page."""


COLUMNS = (
    Column(
        "disagreement", lambda of: of.disagreement, "1 - Dice; of a map, the mean over its readings", "disagreement", 3
    ),
    Column("rank", lambda of: of.rank, "share of the cases that disagree less; of a map, half by rarity", "rank", 2),
    Column("voxels", lambda of: of.voxels, "of the label", "voxels"),
    Column("predicted_voxels", lambda of: of.predicted, "of the prediction", "predicted voxels"),
    Column("volume_ml", lambda of: of.voxels * of.voxel_volume, "of the label", "ml", 2),
    Column("predicted_ml", lambda of: of.predicted * of.voxel_volume, "of the prediction", "predicted ml", 2),
    Column("size", lambda of: of.size, "ln((voxels + 1) / (predicted + 1)): above 0 the label is larger", "size", 2),
    Column("hd95_mm", lambda of: of.distance, "95 % percentile of the surfaces' distances", "HD95 (mm)", 1),
    Column("left_mm", lambda of: of.shift[0], "the label's centre from the prediction's, to the left", "left (mm)", 1),
    Column("back_mm", lambda of: of.shift[1], "likewise, to the patient's back", "back (mm)", 1),
    Column("head_mm", lambda of: of.shift[2], "likewise, to the head", "head (mm)", 1),
    Column("components", lambda of: of.components, "of the label, touching by corners too", "components"),
    Column("empty_slices", lambda of: of.empty_slices, "predicted, between slices with the label", "empty slices"),
    Column("moved", lambda of: of.moved, "1 - Dice once the label is laid upon the prediction's centre"),
    Column("mirrored_left_right", lambda of: of.mirrored[0], "likewise, once it is mirrored from left to right too"),
    Column("mirrored_back_front", lambda of: of.mirrored[1], "likewise, from back to front"),
    Column("mirrored_head_feet", lambda of: of.mirrored[2], "likewise, from head to feet"),
)
"""Beside case, label and as what the case is listed; NaN is left empty."""
IN_PAGE = tuple(column for column in COLUMNS if column.heading)
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
        writer.writerow([of.case, of.label, listed.get(of.case, ""), *map(_digits, values)])
    return text.getvalue()


def _places(of: LatentMap) -> dict[str, list[float]]:
    """The values of `OF_MAP` by case."""
    return {
        case: [float(rarity), int(cluster), *map(float, latent)]
        for case, rarity, cluster, latent in zip(of.cases, of.rarity, of.clusters, of.latents, strict=True)
    }


def _digits(value: float) -> str:
    """A number as the CSV has it."""
    return "" if math.isnan(value) else f"{value:.9g}"


def page_rows(audit: Audit) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """Case, label, as what it is listed, and its cells, each a value and a note, as a page's table has them."""
    listed = listed_as(audit)
    return [
        (of.case, of.label, listed.get(of.case, ""), [(rounded(one.value(of), one.digits), "") for one in IN_PAGE])
        for of in audit.scores
    ]
