"""A data set that exists as its fingerprint, its description and one tiny image."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import blosc2
import nibabel
import numpy as np
import pytest
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_ext.architectures.measure import without_values
from nnunetv2_ext.doctor.examination import FAIL, Check, Examination, Subject, examine
from nnunetv2_ext.doctor.training import TRAINING
from nnunetv2_ext.planning.api import plan_and_preprocess
from tests.warm import light_nnunet

NAME = "Dataset901_Boxes"
SMALL: dict[str, Any] = {"shape": (12, 40, 40), "spacing": (5.0, 1.0, 1.0)}
LARGE: dict[str, Any] = {"shape": (40, 512, 512), "spacing": (5.0, 0.8, 0.8)}


class Described:
    """A data set of `cases` equal volumes (z, y, x) in nnU-Net's folders; nothing but one tiny image is stored."""

    def __init__(self, root: Path):
        self.raw, self.preprocessed = root / "nnUNet_raw" / NAME, root / "nnUNet_preprocessed" / NAME

    def write(
        self,
        *,
        shape: Sequence[int] = SMALL["shape"],
        spacing: Sequence[float] = SMALL["spacing"],
        spacings: Sequence[Sequence[float]] | None = None,
        cases: int = 100,
    ) -> "Described":
        for folder in (self.raw / "imagesTr", self.raw / "labelsTr", self.preprocessed):
            folder.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.diag([10.0, 10, 20, 1]))
        nibabel.save(image, self.raw / "imagesTr" / "case_0000.nii.gz")
        label = np.zeros((4, 4, 4), np.uint8)
        label[1, 1, :2] = 1, 2
        nibabel.save(nibabel.Nifti1Image(label, image.affine), self.raw / "labelsTr" / "case.nii.gz")
        files = {"images": ["imagesTr/case_0000.nii.gz"], "label": "labelsTr/case.nii.gz"}
        description = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "organ": 1, "lesion": 2},
            "numTraining": cases,
            "file_ending": ".nii.gz",
            # told here, nnU-Net need not look for them with a pool of twelve processes
            "dataset": {"case": files, **{f"case_{number}": files for number in range(1, cases)}},
        }
        (self.raw / "dataset.json").write_text(json.dumps(description))
        given = [spacing] if spacings is None else spacings
        spacings = [given[number % len(given)] for number in range(cases)]
        statistics = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 0.5)
        fingerprint = {
            "spacings": [list(one) for one in spacings],
            "shapes_after_crop": [list(shape)] * len(spacings),
            "foreground_intensity_properties_per_channel": {"0": statistics},
            "median_relative_size_after_cropping": 1.0,
        }
        (self.preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        return self

    def plans(self, identifier: str = "MNetPlans") -> dict[str, Any]:
        return json.loads((self.preprocessed / f"{identifier}.json").read_text())

    def configuration(self, identifier: str = "MNetPlans", name: str = "3d_fullres") -> dict[str, Any]:
        return self.plans(identifier)["configurations"][name]

    def write_stock_plans(self, configurations: dict[str, Any]) -> None:
        (self.preprocessed / "nnUNetPlans.json").write_text(json.dumps({"configurations": configurations}))


def network_of(configuration: dict[str, Any]) -> Any:
    """What nnU-Net builds from the plans for one channel and three classes, without memory for its weights."""
    architecture = configuration["architecture"]
    with without_values():
        return get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            1,
            3,
            allow_init=False,
            deep_supervision=True,
        )


@pytest.fixture
def described(nnunet_folders: Path) -> Callable[..., Described]:
    return Described(nnunet_folders).write


BLOCKS, CASES = "Dataset902_Blocks", ["c0", "c1", "c2"]
PARTS = ("nnUNet_raw", "nnUNet_preprocessed")
DESCRIPTION: dict[str, Any] = {
    "channel_names": {"0": "MR"},
    "labels": {"background": 0, "a": 1, "b": 2},
    "numTraining": len(CASES),
    "file_ending": ".nii.gz",
}

# what doctor looks at before a training, but for the network
LOOKED_AT = ("data set", "dataset.json", "fingerprint", "plans", "preprocessed data", "references", "splits")


class Blocks:
    """A data set of noise with a block of two labels in it, and what was made of it."""

    def __init__(self, root: Path):
        self.raw, self.preprocessed = (root / part / BLOCKS for part in PARTS)
        self.data = self.preprocessed / "nnUNetPlans_3d_fullres"

    def image(self, case: str) -> Path:
        return self.raw / "imagesTr" / f"{case}_0000.nii.gz"

    def label(self, case: str) -> Path:
        return self.raw / "labelsTr" / f"{case}.nii.gz"

    def put(self, case: str, seed: int, width: int = 6) -> None:
        labels = np.zeros((16, 16, 8), np.uint8)
        labels[4 : 4 + width, 4:12, 2:6] = 1
        labels[6:8, 6:8, 3:5] = 2
        image = np.random.default_rng(seed).normal(0, 10, labels.shape) + 100.0 * labels + 200
        for path, voxels in ((self.image(case), image.astype(np.float32)), (self.label(case), labels)):
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1, 4, 1])), path)

    def describe(self, **changes: Any) -> None:
        (self.raw / "dataset.json").write_text(json.dumps({**DESCRIPTION, **changes}))

    def plan(self, **options: Any) -> None:
        plan_and_preprocess(902, planner="MNetPlanner", configurations=["3d_fullres"], progress=False, **options)

    def assert_as_raw(self, sources: dict[str, tuple[Path, Path]], ending: str = ".nii.gz") -> None:
        """Voxels, references and description are those of the raw data; no other case is left."""
        plans = json.loads((self.preprocessed / "MNetPlans.json").read_text())
        data = self.preprocessed / plans["configurations"]["3d_fullres"]["data_identifier"]
        assert {path.stem for path in data.glob("*.pkl")} == sources.keys()
        references = self.preprocessed / "gt_segmentations"
        assert {path.name for path in references.iterdir()} == {f"{case}{ending}" for case in sources}
        schemes = plans["configurations"]["3d_fullres"]["normalization_schemes"]
        for case, (image, label) in sources.items():
            voxels = np.asarray(nibabel.load(image).dataobj).T
            assert schemes != ["ZScoreNormalization"] or np.allclose(
                blosc2.open(str(data / f"{case}.b2nd"))[0], (voxels - voxels.mean()) / voxels.std(), atol=1e-4
            )
            labels = np.asarray(nibabel.load(label).dataobj).T
            assert np.array_equal(blosc2.open(str(data / f"{case}_seg.b2nd"))[0], labels)
            assert (references / f"{case}{ending}").read_bytes() == label.read_bytes()
        assert (self.preprocessed / "dataset.json").read_text() == (self.raw / "dataset.json").read_text()

    def standard(self, *cases: str) -> dict[str, tuple[Path, Path]]:
        return {case: (self.image(case), self.label(case)) for case in cases or CASES}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set, planned and preprocessed once."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch, light_nnunet():
        for part in (*PARTS, "nnUNet_results"):
            (root / part).mkdir()
            patch.setenv(part, str(root / part))
        blocks = Blocks(root)
        for seed, case in enumerate(CASES):
            blocks.put(case, seed)
        blocks.describe()
        blocks.plan()
    return root


@pytest.fixture
def blocks(made: Path, nnunet_folders: Path, light: None) -> Blocks:
    """A copy of it, with its times of content."""
    for part in PARTS:
        shutil.copytree(made / part, nnunet_folders / part, dirs_exist_ok=True)
    return Blocks(nnunet_folders)


def faults() -> dict[str, str]:
    """Which examinations of doctor fail, with the last remedy of each."""

    def configuration(subject: Subject) -> list[Check]:
        configuration = subject.found["plans_manager"].get_configuration("3d_fullres")
        subject.found["data"] = subject.found["folder"] / configuration.data_identifier
        return []

    chosen = [one for one in TRAINING if one.name in LOOKED_AT]
    chosen.insert(4, Examination("configuration", configuration, needs=("plans",)))
    subject = Subject(dataset="902", trainer="MNetTrainer", plans="MNetPlans", fold="all")
    return {check.what.partition(":")[0]: check.remedy for check in examine(chosen, subject) if check.status == FAIL}
