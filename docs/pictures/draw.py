"""Draws the pictures of the docs beside this file: `python docs/pictures/draw.py`, or with names of pictures.

matplotlib and numpy alone; the same pictures at every run. `cases.png` comes from `nnunetv2_ext demo`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

FOLDER = Path(__file__).parent
ORANGE, BLUE, PINK, GREEN, GREY = "#d98200", "#1f78b4", "#cc3388", "#009e73", "#8a8a8a"
GROUPS = ("#f6c667", "#8ecae6", "#f2a7cc", "#90d6b9")
"""Pale colours that colour-blind readers can tell apart, with black text on them."""


def figure(width: float, height: float) -> Figure:
    """An empty white figure, in inches."""
    drawn = Figure((width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def bare(axis: Axes, title: str = "") -> None:
    """An axis without ticks and frame, its title above."""
    axis.set_axis_off()
    axis.set_title(title, fontsize=10, linespacing=1.4)


# --- thick and thin slices ---

THIN, THICK, WIDTH = 20, 5, 40
"""Thin slices of 1 mm, how many of them a slab averages, and columns of 1 mm."""


def organ(fine: int = 1) -> np.ndarray:
    """A slanted organ seen from the side, (slices, columns), each cut into `fine` parts; the square of its radius."""
    z = (np.arange(THIN * fine) + 0.5) / fine - THIN / 2
    x = (np.arange(WIDTH * fine) + 0.5) / fine - WIDTH / 2
    return ((x[None] - 1.1 * z[:, None]) / 8.5) ** 2 + (z[:, None] / 8.6) ** 2


def slab_edges(axis: Axes) -> None:
    """The lines between slabs, and the height of one of them."""
    for edge in range(0, THIN + 1, THICK):
        axis.axhline(edge, color=ORANGE, linewidth=2.2, clip_on=False)


def slabs() -> Figure:
    """Thin slices, the thick slices that average them, and a thick annotation laid on the thin grid."""
    drawn = figure(10.5, 3.4)
    axes = drawn.subplots(1, 3)
    noise = np.random.default_rng(0).normal(0, 0.06, (THIN, WIDTH))
    thin = 0.25 + 0.5 * (organ() < 1) + noise
    thick = thin.reshape(-1, THICK, WIDTH).mean(1)
    labels = (organ() < 1).reshape(-1, THICK, WIDTH).mean(1) >= 0.5
    extent = (0, WIDTH, THIN, 0)
    shown = {"cmap": "gray", "vmin": 0, "vmax": 1, "extent": extent, "interpolation": "nearest", "aspect": "equal"}
    axes[0].imshow(thin, **shown)
    for edge in range(THIN + 1):
        axes[0].axhline(edge, color="white", linewidth=0.4)
    axes[1].imshow(thick, **shown)
    axes[2].imshow(np.repeat(labels, THICK, axis=0), cmap=ListedColormap(["#e8e8e8", GROUPS[1]]), extent=extent)
    axes[2].contour(
        np.linspace(0.05, WIDTH - 0.05, WIDTH * 10),
        np.linspace(0.05, THIN - 0.05, THIN * 10),
        organ(10),
        [1.0],
        colors="black",
        linewidths=1.6,
    )
    titles = (
        "thin slices of 1 mm;\nfive of them make one slab",
        "thick slices of 5 mm:\neach is the average of its slab",
        "the thick annotation on the thin grid:\na staircase (blue) beside the organ (black)",
    )
    for axis, title in zip(axes, titles, strict=True):
        bare(axis, title)
        slab_edges(axis)
    axes[0].annotate(
        "",
        (-1.6, 0),
        (-1.6, THICK),
        annotation_clip=False,
        arrowprops={"arrowstyle": "<->", "color": ORANGE, "shrinkA": 0, "shrinkB": 0},
    )
    axes[0].text(-2.4, THICK / 2, "one slab", rotation=90, ha="right", va="center", color=ORANGE, fontsize=9)
    axes[0].text(-2.4, THIN - 4, "slice axis", rotation=90, ha="right", va="center", color=GREY, fontsize=9)
    drawn.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    return drawn


# --- MNet ---


def mnet_mesh() -> Figure:
    """The 5 x 5 mesh of nodes, its two streams, its skip connections and its supervised outputs."""
    drawn = figure(8.2, 6.2)
    axis = drawn.subplots()
    bare(axis)
    axis.set(xlim=(0.3, 8.3), ylim=(5.75, 0.25), aspect="equal")
    outputs = {(5, 5), (4, 5), (5, 4), (3, 5), (5, 3), (2, 5), (5, 2)}
    for i in range(1, 6):
        for j in range(1, 6):
            encodes = i + j <= 6
            arrow: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 1.8, "shrinkA": 15}
            if j < 5:  # the 2D stream runs right while it encodes, the 3D stream while it decodes
                plane = i + j + 1 <= 6
                axis.add_patch(
                    FancyArrowPatch(
                        (j, i),
                        (j + 1, i),
                        color=BLUE if plane else ORANGE,
                        shrinkB=20 if (i, j + 1) in outputs else 16,
                        **arrow,
                    )
                )
            if i < 5:
                volume = i + j + 1 <= 6
                axis.add_patch(
                    FancyArrowPatch(
                        (j, i),
                        (j, i + 1),
                        color=ORANGE if volume else BLUE,
                        shrinkB=20 if (i + 1, j) in outputs else 16,
                        **arrow,
                    )
                )
            if not encodes:  # from the encoder node (6 - j, 6 - i)
                long = i + j > 7  # past other nodes, so bent around them
                bend = f"arc3,rad={(0.17 if i > j else -0.17) if long else 0}"
                axis.add_patch(
                    FancyArrowPatch(
                        (6 - i, 6 - j), (j, i), connectionstyle=bend, color=GREY, linestyle=":", arrowstyle="-",
                        linewidth=1.1, shrinkA=15, shrinkB=15, zorder=0,
                    )
                )  # fmt: skip
            depth = min(i + j - 1, 11 - i - j)
            face = "#d9ead3" if i + j == 6 else "#eef3fb" if encodes else "#fdf1dc"
            axis.add_patch(Circle((j, i), 0.26, facecolor=face, edgecolor="black", linewidth=1.1, zorder=2))
            if (i, j) in outputs:
                axis.add_patch(Circle((j, i), 0.32, fill=False, edgecolor=PINK, linewidth=2, zorder=2))
            axis.text(j, i, str(depth), ha="center", va="center", fontsize=12, zorder=3)
    axis.text(0.62, 1, "image", ha="right", va="center", fontsize=10)
    axis.text(5.42, 5, "logits", ha="left", va="center", fontsize=10)
    for k in range(1, 6):
        axis.text(k, 0.45, f"j = {k}", ha="center", color=GREY, fontsize=9)
        axis.text(-0.1, k, f"i = {k}", ha="right", va="center", color=GREY, fontsize=9)
    axis.set_xlim(-0.55, 8.6)
    node: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 13, "markeredgecolor": "black"}
    handles = [
        Line2D([], [], color=BLUE, linewidth=2, label="2D stream: kernels 1 x 3 x 3"),
        Line2D([], [], color=ORANGE, linewidth=2, label="3D stream: kernels 3 x 3 x 3"),
        Line2D([], [], color=GREY, linewidth=1.3, linestyle=":", label="skip connection"),
        Line2D([], [], color="#eef3fb", label="encoder; the number is its depth", **node),
        Line2D([], [], color="#d9ead3", label="bottleneck", **node),
        Line2D([], [], color="#fdf1dc", label="decoder", **node),
        Line2D(
            [], [], label="supervised output", **{**node, "markeredgecolor": PINK, "markeredgewidth": 2}, color="white"
        ),
    ]
    axis.legend(handles=handles, loc="center right", frameon=False, fontsize=10, labelspacing=1.3)
    return drawn


# --- PaR ---


def par_groups() -> Figure:
    """What SAI does with 16 slices in 4 groups: halves, gates, redistribution."""
    slices, groups = 16, 4
    each = slices // groups
    drawn = figure(9.6, 4.0)
    axis = drawn.subplots()
    bare(axis)
    axis.set(xlim=(-4.4, slices + 0.3), ylim=(-0.5, 6.7))
    rows = {
        "features of 16 slices\nin 4 groups": (5.0, list(range(slices))),
        "a gate for each half": (2.85, list(range(slices))),
        "redistributed: the first of\nevery group, the second, ...": (
            0.7,
            [g * each + w for w in range(each) for g in range(groups)],
        ),
    }
    for title, (bottom, order) in rows.items():
        axis.text(-0.35, bottom + 0.5, title, ha="right", va="center", fontsize=10, linespacing=1.4)
        for place, number in enumerate(order):
            second = number % each >= each // 2
            hatched = "///" if second and bottom < 4 else None
            box = Rectangle(
                (place + 0.05, bottom),
                0.9,
                1,
                facecolor=GROUPS[number // each],
                edgecolor="black",
                hatch=hatched,
                linewidth=0.8,
            )
            axis.add_patch(box)
            label = {"facecolor": GROUPS[number // each], "edgecolor": "none", "pad": 1.2}
            axis.text(place + 0.5, bottom + 0.5, str(number), ha="center", va="center", fontsize=10, bbox=label)
    for group in range(groups):
        left = group * each
        axis.text(left + each / 2, 6.2, f"group {group + 1}", ha="center", fontsize=10)
        axis.plot([left + 0.1, left + each - 0.1], [6.1, 6.1], color="black", linewidth=0.8)
        for half, name in ((left, "channel"), (left + each / 2, "spatial")):
            axis.plot([half + 0.1, half + each / 2 - 0.1], [4.05, 4.05], color="black", linewidth=0.8)
            axis.text(half + each / 4, 4.16, name, ha="center", fontsize=9)
    axis.text(
        slices / 2,
        -0.05,
        "what comes out: these slices, plus those of the row above, place by place",
        ha="center",
        fontsize=10,
    )
    return drawn


# --- tokens ---


def tokens() -> Figure:
    """Tokens of three grids, seen from the side and to one scale."""
    drawn = figure(9.4, 3.9)
    axes = drawn.subplots(1, 3)
    extent = 40.0
    grids = (
        ((1.0, 1.0), (8, 8), "slices of 1 mm\ntokens 8 x 8 x 8: 8 x 8 x 8 mm"),
        ((5.0, 0.8), (8, 8), "slices of 5 mm, pixels of 0.8 mm\ntokens 8 x 8 x 8: 40 x 6.4 x 6.4 mm"),
        ((5.0, 0.8), (2, 12), "slices of 5 mm, pixels of 0.8 mm\ntokens 2 x 12 x 12: 10 x 9.6 x 9.6 mm"),
    )
    for axis, (spacing, token, title) in zip(axes, grids, strict=True):
        bare(axis, title)
        axis.set(xlim=(-0.5, extent + 0.5), ylim=(extent + 0.5, -0.5), aspect="equal")
        height, width = (count * mm for count, mm in zip(token, spacing, strict=True))
        right = extent // width * width
        for z in np.arange(0, extent + 1e-6, spacing[0]):
            axis.plot([0, right], [z, z], color="#bdbdbd", linewidth=0.5, zorder=1)
        for x in np.arange(0, right + 1e-6, spacing[1]):
            axis.plot([x, x], [0, extent], color="#bdbdbd", linewidth=0.5, zorder=1)
        for row, z in enumerate(np.arange(0, extent - height + 1e-6, height)):
            for column, x in enumerate(np.arange(0, right - width + 1e-6, width)):
                face = GROUPS[1] if (row + column) % 2 else GROUPS[0]
                axis.add_patch(Rectangle((x, z), width, height, facecolor=face, alpha=0.55, edgecolor="none", zorder=0))
                axis.add_patch(Rectangle((x, z), width, height, fill=False, edgecolor="black", linewidth=1.3, zorder=3))
    axes[0].annotate(
        "", (-1.6, 0), (-1.6, extent), annotation_clip=False,
        arrowprops={"arrowstyle": "<->", "color": GREY, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
    axes[0].text(-2.4, extent / 2, "slice axis, 40 mm", rotation=90, ha="right", va="center", color=GREY, fontsize=9)
    drawn.set_layout_engine("constrained", w_pad=0.12)
    return drawn


# --- training curves ---


def progress() -> Figure:
    """Made-up curves as in nnU-Net's progress.png: a good training and two bad ones."""
    epochs = np.arange(500)
    random = np.random.default_rng(1)

    def noisy(values: np.ndarray, scale: float) -> np.ndarray:
        return values + random.normal(0, scale, len(epochs))

    def falls(start: float, end: float, speed: float) -> np.ndarray:
        return end + (start - end) * np.exp(-epochs / speed)

    trainings = {
        "good: both losses fall,\nthe pseudo Dice rises": (
            noisy(falls(0.3, -0.86, 60), 0.012),
            noisy(falls(0.25, -0.78, 60), 0.03),
            noisy(falls(0.05, 0.88, 55), 0.012),
        ),
        "bad: nothing is learned\n(do images and labels fit together?)": (
            noisy(falls(0.6, 0.05, 25), 0.02),
            noisy(falls(0.6, 0.06, 25), 0.03),
            np.clip(noisy(np.full(len(epochs), 0.004), 0.006), 0, 1),
        ),
        "bad: learned by heart\n(the validation loss rises again)": (
            noisy(falls(0.3, -0.95, 45), 0.01),
            noisy(falls(0.25, -0.62, 40) + 0.32 * np.clip((epochs - 90) / 410, 0, 1), 0.04),
            noisy(falls(0.05, 0.72, 40) - 0.1 * np.clip((epochs - 90) / 410, 0, 1), 0.02),
        ),
    }  # fmt: skip
    drawn = figure(12, 3.9)
    axes = drawn.subplots(1, 3, sharey=True)
    for place, (axis, (title, (training, validation, dice))) in enumerate(zip(axes, trainings.items(), strict=True)):
        axis.set_facecolor("#eaeaf2")
        axis.grid(color="white")
        axis.set_axisbelow(True)
        axis.spines[:].set_visible(False)
        axis.plot(epochs, training, color="b", linewidth=1.4, label="loss_tr")
        axis.plot(epochs, validation, color="r", linewidth=1.4, label="loss_val")
        axis.set(xlabel="epoch", ylim=(-1.05, 0.7))
        axis.set_title(title, fontsize=11, linespacing=1.4)
        right = axis.twinx()
        right.spines[:].set_visible(False)
        average = np.array(dice)
        for k in range(1, len(epochs)):
            average[k] = 0.9 * average[k - 1] + 0.1 * dice[k]
        right.plot(epochs, dice, color="g", linestyle="dotted", linewidth=1, label="pseudo dice")
        right.plot(epochs, average, color="g", linewidth=1.6, label="pseudo dice (mov. avg.)")
        right.set_ylim(-0.03, 1.03)
        if place == 0:
            axis.set_ylabel("loss")
            handles = [line for one in (axis, right) for line in one.get_lines()]
        if place == 2:
            right.set_ylabel("pseudo dice")
        else:
            right.tick_params(right=False, labelright=False)
    drawn.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    drawn.suptitle("Made-up curves, drawn as in nnU-Net's progress.png", fontsize=11, color=GREY)
    return drawn


PICTURES: dict[str, Callable[[], Figure]] = {
    "slabs": slabs,
    "mnet-mesh": mnet_mesh,
    "par-groups": par_groups,
    "tokens": tokens,
    "progress": progress,
}


def main(names: list[str]) -> None:
    """Draw the pictures of these names, or all."""
    for name in names or PICTURES:
        # PNG files hold matplotlib's version unless told otherwise
        with style.context("default"):
            PICTURES[name]().savefig(
                FOLDER / f"{name}.png", dpi=110, bbox_inches="tight", pad_inches=0.08, metadata={"Software": None}
            )


if __name__ == "__main__":
    main(sys.argv[1:])
