"""Coins that nobody could choose: they follow from a published commitment and a later value."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from pytest_watermark_guard.errors import OwnershipError

LEAST_VALUE = 16  # characters: a shorter value could be guessed, and pairs made to fit


def drawn_coins(commitment: str, value: str, pairs: int) -> Tensor:
    r"""Return bool [pairs]: the lowest bits of SHAKE-256 of the two texts, a line each.

    Whoever has the commitment and the beacon's value derives them again:
    ``hashlib.shake_256(f"{commitment}\n{value}".encode()).digest(pairs)``.
    """
    digest = hashlib.shake_256(f"{commitment}\n{value}".encode()).digest(pairs)
    return torch.tensor([byte & 1 for byte in digest]).bool()


def checked_value(value: str) -> str:
    """Return a beacon's value in small letters and without spaces; `OwnershipError` for no value.

    Else its owner could try one way to write it after the other, until the coins please.
    """
    value = "".join(checked_text("value", value, "5A1E0F99C3B7421D8E66").lower().split())
    if not (value.isascii() and value.isprintable()):
        raise OwnershipError(
            f"value: {value!r} has characters that are not in ASCII: give digits and letters only, "
            "as the beacon published them"
        )
    if len(value) < LEAST_VALUE:
        raise OwnershipError(
            f"value: {value!r} has {len(value)} characters, and one of less than {LEAST_VALUE} "
            "could be guessed: give all of what the beacon published"
        )
    return value


def checked_text(name: str, text: str, example: str) -> str:
    """Return a text that a report will quote; `OwnershipError` for none."""
    if not isinstance(text, str) or not text.strip():
        raise OwnershipError(f"{name} must be a text, such as {example!r}, not {text!r}")
    return text.strip()
