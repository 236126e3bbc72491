"""Imports run one way: each room imports only those on the lines below it, or beside it on its own."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "nnunetv2_ext"
ROOMS = [
    "cli __main__",
    "container jobs",
    "testing",
    "profiling",
    "doctor",
    "audit",
    "report",
    "inference",
    "planning",
    "training",
    "evaluation",
    "data weights registry",
    "architectures losses geometry",
    "locks",
    "files memory block processes resident_memory",
    "schema text entry",
    "errors",
]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its head or in a function, by its dotted name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_no_import_runs_upwards() -> None:
    level = {room: number for number, rooms in enumerate(ROOMS) for room in rooms.split()}
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room in ("__init__", "discovery"):  # the lazy face and nnU-Net's finder stand above all
            continue
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("nnunetv2_ext.")} & level.keys()
        upwards = {other for other in ours if level[other] < level[room]}
        assert not upwards, f"{path.relative_to(ROOT)} imports {upwards}"


def test_networks_losses_and_geometry_know_no_nnunet() -> None:
    for room in ("architectures", "losses", "geometry"):
        for path in (ROOT / room).rglob("*.py"):
            assert "nnunetv2" not in {name.split(".")[0] for name in imported(path)}, path
