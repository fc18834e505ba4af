"""Inputs as strangers may send them: whole ones, changed at random, the same in every run."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_STRANGE = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.0, -0.5, 1.5, 1e308, float("inf"),
    float("nan"), "", "0", "nan", "\x00", "\ud800", "\u202e", "x" * 5000, [], [[]], {}, {"": None},
    [None], [0] * 50, {"a": {"b": []}},
)  # fmt: skip


def mutants(seeds: Sequence[bytes], count: int, number: int) -> Iterator[bytes]:
    """Give changed copies of the seeds: bits, lengths, pieces twice, cut short, put together."""
    rng = random.Random(number)
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            _change(data, seeds, rng)
        yield bytes(data)


def _change(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    # Headers are where the meaning is.
    end = len(data) if rng.random() < 0.5 else min(len(data), 64)
    at = rng.randrange(end) if end else 0
    kind = rng.randrange(7)
    if kind == 0 and data:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        size = rng.choice((1, 2, 4, 8))
        number = rng.choice(_NUMBERS) % 256**size
        data[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[at : at + rng.randrange(1, 40)]
    elif kind == 4:
        data[at:at] = rng.randbytes(rng.randrange(1, 40))
    elif kind == 5:
        data[at:at] = data[at : at + rng.randrange(1, 200)]
    else:
        other = rng.choice(seeds)
        data[at:] = other[rng.randrange(len(other)) :]


def documents(seeds: Sequence[Any], count: int, number: int) -> Iterator[str]:
    """Give JSON texts of changed copies of plain data; now and then of no JSON at all."""
    rng = random.Random(number)
    texts = [json.dumps(seed).encode() for seed in seeds]
    broken = mutants(texts, count, number)
    for _ in range(count):
        if rng.random() < 0.2:
            yield next(broken).decode("latin-1")
            continue
        data = copy.deepcopy(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = _replaced(data, rng)
        yield json.dumps(data)


def _replaced(data: Any, rng: random.Random) -> Any:
    """Replace, remove or repeat something anywhere in plain data."""
    inside = isinstance(data, dict | list) and len(data)
    if not inside or rng.random() < 0.15:
        return copy.deepcopy(rng.choice(_STRANGE))
    key = rng.choice(list(data)) if isinstance(data, dict) else rng.randrange(len(data))
    chance = rng.random()
    if chance < 0.1:
        del data[key]
    elif chance < 0.15 and isinstance(data, list):
        data.append(copy.deepcopy(data[key]))
    elif chance < 0.2 and isinstance(data, dict):
        data[str(rng.choice(_STRANGE))] = data[key]
    else:
        data[key] = _replaced(data[key], rng)
    return data
