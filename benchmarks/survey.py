"""The paper's 20 architectures in one survey: tables, numbers as JSON, pictures, and the page.

Weights are random where no others are at hand: such a network shows what reacts without having
learned anything. MobileNet V2 has real weights if ``WATERMARK_GUARD_DATA`` names their folder. The
page, with example images, is opened in Chromium, three times; the median is told.

``python benchmarks/survey.py [--images 64] [--out survey] [--engine ray]``
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median

from common import DATA, line, mobilenet_spec, print_machine
from opening import BROWSER, DRIVER, opened

import pytest_watermark_guard as wm

ARCHITECTURES = [
    "alexnet", "resnet18", "resnet50", "resnet101", "resnet152", "resnext101_32x8d",
    "wide_resnet101_2", "vit_b_16", "inception_v3", "densenet121", "densenet161", "densenet201",
    "googlenet", "mobilenet_v2", "shufflenet_v2_x1_0", "vgg11", "vgg13", "vgg16", "vgg19",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("survey"))
    parser.add_argument("--engine", choices=["ray"])
    arguments = parser.parse_args()
    models = {name: f"torchvision:{name}@random" for name in ARCHITECTURES}
    models["beit_base_patch16_224"] = "timm:beit_base_patch16_224@random"
    if os.environ.get(DATA):
        models["mobilenet_v2"] = mobilenet_spec(Path(os.environ[DATA]))
        models = {f"{n} (trained)" if "?" in m else n: m for n, m in models.items()}
    print_machine()
    start = time.perf_counter()
    found = wm.survey(models, max_images=arguments.images, engine=arguments.engine, examples=True)
    print(found.table(width=100))
    print(f"{len(found.reports)} models in {time.perf_counter() - start:.0f} s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    found.save(arguments.out / "survey.json")
    for scenario in found.scenarios:
        found.plot(arguments.out / f"{scenario}.png", scenario)
    page = arguments.out / "survey.html"
    found.to_html(page)
    print(f"JSON, pictures and a page are in {arguments.out}")
    if not (BROWSER and DRIVER):
        print("not opened: chromium and chromedriver are not installed")
        return
    times, requests, errors = zip(*(opened(page) for _ in range(3)), strict=True)
    size, seconds = page.stat().st_size / 2**20, median(times)
    line("the page's size, MiB", f"{size:.1f}", "<= 5", size <= 5)
    line("seconds until all of it is shown", f"{seconds:.2f}", "< 1", seconds < 1)
    asked = sum(map(len, requests))
    line("requests to anywhere", asked, 0, asked == 0)
    told = sum(map(len, errors))
    line("errors in the console", told, 0, told == 0)


if __name__ == "__main__":
    main()
