"""The paper's 20 architectures in one survey: tables, numbers as JSON, a picture for each script.

Weights are random where no others are at hand: such a network shows what reacts without having
learned anything. MobileNet V2 has real weights if ``WATERMARK_GUARD_DATA`` names their folder.

``python benchmarks/survey.py [--images 64] [--out survey] [--engine ray]``
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from common import DATA, mobilenet_spec, print_machine

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
    found = wm.survey(models, max_images=arguments.images, engine=arguments.engine)
    print(found.table(width=100))
    print(f"{len(found.reports)} models in {time.perf_counter() - start:.0f} s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    found.save(arguments.out / "survey.json")
    for scenario in found.scenarios:
        found.plot(arguments.out / f"{scenario}.png", scenario)
    found.to_html(arguments.out / "survey.html")
    print(f"JSON, pictures and a page are in {arguments.out}")


if __name__ == "__main__":
    main()
