"""The numbers that need a real network: skipped, with the reason, where none is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_parity_with_the_authors_images(real_data):
    """Watermarks, table, top classes and built-in set, as ``benchmarks/parity.py`` prints them."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "parity.py"],
        env={**os.environ, "WATERMARK_GUARD_DATA": str(real_data)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "MISSED" not in done.stdout
    assert done.stdout.count(" met\n") == 16
