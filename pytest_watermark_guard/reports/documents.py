"""Reports of several kinds as JSON files that say what they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_watermark_guard.errors import ReportError, WatermarkGuardError

_VERSION = 1
_OWNER = "pytest-watermark-guard/"


def write_document(path: str | Path, kind: str, data: Mapping[str, Any]) -> None:
    """Write plain data; every number survives the round trip exactly."""
    document = {"format": _OWNER + kind, "format_version": _VERSION, **data}
    Path(path).write_text(json.dumps(document, allow_nan=False), encoding="utf-8")


@contextmanager
def read_document(path: str | Path, kind: str) -> Iterator[dict[str, Any]]:
    """Give what `write_document` wrote; in the block, data that do not fit are a `ReportError`.

    Raises
    ------
    ReportError
        If the file cannot be read, or holds something else or another version.
    """
    where = str(path)
    try:
        data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        found = data["format"], data["format_version"]
        if found != (_OWNER + kind, _VERSION):
            raise ReportError(
                f"{where!r} is of format {found[0]!r}, version {found[1]}; this version reads "
                f"{_OWNER + kind!r}, {_VERSION}"
            )
        yield data
    except ReportError:
        raise
    except OSError as error:
        raise ReportError(f"cannot read {where!r}: {error.strerror}") from error
    except (
        WatermarkGuardError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ReportError(f"{where!r} holds no {kind}: {type(error).__name__}: {error}") from error
