"""False claims of ownership: how often does a cheat succeed on models that he did not make?

He makes keys that fit a model as well as he can: rigged pairs, pairs learned after the model was
out, a nonce that he ground, images that he picked. With coins of his own he convinces, and the
report says that it is no evidence. With a committed key the coins are drawn many times, from values
that he could not know, and the share of small p-values is counted.

``WATERMARK_GUARD_DATA=... python benchmarks claims [--draws 2000]``
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from common import line, lite_spec, mobilenet_spec, photos_below, print_machine, real_data
from PIL import Image
from scipy.stats import kstest
from torchvision.models import mobilenet_v2

import pytest_watermark_guard as wm
from pytest_watermark_guard.ownership import (
    OwnershipKey,
    generate_key,
    verify,
    verify_classifier,
)
from pytest_watermark_guard.statistics.sign_flips import agreement_p_value, sign_flip_p_value

BEACON = "a beacon's pulse of tomorrow"
N_IMAGES = 8
GROUND = 512  # nonces
PICKED = 100  # sets of images
ASKED_FOR_LABELS = 14  # pairs: all ways in which their coins can fall are tried 2,000 times


def value(number: int) -> str:
    """Return what the beacon would give in one of the draws."""
    return f"{number:064x}"


def leads(model: torch.nn.Module, key: OwnershipKey) -> np.ndarray:
    """Return how much nearer to the key image the second of each pair moves images."""
    report = verify(model, key)
    return np.array(report.differences) * np.where(key.coins.numpy(), 1, -1)


def p_value(lead: np.ndarray, key: OwnershipKey) -> float:
    return sign_flip_p_value(lead * np.where(key.coins.numpy(), 1, -1))


def rigged(key: OwnershipKey, model: torch.nn.Module) -> OwnershipKey:
    """Make pairs of one strong pattern and one that is hardly there, each pair a little apart."""
    strongest = key.perturbations.flatten(0, 1)[:1]
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(key.pairs, 3, *strongest.shape[-2:], generator=generator) < 0.9
    strong = (strongest * kept).to(torch.int8)
    return dataclasses.replace(key, perturbations=torch.stack([strong.sign(), strong], dim=1))


def made_up(key: OwnershipKey, model: torch.nn.Module) -> OwnershipKey:
    """Say that the clean encoder did a little less than the model, in each pair, for its coins."""
    found = torch.from_numpy(leads(model, key))
    signs = key.coins.double() * 2 - 1
    # By amounts that differ: were all alike, few p-values would be possible, and they not uniform.
    amounts = 1e-6 * (1 + torch.rand(key.pairs, generator=torch.Generator().manual_seed(2)))
    return dataclasses.replace(key, clean_leads=found - amounts * signs)


def claims(
    name: str, model: torch.nn.Module, key: OwnershipKey, how: str, draws: int
) -> np.ndarray:
    """Print what coins of the cheat's own give, and what drawn ones do; return the leads."""
    lead = leads(model, key)
    best = dataclasses.replace(key, coins=torch.from_numpy(lead > 0))
    own = verify(model, best)
    if own.is_evidence or "This is no evidence" not in own.sentence():
        raise SystemExit(f"{name}, {how}: a key with coins of its own was told as evidence")
    once = key.commit(BEACON)
    drawn = (once.draw_coins(value(number), "here") for number in range(draws))
    p_values = np.array([p_value(lead, fresh) for fresh in drawn])
    # The short way is the long one.
    for number in (0, 1):
        fresh = once.draw_coins(value(number), "here")
        report = verify(model, fresh)
        if not report.is_evidence or not np.isclose(report.p_value, p_values[number], rtol=1e-6):
            raise SystemExit(f"{name}, {how}: {report.p_value} and {p_values[number]} differ")
    rate = (p_values <= 0.01).mean()
    uniform = kstest(p_values, "uniform").pvalue
    line(f"{name}, {how}: own coins (no evidence), p", f"{own.p_value:.2g}", "", True)
    line(
        f"{name}, {how}: drawn coins, P(p <= .01)", f"{rate:.2%}", "0.5-1.5 %",
        0.005 <= rate <= 0.015,
    )  # fmt: skip
    line(f"{name}, {how}: p-values uniform, p", f"{uniform:.2g}", ">= 0.001", uniform >= 0.001)
    return lead


def ground(name: str, lead: np.ndarray, key: OwnershipKey, draws: int) -> None:
    """Print what the best of many nonces gives: as the only source of coins, and with a beacon."""
    tries = [key.commit(BEACON) for _ in range(GROUND)]
    p_values = [p_value(lead, fresh.draw_coins(value(0), "here")) for fresh in tries]
    best = tries[int(np.argmin(p_values))]
    line(f"{name}: best of {GROUND} nonces, if no beacon came after, p", f"{min(p_values):.2g}",
         "", True)  # fmt: skip
    later = [p_value(lead, best.draw_coins(value(n + 1), "here")) for n in range(draws)]
    rate = float((np.array(later) <= 0.01).mean())
    line(f"{name}: that nonce with the beacon, P(p <= .01)", f"{rate:.2%}", "0.5-1.5 %",
         0.005 <= rate <= 0.015)  # fmt: skip


def labels(name: str, model: torch.nn.Module, key: OwnershipKey, draws: int) -> None:
    """Print how often drawn coins convince by labels, compared with the encoder below the head."""
    short = dataclasses.replace(
        key, perturbations=key.perturbations[:ASKED_FOR_LABELS], coins=key.coins[:ASKED_FOR_LABELS]
    ).commit(BEACON)
    drawn = [short.draw_coins(value(number), "here") for number in range(draws)]
    report = verify_classifier(model, drawn[0], clean_encoder=model)
    first = drawn[0].coins
    p_values = []
    for other in drawn:
        signs = np.where(other.coins == first, 1.0, -1.0)
        agreement = np.array(report.agreement) * np.outer(signs, signs)
        p_values.append(agreement_p_value(agreement, np.array(report.differences) * signs, 0))
    # The short way is the long one.
    for other, p_value in list(zip(drawn, p_values, strict=True))[1:6]:
        again = verify_classifier(model, other, clean_encoder=model)
        signs = np.where(other.coins == first, 1.0, -1.0)
        if not np.allclose(again.differences, np.array(report.differences) * signs):
            raise SystemExit(f"{name}, labels: a coin is more than a sign")
        if not np.isclose(again.p_value, p_value, rtol=1e-6):
            raise SystemExit(f"{name}, labels: {again.p_value} and {p_value} differ")
    rate = (np.array(p_values) <= 0.01).mean()
    line(f"{name}, by labels: drawn coins, P(p <= .01)", f"{rate:.2%}", "0.5-1.5 %",
         0.005 <= rate <= 0.015)  # fmt: skip


def some(photos: Path) -> np.ndarray:
    """Return every twentieth photo at the input size, uint8 [n, 224, 224, 3]."""
    fit = wm.Preprocessing.imagenet().fit
    return np.stack(
        [fit(Image.open(path).convert("RGB")) for path in sorted(photos.iterdir())[::20]]
    )


def picked(name: str, model: torch.nn.Module, key: OwnershipKey, photos: np.ndarray) -> None:
    """Print what the best of many choices of images gives, and whether it counts."""
    drawn = key.commit(BEACON).draw_coins(value(0), "here")
    rng = np.random.default_rng(0)
    reports = [
        verify(model, drawn, photos[rng.permutation(len(photos))[:2]], n_images=2)
        for _ in range(PICKED)
    ]
    committed = verify(model, drawn).p_value
    best = min(report.p_value for report in reports)
    line(f"{name}: the key's images; best of {PICKED} picked sets, p",
         f"{committed:.2g}; {best:.2g}", "", True)  # fmt: skip
    line(f"{name}: picked images that count as evidence",
         sum(report.is_evidence for report in reports), 0,
         not any(report.is_evidence for report in reports))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    arguments = parser.parse_args()
    data = real_data()
    photos = photos_below(data)
    print_machine()
    start = time.perf_counter()
    models = {
        "MobileNet V2": wm.load_model(mobilenet_spec(data)).module,
        "Lite0": wm.load_model(lite_spec(data)).module,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models["untrained"] = mobilenet_v2().eval()
    for name, model in models.items():
        made = {"preprocess": wm.Preprocessing.imagenet(), "n_images": N_IMAGES, "progress": False}
        key = generate_key(model, photos, seed=7, steps=12, **made)
        # They are the model's own: if they were subtracted, nothing would be left.
        key = dataclasses.replace(key, clean_leads=key.clean_leads[:0])
        lead = claims(name, model, key, "key made after it", arguments.draws)
        claims(name, model, rigged(key, model), "rigged pairs", arguments.draws)
        claims(name, model, made_up(key, model), "made-up leads", arguments.draws)
        ground(name, lead, key, arguments.draws)
        labels(name, model, key, arguments.draws)
        if name == "MobileNet V2":
            picked(name, model, key, some(photos))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
