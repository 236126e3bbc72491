"""Plans and checkpoints of every version, which later ones must read.

`python -m tests.test_released` adds those of the present version that tests/released lacks; none is written anew.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

import nnunetv2_ext
from nnunetv2_ext.block import NNUNET_BLOCK
from nnunetv2_ext.planning.api import plan_and_preprocess, planner_class
from nnunetv2_ext.registry import PLANNERS, find
from nnunetv2_ext.trainers.mnet import MNetTrainer
from tests.planning.conftest import Described
from tests.training.conftest import Build, hand_made_plans

RELEASED = Path(__file__).parent / "released"
VERSIONS = sorted(path for path in RELEASED.iterdir() if path.is_dir())
# planners of a raw data set of whole images; thin-thick data need a side-car
PLANNED = [entry.name for entry in PLANNERS if entry.name != "ThinThickPlanner"]
PLANS = [path for version in VERSIONS for path in sorted(version.glob("*Plans.json"))]
ENVIRONMENT = {"nnUNet_n_proc_DA": "0"}


def a_few_logits(trainer: Any) -> list[float]:
    image = torch.linspace(-1, 1, 2 * 8 * 32 * 32).reshape(2, 1, 8, 32, 32)
    trainer.bare_network.eval()
    with torch.no_grad():
        values: list[float] = trainer.bare_network(image)[0].flatten()[:: 8 * 32 * 8].tolist()
    return values


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_training_goes_on_from_the_checkpoint(
    version: Path, nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    plans = json.loads((version / "plans_of_checkpoint.json").read_text())
    trainer = Build(nnunet_folders).initialized(plans, trainer=MNetTrainer, resume=True)
    shutil.copy(version / "checkpoint_latest.pth", trainer.output_folder)
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert trainer.current_epoch == 1
    assert trainer.logger.get_value("train_losses", step=None) == [0.5]
    expected = json.loads((version / "logits.json").read_text())
    assert a_few_logits(trainer) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_plans_are_trained(path: Path, nnunet_folders: Path) -> None:
    plans = json.loads(path.read_text())
    assert plans["made_by"]["version"] == path.parent.name
    planner: Any = planner_class(plans["made_by"]["planner"])
    trainer = find("trainer", planner.trainer).load()
    block, outputs, _ = trainer.check_plans({**plans, "continue_training": False}, planner.configurations[0])
    planned = plans["configurations"][planner.configurations[0]]["training"]
    assert block == planned | {key: NNUNET_BLOCK[key] for key in block.keys() - planned.keys()}
    assert outputs >= 1


def test_the_present_version_is_there() -> None:
    assert nnunetv2_ext.__version__ in [path.name for path in VERSIONS]
    made_by = [json.loads(path.read_text())["made_by"]["planner"] for path in PLANS]
    assert {*PLANNED} <= {*made_by}


def write(version: Path) -> None:
    """Plans of every planner for one data set, and a small MNet with its checkpoint."""
    version.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        folders = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        for path in folders.values():
            Path(path).mkdir()
        os.environ.update(**folders, **ENVIRONMENT)
        data = Described(root).write()
        for planner in PLANNED:
            name = plan_and_preprocess(901, planner=planner, preprocess=False, progress=False)
            if not (version / f"{name}.json").exists():
                shutil.copy(data.preprocessed / f"{name}.json", version)
        if (version / "logits.json").exists():
            return
        plans = hand_made_plans()
        torch.manual_seed(0)
        trainer = Build(root).initialized(plans, trainer=MNetTrainer)
        logging = trainer.logger.local_logger.my_fantastic_logging
        logging.update({key: [0.5] for key in logging})
        trainer.save_checkpoint(str(version / "checkpoint_latest.pth"))
        (version / "logits.json").write_text(json.dumps(a_few_logits(trainer)))
        (version / "plans_of_checkpoint.json").write_text(json.dumps(plans, indent=1))


if __name__ == "__main__":
    write(RELEASED / nnunetv2_ext.__version__)
