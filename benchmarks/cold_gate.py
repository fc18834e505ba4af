"""Where the time of a gate goes, from the command line to the verdict, with an empty cache.

``pytest --wm-model=...`` runs in a process of its own, in which the functions of each part are
timed, each without the others that it calls. Threads that read images beside the model are not
parts: where the model waits for them, that is "waiting for images".

"Forward passes" are those at full speed; the first ones, which plain torch runs before a faster
way is found, are part of "tuning" as far as they take longer.

``WATERMARK_GUARD_DATA=... python benchmarks/cold_gate.py [mobilenet_v2] [--images photos]``
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from common import line, lite_spec, mobilenet_spec, photos_below, print_machine, real_data

SPECS = {"mobilenet_v2": mobilenet_spec, "tf_efficientnet_lite0": lite_spec}
MOST = 2.0  # seconds of what is neither the import of torch nor a forward pass

TIMED = """
import contextlib, functools, json, os, statistics, sys, time
now = time.process_time if os.environ.get("COLD_GATE_CLOCK") == "cpu" else time.perf_counter
parts, stack = {}, []
began = now()

def enter(part):
    moment = now()
    if stack:
        name, since = stack[-1]
        parts[name] = parts.get(name, 0) + moment - since
    stack.append([part, moment])

def leave():
    moment = now()
    name, since = stack.pop()
    parts[name] = parts.get(name, 0) + moment - since
    if stack:
        stack[-1][1] = moment

enter("importing torch")
from pytest_watermark_guard.plugin.imports import imported_for_good
with imported_for_good():  # as the plugin does
    import torch, torchvision
leave()
enter("other imports, pytest, output")
from pytest_watermark_guard.models.loading import lookups
from pytest_watermark_guard.models.running import tuning
from pytest_watermark_guard.models.running.runner import Runner
from pytest_watermark_guard.probing import first_answers, measuring, prepare, running
from pytest_watermark_guard.probing.early_stopping import EarlyGate

def timed(owner, name, part):
    function = getattr(owner, name)
    @functools.wraps(function)
    def call(*args, **options):
        enter(part)
        try:
            return function(*args, **options)
        finally:
            leave()
    setattr(owner, name, call)

timed(lookups, "library", "importing the model's library")
timed(prepare, "as_loaded", "loading the model")
timed(prepare, "open_for", "opening the images")
timed(prepare, "cache_keys", "keys of the cache")
timed(running, "_recorder", "finding the layers")
timed(running, "free_threads", "tuning")
timed(tuning.Converter, "start", "converting for OpenVINO")
timed(tuning.Tuner, "_converted", "compiling by OpenVINO")
timed(first_answers.FirstAnswers, "of", "first answers, for the cache")
timed(EarlyGate, "decided", "early verdict")
timed(measuring, "score", "scores")
timed(measuring, "impacts", "scores")
timed(measuring, "doubts_of", "looking at the images")
timed(measuring, "find_examples", "example images")

runs = []
run = Runner.__call__
def counted(self, values):
    # What runs for tuning's sake is timed there.
    if stack and stack[-1][0] == "tuning":
        return run(self, values)
    enter("forward passes")
    start = now()
    try:
        return run(self, values)
    finally:
        leave()
        runs.append((len(values), now() - start, str(self.plan)))
Runner.__call__ = counted
candidate = tuning.Tuner._candidate
def tried(self, plan):
    enter("tuning")
    try:
        return candidate(self, plan)
    finally:
        leave()
tuning.Tuner._candidate = tried

inputs = running.model_inputs
@contextlib.contextmanager
def waited(*args):
    with inputs(*args) as coming:
        def each():
            while True:
                enter("waiting for images")
                try:
                    batch = next(coming, None)
                finally:
                    leave()
                if batch is None:
                    return
                yield batch
        yield each()
running.model_inputs = waited

import pytest
status = pytest.main(sys.argv[1:])
leave()
# The first of the last way warmed up; others are apart by what else the machine does.
settled = [seconds / rows for rows, seconds, plan in runs if plan == runs[-1][2]][1:]
full = statistics.median(settled)
for rows, seconds, plan in runs:
    extra = max(0, seconds - rows * full) if plan != runs[-1][2] else 0
    parts["forward passes"] -= extra
    parts["tuning"] = parts.get("tuning", 0) + extra
whole = now() - began
print("PARTS", json.dumps([whole, sum(rows for rows, *_ in runs), runs[-1][2], parts]))
"""


def measure(spec: str, options: list[str], clock: str) -> tuple[float, int, str, dict[str, float]]:
    """Run a gate once; returns seconds, inputs, how they were run, and seconds by part."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "WATERMARK_GUARD_CACHE": f"{folder}/cache"}
        # What other plugins take to be imported is none of the gate's.
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        # An installed package is compiled once, and not at each start.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["COLD_GATE_CLOCK"] = clock
        command = [sys.executable, "-c", TIMED, "-p", "pytest_watermark_guard.plugin.plugin"]
        command += [f"--wm-model={spec}", "-q", *options]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env=environment, check=False
        )
    told = [text for text in done.stdout.splitlines() if text.startswith("PARTS ")]
    if not told:
        sys.exit(f"the gate did not end:\n{done.stdout}\n{done.stderr}")
    whole, rows, plan, parts = json.loads(told[-1].removeprefix("PARTS "))
    return whole, rows, plan, parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[*SPECS])
    parser.add_argument("--images", help="'photos' are those of the real data; else built-in")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="'cpu' counts what all threads of the gate compute: for a machine that is not idle",
    )
    arguments = parser.parse_args()
    data = real_data()
    options = []
    if arguments.images == "photos":
        options = [f"--wm-images={photos_below(data)}"]
    print_machine()
    for name in arguments.models:
        rounds = [
            measure(SPECS[name](data), options, arguments.clock) for _ in range(arguments.rounds)
        ]
        _, rows, plan, _ = rounds[-1]
        images = Path(arguments.images or "built-in images").name
        print(f"\n{name}, {images}: {median(r[0] for r in rounds):.1f} s, {rows} inputs, {plan}")
        names = dict.fromkeys(part for *_, parts in rounds for part in parts)
        by_part = {part: median(r[3].get(part, 0.0) for r in rounds) for part in names}
        for part, seconds in sorted(by_part.items(), key=lambda item: -item[1]):
            print(f"  {part:<34} {seconds:6.2f} s")
        ours = sum(
            seconds
            for part, seconds in by_part.items()
            if part not in ("importing torch", "forward passes")
        )
        line("neither importing torch nor forward passes", f"{ours:.2f} s", "<= 2 s", ours <= MOST)


if __name__ == "__main__":
    main()
