"""Trained models: how users name them, where they lie, and what prediction needs of one."""

import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_ext import register
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.files import dataset_name, file_state, nnunet_folder, read_json, read_plans
from nnunetv2_ext.registry import TRAINERS
from nnunetv2_ext.text import listed, one_line
from nnunetv2_ext.weights.files import FINAL, trained_folds

COPY = "export or copy the model again"


class Model(NamedTuple):
    """One trained model as users name it, `TRAINER:PLANS:CONFIG`."""

    trainer: str
    plans: str
    configuration: str

    @property
    def folder_name(self) -> str:
        """Its folder in a data set's results, as nnU-Net names it."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    def __str__(self) -> str:
        return ":".join(self)


def parse_models(triples: Sequence[str]) -> list[Model]:
    """The models named by `TRAINER:PLANS:CONFIG`, without repetitions.

    Raises:
        InputError: not three names, or a name that nnU-Net could not take apart again.
    """
    models = []
    for triple in triples:
        names = triple.split(":")
        # nnU-Net joins the three names by "__" and two models by "___", and splits them there again
        if len(names) != 3 or any(not n or "__" in n or "/" in n or n != n.strip("_ ") for n in names):
            raise InputError(
                f"the model '{triple}'",
                "TRAINER:PLANS:CONFIG, names without '__'",
                "write, for instance, MNetTrainer:MNetPlans:3d_fullres",
            )
        models.append(Model(*names))
    return list(dict.fromkeys(models))


class Found(NamedTuple):
    """The best model or ensemble, as `nnunetv2_ext find_best -o FILE` writes it."""

    dataset: str
    models: Sequence[str]
    folds: Sequence[str]


def chosen(
    names: Sequence[str], dataset: str | None, folds: Sequence[str] | None
) -> tuple[list[Path], list[str] | None]:
    """The folders and the folds of models: named, or those in the file of `find_best -o`.

    Args:
        names: TRAINER:PLANS:CONFIG, folders, or one file.
        dataset: id or name, of the models that name none.
        folds: those that are asked for; None: of a file those that it tells.

    Raises:
        InputError: no such model or file, or a file of another data set.
    """
    if len(names) != 1 or not names[0].endswith(".json"):
        return [model_folder(name, dataset) for name in names], None if folds is None else list(folds)
    found = read_found(Path(names[0]))
    if dataset is not None and dataset_name(dataset) != found.dataset:
        raise InputError(f"-d {dataset} with models of {found.dataset} in {names[0]}", "one data set", "leave -d out")
    return [model_folder(name, found.dataset) for name in found.models], list(folds or found.folds)


def read_found(path: Path) -> Found:
    """What `find_best` wrote.

    Raises:
        InputError: no such file, or another one.
    """
    remedy = "write it with nnunetv2_ext find_best ... -o FILE"
    content = read_json(path, remedy)
    lists = [content.get(key) for key in ("models", "folds")]
    texts = [content.get("dataset"), *(one for of in lists for one in (of if isinstance(of, list) and of else [None]))]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"no data set, models or folds in {path}", "the file of a search for the best", remedy)
    return Found(**{key: content[key] for key in Found._fields})


def model_folder(name: str | Path, dataset: int | str | None = None) -> Path:
    """Where a model lies that is named `[DATASET:]TRAINER:PLANS:CONFIG`, or by its folder.

    Args:
        dataset: id or name, of the models that name none.

    Raises:
        InputError: no such model, or no data set named.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    first, _, rest = str(name).partition(":")
    if rest.count(":") == 2:
        dataset, name = first, rest
    if ":" not in str(name):
        raise InputError(f"no folder {name}", "the folder of a model, or TRAINER:PLANS:CONFIG", "correct it")
    (model,) = parse_models([str(name)])
    if dataset is None:
        raise InputError(f"the model {model} without a data set", "-d, or DATASET:TRAINER:PLANS:CONFIG", "name it")
    results = nnunet_folder("nnUNet_results") / dataset_name(dataset)
    folder = results / model.folder_name
    if not folder.is_dir():
        there = sorted(path.name.replace("__", ":") for path in results.glob("*__*__*")) if results.is_dir() else []
        train = f"run nnunetv2_ext train -d {results.name} -m {model}"
        remedy = f"choose one of {listed(there)}, or {train}" if there else train
        raise InputError(f"no trained model {model} in {results}", f"the folder {folder.name}", remedy)
    return folder


@dataclass(frozen=True)
class Loaded:
    """A trained model, read and checked, with its network."""

    name: str
    """TRAINER:PLANS:CONFIG, after its folder."""
    folder: Path
    trained: Any
    """Its `weights.safe.TrainedModel`."""
    files: tuple[Path, ...] = field(repr=False)
    """All that prediction reads of it."""

    @cached_property
    def plans_manager(self) -> Any:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return PlansManager(self.trained.plans)

    @cached_property
    def configuration_manager(self) -> Any:
        return self.plans_manager.get_configuration(self.trained.configuration)

    @cached_property
    def label_manager(self) -> Any:
        return self.plans_manager.get_label_manager(self.trained.dataset_json)

    @property
    def previous_stage(self) -> str | None:
        """The configuration whose labels a cascade's second stage reads, None of other models."""
        return self.configuration_manager.previous_stage_name

    def network(self) -> Any:
        """The network as the trainer builds it for prediction, with the first fold's weights.

        Raises:
            InputError: no such trainer, or the weights are of another network.
        """
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

        from nnunetv2_ext.weights.checkpoint import differing_weights

        trainer = trainer_class(self.trained.trainer_name)
        channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.trained.dataset_json
        )
        try:
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                network = trainer.build_network_architecture(
                    self.plans_manager,
                    self.configuration_manager,
                    channels,
                    self.label_manager.num_segmentation_heads,
                    enable_deep_supervision=False,
                )
        except InputError:
            raise
        except Exception as error:
            what = f"a network of {self.folder / 'plans.json'} that cannot be built ({one_line(error)})"
            raise InputError(what, "the architecture that was trained", f"restore plans.json: {COPY}") from None
        expected = network.state_dict()
        for fold, weights in self.trained.weights.items():
            if faults := differing_weights(weights, expected):
                what = f"weights of another network in fold {fold} of {self.folder}"
                shown = listed(faults, shown=3, separator="; ")
                raise InputError(f"{what} ({shown})", "those of the network in plans.json", f"restore both: {COPY}")
        network.load_state_dict(next(iter(self.trained.weights.values())))
        return network.eval()

    def digests(self) -> dict[str, str]:
        """Of every file that decides what it predicts, by its name in the folder."""
        return {str(path.relative_to(self.folder)): file_state(path).digest for path in self.files}


def load_model(folder: Path, folds: Sequence[str] | None = None, checkpoint: str = FINAL) -> Loaded:
    """Read a model folder, nnU-Net's or one that `safe_export` wrote; nothing in its files is run.

    Args:
        folds: names after `fold_`; None for all that have the checkpoint.
        checkpoint: the file's name.

    Raises:
        InputError: a fold or a file is missing or damaged, or the folds are of several models.
    """
    from nnunetv2_ext.weights.checkpoint import made_by, read_folds
    from nnunetv2_ext.weights.safe import DESCRIPTION, WEIGHTS, TrainedModel, read_safe_model

    beside = (folder / "plans.json", folder / "dataset.json")
    name = folder.resolve().name.replace("__", ":")
    if (folder / DESCRIPTION).is_file():
        trained = read_safe_model(folder, folds)
        files = [folder / f"fold_{fold}" / WEIGHTS for fold in trained.weights]
        return _usable(Loaded(name, folder, trained, (*beside, *files)))
    plans = read_plans(beside[0], "give the folder of a trained model, with plans.json, dataset.json and fold_*")
    description = read_json(beside[1], COPY)
    weights = {}
    for fold, content in read_folds(folder, trained_folds(folder, folds, checkpoint), checkpoint, remedy=COPY):
        weights[fold] = content["network_weights"]
        if all(key.startswith("module.") for key in weights[fold]):  # of a parallel network
            weights[fold] = {key.removeprefix("module."): value for key, value in weights[fold].items()}
        made = made_by(content)
    trained = TrainedModel(made.trainer_name, made.configuration, plans, description, made.mirroring_axes, weights)
    loaded = Loaded(name, folder, trained, (*beside, *(folder / f"fold_{fold}" / checkpoint for fold in weights)))
    return _usable(loaded)


def _usable(model: Loaded) -> Loaded:
    """The model, if all that its plans and dataset.json name is there.

    Raises:
        InputError: nnU-Net refuses them, or would stop at the first image.
    """
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    from nnunetv2_ext.training.checks import check_configuration

    folder = str(Path(nnunetv2.__path__[0]) / "preprocessing" / "normalization")
    try:
        configuration = model.configuration_manager
        check_configuration(model.trained.configuration, configuration.configuration)
        _ = model.label_manager, model.plans_manager.image_reader_writer_class
        named = {configuration.preprocessor_name: configuration.preprocessor_class}
        for name in configuration.normalization_schemes:
            named[name] = recursive_find_python_class(folder, name, "nnunetv2.preprocessing.normalization")
        if missing := [name for name, found in named.items() if found is None]:
            raise ValueError(f"no class {listed(missing)}")
        if not min(map(float, configuration.spacing)) > 0:
            raise ValueError(f"a spacing of {listed(configuration.spacing)} mm")
    except Exception as error:  # of nnU-Net's own checks anything
        what = f"{model.folder}, which nnU-Net refuses ({one_line(error)})"
        raise InputError(what, "a trained model", COPY) from None
    return model


def trainer_class(name: str) -> Any:
    """A trainer's class: ours at once, others as nnU-Net finds them.

    Raises:
        InputError: there is none of this name.
    """
    register()
    for entry in TRAINERS:
        if entry.name == name:
            return entry.load()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if name == "nnUNetTrainer":  # the finder imports every variant before it
            from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

            return nnUNetTrainer
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        try:
            return recursive_find_trainer_class_by_name(name)
        except RuntimeError:
            remedy = "install what brings it, and set nnUNet_extTrainer to its folder"
            raise InputError(f"no trainer {name}, which the model was trained by", "one that is here", remedy) from None
