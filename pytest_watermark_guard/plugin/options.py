"""pytest's options and their ini twins: the run's own, and one for every setting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.setting_values import IniType, user_path
from pytest_watermark_guard.settings import Settings, described, parse_setting

KNOWN_FILE = "wm-known-units.toml"


class Option(NamedTuple):
    """``--wm-NAME`` on the command line, ``wm_NAME`` in an ini file."""

    name: str  # with underscores
    meaning: str
    metavar: str | None = None  # stands for the value in the help; None: a flag
    ini_type: IniType | None = None  # None: text, or for a flag a bool; "linelist": repeatable
    default: str = ""  # in words
    in_ini: bool = True
    keyword: str = ""  # how the marker and functions say it, where it is a setting
    in_command: bool = False  # whether the command that makes a run again has to have it

    @property
    def word(self) -> str:
        """What is typed, up to the value."""
        return f"--wm-{self.name.replace('_', '-')}"


RUN_OPTIONS = (
    Option("report", "print tables for every probe, and a survey of several models that are gated"),
    Option(
        "model",
        "gate a model, no test file needed: torchvision:NAME[@WEIGHTS], timm:NAME, hf:NAME, "
        "package.module:factory, file.pt2 or file.onnx, with ?weights=FILE; repeatable",
        metavar="SPEC",
        ini_type="linelist",
    ),
    Option("json", "write all probes' numbers to a JSON file", metavar="FILE"),
    Option("html", "write all probes to one HTML file that opens offline", metavar="FILE"),
    Option("junit", "tell what probes found as properties in JUnit XML"),
    Option("key", "ownership key that the fixture wm_key reads", metavar="FILE"),
    Option(
        "known",
        "sensitive units on record, which may stay",
        metavar="FILE",
        default=KNOWN_FILE,
        in_command=True,
    ),
    Option(
        "against",
        "an earlier release to compare with: its file of --wm-json or ProbeReport.save",
        metavar="FILE",
        in_command=True,
    ),
    # Not for an ini file, where they would undo every gate, or the file itself, for good.
    Option(
        "update_known",
        "put the sensitive units that gates find now on record; expired ones fail",
        in_ini=False,
        in_command=True,
    ),
    Option("no_known", "ignore the units on record", in_ini=False, in_command=True),
)
"""Those that are no settings of a probe."""


def all_options() -> Iterator[Option]:
    """Give the run's own options, and one for every setting."""
    yield from RUN_OPTIONS
    for setting in described(Settings).values():
        keyword = setting.name if setting.metavar else f"{setting.name}={not setting.default}"
        yield Option(
            setting.option,
            setting.meaning,
            setting.metavar,
            setting.ini_type,
            default=setting.default_in_words,
            keyword=keyword,
        )


def add_options(parser: pytest.Parser) -> None:
    """Register every option with its ini twin."""
    group = parser.getgroup("watermark-guard", "watermark sensitivity of vision models")
    for option in all_options():
        help_text = option.meaning + (f" (default: {option.default})" if option.default else "")
        keywords: dict[str, Any] = {"metavar": option.metavar}
        if option.metavar is None:
            keywords = {"action": "store_true"}
        elif option.ini_type == "linelist":
            keywords["action"] = "append"
        group.addoption(option.word, help=help_text, default=None, **keywords)
        if option.in_ini:
            _add_ini(parser, option)


def _add_ini(parser: pytest.Parser, option: Option) -> None:
    ini_type: Any = option.ini_type if option.metavar else "bool"
    # Older versions take numbers as text, which they are anyway but in pytest 9's own TOML tables.
    if ini_type in ("float", "int") and pytest.version_tuple < (8, 4):
        ini_type = None
    default = {"bool": False, "linelist": [], "args": []}.get(ini_type)
    parser.addini(f"wm_{option.name}", f"as {option.word}", ini_type, default)


def options_table() -> str:
    """Return the table of all options that the docs show, in Markdown."""
    lines = ["| option | meaning | default |", "|---|---|---|"]
    for option in all_options():
        name = f"`{option.word} {option.metavar}`" if option.metavar else f"`{option.word}`"
        if option.keyword:
            name += " ●" if option.metavar else f" ● (`{option.keyword}`)"
        if not option.in_ini:
            name += ", on the command line alone"
        lines.append(f"| {name} | {option.meaning} | {option.default} |")
    return "\n".join(lines)


# --- reading them -------------------------------------------------------------------------------


def read_settings(config: pytest.Config) -> Settings:
    """Return the run's settings: the command line over the ini file over the defaults."""
    given = {}
    for name, setting in described(Settings).items():
        value, folder = _given(config, setting.option)
        if setting.metavar is None:
            given[name] = not setting.default if value else None
        elif value is not None:
            if setting.is_path and value not in ("", "builtin"):
                value = str(folder / user_path(name, value))
            given[name] = parse_setting(name, value)
    return Settings().override(**given)


def flag_is_set(config: pytest.Config, name: str) -> bool:
    """Return whether a flag is set."""
    return bool(_given(config, name)[0])


def named_path(config: pytest.Config, name: str) -> Path | None:
    """Return the file that an option names, or None."""
    value, folder = _given(config, name)
    return folder / user_path(name, value) if value else None


def output_path(config: pytest.Config, name: str) -> Path | None:
    """Return the file that a run leaves, or None; `SettingsError` if it cannot be written to.

    A run that only collects leaves that of an earlier one as it is.
    """
    if config.option.collectonly:
        return None
    file = named_path(config, name)
    if file is None or hasattr(config, "workerinput"):  # it is the controller that writes
        return file
    from pytest_watermark_guard.caching.files import check_writable

    try:
        check_writable(file)  # now, not after an hour of probing
    except OSError as error:
        raise SettingsError(f"{name}: cannot write {str(file)!r}: {error.strerror}") from None
    return file


def _given(config: pytest.Config, name: str) -> tuple[Any, Path]:
    """Return what an option or its ini twin says, or None; and the folder that it starts from."""
    value = config.getoption(f"wm_{name}")
    if value is not None:
        return value, config.invocation_params.dir
    folder = config.inipath.parent if config.inipath else config.invocation_params.dir
    try:
        value = config.getini(f"wm_{name}")
    except (TypeError, ValueError) as error:
        raise SettingsError(f"wm_{name} in {config.inipath}: {error}") from None
    # One that was never set reads as None, "" or [], by pytest version and type.
    return (None if value in ("", []) else value), folder


def command_words(config: pytest.Config) -> list[str]:
    """Return the options, but for models and settings, that a run needs to be made again."""
    given = [(option, config.getoption(f"wm_{option.name}")) for option in RUN_OPTIONS]
    return [
        f"{option.word}={value}" if option.metavar else option.word
        for option, value in given
        if option.in_command and value is not None
    ]
