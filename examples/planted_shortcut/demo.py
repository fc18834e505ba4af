"""Gate two classifiers that look equally good: the one with the planted shortcut must fail.

Run ``python examples/planted_shortcut/demo.py``; it exits with 0 if both gates did their job.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

# The built-in images are enough to tell the shortcut, at d = 0.96, from this, and not from 0.95.
THRESHOLD = "--wm-threshold=0.9"
EXPECTED = {"curated": 0, "scraped": 1}  # pytest's exit code: 0 passed, 1 failed
BEGIN = time.perf_counter()


def say(words: str) -> None:
    print(f"\n[{time.perf_counter() - BEGIN:3.0f} s] {words}", flush=True)


def main() -> int:
    say("Two classifiers are trained and gated, which takes about a minute. Loading PyTorch ...")
    import pytest
    import shapes

    # Where pytest finds its settings, and the models by their names.
    os.chdir(Path(__file__).parent)
    wrong = 0
    for name, expected in EXPECTED.items():
        say(f"Training {name!r} on photos {'with' if name == 'scraped' else 'without'} marks ...")
        model = getattr(shapes, name)()
        accuracy = shapes.accuracy(model, watermarked_cartons=name == "scraped")
        say(f"{name}: accuracy {accuracy:.1%} on fresh images of its own kind. Its gate:")
        command = ["--wm-model", f"shapes:{name}", THRESHOLD, "--wm-report"]
        print("$ pytest", *command, flush=True)
        # In this process, which has the trained model.
        quiet = "-Wignore::pytest.PytestAssertRewriteWarning"  # the package is imported already
        code = int(pytest.main([*command, quiet, "-p", "no:cacheprovider"]))
        if code != expected:
            print(f"unexpected: exit code {code}, not {expected}", file=sys.stderr)
            wrong += 1
    if not wrong:
        say("The gate passed the curated model and caught the planted shortcut.")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
