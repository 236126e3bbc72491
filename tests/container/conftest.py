"""Containers of small random networks, made once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.container.make import write_container
from nnunetv2_ext.container.settings import CHALLENGE, Settings
from tests.tiny_models import DESCRIPTION, plans, write_model

SLUG, OUTPUT = "mr-liver", "liver-labels"
OBLIQUE = np.linalg.qr(np.array([[0.9, -0.3, 0.1], [0.3, 0.9, 0.2], [-0.1, -0.2, 0.9]]))[0]
"""No axis of the image runs along one of the patient, two of them backwards."""
PLACE = {"spacing": (0.9, 1.2, 3.5), "origin": (-12.345678901234, 40.1, 1e-3), "direction": OBLIQUE.ravel().tolist()}


def validated(model: Path) -> Path:
    """A model with the summary of a validation of each fold."""
    for fold in model.glob("fold_*"):
        (fold / "validation").mkdir()
        told = {"foreground_mean": {"Dice": 0.5}, "metric_per_case": [{"metrics": {"1": {"n_ref": 9}}}]}
        (fold / "validation" / "summary.json").write_text(json.dumps(told))
    return model


def settings(channels: int = 1, **more: Any) -> Settings:
    """Of a challenge with a socket per channel."""
    inputs = tuple([SLUG, "mr-contrast", "pet"][:channels])
    return Settings(**{"interface": CHALLENGE, "models": (), "channels": (), "inputs": inputs, "output": OUTPUT} | more)


def image(seed: int = 0, shape: tuple[int, ...] = (7, 26, 28), *, kind: type = np.int16, **place: Any) -> sitk.Image:
    """Blocks of different brightness, where `PLACE` tells unless `place` does."""
    random = np.random.default_rng(seed)
    blocks = np.kron(random.normal(0, 300, [-(-length // 4) for length in shape]), np.ones([4] * len(shape)))
    made = sitk.GetImageFromArray((blocks[tuple(map(slice, shape))] + random.normal(0, 20, shape)).astype(kind))
    place = PLACE | place
    made.SetSpacing(place["spacing"])
    made.SetOrigin(place["origin"])
    made.SetDirection(place["direction"])
    return made


def same_place(one: sitk.Image, other: sitk.Image) -> bool:
    """Whether two images lie at the same place, to the last digit."""
    return all(
        getattr(one, f"Get{what}")() == getattr(other, f"Get{what}")()
        for what in ("Size", "Spacing", "Origin", "Direction")
    )


Make = Callable[..., Path]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A container of a model of `channels` channels and a reader; the same one for the same arguments."""
    made: dict[str, Path] = {}

    def make(
        channels: int = 1, reader: str = "SimpleITKIO", ending: str = ".nii.gz", *, models: int = 1, **of: Any
    ) -> Path:
        key = str((channels, reader, ending, models, sorted(of.items())))
        if key not in made:
            root = tmp_path_factory.mktemp("container")
            names = {str(number): ["MR", "contrast", "PET"][number] for number in range(channels)}
            description = {**DESCRIPTION, "channel_names": names, "file_ending": ending}
            more: dict[str, Any] = {"description": description, "of_plans": plans(channels, reader)}
            folders = [
                validated(write_model(root, configuration, folds=(0, 1), **more))
                for configuration in ["3d_fullres", "2d"][:models]
            ]
            write_container(folders, root / "made", settings(channels if of.get("inputs") is None else 0, **of))
            made[key] = root / "made"
        return made[key]

    return make
