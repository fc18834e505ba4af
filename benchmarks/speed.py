"""The whole probe against the reference procedure, side by side in one run.

Reference: five folders of JPEGs (the photos and four marked copies), each through a DataLoader with
two workers and an eager float32 model at batch 32, then one torchmetrics call for each unit of both
layers. Ours: `wm.probe` on the folder of photos, drawing the four scenarios as it goes, with empty
caches, so that finding the fastest way to run the model is part of it. Both run in turns; the
medians are compared. "Not the model" is the share of the probe's wall time outside forward passes.
Then the same files are scored both ways, and the largest difference of A over all units is shown.
One command prints the whole table. For the large models fewer images do, or the reference would
take hours; finding the fastest way is then a larger part of the probe. MobileNet V2 and
EfficientNet-Lite0 have real weights; the others are random, with calibrated batch norm and small
residual branches (`settle`). With ``--float32`` the probe does without bfloat16, as on hardware
that has none. "Of the hardware's limit" are the operations of the forward passes per second, as a
share of those of a large matrix product in bfloat16, by the same OpenVINO in the same run.

``WATERMARK_GUARD_DATA=... python benchmarks/speed.py [MODEL ...] [--images N] [--rounds 3]``
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from common import line, photos_below, print_machine, real_data
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.functional.classification import binary_auroc
from torchvision import transforms
from torchvision.models.resnet import BasicBlock, Bottleneck

import pytest_watermark_guard as wm
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.running import plan
from pytest_watermark_guard.models.running.openvino_model import Converter
from pytest_watermark_guard.models.running.runner import Runner

SCRIPTS = tuple(wm.SCENARIOS)
IMAGES = {
    "mobilenet_v2": 998,
    "tf_efficientnet_lite0": 998,
    "resnet18": 998,
    "resnet50": 200,
    "densenet161": 200,
    "vit_small_patch16_224": 200,
}
WANTED = {
    "mobilenet_v2": 0.07,
    "tf_efficientnet_lite0": 0.08,
    "resnet18": 0.14,
    "resnet50": 0.12,
    "densenet161": 0.14,
    "vit_small_patch16_224": 0.20,
}
IN_FLOAT32 = 0.30
LIMIT = {"resnet50": 0.40}
# |dA| at 95 % of all units, and of any.
USUAL, LARGEST = 0.005, 0.01


class Folder(Dataset):
    def __init__(self, folder: Path, preprocessing: wm.Preprocessing) -> None:
        self.paths = sorted(folder.iterdir())
        normalize = transforms.Normalize(preprocessing.mean, preprocessing.std)
        self.transform = transforms.Compose([transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


Loaded = tuple[torch.nn.Module, wm.Preprocessing]


def reference(loaded: Loaded, folders: list[Path]) -> dict[tuple[str, str], np.ndarray]:
    """Score as the paper's authors do, folder by folder and unit by unit."""
    model, preprocessing = loaded
    units: dict[str, list[torch.Tensor]] = {"features": []}
    head = next(getattr(model, n) for n in ("fc", "classifier", "head") if hasattr(model, n))
    handle = head.register_forward_pre_hook(lambda _, x: units["features"].append(x[0]))
    found = []
    with torch.no_grad():
        for folder in folders:
            units["features"].clear()
            loader = DataLoader(Folder(folder, preprocessing), batch_size=32, num_workers=2)
            logits = torch.cat([model(batch) for batch in loader])
            found.append({"logits": logits, "features": torch.cat(units["features"])})
    handle.remove()
    baseline, *marked = found
    n = len(baseline["logits"])
    truth = torch.cat([torch.zeros(n), torch.ones(n)]).long()
    areas = {}
    for script, activations in zip(SCRIPTS, marked, strict=True):
        for layer in ("logits", "features"):
            both = torch.cat([baseline[layer], activations[layer]]).double()
            low, high = both.amin(0), both.amax(0)
            # Into [0, 1], or torchmetrics would squash the scores with a float32 sigmoid.
            both = (both - low) / (high - low).clamp_min(1e-300)
            areas[layer, script] = np.array(
                [float(binary_auroc(both[:, unit], truth)) for unit in range(both.shape[1])]
            )
    return areas


class ForwardClock:
    """Adds up the seconds that `Runner` spends in the model, and keeps the fastest pass."""

    def __init__(self) -> None:
        self.seconds, self.fastest = 0.0, float("inf")  # of an input
        run = Runner.__call__

        def timed(runner: Runner, inputs: torch.Tensor) -> object:
            start = time.perf_counter()
            try:
                return run(runner, inputs)
            finally:
                taken = time.perf_counter() - start
                self.seconds += taken
                self.fastest = min(self.fastest, taken / len(inputs))

        Runner.__call__ = timed  # type: ignore[assignment,method-assign]


def differences(loaded: Loaded, folders: list[Path]) -> tuple[float, float]:
    """Score the same files both ways; returns how far A is apart, of 95 % of units and of all."""
    paired = [
        wm.PairedFolder(script, copies) for script, copies in zip(SCRIPTS, folders[1:], strict=True)
    ]
    areas = reference(loaded, folders)
    report = wm.probe(loaded[0], folders[0], paired, preprocess=loaded[1], cache=False)
    apart = np.concatenate([np.abs(areas[key] - report[key].auroc) for key in areas])
    return float(np.quantile(apart, 0.95)), float(apart.max())


def matrix_product() -> float:
    """Return the operations per second of a large product in bfloat16, at best."""
    side = 4096
    with torch.no_grad():
        layer = torch.nn.Linear(side, side, bias=False)
        values = torch.randn(side, side)
        with ActivationRecorder(layer, ("logits",), values[:2], "logits") as recorder:
            # In parts, as batches are: each is computed on a core or a few.
            parts = 16
            converter = Converter(recorder)
            converter.start(values[: side // parts], ["bfloat16"], at_once=parts)
            run = converter.compiled("bfloat16")
            taken = []
            for _ in range(10):
                start = time.perf_counter()
                run(values)
                taken.append(time.perf_counter() - start)
    return 2 * side**3 / min(taken)


def operations(model: torch.nn.Module) -> int:
    """Return the floating-point operations of a forward pass of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 224, 224))
    return counter.get_total_flops()


def reference_seconds(name: str, folders: list[Path]) -> float:
    """Time the reference in a process of its own, as everybody else runs it."""
    command = [sys.executable, __file__, name, "--reference", *map(str, folders)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def load(name: str, data: Path) -> Loaded:
    library = "timm" if name.startswith(("tf_", "vit_")) else "torchvision"
    weights = data / "models" / f"{name}.safetensors"
    torch.manual_seed(0)
    if weights.is_file():
        loaded = wm.load_model(f"{library}:{name}?weights={weights}")
        # At the photos' own size, as the reference takes them.
        return loaded.module, replace(loaded.preprocessing, size=(224, 224))
    loaded = wm.load_model(f"{library}:{name}@random")
    return settle(loaded.module, photos_below(data), loaded.preprocessing), loaded.preprocessing


def settle(
    model: torch.nn.Module, photos: Path, preprocessing: wm.Preprocessing
) -> torch.nn.Module:
    """Calibrate the batch norm of random weights on photos, and scale residual branches to a fifth.

    A network that is only initialised answers nearly the same to every photo, and multiplies
    rounding from block to block: in bfloat16 nothing of it could be compared.
    """
    for block in model.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            torch.nn.init.constant_(last.weight, 0.2)
    norms = [norm for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # the mean of all batches: there is one
    some = Folder(photos, preprocessing)
    with torch.no_grad():
        model(torch.stack([some[index] for index in range(0, len(some), 31)]))
    return model.eval()


Row = tuple[str, str, str, bool]


def measure(
    name: str,
    data: Path,
    folders: list[Path],
    rounds: int,
    clock: ForwardClock,
    check: bool,
    float32: bool,
) -> list[Row]:
    """Time probe and reference in turns; returns rows for the table."""
    model, preprocessing = load(name, data)
    clock.fastest = float("inf")
    own, theirs, shares = [], [], []
    for round_ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["WATERMARK_GUARD_CACHE"] = cache
            clock.seconds = 0.0
            start = time.perf_counter()
            report = wm.probe(model, folders[0], SCRIPTS, preprocess=preprocessing)
            own.append(time.perf_counter() - start)
            shares.append(1 - clock.seconds / own[-1])
        theirs.append(reference_seconds(name, folders))
        print(
            f"{name}, {report.n_images} images, round {round_ + 1}: probe {own[-1]:.1f} s "
            f"({report.precision}), {shares[-1]:.1%} not the model, reference {theirs[-1]:.1f} s",
            flush=True,
        )
    title = f"{name}, {report.n_images} images"
    ratio, share = median(own) / median(theirs), median(shares)
    wanted = IN_FLOAT32 if float32 else WANTED.get(name, 1.0)
    rows = [
        (f"{title}: probe / reference", f"{ratio:.3f}", f"<= {wanted}", ratio <= wanted),
        (f"{title}: not the model", f"{share:.1%}", "", True),
    ]
    if not float32:
        limit = operations(model) / clock.fastest / matrix_product()
        least = LIMIT.get(name, 0.0)
        title_ = f"{title}: of the hardware's limit"
        rows.append((title_, f"{limit:.0%}", f">= {least:.0%}" if least else "", limit >= least))
    if check:
        usual, largest = differences((model, preprocessing), folders)
        rows.append((f"{title}: |dA|, 95 %", f"{usual:.4f}", f"<= {USUAL}", usual <= USUAL))
        rows.append((f"{title}: |dA|, any", f"{largest:.4f}", f"<= {LARGEST}", largest <= LARGEST))
    return rows


def print_copies(photos: Path, count: int, scratch: Path) -> list[Path]:
    """Lay out every k-th photo and four marked copies; returns the five folders."""
    folders = [scratch / "photos"]
    folders[0].mkdir(parents=True)
    names = sorted(path.name for path in photos.iterdir())
    step = len(names) / count
    for name in {names[int(index * step)] for index in range(count)}:
        (folders[0] / name).symlink_to(photos / name)
    for script in SCRIPTS:
        folders.append(scratch / script)
        wm.write_marked_folder(folders[0], folders[-1], script, format="jpeg")
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[*IMAGES])
    parser.add_argument("--images", type=int, help="for every model, instead of its own number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--float32", action="store_true", help="as on hardware without bfloat16")
    parser.add_argument("--no-check", action="store_true", help="times only")
    parser.add_argument("--reference", nargs=5, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = real_data()
    if arguments.reference:
        loaded = load(arguments.models[0], data)
        start = time.perf_counter()
        reference(loaded, arguments.reference)
        print(time.perf_counter() - start)
        return
    photos = photos_below(data)
    print_machine()
    if arguments.float32:
        plan._has_bfloat16 = lambda device: False
    clock = ForwardClock()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        laid_out: dict[int, list[Path]] = {}
        for name in arguments.models:
            images = arguments.images or IMAGES.get(name, 998)
            if images not in laid_out:
                laid_out[images] = print_copies(photos, images, Path(scratch, str(images)))
            check = not arguments.no_check
            rows += measure(
                name, data, laid_out[images], arguments.rounds, clock, check, arguments.float32
            )
    print(f"\nMedians of {arguments.rounds} rounds")
    for row in rows:
        line(*row)


if __name__ == "__main__":
    main()
