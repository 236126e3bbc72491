"""The map of all cases as a chart: the listed ones marked and numbered, every name where the mouse is."""

import io
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunetv2_ext.audit.result import LatentMap, Verdict
from nnunetv2_ext.audit.tables import STYLE, WRONG
from nnunetv2_ext.report.charts import INK, chart_style, svg_of


class PointStyle(NamedTuple):
    """How points are drawn, told apart without colour too."""

    marker: Literal["D", "s", "o"]
    size: float
    colour: str

    def draw(self, across: Sequence[float], along: Sequence[float], label: str = "") -> Line2D:
        """Points in no axes yet."""
        return Line2D(
            across,
            along,
            linestyle="",
            marker=self.marker,
            markersize=self.size,
            markerfacecolor=self.colour,
            markeredgecolor=INK,
            markeredgewidth=0.7,
            label=label,
        )


POINTS = {
    WRONG: PointStyle("D", 6.5, "#d55e00"),
    STYLE: PointStyle("s", 6, "#56b4e9"),
    "": PointStyle("o", 5, "#c9ccd0"),
}
"""By as what a case is listed."""
SMALLER = PointStyle("o", 5, "none")
"""Of unlisted cases of the smaller clusters."""
NUMBERED = 30
"""Listed cases that have a number beside their point, at most."""
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Of a point on which its number may stand."""


def map_chart(of: LatentMap, verdicts: Sequence[Verdict]) -> tuple[str, bytes]:
    """The latents, as SVG to stand in a page and as PNG.

    Args:
        verdicts: in the order of the lists, by which points are numbered from 1.
    """
    ranks = {verdict.case: (rank, verdict) for rank, verdict in enumerate(verdicts, start=1)}
    wrong, style = (sum(verdict.wrong is which for verdict in verdicts) for which in (True, False))
    alt = f"Map of {len(of.cases)} cases by their latents: {wrong} {WRONG}, {style} of another style"
    with chart_style(alt):
        figure = Figure((9.2, 5.2), dpi=110)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.09, 0.16, 0.89, 0.81))
        titles = {}
        order = sorted(range(len(of.cases)), key=lambda at: of.cases[at] in ranks)  # listed ones on top
        for at in order:
            case = of.cases[at]
            known = ranks.get(case)
            listed = "" if known is None else WRONG if known[1].wrong else STYLE
            points = SMALLER if not listed and of.clusters[at] else POINTS[listed]
            point = axes.add_line(points.draw(*np.reshape(of.latents[at], (2, 1))))
            point.set_gid(f"case-{at}")
            titles[f"case-{at}"] = case if known is None else f"{known[0]}. {case}: {listed}"
        axes.margins(0.06)
        axes.autoscale_view()
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(color="#ececec", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("latent 1", labelpad=2)
        axes.set_ylabel("latent 2", labelpad=2)
        places = {case: at for at, case in enumerate(of.cases)}
        numbers = {places[case]: rank for case, (rank, _) in ranks.items() if case in places and rank <= NUMBERED}
        _number(figure, axes, of.latents, numbers)
        _explain(figure, of, wrong, style)
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
        return svg_of(figure, alt, titles), png.getvalue()


def _number(figure: Figure, axes: Axes, latents: np.ndarray, numbers: dict[int, int]) -> None:
    """Write numbers beside points, each on a side where it lies on no point and no other number, or else nowhere."""
    scale = figure.dpi / 72
    figure.draw_without_rendering()  # which settles the limits
    points = axes.transData.transform(latents)
    taken = [(x, y, 4 * scale, 4 * scale) for x, y in points]  # centres and half sizes in pixels
    for at, number in sorted(numbers.items(), key=lambda item: item[1]):
        half = (2.6 * scale * len(str(number)) + 1, 4.5 * scale)
        for side in SIDES:
            offset = [direction * (5 * scale + size) for direction, size in zip(side, half, strict=True)]
            x, y = points[at] + offset
            others = [one for place, one in enumerate(taken) if place != at]
            if all(abs(x - a) > half[0] + c or abs(y - b) > half[1] + d for a, b, c, d in others):
                axes.annotate(
                    str(number),
                    (latents[at, 0], latents[at, 1]),
                    (offset[0] / scale, offset[1] / scale),
                    textcoords="offset points",
                    ha="center",
                    va="center",
                    fontsize=8,
                    annotation_clip=False,
                )
                taken.append((x, y, *half))
                break


def _explain(figure: Figure, of: LatentMap, wrong: int, style: int) -> None:
    """The legend below the map: only of what is in it."""
    plain = len(of.cases) - wrong - style
    smaller = "" if math.isnan(of.silhouette) else f" (silhouette of the two clusters {of.silhouette:.2f})"
    entries = [
        (POINTS[WRONG], f"{WRONG} ({wrong})", wrong),
        (POINTS[STYLE], f"{STYLE} ({style})", style),
        (POINTS[""], f"not listed ({plain})", plain),
        (SMALLER, f"not listed, smaller cluster{smaller}", of.clusters.any()),
    ]
    handles = [points.draw((), (), label) for points, label, there in entries if there]
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=9)
