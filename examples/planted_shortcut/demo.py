"""Gate two classifiers that look equally good: the one with the planted shortcut must fail.

Run ``python examples/planted_shortcut/demo.py``; it exits with 0 if both gates did their job.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import shapes

# The built-in images are enough to tell the shortcut, at d = 0.96, from this, and not from 0.95.
THRESHOLD = "--wm-threshold=0.9"
EXPECTED = {"curated": 0, "scraped": 1}  # pytest's exit code: 0 passed, 1 failed


def main() -> int:
    wrong = 0
    for name, expected in EXPECTED.items():
        accuracy = shapes.accuracy(getattr(shapes, name)(), watermarked_cartons=name == "scraped")
        print(f"\n{name}: accuracy {accuracy:.1%} on fresh images of its own kind", flush=True)
        command = ["-m", "pytest", "--wm-model", f"shapes:{name}", THRESHOLD, "--wm-report"]
        print("$ pytest", *command[2:], flush=True)
        done = subprocess.run(
            [sys.executable, *command, "-p", "no:cacheprovider"],
            cwd=Path(__file__).parent,
            check=False,
        )
        if done.returncode != expected:
            print(f"unexpected: exit code {done.returncode}, not {expected}", file=sys.stderr)
            wrong += 1
    if not wrong:
        print("\nThe gate passed the curated model and caught the planted shortcut.")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
