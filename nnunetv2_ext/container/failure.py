"""One sentence for whatever ends a case."""

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import one_line


def told(error: Exception) -> Exception:
    """An error of a file that cannot be read or written, as bad input; others as they are."""
    if isinstance(error, OSError) and error.filename:
        what = f"{error.filename}, which cannot be read or written ({error.strerror})"
        return InputError(what, "a readable input and room for the output", "see to permissions and disk")
    return error


def sentence(error: Exception) -> str:
    """What went wrong, in one sentence."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {one_line(error)}"
