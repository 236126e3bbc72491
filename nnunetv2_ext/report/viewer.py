"""The interactive view of cases in an HTML page: NiiVue, from the package `ipyniivue` of the extra `report`."""

import base64
import gzip
import html
import importlib.metadata
import importlib.util
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.report.figure import Spacing, label_styles
from nnunetv2_ext.report.volumes import pack

HOW_TO_ADD = 'The interactive 3D view needs one more package: pip install "nnunetv2_ext[report]".'
"""What the page says in place of the view."""
CSP = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""The content security policy under which page and view work: no request leaves the file."""


class ViewedCase(NamedTuple):
    """A case to view. Arrays are (Z, Y, X) on one grid, upright as LPS; `spacing` in mm in the same order.

    `labels` holds the values of each label or region by name, the same names in the same order in every case.
    """

    title: str
    image: np.ndarray
    reference: np.ndarray | None
    prediction: np.ndarray
    spacing: Spacing
    labels: Mapping[str, Sequence[int]]


class Viewer(NamedTuple):
    """Parts of a page: `head` goes into its head, `body` where the view shall stand, `licence` is plain text."""

    head: str
    body: str
    licence: str


def viewer(cases: Sequence[ViewedCase]) -> Viewer | None:
    """The view of some cases; None without cases, or where `ipyniivue` is not installed (see `HOW_TO_ADD`)."""
    package = importlib.util.find_spec("ipyniivue")  # found, not imported: it would start half of Jupyter
    if package is None or package.origin is None or not cases:
        return None
    niivue = _niivue(Path(package.origin).parent / "static" / "widget.js")
    return Viewer(f"<style>{_ours('viewer.css')}</style>", _body(cases, niivue), _licence())


def _niivue(widget: Path) -> str:
    """NiiVue's script, which leaves its classes in `window.niivue`.

    The widget holds the whole module as a percent-encoded string, for pages that users save from it.
    """
    text = widget.read_text(encoding="utf-8") if widget.is_file() else ""
    longest = max(re.findall(r'"([\w%.!~*\'()-]{100000,})"', text, re.ASCII), key=len, default="")
    module, export, names = urllib.parse.unquote(longest).rpartition("export{")
    if not export or "drawRimOpacity" not in module:  # ipyniivue 2.3 has no module, that of 2.4.0 draws no lines
        version = importlib.metadata.version("ipyniivue")
        remedy = "run `pip install ipyniivue==2.4.4`, or leave the interactive view out with --viewer 0"
        raise InputError(f"ipyniivue {version}, whose NiiVue cannot be used", "2.4.4", remedy)
    exports = re.sub(r"(\w+) as (\w+)", r"\2:\1", names.rstrip("; \n").removesuffix("}"))
    return f'(() => {{"use strict";{module}window.niivue = {{{exports}}};}})();'


def _body(cases: Sequence[ViewedCase], niivue: str) -> str:
    labels = [{"name": name, "colour": style.colour} for name, style in label_styles(cases[0].labels).items()]
    options = [f'<option value="{order}">{html.escape(case.title)}</option>' for order, case in enumerate(cases)]
    legend = [
        f'<li><label><input type="checkbox" checked><span style="background: {label["colour"]}"></span>'
        f"{html.escape(label['name'])}</label></li>"
        for label in labels
    ]
    # In a script, "<" could end it.
    data = json.dumps({"labels": labels, "cases": [_case(case) for case in cases]}).replace("<", "\\u003c")
    packed = base64.b64encode(gzip.compress(niivue.encode(), 9, mtime=0)).decode()
    return "\n".join(
        [
            _ours("viewer.html").format(options="".join(options), legend="".join(legend)),
            f'<script type="application/json" id="viewer-data">{data}</script>',
            f'<script type="text/plain" id="viewer-niivue">{packed}</script>',
            f"<script>{_ours('viewer.js')}</script>",
        ]
    )


def _case(case: ViewedCase) -> dict[str, Any]:
    packed = pack(case.image, case.reference, case.prediction, case.spacing, case.labels)
    note = f"{case.title}: voxels of {_millimetres(packed.spacing)}"
    if not np.allclose(packed.spacing, case.spacing):
        note += f" (in the file: {_millimetres(case.spacing)})"
    if not np.allclose(np.multiply(packed.shape, packed.spacing), np.multiply(case.image.shape, case.spacing)):
        note += ", cropped to the labels"
    volumes = {"image": packed.image, "reference": packed.reference, "prediction": packed.prediction}
    return {**volumes, "note": note + ".", "place": packed.place}


def _millimetres(spacing: Spacing) -> str:
    return " x ".join(f"{step:.3g}" for step in spacing) + " mm"


def _licence() -> str:
    """NiiVue's licence as the package ships it, and those of the libraries bundled in it."""
    shipped = [path for path in importlib.metadata.files("ipyniivue") or () if path.name == "LICENSE"]
    return "\n".join([*(path.read_text(encoding="utf-8") for path in shipped), _ours("viewer-licences.txt")])


def _ours(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
