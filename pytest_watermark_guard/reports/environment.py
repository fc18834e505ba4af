"""The versions that a probe's numbers depend on."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "pytest-watermark-guard",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "numpy",
    "pillow",
    "pytest",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed, by name."""
    return dict(_versions())


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    installed = [("Python", platform.python_version())]
    for name in _PACKAGES:
        try:
            installed.append((name, version(name)))
        except PackageNotFoundError:
            continue  # an optional one
    return tuple(installed)
