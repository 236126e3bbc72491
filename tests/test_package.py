"""The wheel holds what the source tree holds, and nothing else."""

import email
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = {"nnunetv2_ext": "nnunetv2_ext", "trainers": "nnunetv2_ext/trainers", "plans": "nnunetv2_ext/plans"}
METHODS = ("backbone", "mnet", "par")
OTHERS = ("pyproject.toml", "README.md", "LICENSE", "tests", "benchmarks", "docs")
WHERE_IT_LIES = """
import inspect, nnunetv2_ext
from nnunetv2_ext.registry import KINDS

print(nnunetv2_ext.__file__)
for entries in KINDS.values():
    for entry in entries:
        if entry.path.startswith("nnunetv2_ext."):
            print(inspect.getfile(entry.load()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder of the tree, or left in it, plays a part."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    source.mkdir()
    for name in (*MAPPED, *OTHERS):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_every_module_and_no_other_is_in_the_wheel(wheel: Path) -> None:
    expected = {
        f"{target}/{path.relative_to(ROOT / source).as_posix()}"
        for source, target in MAPPED.items()
        for path in (ROOT / source).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {f"nnunetv2_ext/{kind}/{name}.py" for kind in ("trainers", "plans") for name in METHODS} <= expected
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected


def test_the_wheel_tells_licence_versions_and_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name.partition(".dist-info/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
        metadata = email.message_from_bytes(archive.read(files["METADATA"]))
        assert archive.read(files["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
        assert "nnunetv2_ext = nnunetv2_ext.cli:main" in archive.read(files["entry_points.txt"]).decode()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "nnunetv2>=2.8" in metadata.get_all("Requires-Dist", [])
    assert wheel.name == f"nnunetv2_ext-{metadata['Version']}-py3-none-any.whl"


def test_the_registry_loads_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """The names of the registry, from the installed files alone: mapped packages lie where imports look for them."""
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    # The current folder comes first in the path, before site-packages and the finder of an editable install.
    command = [sys.executable, "-c", WHERE_IT_LIES]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=installed)
    assert finished.returncode == 0, finished.stderr
    origins = finished.stdout.splitlines()
    assert len(origins) >= 10
    assert all(Path(origin).is_relative_to(installed) for origin in origins)
