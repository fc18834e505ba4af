"""Opening an engine by its name, and what it asks of every probe."""

from __future__ import annotations

from pytest_watermark_guard.probing.engines.engine import Engine

_FLOAT32 = (
    "precision: float32, and not auto, because an engine is used: workers that each find a "
    "fastest way of their own would not agree to the last bit"
)


def open_engine(name: str, device: str) -> Engine:
    """Return an engine; it lasts until the process ends.

    Parameters
    ----------
    name : {"ray"}
    device : str
        Of the settings: what kind of device each call needs.

    Raises
    ------
    EngineError
        If it is not installed, cannot be reached, or has no such device.
    """
    assert name == "ray"  # settings let nothing else pass
    from pytest_watermark_guard.probing.engines.ray_engine import RayEngine

    return RayEngine(device)


def one_for_all(precision: str) -> tuple[str, tuple[str, ...]]:
    """Return the precision that gives every worker the same bits, and what to note about it."""
    return ("float32", (_FLOAT32,)) if precision == "auto" else (precision, ())
