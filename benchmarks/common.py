"""What the benchmarks share: where the real data is, and how figures are printed."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch

DATA = "WATERMARK_GUARD_DATA"


def real_data() -> Path:
    """Return the folder with ``data/imagenet-sample`` and ``models/mobilenet_v2.safetensors``."""
    folder = os.environ.get(DATA)
    if not folder:
        sys.exit(f"set {DATA} to the folder with the real images and weights")
    return Path(folder).resolve()


def mobilenet_spec(data: Path) -> str:
    return f"torchvision:mobilenet_v2?weights={data}/models/mobilenet_v2.safetensors"


def lite_spec(data: Path) -> str:
    return f"timm:tf_efficientnet_lite0?weights={data}/models/tf_efficientnet_lite0.safetensors"


def photos_below(data: Path) -> Path:
    return data / "data" / "imagenet-sample" / "baseline"


def print_machine() -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {device}"
    )


def line(what: str, measured: object, wanted: object, met: bool) -> None:
    verdict = "" if wanted == "" else "met" if met else "MISSED"
    print(f"{what:<58} {measured!s:>10}   {wanted!s:<10} {verdict}".rstrip())
