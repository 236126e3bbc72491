"""The folder of a container: Dockerfile, our package, requirements, models, test and scripts, whole or not at all."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import SimpleITK as sitk

from nnunetv2_ext import __version__
from nnunetv2_ext.container.case import TIFF, write_image
from nnunetv2_ext.container.settings import CHALLENGE, Settings, check_interface, write_settings
from nnunetv2_ext.container.software import base_image, copy_package, copy_trainers, imports_of, needed
from nnunetv2_ext.data.description import BACKGROUND, IGNORE, channel_names
from nnunetv2_ext.data.volumes import VOLUME_ENDINGS
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import read_json, write_json
from nnunetv2_ext.inference.models import Loaded, trainer_class
from nnunetv2_ext.inference.predictor import Predictor
from nnunetv2_ext.inference.single import ModelPredictor
from nnunetv2_ext.inference.trained import reference_voxels
from nnunetv2_ext.locks import complete_or_absent
from nnunetv2_ext.text import listed, markdown_table
from nnunetv2_ext.weights.files import FINAL
from nnunetv2_ext.weights.safe import DESCRIPTION, write_safe_model

READABLE = (*VOLUME_ENDINGS, *TIFF)
"""Endings of training images of models that a container can serve."""
TEMPLATES = ("Dockerfile", "README.md", "save.sh", "test_run.sh")
SHAPE = (16, 48, 48)
"""Voxels (z, y, x) of the image of the test."""
OBLIQUE = (0.936, -0.352, 0.0, 0.352, 0.936, 0.0, 0.0, 0.0, 1.0)


def write_container(
    models: Sequence[Path],
    output: Path,
    settings: Settings,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = FINAL,
    baked: bool = False,
) -> list[str]:
    """Write the folder of a container for one model or an ensemble.

    Args:
        models: folders of trained models.
        output: the folder to make.
        settings: without `models` and `channels`, which follow from the models.
        folds: of every model; None for all that are trained.
        checkpoint: which file of each fold.
        baked: the image holds the models too.

    Returns:
        A line about each model.

    Raises:
        InputError: the output exists or cannot be written, a model is missing, damaged, not validated, or does not
            agree with the others, or the interface does not fit them.
    """
    if output.exists():
        raise InputError(f"the existing output {output}", "a new folder", "choose another one, or remove it")
    if not output.absolute().parent.is_dir():
        raise InputError(f"no folder {output.absolute().parent}", "one to write into", "create it or correct the path")
    check_interface(replace(settings, channels=_channels(models[0])))
    for folder in models:
        _check_export(folder)
    predictor = Predictor(models, folds=folds, weights=settings.weights, device="cpu", checkpoint=checkpoint)
    if not predictor.file_ending.endswith(READABLE):
        what = f"a model of {predictor.file_ending} files"
        raise InputError(what, f"one of volumes ({listed(READABLE)})", "predict such images with nnunetv2_ext predict")
    members: dict[str, ModelPredictor] = {}
    for one in predictor.models:
        for member in (one, *([one.previous] if one.previous else [])):
            taken = members.setdefault(member.model.folder.name, member)
            if taken.model.folder != member.model.folder:
                what = f"two models of one name, {taken.model.folder} and {member.model.folder}"
                raise InputError(what, "another name for each", "leave one out")
    for member in members.values():
        _check_validation(member.model)
    settings = replace(
        settings,
        models=tuple(one.model.folder.name for one in predictor.models),
        channels=_channels(models[0]),
    )
    with complete_or_absent(output) as folder:
        (folder / "model").mkdir()
        for name, member in members.items():
            chosen = list(member.model.trained.weights)
            write_safe_model(member.model.folder, folder / "model" / name, folds=chosen, checkpoint=checkpoint)
        write_settings(settings, folder / "model")
        copy_package(folder / "app")
        trainers = [trainer_class(member.model.trained.trainer_name) for member in members.values()]
        foreign = copy_trainers(trainers, folder / "app" / "other_trainers")
        imported = imports_of(foreign, folder / "app" / "other_trainers")
        software = needed((member.window.network for member in members.values()), imported)
        lines = [
            f"# what nnunetv2_ext {__version__} ran with when it wrote this folder",
            *(f"{one.name}=={one.version}" for one in software),
        ]
        (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        _write_test(folder / "test", settings, predictor)
        rows = [[f"`{name}`", *_told(member.model)] for name, member in members.items()]
        heading = "mean Dice of the validation" + f", which is of {FINAL}" * (checkpoint != FINAL)
        _write_templates(
            folder,
            name=image_name(output),
            base=base_image(),
            version=__version__,
            settings=settings,
            challenge=settings.interface == CHALLENGE,
            baked=baked,
            foreign=bool(foreign),
            labels=_labels(predictor),
            spacing=listed(_spacing(predictor), separator=" x "),
            models=markdown_table(["model", "folds", heading], rows, aligned=False),
            licences=markdown_table(["package", "version", "licence"], software, aligned=False),
        )
        for path in folder.rglob("*"):  # the user of the container is another than who makes it
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.suffix == ".sh" else 0o044))
    return [f"{name}: folds {folds_of}, mean Dice {dice}" for name, folds_of, dice in rows]


def _channels(folder: Path) -> tuple[str, ...]:
    """The names of the channels, in the order of the files: that of their numbers, whichever the file has."""
    description = read_json(folder / "dataset.json", "give the folder of a trained model")
    names = channel_names(description)
    numbers = [str(number) for number in range(len(names))] if isinstance(names, dict) else []
    if not numbers or names.keys() != set(numbers):
        what = f"no channel_names by 0, 1, ... in {folder / 'dataset.json'}"
        raise InputError(what, "those of the training", "restore the file")
    return tuple(str(names[number]) for number in numbers)


def _labels(predictor: Predictor) -> dict[str, int]:
    """What is written for each label or region."""
    labels = {name: value for name, value in predictor.dataset_json["labels"].items() if name != IGNORE}
    if predictor.label_manager.has_regions:
        order = predictor.dataset_json["regions_class_order"]
        regions = (name for name in labels if name != BACKGROUND)
        labels = {BACKGROUND: 0, **dict(zip(regions, order, strict=True))}
    return labels


def _check_export(folder: Path) -> None:
    if (folder / DESCRIPTION).is_file():
        what = f"{folder}, an export of safe_export, which tells nothing of a validation"
        raise InputError(what, "a model as its training left it", "name the model that was exported")


def _check_validation(model: Loaded) -> None:
    """Refuse a model that nobody has seen at work.

    Raises:
        InputError: a fold without `validation/summary.json`, or with a damaged one.
    """
    folds = [fold for fold in model.trained.weights if reference_voxels(_validation(model, fold)) is None]
    if folds:
        trained = model.trained
        named = f"{model.plans_manager.dataset_name} {trained.configuration} {folds[0]}"
        command = f"nnUNetv2_train {named} -tr {trained.trainer_name} -p {model.plans_manager.plans_name} --val"
        there = all((_validation(model, fold) / "summary.json").is_file() for fold in folds)
        what = f"{'a damaged' if there else 'no'} validation of fold {listed(folds)} in {model.folder}"
        more = ", and so on" * (len(folds) > 1)
        raise InputError(what, "fold_*/validation/summary.json, that the model works", f"run {command}{more}")


def _validation(model: Loaded, fold: str) -> Path:
    return model.folder / f"fold_{fold}" / "validation"


def _told(model: Loaded) -> list[str]:
    """The folds of a model, and what their validation came to."""
    folds, scores = list(model.trained.weights), []
    for fold in folds:
        mean = read_json(_validation(model, fold) / "summary.json", "validate the fold again").get("foreground_mean")
        dice = mean.get("Dice") if isinstance(mean, dict) else None
        scores.append(f"{dice:.3f}" if isinstance(dice, int | float) else "unknown")
    return [listed(folds), listed(scores)]


def _spacing(predictor: Predictor) -> list[float]:
    """mm along z, y, x, of the plans of the first model."""
    manager = predictor.models[0].model.plans_manager
    median = manager.original_median_spacing_after_transp
    return [float(median[axis]) for axis in manager.transpose_backward]


def image_name(output: Path) -> str:
    """The folder's name as registries take it."""
    return re.sub(r"[^a-z0-9]+", "-", output.absolute().name.lower()).strip("-") or "nnunetv2-ext"


def _write_test(folder: Path, settings: Settings, predictor: Predictor) -> None:
    """A case of noise, on oblique axes, as the interface hands cases over."""
    random = np.random.default_rng(0)
    (folder / "input").mkdir(parents=True)
    (folder / "output").mkdir()
    sockets: list[dict[str, Any]] = []
    for number in range(len(settings.channels)):
        image = sitk.GetImageFromArray(random.integers(0, 1000, SHAPE).astype(np.int16))
        image.SetSpacing(_spacing(predictor)[::-1])
        image.SetOrigin((-12.5, 40.25, 7.0))
        image.SetDirection(np.linalg.qr(np.reshape(OBLIQUE, (3, 3)))[0].ravel().tolist())
        if settings.interface == CHALLENGE:
            slug = settings.inputs[number]
            sockets.append(_socket(slug))
            path = folder / "input" / "images" / slug / "noise.mha"
            path.parent.mkdir(parents=True)
        else:
            path = folder / "input" / f"noise_{number:04d}.mha"
        write_image(image, path)
    if sockets:
        write_json(folder / "input" / "inputs.json", sockets)


def _socket(slug: str) -> dict[str, Any]:
    """An entry of `inputs.json`, with what a container of ours reads of it."""
    socket = {"slug": slug, "kind": "Image", "super_kind": "Image", "relative_path": f"images/{slug}"}
    return {"file": None, "image": {"name": "noise.mha"}, "value": None, "socket": socket}


def _write_templates(folder: Path, **values: Any) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in TEMPLATES:
        text = environment.get_template(f"{name}.txt").render(**values)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        if name.endswith(".sh"):
            (folder / name).chmod(0o755)
    ignored = ["*", "!app", "!requirements.txt", *(["!model"] * bool(values["baked"]))]
    (folder / ".dockerignore").write_text("\n".join(ignored) + "\n", encoding="utf-8")
