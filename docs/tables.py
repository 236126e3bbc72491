"""Writes the reference tables of docs/ from the code: `python docs/tables.py`; `--check` names the stale pages.

On a page, a table stands between the lines `<!-- table: NAME -->` and `<!-- end -->`.
"""

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2_ext.architectures.backbones import BACKBONES
from nnunetv2_ext.architectures.backbones.record import Backbone, Shape, size_rule, strides_argument
from nnunetv2_ext.audit.findings import KINDS
from nnunetv2_ext.audit.tables import COLUMNS, OF_MAP, STYLE, WRONG
from nnunetv2_ext.block import PRESETS, all_settings
from nnunetv2_ext.cli import COMMANDS
from nnunetv2_ext.cli.options import meaning_and_default
from nnunetv2_ext.evaluation.metrics import METRICS, measure
from nnunetv2_ext.schema import METHODS, OPTIMIZERS, SCHEDULERS, Setting
from nnunetv2_ext.testing.shapes import shapes
from nnunetv2_ext.text import markdown_table

FOLDER = Path(__file__).parent
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
OF_ONE_NAME = re.compile(r"(optimizer|scheduler)\.(?!name)")
"""Keys that depend on the name of the optimizer or scheduler."""

unaligned = partial(markdown_table, aligned=False)


def backbones() -> str:
    """One row for each record."""
    header = ["name", "network", "paper", "needs", "divisor", "minimum", "outputs", "parameters", "arguments"]
    return unaligned(header, map(_backbone, BACKBONES))


def _backbone(record: Backbone) -> list[str]:
    extra = f"`{record.extra}`" if record.extra else "-"
    parameters = record.parameters
    if record.parameters_patch is not None:
        parameters += f" at {' x '.join(map(str, record.parameters_patch))}"
    return [f"`{record.name}`", record.summary, record.paper, extra, *_sizes(record), parameters, record.arguments]


def _sizes(record: Backbone) -> list[str]:
    """Divisor, minimum and number of outputs, in words where they follow from the plans."""
    if record.strides is strides_argument:
        fixed = [f" ({_numbers(size)} without plans)" for size in size_rule(record)] if record.defaults else ["", ""]
        outputs = {levels: len(record.outputs([(2, 2, 2)] * levels)) for levels in (3, 4)}
        told = str(outputs[3]) if outputs[3] == outputs[4] else f"stages less {3 - outputs[3]}"
        return [f"product of the planned strides{fixed[0]}", f"the divisor, twice it in x{fixed[1]}", told]
    divisor, minimum = size_rule(record)
    if record.strides is None:  # a network that keeps our contract tells its outputs itself
        import torch

        with torch.device("meta"):
            outputs_of_it = len(record.load()(1, 3).deep_supervision_shapes(minimum))
    else:
        outputs_of_it = len(record.outputs(record.strides(record.defaults)))
    return [_numbers(divisor), _numbers(minimum), str(outputs_of_it)]


def _numbers(shape: Shape) -> str:
    return ", ".join(map(str, shape))


def origin() -> str:
    """One row for each record of a network whose code was published."""
    rows = []
    for record in BACKBONES:
        if record.source:
            ours = record.path.startswith("nnunetv2_ext.")
            by = " on MONAI's blocks" if ours and record.extra == "monai" else ""
            here = f"written anew from its description{by}" if ours else "that code, as it is"
            link = f"[{record.source}](https://github.com/{record.source})"
            rows.append([f"`{record.name}`", link, record.licence, here])
    return unaligned(["name", "published code", "its licence", "here"], rows)


def keys(group: str | None = None) -> str:
    """Keys of the training block: those of a method's group, or those of every trainer."""
    rows = []
    for path, setting in all_settings().items():
        parent = path.rpartition(".")[0]
        if parent == group if group else parent not in METHODS and not OF_ONE_NAME.match(path):
            rows.append([f"`{path}`", json.dumps(setting.default), *_values(setting)])
    return unaligned(["key", "default", "values", "meaning"], rows)


def _values(setting: Setting) -> list[str]:
    return [setting.values.expected, setting.meaning + (f"; null: {setting.null}" if setting.null else "")]


def named(group: str, table: Mapping[str, Mapping[str, Setting]]) -> str:
    """The keys of each optimizer or scheduler, with their defaults; -: not one of its keys."""
    rows = []
    for path, setting in all_settings().items():
        parent, _, key = path.rpartition(".")
        if parent == group and OF_ONE_NAME.match(path):
            defaults = (json.dumps(of_one[key].default) if key in of_one else "-" for of_one in table.values())
            rows.append([f"`{path}`", *defaults, *_values(setting)])
    return unaligned(["key", *table, "values", "meaning"], rows)


def presets() -> str:
    """What each preset sets, without the keys of its optimizer and scheduler."""
    rows = []
    for path in all_settings():
        values = [_entry(preset, path) for preset in PRESETS.values()]
        if not OF_ONE_NAME.match(path) and any(value is not KeyError for value in values):
            rows.append([f"`{path}`", *map(json.dumps, values)])
    return unaligned(["key", *PRESETS], rows)


def _entry(block: Mapping[str, Any], path: str) -> Any:
    """The block's value at a path, or KeyError where it has none."""
    group, _, key = path.rpartition(".")
    return (block.get(group, {}) if group else block).get(key, KeyError)


def block_flags() -> str:
    """Which flag sets which key."""
    rows = [["`optimizer`, `scheduler` and all others of a [preset](#presets)", "`--preset`"]]
    for path, setting in all_settings().items():
        if setting.flag:
            rows.append([f"`{path}`" + " (sets true)" * (setting.values.kind is bool), f"`{setting.flag}`"])
    return unaligned(["key", "flag of both commands"], rows)


def flags(command: str) -> str:
    """The arguments of a command, one table for each group of its help."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"nnunetv2_ext.cli.{command}").add_arguments(parser)
    tables = []
    for group in parser._action_groups:
        rows = [_flag(action) for action in group._group_actions if action.dest != "help"]
        if not rows:
            continue
        if group.title not in (None, "options", "positional arguments"):
            tables.append(f"{group.title[0].upper()}{group.title[1:]}:")
        name = "argument" if group.title == "positional arguments" else "flag"
        tables.append(unaligned([name, "default", "meaning"], rows))
    return "\n\n".join(tables)


def _flag(action: argparse.Action) -> list[str]:
    meaning, default = meaning_and_default(action)
    if action.choices is not None:
        *first, last = map(str, action.choices)
        meaning = f"{', '.join(first)} or {last}: {meaning}"
    return [", ".join(f"`{name}`" for name in action.option_strings or [action.dest]), default, meaning]


def metrics() -> str:
    """One row for each metric."""
    rows = ([f"`{name}`", metric.unit or "-", metric.better or "-", metric.meaning] for name, metric in METRICS.items())
    return unaligned(["metric", "unit", "better", "meaning"], rows)


def known_shapes() -> str:
    """Each pair of masks with its surface metrics, and what the true surfaces have."""
    rows = []
    for pair in shapes():
        measured = measure(pair.reference, pair.prediction, pair.spacing)
        values = (measured[metric].value for metric in ("HD", "HD95", "ASSD", "NSD"))
        cells = [
            f"{value:.3f}" + ("" if exact is None else f" ({exact:.3f})")
            for value, exact in zip(values, pair.exact, strict=True)
        ]
        rows.append([pair.name, " x ".join(f"{one:g}" for one in pair.spacing), *cells])
    return unaligned(["masks", "spacing, mm", "HD", "HD95", "ASSD", "NSD at 1 mm"], rows)


def audit_columns() -> str:
    """One row for each column of audit.csv."""
    rows = [["`case`, `label`", "names; regions count as labels"]]
    rows.append(["`listed_as`", f"{WRONG}, {STYLE}, or empty: of the case"])
    rows += [[f"`{column.name}`", column.meaning] for column in COLUMNS]
    rows += [[f"`{name}`", f"of a map: {meaning}"] for name, meaning in OF_MAP.items()]
    return unaligned(["column", "meaning"], rows)


def kinds_of_findings() -> str:
    """One row for each kind of finding that needs no model."""
    return unaligned(["finding", "what it is"], [[kind, meaning] for kind, meaning in KINDS.items()])


TABLES: dict[str, Callable[[], str]] = {
    "backbones": backbones,
    "origin": origin,
    "metrics": metrics,
    "shapes": known_shapes,
    "keys of the training block": keys,
    "optimizers": partial(named, "optimizer", OPTIMIZERS),
    "schedulers": partial(named, "scheduler", SCHEDULERS),
    **{f"keys of {group}": partial(keys, group) for group in METHODS},
    "presets": presets,
    "flags of the training block": block_flags,
    "columns of audit.csv": audit_columns,
    "kinds of findings": kinds_of_findings,
    **{f"flags of {command}": partial(flags, command) for command in COMMANDS},
}


def rendered(page: Path) -> str:
    """What a page reads with its tables made anew."""
    return TABLE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", page.read_text(encoding="utf-8"))


def stale_pages() -> list[Path]:
    """The pages whose tables differ from what the code says."""
    return [page for page in sorted(FOLDER.glob("*.md")) if rendered(page) != page.read_text(encoding="utf-8")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a page is stale")
    check = parser.parse_args().check
    stale = stale_pages()
    for page in stale:
        if not check:
            page.write_text(rendered(page), encoding="utf-8")
        print(f"{page.name}: {'stale, run python docs/tables.py' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
