"""The versions that a probe's numbers depend on."""

from __future__ import annotations

import platform
from contextlib import suppress
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
    installed = {"Python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # an optional one
            installed[name] = version(name)
    return installed
