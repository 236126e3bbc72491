"""Trained models as safetensors beside JSON: nothing in such a folder can run code, whatever reads it.

model.json              what it is: trainer, configuration, mirroring axes, folds and the digests of their weights
plans.json, dataset.json, dataset_fingerprint.json
fold_0/weights.safetensors
fold_0/training.json    epoch, log and what the trainer was made with
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

import nnunetv2_ext
from nnunetv2_ext.errors import InputError, is_whole
from nnunetv2_ext.files import file_state, read_json, write_json
from nnunetv2_ext.locks import complete_or_absent
from nnunetv2_ext.text import listed, one_line
from nnunetv2_ext.weights.checkpoint import made_by, not_finite, read_folds
from nnunetv2_ext.weights.files import FINAL, trained_folds

FORMAT = "nnunetv2_ext safe model 1"
DESCRIPTION, WEIGHTS, TRAINING = "model.json", "weights.safetensors", "training.json"
AGAIN = "export the model again with nnunetv2_ext safe_export"


class TrainedModel(NamedTuple):
    """What prediction needs of a trained model."""

    trainer_name: str
    configuration: str
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    mirroring_axes: tuple[int, ...] | None
    """Of `inference_allowed_mirroring_axes`."""
    weights: dict[str, dict[str, Tensor]]
    """Of each fold by its name after `fold_`, on the CPU."""


def write_safe_model(
    model: Path,
    output: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = FINAL,
    trust: bool = False,
) -> list[str]:
    """Write a model folder of nnU-Net, a trainer's of ours or any other, anew; whole or not at all.

    Args:
        folds: names after `fold_`; None for all that have the checkpoint.
        trust: also of checkpoints with pickled objects, which are left out; unpickling them can run code.

    Returns:
        The folds.

    Raises:
        InputError: no model folder, a fold or a file missing or damaged, folds of several models, or an output that
            exists already or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if output.exists():
        raise InputError(f"the existing output {output}", "a new folder", "choose another one, or remove it")
    if not output.absolute().parent.is_dir():
        raise InputError(f"no folder {output.absolute().parent}", "one to write into", "create it or correct the path")
    remedy = "give the folder of a trained model, with plans.json, dataset.json and fold_*"
    beside = {name: read_json(model / f"{name}.json", remedy) for name in ("plans", "dataset")}
    if (fingerprint := model / "dataset_fingerprint.json").is_file():
        beside["dataset_fingerprint"] = read_json(fingerprint, remedy)
    names = trained_folds(model, folds, checkpoint)
    with complete_or_absent(output) as folder:
        digests = {}
        trusted = "add --trust if you trust where the file comes from: its tensors, texts and numbers are kept"
        contents = read_folds(model, names, checkpoint, trust=trust, remedy="copy it again", trusted=trusted)
        for name, content in contents:
            made = made_by(content)
            fold = folder / f"fold_{name}"
            fold.mkdir()
            weights = {key: value.detach().clone().contiguous() for key, value in content["network_weights"].items()}
            try:
                save_file(weights, fold / WEIGHTS)
            except SafetensorError as error:  # on a full disk, for one
                raise OSError(str(error)) from error
            digests[name] = file_state(fold / WEIGHTS).digest
            known = {key: content.get(key) for key in ("current_epoch", "logging", "_best_ema", "init_args")}
            write_json(fold / TRAINING, _plain(known), indent=1)
        for name, description in beside.items():
            write_json(folder / f"{name}.json", description)
        told = {
            "format": FORMAT,
            "made_by": f"nnunetv2_ext {nnunetv2_ext.__version__}",
            "trainer_name": made.trainer_name,
            "configuration": made.configuration,
            "inference_allowed_mirroring_axes": made.mirroring_axes,
            "checkpoint": checkpoint,
            "folds": digests,
        }
        write_json(folder / DESCRIPTION, told)
    return names


def _plain(value: Any) -> Any:
    """Numbers, texts and containers as JSON has them; NaN and infinity, which it has not, as null, the rest as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def read_safe_model(folder: Path | str, folds: Sequence[str] | None = None) -> TrainedModel:
    """What `write_safe_model` wrote.

    Args:
        folds: names after `fold_`; None for all.

    Raises:
        InputError: no such folder or fold, a file missing or damaged, or weights that are no finite numbers.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    told, plans, description = (read_json(folder / name, AGAIN) for name in (DESCRIPTION, "plans.json", "dataset.json"))
    if told.get("format") != FORMAT:
        raise InputError(f"{folder / DESCRIPTION} of the format {told.get('format')!r}", repr(FORMAT), AGAIN)
    digests, axes = told.get("folds"), told.get("inference_allowed_mirroring_axes")
    trainer, configuration = told.get("trainer_name"), told.get("configuration")
    sound = isinstance(trainer, str) and isinstance(configuration, str) and isinstance(digests, dict) and digests
    if (
        not sound
        or not all(name == "all" or name.isdecimal() for name in digests)
        or not (axes is None or (isinstance(axes, list) and all(is_whole(axis, least=0) for axis in axes)))
    ):
        raise InputError(f"a damaged {folder / DESCRIPTION}", "trainer, configuration, folds and axes", AGAIN)
    weights: dict[str, dict[str, Tensor]] = {}
    for name in digests if folds is None else folds:
        path = folder / f"fold_{name}" / WEIGHTS
        if name not in digests:
            raise InputError(f"the fold {name}", f"one of {listed(digests)}", "choose one that the model has")
        try:
            if file_state(path).digest != digests[name]:
                raise ValueError(f"another digest than in {DESCRIPTION}")
            weights[name] = load_file(path)
        except Exception as error:  # the library's errors are of several kinds
            what = f"the damaged file {path} ({one_line(error)})"
            raise InputError(what, "the weights that were exported", AGAIN) from None
        if broken := not_finite(weights[name]):
            raise InputError(f"{path}, where {listed(broken, shown=3)} are no finite numbers", "weights", AGAIN)
    return TrainedModel(trainer, configuration, plans, description, None if axes is None else tuple(axes), weights)
