"""``python -m pytest_watermark_guard init``: a first test for the repository that it stands in."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pytest_watermark_guard.plugin.starter import start
from pytest_watermark_guard.version import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pytest_watermark_guard",
        description="Gates themselves are run by pytest: see pytest --help.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser(
        "init",
        help="write a test, pytest's settings and a workflow for a repository",
        description="Looks at a repository and writes a test, pytest's settings and a workflow "
        "for it. Files that exist are left as they are.",
    )
    init.add_argument("folder", nargs="?", default=".", help="the repository (default: this one)")
    given = parser.parse_args(arguments)
    folder = Path(given.folder)
    if not folder.is_dir():
        parser.error(f"init: {given.folder!r} is not a folder; name the repository's")
    try:
        lines = list(start(folder))  # all is written before the first word
    except OSError as error:
        parser.exit(1, f"init: cannot write {error.filename!r}: {error.strerror}\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
