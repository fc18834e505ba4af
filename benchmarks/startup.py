"""How much the plugin adds to ``pytest --help``: the two in turns, medians compared.

``python benchmarks/startup.py [--rounds 20]``
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from statistics import median

from common import line

# Other plugins would add their own time, and their own noise.
BARE = [sys.executable, "-m", "pytest", "--help"]
PLUGIN = "pytest_watermark_guard.plugin.plugin"


def seconds(with_plugin: bool, folder: str) -> float:
    command = [*BARE, "-p", PLUGIN] if with_plugin else BARE
    start = time.perf_counter()
    subprocess.run(
        command,
        cwd=folder,
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": ""},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    times: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for with_plugin in (False, True):
                times[with_plugin].append(seconds(with_plugin, folder))
    bare, plugin = median(times[False]), median(times[True])
    added = 1000 * (plugin - bare)
    print(f"pytest --help: bare {1000 * bare:.0f} ms, with the plugin {1000 * plugin:.0f} ms")
    line("milliseconds added", f"{added:.1f}", "<= 30", added <= 30)


if __name__ == "__main__":
    main()
