"""A picture of the terms of a loss over the epochs, beside nnU-Net's progress picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_ext.evaluation.palette import COLOURS


def save_terms(losses: Mapping[str, Sequence[float]], weights: Mapping[str, float], path: Path) -> None:
    """Write a PNG with a row for each term, since their sizes differ.

    Args:
        losses: of each term, one number per epoch, without its weight.
        weights: of each term, told in its title.
        path: of the PNG.
    """
    with style.context("default"):  # nnU-Net's own picture leaves its font sizes behind
        _draw(losses, weights, path)


def _draw(losses: Mapping[str, Sequence[float]], weights: Mapping[str, float], path: Path) -> None:
    figure = Figure((8, 1 + 2.2 * len(losses)), facecolor="white", layout="constrained")
    axes = figure.subplots(len(losses), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (term, values), colour in zip(axes, losses.items(), COLOURS, strict=False):
        axis.plot(range(len(values)), values, color=colour, marker="." if len(values) < 2 else None)
        axis.set_title(f"{term} (weight {weights[term]:g})", loc="left", fontsize=10)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supylabel("loss")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
