"""Masks and erasures as JSON files: plain data, nothing in them can run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_watermark_guard.errors import MaskError
from pytest_watermark_guard.mitigation.intervention import Intervention

FORMAT = "pytest-watermark-guard/mask"
FORMAT_VERSION = 1


def save(intervention: Intervention, kind: str, path: str | Path) -> None:
    """Write a file that `load` reads."""
    Path(path).write_text(to_json(intervention, kind), encoding="utf-8")


def to_json(intervention: Intervention, kind: str) -> str:
    """Return JSON text; every number survives the round trip exactly."""
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        **intervention.to_dict(),
    }
    return json.dumps(data, allow_nan=False)


def load(path: str | Path, kind: str) -> dict[str, Any]:
    """Read the plain data of one kind that `save` wrote.

    Raises
    ------
    MaskError
        If the file cannot be read, or holds something else or a newer format.
    """
    where = str(path)
    try:
        data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        found = data["format"], data["kind"]
        version = int(data["format_version"])
    except OSError as error:
        raise MaskError(f"cannot read {where!r}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MaskError(
            f"{where!r} is no file of a mask: {type(error).__name__}: {error}"
        ) from error
    if found != (FORMAT, kind):
        raise MaskError(f"{where!r} holds {found[1]!r} of format {found[0]!r}, not {kind!r}")
    if version > FORMAT_VERSION:
        raise MaskError(
            f"{where!r} is of format {version}, newer than this version reads ({FORMAT_VERSION}); "
            "upgrade pytest-watermark-guard"
        )
    return data
