"""README and docs: their commands parse, their links lead somewhere, and the reference is complete."""

import argparse
import importlib
import importlib.metadata
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_ext.block import NNUNET_BLOCK, PRESETS, method_defaults, resolve_block
from nnunetv2_ext.cli import COMMANDS, main
from nnunetv2_ext.registry import KINDS
from nnunetv2_ext.schema import OPTIMIZERS, SCHEDULERS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MEASURED = sorted((ROOT / "docs" / "measured").glob("*.md"))
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")), *MEASURED]
PICTURES = ROOT / "docs" / "pictures"
NNUNET_COMMANDS = {
    point.name: point
    for point in importlib.metadata.entry_points(group="console_scripts")
    if point.name.startswith("nnUNetv2_")
}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, without the indentation that a list gives them."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in block.splitlines()) for indent, block in found]


def commands(name: str) -> list[Any]:
    """Every command line of the docs whose program begins with `name`, as a test parameter."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                evaluated = re.fullmatch(r'eval "\$\((.*)\)"', line.strip())
                words = shlex.split(evaluated.group(1) if evaluated else line, comments=True)
                if words and words[0].startswith(name):
                    found.append(pytest.param(words, id=f"{page.name}: {' '.join(words)}"))
    return found


@pytest.mark.parametrize("words", commands("nnunetv2_ext"))
def test_our_commands_parse(words, monkeypatch):
    if words[1] in COMMANDS:
        monkeypatch.setattr(importlib.import_module(f"nnunetv2_ext.cli.{words[1]}"), "run", lambda args: 0)
    assert main(words[1:]) == 0


class ParsedError(Exception):
    """Raised in place of what a command does after it has parsed its arguments."""


@pytest.mark.parametrize("words", commands("nnUNetv2_"))
def test_commands_of_nnunet_parse(words, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise ParsedError

    command = NNUNET_COMMANDS[words[0]].load()
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    with pytest.raises(ParsedError):
        command()


def test_commands_named_in_the_text_exist():
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"\bnnUNetv2_\w+", text)) - {"nnUNetv2_"} <= NNUNET_COMMANDS.keys(), page.name
        assert set(re.findall(r"`nnunetv2_ext ([a-z_]+)", text)) <= COMMANDS.keys(), page.name


@pytest.mark.parametrize("words", commands("make"))
def test_make_targets_exist(words):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert words[1] in targets


@pytest.mark.parametrize("words", commands("python"))
def test_modules_and_scripts_that_are_run_exist(words):
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2]) is not None
    else:
        assert (ROOT / words[1]).is_file()


def test_the_installation_in_the_readme_works(tmp_path):
    """The block with `env`, `list` and `doctor`, as it stands there, in a home of its own."""
    (block,) = (block for block in blocks(README, "bash") if "nnunetv2_ext list" in block)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
    environment["HOME"] = str(tmp_path)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    command = ["bash", "-euo", "pipefail", "-c", block]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "MNetTrainer is found by nnU-Net" in finished.stdout
    assert (tmp_path / "nnunet" / "results").is_dir()


def test_the_readme_is_short_and_names_every_method():
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    for kind, entries in KINDS.items():
        for entry in entries:
            assert kind == "backbone" or f"`{entry.name}`" in text


def test_backbones_are_named_on_their_page_alone():
    listed, readme = (ROOT / "docs" / "reference-backbones.md").read_text(), README.read_text()
    ours = {entry.name for entry in KINDS["architecture"]}
    for entry in KINDS["backbone"]:
        assert f"`{entry.name}`" in listed
        assert entry.name in ours or f"`{entry.name}`" not in readme


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", page.read_text()):
        if target and not target.startswith("https://"):
            assert (page.parent / target).is_file(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_are_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.*)$", ((page.parent / target) if target else page).read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_the_readme():
    assert {page.name for page in PAGES if page.parent.name == "docs"} <= set(
        re.findall(r"\]\(docs/([^)#]+)\)", README.read_text())
    )


def test_every_page_of_measurements_belongs_to_another_page():
    for page in MEASURED:
        linking = [other for other in (ROOT / "docs").glob("*.md") if f"](measured/{page.name})" in other.read_text()]
        assert any(f"](../{other.name})" in page.read_text() for other in linking), page


def pictures(page: Path) -> dict[Path, str]:
    """The pictures that a page shows, with their alternative texts."""
    shown = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text())
    return {(page.parent / target).resolve(): text for text, target in shown}


def test_pictures_are_small_shown_and_told_in_words():
    shown = [picture for page in PAGES for picture in pictures(page).items()]
    assert {path for path, _ in shown} == set(PICTURES.glob("*.png"))
    for path, text in shown:
        assert len(text) > 30, path.name
        assert path.stat().st_size < 300_000, path.name


def test_every_picture_but_the_two_of_the_demo_is_drawn_by_the_script(tmp_path):
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        draw = runpy.run_path(str(PICTURES / "draw.py"))
        draw["main"].__globals__["FOLDER"] = folder
        draw["main"]([])
    first = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
    assert first.keys() | {"cases.png", "report.png"} == {path.name for path in PICTURES.glob("*.png")}


PYTHON = ROOT / "docs" / "reference-python.md"


def test_the_python_blocks_of_the_reference_run(monkeypatch):
    """One after the other in one module, whose classes can be pickled."""
    module = types.ModuleType("reference_python")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("nnUNet_extTrainer", "")
    for block in blocks(PYTHON, "python"):
        exec(compile(block, str(PYTHON), "exec"), module.__dict__)
    assert "InputError" in vars(module)


def test_the_names_of_the_python_reference_exist():
    import nnunetv2_ext

    cells = re.findall(r"^\| (`.*?) \|", PYTHON.read_text(), re.MULTILINE)
    for name in re.findall(r"`(\w+)`", " ".join(cells)):
        assert callable(getattr(nnunetv2_ext, name))


def section(text: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    return re.split(r"^## ", text.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of a section's tables by their first cell, where that is code."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {cells[0].strip("`"): cells[1:] for cells in lines if cells[0].startswith("`")}


REFERENCE = {
    **dict.fromkeys(COMMANDS, "reference-commands.md"),
    **dict.fromkeys(("make_thick", "convert_thin_thick"), "reference-volumes.md"),
    **dict.fromkeys(("import_weights", "safe_export"), "reference-weights.md"),
    **dict.fromkeys(("predict", "calibrate_roi", "ensemble"), "reference-prediction.md"),
    **dict.fromkeys(("evaluate", "compare", "look", "report"), "reference-evaluation.md"),
    **dict.fromkeys(("train", "jobs", "run"), "reference-jobs.md"),
    "audit": "reference-audit.md",
    "container": "reference-container.md",
    "profile": "reference-profile.md",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_reference_holds_every_argument(command):
    parser = argparse.ArgumentParser()
    importlib.import_module(f"nnunetv2_ext.cli.{command}").add_arguments(parser)
    documented = rows(section((ROOT / "docs" / REFERENCE[command]).read_text(), command))
    expected = {
        "`, `".join(action.option_strings or [action.dest]): action
        for action in parser._actions
        if action.dest != "help"
    }
    assert documented.keys() == expected.keys()
    for name, action in expected.items():
        default = documented[name][0]
        if action.required:
            assert default == "required"
        elif action.default is False:
            assert default == "off"
        elif action.default is not None:
            values = action.default if isinstance(action.default, list) else [action.default]
            assert default == " ".join(map(str, values))


def test_the_reference_holds_no_other_command():
    for page in {*REFERENCE.values()}:
        headings = re.findall(r"^## (.*)$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
        assert [heading for heading in headings if not heading[0].isupper()] == [
            command for command in COMMANDS if REFERENCE[command] == page
        ]


def leaves(block: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def columns(text: str) -> dict[str, dict[str, str]]:
    """The columns of a section's first table: the heading, then the cells by the row's first cell."""
    header = next(line for line in text.splitlines() if line[:1] == "|")
    names = [cell.strip(" `") for cell in header.strip("|").split("|")][1:]
    return {name: {key: cells[i] for key, cells in rows(text).items()} for i, name in enumerate(names)}


TRAINING_BLOCK = ROOT / "docs" / "reference-training-block.md"
BY_NAME = re.compile(r"(optimizer|scheduler)\.(?!name)")


def test_the_training_block_is_documented_with_its_defaults():
    documented = rows(section(TRAINING_BLOCK.read_text(), "Keys"))
    expected = {key: value for key, value in leaves(NNUNET_BLOCK) if not BY_NAME.match(key)}
    assert {key: json.loads(cells[0]) for key, cells in documented.items()} == expected


@pytest.mark.parametrize(
    ("heading", "group", "table"),
    [("Optimizers", "optimizer", OPTIMIZERS), ("Schedulers", "scheduler", SCHEDULERS)],
)
def test_the_keys_of_each_optimizer_and_scheduler_are_documented_with_their_defaults(heading, group, table):
    documented = columns(section(TRAINING_BLOCK.read_text(), heading))
    found = {
        name: {key: json.loads(cell) for key, cell in documented[name].items() if cell != "-"}
        for name in documented.keys() - {"values", "meaning"}
    }
    assert found == {
        name: {f"{group}.{key}": setting.default for key, setting in settings.items()}
        for name, settings in table.items()
    }


@pytest.mark.parametrize(("heading", "group"), [("Thin-thick", "thin_thick"), ("Detector", "detector")])
def test_the_keys_of_a_method_are_documented_with_their_defaults(heading, group):
    documented = rows(section(TRAINING_BLOCK.read_text(), heading))
    found = {key: json.loads(cells[0]) for key, cells in documented.items()}
    assert found == dict(leaves({group: method_defaults(group)}))


def test_the_presets_are_documented():
    documented = columns(section(TRAINING_BLOCK.read_text(), "Presets"))
    found = {name: {key: json.loads(cell) for key, cell in column.items()} for name, column in documented.items()}
    assert found == {
        name: {key: value for key, value in leaves(block) if not BY_NAME.match(key)} for name, block in PRESETS.items()
    }


def test_the_training_block_shown_is_that_of_mnet():
    from nnunetv2_ext.trainers.mnet import MNetTrainer

    (block,) = blocks(TRAINING_BLOCK, "json")
    assert json.loads(block) == resolve_block({}, MNetTrainer.published_block)


def test_flags_of_the_training_block_are_documented():
    parser = argparse.ArgumentParser()
    importlib.import_module("nnunetv2_ext.cli.schedule").add_block_arguments(parser)
    flags = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
    assert {cells[0].strip("`") for cells in rows(section(TRAINING_BLOCK.read_text(), "Changing it")).values()} == flags
    assert flags >= {"--preset", "--epochs", "--lr", "--freeze-backbone", "--thick-weight", "--thick-image"}
