"""Predictor: one or several trained models, loaded once, on image after image."""

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from torch import Tensor

from nnunetv2_ext.data.damage import unreadable
from nnunetv2_ext.data.description import channel_names
from nnunetv2_ext.data.volumes import check_labels, write_label_file
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import write_json
from nnunetv2_ext.geometry.boxes import Box
from nnunetv2_ext.inference.export import Prediction, labels_of
from nnunetv2_ext.inference.images import Image, read_image
from nnunetv2_ext.inference.members import Member, check_geometry, check_members, checked_weights
from nnunetv2_ext.inference.models import Loaded, load_model, model_folder
from nnunetv2_ext.inference.region import Region, check_region
from nnunetv2_ext.inference.roi import Inside, boxes_in_image, predict_inside, report
from nnunetv2_ext.inference.single import ModelPredictor, Options
from nnunetv2_ext.inference.windows import Progress
from nnunetv2_ext.text import listed
from nnunetv2_ext.weights.files import FINAL


@dataclass
class Case:
    """An image on its way through the stages."""

    image: Image
    previous: np.ndarray | None = None
    """(z, y, x), labels of a cascade's first stage where they come from a file."""
    preprocessed: dict[str, tuple[Tensor, dict[str, Any]]] = field(default_factory=dict)
    """By `ModelPredictor.preprocessing`."""
    predictions: dict[ModelPredictor, Prediction] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""
    mask: np.ndarray | None = None
    """(z, y, x), of a region of interest."""
    region: "Case | None" = None
    """The image on its way through the model of the region."""
    boxes: list[Box] | None = None
    """Of the region, on the image's grid."""
    inside: dict[ModelPredictor, Inside] = field(default_factory=dict)
    network_seconds: dict[ModelPredictor, float] = field(default_factory=dict)
    first_labels: dict[ModelPredictor, np.ndarray] = field(default_factory=dict)
    """Of cascades' first stages, on the image's grid."""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the length of a block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


class Predictor:
    """Labels of images by one or several trained models, averaged while they are in memory.

    The models stay loaded. `predict` may be called from several threads, which take turns at the network.

    Args:
        models: `TRAINER:PLANS:CONFIG` (with `dataset`, or `DATASET:` before it), or folders of models, nnU-Net's or
            those of `nnunetv2_ext safe_export`.
        dataset: id or name, of the models that name none.
        folds: of every model; None for all that are trained. Their logits are averaged, as nnU-Net does.
        weights: of each model in the average of probabilities; None for equal ones.
        device: "cuda", "cpu" or "mps"; None for a GPU where there is one.
        checkpoint: which file of each fold.
        previous: labels of a cascade's first stage are passed with each image; else its model is loaded too.
        options: see `Options`.
        region: of interest, in which alone the models predict.

    Raises:
        InputError: a model is missing or damaged, or the models do not agree.
    """

    def __init__(
        self,
        models: str | Path | Sequence[str | Path],
        *,
        dataset: int | str | None = None,
        folds: Sequence[int | str] | None = None,
        weights: Sequence[float] | None = None,
        device: str | torch.device | None = None,
        checkpoint: str = FINAL,
        previous: bool = False,
        options: Options | None = None,
        region: Region | None = None,
    ):
        names = [str(models)] if isinstance(models, str | Path) else list(map(str, models))
        if not names:
            raise InputError("no model", "one or more", "name it")
        self.options = options or Options()
        self.device = chosen_device(device)
        self.weights = checked_weights(weights, len(names))
        self._lock = threading.Lock()
        folders = [model_folder(name, dataset).resolve() for name in names]
        if len(set(folders)) < len(folders):
            raise InputError(f"a model twice among {listed(names)}", "each once", "use weights to let it count more")
        known = None if folds is None else [str(fold) for fold in folds]
        loaded: dict[Path, ModelPredictor] = {}

        def load(folder: Path) -> ModelPredictor:
            if folder not in loaded:
                model = load_model(folder, known, checkpoint)
                stage = model.previous_stage
                before = None if stage is None or previous else load(_previous_folder(model, stage))
                loaded[folder] = ModelPredictor(model, self.device, self.options, before)
            return loaded[folder]

        self.models = [load(folder) for folder in folders]
        trained = [one.model.trained for one in self.models]
        check_members([Member(name, one.dataset_json, one.plans) for name, one in zip(names, trained, strict=True)])
        first = self.models[0].model
        self.reader = first.plans_manager.image_reader_writer_class()
        self.label_manager = first.label_manager
        self.dataset_json: dict[str, Any] = first.trained.dataset_json
        self.file_ending: str = self.dataset_json["file_ending"]
        self.region = region
        if region is not None:
            check_region(region, self)
        self.needs_previous = any(one.model.previous_stage is not None and one.previous is None for one in self.models)

    def predict(
        self,
        image: "np.ndarray | sitk.Image | str | Path | Sequence[str | Path | sitk.Image]",
        *,
        spacing: Sequence[float] | None = None,
        previous: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> Any:
        """The labels of one image.

        Args:
            image: the file, or one per channel; a SimpleITK image, or one per channel; or an array (channels, z, y, x)
                in the order in which the models' reader gives it, with `spacing`.
            spacing: mm along z, y, x, of an array.
            previous: (z, y, x), labels of a cascade's first stage, where the predictor was told that they come.
            mask: (z, y, x), of a region of interest whose masks come with the images.

        Returns:
            A SimpleITK image of the labels in the place of the image; of an array an array (z, y, x).

        Raises:
            InputError: an image that cannot be read or is no image for these models.
        """
        if isinstance(image, np.ndarray):
            return self.labels(self.logits(self.prepare(self._of_array(image, spacing), previous, mask)))
        parts = [image] if isinstance(image, str | Path | sitk.Image) else list(image)
        with tempfile.TemporaryDirectory() as folder:
            if isinstance(parts[0], sitk.Image) and isinstance(self.reader, Tiff3DIO):  # TIFF keeps it in a file beside
                write_json(Path(folder, "image.json"), {"spacing": parts[0].GetSpacing()[::-1]})
            files = [_file_of(part, Path(folder, f"image_{n:04d}{self.file_ending}")) for n, part in enumerate(parts)]
            case = self.prepare(self.read(files), previous, mask)
            labels = self.labels(self.logits(case))
            target = Path(folder, f"labels{self.file_ending}")
            write_label_file(self.reader, labels, target, case.image.properties)
            written = sitk.ReadImage(str(target))
        # the file may hold its place with fewer digits
        origin = parts[0] if isinstance(parts[0], sitk.Image) else None
        if origin is not None and origin.GetSize() == written.GetSize():
            written.CopyInformation(origin)
        return written

    def _of_array(self, array: np.ndarray, spacing: Sequence[float] | None) -> Image:
        channels = len(channel_names(self.dataset_json))
        if array.ndim != 4 or len(array) != channels or spacing is None or len(spacing) != 3:
            got = f"an array of {listed(array.shape)} with the spacing {spacing}"
            expected = f"({channels}, z, y, x) with three numbers in mm"
            raise InputError(got, expected, "add the axis of the channels, and pass spacing=")
        if not (np.isfinite(array).all() and all(np.isfinite(spacing)) and min(spacing) > 0):
            raise InputError("NaN or infinity, or a spacing of 0", "numbers", "replace them")
        return Image(array.astype(np.float32), {"spacing": [float(length) for length in spacing]})

    def read(self, files: Sequence[Path]) -> Image:
        """Read and check the channels of an image, see `images.read_image`."""
        dimensions = min(len(one.model.configuration_manager.patch_size) for one in self.models)
        return read_image(files, self.reader, self.dataset_json, dimensions=dimensions)

    def read_labels(self, path: Path, name: str, image: Image) -> np.ndarray:
        """Labels (z, y, x) that belong to an image, such as those of a cascade's first stage.

        Raises:
            InputError: no readable file, or one on another grid than the image's.
        """
        if not path.is_file():
            raise InputError(f"no file {path}", f"labels for the case {name}", "predict them, or restore the file")
        try:
            labels, properties = self.reader.read_seg(str(path))
        except Exception as error:  # of a damaged file anything
            raise unreadable(path, error) from None
        shapes = [image.voxels.shape[1:], labels.shape[1:]]
        check_geometry(name, ["its image", str(path)], [image.properties, properties], shapes)
        check_labels(labels, path)
        return labels[0]

    def description(self) -> dict[str, Any]:
        """What decides the labels, as JSON has it: models with the digests of their files, weights and options."""
        models = [
            {
                "model": one.model.name,
                "folds": list(one.model.trained.weights),
                "weight": weight,
                "files": one.model.digests(),
                **({"first_stage": one.previous.model.digests()} if one.previous else {}),
            }
            for one, weight in zip(self.models, self.weights, strict=True)
        ]
        options = {key: value for key, value in vars(self.options).items() if key != "on_device"}
        region = {} if self.region is None else {"roi": self.region.description()}
        return {"models": models, "options": options, **region}

    def prepare(self, image: Image, previous: np.ndarray | None = None, mask: np.ndarray | None = None) -> Case:
        """Preprocess an image for every model that does not wait for another's labels.

        Args:
            previous: (z, y, x), labels of a cascade's first stage, where they do not come from its model.
            mask: (z, y, x), of a region of interest, where it does not come from a model.

        Raises:
            InputError: labels or a mask are missing, or of another size.
        """
        case = Case(image, previous, mask=mask)
        wanted = image.voxels.shape[1:]
        of_mask = self.region is not None and self.region.folder is not None
        for what, needed, given in (
            ("labels of the stage before", self.needs_previous, previous),
            ("mask of the region", of_mask, mask),
        ):
            if needed and (given is None or given.shape != wanted):
                got = f"no {what}" if given is None else f"{what} of {listed(given.shape)} voxels"
                raise InputError(got, f"one of {listed(wanted)} voxels", "pass it with the image")
        with case.timed("preprocess"):
            if self.region is not None and self.region.predictor is not None:
                case.region = self.region.predictor.prepare(image)
            for one in self.models:
                first = one if one.previous is None else one.previous
                if first.model.previous_stage is None:
                    self._preprocessed(first, case)
        if all(one.model.previous_stage is None for one in self.models):  # nothing reads the image once more
            case.image = image._replace(voxels=np.empty((len(image.voxels), 0), np.float32))
        return case

    def _preprocessed(self, one: ModelPredictor, case: Case) -> tuple[Tensor, dict[str, Any]]:
        if one.model.previous_stage is None:
            if one.preprocessing not in case.preprocessed:
                case.preprocessed[one.preprocessing] = one.preprocess(case.image)
            return case.preprocessed[one.preprocessing]
        labels = self._previous_labels(one, case)
        with case.timed("preprocess"):
            return one.preprocess(case.image, labels)

    def _previous_labels(self, one: ModelPredictor, case: Case) -> np.ndarray | None:
        """Those of a cascade's first stage."""
        if one.previous is None:
            return case.previous
        first = one.previous
        if first not in case.first_labels:
            case.first_labels[first] = labels_of([self._predicted(first, case)], first.model.label_manager)
        return case.first_labels[first]

    def logits(self, case: Case, progress: Progress | None = None) -> Case:
        """Fill in the predictions of every model; one case at a time, others wait.

        Args:
            progress: called with the number of windows computed and of all, anew for each model.
        """
        with self._lock:
            if self.region is not None:
                case.boxes = self._boxes(self.region, case, progress)
            for one in self.models:
                self._predicted(one, case, progress)
        case.preprocessed.clear()
        return case

    def _boxes(self, region: Region, case: Case, progress: Progress | None) -> list[Box]:
        """The region of interest on the image's grid."""
        if region.predictor is not None:
            assert case.region is not None
            case.mask = region.predictor.labels(region.predictor.logits(case.region, progress))
        elif region.folder is None:
            case.mask = self._previous_labels(next(one for one in self.models if one.model.previous_stage), case)
        assert case.mask is not None
        return boxes_in_image(case.mask, case.image.properties["spacing"], region.roi)

    def _predicted(self, one: ModelPredictor, case: Case, progress: Progress | None = None) -> Prediction:
        if one not in case.predictions:
            data, properties = self._preprocessed(one, case)
            model = one.model
            start = time.perf_counter()
            with case.timed("network"):
                if case.boxes is None or self.region is None:
                    logits = one.window.logits(data, progress=progress)
                else:
                    inside = predict_inside(
                        one.window,
                        data,
                        case.boxes,
                        properties,
                        model.plans_manager,
                        self.region.roi,
                        progress=progress,
                    )
                    case.inside[one], logits = inside, inside.logits
            case.network_seconds[one] = time.perf_counter() - start
            case.predictions[one] = Prediction(logits, properties, model.plans_manager, model.configuration_manager)
        return case.predictions[one]

    def region_report(self, case: Case) -> dict[str, Any]:
        """What became of a case inside its region, by model: its entry in `roi.json`; empty without a region."""
        if self.region is None:
            return {}
        of_region = None
        if case.region is not None:
            of_region = sum(case.region.seconds.values())
        elif self.region.folder is None:
            of_region = sum(case.network_seconds.get(one.previous, 0.0) for one in self.models if one.previous)
        names = [one.model.name for one in case.inside]
        return {
            one.model.name if names.count(one.model.name) == 1 else str(one.model.folder): report(
                inside,
                case.predictions[one].properties,
                one.model.plans_manager,
                self.region.roi,
                seconds=case.network_seconds[one],
                roi_seconds=of_region,
            )
            for one, inside in case.inside.items()
        }

    def votes(self, case: Case) -> list[Prediction]:
        """The predictions of the models, with their weights."""
        pairs = zip(self.models, self.weights, strict=True)
        return [case.predictions[one]._replace(weight=weight) for one, weight in pairs]

    def labels(self, case: Case) -> np.ndarray:
        """(z, y, x) on the image's grid, as the models' writer takes them."""
        with case.timed("export"):
            return labels_of(self.votes(case), self.label_manager, linear_z=self.options.linear_z)


def _previous_folder(model: Loaded, stage: str) -> Path:
    """Where the model of a cascade's first stage lies: beside it, of the same trainer and plans.

    Raises:
        InputError: it is not there.
    """
    folder = model.folder.with_name(f"{model.folder.name.rpartition('__')[0]}__{stage}")
    if not folder.is_dir():
        what = f"{model.name} without the model of its first stage, {folder}"
        raise InputError(what, "both", "train it, or pass its labels with -prev_stage_predictions")
    return folder


def _file_of(part: "str | Path | sitk.Image", path: Path) -> Path:
    """A channel's file; of an image in memory one that is written to `path`."""
    if not isinstance(part, sitk.Image):
        return Path(part)
    sitk.WriteImage(part, str(path), False)
    return path


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device that is asked for, by default a GPU where there is one.

    Raises:
        InputError: PyTorch does not find it here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked = torch.device(device)
    backend = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(asked.type)
    if backend is not None and not backend.is_available():
        raise InputError(f"-device {asked}", "a device that PyTorch finds here", "choose -device cpu")
    return asked
