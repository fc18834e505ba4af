"""How far does the fastest way to run a model move the A of its units, on three real networks?

All photos under all four scripts, once in float32 and once as ``precision="auto"`` runs them on
this machine; shown is the difference of A for 95 % of the units of both layers, and for any.

``WATERMARK_GUARD_DATA=... python benchmarks/precision.py [MODEL ...] [--images N]``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from common import line, photos_below, print_machine, real_data
from speed import LARGEST, USUAL

import pytest_watermark_guard as wm

MODELS = {
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "tf_efficientnet_lite0": "timm:tf_efficientnet_lite0",
    "tf_efficientnet_lite1": "timm:tf_efficientnet_lite1",
}


def differences(one: wm.ProbeReport, other: wm.ProbeReport) -> np.ndarray:
    parts = [np.abs(one.scores[key].auroc - other.scores[key].auroc) for key in one.scores]
    return np.concatenate(parts)


def probed(name: str, data: Path, images: int | None, precision: str) -> wm.ProbeReport:
    return wm.probe(
        f"{MODELS[name]}?weights={data}/models/{name}.safetensors",
        photos_below(data),
        tuple(wm.SCENARIOS),
        ("features", "logits"),
        precision=precision,
        max_images=images,
        cache=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[*MODELS])
    parser.add_argument("--images", type=int, help="instead of all")
    arguments = parser.parse_args()
    data = real_data()
    print_machine()
    for name in arguments.models:
        float32, fastest = (
            probed(name, data, arguments.images, precision) for precision in ("float32", "auto")
        )
        moved = differences(float32, fastest)
        usual, largest = float(np.quantile(moved, 0.95)), float(moved.max())
        title = f"{name}, {float32.n_images} images"
        print(f"{title}: {float32.precision} against {fastest.precision}")
        line(f"{title}: |dA|, 95 %", f"{usual:.4f}", f"<= {USUAL}", usual <= USUAL)
        line(f"{title}: |dA|, any", f"{largest:.4f}", f"<= {LARGEST}", largest <= LARGEST)


if __name__ == "__main__":
    main()
