"""What a container installs: versions and licences from metadata of every kind."""

from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from nnunetv2_ext.container.software import described, imports_of, needed
from nnunetv2_ext.errors import InputError


class Told(Distribution):
    """A distribution of which only the metadata are there."""

    def __init__(self, text: str):
        self.text = text

    def read_text(self, filename: str) -> str | None:
        return self.text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return Path(path)


def told(*lines: str, version: str = "1.2") -> Told:
    return Told("\n".join(["Metadata-Version: 2.1", "Name: A.Thing_x", f"Version: {version}", *lines, "", ""]))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["License-Expression: MIT AND BSD-3-Clause", "License: other"], "MIT AND BSD-3-Clause"),
        (["License: MIT"], "MIT"),
        (["License: UNKNOWN", "Classifier: License :: OSI Approved :: BSD License"], "BSD License"),
        (
            ["License: Copyright (c) 2001\n  All rights", "Classifier: License :: OSI Approved :: BSD License"],
            "BSD License",
        ),
        (["License: Copyright (c) 2001\n  All rights"], "Copyright (c) 2001"),
        (["Classifier: License :: Other/Proprietary License"], "Other/Proprietary License"),
        (["Classifier: License :: OSI Approved", "Classifier: License :: OSI Approved :: MIT License"], "MIT License"),
        ([], "see its files"),
    ],
)
def test_licences_in_the_words_of_the_metadata(lines: list[str], expected: str) -> None:
    assert described(told(*lines)).licence == expected


@pytest.mark.parametrize(
    ("version", "expected"), [("2.14.1", "2.14.1"), ("2.6.0+cu124", "2.6.0"), ("1.0.post1", "1.0.post1")]
)
def test_a_pin_is_what_an_index_has(version: str, expected: str) -> None:
    assert described(told(version=version))[:2] == ("a-thing-x", expected)


def test_all_that_is_needed_and_no_more() -> None:
    names = {one.name for one in needed([nn.Linear(1, 1)])}
    assert {"torch", "sympy", "nnunetv2", "pandas", "python-dateutil"} <= names
    assert not {"pytest", "monai", "nnunetv2-ext"} & names


def test_the_package_of_a_layer_is_needed_too() -> None:
    layer = type("Layer", (nn.Linear,), {"__module__": "hypothesis.layers"})(1, 1)
    assert "hypothesis" in {one.name for one in needed([nn.Sequential(layer)])}


def test_what_is_required_and_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2_ext.container import software

    asked: list[str] = []

    def distribution(name: str) -> Distribution:
        asked.append(name)
        if len(asked) == 1:
            return told("Requires-Dist: not-here>=1", "Requires-Dist: of-windows; sys_platform == 'win32'")
        raise software.PackageNotFoundError(name)

    monkeypatch.setattr(software, "distribution", distribution)
    with pytest.raises(InputError, match=r"no distribution not-here here.*run pip install not-here"):
        needed([])


@pytest.mark.parametrize(("version", "pinned"), [("2.6.0", True), ("2.6.0+cu124", False), ("2.6.0+cpu", False)])
def test_what_comes_with_another_build_of_pytorch_is_not_pinned(
    monkeypatch: pytest.MonkeyPatch, version: str, pinned: bool
) -> None:
    from nnunetv2_ext.container import software

    of_torch = ["nvidia-cublas-cu12", "cuda-bindings", "triton"]
    requires = {"nnunetv2-ext": ["torch", "numpy"], "torch": of_torch}

    def distribution(name: str) -> Distribution:
        lines = [f"Requires-Dist: {one}" for one in requires.get(name, [])]
        made = told(*lines, version=version if name == "torch" else "1.2")
        made.text = made.text.replace("A.Thing_x", name)
        return made

    monkeypatch.setattr(software, "distribution", distribution)
    assert {one.name for one in needed([])} == {"torch", "numpy", *(of_torch if pinned else [])}


@pytest.mark.parametrize(
    ("line", "words"),
    [("import not_here", "No module named 'not_here'"), ("import elsewhere_of_mine", "elsewhere_of_mine.py")],
)
def test_a_trainer_that_imports_what_stays_behind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    path, copied = tmp_path / "path", tmp_path / "copied"
    nnunet = copied / "nnunetv2" / "training" / "nnUNetTrainer"  # in the place of nnU-Net, which takes long
    for folder in (path, nnunet):
        folder.mkdir(parents=True)
    (nnunet / "nnUNetTrainer.py").write_text("nnUNetTrainer = 0\n")
    (copied / "nnunetv2" / "__init__.py").touch()
    (path / "elsewhere_of_mine.py").touch()
    (copied / "mine.py").write_text(line + "\n")
    monkeypatch.setenv("PYTHONPATH", str(path))
    with pytest.raises(InputError, match=r"the trainer mine, which cannot be imported elsewhere \(.*" + words):
        imports_of(["mine"], copied)
