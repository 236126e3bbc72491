"""Imports run one way: each room imports only those on the lines below it, or beside it on its own."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "nnunetv2_ext"
ROOMS = [
    "",
    "cli __main__",
    "testing",
    "profiling",
    "doctor",
    "planning",
    "training",
    "evaluation",
    "data weights registry",
    "architectures losses geometry",
    "files memory block",
    "text entry",
    "errors",
    "",
][1:-1]


def imported(path: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [getattr(node, "module", None) or node.names[0].name for node in nodes]
    return {name.split(".")[1] for name in names if name.startswith("nnunetv2_ext.")}


def test_no_import_runs_upwards() -> None:
    level = {room: number for number, rooms in enumerate(ROOMS) for room in rooms.split()}
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room in ("__init__", "discovery"):  # the lazy face and nnU-Net's finder stand above all
            continue
        upwards = {other for other in imported(path) if level[other] < level[room]}
        assert not upwards, f"{path.relative_to(ROOT)} imports {upwards}"


def test_networks_losses_and_geometry_know_no_nnunet() -> None:
    for room in ("architectures", "losses", "geometry"):
        for path in (ROOT / room).rglob("*.py"):
            assert "import nnunetv2\n" not in path.read_text() and "from nnunetv2" not in path.read_text().replace(
                "from nnunetv2_ext", ""
            ), path
