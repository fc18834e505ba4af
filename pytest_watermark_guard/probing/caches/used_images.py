"""The images that a kept result was found on: it is used only while these are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.caching.keys import digest
from pytest_watermark_guard.images.baseline import Baseline
from pytest_watermark_guard.images.contents import FileContents

CONTENT = np.dtype(("u1", (32,)))
"""A digest of one image."""

ContentRows = npt.NDArray[np.uint8]
"""One digest for each image, shape [n, 32]."""


class Copies(NamedTuple):
    """Marked copies of a baseline's images, in its order."""

    contents: FileContents
    names: tuple[str, ...]

    def listing(self) -> object:
        """Return what is known of them without reading any."""
        return self.names, self.contents.listing(self.names)


@dataclass(frozen=True)
class UsedImages:
    """Reads images' contents as far as a probe uses them; `NoKeyError` if one has changed since.

    Attributes
    ----------
    baseline : Baseline
        In the probe's order.
    copies : mapping of str to Copies
        By stream, where it shows someone's marked copies.
    """

    baseline: Baseline
    copies: Mapping[str, Copies] = field(default_factory=dict)

    def contents(self, stream: str, first: int, last: int) -> ContentRows:
        """Return digests of what images `first` to `last` of a stream are made from."""
        digests = self.baseline.contents.digests(self.baseline.identities[first:last])
        if stream in self.copies:
            files, names = self.copies[stream]
            copies = files.digests(names[first:last])
            pairs = zip(digests, copies, strict=True)
            digests = [hashlib.sha256(one + copy).digest() for one, copy in pairs]
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, CONTENT.itemsize)

    def digest(self, images: int) -> str:
        """Return one digest of the first images and all their marked copies."""
        streams = (*self.copies, "") if self.copies else ("",)
        return digest([(stream, self.contents(stream, 0, images)) for stream in streams])


def with_contents(rows: npt.NDArray[Any], contents: ContentRows) -> npt.NDArray[Any]:
    """Put what was found on each image together with its content: one file holds both."""
    table = np.empty(len(rows), [("content", CONTENT), ("row", rows.dtype, rows.shape[1:])])
    table["content"], table["row"] = contents, rows
    return table


def with_rows(
    check: Callable[[npt.NDArray[Any]], bool],
) -> Callable[[npt.NDArray[Any]], bool]:
    """Return a check of what `with_contents` makes, out of one of its rows."""

    def checked(table: npt.NDArray[Any]) -> bool:
        fields = table.dtype.names == ("content", "row") and table.ndim == 1
        return fields and table.dtype["content"] == CONTENT and check(table["row"])

    return checked
