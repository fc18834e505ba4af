"""Do our watermarks and built-in images rank a real network's units as the authors' do?

``WATERMARK_GUARD_DATA=... python benchmarks/parity.py`` (some minutes on a CPU).
"""

from __future__ import annotations

import argparse

import numpy as np
from common import line, mobilenet_spec, photos_below, print_machine, real_data
from scipy.stats import spearmanr

import pytest_watermark_guard as wm

OWN = ("chinese", "latin")
WANTED = {
    ("chinese", "logits"): 0.985,
    ("chinese", "features"): 0.98,
    ("latin", "logits"): 0.96,
    ("latin", "features"): 0.96,
}
# Units with d > .7/.8/.9/.95 and the largest d on the authors' own images.
TABLE = {
    ("chinese", "logits"): ((28, 1, 0, 0), 0.813),
    ("chinese", "features"): ((62, 18, 0, 0), 0.883),
    ("latin", "logits"): ((0, 0, 0, 0), 0.598),
    ("latin", "features"): ((0, 0, 0, 0), 0.658),
}
TOP = {
    "chinese": (10, {"monitor", "carton", "safe", "apron"}),
    "latin": (5, {"book jacket", "web site"}),
}


def spearman(one: wm.Scores, other: wm.Scores) -> float:
    return float(spearmanr(one.auroc, other.auroc).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[17], help="of our own draws")
    seeds = parser.parse_args().seeds
    data = real_data()
    photos = photos_below(data)
    model = wm.load_model(mobilenet_spec(data)).module
    print_machine()
    authors = [wm.PairedFolder(f"authors' {name}", photos.with_name(name)) for name in OWN]
    reports = {}
    for seed in seeds:
        report = reports[seed] = wm.probe(
            model, photos, [*OWN, *authors], precision="float32", seed=seed
        )
        print(f"\nSeed {seed}, {report.baseline.split(' of ')[0]}")
        for (script, layer), least in WANTED.items():
            rho = spearman(report[layer, script], report[layer, f"authors' {script}"])
            name = f"Spearman of A, own draws and authors', {script} {layer}"
            line(name, f"{rho:.4f}", f">= {least}", rho >= least)
        for script, (count, expected) in TOP.items():
            scores = report["logits", script]
            top = [scores.names[unit] for unit in np.argsort(-scores.auroc)[:count]]
            line(
                f"{script} top-{count}",
                len(expected & set(top)),
                len(expected),
                expected <= set(top),
            )
            print("   ", ", ".join(top))
    for (script, layer), (counts, largest) in TABLE.items():
        scores = report[layer, f"authors' {script}"]
        d = scores.differentiability
        found = tuple(int((d > tier).sum()) for tier in (0.7, 0.8, 0.9, 0.95))
        name = f"authors' {script} {layer}"
        line(f"{name}: units with d > .7/.8/.9/.95", found, counts, found == counts)
        line(f"{name}: largest d", f"{d.max():.3f}", largest, round(float(d.max()), 3) == largest)

    print("\nThe built-in baseline set against the 998 photos, same draws")
    for seed in seeds:
        builtin = wm.probe(model, scenarios=OWN, precision="float32", seed=seed)
        for script in OWN:
            for layer in ("features", "logits"):
                one, other = builtin[layer, script], reports[seed][layer, script]
                rho = spearman(one, other)
                off = float(one.differentiability.max() - other.differentiability.max())
                asked = (script, layer) == ("chinese", "features")
                name = f"seed {seed}, {script} {layer}"
                if asked:
                    line(f"{name}: Spearman of A", f"{rho:.3f}", ">= 0.85", rho >= 0.85)
                    line(f"{name}: largest d off by", f"{off:+.3f}", "<= 0.05", abs(off) <= 0.05)
                else:
                    print(f"{name}: Spearman of A {rho:.3f}, largest d off by {off:+.3f}")


if __name__ == "__main__":
    main()
