"""Seconds of a step of the thin-thick trainer over those of a plain one, for benchmarks.thin_thick --steps."""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._slabs import CONVFREE, LAID, THIN_THICK, Run, plan, trainer_of
from benchmarks.step import interleave, spread, with_range
from nnunetv2_ext.text import markdown_table


class _OneBatch:
    """Hands out the same batch again and again, as a loader would."""

    def __init__(self, batch: dict[str, Any]):
        self.batch = batch

    def __call__(self) -> dict[str, Any]:
        target = self.batch["target"]
        target = [one.clone() for one in target] if isinstance(target, list) else target.clone()
        return {**self.batch, "data": self.batch["data"].clone(), "target": target}


def time_steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each network, factor and presentation: the cost of a step over that of a plain one."""
    os.environ["nnUNet_n_proc_DA"] = "0"
    rows = []
    for network in args.networks:
        for factor in args.factors:
            ways = [LAID, THIN_THICK, *(["thin_grid"] if network != CONVFREE else [])]
            runs, slices = {}, {}
            for way in ways:
                run = Run(network, way, factor, args.folds[0], args.random_start)
                plan(run, args)
                os.environ["nnUNet_results"] = str((args.output / "timing" / way).resolve())
                Path(os.environ["nnUNet_results"]).mkdir(parents=True, exist_ok=True)
                trainer = trainer_of(run, args)
                trainer.on_train_start()
                trainer.network.train()
                batch = _OneBatch(next(trainer.dataloader_train))
                runs[way] = _timed(trainer, batch, args.device)
                if way != LAID:
                    thick = trainer.number_of_slabs
                    thin = trainer.configuration_manager.patch_size[0]
                    slices[way] = (thin if trainer.thick_on_thin_grid else thick, thin)
            seconds = interleave(runs, args.steps)
            for way, (thick, thin) in slices.items():
                ratios = [own / plain for own, plain in zip(seconds[way], seconds[LAID], strict=True)]
                rows.append(
                    {
                        "network": network,
                        "factor": factor,
                        "way": way,
                        "thick_slices": thick,
                        "thin_slices": thin,
                        "seconds": spread(seconds[way]),
                        "plain_seconds": spread(seconds[LAID]),
                        "ratio": spread(ratios),
                        "bound": 1.15 + thick / thin,
                    }
                )
    return rows


def _timed(trainer: Any, batch: _OneBatch, device: str) -> Any:
    def seconds() -> float:
        given = batch()
        _wait(device)
        start = time.perf_counter()
        trainer.train_step(given)
        _wait(device)
        return time.perf_counter() - start

    seconds()
    return seconds


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def steps_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `time_steps` as a markdown table; a spread reads `median (min-max)`."""
    header = ["network", "factor", "way", "thick / thin slices", "s per step", "plain s", "ratio", "bound"]
    cells = [
        [row["network"], str(row["factor"]), row["way"], f"{row['thick_slices']} / {row['thin_slices']}"]
        + [with_range(row[key], ".2f") for key in ("seconds", "plain_seconds", "ratio")]
        + [f"{row['bound']:.2f}"]
        for row in rows
    ]
    return markdown_table(header, cells)
