"""Sphinx's settings: ``tox run -e docs`` builds the pages, and every warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_watermark_guard import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "pytest-watermark-guard"
author = "The pytest-watermark-guard authors"
copyright = author  # noqa: A001 -- Sphinx's name
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "error_messages", "notebooks"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pytest-watermark-guard {__version__}"
myst_heading_anchors = 3  # links to headings, as README files have them
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say them, in words
numpydoc_show_class_members = False  # autodoc lists them
suppress_warnings = ["config.cache"]
