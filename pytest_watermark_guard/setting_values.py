"""Values of settings: read from text, and checked.

A check takes a setting's name and a value; it returns the value as it is kept, or raises
`SettingsError`. Read when pytest starts: nothing heavy is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeGuard

from pytest_watermark_guard.errors import SettingsError, did_you_mean


def parse_number(name: str, text: Any) -> float:
    """Read a number."""
    try:
        return float(text)
    except (TypeError, ValueError):
        raise SettingsError(f"{name} must be a number, got {text!r}") from None


def parse_integer(name: str, text: Any) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except (TypeError, ValueError):
        raise SettingsError(f"{name} must be an integer, got {text!r}") from None


def parse_names(name: str, text: str | list[str]) -> tuple[str, ...]:
    """Read names, separated by commas or spaces."""
    # Names with spaces are separated by commas.
    entries = text if isinstance(text, list) else [text]
    return tuple(
        part.strip()
        for entry in entries
        for part in (entry.split(",") if "," in entry else entry.split())
        if part.strip()
    )


def parse_reasons(name: str, text: str | list[str]) -> dict[str, str]:
    """Read lines of ``UNIT = REASON``."""
    reasons = {}
    for line in [text] if isinstance(text, str) else text:
        unit, equals, reason = line.partition("=")
        if not equals:
            raise SettingsError(
                f"{name}: expected LAYER:UNIT = REASON, for instance 'logits:carton = shown to be "
                f"harmless', got {line!r}"
            )
        reasons[unit.strip()] = reason.strip()
    return reasons


def user_path(what: str, text: str | os.PathLike[str]) -> Path:
    """Read a path that a user wrote; `what` is for the message if its ``~`` means no folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise SettingsError(
            f"{what}: {os.fspath(text)!r} begins with the home folder of a user, and none is known "
            "here; write the path in full"
        ) from None


IniType = Literal["args", "float", "int", "linelist"]

PARSERS: Mapping[IniType, Callable[[str, Any], Any]] = {
    "args": parse_names,
    "float": parse_number,
    "int": parse_integer,
    "linelist": parse_reasons,
}


def check_threshold(threshold: float) -> float:
    """Return a threshold on d, also one of NumPy's, as Python's.

    Raises
    ------
    SettingsError
        If it is not in (0.5, 1].
    """
    if not is_number(threshold) or not 0.5 < threshold <= 1:
        raise SettingsError(
            f"threshold must be a number in (0.5, 1], got {threshold!r}: d = max(A, 1 - A) is "
            "never below 0.5, which is chance"
        )
    return float(threshold)


def plain_integer(name: str, value: object, least: int) -> int:
    """Return a whole number, also one of NumPy's, as Python's.

    Raises
    ------
    SettingsError
        If it is something else, or less than `least`.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise SettingsError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(value)


def split_allowed(entry: str) -> tuple[str | None, str]:
    """Split ``layer:unit`` or ``unit`` of an allowed unit into (layer or None, unit)."""
    layer, colon, unit = entry.partition(":")
    return (layer.strip(), unit.strip()) if colon else (None, entry.strip())


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a real number, also one of NumPy's, and not True or False."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_images(name: str, value: Any) -> Any:
    """Refuse an empty name of a folder."""
    if isinstance(value, str) and not value:
        raise SettingsError(f"{name} is empty; name a folder, or leave it out")
    return value


def check_several(name: str, value: Any) -> tuple[Any, ...]:
    """Return a tuple, also of one name or scenario alone."""
    # One name or scenario alone is as good as a sequence of one.
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def check_layers(name: str, value: Any) -> tuple[str, ...]:
    """Refuse what are no names of layers, and one that comes twice."""
    layers = check_several(name, value)
    if not layers or not all(isinstance(layer, str) and layer for layer in layers):
        raise SettingsError(
            f"{name} must be one or more of 'logits', 'features' and module names, got {layers!r}"
        )
    if len(set(layers)) < len(layers):
        raise SettingsError(f"{name}: each can be asked for once, got {layers!r}")
    return layers


def check_limit(name: str, value: float, most: float) -> float:
    """Return a number in [0, `most`)."""
    if not is_number(value) or not 0 <= value < most:
        raise SettingsError(f"{name} must be a number in [0, {most}), got {value!r}")
    return float(value)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Refuse what is none of the `choices`."""
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise SettingsError(f"{name} must be one of {', '.join(choices)}, got {value!r}{hint}")
    return value


def check_allow(name: str, value: Mapping[str, str]) -> Mapping[str, str]:
    """Refuse entries that mean no unit, or give no reason."""
    if not isinstance(value, Mapping):
        raise SettingsError(
            f"{name} must map units to reasons, for instance {{'logits:carton': 'shown to be "
            f"harmless'}}, got {type(value).__name__}"
        )
    for entry, reason in value.items():
        layer, unit = split_allowed(entry)
        if not unit or layer == "":
            raise SettingsError(f"{name}: expected LAYER:UNIT or a class name, got {entry!r}")
        if layer is None and unit.isdigit():
            raise SettingsError(f"{name}: unit {unit} of which layer? Write 'features:{unit}'")
        if not isinstance(reason, str) or not reason.strip():
            raise SettingsError(f"{name}: {entry!r} needs a reason, for whoever reads it in a year")
    return value


def check_early_stop(name: str, value: float) -> float:
    """Return a chance of error that a gate can have."""
    if not is_number(value) or not 0 <= value < 0.5:
        raise SettingsError(
            f"{name} must be a probability in [0, 0.5): how often an early verdict may "
            f"differ from the full run's (0: never stop early), got {value!r}"
        )
    return float(value)


def check_warn(name: str, value: float) -> float:
    """Return a number that d can be."""
    if not is_number(value) or not 0.5 < value <= 1:
        raise SettingsError(f"{name} must be a number in (0.5, 1], got {value!r}")
    return float(value)


def check_switch(name: str, value: bool) -> bool:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise SettingsError(f"{name} must be True or False, got {value!r}")
    return value
