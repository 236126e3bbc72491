"""Files of weights that others wrote, read so that they cannot run code."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import listed, one_line


def read_torch_file(file: Path, *, trust: bool = False) -> Any:
    """The content of a file written by `torch.save`, its tensors on the CPU.

    Args:
        trust: unpickle arbitrary objects too, which can run code that the file carries.

    Raises:
        InputError: no such file, damaged, not written by `torch.save`, or more than tensors in it without `trust`.
    """
    import torch

    if not file.is_file():
        raise InputError(f"no file {file}", "a file of published weights", "check the path")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_globals()):
            warnings.simplefilter("ignore")  # torch's remarks on a file's pickle protocol
            return torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        # what the restricted unpickler refuses is named "Unsupported ..."; anything else is damage
        if not trust and "Unsupported" in str(error):
            raise InputError(
                f"{file}, which holds pickled Python objects beside tensors (as nnU-Net v1 .model files do)",
                "a file of tensors only, since unpickling objects can run code that the file carries",
                "add --trust if you trust where the file comes from",
            ) from None
        raise _damaged(file, error) from None
    except Exception as error:  # a damaged zip or pickle fails in many ways; none of them is the user's concern
        raise _damaged(file, error) from None


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


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(
        f"{file}, which cannot be read ({one_line(error)[:120]})",
        "a complete file written by torch.save",
        "download or copy it again",
    )


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
            "give this file to nnUNetv2_train -pretrained_weights as it is",
        )
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file}, which holds a {type(content).__name__}", "a dict of tensors", "check the file")
    strangers = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise InputError(
            f"{file}, where {listed(strangers, shown=5)} {'are' if len(strangers) > 1 else 'is'} no tensor",
            "a dict of tensors, or a dict with one under 'state_dict'",
            "check the file",
        )
    return {str(key).removeprefix("module."): value for key, value in content.items()}
