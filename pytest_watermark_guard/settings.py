"""What a probe and a gate can be told: one frozen dataclass, the same from every door.

A field says all that there is to know of its setting: name, type and default, what it means, and
how its value is read from text and checked. Options, ini values, the marker and the table in the
README are made from that. Read when pytest starts: nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, TypeGuard

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.watermarks.scenarios import SCENARIOS, AnyScenario
from pytest_watermark_guard.watermarks.streams import check_control

PRECISIONS = ("auto", "float32", "bfloat16")
ENGINES = ("ray",)
OUTPUTS = ("auto", "logits", "features")

# --- values from text ---------------------------------------------------------------------------


def _parse_number(name: str, text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise SettingsError(f"{name} must be a number, got {text!r}") from None


def _parse_integer(name: str, text: Any) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        raise SettingsError(f"{name} must be an integer, got {text!r}") from None


def _parse_names(name: str, text: str | list[str]) -> tuple[str, ...]:
    # Names with spaces are separated by commas.
    entries = text if isinstance(text, list) else [text]
    return tuple(
        part.strip()
        for entry in entries
        for part in (entry.split(",") if "," in entry else entry.split())
        if part.strip()
    )


def _parse_reasons(name: str, text: str | list[str]) -> dict[str, str]:
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


IniType = Literal["args", "float", "int", "linelist"]

_PARSERS: Mapping[IniType, Callable[[str, Any], Any]] = {
    "args": _parse_names,
    "float": _parse_number,
    "int": _parse_integer,
    "linelist": _parse_reasons,
}


# --- checks -------------------------------------------------------------------------------------


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


def _check_images(name: str, value: Any) -> Any:
    if isinstance(value, str) and not value:
        raise SettingsError(f"{name} is empty; name a folder, or leave it out")
    return value


def _check_several(name: str, value: Any) -> tuple[Any, ...]:
    # One name or scenario alone is as good as a sequence of one.
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _check_layers(name: str, value: Any) -> tuple[str, ...]:
    layers = _check_several(name, value)
    if not layers or not all(isinstance(layer, str) and layer for layer in layers):
        raise SettingsError(
            f"{name} must be one or more of 'logits', 'features' and module names, got {layers!r}"
        )
    if len(set(layers)) < len(layers):
        raise SettingsError(f"{name}: each can be asked for once, got {layers!r}")
    return layers


def _check_precision(name: str, value: str) -> str:
    if value not in PRECISIONS:
        raise SettingsError(f"{name} must be one of {', '.join(PRECISIONS)}, got {value!r}")
    return value


def _check_outputs(name: str, value: str) -> str:
    if value not in OUTPUTS:
        raise SettingsError(f"{name} must be one of {', '.join(OUTPUTS)}, got {value!r}")
    return value


def _check_engine(name: str, value: str) -> str:
    if value not in ENGINES:
        raise SettingsError(f"{name} must be one of {', '.join(ENGINES)}, or None, got {value!r}")
    return value


def _check_allow(name: str, value: Mapping[str, str]) -> Mapping[str, str]:
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


def _check_early_stop(name: str, value: float) -> float:
    if not is_number(value) or not 0 <= value < 0.5:
        raise SettingsError(
            f"{name} must be a probability in [0, 0.5): how often an early verdict may "
            f"differ from the full run's (0: never stop early), got {value!r}"
        )
    return float(value)


def _check_switch(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"{name} must be True or False, got {value!r}")
    return value


# --- the settings -------------------------------------------------------------------------------


class Setting(NamedTuple):
    """One setting, as its field in `Settings` describes it.

    Attributes
    ----------
    name : str
    default
    meaning : str
        In the help and in the README.
    check : callable
        Takes the name and a value; returns the value as it is kept, or raises `SettingsError`.
        None is not checked where it is the default.
    metavar : str or None
        Stands for the value in the help. None: a flag, for the opposite of the default.
    ini_type : str or None
        As `pytest.Parser.addini` takes it, and how text is read; None: as it is. A "linelist" is a
        repeatable option.
    is_path : bool
        Whether text is a path, relative to where it was written.
    default_text : str or None
        What the help shows as the default, where that is not the value itself.
    """

    name: str
    default: Any
    meaning: str
    check: Callable[[str, Any], Any]
    metavar: str | None = None
    ini_type: IniType | None = None
    is_path: bool = False
    default_text: str | None = None

    @property
    def option(self) -> str:
        """What follows ``wm_`` in the name of its option and ini value."""
        return f"no_{self.name}" if self.default is True else self.name

    @property
    def default_in_words(self) -> str:
        """The default, as the help shows it; empty where there is nothing to show."""
        if self.default_text is not None:
            return self.default_text
        if self.metavar is None or self.default is None or self.default == {}:
            return ""
        return ",".join(self.default) if isinstance(self.default, tuple) else str(self.default)


def setting(default: Any, **description: Any) -> Any:
    """Return a field of `Settings`, described by the attributes of a `Setting`."""
    if isinstance(default, dict):  # which dataclasses copy only if they are told how
        return field(default_factory=default.copy, metadata=description)
    return field(default=default, metadata=description)


def described(settings: type[Settings] | Settings) -> dict[str, Setting]:
    """Return what the fields say of all settings, by name."""
    found = {}
    for each in fields(settings):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        found[each.name] = Setting(each.name, default, **each.metadata)
    return found


@dataclass(frozen=True)
class Settings:
    """Settings of a probe and its gate.

    Raises
    ------
    SettingsError
        If a value cannot be used.
    """

    images: Any = setting(  # noqa: RUF009 -- a field is no shared default
        None,
        meaning="baseline images without watermarks (JPEG, PNG, WebP, BMP), or builtin",
        metavar="FOLDER",
        check=_check_images,
        is_path=True,
        default_text="the built-in set",
    )
    threshold: float = setting(
        0.95,
        meaning="units with d >= D fail the gate, 0.5 < D <= 1",
        metavar="D",
        check=lambda _, value: check_threshold(value),
        ini_type="float",
    )
    scenarios: tuple[str | AnyScenario, ...] = setting(
        tuple(SCENARIOS),
        meaning="kinds of marks, comma-separated; your own by the hook pytest_wm_scenarios",
        metavar="NAMES",
        check=_check_several,
        ini_type="args",
    )
    layers: tuple[str, ...] = setting(
        ("logits", "features"),
        meaning="comma-separated: logits, features, or names of modules",
        metavar="NAMES",
        check=_check_layers,
        ini_type="args",
    )
    outputs: str = setting(
        "auto",
        meaning="what the model returns: logits, features (an encoder's embedding), or auto (what "
        "its attribute outputs says, else found by trying)",
        metavar="NAME",
        check=_check_outputs,
    )
    device: str = setting(
        "auto",
        meaning="auto (CUDA if there is a GPU), cpu, cuda, cuda:1 ...; the workers of xdist share "
        "several GPUs in turn",
        metavar="DEVICE",
        check=lambda _, value: str(value),
    )
    precision: str = setting(
        "auto",
        meaning="float32 (plain; repeated on one machine, the same bits), bfloat16 (autocast), or "
        "auto (the fastest way that agrees with float32)",
        metavar="NAME",
        check=_check_precision,
    )
    max_images: int | None = setting(
        None,
        meaning="probe with a random subset of N images",
        metavar="N",
        check=partial(plain_integer, least=2),
        ini_type="int",
        default_text="all",
    )
    seed: int = setting(
        17,
        meaning="seed of the watermarks and the subset",
        metavar="N",
        check=partial(plain_integer, least=0),
        ini_type="int",
    )
    allow: Mapping[str, str] = setting(
        {},
        meaning="accept a known unit, as in logits:carton=harmless; repeatable",
        metavar="UNIT=REASON",
        check=_check_allow,
        ini_type="linelist",
    )
    early_stop: float = setting(
        1e-3,
        meaning="chance at which a gate's early verdict may differ from that of all images; 0: "
        "never stop early",
        metavar="P",
        check=_check_early_stop,
        ini_type="float",
    )
    control: bool | str = setting(
        False,
        meaning="probe with scrambled marks and blobs of the same ink too, to tell text from ink",
        check=check_control,
    )
    cache: bool = setting(
        True,
        meaning="neither use nor keep activations of earlier probes",
        check=_check_switch,
    )
    engine: str | None = setting(
        None,
        meaning="ray: probe by the workers of a Ray cluster",
        metavar="NAME",
        check=_check_engine,
        default_text="none",
    )

    def __post_init__(self) -> None:
        for name, description in described(self).items():
            value = getattr(self, name)
            if value is not None or description.default is not None:
                object.__setattr__(self, name, description.check(name, value))

    def override(self, **given: Any) -> Settings:
        """Return these settings with every one that is given (not None) replaced.

        Raises
        ------
        SettingsError
            If there is no setting of that name, or its value cannot be used.
        """
        known = [each.name for each in fields(self)]
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
    ini_type = described(Settings)[name].ini_type
    return text if ini_type is None else _PARSERS[ini_type](name, text)
