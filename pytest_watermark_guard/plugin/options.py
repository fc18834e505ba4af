"""pytest's options and their ini twins, and how both become settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pytest_watermark_guard.errors import KnownUnitsError, SettingsError
from pytest_watermark_guard.reports.known_units import KnownUnit, KnownUnits
from pytest_watermark_guard.settings import PRECISIONS, Settings, parse_setting
from pytest_watermark_guard.watermarks.scenarios import SCENARIOS

# setting -> (metavar, help); each is --wm-NAME on the command line and wm_NAME in an ini file
SETTINGS = {
    "images": ("FOLDER", "baseline images without watermarks (default: the built-in set)"),
    "threshold": ("D", "units with d >= D fail the gate, 0.5 < D <= 1 (default: 0.95)"),
    "scenarios": ("NAMES", f"comma-separated (default: {','.join(SCENARIOS)})"),
    "layers": ("NAMES", "logits, features, or names of modules (default: logits,features)"),
    "device": ("DEVICE", "auto, cpu, cuda, cuda:1 ... (default: auto)"),
    "precision": ("NAME", f"{', '.join(PRECISIONS)} (default: auto)"),
    "max_images": ("N", "probe with a random subset of N images (default: all)"),
    "seed": ("N", "seed of the watermarks and the subset (default: 17)"),
    "allow": ("UNIT=REASON", "accept a known unit, as in 'logits:carton=harmless'; repeatable"),
    "engine": ("NAME", "ray: probe by the workers of a Ray cluster (default: none)"),
    "early_stop": ("P", "a gate may stop early at this risk, 0: never (default: 0.001)"),
}
FLAGS = {
    "control": "probe with scrambled marks too, to tell text from anything printed",
    "no_cache": "neither use nor keep activations of earlier probes",
}
KNOWN_FILE = "wm-known-units.toml"
KNOWN_FLAGS = {
    "update-known": "put the sensitive units that gates find now on record; expired ones fail",
    "no-known": "ignore the units on record",
}
INI_TYPES = {
    "threshold": "float",
    "scenarios": "args",
    "layers": "args",
    "max_images": "int",
    "seed": "int",
    "allow": "linelist",
    "early_stop": "float",
}


def add_options(parser: pytest.Parser) -> None:
    """Register every option with its ini twin."""
    group = parser.getgroup("watermark-guard", "watermark sensitivity of vision models")

    def add(name: str, help_text: str, ini_type: Any = None, **options: Any) -> None:
        group.addoption(f"--wm-{name.replace('_', '-')}", help=help_text, default=None, **options)
        default = {"bool": False, "linelist": [], "args": []}.get(ini_type)
        parser.addini(f"wm_{name}", f"as --wm-{name.replace('_', '-')}", ini_type, default)

    add(
        "model",
        "gate a model, no test file needed: torchvision:NAME[@WEIGHTS], timm:NAME, hf:NAME, "
        "package.module:factory or file.pt2, with ?weights=FILE; repeatable",
        "linelist",
        action="append",
        metavar="SPEC",
    )
    add("report", "print a table for every probe", "bool", action="store_true")
    for name, help_text in FLAGS.items():
        add(name, help_text, "bool", action="store_true")
    add("json", "write all probes' numbers to a JSON file", metavar="FILE")
    add("key", "ownership key that the fixture wm_key reads", metavar="FILE")
    add("html", "write all probes to one HTML file that opens offline", metavar="FILE")
    add("junit", "tell what probes found as properties in JUnit XML", "bool", action="store_true")
    add(
        "known",
        f"sensitive units on record, which may stay (default: {KNOWN_FILE})",
        metavar="FILE",
    )
    # Not for an ini file, where they would undo every gate, or the file itself, for good.
    for name, help_text in KNOWN_FLAGS.items():
        group.addoption(f"--wm-{name}", help=help_text, action="store_true")
    # Older versions take numbers as text, which they are anyway but in pytest 9's own TOML tables.
    numbers = pytest.version_tuple >= (8, 4)
    for name, (metavar, help_text) in SETTINGS.items():
        ini_type = INI_TYPES.get(name)
        if ini_type in ("float", "int") and not numbers:
            ini_type = None
        repeatable = {"action": "append"} if name == "allow" else {}
        add(name, help_text, ini_type, metavar=metavar, **repeatable)


def read_settings(config: pytest.Config) -> Settings:
    """Return the run's settings: the command line over the ini file over the defaults.

    Raises
    ------
    SettingsError
        If a value cannot be used.
    """
    given = {}
    for name in SETTINGS:
        value = config.getoption(f"wm_{name}")
        folder = config.invocation_params.dir
        if value is None:
            folder = config.inipath.parent if config.inipath else folder
            value = _ini_value(config, f"wm_{name}")
        if value is not None:
            if name == "images" and value and value != "builtin":
                value = str(folder / Path(value).expanduser())
            given[name] = parse_setting(name, value)
    flags = {name: config.getoption(f"wm_{name}") or config.getini(f"wm_{name}") for name in FLAGS}
    return Settings().override(**given, control=flags["control"], cache=not flags["no_cache"])


def _ini_value(config: pytest.Config, name: str) -> Any:
    try:
        value = config.getini(name)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{name} in {config.inipath}: {error}") from None
    # One that was never set reads as None, "" or [], by pytest version and type.
    return None if value in ("", []) else value


def known_units(config: pytest.Config) -> tuple[KnownUnits, Path]:
    """Return the units on record, and the file that they are in, or would be.

    Raises
    ------
    SettingsError
        If there is no such file.
    KnownUnitsError
        If it cannot be read, or not be written where that was asked for.
    """
    path = _path(config, "known")
    updating = bool(config.getoption("wm_update_known"))
    named = path is not None
    if path is None:
        path = (config.inipath.parent if config.inipath else config.rootpath) / KNOWN_FILE
    if config.getoption("wm_no_known"):
        if updating:
            raise SettingsError("--wm-update-known and --wm-no-known exclude each other")
        return KnownUnits(), path
    inside = path.is_relative_to(config.rootpath)
    shown = str(path.relative_to(config.rootpath) if inside else path)
    if not path.exists() and not updating:
        if named:
            raise SettingsError(f"known: there is no {str(path)!r}; --wm-update-known makes it")
        return KnownUnits(shown), path
    units: tuple[KnownUnit, ...] = ()
    if path.exists():
        from pytest_watermark_guard.plugin.known_units_file import read_known

        units = read_known(path)
    if updating and not os.access(path.parent, os.W_OK):
        raise KnownUnitsError(f"cannot write {str(path)!r}: no folder to write to")
    return KnownUnits(shown, units, updating), path


def json_path(config: pytest.Config) -> Path | None:
    """Return where ``--wm-json`` goes, which can be written to.

    Raises
    ------
    SettingsError
        If it cannot.
    """
    return _writable(config, "json")


def html_path(config: pytest.Config) -> Path | None:
    """Return where ``--wm-html`` goes, which can be written to.

    Raises
    ------
    SettingsError
        If it cannot.
    """
    return _writable(config, "html")


def key_path(config: pytest.Config) -> Path | None:
    """Return the file that ``--wm-key`` names, or None."""
    return _path(config, "key")


def _writable(config: pytest.Config, name: str) -> Path | None:
    path = _path(config, name)
    if path is None:
        return None
    try:
        # Now, not after an hour of probing.
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise SettingsError(f"{name}: cannot write {str(path)!r}: {error.strerror}") from None
    return path


def _path(config: pytest.Config, name: str) -> Path | None:
    """Return a file that is named: from the working directory, or from that of the ini file."""
    given, folder = config.getoption(f"wm_{name}"), config.invocation_params.dir
    if not given:
        given = _ini_value(config, f"wm_{name}")
        folder = config.inipath.parent if config.inipath else folder
    return folder / Path(given).expanduser() if given else None


def known_words(config: pytest.Config) -> list[str]:
    """Return the options on known units that the command line gave."""
    file = config.getoption("wm_known")
    words = [] if file is None else [f"--wm-known={file}"]
    flags = (name for name in KNOWN_FLAGS if config.getoption(f"wm_{name.replace('-', '_')}"))
    return words + [f"--wm-{name}" for name in flags]
