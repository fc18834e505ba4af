"""What a probe and a gate can be told: one frozen dataclass, the same from every door.

A field says all that there is to know of its setting: name, type and default, what it means, and
how its value is read from text and checked. Options, ini values, the marker and the table in the
docs are made from that. Read when pytest starts: nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from typing import Any, NamedTuple

from pytest_watermark_guard.errors import SettingsError, did_you_mean
from pytest_watermark_guard.setting_values import (
    PARSERS,
    IniType,
    check_allow,
    check_choice,
    check_early_stop,
    check_images,
    check_layers,
    check_limit,
    check_several,
    check_switch,
    check_threshold,
    check_warn,
    plain_integer,
)
from pytest_watermark_guard.watermarks.scenarios import SCENARIOS, AnyScenario
from pytest_watermark_guard.watermarks.streams import check_control

PRECISIONS = ("auto", "float32", "bfloat16")
ENGINES = ("ray",)
OUTPUTS = ("auto", "logits", "features")
POLICIES = ("error", "fail", "pass")
WARN = 0.8
"""On d: from here on a reaction is strong."""


class Setting(NamedTuple):
    """One setting, as its field in `Settings` describes it.

    Attributes
    ----------
    name : str
    default
    meaning : str
        In the help and in the docs.
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
        check=check_images,
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
    warn: float = setting(
        WARN,
        meaning="units with d >= D that do not fail the gate are strong reactions: it passes with "
        "a warning",
        metavar="D",
        check=check_warn,
        ini_type="float",
    )
    strict: bool = setting(
        False,
        meaning="strong reactions fail the gate too",
        check=check_switch,
    )
    no_worse: bool = setting(
        False,
        meaning="units that rose beyond chance since the release of --wm-against fail the gate if "
        "they react strongly",
        check=check_switch,
    )
    inconclusive: str = setting(
        "error",
        meaning="what becomes of a gate whose images are too few to tell: error (it could not be "
        "checked), fail, or pass",
        metavar="POLICY",
        check=partial(check_choice, choices=POLICIES),
    )
    max_flips: float | None = setting(
        None,
        meaning="gate by predictions and not by d: the marks may change at most this share of them "
        "beyond what blobs of the same ink change",
        metavar="SHARE",
        check=partial(check_limit, most=1),
        ini_type="float",
        default_text="none",
    )
    max_drop: float | None = setting(
        None,
        meaning="gate by predictions and not by d: the marks may cost at most so many points of "
        "top-1 accuracy",
        metavar="POINTS",
        check=partial(check_limit, most=100),
        ini_type="float",
        default_text="none",
    )
    scenarios: tuple[str | AnyScenario, ...] = setting(
        tuple(SCENARIOS),
        meaning="kinds of marks, comma-separated; your own by the hook pytest_wm_scenarios",
        metavar="NAMES",
        check=check_several,
        ini_type="args",
    )
    layers: tuple[str, ...] = setting(
        ("logits", "features"),
        meaning="comma-separated: logits, features, or names of modules",
        metavar="NAMES",
        check=check_layers,
        ini_type="args",
    )
    outputs: str = setting(
        "auto",
        meaning="what the model returns: logits, features (an encoder's embedding), or auto (what "
        "its attribute outputs says, else found by trying)",
        metavar="NAME",
        check=partial(check_choice, choices=OUTPUTS),
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
        check=partial(check_choice, choices=PRECISIONS),
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
        check=check_allow,
        ini_type="linelist",
    )
    early_stop: float = setting(
        1e-3,
        meaning="chance at which a gate's early verdict may differ from that of all images; 0: "
        "never stop early",
        metavar="P",
        check=check_early_stop,
        ini_type="float",
    )
    control: bool | str = setting(
        False,
        meaning="probe with scrambled marks and with blobs of the same ink too, to tell text from "
        'anything printed (control="strokes" or "blobs": one of them)',
        check=check_control,
    )
    cache: bool = setting(
        True,
        meaning="neither use nor keep activations of earlier probes",
        check=check_switch,
    )
    engine: str | None = setting(
        None,
        meaning="ray: probe by the workers of a Ray cluster",
        metavar="NAME",
        check=partial(check_choice, choices=ENGINES),
        default_text="none",
    )

    @property
    def gates_predictions(self) -> bool:
        """Whether gates go by what the marks do to predictions, and not by d."""
        return self.max_flips is not None or self.max_drop is not None

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
                hint = did_you_mean(name, known)
                raise SettingsError(f"unknown setting {name!r}; known are {', '.join(known)}{hint}")
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
    return text if ini_type is None else PARSERS[ini_type](name, text)
