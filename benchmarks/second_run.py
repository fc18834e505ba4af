"""The second run of a gate: how long it takes beyond importing torch, in a process of its own.

``WATERMARK_GUARD_DATA=... python benchmarks/second_run.py [--rounds 5]``
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

from common import line, mobilenet_spec, photos_below, print_machine, real_data

# A user's test process has its model; the images that it sees are counted outside of it.
CALL = """
import sys, time
import torch, torchvision
from torch import nn
images, weights = sys.argv[1:]
model = torchvision.models.mobilenet_v2()
from safetensors.torch import load_file
model.load_state_dict(load_file(weights))
seen = 0
convolve = nn.functional.conv2d
def counted(x, *args):
    global seen
    seen += len(x) if x.shape[1] == 3 else 0
    return convolve(x, *args)
nn.functional.conv2d = counted
start = time.perf_counter()
import pytest_watermark_guard as wm
wm.assert_not_watermark_sensitive(model, images=images, preprocess="imagenet")
print(time.perf_counter() - start, seen)
"""


def run(command: list[str], folder: str | None = None) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    return done.stdout


def seconds(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    run(command, folder)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    data = real_data()
    photos = str(photos_below(data))
    call = [sys.executable, "-c", CALL, photos, str(data / "models" / "mobilenet_v2.safetensors")]
    bare = [sys.executable, "-c", "import torch, torchvision"]
    print_machine()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["WATERMARK_GUARD_CACHE"] = str(Path(scratch, "cache"))
        # Installed packages are compiled; one that is worked on is by its first run.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        # What other plugins take to be imported is none of the gate's.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        gate = [sys.executable, "-m", "pytest", "-p", "pytest_watermark_guard.plugin.plugin"]
        gate += [f"--wm-model={mobilenet_spec(data)}"]
        gate += [f"--wm-images={photos}", "-p", "no:cacheprovider"]
        first, _ = run(call).split()
        print(f"the first run's call: {float(first):.1f} s")
        run(gate, scratch)  # without the configuration of this project's own tests
        calls, gates, imports, images = [], [], [], 0
        for _ in range(rounds):
            took, seen = run(call).split()
            calls.append(float(took))
            images = max(images, int(seen))
            gates.append(seconds(gate, scratch))
            imports.append(seconds(bare, scratch))
    line(
        "assert_... in a fresh process, seconds", f"{median(calls):.2f}", "<= 1", median(calls) <= 1
    )
    # Two of each stream, and those that show where the layers are.
    line("images that the model sees", images, "<= 16", images <= 16)
    beyond = median(gates) - median(imports)
    # With pytest's own start, and building the model.
    line("pytest --wm-model beyond importing torch(vision)", f"{beyond:.2f}", "<= 1", beyond <= 1)


if __name__ == "__main__":
    main()
