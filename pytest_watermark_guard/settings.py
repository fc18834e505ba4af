"""What a probe and a gate can be told: one frozen dataclass, the same from every door.

Read when pytest starts: nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.watermarks.scenarios import SCENARIOS, AnyScenario

PRECISIONS = ("auto", "float32", "bfloat16")
ENGINES = ("ray",)


@dataclass(frozen=True)
class Settings:
    """Settings of a probe and its gate.

    Attributes
    ----------
    images
        None means the built-in set.
    threshold, scenarios, layers, device, precision, max_images, seed, allow
        As for `probe` and `assert_not_watermark_sensitive`.
    early_stop : float
        Chance at which a gate that stops before the last image may come to another verdict than
        with all of them; 0 never stops early.
    control : bool
        Whether to probe with scrambled marks as well.
    cache : bool
        Whether to keep activations, and to use those that were kept.
    engine : str or None
        Which processes run the models; None: this one.

    Raises
    ------
    SettingsError
        If a value cannot be used.
    """

    images: Any = None
    threshold: float = 0.95
    scenarios: tuple[str | AnyScenario, ...] = tuple(SCENARIOS)
    layers: tuple[str, ...] = ("logits", "features")
    device: str = "auto"
    precision: str = "auto"
    max_images: int | None = None
    seed: int = 17
    allow: Mapping[str, str] = field(default_factory=dict)
    early_stop: float = 1e-3
    control: bool = False
    cache: bool = True
    engine: str | None = None

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        object.__setattr__(self, "threshold", float(self.threshold))
        # One name or scenario alone is as good as a sequence of one.
        for name in ("scenarios", "layers"):
            value = getattr(self, name)
            listed = tuple(value) if isinstance(value, list | tuple) else (value,)
            object.__setattr__(self, name, listed)
        if not self.layers or not all(isinstance(layer, str) and layer for layer in self.layers):
            raise SettingsError(
                f"layers must be one or more of 'logits', 'features' and module names, "
                f"got {self.layers!r}"
            )
        if len(set(self.layers)) < len(self.layers):
            raise SettingsError(f"layers: each can be asked for once, got {self.layers!r}")
        object.__setattr__(self, "device", str(self.device))
        if self.precision not in PRECISIONS:
            raise SettingsError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        if self.engine is not None and self.engine not in ENGINES:
            raise SettingsError(
                f"engine must be one of {', '.join(ENGINES)}, or None, got {self.engine!r}"
            )
        if isinstance(self.images, str) and not self.images:
            raise SettingsError("images is empty; name a folder, or leave it out")
        object.__setattr__(self, "seed", plain_integer("seed", self.seed, least=0))
        if self.max_images is not None:
            plain = plain_integer("max_images", self.max_images, least=2)
            object.__setattr__(self, "max_images", plain)
        _check_allow(self.allow)
        if not _is_number(self.early_stop) or not 0 <= self.early_stop < 0.5:
            raise SettingsError(
                "early_stop must be a probability in [0, 0.5): how often an early verdict may "
                f"differ from the full run's (0: never stop early), got {self.early_stop!r}"
            )
        object.__setattr__(self, "early_stop", float(self.early_stop))
        for name in ("control", "cache"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def override(self, **given: Any) -> Settings:
        """Return these settings with every one that is given (not None) replaced.

        Raises
        ------
        SettingsError
            If there is no setting of that name, or its value cannot be used.
        """
        known = [f.name for f in fields(self)]
        for name in given:
            if name not in known:
                raise SettingsError(f"unknown setting {name!r}; known are {', '.join(known)}")
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def parse_setting(name: str, text: Any) -> Any:
    """Read a setting's value from the command line (text) or a configuration file.

    Parameters
    ----------
    name : str
    text : str, list of str, int or float
        TOML gives numbers and lists where ini files give text.

    Raises
    ------
    SettingsError
        If the text is no value of that setting.
    """
    if name == "allow":
        lines = [text] if isinstance(text, str) else text
        return dict(_parse_allow(line) for line in lines)
    if name in ("scenarios", "layers"):
        # Names with spaces are separated by commas.
        entries = text if isinstance(text, list) else [text]
        return tuple(
            part.strip()
            for entry in entries
            for part in (entry.split(",") if "," in entry else entry.split())
            if part.strip()
        )
    try:
        if name in ("threshold", "early_stop"):
            return float(text)
        if name in ("seed", "max_images"):
            return int(text)
    except (TypeError, ValueError):
        kind = "a number" if name in ("threshold", "early_stop") else "an integer"
        raise SettingsError(f"{name} must be {kind}, got {text!r}") from None
    return text


def check_threshold(threshold: float) -> None:
    """Raise `SettingsError` unless the threshold on d is in (0.5, 1]."""
    if not _is_number(threshold) or not 0.5 < threshold <= 1:
        raise SettingsError(
            f"threshold must be a number in (0.5, 1], got {threshold!r}: d = max(A, 1 - A) is "
            "never below 0.5, which is chance"
        )


def split_allowed(entry: str) -> tuple[str | None, str]:
    """Split ``layer:unit`` or ``unit`` of an allowed unit into (layer or None, unit)."""
    layer, colon, unit = entry.partition(":")
    return (layer.strip(), unit.strip()) if colon else (None, entry.strip())


def _parse_allow(line: str) -> tuple[str, str]:
    unit, equals, reason = line.partition("=")
    if not equals:
        raise SettingsError(
            f"allow: expected LAYER:UNIT = REASON, for instance 'logits:carton = shown to be "
            f"harmless', got {line!r}"
        )
    return unit.strip(), reason.strip()


def _check_allow(allow: Mapping[str, str]) -> None:
    if not isinstance(allow, Mapping):
        raise SettingsError(
            "allow must map units to reasons, for instance {'logits:carton': 'shown to be "
            f"harmless'}}, got {type(allow).__name__}"
        )
    for entry, reason in allow.items():
        layer, unit = split_allowed(entry)
        if not unit or layer == "":
            raise SettingsError(f"allow: expected LAYER:UNIT or a class name, got {entry!r}")
        if layer is None and unit.isdigit():
            raise SettingsError(f"allow: unit {unit} of which layer? Write 'features:{unit}'")
        if not isinstance(reason, str) or not reason.strip():
            raise SettingsError(f"allow: {entry!r} needs a reason, for whoever reads it in a year")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


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
