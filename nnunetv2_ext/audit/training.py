"""The training of a map: one hyper-network and a latent per case; a kill loses at most the running epoch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Adam
from tqdm import tqdm

from nnunetv2_ext.architectures.hypersort import LATENT, HyperSORT
from nnunetv2_ext.audit.blocks import Blocks
from nnunetv2_ext.audit.readings import Reading, Task, read
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import write_beside
from nnunetv2_ext.losses.hypersort import case_loss, latent_penalty
from nnunetv2_ext.text import counted, listed
from nnunetv2_ext.training.seeds import seeded
from nnunetv2_ext.weights.files import read_torch_file

RATE = 1e-3
"""Adam's step for the hyper-network, as published."""
LATENT_RATE = 0.02
"""For latents: each has one step per epoch, and with the published 1e-3 would need a hundred to move by 0.1."""
BETAS = (0.7, 0.9)
"""Of the latents' Adam, as published."""
PENALTY = 0.05
"""Weight of a latent's length, 1 as published."""
SPREAD = 0.05
"""Standard deviation of the first latents, as published."""
EVERY = 5
"""Epochs between readings."""
READABLE, LEARNED = 0.7, 0.97
"""Mean Dice of an epoch from which on the map is read, and with which its training ends."""
NETWORK, LATENTS, ORDER = range(3)
"""The streams of random numbers."""


@dataclass(frozen=True)
class MapSettings:
    """How a map is made."""

    voxels: int = 64**3
    """The most that a block has."""
    epochs: int = 40
    """The most that it is trained for."""
    seed: int = 0
    max_parameters: int = 30_000_000
    """Of the hyper-network."""
    channels: int = 8
    """Of the U-Net's finest level."""


class MapTraining:
    """A map and its readings.

    Args:
        settings: their seed draws the first weights and latents, and the order of the cases in every epoch.
        checkpoint: the file that the training goes on from, if it is there, and that is written after every epoch.

    Raises:
        InputError: a damaged checkpoint, or one of other data or settings.
    """

    def __init__(self, blocks: Blocks, task: Task, settings: MapSettings, checkpoint: Path, *, device: torch.device):
        self.blocks, self.task, self.settings, self.checkpoint, self.device = blocks, task, settings, checkpoint, device
        with seeded(settings.seed, NETWORK):
            network = HyperSORT(
                len(blocks.of[0].image),
                len(task.heads),
                n_down=blocks.frame.levels,
                n_fix=1,
                features=settings.channels,
            )
        self.network = network.to(device)
        with seeded(settings.seed, LATENTS):
            drawn = SPREAD * torch.randn(len(blocks.of), LATENT)
        self.latents = [torch.nn.Parameter(one.to(device)) for one in drawn]
        # fused, a step takes a fifth of the time; latents without a gradient are left as they are, as by an Adam each
        self.optimizer = Adam(self.network.parameters(), RATE, fused=device.type != "mps")
        self.latent_optimizer = Adam(self.latents, LATENT_RATE, BETAS)
        self.epoch, self.ended = 0, False
        self.readings: list[Reading] = []
        self._of = {
            "settings": asdict(settings),
            "labels": {name: list(values) for name, values in task.labels.items()},
            "cases": {block.case: block.digest for block in blocks.of},
        }
        if checkpoint.is_file():
            self._resume()

    @property
    def places(self) -> np.ndarray:
        """The latents: (cases, 2)."""
        return torch.stack([latent.detach() for latent in self.latents]).cpu().double().numpy()

    def run(self, *, progress: bool = False) -> None:
        """Train to the end."""
        with (
            tqdm(total=self.settings.epochs, initial=self.epoch, desc="map", unit="epoch", disable=not progress) as bar,
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        ):
            while not self.ended:
                dice = self._train_epoch()
                self.epoch += 1
                self.ended = self.epoch >= self.settings.epochs or dice >= LEARNED
                if (self.epoch % EVERY == 0 and dice >= READABLE) or self.ended:
                    self.readings.append(self._read(dice))
                self._save()
                bar.update()
                bar.set_postfix(Dice=f"{dice:.3f}")

    def _train_epoch(self) -> float:
        """Every case once; the mean Dice of all labels, before each step."""
        order = np.random.default_rng((self.settings.seed, ORDER, self.epoch)).permutation(len(self.blocks.of))
        dice = []
        for number in order.tolist():
            block, latent = self.blocks.of[number], self.latents[number]
            target, valid = self.task.target(block.label.to(self.device))
            logits = self.network(block.image[None].to(self.device, torch.float32), latent)[0]
            loss = case_loss(logits, target, regions=self.task.regions, valid=valid) + PENALTY * latent_penalty(latent)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in (self.optimizer, self.latent_optimizer):
                optimizer.step()
                optimizer.zero_grad()
            disagreement = self.task.overlaps(block, self.task.decided(logits.detach()))
            dice.append(1 - disagreement[~np.isnan(disagreement)])
        if not np.isfinite(self.places).all():
            what, remedy = "latents that are no finite numbers any more", "try another --seed or fewer --channels"
            raise InputError(what, "a map that learns", remedy)
        values = np.concatenate(dice)
        return float(values.mean()) if values.size else math.nan

    def _read(self, dice: float) -> Reading:
        return read(self.network, self.blocks, self.task, self.places, self.device, epoch=self.epoch, dice=dice)

    def _save(self) -> None:
        content = {
            **self._of,
            "epoch": self.epoch,
            "ended": self.ended,
            "network": self.network.state_dict(),
            "latents": [latent.detach() for latent in self.latents],
            "optimizers": [self.optimizer.state_dict(), self.latent_optimizer.state_dict()],
            "readings": [reading.to_tensors() for reading in self.readings],
        }
        write_beside(lambda part: torch.save(content, part), self.checkpoint)

    def _resume(self) -> None:
        remedy = "make the map anew with --overwrite"
        content = read_torch_file(self.checkpoint, noun="map's checkpoint", remedy=remedy)
        if not isinstance(content, dict) or not content.keys() >= {*self._of, "network", "readings"}:
            raise InputError(f"{self.checkpoint}, no checkpoint of a map", "one that an audit wrote", remedy)
        if changes := self._differences(content):
            what = f"a map in {self.checkpoint.parent} that differs in {listed(changes, separator='; ')}"
            raise InputError(what, "one of the same data and settings", f"{remedy}, or choose another folder with -o")
        self.network.load_state_dict(content["network"])
        with torch.no_grad():
            for latent, value in zip(self.latents, content["latents"], strict=True):
                latent.copy_(value)
        for optimizer, state in zip((self.optimizer, self.latent_optimizer), content["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.epoch, self.ended = content["epoch"], content["ended"]
        self.readings = [Reading.from_tensors(reading) for reading in content["readings"]]

    def _differences(self, content: Mapping[str, Any]) -> list[str]:
        """In what a checkpoint is of another map, in words."""
        told = []
        for name, value in self._of["settings"].items():
            if (before := content["settings"].get(name)) != value:
                told.append(f"{name} ({before} there, {value} now)")
        if content["labels"] != self._of["labels"]:
            told.append("the labels")
        cases = self._of["cases"]
        changed = {name for name in {*cases, *content["cases"]} if content["cases"].get(name) != cases.get(name)}
        if changed:
            told.append(counted(sorted(changed), "case"))
        return told
