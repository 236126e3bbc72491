"""Importing the package and the light commands stay light: no torch, no nnU-Net."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "nnunetv2", "numpy", "SimpleITK")


@pytest.mark.parametrize(
    "statement",
    [
        "import nnunetv2_ext",
        "import nnunetv2_ext; nnunetv2_ext.register()",
        "from nnunetv2_ext.cli import main; main(['env'])",
        "from nnunetv2_ext.cli import main; main(['list'])",
        "import nnunetv2_ext.registry, nnunetv2_ext.files, nnunetv2_ext.block",
    ],
)
def test_stays_light(statement, tmp_path):
    program = f"{statement}\nimport sys\nprint('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert finished.stdout.splitlines()[-1] == "heavy: []"


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    import nnunetv2_ext

    assert version("nnunetv2_ext") == nnunetv2_ext.__version__
