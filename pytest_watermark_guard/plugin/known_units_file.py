"""The file of known units: TOML, one line for each unit, so that a change of it can be reviewed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import date
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from pytest_watermark_guard.caching.files import write_text_atomically
from pytest_watermark_guard.errors import KnownUnitsError
from pytest_watermark_guard.reports.documents import DocumentFormat
from pytest_watermark_guard.reports.known_units import (
    MARGIN,
    Key,
    KnownUnit,
    ProbeSetting,
    decides,
    plain_text,
)
from pytest_watermark_guard.reports.verdict import Verdict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMAT = DocumentFormat(
    "known-units",
    "known units",
    KnownUnitsError,
    "mend it or restore it from version control",
    version=2,
)
HEADER = f"""\
# Units that react to watermarks and are known to, recorded by pytest --wm-update-known for the
# gates of pytest-watermark-guard. Units that are not listed fail, and so do those whose d exceeds
# what is written here by more than {MARGIN}, or by more than chance explains where seed, images or
# precision are others now. Review a change of this file as you review code.
#
# By hand you may add to a unit: reason = "why it may stay" and expires = 2030-12-31, the last day
# on which it may. An update keeps both, and no comments.
"""


def read_known(path: Path) -> tuple[KnownUnit, ...]:
    """Read known units; `KnownUnitsError` for a file that holds anything but what is expected."""
    with FORMAT.reading(path):
        units = tuple(_units(_parsed(path)))
        keys = set()
        for known in units:
            if known.key in keys:
                raise KnownUnitsError(
                    f"{known.layer} {known.label} under {known.script} is listed twice for "
                    f"{known.model!r}"
                )
            keys.add(known.key)
    return units


def write_known(path: Path, units: Iterable[KnownUnit]) -> None:
    """Write known units, in the order of their keys; after an `OSError` the file is as it was."""
    write_text_atomically(path, "\n".join(_lines(units)) + "\n")


# --- writing ------------------------------------------------------------------------------------


def _lines(units: Iterable[KnownUnit]) -> Iterator[str]:
    yield f"{HEADER}format_version = {FORMAT.version}"
    for _, group in groupby(sorted(units, key=_order), key=lambda known: _order(known)[:-1]):
        first, *others = group
        yield f"\n[[model]]\nname = {_string(first.model)}\nweights = {_string(first.weights)}"
        if first.all_weights:
            yield f"all_weights = {_string(first.all_weights)}"
        if first.setting is not None:
            yield f"seed = {first.setting.seed}\nimages = {first.setting.images}"
            yield f"images_digest = {_string(first.setting.images_digest)}"
            yield f"precision = {_string(first.setting.precision)}"
        yield "units = ["
        yield from map(_line, (first, *others))
        yield "]"


def _order(known: KnownUnit) -> tuple[str, str, str, tuple[object, ...], Key]:
    setting = () if known.setting is None else tuple(vars(known.setting).values())
    return known.model, known.weights, known.all_weights, setting, known.key


def _line(known: KnownUnit) -> str:
    entries = [
        f"layer = {_string(known.layer)}",
        f"script = {_string(known.script)}",
        f"index = {known.index}",
        f"name = {_string(known.name)}",
        f"d = {known.d:.4f}",
        *([] if known.error is None else [f"error = {known.error:.4f}"]),
        f"threshold = {known.threshold!r}",
        f"date = {known.date.isoformat()}",
    ]
    if known.reason:
        entries.append(f"reason = {_string(known.reason)}")
    if known.expires is not None:
        entries.append(f"expires = {known.expires.isoformat()}")
    return f"    {{ {', '.join(entries)} }},"


def _string(text: str) -> str:
    """Write a TOML basic string; whatever has no glyph is spelled out, for whoever reviews it."""
    return '"' + "".join(map(_character, text)) + '"'


def _character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


# --- reading ------------------------------------------------------------------------------------


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    # ValueError: no UTF-8, no TOML, or a date or number in it that does not exist or is too long.
    except (ValueError, RecursionError) as error:
        raise KnownUnitsError(f"it is not TOML: {type(error).__name__}: {error}") from None


def _units(data: Mapping[str, Any]) -> Iterator[KnownUnit]:
    if not data:
        return
    _check_names("the file", data, {"format_version"}, {"model"})
    FORMAT.check_version(data["format_version"])
    for number, model in enumerate(_tables(data.get("model", []), "model"), 1):
        where = f"model {number}"
        needed = {"name", "weights", "units"}
        if _SETTING & model.keys():  # the first files had none
            needed |= _SETTING
        _check_names(where, model, needed, {"all_weights", *_SETTING})
        values = {field: _field(where, model, field) for field in model if field != "units"}
        values["model"] = values.pop("name")
        setting = {field: values.pop(field) for field in _SETTING & model.keys()}
        values["setting"] = ProbeSetting(**setting) if setting else None
        for row, unit in enumerate(_tables(model["units"], f"{where}: units"), 1):
            yield _unit(f"{where}, unit {row}", unit, values)


def _unit(where: str, unit: Mapping[str, Any], model: Mapping[str, Any]) -> KnownUnit:
    needed = {"layer", "script", "index", "name", "d", "threshold", "date"}
    needed |= {"error"} if model["setting"] else set()
    _check_names(where, unit, needed, {"reason", "expires"})
    values = {field: _field(where, unit, field) for field in unit}
    for field in {"d", "threshold", "error"} & values.keys():
        values[field] = float(values[field])
    return KnownUnit(**model, **values)


_SETTING = {"seed", "images", "images_digest", "precision"}


def _tables(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise KnownUnitsError(f"{where} must be a list of tables")
    return value


def _check_names(
    where: str, table: Mapping[str, Any], needed: set[str], optional: Iterable[str] = ()
) -> None:
    for name in sorted(needed - table.keys()):
        raise KnownUnitsError(f"{where} has no {name!r}")
    for name in table.keys() - needed - set(optional):
        allowed = ", ".join(sorted(needed | set(optional)))
        raise KnownUnitsError(f"{where} has an unknown {name!r}; known are {allowed}")


def _field(where: str, table: Mapping[str, Any], name: str) -> Any:
    value = table[name]
    expected, fits = _FIELDS.get(name, _TEXT)
    if not fits(value):
        raise KnownUnitsError(f"{where}: {name} must be {expected}, got {str(value)[:60]!r}")
    return value


# By `type`: True is an int as well, and a datetime is a date.
_TEXT = ("text", lambda value: type(value) is str)
_INDEX = ("an integer >= 0", lambda value: type(value) is int and value >= 0)
_COUNT = ("an integer >= 1", lambda value: type(value) is int and value >= 1)
_ERROR = ("a number >= 0", lambda value: type(value) in (int, float) and value >= 0)
_SCORE = ("a number in (0.5, 1]", lambda value: type(value) in (int, float) and 0.5 < value <= 1)
_DATE = ("a date as 2030-12-31, without quotes", lambda value: type(value) is date)
# What is not named here is text.
_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "index": _INDEX,
    "seed": _INDEX,
    "images": _COUNT,
    "error": _ERROR,
    "d": _SCORE,
    "threshold": _SCORE,
    "date": _DATE,
    "expires": _DATE,
}


def updated_units(
    recorded: Iterable[KnownUnit], verdicts: Collection[Verdict]
) -> tuple[KnownUnit, ...]:
    """Return the record after a run's gates: what they decided anew, and the rest as it was."""
    current: dict[Key, KnownUnit] = {}
    for verdict in verdicts:
        for _, known in verdict.known.used:
            other = current.get(known.key, known)  # from another gate of the same model
            worst = max(known, other, key=attrgetter("d"))
            threshold = min(known.threshold, other.threshold)
            current[known.key] = replace(worst, threshold=threshold)
    # What was recorded by another name of the same weights is recorded by this one now.
    renamed = {(known.all_weights, known.place) for known in current.values() if known.all_weights}
    records = {
        known.key: known
        for known in recorded
        if (known.all_weights, known.place) not in renamed
        and not any(
            known.model == plain_text(v.report.model) and decides(v.report, v.threshold, known)
            for v in verdicts
        )
    }
    return tuple(sorted({**records, **current}.values(), key=attrgetter("key")))
