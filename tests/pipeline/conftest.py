"""Real commands on a few thick-slice cases: nnU-Net's folders, and a way to run a command line in them."""

import contextlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from nnunetv2_ext.testing.trainer import Shell, finish
from tests.warm import Running, WarmProcess, light_nnunet

CASES = 5  # one for each fold to validate on


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.pipeline)


class Pipeline(Shell):
    """nnU-Net's three folders below one folder, and the environment that commands run in."""

    def __init__(self, folder: Path, warm: WarmProcess):
        super().__init__(folder, warm.environment)
        self.warm = warm
        line = self.run("nnunetv2_ext env").strip()
        self.environment["nnUNet_extTrainer"] = line.split("=", 1)[1].strip("'\"")

    def start(self, command: str, *, fresh: bool = False) -> Running:
        """Start a command in a process group of its own, output into one pipe.

        It is forked from the warm process, unless `fresh`: then it is a new interpreter, which spawns nnU-Net's pools.
        """
        if fresh:
            return super().start(command)
        return self.warm.start(shlex.split(command), environment=self.environment, folder=self.folder)

    def run(self, command: str, *, status: int = 0, fresh: bool = False) -> str:
        """Run a command to its end and return what it printed; fails the test on another exit status."""
        return finish(self.start(command, fresh=fresh), command, status)

    def end_jobs(self) -> None:
        """End the jobs that a test has left, with their trainings."""
        if any((self.folder / "nnUNet_results").glob("*/jobs")):
            self.start("nnunetv2_ext jobs --cancel").communicate(timeout=120)

    def images_of(self, dataset: str) -> Path:
        """A folder of two images to predict."""
        folder = self.folder / f"images_{dataset}"
        folder.mkdir(exist_ok=True)
        for path in sorted((self.folder / "nnUNet_raw" / dataset / "imagesTr").glob("*.nii.gz"))[:2]:
            shutil.copy(path, folder)
        return folder

    def thin_thick(self) -> str:
        """The data set 205 of the thin images and the thick annotations, made from two folders on the first call."""
        raw = self.folder / "nnUNet_raw"
        if not (raw / "Dataset205_ThinThick").is_dir():
            thin, thick = raw / "Dataset004_Hippocampus/imagesTr", raw / "Dataset104_HippocampusThick4/labelsTr"
            self.run(
                f"nnunetv2_ext convert_thin_thick --images {thin} --labels {thick}"
                " -d 205 --name ThinThick --label-names background anterior posterior"
            )
        return "Dataset205_ThinThick"

    def narrow(self, plans: str, dataset: str = "Dataset104_HippocampusThick4") -> None:
        """An eighth of the planned features: what is trained for two steps need not be able to learn."""
        path = self.preprocessed(dataset) / f"{plans}.json"
        content = json.loads(path.read_text())
        for configuration in content["configurations"].values():
            arguments = configuration.get("architecture", {}).get("arch_kwargs", {})
            if "features_per_stage" in arguments:
                arguments["features_per_stage"] = [max(2, width // 8) for width in arguments["features_per_stage"]]
        path.write_text(json.dumps(content))

    def results(self, trainer: str, plans: str, dataset: str = "Dataset104_HippocampusThick4") -> Path:
        return self.folder / "nnUNet_results" / dataset / f"{trainer}__{plans}__3d_fullres"

    def preprocessed(self, dataset: str = "Dataset104_HippocampusThick4") -> Path:
        return self.folder / "nnUNet_preprocessed" / dataset


@pytest.fixture(scope="module")
def pipeline(hippocampus: Path, tmp_path_factory: pytest.TempPathFactory, warm: WarmProcess) -> Iterator[Pipeline]:
    """A `Pipeline` whose raw folder holds a few thick-slice hippocampus cases as data set 104."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline = Pipeline(folder, warm)
    raw = folder / "nnUNet_raw" / "Dataset004_Hippocampus"
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (hippocampus / "labelsTr").glob("*.nii.gz"))[:CASES]
    for case in cases:
        shutil.copyfile(hippocampus / "imagesTr" / f"{case}_0000.nii.gz", raw / "imagesTr" / f"{case}_0000.nii.gz")
        shutil.copyfile(hippocampus / "labelsTr" / f"{case}.nii.gz", raw / "labelsTr" / f"{case}.nii.gz")
    description = json.loads((hippocampus / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**description, "numTraining": CASES}))
    pipeline.run("nnunetv2_ext make_thick -d 4 -o 104 --factor 4")
    yield pipeline
    pipeline.end_jobs()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def environment(pipeline: Pipeline) -> Iterator[None]:
    """nnU-Net's folders for this process too; its pools fork here, see `light_nnunet`."""
    with pytest.MonkeyPatch.context() as patch, light_nnunet():
        for key, value in pipeline.environment.items():
            if key.startswith("nnUNet_"):
                patch.setenv(key, value)
        patch.setenv("nnUNet_n_proc_DA", "0")
        yield


def predict(fold: Path, images: Path, output: Path) -> Path:
    """What `nnUNetv2_predict --save_probabilities --disable_tta` does with one fold, in this process."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(fold.parent), use_folds=(int(fold.name.removeprefix("fold_")),))
    output.mkdir()
    predictor.predict_from_files_sequential(str(images), str(output), save_probabilities=True)
    return output


def check_predictions(folder: Path, images: Path) -> None:
    for path in images.glob("*.nii.gz"):
        case = path.name.removesuffix("_0000.nii.gz")
        labels = np.asarray(nibabel.load(folder / f"{case}.nii.gz").dataobj)
        assert labels.shape == nibabel.load(path).shape
        probabilities = np.load(folder / f"{case}.npz")["probabilities"]
        assert np.isfinite(probabilities).all()
        assert np.array_equal(probabilities.argmax(0).T, labels)


def processes_of_group(group: int) -> set[int]:
    """The living processes of a process group (Linux)."""
    found = set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if folder.name.isdecimal() and os.getpgid(int(folder.name)) == group:
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found.add(int(folder.name))
    return found


def survivors(group: int, seconds: float = 10) -> set[int]:
    """The processes of a group that still live after so many seconds: a killed process takes a moment to end."""
    deadline = time.monotonic() + seconds
    while (found := processes_of_group(group)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
