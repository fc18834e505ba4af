"""Text from outside, such as names of classes, starts no workflow command in a log.

GitHub's runner obeys every printed line that begins with ``::``, after spaces, or that has ``##[``
in it (https://github.com/actions/runner/blob/main/src/Runner.Common/ActionCommand.cs).
"""

from __future__ import annotations

import re

# The runner's lines end at either character. Colours may come before what a line shows.
_COMMAND = re.compile(r"((?:^|[\r\n])(?:\s|\x1b\[[0-9;]*m)*):(?=:)")


def inert(text: str) -> str:
    """Spell out the one character of a text that would make a line of it a command."""
    return _COMMAND.sub(r"\1\\x3a", text).replace("##[", r"#\x23[")
