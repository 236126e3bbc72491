"""Charts of a page, as SVG to stand in it: small, the same for the same numbers, told apart without colour too."""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_ext.evaluation.palette import COLOURS
from nnunetv2_ext.report.models import Fold
from nnunetv2_ext.text import shortened

HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "||||")
LINES = tuple(colour for colour in COLOURS if colour != "#f0e442")
"""Those that a thin line on white shows."""
INK, QUIET = "#333333", "#8a8a8a"
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.parse_math": False,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "hatch.linewidth": 0.6,
}


def letter(number: int) -> str:
    """The letter of a model: A, B, ..., Z, A2, B2, ..."""
    return chr(ord("A") + number % 26) + (str(number // 26 + 1) if number >= 26 else "")


@contextmanager
def chart_style(alt: str) -> Iterator[None]:
    """The style of charts, whatever a training in the same process has left behind: nnU-Net's scales all fonts."""
    with style.context("default"), matplotlib.rc_context(STYLE | {"svg.hashsalt": alt}):
        yield


def curves_chart(folds: Sequence[Fold], alt: str) -> str:
    """Losses (training solid, validation dashed) and pseudo Dice (its moving average bold) over epochs, fold by fold.

    Args:
        alt: what it shows, for those who do not see it.
    """
    with chart_style(alt):
        figure = Figure((9.2, 2.6))
        FigureCanvasAgg(figure)
        losses, dice = figure.subplots(1, 2)
        for number, fold in enumerate(folds):
            colour = LINES[number % len(LINES)]
            for key, axes, look in (
                ("train_losses", losses, {"linestyle": "-", "linewidth": 1.3}),
                ("val_losses", losses, {"linestyle": (0, (3, 1.5)), "linewidth": 1.1}),
                ("mean_fg_dice", dice, {"linestyle": "-", "linewidth": 0.6, "alpha": 0.55}),
                ("ema_fg_dice", dice, {"linestyle": "-", "linewidth": 1.6}),
            ):
                values = np.asarray(fold.curves.get(key, ()), float)
                axes.plot(np.arange(1, len(values) + 1), values, color=colour, **look)
        for axes, title in (
            (losses, "loss: training solid, validation dashed"),
            (dice, "pseudo Dice: moving average bold"),
        ):
            axes.set_title(title)
            axes.set_xlabel("epoch", labelpad=1)
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        dice.set_ylim(0, 1)
        figure.subplots_adjust(0.05, 0.18, 0.96, 0.9, wspace=0.22)
        _name_ends(losses, {fold.name: fold.curves.get("train_losses", ()) for fold in folds})
        _name_ends(dice, {fold.name: fold.curves.get("ema_fg_dice", ()) for fold in folds})
        return svg_of(figure, alt)


def _name_ends(axes: Axes, curves: Mapping[str, Sequence[float]]) -> None:
    """The name of each fold where its curve ends, moved up where it would lie on another."""
    low, high = axes.get_ylim()
    free = -math.inf
    ends = {name: values[-1] for name, values in curves.items() if len(values) and math.isfinite(values[-1])}
    for order, (name, end) in enumerate(sorted(ends.items(), key=lambda item: item[1])):
        free = max(end, free + 0.085 * (high - low))
        axes.annotate(
            f"fold {name}" if order == len(ends) - 1 else name,
            (1.01, free),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=INK,
            annotation_clip=False,
        )


def is_wide(labels: int, models: int) -> bool:
    """Whether a chart of boxes takes the whole width of the page."""
    return labels > 4 and labels * (models + 1) > 16


def box_chart(
    values: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]],
    alt: str,
    *,
    unit: str = "",
    bounded: bool = False,
    zero: bool = False,
) -> str:
    """Boxes (quartiles, whiskers to 1.5 times their distance) with all points, models side by side at each label.

    Args:
        values: by label, for each model those that were measured, drawn as points, and those that were decided,
            drawn as crosses.
        unit: of the axis.
        bounded: whether values lie between 0 and 1.
        zero: whether the axis begins at 0.
    """
    models = max(map(len, values.values()))
    with chart_style(alt):
        wide = is_wide(len(values), models)
        size = (9.4, 3.1) if wide else (4.6, 2.5)
        figure = Figure(size)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        places, letters = [], []
        for order, of_models in enumerate(values.values()):
            for number, (measured, decided) in enumerate(of_models):
                place = order * (models + 1) + number
                _box(axes, place, number, [value for value in (*measured, *decided) if math.isfinite(value)])
                _points(axes, place, [value for value in measured if math.isfinite(value)])
                places.append(place)
                letters.append(letter(number))
        axes.set_xticks(places, letters, fontsize=8)
        axes.tick_params(axis="x", length=0, pad=1)
        for order, name in enumerate(values):
            axes.annotate(
                shortened(name, 18),
                (order * (models + 1) + (models - 1) / 2, 0),
                (0, -15 if models > 1 else -4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="right" if wide else "center",
                va="top",
                rotation=30 if wide else 0,
                rotation_mode="anchor" if wide else "default",
            )
        if models == 1:
            axes.set_xticklabels([])
        middle, reach = (len(values) * (models + 1) - 2) / 2, max(len(values) * (models + 1) - 0.4, 4) / 2
        axes.set_xlim(middle - reach, middle + reach)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        if unit:
            axes.set_ylabel(unit, labelpad=2)
        if bounded:
            axes.set_ylim(max(min(axes.get_ylim()[0], 0.8), -0.02), 1.02)
        elif zero:
            reach = _reach(values)
            top = 1.06 * reach if reach > 1e-6 else 1.0  # all perfect, but for rounding
            axes.set_ylim(-0.02 * top, top)
        else:
            axes.axhline(0, color=QUIET, linewidth=0.7)
        for order, of_models in enumerate(values.values()):
            for number, (_, decided) in enumerate(of_models):
                _crosses(axes, order * (models + 1) + number, decided)
        figure.subplots_adjust(
            (0.8 if wide else 0.53) / size[0], (1.1 if wide else 0.43) / size[1], 0.99, 1 - 0.11 / size[1]
        )
        return svg_of(figure, alt)


def _reach(values: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]) -> float:
    """The highest value to show: decided ones are as large as the image, and would flatten the others."""
    groups = [both for of_models in values.values() for both in of_models]
    known = [[value for value in (*measured, *decided) if math.isfinite(value)] for measured, decided in groups]
    boxes = [float(np.quantile(both, 0.75)) for both in known if both]
    return max([value for measured, _ in groups for value in measured if math.isfinite(value)] + boxes, default=1.0)


def _box(axes: Axes, place: float, number: int, values: Sequence[float]) -> None:
    if not values:
        return
    boxes = axes.boxplot(
        [values], positions=[place], widths=0.72, showfliers=False, patch_artist=True, medianprops={"color": INK}
    )
    for box in boxes["boxes"]:
        box.set(facecolor=COLOURS[number % len(COLOURS)] + "66", edgecolor=INK, linewidth=0.8)
        box.set_hatch(HATCHES[number % len(HATCHES)])
    for line in (*boxes["whiskers"], *boxes["caps"]):
        line.set(color=INK, linewidth=0.8)
    for line in boxes["medians"]:
        line.set(linewidth=1.8, solid_capstyle="butt")


def _crosses(axes: Axes, place: float, values: Sequence[float]) -> None:
    """Decided values, at the axis' end where they lie beyond it."""
    if values:
        low, high = axes.get_ylim()
        inset = 0.035 * (high - low)
        at = np.clip(np.asarray(values, float), low + inset, high - inset)
        axes.plot(
            place + 0.08 * (np.arange(len(at)) - (len(at) - 1) / 2).clip(-4, 4),
            at,
            "x",
            color=INK,
            markersize=5,
            markeredgewidth=1.2,
            clip_on=False,
        )


def _points(axes: Axes, place: float, values: Sequence[float]) -> None:
    """All values, side by side in a fixed pattern, in one path."""
    if not values:
        return
    spread = 0.25 * (2 * np.modf(0.5 + np.arange(len(values)) * 0.618034)[0] - 1)
    across, along = place + spread, np.asarray(values, float)
    # (points, 3): each a line of no length with round ends
    across, along = (np.stack([axis, axis, np.full(len(axis), np.nan)], axis=1).ravel() for axis in (across, along))
    (line,) = axes.plot(across, along, color=INK, linewidth=2.6, solid_capstyle="round", alpha=0.75)
    line.get_path().should_simplify = False


def svg_of(figure: Figure, alt: str, titles: Mapping[str, str] = MappingProxyType({})) -> str:
    """The element alone: no prologue, metadata, names that nothing uses, nor digits that no eye sees.

    Args:
        titles: what a browser shows where the mouse is over an artist, by the artist's gid.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    for gid, title in titles.items():
        text = text.replace(f' <g id="{gid}">', f' <g class="titled"><title>{_escaped(title)}</title>', 1)
    text = re.sub(r' <g id="[^"]*"', " <g", text)
    text = re.sub(
        r'(?<= )(d|x|y|transform|points)="[^"]*"',
        lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0].replace("\n", " ")),
        text,
    )
    text = re.sub(r"M (\S+ \S+) +L \1 *(?=[M\"])", r"M\1h0", text)  # of points
    text = re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r">\s+<", "><", text)
    head = re.match(r"<svg[^>]*>", text)
    assert head is not None
    box = re.search(r'viewBox="[^"]*"', head[0])
    assert box is not None
    return f'<svg role="img" aria-label="{_escaped(alt)}" {box[0]} xmlns:xlink="http://www.w3.org/1999/xlink">' + (
        text[head.end() :].strip()
    )


def _escaped(text: str) -> str:
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(sign, entity)
    return text
