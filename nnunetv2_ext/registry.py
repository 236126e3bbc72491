"""Architectures, trainers, planners and backbones by name, and one grammar of names. Registered means tested."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nnunetv2_ext.architectures.backbones import BACKBONES, DEFAULT_BACKBONE, find_backbone
from nnunetv2_ext.entry import Entry, named
from nnunetv2_ext.errors import InputError

_MNET = find_backbone("MNet")
ARCHITECTURES = (
    Entry(_MNET.name, _MNET.path, _MNET.summary),
    Entry("BackboneNetwork", "nnunetv2_ext.architectures.BackboneNetwork", "any backbone of the list below"),
    Entry("PaRNetwork", "nnunetv2_ext.architectures.PaRNetwork", "a backbone and the axial refiner on it (IJCAI 2025)"),
    Entry(
        "ConvFreeTransformer",
        "nnunetv2_ext.architectures.ConvFreeTransformer",
        "attention and linear layers alone (MICCAI 2021)",
    ),
    Entry("ROIDetector", "nnunetv2_ext.architectures.ROIDetector", "a box per organ from three 2D views (CMC 2025)"),
    Entry(
        "HierarchicalSegmentor",
        "nnunetv2_ext.architectures.HierarchicalSegmentor",
        "light stages, of which small inputs skip the first (CMC 2025)",
    ),
)
TRAINERS = (
    Entry(
        "MNetTrainer",
        "nnunetv2_ext.trainers.mnet.MNetTrainer",
        "MNet with its published training block, on any 3D plans",
    ),
    Entry("PaRTrainer", "nnunetv2_ext.trainers.par.PaRTrainer", "the axial refiner on the network of any 3D plans"),
    Entry("BackboneTrainer", "nnunetv2_ext.trainers.backbone.BackboneTrainer", "the network of any 3D plans as it is"),
    Entry(
        "ConvFreeTrainer",
        "nnunetv2_ext.trainers.convfree.ConvFreeTrainer",
        "the convolution-free transformer, on any 3D plans that a token divides",
    ),
    Entry(
        "ThinThickTrainer",
        "nnunetv2_ext.trainers.thin_thick.ThinThickTrainer",
        "thin slices from thick annotations, with the network of any 3D plans (2025)",
    ),
    Entry(
        "DetectorTrainer",
        "nnunetv2_ext.trainers.detector.DetectorTrainer",
        "a box around each organ from three views of the whole image (CMC 2025)",
    ),
    Entry(
        "HierarchicalTrainer",
        "nnunetv2_ext.trainers.hierarchical.HierarchicalTrainer",
        "the segmentor that skips stages for small inputs, on any 3D plans (2025)",
    ),
)


@dataclass(frozen=True)
class Planner(Entry):
    """A planner, whether `--backbone` chooses its network, and flags that make plans of another name.

    Args:
        variants: flags by the first word of those plans: Detector, of DetectorPlans.
    """

    takes_backbone: bool = False
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)


PLANNERS = (
    Planner("MNetPlanner", "nnunetv2_ext.plans.mnet.MNetPlanner", "plans patch and batch for MNet from its own memory"),
    Planner(
        "PaRPlanner",
        "nnunetv2_ext.plans.par.PaRPlanner",
        "plans for the refiner on the --backbone of your choice",
        takes_backbone=True,
    ),
    Planner(
        "BackbonePlanner",
        "nnunetv2_ext.plans.backbone.BackbonePlanner",
        "plans for the --backbone of your choice",
        takes_backbone=True,
    ),
    Planner(
        "ConvFreePlanner",
        "nnunetv2_ext.plans.convfree.ConvFreePlanner",
        "plans for the convolution-free transformer of the --size of your choice",
    ),
    Planner(
        "ThinThickPlanner",
        "nnunetv2_ext.plans.thin_thick.ThinThickPlanner",
        "plans for thin images with thick annotations and the --backbone of your choice",
        takes_backbone=True,
    ),
    Planner(
        "ROIPlanner",
        "nnunetv2_ext.plans.roi.ROIPlanner",
        "plans for a coarse look at the whole image, which tells where to predict",
        takes_backbone=True,
        variants={"Detector": ("--network", "detector")},
    ),
    Planner(
        "HierarchicalPlanner",
        "nnunetv2_ext.plans.hierarchical.HierarchicalPlanner",
        "plans for the segmentor that skips stages for small inputs",
    ),
)
KINDS: dict[str, Sequence[Entry]] = {
    "architecture": ARCHITECTURES,
    "trainer": TRAINERS,
    "planner": PLANNERS,
    "backbone": BACKBONES,
}


def find(kind: str, name: str) -> Entry:
    """The entry called `name` among the architectures, trainers, planners or backbones.

    Raises:
        InputError: unknown name; the message lists the known ones.
    """
    return named(kind, KINDS[kind], name)


class NamedPlanner(NamedTuple):
    """Who makes plans of a name: a planner of ours or nnU-Net's, with which flags, and whether it names them so."""

    planner: str
    flags: tuple[str, ...]
    by_default: bool


NNUNET_PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetPlans": "ResEncUNetPlanner",
    **{f"nnUNetResEncUNet{size}Plans": f"nnUNetPlannerResEnc{size}" for size in ("M", "L", "XL")},
}
"""Plans identifiers of nnU-Net's planners."""


def planner_of(plans: str) -> NamedPlanner:
    """Who makes plans of that name: MNetPlanner of MNetPlans and of MNetTrialPlans, too, which is a user's name.

    A name is that of a planner or of a variant, of a backbone where the planner takes one, and words of the user, which
    begin with a capital or a digit: PaRPlans, DetectorPlans, PaRSwinUNETRPlans, PaRTrialPlans, PaRSwinUNETRTrialPlans.

    Raises:
        InputError: nobody known, or a name that tells of a backbone which the planner would not use.
    """
    ours = {entry.name.removesuffix("Planner"): entry for entry in PLANNERS}
    variants = {stem: (entry.name, flags) for entry in PLANNERS for stem, flags in entry.variants.items()}
    planners = {name.removesuffix("Plans"): planner for name, planner in NNUNET_PLANNERS.items()}
    planners |= {stem: entry.name for stem, entry in ours.items()}
    planners |= {stem: name for stem, (name, _) in variants.items()}
    stem, words = _begin(plans.removesuffix("Plans"), planners)
    if stem is None or not plans.endswith("Plans"):
        known = ", ".join(f"{stem}...Plans" for stem in planners)
        raise InputError(f"the plans {plans}, whose planner is not known", f"one of {known}", "plan it first")
    backbone = None
    names = [entry.name for entry in BACKBONES]
    if stem in ours and ours[stem].takes_backbone:
        backbone, words = _begin(words, names)
    meant = [name for name in names if words.lower().startswith(name.lower())]
    if meant and backbone is None:
        name = max(meant, key=len)
        taking = next(stem for stem, entry in ours.items() if entry.takes_backbone)
        better = f"{stem if stem in ours and ours[stem].takes_backbone else taking}{name}Plans"
        what = f"the plans {plans}, in which {planners[stem]} would not use {name}"
        raise InputError(what, f"a name such as {better}", "choose another name, or plan it first")
    flags = variants[stem][1] if stem in variants else ()
    if backbone is not None:
        flags = ("--backbone", backbone)
    # the default backbone is not in the name that a planner gives
    return NamedPlanner(planners[stem], flags, by_default=not words and backbone != DEFAULT_BACKBONE)


def _begin(text: str, names: Iterable[str]) -> tuple[str | None, str]:
    """The longest of the names that a text of words begins with, None where there is none, and the words behind it."""
    found = [name for name in names if re.match(rf"{name}(?![a-z])", text)]
    name = max(found, key=len, default=None)
    return name, text[len(name or "") :]


class NamedNetwork(NamedTuple):
    """What a network's name stands for: an architecture of the list and the arguments that the name settles."""

    architecture: str
    kwargs: dict[str, Any]


REFINED, CONVFREE = "PaR", "ConvFreeTransformer"


def find_network(name: str, *, as_backbone: bool = False) -> NamedNetwork:
    """What a name of the grammar stands for, in every command and benchmark.

    `NAME` is an architecture or a backbone of the list, `PaR:NAME` the refiner on that backbone, `PaR` alone that on
    the default one, and `ConvFreeTransformer:block` the transformer in the papers' blocks. A backbone
    may also be the dotted path of a network.

    Args:
        as_backbone: what an architecture that is a backbone too stands for: by default itself, else the backbone.

    Raises:
        InputError: none of these; the message lists the known names.
    """
    method, _, inner = name.partition(":")
    if method == REFINED:
        backbone = inner or DEFAULT_BACKBONE
        return NamedNetwork(
            "PaRNetwork", {"backbone": backbone if "." in backbone else find("backbone", backbone).name}
        )
    if "." in name:
        return NamedNetwork("BackboneNetwork", {"backbone": name})
    if method == CONVFREE and inner in ("", "patch", "block"):
        return NamedNetwork(CONVFREE, {"context": inner} if inner else {})
    known = {entry.name: entry for entry in (*ARCHITECTURES, *BACKBONES)}
    if name not in known:
        raise InputError(
            f"the network '{name}'",
            f"one of {', '.join(known)}, {REFINED}:BACKBONE, {CONVFREE}:block",
            "see `nnunetv2_ext list`",
        )
    if name in {entry.name for entry in BACKBONES} and (
        as_backbone or name not in {entry.name for entry in ARCHITECTURES}
    ):
        return NamedNetwork("BackboneNetwork", {"backbone": name})
    return NamedNetwork(name, {})
