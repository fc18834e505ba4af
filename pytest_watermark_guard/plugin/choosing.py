"""Which gates a run collects, and which of its arguments are left to pytest."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_watermark_guard.errors import SettingsError, did_you_mean

Gates = Mapping[str, tuple[str, str]]
"""Layer and scenario of gates, by name."""


class Choice(NamedTuple):
    """What of a run is collected.

    Attributes
    ----------
    arguments : tuple of str
        What pytest collects: paths and ids of tests.
    gates : mapping of str to mapping
        The gates that are collected, by the model's spec: layer and scenario by name.
    said : str
        What the header says.
    """

    arguments: tuple[str, ...]
    gates: Mapping[str, Gates]
    said: str


def choose(config: pytest.Config, models: Sequence[str], gates: Gates) -> Choice:
    """Choose as pytest does: what is named on the command line is collected, and no more.

    Models on the command line are collected beside named paths all the same, and alone where no
    path is named. Those of an ini file belong to the project: with the whole of it, or a folder.
    """
    every = dict.fromkeys(models, gates)
    listed = ", ".join(models)
    arguments = tuple(config.args)
    if not models:
        return Choice(arguments, {}, "")
    typed = any(str(a).startswith("--wm-model") for a in config.invocation_params.args)
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        if not typed:
            return Choice(arguments, every, f"gating {listed}")
        alone = "tests are not collected (name their paths to run them too)"
        return Choice((), every, f"gating {listed}; {alone}")
    left = []
    chosen: dict[str, Gates] = {}
    for argument in arguments:
        found = _named_gates(argument, config, models, tuple(gates))
        if found is None:
            left.append(argument)
        else:
            spec, wanted = found
            both = {*chosen.get(spec, ()), *wanted}
            chosen[spec] = {name: place for name, place in gates.items() if name in both}
    if chosen:
        return Choice(tuple(left), chosen, f"gating what is named of {', '.join(chosen)}")
    if any("::" in argument for argument in left):
        return Choice(arguments, {}, f"not gating {listed}: single tests are named")
    if not typed and all(_file(argument, config).is_file() for argument in left):
        return Choice(arguments, {}, f"not gating {listed}: single files are named")
    return Choice(arguments, every, f"gating {listed}")


def gate_path(config: pytest.Config, spec: str) -> Path:
    """Return the place in the tree of tests that stands for a model: a file of the root folder.

    There is none, and none is read. Editors build their tree of such paths, and know no tests
    outside of the root folder or on it.
    """
    if config.getoption("newfirst", False):
        # To sort files by their age, pytest asks each for it.
        return config.inipath or config.rootpath
    return _shown_path(config, spec)


def _shown_path(config: pytest.Config, spec: str) -> Path:
    return config.rootpath / spec.replace("\\", "/").replace("/", "_")


def _named_gates(
    argument: str, config: pytest.Config, models: Collection[str], names: Sequence[str]
) -> tuple[str, tuple[str, ...]] | None:
    """Return the model and its gates that an argument names; None if it names something else."""
    parts = argument.split("::")
    for end in range(1, len(parts) + 1):  # a name may have a "::" in it
        start, wanted = "::".join(parts[:end]), "::".join(parts[end:])
        spec = next((spec for spec in models if _means(start, config, spec)), None)
        if spec is None:
            continue
        if wanted and wanted not in names:
            hint = did_you_mean(wanted, names) or f"; it has {', '.join(names)}"
            raise SettingsError(f"{spec!r} has no gate {wanted!r}{hint}")
        return spec, (wanted,) if wanted else tuple(names)
    return None


def _means(start: str, config: pytest.Config, spec: str) -> bool:
    """Tell whether this is a model, as pytest shows it in any folder, or as editors know it."""
    path = os.path.normpath(_file(start, config))
    return start == spec or path in map(
        os.path.normpath, (config.rootpath / spec, _shown_path(config, spec))
    )


def _file(argument: str, config: pytest.Config) -> Path:
    return Path(config.invocation_params.dir, argument)
