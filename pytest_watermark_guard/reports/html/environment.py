"""How templates become a page of one file: no request to anywhere, no code from outside."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pytest_watermark_guard.reports.text import printable
from pytest_watermark_guard.version import __version__

_PACKAGE = "pytest_watermark_guard.reports.html"


def render_page(template: str, **values: Any) -> str:
    """Return a page, whose content security policy names its style and script."""
    style, script = (
        Markup(files(_PACKAGE).joinpath("templates", name).read_text("utf-8"))
        for name in ("page.css", "page.js")
    )
    return _environment().get_template(template).render(
        **values,
        version=__version__,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )  # fmt: skip


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Control characters and turns of writing direction are shown, not obeyed.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["percent"] = lambda share: "-" if share is None else f"{share:.1%}"
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
