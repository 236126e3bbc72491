"""ThinThickTrainer on a few small boxes: what a step hands to the loss, every network, labels and regions, refusals."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import Tensor

from nnunetv2_ext.data.sidecar import SIDECAR, Sidecar, write_sidecar
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.geometry.slabs import CaseSlabs, slice_edges
from nnunetv2_ext.losses import ThinThickLoss
from nnunetv2_ext.trainers.thin_thick import ThinThickTrainer
from nnunetv2_ext.training.thin_thick import PICTURE
from tests.training.conftest import DATASET, LABELS, MNET, REGIONS, UNET, Build, hand_made_plans, log_epoch

SLICES, SIZE, PATCH = 20, 24, [16, 16, 16]
RATIOS = {"a": 4.0, "b": 3.7, "c": 4.0, "d": 5.0, "e": 4.0}
IGNORE = {"labels": {"background": 0, "left": 1, "right": 2, "ignore": 3}}
PATHS = {
    "BackboneNetwork": "nnunetv2_ext.architectures.BackboneNetwork",
    "PaRNetwork": "nnunetv2_ext.architectures.PaRNetwork",
    "ConvFreeTransformer": "nnunetv2_ext.architectures.ConvFreeTransformer",
}


def architecture(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"network_class_name": PATHS[name], "arch_kwargs": kwargs, "_kw_requires_import": []}


_BACKBONE = {"backbone": "PlainConvUNet", "spatial_shape": PATCH, "backbone_kwargs": UNET["arch_kwargs"]}
TOKENS = {"spatial_shape": PATCH, "token_size": [4, 8, 8], "embed_dim": 24, "depth": 2, "num_heads": 2}
NETWORKS = {
    "stock U-Net": (UNET, False),
    "BackboneNetwork": (architecture("BackboneNetwork", **_BACKBONE), False),
    "MNet": (MNET, False),
    "PaR": (architecture("PaRNetwork", **_BACKBONE, heads=2, groups=2), True),
    "ConvFreeTransformer": (architecture("ConvFreeTransformer", **TOKENS), True),
}


def write_case(folder: Path, name: str, ratio: float, *, ignore: int | None = None) -> CaseSlabs:
    """An image of slice numbers plus noise, and an annotation that tells the slab of each slice (modulo 3)."""
    case = CaseSlabs(1.0, SLICES, slice_edges(int(SLICES / ratio), ratio))
    random = np.random.default_rng(len(name))
    data = random.normal(size=(1, SLICES, SIZE, SIZE)).astype(np.float32)
    data += np.arange(SLICES, dtype=np.float32)[None, :, None, None]
    slab = np.minimum((np.arange(SLICES) + 0.5) // ratio, len(case.slabs)).astype(np.int8)
    labels = np.where(slab < len(case.slabs), slab % 3, 0 if ignore is None else ignore)
    segmentation = np.broadcast_to(labels[None, :, None, None], data.shape).astype(np.int8)
    located: dict[Any, np.ndarray] = {label: np.argwhere(segmentation == label)[::50] for label in (1, 2)}
    located[(-1, 0, 1, 2)] = np.argwhere(segmentation != 3)[::50]
    properties = {
        "class_locations": located,
        "spacing": [1.0, 1.0, 1.0],
        "shape_before_cropping": data.shape[1:],
        "bbox_used_for_cropping": [[0, SLICES], [0, SIZE], [0, SIZE]],
        "shape_after_cropping_and_before_resampling": data.shape[1:],
    }
    block = (1, 8, 8, 8)
    (folder / f"{name}.b2nd").unlink(missing_ok=True)
    (folder / f"{name}_seg.b2nd").unlink(missing_ok=True)
    nnUNetDatasetBlosc2.save_case(data, segmentation, properties, str(folder / name), chunks=block, blocks=block)
    return case


@pytest.fixture
def boxes(build: Build) -> Callable[..., Any]:
    """Writes the data set and returns an initialised ThinThickTrainer on it."""

    def make(
        net: dict[str, Any] = UNET, *, labels: dict[str, Any] = LABELS, resume: bool = False, **changes: Any
    ) -> Any:
        data = build.preprocessed / "nnUNetPlans_3d_fullres"
        data.mkdir(parents=True, exist_ok=True)
        ignore = 3 if "ignore" in labels["labels"] else None
        cases = {name: write_case(data, name, ratio, ignore=ignore) for name, ratio in RATIOS.items()}
        if not (build.preprocessed / SIDECAR).exists():
            write_sidecar(build.preprocessed, Sidecar(DATASET, 0, cases))
        (build.preprocessed / "splits_final.json").write_text(
            json.dumps([{"train": ["a", "b", "d"], "val": ["c", "e"]}])
        )
        plans = plans_of(net, **changes)
        trainer = build(plans, trainer=ThinThickTrainer, labels=labels, resume=resume)
        trainer.initialize()
        return trainer

    return make


def plans_of(net: dict[str, Any] = UNET, *, thin_thick: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    training: dict[str, Any] = {"epochs": 2, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1}
    training |= {} if thin_thick is None else {"thin_thick": thin_thick}
    return hand_made_plans(net, **{"patch_size": PATCH, "spacing": [1.0, 1.0, 1.0], "training": training, **changes})


def batch_of(trainer: Any, *, validation: bool = False) -> dict[str, Any]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (what the loader draws from)
    loaders = trainer.get_dataloaders()
    return next(loaders[1 if validation else 0])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns_from_both_images(boxes: Any, name: str) -> None:
    net, on_thin_grid = NETWORKS[name]
    trainer = boxes(net)
    assert trainer.thick_on_thin_grid is on_thin_grid
    before = deepcopy(trainer.network.state_dict())
    trainer.on_train_epoch_start()  # the first of two: half of the features' weight
    result = trainer.train_step(batch_of(trainer))
    assert {"loss", "thick", "thin", "features"} == result.keys()
    assert all(np.isfinite(value) for value in result.values())
    assert result["loss"] == pytest.approx(0.1 * result["thick"] + result["thin"] + 0.05 * result["features"], rel=1e-4)
    weights = trainer.network.state_dict()
    # the coarsest output has no weight in nnU-Net
    changed = [key for key, value in weights.items() if not torch.equal(value, before[key])]
    assert len(changed) > 0.7 * len(weights)


def test_a_step_hands_slabs_and_their_annotation_to_the_loss(boxes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = boxes()
    given: dict[str, Any] = {}
    forward = ThinThickLoss.forward

    def spy(self: ThinThickLoss, **arguments: Any) -> Any:
        given.update(arguments)
        return forward(self, **arguments)

    monkeypatch.setattr(ThinThickLoss, "forward", spy)
    batch = batch_of(trainer)
    thick_images: list[Tensor] = []
    trainer.network.register_forward_pre_hook(lambda module, inputs: thick_images.append(inputs[0]))
    numbers = batch["target"][1].long()
    trainer.train_step({**batch, "target": [one.clone() for one in batch["target"]]})
    thin, thick = thick_images
    assert thin.shape[2:] == tuple(PATCH)
    assert thick.shape == (2, 1, 4, 16, 16)  # 16 / 3.7 slabs, and what two halvings take
    for sample, name in enumerate(batch["keys"]):
        ratio, here = RATIOS[name], numbers[sample]
        mm = here.double() - 0.5  # centres
        flipped = bool(here.max() > 1 and (here[here > 0].diff() < 0).any())
        inside = (mm[here > 0].min() - 0.5, mm[here > 0].max() + 0.5)
        slabs = [
            t for t in range(int(20 / ratio)) if t * ratio >= inside[0] - 1e-6 and (t + 1) * ratio <= inside[1] + 1e-6
        ]
        slabs = slabs[::-1] if flipped else slabs
        target = given["target"][0][sample, 0]
        for row, slab in enumerate(slabs):
            low, high = slab * ratio, (slab + 1) * ratio
            share = ((mm + 0.5).clamp(max=high) - (mm - 0.5).clamp(min=low)).clamp_min(0) * (here > 0) / ratio
            average = (share.float()[:, None, None] * thin[sample, 0]).sum(0)
            torch.testing.assert_close(thick[sample, 0, row], average, rtol=1e-4, atol=1e-4)
            held = target[row].unique().tolist()
            assert set(held) <= {slab % 3, 0}  # 0 is what rotation brings in from outside
            assert (target[row] == slab % 3).float().mean() > 0.3
        assert (target[len(slabs) :] == -1).all()
        assert thick[sample, 0, len(slabs) :].abs().max() == 0
    # the outputs of deep supervision: P of their own slices, targets of their own sizes
    assert [tuple(one.shape) for one in given["slabs"]] == [(2, 4, 16), (2, 4, 8)]
    for matrix in given["slabs"]:
        held = matrix.sum(-1)
        assert ((held - 1).abs() < 1e-4).logical_or(held == 0).all()
    assert [tuple(one.shape[2:]) for one in given["target"]] == [(4, 16, 16), (4, 8, 8)]
    assert [tuple(one.shape[2:]) for one in given["thick_target"]] == [(4, 16, 16), (2, 8, 8)]
    assert given["thin_features"].shape == (2, 4, 16, 16, 16)
    assert given["thick_features"].shape == (2, 4, 4, 16, 16)


@pytest.mark.parametrize(
    ("thin_thick", "passes", "terms"),
    [
        ({"thick_weight": 0.0, "features_weight": 0.0}, 1, ["thin"]),
        ({"features_weight": 0.0}, 2, ["thick", "thin"]),
        ({"thin_weight": 0.0}, 2, ["thick", "features"]),
        ({"thick_image": "thin_grid"}, 2, ["thick", "thin", "features"]),
    ],
    ids=["thin alone", "no features", "no thin", "thin grid"],
)
def test_terms_that_are_off_cost_nothing(boxes: Any, thin_thick: Any, passes: int, terms: list[str]) -> None:
    trainer = boxes(thin_thick=thin_thick)
    shapes: list[Any] = []
    trainer.network.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape[2]))
    result = trainer.train_step(batch_of(trainer))
    assert [key for key in result if key != "loss"] == terms
    assert len(shapes) == passes
    if "thick_image" in thin_thick:
        assert shapes == [16, 16]


@pytest.mark.parametrize("labels", [LABELS, REGIONS, IGNORE], ids=["labels", "regions", "ignore"])
@pytest.mark.parametrize("name", ["stock U-Net", "ConvFreeTransformer"])
def test_validation_counts_slabs(boxes: Any, name: str, labels: dict[str, Any]) -> None:
    trainer = boxes(NETWORKS[name][0], labels=labels)
    batch = batch_of(trainer, validation=True)
    trainer.network.eval()
    held, numbers = batch["target"]
    expected = np.zeros(2)
    for sample, of_sample in enumerate(numbers):
        known = of_sample[of_sample > 0]
        for slab in range(5):  # of four slices with one label each
            inside = (of_sample > 4 * slab) & (of_sample <= 4 * slab + 4)
            if inside.sum() == 4 and len(known):
                for label in (1, 2):
                    mask = held[sample, label - 1] if labels is REGIONS else held[sample, 0] == label
                    expected[label - 1] += float(mask[inside].sum()) / 4
    with torch.no_grad():
        result = trainer.validation_step(batch)
    truth = result["tp_hard"] + result["fn_hard"]
    assert np.isfinite(result["loss"])
    assert truth.sum() > 0
    assert truth.tolist() == expected.tolist()
    assert trainer.network is trainer.bare_network


@pytest.mark.parametrize("labels", [LABELS, REGIONS, IGNORE], ids=["labels", "regions", "ignore"])
def test_labels_regions_and_the_ignore_label(boxes: Any, labels: dict[str, Any]) -> None:
    trainer = boxes(labels=labels)
    losses = [trainer.train_step(batch_of(trainer))["loss"] for _ in range(12)]
    assert losses[-1] < losses[0]


def test_a_patch_without_a_slab_changes_nothing(boxes: Any) -> None:
    trainer = boxes(thin_thick={"features_weight": 1.0})
    batch = batch_of(trainer)
    batch["target"][1][:] = 0
    result = trainer.train_step(batch)
    assert np.isfinite(result["loss"])
    assert result["features"] == 0


def test_the_compiled_network_has_the_same_loss(boxes: Any) -> None:
    trainer = boxes()
    batch = batch_of(trainer)

    def loss() -> float:
        with torch.no_grad():
            return float(trainer.objective({**batch, "target": [one.clone() for one in batch["target"]]}).loss)

    expected = loss()
    trainer.network = torch.compile(trainer.network, backend="eager")
    assert loss() == pytest.approx(expected, rel=1e-5)
    assert loss() == pytest.approx(expected, rel=1e-5)


def test_terms_are_logged_every_epoch_and_drawn(boxes: Any, build: Build) -> None:
    trainer = boxes(thin_thick={"ramp_up_epochs": 4, "thick_weight": 0.0})
    (build.preprocessed / "dataset_fingerprint.json").write_text("{}")
    trainer.run_training()
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert [len(logged[key]) for key in ("thin_losses", "features_losses", "train_losses")] == [2, 2, 2]
    assert "thick_losses" not in logged
    assert trainer.loss.weights == (0.0, 1.0, pytest.approx(0.05))
    assert trainer.loss.beta == pytest.approx(2.5)
    assert logged["train_losses"][0] == pytest.approx(
        logged["thin_losses"][0] + 0.025 * logged["features_losses"][0], rel=1e-3
    )
    assert (Path(trainer.output_folder) / PICTURE).stat().st_size > 5000
    assert "features_loss" in build.log()
    debug = json.loads((Path(trainer.output_folder) / "debug.json").read_text())
    assert len(json.dumps(debug)) < 50_000


@pytest.mark.parametrize(
    ("ramp_up_epochs", "betas"), [(None, [2.5, 4.0]), (0, [4.0, 4.0]), (1, [4.0, 4.0]), (4, [1.75, 2.5])]
)
def test_ramp_up(boxes: Any, ramp_up_epochs: int | None, betas: list[float]) -> None:
    trainer = boxes(thin_thick={"ramp_up_epochs": ramp_up_epochs})
    for epoch, beta in enumerate(betas):  # two of them in all
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        assert trainer.loss.beta == pytest.approx(beta)
        assert trainer.loss.weights == (0.1, 1.0, pytest.approx(0.1 * (beta - 1) / 3))


def test_a_resumed_training_keeps_its_terms_and_refuses_others(boxes: Any) -> None:
    trainer = boxes()
    trainer.current_epoch = 0
    logged = trainer.logger.local_logger.my_fantastic_logging
    logged |= {key: [0.5] for key in [*logged, "features_losses"]}
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    log_epoch(trainer)
    trainer.save_checkpoint(str(path))
    resumed = boxes(resume=True)
    resumed.load_checkpoint(str(path))
    assert resumed.current_epoch == 1
    assert resumed.logger.get_value("features_losses", step=None) == [0.5]
    with pytest.raises(InputError, match=r"training.thin_thick.beta: 4.0 and 1.0"):
        boxes(resume=True, thin_thick={"beta": 1.0}).load_checkpoint(str(path))


def test_augmentation_stays_within_the_slices(boxes: Any) -> None:
    trainer = boxes()
    rotation, dummy, initial, mirror = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert dummy
    assert initial[0] == 16 and min(initial[1:]) > 16
    assert mirror == (0, 1, 2)
    assert rotation[0] == pytest.approx(-np.pi / 6)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"thin_thick": {"slabs": 2}}, r"thin_thick.slabs = 2; expected 4 or more"),
    ({"patch_size": [4, 16, 16]}, r"a patch of 4 slices, 4 mm, and slabs of 5 mm or more in case d"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=["slabs", "patch"])
def test_bad_plans(boxes: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        boxes(**changes)


def test_a_presentation_that_the_network_does_not_take(boxes: Any) -> None:
    with pytest.raises(InputError, match=r"thick_image = 'thick_grid' with a network that takes no patch of 4 slices"):
        boxes(NETWORKS["PaR"][0], thin_thick={"thick_image": "thick_grid"})


def test_a_cascade_is_refused(build: Build) -> None:
    plans = plans_of()
    plans["configurations"]["3d_lowres"] = deepcopy(plans["configurations"]["3d_fullres"])
    with pytest.raises(InputError, match=r"cascade configuration '3d_cascade_fullres' .*train 3d_fullres or 3d_lowres"):
        build(plans, trainer=ThinThickTrainer, configuration="3d_cascade_fullres")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file .*slabs.json"),
        ('{"version": 1}', "without digest"),
        (
            Sidecar("Dataset902_Other", 0, {"a": CaseSlabs(1.0, 20, slice_edges(5, 4.0))}),
            "side-car of Dataset902_Other",
        ),
        (Sidecar(DATASET, 0, {"a": CaseSlabs(1.0, 20, slice_edges(5, 4.0))}), "no slabs of case b"),
        (
            Sidecar(DATASET, 0, {"a": CaseSlabs(1.0, 21, slice_edges(5, 4.0))}),
            "21 slices of 1 mm of case a .* and 20 of 1 mm in",
        ),
        (Sidecar(DATASET, 2, {"a": CaseSlabs(1.0, 20, slice_edges(5, 4.0))}), "the slice axis 2; plan with Thin"),
        (Sidecar(DATASET, 0, {"a": CaseSlabs(1.0, 20, slice_edges(20, 1.0))}), "as thin as the images"),
    ],
    ids=["missing", "no digest", "another data set", "a case less", "other images", "another axis", "thin"],
)
def test_bad_sidecar(boxes: Any, build: Build, content: Any, message: str) -> None:
    boxes()
    path = build.preprocessed / SIDECAR
    path.unlink()
    if isinstance(content, Sidecar):
        write_sidecar(build.preprocessed, content)
    elif content:
        path.write_text(content)
    trainer = build(plans_of(), trainer=ThinThickTrainer)
    with pytest.raises(InputError, match=message):
        trainer.initialize()


def test_an_edited_sidecar_is_refused(boxes: Any, build: Build) -> None:
    boxes()
    path = build.preprocessed / SIDECAR
    path.write_text(path.read_text().replace("3.7", "3.8"))
    with pytest.raises(InputError, match="edited file"):
        build(plans_of(), trainer=ThinThickTrainer).initialize()


def test_the_raw_sidecar_serves_data_that_nnunet_preprocessed(boxes: Any, build: Build) -> None:
    boxes()
    raw = build.folder / "nnUNet_raw" / DATASET
    raw.mkdir()
    (build.preprocessed / SIDECAR).rename(raw / SIDECAR)
    build(plans_of(), trainer=ThinThickTrainer).initialize()


def test_another_raw_sidecar_is_refused(boxes: Any, build: Build) -> None:
    boxes()
    raw = build.folder / "nnUNet_raw" / DATASET
    raw.mkdir()
    (raw / SIDECAR).write_bytes((build.preprocessed / SIDECAR).read_bytes())
    build(plans_of(), trainer=ThinThickTrainer).initialize()
    write_sidecar(raw, Sidecar(DATASET, 0, {name: CaseSlabs(1.0, 20, slice_edges(4, 4.5)) for name in RATIOS}))
    with pytest.raises(InputError, match=r"another slabs.json in .* than in .*plan and preprocess it again"):
        build(plans_of(), trainer=ThinThickTrainer).initialize()


def test_a_case_that_lost_its_slabs_is_told(boxes: Any, build: Build) -> None:
    boxes()
    thick = {
        name: CaseSlabs(1.0, 20, slice_edges(1 if name == "a" else 5, 40.0 if name == "a" else 4.0)) for name in RATIOS
    }
    write_sidecar(build.preprocessed, Sidecar(DATASET, 0, thick))
    trainer = build(plans_of(), trainer=ThinThickTrainer)
    trainer.initialize()
    assert "WARNING: no whole slab in the cropped images of a" in build.log()
    assert np.isfinite(trainer.train_step(batch_of(trainer))["loss"])
