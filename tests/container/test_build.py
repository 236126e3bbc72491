"""The Dockerfile, built without Docker on a base of Debian's, and the image run.

The base has this machine's packages, so that nothing is downloaded: pip finds every pin of requirements.txt there.
`NNUNETV2_EXT_BASE` names the folder of a base with Python, where debootstrap has made one already.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import SimpleITK as sitk

from tests.container.conftest import SLUG, Make, image, same_place
from tests.container.sandbox import in_image, need_bwrap, run
from tests.container.test_serve import LABELS, hand_over, of_predict

SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
"""Debian's, by the Python that they have."""
PACKAGES = [Path(path) for path in sys.path if path.endswith("site-packages") and Path(path).is_dir()]
PLACES = {path: f"/opt/packages/{number}" for number, path in enumerate(PACKAGES)}
OF_PYTHON = "argparse-1.4.0"
"""What pip never takes as installed, since Python has it: a package of that name without content."""

pytestmark = pytest.mark.pipeline


def has_pip() -> bool:
    """Whether this Python's environment has pip, which fills the image."""
    try:
        return bool(version("pip"))
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of which nothing stays."""
    need_bwrap()
    if os.getuid() != 0:
        pytest.skip("buildah without subordinate users works for root alone")
    if (missing := [name for name in ("buildah", "setpriv") if shutil.which(name) is None]) or not has_pip():
        pytest.skip(f"{missing or 'pip'} is not there (Debian: apt-get install buildah)")
    folder = tmp_path_factory.mktemp("build")
    yield folder
    if (folder / "storage").exists():
        for command in (["rm", "--all"], ["rmi", "--all", "--force"]):
            subprocess.run([*buildah(folder), *command], capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


def buildah(work: Path) -> list[str]:
    storage = work / "storage"
    places = ["--root", str(storage / "root"), "--runroot", str(storage / "run"), "--storage-driver", "vfs"]
    return ["buildah", *places]


def done(*command: str, cwd: Path | None = None) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout.strip()


@pytest.fixture(scope="module")
def base(work: Path) -> str:
    """The name of an image with Python that finds this machine's packages, and pip that asks no index."""
    folder, given = work / "base", os.environ.get("NNUNETV2_EXT_BASE")
    if given:
        shutil.copytree(given, folder, symlinks=True, ignore=shutil.ignore_patterns("dev", "proc", "sys"))
    else:
        suite = SUITES.get(sys.version_info[:2])
        if shutil.which("debootstrap") is None or suite is None:
            pytest.skip("no debootstrap, or no Debian with this Python (Debian: apt-get install debootstrap)")
        command = ["debootstrap", "--variant=minbase", "--include=python3", suite, str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("debootstrap reaches no mirror")
    for cached in ("apt", "debconf"):
        shutil.rmtree(folder / "var" / "cache" / cached, ignore_errors=True)
    shutil.rmtree(folder / "var" / "lib" / "apt", ignore_errors=True)
    lines = "".join(f"{place}\n" for place in PLACES.values())
    (folder / "usr" / "lib" / "python3" / "dist-packages" / "packages.pth").write_text(lines)
    for place in (*PLACES.values(), "/opt/wheels"):
        (folder / place[1:]).mkdir(parents=True)
    (folder / "etc" / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /opt/wheels\n")
    name, version = OF_PYTHON.split("-")
    with zipfile.ZipFile(folder / "opt" / "wheels" / f"{OF_PYTHON}-py3-none-any.whl", "w") as wheel:
        about = f"{OF_PYTHON}.dist-info"
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    (work / "storage").mkdir()
    container = done(*buildah(work), "from", "scratch")
    mounted = Path(done(*buildah(work), "mount", container))
    for path in folder.iterdir():
        path.rename(mounted / path.name)
    done(*buildah(work), "commit", "--rm", container, "base-of-the-test")
    return "localhost/base-of-the-test"


def test_the_image_is_built_and_predicts(work: Path, base: str, make: Make, tmp_path: Path) -> None:
    folder = make(models=2)
    mounts = [word for path, place in PLACES.items() for word in ("--volume", f"{path}:{place}:ro")]
    build = ["build", "--isolation", "chroot", "--build-arg", f"BASE={base}", *mounts, "--tag", "made", str(folder)]
    told = done(*buildah(work), *build)
    downloaded = [line for line in told.splitlines() if line.startswith(("Downloading", "Collecting", "Processing"))]
    assert [line for line in downloaded if OF_PYTHON not in line] == []
    config = json.loads(done(*buildah(work), "inspect", "--type", "image", "made"))["OCIv1"]["config"]
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["python3", "-m", "nnunetv2_ext.container.serve"]
    variables = dict(entry.split("=", 1) for entry in config["Env"])
    root = Path(done(*buildah(work), "mount", done(*buildah(work), "from", "made")))
    assert not list((root / "opt" / "ml" / "model").iterdir())  # which is uploaded apart
    source, output = hand_over(tmp_path / "input", {SLUG: image()}), tmp_path / "output"
    output.mkdir()
    output.chmod(0o777)
    ended = run(in_image(root, variables, PLACES, folder, source, output))
    assert (ended.returncode, ended.stderr) == (0, "")
    written = output / LABELS
    assert (written.stat().st_uid, same_place(sitk.ReadImage(str(written)), image())) == (1000, True)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(written)))
    assert (labels == of_predict(folder, [image()], tmp_path / "predict")).all() and labels.max() > 0
