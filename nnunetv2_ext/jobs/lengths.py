"""How long the models of a run are trained: what new plans are given, and what those that are there say."""

import itertools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.block import planned_block
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import nnunet_folder, read_plans
from nnunetv2_ext.inference.models import Model
from nnunetv2_ext.registry import PLANNERS, planner_of
from nnunetv2_ext.text import listed

if TYPE_CHECKING:
    from nnunetv2_ext.jobs.whole_run import WholeRun

SETTINGS = "run.json"
"""What is written first into the folder of a run: all that decides what it makes."""
_OURS = {entry.name for entry in PLANNERS}


def of_nnunet(plans: str) -> bool:
    """Whether a planner of nnU-Net's makes plans of that name; see `planner_of`."""
    return planner_of(plans).planner not in _OURS


def length(way: "WholeRun") -> dict[str, tuple[str, int]]:
    """How long is trained: keys and values of the training block by their flags."""
    found = {} if way.epochs is None else {"--epochs": ("epochs", way.epochs)}
    if way.iterations is not None:
        found["--iterations"] = ("iterations_per_epoch", way.iterations)
        found["--val-iterations"] = ("val_iterations_per_epoch", -(-way.iterations // 20))
    return found


def check_lengths(way: "WholeRun", there: Collection[str]) -> None:
    """Refuse a length that would not be kept, and short plans under the name of those as published.

    Args:
        there: names of plans that are there.

    Raises:
        InputError: for all models together, with what to name in their place.
    """
    if not length(way):
        return
    faults = {model: why for model in way.models if (why := _fault(way, model, model.plans in there))}
    if not faults:
        return
    told = listed((f"{flag} {value}" for flag, (_, value) in length(way).items()), separator=" ")
    instead = dict.fromkeys(_instead(way, model) if model in faults else model for model in way.models)
    remedy = f"add -m {listed(instead, separator=' ')}"
    if (way.output / SETTINGS).is_file():
        names = (way.output.with_name(f"{way.output.name}_{number}") for number in itertools.count(2))
        remedy += f" -o {next(name for name in names if not name.exists())}"
    if not any(model.plans in there for model in faults):
        remedy += ", or train as published: --preset full without --epochs and --iterations"
    why = listed(dict.fromkeys(faults.values()), separator="; ")
    raise InputError(f"{told} for {why}", "trainers of ours, and plans that say so or are new", remedy)


def _fault(way: "WholeRun", model: Model, there: bool) -> str:
    """Why a model cannot be trained as long as the run asks for, or should not; empty where it can."""
    if model.trainer.startswith("nnUNetTrainer"):
        return f"{model.trainer}, which trains as long as nnU-Net's do"
    if there:
        if (said := _said(way, model)) is None:
            return ""  # told with the configurations that there are
        other = {flag: said.get(key) for flag, (key, value) in length(way).items() if said.get(key) != value}
        lengths = listed(f"{flag} {'as published' if value is None else value}" for flag, value in other.items())
        return f"{_plans(way, model.plans)}, which says {lengths}" if other else ""
    if of_nnunet(model.plans):
        return f"{model.plans}, whose planner is nnU-Net's"
    if planner_of(model.plans).by_default:
        return f"{model.plans}, the name of plans for whole trainings, which are not there yet"
    return ""


def _plans(way: "WholeRun", name: str) -> Path:
    return nnunet_folder("nnUNet_preprocessed") / way.dataset / f"{name}.json"


def _said(way: "WholeRun", model: Model) -> Mapping[str, Any] | None:
    """The training block of a model's plans, which are there; None where they lack its configuration."""
    configurations = read_plans(_plans(way, model.plans), "plan again")["configurations"]
    return planned_block(configurations, model.configuration) if model.configuration in configurations else None


def _instead(way: "WholeRun", model: Model) -> Model:
    """A model that can be trained so long: the same in new plans, or, of what nnU-Net's planner made, by one of ours.

    Its plans have a name that none have.
    """
    trainer, plans, configuration = model
    if trainer.startswith("nnUNetTrainer") or of_nnunet(plans):
        method = trainer.removesuffix("Trainer")
        method = method if f"{method}Planner" in _OURS else "Backbone"
        configuration = configuration if configuration in ("3d_fullres", "3d_lowres") else "3d_fullres"
        return Model(f"{method}Trainer", _free(way, f"{method}Plans", "Quick"), configuration)
    return model._replace(plans=_free(way, plans, "Quick" * planner_of(plans).by_default))


def _free(way: "WholeRun", plans: str, more: str) -> str:
    """A name of plans by the same planner that none have."""
    stem = plans.removesuffix("Plans") + more
    numbers = itertools.chain([""] * bool(more), itertools.count(2))
    return next(name for number in numbers if not _plans(way, name := f"{stem}{number}Plans").is_file())


def told_length(way: "WholeRun", model: Model) -> str:
    """How long a model will be trained, in words; what its plans say where they are there."""
    if model.trainer.startswith("nnUNetTrainer"):
        return "as long as nnU-Net's trainers do"
    there = _plans(way, model.plans).is_file()
    block = (_said(way, model) or {}) if there else dict(length(way).values())
    epochs, iterations = (block.get(key) for key in ("epochs", "iterations_per_epoch"))
    if epochs is None and iterations is None:
        return "as long as published"
    told = "as many epochs as published" if epochs is None else f"{epochs} epoch{'s' * (epochs != 1)}"
    told += f" of {iterations} iterations" * (iterations is not None)
    if not length(way):
        new = model._replace(plans=_free(way, model.plans, ""))
        told += f", as {model.plans}.json says, not as published: -m {new} makes new plans for that"
    return told
