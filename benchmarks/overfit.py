"""Whether a trainer learns two training cases by heart: steps until both have reached a Dice, per plans.

    python -m benchmarks.overfit -d 104 -p ConvFreePlans
    python -m benchmarks.overfit -d 104 -p ConvFreePlans ConvFreePostNormPlans --goal 0.95 --iterations 1000
    python -m benchmarks.overfit -d 4 -tr PrimusTrainer -p ConvFreePlans --cases hippocampus_001 hippocampus_003
    python -m benchmarks.overfit -d 104 -tr BackboneTrainer -p BackbonennFormerPlans --falling --iterations 20

Trainer, network, optimizer, scheduler, clipping and loss are those of a training with these plans, and so is the step;
only the data are not: the two cases, each cut or padded to the patch around its foreground, without augmentation, are
the batch of every step. The scheduler spans --iterations (its warm-up may last as long as 200 of them). Dice is that of
the trainer's validation step; a case's is the mean over its labels or regions, and the goal is reached once the lower
of the two is above it. With --falling the goal is instead that after --iterations steps the loss is below the first
one. Parameters without a gradient are named: some have none by the method, as the head of an output of weight 0.
Nothing is written but --json. Exit status 0: reached with all plans, 1: not.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._report import exit_status, machine, markdown_facts
from benchmarks._trainers import trainer_for
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.evaluation.scores import nan_mean
from nnunetv2_ext.files import check_output_file, dataset_name, write_json
from nnunetv2_ext.text import markdown_table

CASES = 2
Batch = dict[str, Any]
"""`data`: (B, channels, Z, Y, X); `target`: (B, 1 or regions, Z, Y, X), or a list of them with deep supervision."""


@dataclass(frozen=True)
class Outcome:
    """How one training ended; `dice` is that of each case, `steps` those made until then.

    `first_loss` is that of the first step, `loss` of the last; `idle` names parameters whose gradient was 0 throughout.
    """

    plans: str
    parameters: int
    steps: int
    dice: dict[str, float]
    first_loss: float
    loss: float
    idle: list[str]
    reached: bool
    seconds: float


def window(foreground: NDArray[np.bool_], patch_size: Sequence[int]) -> list[list[int]]:
    """Bounds (z, y, x) of a patch around the middle of the foreground's extent, of the whole where there is none.

    They lie within the image where it is larger than the patch, and around it where it is smaller.
    """
    bounds = []
    for axis, patch in enumerate(patch_size):
        size = foreground.shape[axis]
        occupied = foreground.any(axis=tuple(other for other in range(foreground.ndim) if other != axis)).nonzero()[0]
        middle = (occupied[0] + occupied[-1] + 1) // 2 if len(occupied) else size // 2
        start = int(np.clip(middle - patch // 2, 0, size - patch)) if size >= patch else (size - patch) // 2
        bounds.append([start, start + patch])
    return bounds


def fixed_batch(trainer: Any, cases: Sequence[str]) -> Batch:
    """The cases as one batch, in what the trainer's validation makes of samples; all of `cases` must be preprocessed.

    Args:
        trainer: initialised.
    """
    from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

    labels = trainer.label_manager
    transforms = trainer.get_validation_transforms(
        trainer._get_deep_supervision_scales(),
        is_cascaded=False,
        foreground_labels=labels.foreground_labels,
        regions=labels.foreground_regions if labels.has_regions else None,
        ignore_label=labels.ignore_label,
    )
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(cases))
    samples = []
    for case in cases:
        image, segmentation, *_ = dataset.load_case(case)  # (channels, Z, Y, X), (1, Z, Y, X)
        image, segmentation = image[:], segmentation[:]
        bounds = window(segmentation[0] > 0, trainer.configuration_manager.patch_size)
        samples.append(
            transforms(
                image=torch.from_numpy(crop_and_pad_nd(image, bounds, 0)).float(),
                segmentation=torch.from_numpy(crop_and_pad_nd(segmentation, bounds, -1)).to(torch.int16),
            )
        )
    targets = [sample["segmentation"] for sample in samples]
    supervised = isinstance(targets[0], list)
    return {
        "data": torch.stack([sample["image"] for sample in samples]),
        "target": [torch.stack(level) for level in zip(*targets, strict=True)] if supervised else torch.stack(targets),
    }


def one_of(batch: Batch, index: int) -> Batch:
    """One case of a batch, as a batch of its own that may be changed."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[index : index + 1].clone()

    target = batch["target"]
    return {
        "data": cut(batch["data"]),
        "target": [cut(level) for level in target] if isinstance(target, list) else cut(target),
    }


def case_dice(trainer: Any, batch: Batch) -> list[float]:
    """Each case's mean Dice over the labels or regions, without those that neither truth nor prediction holds."""
    trainer.network.eval()
    scores = []
    with torch.no_grad():
        for index in range(len(batch["data"])):
            counts = trainer.validation_step(one_of(batch, index))
            hits, errors = 2 * counts["tp_hard"], counts["fp_hard"] + counts["fn_hard"]
            ratios = [float(hit / (hit + error)) for hit, error in zip(hits, errors, strict=True) if hit + error]
            scores.append(nan_mean(ratios))
    trainer.network.train()
    return scores


def overfit(
    trainer: Any, cases: Sequence[str], *, plans: str, iterations: int, every: int, goal: float | None
) -> Outcome:
    """Train on the cases alone until both are above the goal; prints loss and Dice every so many steps.

    Args:
        trainer: initialised; its epochs are `every` steps long.
        goal: of the Dice; None: a lower loss after all iterations.
    """
    batch = fixed_batch(trainer, cases)
    trainer.network.train()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    start = time.perf_counter()
    trained = {name: one for name, one in trainer.network.named_parameters() if one.requires_grad}
    idle = set(trained)
    losses: list[float] = []
    steps, scores = 0, [0.0] * len(cases)
    while steps < iterations and (goal is None or not min(scores) > goal):
        trainer.lr_scheduler.step(steps // every)
        for _ in range(min(every, iterations - steps)):
            losses.append(float(trainer.train_step(batch)["loss"]))
            idle = {name for name in idle if (gradient := trained[name].grad) is None or not gradient.any()}
            steps += 1
        scores = case_dice(trainer, batch)
        shown = ", ".join(f"{case} {score:.4f}" for case, score in zip(cases, scores, strict=True))
        print(f"{plans}, step {steps}: loss {losses[0]:.4f} to {losses[-1]:.4f}, Dice {shown}", flush=True)
    if idle:
        print(f"{plans}, no gradient: {', '.join(sorted(idle))}", flush=True)
    dice = dict(zip(cases, scores, strict=True))
    return Outcome(
        plans=plans,
        parameters=sum(one.numel() for one in trainer.network.parameters()),
        steps=steps,
        dice=dice,
        first_loss=losses[0],
        loss=losses[-1],
        idle=sorted(idle),
        reached=losses[-1] < losses[0] if goal is None else min(scores) > goal,
        seconds=time.perf_counter() - start,
    )


@contextlib.contextmanager
def no_results() -> Iterator[None]:
    """A results folder that is gone afterwards; the trainer writes its log there."""
    variable = "nnUNet_results"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[variable] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[variable]
            else:
                os.environ[variable] = before


def make(args: argparse.Namespace, plans: str) -> Any:
    """The trainer of these plans, initialised; the seed is set before its network is built.

    Raises:
        InputError: a configuration of a cascade.
    """
    from nnunetv2_ext.training.run import make_trainer

    training = {
        "epochs": -(-args.iterations // args.every),
        "iterations_per_epoch": args.every,
        "val_iterations_per_epoch": 1,
        "batch_size": CASES,
    }
    torch.manual_seed(args.seed)
    with contextlib.redirect_stdout(sys.stderr):  # nnU-Net's messages
        trainer = make_trainer(
            dataset_name(args.dataset),
            args.configuration,
            "all",
            trainer=trainer_for(args.trainer),
            plans=plans,
            training=training,
            device=args.device,
        )
        if trainer.is_cascaded:
            raise InputError(f"-c {args.configuration}, part of a cascade", "one without", "use -c 3d_fullres")
        trainer.initialize()
    return trainer


def choose(trainer: Any, cases: Sequence[str] | None) -> list[str]:
    """The cases asked for, or the first ones of the data set.

    Raises:
        InputError: a case that is not preprocessed, the same one twice, or too few of them.
    """
    known = sorted(trainer.dataset_class.get_identifiers(trainer.preprocessed_dataset_folder))
    chosen = known[:CASES] if cases is None else list(cases)
    if len(set(chosen)) < CASES or not set(chosen) <= set(known):
        raise InputError(
            f"the cases {', '.join(chosen)}",
            f"{CASES} different ones of {trainer.preprocessed_dataset_folder}",
            "correct --cases",
        )
    return chosen


def run(args: argparse.Namespace) -> int:
    """Train with each plans, print the table, write the JSON."""
    check_output_file(args.json, "--json")
    if min(args.iterations, args.every) < 1 or not 0 < args.goal < 1:
        raise InputError(
            f"--iterations {args.iterations} --every {args.every} --goal {args.goal}",
            "positive numbers, and a goal between 0 and 1",
            "correct it",
        )
    goal = None if args.falling else args.goal
    outcomes = []
    with no_results():
        for plans in args.plans:
            trainer = make(args, plans)
            cases = choose(trainer, args.cases)
            outcomes.append(
                overfit(trainer, cases, plans=plans, iterations=args.iterations, every=args.every, goal=goal)
            )
    about = machine(args.device)
    facts = {
        "data set": dataset_name(args.dataset),
        "configuration": args.configuration,
        "trainer": args.trainer,
        "goal": goal or "a falling loss",
        "iterations at most": args.iterations,
        "seed": args.seed,
        "device": args.device,
    }
    dice = [f"Dice {case}" for case in outcomes[0].dice]
    header = ["plans", "parameters", "steps", *dice, "first loss", "last loss", "no gradient", "reached", "s"]
    rows = [
        [
            one.plans,
            f"{one.parameters / 1e6:.2f} M",
            str(one.steps),
            *(f"{score:.4f}" for score in one.dice.values()),
            f"{one.first_loss:.4f}",
            f"{one.loss:.4f}",
            str(len(one.idle)),
            "yes" if one.reached else "no",
            f"{one.seconds:.0f}",
        ]
        for one in outcomes
    ]
    print(f"\n{markdown_facts(facts)}\n{markdown_facts(about)}\n\n{markdown_table(header, rows)}")
    if args.json is not None:
        write_json(args.json, {"machine": about, **facts, "outcomes": [asdict(one) for one in outcomes]})
    return 0 if all(one.reached for one in outcomes) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Bad input ends in one sentence on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overfit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-d", dest="dataset", required=True, help="data set id or name, already preprocessed")
    parser.add_argument("-tr", dest="trainer", default="ConvFreeTrainer", help="default ConvFreeTrainer")
    parser.add_argument("-p", dest="plans", nargs="+", required=True, metavar="PLANS")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="default 3d_fullres")
    parser.add_argument("--cases", nargs=CASES, metavar="CASE", help="default the first two of the data set")
    parser.add_argument("--goal", type=float, default=0.95, help="Dice that both cases must exceed (default 0.95)")
    parser.add_argument("--falling", action="store_true", help="ask for a falling loss, not for a Dice")
    parser.add_argument("--iterations", type=int, default=1000, help="at most (default 1000)")
    parser.add_argument("--every", type=int, default=20, help="steps between two looks at the Dice (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("-device", default="cpu", help="default cpu")
    parser.add_argument("--json", type=Path, help="file for the same figures")
    return exit_status(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
