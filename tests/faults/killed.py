"""Probe photos; be killed at the n-th operation on a temporary file below a folder."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import tiny
from injecting import injecting

photos, folder, turn = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])


def kill() -> BaseException:
    os.kill(os.getpid(), signal.SIGKILL)
    return SystemExit


with injecting() as injector, injector.armed(folder, turn, kill, ".tmp"):
    tiny.probe(photos)
