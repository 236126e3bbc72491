"""A container's folder run as its image will be: no network, a read-only root, user 1000, `/tmp` alone to write to."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

SERVE = ["-m", "nnunetv2_ext.container.serve"]


def need_bwrap() -> None:
    """Skip where there is no bubblewrap, or where it may not make name spaces."""
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is not there (Debian: apt-get install bubblewrap)")
    if subprocess.run(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True).returncode:
        pytest.skip("bwrap may not make name spaces here")


def environment(folder: Path) -> dict[str, str]:
    """What the Dockerfile of a container sets."""
    lines = re.sub(r"\\\n", " ", (folder / "Dockerfile").read_text()).splitlines()
    words = [word for line in lines if line.startswith("ENV ") for word in line.split()[1:]]
    return dict(word.split("=", 1) for word in words)


def options(folder: Path, source: Path, output: Path, *, tmp: str = "", model: Path | None = None) -> list[str]:
    """Of bwrap, over a root that is bound by others: what `docker run` of the folder's README sets.

    Args:
        tmp: size of `/tmp` in bytes; none for no limit.
        model: what lies at /opt/ml/model, that of the folder by default.
    """
    limit = ["--size", tmp] if tmp else []
    binds = ["--ro-bind", str(model or folder / "model"), "/opt/ml/model", "--ro-bind", str(source), "/input"]
    shm = ["--dev", "/dev", "--size", str(2**16), "--tmpfs", "/dev/shm", "--proc", "/proc"]
    return [*shm, *limit, "--perms", "1777", "--tmpfs", "/tmp", *binds, "--bind", str(output), "/output"]


def on_host(
    folder: Path,
    source: Path,
    output: Path,
    *arguments: str,
    tmp: str = "",
    model: Path | None = None,
    more: Mapping[str, str] | None = None,
) -> list[str]:
    """The command that runs a container's entry point with this machine's Python and packages, and the folder's code.

    The root is new and has the machine's folders, so that `/input`, `/output` and `/opt` can be made in it.
    """
    variables = {**environment(folder), **(more or {})}
    ours = {Path("/", name) for name in ("dev", "proc", "tmp", "input", "output", "opt", "opt/app", "opt/ml")}
    there = [path for path in (*Path("/").iterdir(), *Path("/opt").glob("*")) if path not in ours]
    root = [
        word
        for path in sorted(there)
        for word in (["--symlink", str(path.readlink())] if path.is_symlink() else ["--ro-bind", str(path)])
        + [str(path)]
    ]
    inside = options(folder, source, output, tmp=tmp, model=model)
    packages = [Path(path) for path in sys.path if Path(path).is_relative_to("/tmp") and Path(path).is_dir()]
    home = Path(sys.prefix)
    bound = [home, *packages] if home.is_relative_to("/tmp") else packages  # beneath the new /tmp
    again = [word for path in bound for word in ("--ro-bind", str(path), str(path))]
    code = ["--ro-bind", str(folder / "app"), "/opt/app", "--remount-ro", "/"]
    set_all = [word for name, value in variables.items() for word in ("--setenv", name, value)]
    user = ["--unshare-all", "--die-with-parent", "--uid", "1000", "--gid", "1000", "--clearenv", *set_all]
    return ["bwrap", *user, *root, *inside, *again, *code, "--chdir", "/opt/app", sys.executable, *SERVE, *arguments]


def in_image(
    root: Path, variables: Mapping[str, str], binds: Mapping[Path, str], folder: Path, source: Path, output: Path
) -> list[str]:
    """The command that runs the entry point of a built image, as a user who owns nothing and may become nobody else.

    Args:
        root: where the image is mounted.
        variables: of the image.
        binds: folders of this machine and where they lie in the image.
    """
    set_all = [word for name, value in variables.items() for word in ("--setenv", name, value)]
    bound = [word for path, place in binds.items() for word in ("--ro-bind", str(path), place)]
    apart = ["--unshare-net", "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--clearenv", *set_all]
    user = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "--no-new-privs", "--inh-caps=-all"]
    inside = [*options(folder, source, output), *bound, "--chdir", "/opt/app"]
    return ["bwrap", *apart, "--ro-bind", str(root), "/", *inside, *user, "--bounding-set=-all", "python3", *SERVE]


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Its exit status and words."""
    return subprocess.run(command, capture_output=True, text=True, timeout=600)
