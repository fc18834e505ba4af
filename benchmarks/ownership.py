"""Ownership: is the mark found, only where it is, is the encoder as good, and what kills it?

Encoders: SimCLR, MoCo v2 and BYOL, trained by lightly on Caltech-101's photos at 64 pixels, and
MobileNet V2 with real weights. Each gets a key; asked are the marked encoder, the clean one, one
that was trained independently, and wrong keys. Then one of them is attacked.

``WATERMARK_GUARD_DATA=... python benchmarks/ownership.py [--encoders simclr] [--figure out.png]``
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attacks
import contrastive
import numpy as np
import torch
from common import line, mobilenet_spec, print_machine, real_data
from mitigation import split
from PIL import Image
from scipy.stats import binom
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.mitigation.heads import HeadTrainer
from pytest_watermark_guard.ownership import (
    OwnershipKey,
    OwnershipReport,
    embed,
    generate_key,
    measure_utility,
    verify,
    verify_classifier,
)
from pytest_watermark_guard.reporting.figure import new_figure
from pytest_watermark_guard.statistics.sign_flips import sign_flip_p_value

MOBILENET = "mobilenet_v2"
ENCODERS = (*contrastive.METHODS, MOBILENET)
Folders = tuple[Path, Path]
Tasks = dict[str, Folders]


@dataclass
class Case:
    """An encoder, and others like it that know nothing of its key."""

    name: str
    clean: nn.Module
    nulls: dict[str, nn.Module]
    preprocessing: wm.Preprocessing
    key: OwnershipKey
    marked: nn.Module


def pictures(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return photos [N, size, size, 3] and the number of each one's subfolder."""
    fit = wm.Preprocessing(size=(size, size), resize=size).fit
    paths = sorted(folder.glob("*/*.jpg"))
    names = sorted({path.parent.name for path in paths})
    photos = np.stack([fit(Image.open(path)) for path in paths])
    return photos, np.array([names.index(path.parent.name) for path in paths])


def rotations(photos: Path, scratch: Path, count: int = 1200) -> Folders:
    """Write photos turned by 0, 90, 180 and 270 degrees: a task without labels (Gidaris, 2018)."""
    rng = np.random.default_rng(1)
    paths = sorted(photos.iterdir())
    parts = scratch / "rotation-train", scratch / "rotation-validation"
    for number, index in enumerate(rng.permutation(len(paths))[:count]):
        turn = int(rng.integers(4))
        target = parts[number % 4 == 0] / str(90 * turn)
        target.mkdir(parents=True, exist_ok=True)
        image = Image.open(paths[index]).convert("RGB").rotate(90 * turn, expand=True)
        image.save(target / f"{number}.png")
    return parts


def with_head(encoder: nn.Module, case: Case, task: Folders) -> nn.Module:
    """Return a classifier: the frozen encoder and a linear head, as downstream users train it."""
    pixels, labels = pictures(task[0], case.preprocessing.size[0])  # type: ignore[index]
    with torch.no_grad():
        inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        features = torch.cat([
            wm.extract_features(encoder, case.preprocessing.to_input(part))
            for part in inputs.split(64)
        ])  # fmt: skip
    head = HeadTrainer(features.numpy(), labels, int(labels.max()) + 1, 0).on(features.numpy())
    layer = nn.Linear(*head.weight.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight.T))
        layer.bias.copy_(torch.from_numpy(head.bias))

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = copy.deepcopy(encoder)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return wm.extract_features(self.encoder, x)

    return nn.Sequential(Features(), layer).eval()


def uniform(name: str, p_values: list[float]) -> None:
    """Compare how many p-values are small with how many should be."""
    for alpha in (0.05, 0.01):
        count = sum(p <= alpha for p in p_values)
        # What a fair test would exceed in one of a thousand benchmarks.
        most = int(binom.ppf(0.999, len(p_values), alpha))
        line(f"{name}: p <= {alpha:g} of {len(p_values)}", count, f"<= {most}", count <= most)


def examined(case: Case, photos: Path, tasks: Tasks, wrong_keys: int, n_images: int = 64) -> None:
    """Print one encoder's figures."""
    nulls = {"clean": case.clean, **case.nulls}
    white = verify(case.marked, case.key, photos, nulls, name=f"{case.name} marked")
    print(white.table(width=110))
    task = next(iter(tasks.values()))
    classifiers = {name: with_head(model, case, task) for name, model in nulls.items()}
    black = verify_classifier(
        with_head(case.marked, case, task), case.key, photos, classifiers,
        n_images=n_images, name=f"{case.name} marked + head",
    )  # fmt: skip
    print(black.table(width=110))
    line(f"{case.name}: white box, p", f"{white.p_value:.2g}", "<= 1e-6", white.p_value <= 1e-6)
    line(f"{case.name}: black box, p", f"{black.p_value:.2g}", "<= 1e-3", black.p_value <= 1e-3)
    utility = measure_utility(
        case.clean, case.marked, photos, tasks, preprocess=case.preprocessing, cache=False
    )
    met = utility.mean_cosine >= 0.99
    line(f"{case.name}: cosine to the original, mean", f"{utility.mean_cosine:.4f}", ">= 0.99", met)
    for name, (before, after) in utility.accuracies.items():
        lost = f"{before:.3f}->{after:.3f}"
        line(f"{case.name}: linear probe, {name}", lost, "-0.01", after >= before - 0.01)
    p_values = {"marked": [], "clean": []}  # type: dict[str, list[float]]
    for seed in range(wrong_keys):
        wrong = generate_key(
            case.clean, photos, seed=10_000 + seed, steps=4, preprocess=case.preprocessing,
            progress=False,
        )  # fmt: skip
        for name, model in (("marked", case.marked), ("clean", case.clean)):
            p_values[name].append(verify(model, wrong, photos, n_images=4).p_value)
    for name, values in p_values.items() if wrong_keys else ():
        uniform(f"{case.name} {name}, wrong keys", values)
    # The same perturbations under other coins.
    differences = np.array(verify(case.clean, case.key, photos).differences)
    coins = np.random.default_rng(0).choice((-1, 1), (1000, case.key.pairs))
    tossed = [sign_flip_p_value(differences * signs) for signs in coins]
    uniform(f"{case.name} clean, other coins", tossed)


def attacked(case: Case, photos: Path, task: Folders) -> list[tuple[str, OwnershipReport, float]]:
    """Attack a marked encoder in every way; return p-value and what it is still good for."""
    size = case.preprocessing.size
    assert size is not None
    x, y = pictures(task[0], size[0])
    x_new, y_new = pictures(task[1], size[0])
    pixels, labels = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)
    new = torch.from_numpy(x_new).permute(0, 3, 1, 2)
    pre, marked = case.preprocessing, case.marked
    rows = []

    def embedded(encoder: nn.Module, images: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            parts = [encoder(pre.to_input(part)) for part in images.split(64)]
            return torch.cat(parts).numpy()

    def probe(encoder: nn.Module) -> float:
        features = embedded(encoder, pixels)
        head = HeadTrainer(features, y, int(y.max()) + 1, 0).on(features)
        return float((head(embedded(encoder, new)).argmax(1) == y_new).mean())

    def add(name: str, encoder: nn.Module, accuracy: float | None = None, **asked: object) -> None:
        report = verify(asked.pop("queried", encoder), case.key, photos, **asked)  # type: ignore[arg-type]
        rows.append((name, report, probe(encoder) if accuracy is None else accuracy))
        print(f"{name:<44} p {report.p_value:9.2g}  {report.effect:+.3f}  accuracy "
              f"{rows[-1][2]:.3f}", flush=True)  # fmt: skip

    def tuned(name: str, epochs: int, learning_rate: float, all_layers: bool = True) -> nn.Module:
        model = attacks.fine_tuned(
            marked, pre, pixels, labels, epochs=epochs, learning_rate=learning_rate,
            all_layers=all_layers,
        )  # fmt: skip
        with torch.no_grad():
            logits = torch.cat([model(pre.to_input(part)) for part in new.split(64)])
        add(name, model.encoder, float((logits.argmax(1).numpy() == y_new).mean()))
        black = verify_classifier(model, case.key, photos, n_images=64)
        print(f"    by its labels: p {black.p_value:.2g}, {black.effect:+.3f}", flush=True)
        return model

    raw = wm.Preprocessing(size=size, mean=(0.0,) * 3, std=(1.0,) * 3)

    add("no attack", marked)
    tuned("new head, encoder frozen", 5, 0.0, all_layers=False)
    tuned("fine-tuned: all layers, 3 epochs, 1e-4", 3, 1e-4)
    tuned("fine-tuned: all layers, 10 epochs, 1e-4", 10, 1e-4)
    tuned("fine-tuned: all layers, 10 epochs, 1e-3", 10, 1e-3)
    for share in (0.2, 0.5, 0.8):
        add(f"smallest {share:.0%} of the weights pruned", attacks.pruned(marked, share))
    for share in (0.2, 0.5):
        silent = attacks.channels_pruned(marked, pre, pixels, share)
        add(f"fine-pruning: {share:.0%} of the last channels", silent)
    add("weights rounded to int8", attacks.quantised(marked))
    student = attacks.distilled(marked, contrastive.backbone(), pre, pixels, 15)
    add("distilled into a fresh network", student)
    other = generate_key(marked, photos, seed=4242, preprocess=pre, progress=False)
    try:
        twice = embed(marked, other, photos, progress=False)
        add("another key embedded on top", twice)
    except wm.ownership.OwnershipError as error:
        print(f"another key could not be embedded: {error}")
    for quality in (90, 50):
        wrapped = attacks.JPEG(marked, pre, quality)
        add(f"queries as JPEG, quality {quality}", marked, queried=wrapped, preprocess=raw)
    for sigma in (0.5, 1.0, 2.0):
        wrapped = attacks.Smoothed(marked, pre, sigma)
        add(f"queries smoothed, sigma {sigma:g}", marked, queried=wrapped, preprocess=raw)
    return rows


def draw(rows: list[tuple[str, OwnershipReport, float]], name: str, path: Path) -> None:
    """Draw p-values and utility of all attacks."""
    names = [row[0] for row in rows][::-1]
    bits = [-np.log10(row[1].p_value) for row in rows][::-1]
    accuracy = [row[2] for row in rows][::-1]
    figure = new_figure(9, 0.32 * len(rows) + 1.2)
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(names, bits, color=["#4477aa" if b >= 3 else "#cc6677" for b in bits])
    left.axvline(3, color="black", linewidth=0.8, linestyle="--")
    left.set_xlabel("-log10 p (dashed: 1e-3)")
    right.barh(names, accuracy, color="#bbbbbb")
    right.set_xlabel("accuracy of a linear probe, or of the tuned model")
    figure.suptitle(f"{name}: the key after attacks", fontsize=10)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3, help="of contrastive training")
    parser.add_argument("--wrong-keys", type=int, default=100)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--attack", choices=[*contrastive.METHODS], default="simclr")
    parser.add_argument("--figure", type=Path, help="where to draw the attacks")
    arguments = parser.parse_args()
    data = real_data()
    photos = data / "data" / "imagenet-sample" / "baseline"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print_machine()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["WATERMARK_GUARD_CACHE"] = str(Path(scratch, "cache"))
        caltech = split(data / "data" / "caltech-101", Path(scratch))
        tasks = {"Caltech-101": caltech, "rotation": rotations(photos, Path(scratch))}
        views, _ = pictures(caltech[0], 80)
        for method in (name for name in arguments.encoders if name in contrastive.METHODS):
            start = time.perf_counter()
            clean, other = (
                contrastive.train(method, views, arguments.epochs, seed, device) for seed in (0, 1)
            )
            middle = time.perf_counter()
            case = made(method, clean, {"independent": other}, contrastive.PREPROCESSING, photos)
            end = time.perf_counter()
            print(f"\n{method}: two trainings {middle - start:.0f} s, key and embedding "
                  f"{end - middle:.0f} s", flush=True)  # fmt: skip
            examined(case, photos, tasks, arguments.wrong_keys)
            if method == arguments.attack:
                rows = attacked(case, photos, caltech)
                if arguments.figure:
                    draw(rows, method, arguments.figure)
        if MOBILENET in arguments.encoders:
            clean = wm.load_model(mobilenet_spec(data)).module
            clean.classifier = nn.Identity()
            pre = wm.Preprocessing.imagenet()
            start = time.perf_counter()
            case = made(
                MOBILENET, clean, {}, pre, photos, learning_rate=1e-4, batch_size=8, steps=400,
                least_utility=0.985,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            print(f"\n{MOBILENET}: key and embedding {seconds:.0f} s", flush=True)
            examined(case, photos, tasks, 0, 24)  # a hundred keys would take an hour


def made(
    name: str,
    clean: nn.Module,
    nulls: dict[str, nn.Module],
    preprocessing: wm.Preprocessing,
    photos: Path,
    **how: Any,
) -> Case:
    """Make a key for an encoder, and a copy that carries it."""
    key = generate_key(clean, photos, seed=5, preprocess=preprocessing)
    return Case(name, clean, nulls, preprocessing, key, embed(clean, key, photos, **how))


if __name__ == "__main__":
    main()
