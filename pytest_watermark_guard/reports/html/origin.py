"""Where a page's numbers come from: the command and the versions that make them again."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from pytest_watermark_guard.reports.environment import versions
from pytest_watermark_guard.settings import Setting, Settings, described

# Written even where they are the defaults: they are what the numbers depend on most.
_ALWAYS = ("threshold", "seed")


class Origin(NamedTuple):
    """How the numbers of a page were made."""

    command: str  # a line for a shell
    versions: Mapping[str, str]  # of Python, the platform and the packages that matter
    date: str  # in UTC


def origin_of(
    settings: Settings, models: Sequence[str], paths: Sequence[str], others: Sequence[str] = ()
) -> Origin:
    """Say how a pytest run that ends now is made again.

    `models` are specs of the command line, `others` options of this plugin that are no settings.
    Options of others are not told: they may hold secrets.
    """
    words = ["pytest", *paths, *(f"--wm-model={spec}" for spec in models), *_options(settings)]
    words += others
    return Origin(shlex.join(words), {**versions(), "platform": platform.platform()}, today())


def today() -> str:
    """Return the date and time."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _options(settings: Settings) -> Iterator[str]:
    for name, setting in described(settings).items():
        words = _words(setting, getattr(settings, name))
        if name in _ALWAYS or words != _words(setting, setting.default):
            yield from words


def _words(setting: Setting, value: object) -> list[str]:
    """Return the options that give a setting its value; none for a value that no text names."""
    option = f"--wm-{setting.option.replace('_', '-')}"
    if setting.metavar is None:
        return [] if value == setting.default else [option]
    if isinstance(value, Mapping):
        return [f"{option}={key}={text}" for key, text in value.items()]
    if isinstance(value, tuple):
        names = [each if isinstance(each, str) else each.name for each in value]
        return [f"{option}={','.join(names)}"]
    return [f"{option}={value}"] if isinstance(value, str | Path | int | float) else []
