"""Two workers of xdist on one machine, and a gate beside a busy core.

Two models are gated one after the other in one process, and side by side by ``pytest -n 2``; then
one of them while another process keeps one core busy. No environment variable says how many
threads there are. Caches are empty each time.

``WATERMARK_GUARD_DATA=... python benchmarks/threads.py [--images 200] [--rounds 3]``
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import line, lite_spec, mobilenet_spec, photos_below, print_machine, real_data

SIDE_BY_SIDE, BUSY = 1.15, 2.2


def gate(specs: list[str], options: list[str]) -> float:
    """Return the seconds of a run that gates models with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
        environment["WATERMARK_GUARD_CACHE"] = str(Path(folder, "cache"))
        command = [sys.executable, "-m", "pytest", "-q", *options]
        command += [f"--wm-model={spec}" for spec in specs]
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env=environment, check=False, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
    if done.returncode not in (0, 1, 6):  # passed, failed, or the images cannot tell
        sys.exit(done.stdout + done.stderr)
    return seconds


def beside_a_busy_core(specs: list[str], options: list[str]) -> float:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            return gate(specs, options)
        finally:
            busy.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    data = real_data()
    options = [
        f"--wm-images={photos_below(data)}",
        f"--wm-max-images={arguments.images}",
        "--wm-early-stop=0",
    ]
    one, both = [mobilenet_spec(data)], [mobilenet_spec(data), lite_spec(data)]
    print_machine()
    in_turn, together, quiet, busy = [], [], [], []
    for _ in range(arguments.rounds):
        in_turn.append(gate(both, [*options, "-p", "no:xdist"]))
        together.append(gate(both, [*options, "-n2"]))
        quiet.append(gate(one, options))
        busy.append(beside_a_busy_core(one, options))
    print(f"one after the other {median(in_turn):.1f} s, two workers {median(together):.1f} s")
    print(f"one model, quiet {median(quiet):.1f} s, beside a busy core {median(busy):.1f} s")
    ratio = median(together) / median(in_turn)
    wanted = f"<= {SIDE_BY_SIDE}"
    line("two workers / one after the other", f"{ratio:.2f}", wanted, ratio <= SIDE_BY_SIDE)
    ratio = median(busy) / median(quiet)
    line("beside a busy core / quiet", f"{ratio:.2f}", f"<= {BUSY}", ratio <= BUSY)


if __name__ == "__main__":
    main()
