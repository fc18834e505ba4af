"""The whole probe against the reference procedure, and what rendering costs, in one run.

Reference: five folders of JPEGs (the photos and four marked copies), each through a DataLoader with
two workers and an eager float32 model at batch 32, then one torchmetrics call for each unit of both
layers. Ours: `wm.probe` on the folder of photos, drawing the four scenarios as it goes. Both run in
turns; the medians are compared. Then the probe's own marks are drawn once more by themselves.

``WATERMARK_GUARD_DATA=... python benchmarks/speed.py [--model resnet18] [--rounds 3]``
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from common import line, print_machine, real_data
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import binary_auroc
from torchvision import transforms

import pytest_watermark_guard as wm
from pytest_watermark_guard.watermarks.composite import composite
from pytest_watermark_guard.watermarks.draw import draw_watermark
from pytest_watermark_guard.watermarks.text import Renderer

SCRIPTS = tuple(wm.SCENARIOS)


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
    handle = model.fc.register_forward_pre_hook(lambda _, x: units["features"].append(x[0]))
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


def largest_difference(model: torch.nn.Module, folders: list[Path], scratch: Path) -> float:
    """Score the same files both ways and return how far A is apart, over all units."""
    names = [path.name for path in sorted(folders[0].iterdir())[::8]]
    few = []
    for index, folder in enumerate(folders):
        few.append(scratch / f"few-{index}")
        few[-1].mkdir()
        for name in names:
            copy = folder / name if index == 0 else (folder / name).with_suffix(".jpeg")
            (few[-1] / name).symlink_to(copy)
    areas = reference(model, few)
    paired = [
        wm.PairedFolder(script, copies) for script, copies in zip(SCRIPTS, few[1:], strict=True)
    ]
    report = wm.probe(model, few[0], paired, preprocess="imagenet", precision="float32")
    return max(float(np.abs(areas[key] - report[key].auroc).max()) for key in areas)


def rendering_seconds(folder: Path, preprocessing: wm.Preprocessing) -> float:
    """Draw, render and composite all marks of the probe, and nothing else."""
    paths = sorted(folder.iterdir())
    pixels = np.stack([preprocessing.fit(Image.open(path)) for path in paths])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    start = time.perf_counter()
    for scenario in wm.SCENARIOS.values():
        renderer = Renderer(scenario, 224, 224)
        for first in range(0, len(paths), 6):  # the probe's own batch: 32 // (1 + 4 scenarios)
            names = [path.name for path in paths[first : first + 6]]
            marks = [renderer.render(draw_watermark(scenario, 17, name)) for name in names]
            composite(images[first : first + 6], marks, renderer.color)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18", help="a torchvision ResNet")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    photos = real_data() / "data" / "imagenet-sample" / "baseline"
    print_machine()
    model = wm.load_model(f"torchvision:{arguments.model}@random").module
    own, theirs, drawing = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        folders = [photos]
        for script in SCRIPTS:
            folders.append(Path(scratch, script))
            wm.write_marked_folder(photos, folders[-1], script, format="jpeg")
        for round_ in range(arguments.rounds):
            start = time.perf_counter()
            wm.probe(model, photos, SCRIPTS, preprocess="imagenet", precision="float32")
            own.append(time.perf_counter() - start)
            start = time.perf_counter()
            reference(model, folders)
            theirs.append(time.perf_counter() - start)
            drawing.append(rendering_seconds(photos, wm.Preprocessing((224, 224))))
            print(
                f"round {round_ + 1}: probe {own[-1]:.1f} s, reference {theirs[-1]:.1f} s, "
                f"marks {drawing[-1]:.2f} s",
                flush=True,
            )
        off = largest_difference(model, folders, Path(scratch))
    ratio = median(own) / median(theirs)
    share = median(drawing) / median(own)
    line(f"{arguments.model}: probe / reference, wall time", f"{ratio:.2f}", "<= 1", ratio <= 1)
    line(
        f"{arguments.model}: rendering and compositing / probe",
        f"{share:.1%}",
        "< 3%",
        share < 0.03,
    )
    line(
        f"{arguments.model}: largest difference of A, same files",
        f"{off:.1e}",
        "<= 0.002",
        off <= 0.002,
    )


if __name__ == "__main__":
    main()
