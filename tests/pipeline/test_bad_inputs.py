"""Bad input into real commands: each ends in one sentence, with another status than 0, and leaves what was there.

nnU-Net's own commands print that sentence last, below a traceback; where they fail before our trainers are asked, the
doctor has told it beforehand.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pytest
import torch

from nnunetv2_ext.locks import held
from nnunetv2_ext.testing.trainer import finish
from tests.pipeline.conftest import Pipeline
from tests.warm import WarmProcess

NAME, CASES = "Dataset700_Tiny", [f"c{number}" for number in range(5)]
PLAN = "nnunetv2_ext plan_and_preprocess -d 700 -c 3d_fullres --no_pbar"
TRAIN = "nnUNetv2_train 700 3d_fullres 0 -tr MNetTrainer -p MNetPlans -device cpu"
DOCTOR = "nnunetv2_ext doctor -d 700 -tr MNetTrainer -p MNetPlans -f 0 -device cpu"
SCHEDULE = "nnunetv2_ext schedule -d 700 -p MNetPlans -c 3d_fullres --epochs 3"
FIND_BEST = "nnunetv2_ext find_best -d 700 -m MNetTrainer:MNetPlans:3d_fullres"
MODEL = "MNetTrainer__MNetPlans__3d_fullres"
OF_MODEL = f"nnunetv2_ext doctor nnUNet_results/{NAME}/{MODEL}"


class Tiny(NamedTuple):
    """The data set, planned, preprocessed and trained, in folders of one test."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / NAME

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / NAME

    @property
    def data(self) -> Path:
        return self.preprocessed / "nnUNetPlans_3d_fullres"

    @property
    def model(self) -> Path:
        return self.root / "nnUNet_results" / NAME / MODEL

    def image(self, case: str) -> Path:
        return self.raw / "imagesTr" / f"{case}_0000.nii.gz"


Change = Callable[[Tiny], None]


def nothing(tiny: Tiny) -> None:
    """The flags are at fault."""


def written(path: Callable[[Tiny], Path], text: str) -> Change:
    def change(tiny: Tiny) -> None:
        path(tiny).write_text(text)

    return change


def truncated(path: Callable[[Tiny], Path]) -> Change:
    def change(tiny: Tiny) -> None:
        content = path(tiny).read_bytes()
        path(tiny).write_bytes(content[: len(content) // 2])

    return change


def edited(path: Callable[[Tiny], Path], edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(tiny: Tiny) -> None:
        content = json.loads(path(tiny).read_text())
        edit(content)
        path(tiny).write_text(json.dumps(content))

    return change


def plans(tiny: Tiny) -> Path:
    return tiny.preprocessed / "MNetPlans.json"


def raw_json(tiny: Tiny) -> Path:
    return tiny.raw / "dataset.json"


def configuration(**changes: Any) -> Change:
    return edited(plans, lambda content: content["configurations"]["3d_fullres"].update(changes))


def splits(*folds: dict[str, list[str]]) -> Change:
    return written(lambda tiny: tiny.preprocessed / "splits_final.json", json.dumps(folds))


def network_of(name: str) -> Change:
    return edited(
        plans,
        lambda content: content["configurations"]["3d_fullres"]["architecture"].update(network_class_name=name),
    )


def checkpoint(edit: Callable[[dict[str, Any]], object], name: str = "checkpoint_latest.pth") -> Change:
    """The one checkpoint of the fold, after its first epoch, with something changed."""

    def change(tiny: Tiny) -> None:
        fold = tiny.model / "fold_0"
        content = torch.load(fold / "checkpoint_final.pth", weights_only=False)
        content["current_epoch"] = 1
        content["logging"] = {key: values[:1] for key, values in content["logging"].items()}
        edit(content)
        for path in fold.glob("checkpoint_*"):
            path.unlink()
        torch.save(content, fold / name)

    return change


def other_shape(content: dict[str, Any]) -> None:
    weights = content["network_weights"]
    weights[next(key for key in weights if weights[key].ndim == 5)] = torch.zeros(1, 1, 1, 1, 1)


def no_numbers(content: dict[str, Any]) -> None:
    for weight in content["network_weights"].values():
        weight.fill_(float("nan"))


class Marker:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("marked",)


def folder_in_place(tiny: Tiny) -> None:
    tiny.image("c1").unlink()
    tiny.image("c1").mkdir()


def no_image(tiny: Tiny) -> None:
    tiny.image("c1").unlink()


def results_are_a_file(tiny: Tiny) -> None:
    shutil.rmtree(tiny.model.parent)
    tiny.model.parent.write_text("")


def renamed(tiny: Tiny) -> None:
    for path in tiny.data.glob("c1*"):
        path.rename(path.with_name(path.name.replace("c1", "x1")))


# what is done, the command, and the sentence on its last line
SENTENCES: dict[str, tuple[Change, str, str]] = {
    "a configuration that is none": (nothing, PLAN.replace("fullres", "fulres"), "the configuration '3d_fulres'"),
    "no process": (nothing, f"{PLAN} --clean -np 0", "got -np 0; expected 1 process or more"),
    "a target spacing of nan": (nothing, f"{PLAN} -overwrite_target_spacing nan 1 1", "expected mm above 0"),
    "a huge target spacing": (nothing, f"{PLAN} -overwrite_target_spacing 1e9 1 1", "leaves 4 voxels along each axis"),
    "a tiny target spacing": (nothing, f"{PLAN} -overwrite_target_spacing 1e-4 1e-4 1e-4", "at most 1e+09 voxels"),
    "a slip of the pen": (nothing, f"{PLAN} --epochs 1000000000000", "from 1 to 1000000"),
    "plans outside": (nothing, f"{PLAN} -overwrite_plans_name ../evil", "expected a name of letters"),
    "nnU-Net's own plans": (nothing, f"{PLAN} -overwrite_plans_name nnUNetPlans", "the name of nnU-Net's own plans"),
    "a list in dataset.json": (written(raw_json, "[]"), PLAN, "got a list in"),
    "no numTraining": (edited(raw_json, lambda content: content.pop("numTraining")), PLAN, 'write "numTraining": 5'),
    "labels the old way round": (
        edited(raw_json, lambda content: content.update(labels={"0": "background", "1": "a", "2": "b"})),
        PLAN, "as nnU-Net v1 had it",
    ),
    "an image cut off": (truncated(lambda tiny: tiny.image("c1")), f"{PLAN} --clean", "restore the file"),
    "schedule of 2D": (nothing, SCHEDULE.replace("MNetPlans -c 3d_fullres", "nnUNetPlans -c 2d"), "not 3D"),
    "a training block that is a list": (configuration(training=[]), SCHEDULE, "no object as training"),
    "a folder for an image": (folder_in_place, "nnunetv2_ext make_thick -d 700 -o 701 --factor 2", "got a folder"),
    "a label without image": (no_image, "nnunetv2_ext make_thick -d 700 -o 701 --factor 2", "without an image"),
    "a negative fold": (nothing, f"{FIND_BEST} -f -1", "got -f -1"),
    "negative processes": (nothing, f"{FIND_BEST} -f 0 -np -1", "got -np -1; expected 1 or more"),
    "no GPU": (nothing, TRAIN.replace("cpu", "cuda"), "add -device cpu"),
    "a fold beyond the splits": (nothing, TRAIN.replace("fullres 0", "fullres 9"), "got fold 9 of 5"),
    "a file for the results": (results_are_a_file, TRAIN, "got a file in the place of the folder"),
    "a batch of none": (configuration(batch_size=0), TRAIN, "got the batch_size 0"),
    "a patch of letters": (configuration(patch_size=["a", "b", "c"]), TRAIN, "got the patch_size ['a', 'b', 'c']"),
    "a network that is none": (network_of("nnunetv2_ext.architectures.MNett"), TRAIN, "MNett, which does not exist"),
    "an unknown case": (splits({"train": ["zz"], "val": CASES[4:]}), TRAIN, "names 1 case (zz)"),
    "none to train with": (splits({"train": [], "val": CASES}), TRAIN, "without cases to train with"),
    "data cut off": (truncated(lambda tiny: tiny.data / "c1.b2nd"), TRAIN, "got the damaged file"),
    "properties cut off": (truncated(lambda tiny: tiny.data / "c1.pkl"), TRAIN, "got an unreadable file"),
    "a case renamed": (renamed, TRAIN, "names 1 case (c1), not preprocessed"),
    "weights of another shape": (checkpoint(other_shape), f"{TRAIN} --c", "instead of"),
    "weights missing": (checkpoint(lambda content: content["network_weights"].popitem()), f"{TRAIN} --c", "missing"),
    "weights of NaN": (checkpoint(no_numbers), f"{TRAIN} --c", "no finite numbers"),
    "no plans in it": (checkpoint(lambda content: content["init_args"].pop("plans")), f"{TRAIN} --c", "without plans"),
    "another optimizer": (checkpoint(lambda content: content.update(optimizer_state={1: 2})), f"{TRAIN} --c", "lacks"),
    "another log": (checkpoint(lambda content: content.update(logging={"x": 1})), f"{TRAIN} --c", "one entry for each"),
    "an epoch below 0": (checkpoint(lambda content: content.update(current_epoch=-5)), f"{TRAIN} --c", "epoch is -5"),
    "code in it": (checkpoint(lambda content: content.update(extra=Marker())), f"{TRAIN} --c", "pickled Python"),
}  # fmt: skip

# what is done, the doctor's command, the examination that FAILs, and what it says
FORETOLD: dict[str, tuple[Change, str, str, str]] = {
    "a fold of letters": (nothing, DOCTOR.replace("-f 0", "-f abc"), "splits", "the fold abc"),
    "a fold beyond the splits": (nothing, DOCTOR.replace("-f 0", "-f 7"), "splits", "fold 7 of 5"),
    "no GPU": (nothing, DOCTOR.replace(" -device cpu", ""), "CUDA", "torch sees no GPU"),
    "plans cut off": (truncated(plans), DOCTOR, "plans", "a damaged file"),
    "plans that are a list": (written(plans, "[]"), DOCTOR, "plans", "a list in"),
    "another spacing": (configuration(spacing=[9.0, 3.0, 3.0]), DOCTOR, "preprocessed data", "made with spacing"),
    "data cut off": (truncated(lambda tiny: tiny.data / "c1_seg.b2nd"), DOCTOR, "preprocessed data", "1 damaged case"),
    "a reference cut off": (
        truncated(lambda tiny: tiny.preprocessed / "gt_segmentations" / "c1.nii.gz"), DOCTOR, "references",
        "another reference than the raw label",
    ),
    "a value without a name": (
        edited(raw_json, lambda content: content["labels"].pop("b")), DOCTOR, "raw data", "the label value 2",
    ),
    "an untrained fold": (nothing, f"{OF_MODEL} -f 4", "folder", "no fold_4"),
    "a checkpoint cut off": (
        truncated(lambda tiny: tiny.model / "fold_0" / "checkpoint_final.pth"), OF_MODEL, "contents", "damaged",
    ),
    "plans of a model cut off": (
        truncated(lambda tiny: tiny.model / "plans.json"), OF_MODEL, "description", "damaged file",
    ),
    "a trainer that is gone": (
        checkpoint(lambda content: content.update(trainer_name="GoneTrainer"), "checkpoint_final.pth"), OF_MODEL,
        "trainer", "no trainer GoneTrainer",
    ),
    "weights of another network": (
        checkpoint(other_shape, "checkpoint_final.pth"), OF_MODEL, "weights", "weights of another network",
    ),
    "code in a model": (
        checkpoint(lambda content: content.update(extra=Marker()), "checkpoint_final.pth"), OF_MODEL, "contents",
        "pickled Python objects",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, warm: WarmProcess) -> Iterator[Pipeline]:
    """Five small volumes, planned and preprocessed by MNetPlanner, and fold 0 trained for two epochs."""
    folder = tmp_path_factory.mktemp("tiny")
    pipeline, tiny = Pipeline(folder, warm), Tiny(folder)
    for seed, case in enumerate(CASES):
        labels = np.zeros((32, 32, 8), np.uint8)
        labels[8:24, 8:24, 2:6] = 1
        labels[12:20, 12:20, 3:5] = 2
        image = np.random.default_rng(seed).normal(0, 10, labels.shape) + 100.0 * labels
        for path, voxels in (
            (tiny.image(case), image.astype(np.float32)),
            (tiny.raw / f"labelsTr/{case}.nii.gz", labels),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1, 4, 1])), path)
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    raw_json(tiny).write_text(json.dumps({**description, "numTraining": len(CASES)}))
    pipeline.run(f"{PLAN} -pl ExperimentPlanner")
    pipeline.run(f"{PLAN} --epochs 2 --iterations 1 --val-iterations 1")
    pipeline.narrow("MNetPlans", NAME)
    pipeline.run(TRAIN)
    yield pipeline
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def copied(trained: Pipeline, warm: WarmProcess, tmp_path: Path) -> Pipeline:
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    return Pipeline(tmp_path, warm)


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but logs, pictures and locks, which a training begins."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    passing = (".txt", ".png", ".lock", ".running.json", "debug.json", "splits_final.json")
    return {name: path.read_bytes() for name, path in files.items() if not name.endswith(passing)}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_sentence_and_nothing_lost(copied: Pipeline, name: str) -> None:
    change, command, sentence = SENTENCES[name]
    change(Tiny(copied.folder))
    before = content_of(copied.folder)
    ours = command.startswith("nnunetv2_ext")
    printed = copied.run(command, status=2 if ours else 1)
    last = printed.strip().splitlines()[-1]
    assert sentence in last and "; expected " in last, printed
    assert ours <= ("Traceback" not in printed)
    assert not (copied.folder / "marked").exists()
    after = content_of(copied.folder)
    assert {file: after.get(file) for file in before} == before
    assert not [file for file in after.keys() - before.keys() if file.endswith(".part") or "/.Dataset" in file]


@pytest.mark.parametrize("name", FORETOLD)
def test_the_doctor_foretells(copied: Pipeline, name: str) -> None:
    change, command, examination, told = FORETOLD[name]
    change(Tiny(copied.folder))
    lines = [line.strip() for line in copied.run(command, status=1).splitlines()]
    faults = [number for number, line in enumerate(lines) if line.startswith("FAIL")]
    assert any(lines[number].startswith(f"FAIL  {examination}: ") and told in lines[number] for number in faults), lines
    assert all(lines[number + 1].startswith("-> ") for number in faults), "each with its remedy"
    assert not (copied.folder / "marked").exists()


@pytest.mark.parametrize(("variable", "value"), [("nnUNet_n_proc_DA", "-1"), ("nnUNet_def_n_proc", "abc")])
def test_numbers_of_processes(copied: Pipeline, variable: str, value: str) -> None:
    copied.environment[variable] = value
    printed = finish(copied.start(PLAN, fresh=True), PLAN, 2)
    assert f"got {variable}={value}; expected a number of processes from" in printed


@pytest.mark.parametrize(
    ("closed", "command"), [(f"nnUNet_results/{NAME}/{MODEL}/fold_0", TRAIN), (f"nnUNet_preprocessed/{NAME}", PLAN)]
)
def test_the_second_of_two_is_refused(copied: Pipeline, closed: str, command: str) -> None:
    path = copied.folder / closed
    with held(path.parent, path.name, "the first one"):
        printed = copied.run(command, status=1 if command == TRAIN else 2)
    assert f"while process {os.getpid()} on " in printed.strip().splitlines()[-1]
