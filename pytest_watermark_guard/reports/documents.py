"""Files that say what they are: a format and its version, written and checked in one way."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_watermark_guard.caching.files import write_text_atomically
from pytest_watermark_guard.errors import ReportError, WatermarkGuardError
from pytest_watermark_guard.setting_values import is_number

_OWNER = "pytest-watermark-guard/"


class _NewerVersionError(WatermarkGuardError):
    """A version of a format that came after the one that can be read."""


@dataclass(frozen=True)
class DocumentFormat:
    """One kind of file."""

    kind: str  # what its `name` ends in
    noun: str  # what messages call its content
    error: type[WatermarkGuardError] = ReportError  # raised where a file cannot be read
    advice: str = "name another file, or write this one again"  # what to do about such a file
    version: int = 1

    @property
    def name(self) -> str:
        """What the file says that it is."""
        return _OWNER + self.kind

    @property
    def head(self) -> dict[str, Any]:
        """What every file begins with."""
        return {"format": self.name, "format_version": self.version}

    def to_json(self, data: Mapping[str, Any], indent: int | None = None) -> str:
        """Return JSON text of plain data; every number survives the round trip exactly."""
        text = json.dumps({**self.head, **data}, allow_nan=False, indent=indent)
        # The same text to whoever reads JSON, and to a runner, where it is printed, no command.
        return text.replace("##[", r"#\u0023[")

    def write(self, path: str | Path, data: Mapping[str, Any], indent: int | None = None) -> None:
        """Write plain data to a JSON file."""
        write_text_atomically(path, self.to_json(data, indent))

    def check(self, data: Mapping[str, Any]) -> None:
        """Refuse another format, and a newer version than this one; for use in `reading`."""
        if data.get("format") != self.name:
            raise self.error(f"it is of format {data.get('format')!r}, not {self.name!r}")
        self.check_version(data.get("format_version"))

    def check_version(self, version: object) -> None:
        """Refuse a newer version of the format than this one; for use in `reading`."""
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise self.error(f"its format_version is {version!r}, and no whole number from 1 on")
        if version > self.version:
            raise _NewerVersionError(
                f"its format_version is {version}, which is newer than this version reads "
                f"({self.version})"
            )

    @contextmanager
    def reading(self, path: str | Path | None = None) -> Iterator[None]:
        """Turn whatever goes wrong with a file in the block into one error of this format.

        `path` is None for text from elsewhere.
        """
        file = "the text" if path is None else repr(str(path))
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise self.error(f"cannot read {self.noun} {file}: {reason}; check the path") from error
        except _NewerVersionError as error:
            raise self.error(
                f"cannot read {self.noun} {file}: {error}; upgrade pytest-watermark-guard"
            ) from error
        except WatermarkGuardError as error:
            raise self.error(f"{file} holds no {self.noun}: {error}; {self.advice}") from error
        except Exception as error:  # a look into data of another shape may raise anything
            raise self.error(
                f"{file} holds no {self.noun}: {type(error).__name__}: {error}; {self.advice}"
            ) from error

    @contextmanager
    def reading_json(self, path: str | Path) -> Iterator[dict[str, Any]]:
        """Give what `write` wrote; data that do not fit may raise anything in the block."""
        with self.reading(path):
            # Some editors and shells write a byte order mark.
            yield self.parse(Path(path).read_text(encoding="utf-8-sig"))

    def parse(self, text: str) -> dict[str, Any]:
        """Return the data of `to_json`; for use in `reading`."""
        data = parse_json(text)
        if not isinstance(data, dict):
            raise self.error("it is no JSON object")
        self.check(data)
        return data


def parse_json(text: str) -> Any:
    """Return the data of JSON text; `ValueError` for what is none, and for NaN and infinities."""
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def number(value: Any) -> float:
    """Return a number of a document as a float; `ValueError` for a text that looks like one."""
    if not is_number(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number of JSON")
    return number
