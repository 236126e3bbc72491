"""Files of weights that others wrote, read so that they cannot run code."""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed, one_line

FINAL, LATEST, PREVIOUS, BEST = (f"checkpoint_{name}.pth" for name in ("final", "latest", "previous", "best"))
"""The checkpoints of a fold."""
UNFINISHED = (LATEST, PREVIOUS, BEST)
"""Those from which a training goes on that has not come to its end, the best to go on from first."""

SAVED = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""In the first bytes of what `torch.save` wrote before it wrote zip archives."""


def has_begun(fold: Path) -> bool:
    """Whether a training that has not come to its end can go on in a fold."""
    return any((fold / name).is_file() for name in UNFINISHED)


def trained_folds(model: Path, asked: Sequence[str] | None, checkpoint: str) -> list[str]:
    """The folds that are asked for, by default all that have the checkpoint (`all` where it stands alone).

    Raises:
        InputError: none, or one that is asked for and lacks the checkpoint.
    """
    there = [path.parent.name.removeprefix("fold_") for path in sorted(model.glob(f"fold_*/{checkpoint}"))]
    there = [name for name in there if name == "all" or name.isdecimal()]
    chosen = [name for name in there if name != "all" or len(there) == 1] if asked is None else list(asked)
    missing = [name for name in chosen if name not in there]
    if missing or not chosen:
        what = f"no {checkpoint} in {listed(f'fold_{name}' for name in missing) or 'any fold'} of {model}"
        train, name = "finish the training", model.absolute().name.replace("__", ":")
        if name.count(":") == 2:
            train = f"run nnunetv2_ext train -d {model.absolute().parent.name} -m {name}"
        remedy = f"choose -f from {listed(there, separator=' ')}" if there else f"{train}, or choose -chk"
        raise InputError(what, "a trained fold", remedy)
    return list(dict.fromkeys(chosen))


class ForeignObject(InputError):
    """A file names more than tensors, numbers, texts and containers of them; making such an object can run code."""


def read_torch_file(
    file: Path,
    *,
    trust: bool = False,
    noun: str = "file of weights",
    remedy: str = "download or copy it again",
    trusted: str = "add --trust if you trust where the file comes from",
) -> Any:
    """The content of a file written by `torch.save`, its tensors on the CPU.

    Args:
        trust: unpickle arbitrary objects too, which can run code that the file carries.
        noun: what the file is, for messages.
        remedy: what to do about a damaged one.
        trusted: what to do about one with objects that may be needed.

    Raises:
        ForeignObject: more than tensors, numbers and texts in it, without `trust`.
        InputError: no such file, damaged, or not written by `torch.save`.
    """
    import torch

    if not file.is_file():
        raise InputError(f"no file {file}", f"a {noun}", "check the path")
    try:
        if zipfile.is_zipfile(file):  # torch compares no checksums
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"checksum of {damaged}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on a file's pickle protocol
            if trust:
                return torch.load(file, map_location="cpu", weights_only=False)
            with restricted_unpickling():
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip or pickle fails in many ways; none of them is the user's concern
        # what the restricted unpickler refuses is named "Unsupported ..." or "unsupported ..."; anything else is damage
        unsupported = isinstance(error, pickle.UnpicklingError) and "unsupported" in str(error).lower()
        if not trust and unsupported and _is_saved(file):
            raise ForeignObject(
                f"{file}, which holds {_foreign(error)} beside tensors and numbers",
                f"a {noun} without such objects, since making them can run code that the file carries",
                trusted,
            ) from None
        why = "torch.save did not write it" if unsupported else one_line(error)[:120]
        raise InputError(f"the damaged {noun} {file}, which cannot be read ({why})", "a whole file", remedy) from None


def _is_saved(file: Path) -> bool:
    """Whether a file begins as those of `torch.save` do: as a zip archive or, once, with a pickled number."""
    with file.open("rb") as stream:
        start = stream.read(64)
    return start.startswith(b"PK") or SAVED in start


def _foreign(error: Exception) -> str:
    """What the restricted unpickler refused, with its name."""
    named = re.search(r"GLOBAL (\S+)|(numpy dtype \S+)", str(error))
    return "pickled Python objects" + ("" if named is None else f" ({named[1] or named[2]})")


@contextmanager
def restricted_unpickling() -> Iterator[None]:
    """Within it `torch.load`, whoever calls it and however, makes tensors, numbers, texts and containers alone.

    A class that its module named in `torch.serialization.add_safe_globals` is made too.
    """
    import torch

    variables = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _NumberKind:
    """Stands in for numpy.dtype while a file is read: plain numbers only."""

    def __init__(self, name: Any, *_: Any):
        if not (isinstance(name, str) and re.fullmatch(r"[biuf][1248]", name)):
            raise pickle.UnpicklingError(f"Unsupported numpy dtype {name!r}")
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which are the machine's own for numbers."""


def _number(kind: Any, data: Any) -> Any:
    """Stands in for what makes numpy's scalars: a Python number from its bytes."""
    import numpy as np

    return np.frombuffer(data, np.dtype(kind.name))[0].item()


def _numpy_globals() -> list[Any]:
    """What the numbers in nnU-Net's checkpoints refer to, under the names of numpy 2 and 1.

    numpy's own functions would let a file make arrays of any pointers.
    """
    scalars = [(_number, f"{module}.multiarray.scalar") for module in ("numpy._core", "numpy.core")]
    return [*scalars, (_NumberKind, "numpy.dtype")]


def published_state_dict(content: Any, file: Path) -> dict[str, Any]:
    """The state dict inside what a file holds, without the `module.` that a parallel training leaves.

    Raises:
        InputError: neither a dict of tensors nor a dict with `state_dict`.
    """
    import torch

    if isinstance(content, dict) and "network_weights" in content:
        raise InputError(
            f"{file}, a checkpoint of nnU-Net v2",
            "published weights, bare or in an nnU-Net v1 .model file",
            "give this file to nnUNetv2_train -pretrained_weights as it is, with the trainer that wrote it",
        )
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file}, which holds a {type(content).__name__}", "a dict of tensors", "check the file")
    strangers = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        held = [str(key) for key, value in content.items() if isinstance(value, dict) and _of_tensors(value)]
        raise InputError(
            f"{file}, where {listed(strangers, shown=5)} {'are' if len(strangers) > 1 else 'is'} no tensor",
            "a dict of tensors, or a dict with one under 'state_dict'",
            f"save its {' or '.join(held)} alone" if held else "check the file",
        )
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _of_tensors(content: dict[Any, Any]) -> bool:
    import torch

    return bool(content) and all(isinstance(value, torch.Tensor) for value in content.values())
