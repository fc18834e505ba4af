"""One survey by one process and by Ray workers: the same file, and how much sooner.

``python benchmarks/scale.py [--workers 2 4] [--images 60]``

Each worker computes in one thread, and so does the one process. The ideal is that process's time
over the cores at hand, or over the workers where these are fewer. Starting Ray, and the first
import of torch in each worker, is told apart.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import ray
import torch
from common import line, print_machine

import pytest_watermark_guard as wm

MODELS = {
    f"{name} {number}": f"torchvision:{name}@random"
    for number in range(1, 11)
    for name in ("resnet18", "mobilenet_v2")
}


def survey(models: dict[str, str], images: int, engine: str | None) -> wm.SurveyReport:
    return wm.survey(
        models,
        scenarios=("chinese",),
        max_images=images,
        precision="float32",
        device="cpu",
        cache=False,
        engine=engine,
    )


def timed(images: int, engine: str | None, path: Path) -> tuple[float, bytes]:
    start = time.perf_counter()
    found = survey(MODELS, images, engine)
    seconds = time.perf_counter() - start
    if found.failures:
        sys.exit(f"not probed: {found.failures}")
    found.save(path)
    return seconds, path.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--images", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    print_machine()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["WATERMARK_GUARD_CACHE"] = scratch
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        spec = "torchvision:resnet18@random"
        survey({"warm": spec}, 2, None)
        alone, expected = timed(arguments.images, None, Path(scratch, "alone.json"))
        print(
            f"{len(MODELS)} models, {arguments.images} images, {cores} cores: {alone:.1f} s alone"
        )
        for workers in arguments.workers:
            start = time.perf_counter()
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=200 * 2**20,
            )
            try:
                survey({str(worker): spec for worker in range(workers)}, 2, "ray")
                started = time.perf_counter() - start
                seconds, found = timed(arguments.images, "ray", Path(scratch, "ray.json"))
            finally:
                ray.shutdown()
            ideal = alone / min(workers, cores)
            print(f"{workers} workers: started in {started:.1f} s, {seconds:.1f} s of work")
            line(f"{workers} workers: the same file", found == expected, True, found == expected)
            ratio = seconds / ideal
            line(
                f"{workers} workers: time over the ideal", f"{ratio:.2f}", "<= 1.15", ratio <= 1.15
            )


if __name__ == "__main__":
    main()
