"""The whole probe against the reference procedure, side by side in one run.

Reference: five folders of JPEGs (the photos and four marked copies), each through a DataLoader with
two workers and an eager float32 model at batch 32, then one torchmetrics call for each unit of both
layers. Ours: `wm.probe` on the folder of photos, drawing the four scenarios as it goes, with empty
caches, so that finding the fastest way to run the model is part of it. Both run in turns; the
medians are compared. "Not the model" is the share of the probe's wall time outside forward passes.
Then the same files are scored both ways, and the largest difference of A over all units is shown.
One command prints the whole table. For the two large models fewer images do, or the reference would
take hours; finding the fastest way is then a larger part of the probe. Only MobileNet V2 has real
weights; the others are random, with calibrated batch norm and small residual branches (`settle`).

``WATERMARK_GUARD_DATA=... python benchmarks/speed.py [MODEL ...] [--images N] [--rounds 3]``
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

import numpy as np
import torch
from common import line, mobilenet_spec, print_machine, real_data
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import binary_auroc
from torchvision import transforms
from torchvision.models.resnet import BasicBlock, Bottleneck

import pytest_watermark_guard as wm
from pytest_watermark_guard.models.running.runner import Runner

SCRIPTS = tuple(wm.SCENARIOS)
IMAGES = {"resnet18": 998, "mobilenet_v2": 998, "resnet50": 200, "densenet161": 200}
WANTED = {"resnet18": 0.30, "resnet50": 0.28, "densenet161": 0.28, "mobilenet_v2": 0.13}
NOT_THE_MODEL = {"resnet18": 0.05, "mobilenet_v2": 0.10}


class Folder(Dataset):
    transform = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def reference(model: torch.nn.Module, folders: list[Path]) -> dict[tuple[str, str], np.ndarray]:
    """Score as the paper's authors do, folder by folder and unit by unit."""
    units: dict[str, list[torch.Tensor]] = {"features": []}
    head = model.fc if hasattr(model, "fc") else model.classifier
    handle = head.register_forward_pre_hook(lambda _, x: units["features"].append(x[0]))
    found = []
    with torch.no_grad():
        for folder in folders:
            units["features"].clear()
            loader = DataLoader(Folder(folder), batch_size=32, num_workers=2)
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
    """Adds up the seconds that `Runner` spends in the model."""

    def __init__(self) -> None:
        self.seconds = 0.0
        run = Runner.__call__

        def timed(runner: Runner, inputs: torch.Tensor) -> object:
            start = time.perf_counter()
            try:
                return run(runner, inputs)
            finally:
                self.seconds += time.perf_counter() - start

        Runner.__call__ = timed  # type: ignore[assignment,method-assign]


def largest_difference(model: torch.nn.Module, folders: list[Path]) -> float:
    """Score the same files both ways and return how far A is apart, over all units."""
    paired = [
        wm.PairedFolder(script, copies) for script, copies in zip(SCRIPTS, folders[1:], strict=True)
    ]
    areas = reference(model, folders)
    report = wm.probe(model, folders[0], paired, preprocess="imagenet", cache=False)
    return max(float(np.abs(areas[key] - report[key].auroc).max()) for key in areas)


def photos_below(data: Path) -> Path:
    return data / "data" / "imagenet-sample" / "baseline"


def reference_seconds(name: str, folders: list[Path]) -> float:
    """Time the reference in a process of its own, as everybody else runs it."""
    command = [sys.executable, __file__, name, "--reference", *map(str, folders)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def load(name: str, data: Path) -> torch.nn.Module:
    if name == "mobilenet_v2":
        return wm.load_model(mobilenet_spec(data)).module
    torch.manual_seed(0)
    return settle(wm.load_model(f"torchvision:{name}@random").module, photos_below(data))


def settle(model: torch.nn.Module, photos: Path) -> torch.nn.Module:
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
    some = Folder(photos)
    with torch.no_grad():
        model(torch.stack([some[index] for index in range(0, len(some), 31)]))
    return model.eval()


Row = tuple[str, str, str, bool]


def measure(
    name: str, data: Path, folders: list[Path], rounds: int, clock: ForwardClock, check: bool
) -> list[Row]:
    """Time probe and reference in turns; returns rows for the table."""
    model = load(name, data)
    own, theirs, shares = [], [], []
    for round_ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["WATERMARK_GUARD_CACHE"] = cache
            clock.seconds = 0.0
            start = time.perf_counter()
            report = wm.probe(model, folders[0], SCRIPTS, preprocess="imagenet")
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
    wanted = WANTED.get(name, 1.0)
    rows = [(f"{title}: probe / reference", f"{ratio:.2f}", f"<= {wanted}", ratio <= wanted)]
    if name in NOT_THE_MODEL:
        most = NOT_THE_MODEL[name]
        rows.append((f"{title}: not the model", f"{share:.1%}", f"<= {most:.0%}", share <= most))
    if check:
        off = largest_difference(model, folders)
        rows.append((f"{title}: |dA|, same files", f"{off:.1e}", "<= 0.005", off <= 0.005))
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
    parser.add_argument("--no-check", action="store_true", help="times only")
    parser.add_argument("--reference", nargs=5, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = real_data()
    if arguments.reference:
        model = load(arguments.models[0], data)
        start = time.perf_counter()
        reference(model, arguments.reference)
        print(time.perf_counter() - start)
        return
    photos = photos_below(data)
    print_machine()
    clock = ForwardClock()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        laid_out: dict[int, list[Path]] = {}
        for name in arguments.models:
            images = arguments.images or IMAGES.get(name, 998)
            if images not in laid_out:
                laid_out[images] = print_copies(photos, images, Path(scratch, str(images)))
            check = not arguments.no_check
            rows += measure(name, data, laid_out[images], arguments.rounds, clock, check)
    print(f"\nMedians of {arguments.rounds} rounds")
    for row in rows:
        line(*row)


if __name__ == "__main__":
    main()
