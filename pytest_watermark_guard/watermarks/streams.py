"""What the images of a probe carry: nothing, a scenario's mark, or the control of one.

Each of these streams of images has a name. Scenarios' names are printable and not empty, so the
other two kinds never meet them.
"""

from __future__ import annotations

UNMARKED = ""
_CONTROL = "\0"


def control_of(scenario: str) -> str:
    """Return the name of the stream with a scenario's scrambled marks."""
    return _CONTROL + scenario


def described(stream: str) -> str:
    """Say which images a stream holds, for messages."""
    if stream == UNMARKED:
        return "without a mark"
    if stream.startswith(_CONTROL):
        return f"with the control of the {stream.removeprefix(_CONTROL)!r} mark"
    return f"with the {stream!r} mark"
