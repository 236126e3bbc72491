"""What every benchmark prints: the machine, markdown tables, JSON."""

import argparse
import datetime
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import markdown_table

Run = Callable[[argparse.Namespace], int]


def exit_status(parser: argparse.ArgumentParser, argv: Sequence[str] | None, run: Run) -> int:
    """What a benchmark's command line ends with; bad input in one sentence on stderr and exit status 2."""
    try:
        return run(parser.parse_args(argv))
    except InputError as error:
        print(f"{parser.prog.removeprefix('python -m ')}: {error}", file=sys.stderr)
        return 2


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where and when a figure was measured; `load` is the load average of the last minute."""
    about: dict[str, Any] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if torch.device(device).type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
        about["cudnn"] = torch.backends.cudnn.version()
    return about


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, or its architecture where the system does not tell."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows by the names of their columns as a Markdown table, numbers with three digits; a row may lack some."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    return markdown_table(header, [[shown(row.get(key, "")) for key in header] for row in rows])


def shown(value: Any) -> str:
    """A value for a table, a float with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def markdown_facts(facts: dict[str, Any]) -> str:
    """One line `key value, key value`, without the empty ones."""
    return ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None)


def in_points(difference: Mapping[str, float]) -> str:
    """The fields of an `Interval` of Dice for a table, `mean [low, high]` in points of percent."""
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
