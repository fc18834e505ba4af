"""Masks and erasures as JSON files: plain data, nothing in them can run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_watermark_guard.errors import MaskError
from pytest_watermark_guard.mitigation.intervention import Intervention
from pytest_watermark_guard.reports.documents import DocumentFormat


def save(intervention: Intervention, kind: str, path: str | Path) -> None:
    """Write a file that `loading` reads."""
    _format(kind).write(path, {"kind": kind, **intervention.to_dict()})


@contextmanager
def loading(path: str | Path, kind: str) -> Iterator[dict[str, Any]]:
    """Give the plain data of one kind that `save` wrote; see `DocumentFormat.reading_json`.

    Raises
    ------
    MaskError
        If the file cannot be read, or holds something else or a newer format.
    """
    with _format(kind).reading_json(path) as data:
        if data["kind"] != kind:
            raise MaskError(f"it holds {data['kind']!r}, not {kind!r}")
        yield data


def _format(kind: str) -> DocumentFormat:
    return DocumentFormat("mask", kind, MaskError)
