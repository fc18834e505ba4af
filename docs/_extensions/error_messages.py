"""The directive ``error-messages``: every message of one of the package's errors."""

from __future__ import annotations

from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive
from messages_in_code import error_messages


class ErrorMessages(Directive):
    """A list of messages."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """Make the list."""
        messages = error_messages(self.arguments[0])
        if not messages:
            raise self.error(f"no message of {self.arguments[0]} is in the code")
        items = (
            nodes.list_item("", nodes.paragraph("", "", nodes.literal(message, message)))
            for message in messages
        )
        return [nodes.bullet_list("", *items)]


def setup(app):
    """Add the directive."""
    app.add_directive("error-messages", ErrorMessages)
    return {"parallel_read_safe": True}
