"""What every backbone costs on one patch, alone and under the refiner: the table that papers print."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

from nnunetv2_ext.architectures.backbones import BACKBONES
from nnunetv2_ext.architectures.backbones.record import Backbone, Kwargs, Shape, size_rule, triple
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.planning.backbones import planned_kwargs
from nnunetv2_ext.profiling.count import Row, count, on_meta
from nnunetv2_ext.profiling.step import measured_alone
from nnunetv2_ext.profiling.subject import REFINER, Subject, architecture_subject
from nnunetv2_ext.registry import REFINED

NAMES = tuple(record.name for record in BACKBONES if record.preset_gb is None)
"""The backbones of the table: nnU-Net's presets are planned for another memory, but are one network."""


@dataclass(frozen=True)
class Cost:
    """A row of the table; None: not known, see `note`.

    Attributes:
        name: as in `nnunetv2_ext.registry.find_network`.
        patch: on which all of it holds.
        divisor, minimum: what a patch has to be, see `size_rule`.
        parameters, multiply_adds, multiply_adds_with_attention: of one sample, see `Row`.
        step_seconds, peak_bytes: of a training step of a batch, see `Measured`; the time is the median.
        note: what differs from what was asked, and why.
    """

    name: str
    patch: Shape | None = None
    divisor: Shape | None = None
    minimum: Shape | None = None
    parameters: int | None = None
    multiply_adds: int | None = None
    multiply_adds_with_attention: int | None = None
    step_seconds: float | None = None
    peak_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Step:
    """How a training step is measured."""

    batch_size: int
    rounds: int
    device: str


def costs(
    names: Sequence[str],
    patch_size: Shape,
    spacing: Sequence[float],
    *,
    channels: int,
    classes: int,
    step: Step | None,
) -> Iterator[Cost]:
    """Two rows for each backbone, alone and under the refiner, as soon as they are known.

    A backbone that cannot take the patch is looked at on the nearest one that it takes.

    Args:
        patch_size: (z, y, x) in voxels.
        spacing: (z, y, x) in mm, from which planned arguments follow.
        step: None: nothing is computed, only counted.
    """

    @cache
    def refiner(patch: Shape) -> Row:
        return _counted(architecture_subject(REFINER.name, patch, classes=classes))

    for record in (record for record in BACKBONES if record.name in names):
        plain = Cost(record.name)
        try:
            record.load()
            kwargs = planned_kwargs(record, patch_size, spacing)
            divisor, minimum = size_rule(record, kwargs)
            plain = replace(plain, divisor=divisor, minimum=minimum)
            # the minimum is of all patches from there on; a smaller one may do as well
            patch, backbone = _first_taken(
                record, [nearest(patch_size, divisor, least) for least in (divisor, minimum)], channels, classes, kwargs
            )
            note = "" if patch == patch_size else f"nearest patch to {' x '.join(map(str, patch_size))}"
            plain, rows = replace(plain, patch=patch, note=note), [backbone, refiner(patch)]
        except InputError as error:
            for name in (plain.name, f"{REFINED}:{plain.name}"):
                yield replace(plain, name=name, note=str(error))
            continue
        for name, subject, parts in (
            (record.name, _subject(record, False, patch, channels, classes, kwargs), rows[:1]),
            (f"{REFINED}:{record.name}", _subject(record, True, patch, channels, classes, kwargs), rows),
        ):
            yield _measured(_with_counts(replace(plain, name=name), parts), subject, step)


def _first_taken(
    record: Backbone, patches: Sequence[Shape], channels: int, classes: int, kwargs: Kwargs
) -> tuple[Shape, Row]:
    """The first of some patches that a backbone takes, and what it costs there.

    Raises:
        InputError: what it says of the last one.
    """
    for patch in patches[:-1]:
        with suppress(InputError):
            return patch, _counted(_subject(record, False, patch, channels, classes, kwargs))
    return patches[-1], _counted(_subject(record, False, patches[-1], channels, classes, kwargs))


def nearest(patch_size: Shape, divisor: Shape, minimum: Shape) -> Shape:
    """The patch that follows a size rule and is nearest along each axis, of two as near the larger one."""
    sizes = zip(patch_size, divisor, minimum, strict=True)
    return triple([max(least, (2 * size + step) // (2 * step) * step) for size, step, least in sizes])


def _subject(record: Backbone, refined: bool, patch: Shape, channels: int, classes: int, kwargs: Kwargs) -> Subject:
    architecture = "PaRNetwork" if refined else "BackboneNetwork"
    arguments = {"backbone": record.name, "backbone_kwargs": dict(kwargs)}
    return architecture_subject(architecture, patch, channels, classes, arguments)


def _counted(subject: Subject) -> Row:
    return count(on_meta(subject.build), subject.shape, depth=0)[0]


def _with_counts(cost: Cost, parts: Sequence[Row]) -> Cost:
    """The backbone's and the refiner's counts add up, since each runs once."""
    weights = sum(part.multiply_adds for part in parts)
    return replace(
        cost,
        parameters=sum(part.parameters for part in parts),
        multiply_adds=weights,
        multiply_adds_with_attention=weights + sum(part.attention_multiply_adds for part in parts),
    )


def _measured(cost: Cost, subject: Subject, step: Step | None) -> Cost:
    if step is None:
        return cost
    try:
        seconds, peak = measured_alone(subject, step.batch_size, rounds=step.rounds, device=step.device)
    except InputError as error:
        return replace(cost, note="; ".join(filter(None, [cost.note, f"not measured: {error}"])))
    return replace(cost, step_seconds=statistics.median(seconds), peak_bytes=peak)
