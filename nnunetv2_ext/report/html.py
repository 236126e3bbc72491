"""A page from its template: one look, everything escaped, and a policy under which nothing is loaded from elsewhere."""

from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from nnunetv2_ext import __version__
from nnunetv2_ext.evaluation.palette import COLOURS
from nnunetv2_ext.files import unwritable, write_beside
from nnunetv2_ext.report.viewer import CSP, HOW_TO_ADD, ViewedCase, Viewer, viewer
from nnunetv2_ext.text import shortened


def render(template: str, content: Mapping[str, Any], *, package: str = __package__) -> str:
    """The page; every text in it is escaped but what is Markup.

    Args:
        template: its file name; it extends `base.html`, which asks for `title`, `note`, `lacking` and `viewed`.
        package: where the template lies.
    """
    files = resources.files(__package__)
    style, script = (files.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, "") for name in (package, __package__)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = lambda name: shortened(name, 60)
    return environment.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        policy=CSP,
        colours=COLOURS,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        versions=[f"nnunetv2_ext {__version__}", f"nnunetv2 {metadata.version('nnunetv2')}"],
        **content,
    )


def viewed(cases: list[ViewedCase]) -> dict[str, Any]:
    """What a page holds of the viewer: its parts, or how to add them where they are not installed."""
    parts = viewer(cases)
    return {
        "viewer": parts and Viewer(Markup(parts.head), Markup(parts.body), parts.licence),
        "how_to_add_viewer": HOW_TO_ADD if cases and parts is None else "",
    }


def write_page(page: str, path: Path) -> None:
    """Write a page, whole or not at all; a name of bytes that are no text is shown by them.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write_beside(lambda beside: beside.write_text(page, encoding="utf-8", errors="backslashreplace"), path)
    except OSError as error:
        raise unwritable(path, error) from None
