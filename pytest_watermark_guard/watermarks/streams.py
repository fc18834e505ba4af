"""What the images of a probe carry: nothing, a scenario's mark, or a control of one.

Each of these streams of images has a name. Scenarios' names are printable and not empty, so the
other two kinds never meet them.
"""

from __future__ import annotations

from pytest_watermark_guard.errors import SettingsError

UNMARKED = ""
STROKES, BLOBS = CONTROLS = "strokes", "blobs"
"""Kinds of controls: the mark's strokes, scrambled; and as much ink without any strokes."""

_PREFIX = {STROKES: "\0", BLOBS: "\1"}


def control_of(scenario: str, kind: str = STROKES) -> str:
    """Return the name of the stream with a scenario's controls of one kind."""
    return _PREFIX[kind] + scenario


def check_control(name: str, value: bool | str) -> bool | str:
    """Return a value of the setting ``control``: one kind of controls, all (True) or none.

    Raises
    ------
    SettingsError
        If it is something else.
    """
    if not isinstance(value, bool) and value not in CONTROLS:
        raise SettingsError(f"{name} must be True, False, {' or '.join(CONTROLS)}, got {value!r}")
    return value


def kinds_of(control: bool | str) -> tuple[str, ...]:
    """Return the kinds of controls that the setting ``control`` asks for."""
    return CONTROLS if control is True else (control,) if control else ()


def described(stream: str) -> str:
    """Say which images a stream holds, for messages."""
    if stream == UNMARKED:
        return "without a mark"
    for kind, prefix in _PREFIX.items():
        if stream.startswith(prefix):
            return f"with the control ({kind}) of the {stream.removeprefix(prefix)!r} mark"
    return f"with the {stream!r} mark"
