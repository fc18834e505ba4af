"""How many inputs each test of strangers' files makes; together at least 20,000."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_MIB = 300  # that memory may peak above what it was; whole inputs take a few KiB

# Of Linux: https://docs.kernel.org/filesystems/proc.html
CLEAR_PEAK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")

INPUTS = {
    "images": 11_000,
    "documents": 4000,
    "checkpoints": 4000,
    "programs": 200,
    "onnx": 800,
    "keys": 700,
    "cache": 2500,
    "probes": 150,
    "names": 100,
}


def told(what: str) -> int:
    """Return how many inputs of a kind there are."""
    return INPUTS[what]


def refusal(error: Exception, name: str) -> int:
    """Return 1 for an error that names the file, to be counted."""
    assert name in str(error)
    return 1


def tried(path, contents, load, refusing) -> tuple[int, int]:
    """Load a file with each of some contents; return how many are read, and refused by its name.

    `refusing` is what `load` raises for a file that it refuses; anything else is a failure.
    """
    read = refused = 0
    for content in contents:
        path.write_bytes(content)
        try:
            load(path)
        except refusing as error:
            refused += refusal(error, path.name)
        else:
            read += 1
    return read, refused


def counted(record_property, what, inputs, read, refused) -> None:
    """Print how many inputs there were, which are all that were told."""
    print(f"{read + refused} {what}: {read} read, {refused} refused")
    record_property("inputs", read + refused)
    assert read + refused == inputs


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Check that whatever sizes an input declares, memory for them is not used up."""
    if CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")
    before = _peak()
    yield
    assert _peak() - before < MOST_MIB


def _peak() -> float:
    """Return the most memory that this process had since the peak was cleared, in MiB.

    Other systems than Linux tell the most that it ever had, so that less can be seen there; on
    Windows nothing is known, and it is 0.
    """
    if CLEAR_PEAK.exists():
        told = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        assert told is not None
        return int(told[1]) / 2**10
    try:
        import resource
    except ModuleNotFoundError:
        return 0.0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
