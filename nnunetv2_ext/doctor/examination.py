"""Examinations: a name, the examinations it builds on, and a function that yields results.

One that fails leaves out those that build on it, and none ends in a traceback.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import one_line

OK, WARN, FAIL, SKIP = "ok", "warn", "FAIL", "skip"
INSTALLED, DATA, TRAINED, MODEL = GROUPS = ("installation", "data", "training", "model")
"""The headings of the report."""


class Check(NamedTuple):
    """One line of the report; `remedy` is an imperative, present where something is to be done."""

    status: str
    what: str
    remedy: str = ""
    group: str = ""
    """That of its examination."""


@dataclass
class Subject:
    """The training that is asked about, if any, and what the examinations learn on the way."""

    dataset: str | None = None
    configuration: str = "3d_fullres"
    trainer: str = "nnUNetTrainer"
    plans: str = "nnUNetPlans"
    fold: str | None = None
    device: str | None = None
    """cpu, cuda, mps, or None for nnU-Net's default, cuda."""
    deep: bool = False
    """Read the voxels of the raw data."""
    model: Path | None = None
    """The folder of a trained model, where one is asked about."""
    named: bool = False
    """It was named by TRAINER:PLANS:CONFIG after -m."""
    found: dict[str, Any] = field(default_factory=dict)

    def choose(self, flag: str, *values: str) -> str:
        """A remedy: another value of -c, -p or -tr, told by the flag that was given."""
        if not self.named:
            return f"choose {flag} {'from ' * (flag != '-tr')}{', '.join(values)}"
        parts = {"-tr": self.trainer, "-p": self.plans, "-c": self.configuration}
        return f"choose -m {' or '.join(':'.join((parts | {flag: value}).values()) for value in values)}"


class Examination(NamedTuple):
    """Some checks under one name, left out when one of `needs` failed or was left out itself."""

    name: str
    function: Callable[[Subject], Iterable[Check]]
    needs: tuple[str, ...] = ()
    group: str = ""
    """One of GROUPS, the heading of its lines in the report."""


def examine(examinations: Sequence[Examination], subject: Subject) -> Iterator[Check]:
    """Run the examinations in order and yield what they find, each as soon as it is known."""
    unsound: set[str] = set()
    for examination in examinations:
        name, _, needs, group = examination
        lacking = [need for need in needs if need in unsound]
        if lacking:
            unsound.add(name)
            yield Check(SKIP, f"{name}: not checked, mend '{lacking[0]}' first", group=group)
            continue
        for check in _checks(examination, subject):
            if check.status == FAIL:
                unsound.add(name)
            yield check._replace(what=f"{name}: {check.what}", group=group)


def _checks(examination: Examination, subject: Subject) -> Iterator[Check]:
    """What one examination finds; where it stops with an error, that is its last line."""
    try:
        yield from examination.function(subject)
    except InputError as error:
        got, expected, remedy = error.args
        yield Check(FAIL, f"{got}; expected {expected}", remedy)
    except Exception as error:  # a report with one odd line is worth more than a traceback
        yield Check(FAIL, f"the check itself failed with {said(error)}", "report this with the line above")


def said(error: BaseException) -> str:
    """An exception in one line, with its name."""
    name, line = type(error).__name__, one_line(error)
    return line if line == name else f"{name}: {line}"
