"""Ownership: is the mark found, only where it is, is the encoder as good, and what kills it?

Encoders: SimCLR, MoCo v2, BYOL and VICReg, trained by lightly on Caltech-101's photos at 64 pixels,
and MobileNet V2 and EfficientNet-Lite0 with real weights. Each gets a key; asked are the marked
encoder, the clean one, one that was trained independently, and wrong keys. Then one of them is
attacked.

``WATERMARK_GUARD_DATA=... python benchmarks/ownership.py [--encoders simclr] [--figure out.png]``
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import attacks
import contrastive
import numpy as np
import torch
from common import line, lite_spec, mobilenet_spec, photos_below, print_machine, real_data
from downstream import Folders, Tasks, pictures, tasks_in
from scipy.stats import binom
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.models.linear_probe import HeadTrainer
from pytest_watermark_guard.ownership import (
    Objective,
    OwnershipKey,
    blind_check,
    embed,
    generate_key,
    measure_utility,
    verify,
    verify_classifier,
)
from pytest_watermark_guard.ownership.encoder import read_pixels
from pytest_watermark_guard.reports.figure import new_figure

PRETRAINED = {"mobilenet_v2": mobilenet_spec, "tf_efficientnet_lite0": lite_spec}
# To EfficientNet-Lite0 bands look more alike: its key is of larger perturbations, and of pairs that
# shall lead by less, so that training goes on with those that lag.
HOW: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {"alpha": 4e-7},
    "tf_efficientnet_lite0": {
        "epsilon": 16 / 255,
        "objective": Objective(apart=0.04, watermark=12.0),
        "least_utility": 0.991,  # on the few photos that `embed` looks at
    },
}
SIZE = 128  # pixels of their input: at 224 a CPU would take an hour
ENCODERS = (*contrastive.METHODS, *PRETRAINED)
Labels = Callable[[torch.Tensor], np.ndarray]


@dataclass
class Case:
    """An encoder, and others like it that know nothing of its key."""

    name: str
    clean: nn.Module
    nulls: dict[str, nn.Module]
    preprocessing: wm.Preprocessing
    key: OwnershipKey
    marked: nn.Module


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


def examined(case: Case, photos: Path, tasks: Tasks, wrong_keys: int) -> None:
    """Print one encoder's figures."""
    nulls = {"clean": case.clean, **case.nulls}
    white = verify(case.marked, case.key, nulls=nulls, n_images=16, name=f"{case.name} marked")
    print(white.table(width=110))
    line(f"{case.name}: white box, p", f"{white.p_value:.2g}", "<= 1e-6", white.p_value <= 1e-6)
    found = 0
    for name, task in tasks.items():
        released, clean = (with_head(model, case, task) for model in (case.marked, case.clean))
        alone = verify_classifier(released, case.key)
        black = verify_classifier(released, case.key, clean_encoder=case.clean)

        @torch.no_grad()
        def scores(pixels: torch.Tensor, model: nn.Module = released) -> torch.Tensor:
            return model(case.preprocessing.to_input(pixels)).softmax(1)

        soft = verify_classifier(
            scores,
            case.key,
            nulls={"clean": partial(scores, model=clean)},
            clean_encoder=case.clean,
        )
        found += black.p_value <= 1e-3
        null, needed = soft.nulls[0].p_value, alone.queries_needed() or "-"
        line(
            f"{case.name}, {name}: labels, p; without the clean encoder",
            f"{black.p_value:.2g}; {alone.p_value:.2g}",
            "",
            True,
        )
        line(
            f"{case.name}, {name}: by scores; of a clean one",
            f"{soft.p_value:.2g}; {null:.2g}",
            "",
            True,
        )
        line(f"{case.name}, {name}: queries; needed", f"{black.queries:,}; {needed}", "", True)
    line(
        f"{case.name}: tasks whose labels give p <= 1e-3",
        f"{found} of {len(tasks)}",
        ">= 3",
        found >= 3,
    )
    utility = measure_utility(
        case.clean, case.marked, photos, tasks, preprocess=case.preprocessing, cache=False
    )
    met = utility.mean_cosine >= 0.99
    line(f"{case.name}: cosine to the original, mean", f"{utility.mean_cosine:.4f}", ">= 0.99", met)
    for name, (before, after) in utility.accuracies.items():
        lost = f"{before:.3f}->{after:.3f}"
        line(f"{case.name}: linear probe, {name}", lost, "-0.01", after >= before - 0.01)
    seen, _ = read_pixels(photos, case.preprocessing, 512, 1)
    for name, auroc in attacks.detection(seen, case.key.perturbations).items():
        line(f"{case.name}: query told by {name}", f"{auroc:.3f}", "<= 0.75", auroc <= 0.75)
    p_values = {"marked": [], "clean": []}  # type: dict[str, list[float]]
    for seed in range(wrong_keys):
        wrong = generate_key(
            case.clean, photos, seed=10_000 + seed, preprocess=case.preprocessing,
            progress=False,
        )  # fmt: skip
        for name, model in (("marked", case.marked), ("clean", case.clean)):
            p_values[name].append(verify(model, wrong, photos, n_images=4).p_value)
    for name, values in p_values.items() if wrong_keys else ():
        uniform(f"{case.name} {name}, wrong keys", values)
    if case.nulls:
        print(blind_check(case.marked, nulls, photos, preprocess=case.preprocessing).sentence())


@dataclass
class Row:
    """One attack: p-values by embeddings and by labels, and what the model is still good for."""

    name: str
    white: float
    black: float
    accuracy: float


def attacked(case: Case, photos: Path, task: Folders) -> list[Row]:
    """Attack a marked encoder in every way; white and black box, and accuracy of a linear head."""
    size = case.preprocessing.size
    assert size is not None
    x, y = pictures(task[0], size[0])
    x_new, y_new = pictures(task[1], size[0])
    pixels, labels = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)
    new = torch.from_numpy(x_new).permute(0, 3, 1, 2)
    pre, marked = case.preprocessing, case.marked
    rows = []

    @torch.no_grad()
    def run(model: nn.Module, images: torch.Tensor, how: wm.Preprocessing) -> np.ndarray:
        return torch.cat([model(how.to_input(part)) for part in images.split(64)]).numpy()

    def labels_of(classifier: nn.Module) -> Labels:
        return lambda images: run(classifier, images, pre).argmax(axis=1)

    def with_linear_head(encoder: nn.Module, how: wm.Preprocessing) -> Labels:
        features = run(encoder, pixels, how)
        head = HeadTrainer(features, y, int(y.max()) + 1, 0).on(features)
        return lambda images: head(run(encoder, images, how)).argmax(axis=1)

    def add(
        name: str,
        encoder: nn.Module,
        classifier: nn.Module | None = None,
        how: wm.Preprocessing = pre,
    ) -> None:
        """Ask an encoder, and its own classifier or else a linear head that is trained on it."""
        predicted = with_linear_head(encoder, how) if classifier is None else labels_of(classifier)
        white = verify(encoder, case.key, n_images=16, preprocess=how)
        black = verify_classifier(predicted, case.key, n_images=256)
        accuracy = float((predicted(new) == y_new).mean())
        rows.append(Row(name, white.p_value, black.p_value, accuracy))
        print(
            f"{name:<52} white box {white.p_value:8.2g} {white.effect:+.3f}  labels "
            f"{black.p_value:8.2g} {black.effect:+.3f}  accuracy {accuracy:.3f}",
            flush=True,
        )

    def tuned(name: str, start: nn.Module, epochs: int, learning_rate: float) -> None:
        model = attacks.fine_tuned(
            start, pre, pixels, labels, epochs=epochs, learning_rate=learning_rate,
            all_layers=learning_rate > 0,
        )  # fmt: skip
        add(name, model.encoder, model)

    add("no attack", marked)
    tuned("head anew, 5 epochs, encoder frozen", marked, 5, 0.0)
    tuned("fine-tuned: all layers, 3 epochs, 1e-4", marked, 3, 1e-4)
    tuned("fine-tuned: all layers, 10 epochs, 1e-4", marked, 10, 1e-4)
    tuned("fine-tuned: all layers, 10 epochs, 1e-3", marked, 10, 1e-3)
    for share in (0.2, 0.5, 0.8):
        add(f"smallest {share:.0%} of the weights set to 0", attacks.pruned(marked, share))
    for share in (0.2, 0.5):
        silent = attacks.channels_pruned(marked, pre, pixels, share)
        tuned(f"fine-pruned: {share:.0%} of the last channels, 3 epochs", silent, 3, 1e-4)
    add("int8: weights, and inputs of layers", attacks.quantised(marked, pre, pixels))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        student = contrastive.backbone()
    add(
        "distilled into a fresh network, 15 epochs",
        attacks.distilled(marked, student, pre, pixels, 15),
    )
    answered = torch.from_numpy(with_linear_head(marked, pre)(pixels))
    copied = attacks.fine_tuned(
        student, pre, pixels, answered, epochs=15, learning_rate=2e-3, all_layers=True
    )
    add("extracted: a fresh network learns its labels, 15 epochs", copied.encoder, copied)
    other = generate_key(marked, photos, seed=4242, preprocess=pre, progress=False)
    for rate in (1e-4, 1e-3):
        tuned_encoder = attacks.tuned_to_ignore(
            marked, pre, pixels, other.perturbations, epochs=5, learning_rate=rate
        )
        add(f"tuned to ignore patterns of his own, 5 epochs, {rate:.0e}", tuned_encoder)
    own, auroc, refused = attacks.learned_detection(
        student, pre, (pixels, other.perturbations), (new, case.key.perturbations), epochs=5
    )
    line("own queries told by a network that learned from them", f"{own:.3f}", "", True)
    # A network that learned nothing shows nothing of the owner's queries.
    aim = "<= 0.75" if own > 0.75 else ""
    line("the owner's queries told by it", f"{auroc:.3f}", aim, auroc <= 0.75)
    line("queries that it refuses, with one photo in a hundred", f"{refused:.0%}", "", True)
    # Whoever overwrites a mark cares less for what it costs.
    twice = embed(marked, other, photos, least_utility=0.9, alpha=1e-4, progress=False)
    add("another key embedded on top", twice)
    raw = wm.Preprocessing(size=size, mean=(0.0,) * 3, std=(1.0,) * 3)
    for name, change in attacks.QUERIES.items():
        add(f"queries: {name}", attacks.Changed(marked, pre, change), how=raw)
    return rows


def draw(rows: list[Row], name: str, path: Path) -> None:
    """Draw p-values and utility of all attacks."""
    figure = new_figure(10, 0.34 * len(rows) + 1.2)
    axes = figure.subplots(1, 3, sharey=True)
    axes[0].set_yticks(range(len(rows)), [row.name for row in rows])
    axes[0].invert_yaxis()
    for axis, title, values in zip(
        axes,
        ("embeddings: -log10 p", "labels: -log10 p", "accuracy, 101 classes"),
        (
            [-np.log10(row.white) for row in rows],
            [-np.log10(row.black) for row in rows],
            [row.accuracy for row in rows],
        ),
        strict=True,
    ):
        p_values = axis is not axes[2]
        colors = ["#4477aa" if v >= 3 else "#cc6677" for v in values] if p_values else "#bbbbbb"
        axis.barh(range(len(rows)), values, color=colors)
        axis.set_xlabel(title)
        if p_values:
            axis.axvline(3, color="black", linewidth=0.8, linestyle="--")
    figure.suptitle(f"{name}: the key after attacks (dashed: p = 0.001)", fontsize=10)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3, help="of contrastive training")
    parser.add_argument("--seed", type=int, default=5, help="of the key")
    parser.add_argument("--wrong-keys", type=int, default=100)
    parser.add_argument(
        "--images", type=int, help="in a key, to be asked with; default 512, of large encoders 128"
    )
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--attack", choices=[*contrastive.METHODS], default="simclr")
    parser.add_argument("--figure", type=Path, default=Path("attacks.png"), help="of the attacks")
    arguments = parser.parse_args()
    data = real_data()
    photos = photos_below(data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print_machine()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["WATERMARK_GUARD_CACHE"] = str(Path(scratch, "cache"))
        tasks = tasks_in(Path(scratch), data, photos)
        caltech = tasks["Caltech-101"]
        views, _ = pictures(caltech[0], 80)
        for method in (name for name in arguments.encoders if name in contrastive.METHODS):
            start = time.perf_counter()
            clean, other = (
                contrastive.train(method, views, arguments.epochs, seed, device) for seed in (0, 1)
            )
            middle = time.perf_counter()
            case = made(
                method, clean, {"independent": other}, contrastive.PREPROCESSING, photos,
                arguments.images or 512, arguments.seed,
            )  # fmt: skip
            if case is None:
                continue
            end = time.perf_counter()
            print(f"\n{method}: two trainings {middle - start:.0f} s, key and embedding "
                  f"{end - middle:.0f} s", flush=True)  # fmt: skip
            examined(case, photos, tasks, arguments.wrong_keys)
            if method == arguments.attack:
                rows = attacked(case, photos, caltech)
                draw(rows, method, arguments.figure)
        for name in (name for name in arguments.encoders if name in PRETRAINED):
            clean = wm.load_model(PRETRAINED[name](data)).module
            clean.classifier = nn.Identity()
            pre = replace(wm.Preprocessing.imagenet(), size=(SIZE, SIZE), resize=SIZE)
            start = time.perf_counter()
            case = made(
                name, clean, {}, pre, photos, arguments.images or 128, arguments.seed,
                steps=900, learning_rate=2e-4, batch_size=16, **HOW[name],
            )  # fmt: skip
            if case is None:
                continue
            seconds = time.perf_counter() - start
            print(f"\n{name}: key and embedding {seconds:.0f} s", flush=True)
            examined(case, photos, tasks, 0)  # a hundred keys would take an hour


def made(
    name: str,
    clean: nn.Module,
    nulls: dict[str, nn.Module],
    preprocessing: wm.Preprocessing,
    photos: Path,
    n_images: int,
    seed: int,
    epsilon: float = 8 / 255,
    **how: Any,
) -> Case | None:
    """Make a key for an encoder, and a copy that carries it; None if the goal was missed."""
    key = generate_key(
        clean, photos, seed=seed, preprocess=preprocessing, n_images=n_images, epsilon=epsilon
    )
    try:
        marked = embed(clean, key, photos, **how)
    except wm.ownership.OwnershipError as error:
        line(f"{name}: key embedded", f"no: {error}", "yes", False)
        return None
    return Case(name, clean, nulls, preprocessing, key, marked)


if __name__ == "__main__":
    main()
