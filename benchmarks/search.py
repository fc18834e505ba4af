"""Does a search by a network's own detectors find the marked images among the others?

MobileNet V2's detectors are those of a probe of the built-in images with our own marks. They search
3,511 photos of Caltech-101, of which some were marked by us with other draws, and the 998 images of
the paper, of which some are the authors' own marked copies. One in thirty is marked; the aims are
ours.

``WATERMARK_GUARD_DATA=... python benchmarks/search.py`` (some minutes on a CPU).
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from common import line, mobilenet_spec, photos_below, print_machine, real_data
from sklearn.metrics import roc_auc_score

import pytest_watermark_guard as wm
from pytest_watermark_guard.exploring.search import DETECTORS

ONE_IN = 30
AIMS = {"own": (0.5, 0.9), "authors'": (0.5, 0.9)}  # precision, AUROC


def mixed(target: Path, originals: Path, marked: Path | None) -> int:
    """Link the originals, one in thirty of them as its marked copy; return how many are marked.

    Without a folder of marked copies they are drawn, with another seed than the probe's.
    """
    paths = sorted(path for path in originals.rglob("*") if path.is_file())
    chosen = set(random.Random(5).sample(paths, len(paths) // ONE_IN))
    for path in paths:
        name = path.relative_to(originals)
        part = "clean" if path not in chosen else "marked" if marked else "to mark"
        link = target / part / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(marked / name if marked and path in chosen else path)
    if marked is None:
        wm.write_marked_folder(target / "to mark", target / "marked", seed=71)
        (target / "to mark").rename(target / ".originals")  # hidden folders are left out
    return len(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="*", default=[DETECTORS], help="detectors")
    parser.add_argument("--gallery", type=Path, help="folder for contact sheets")
    arguments = parser.parse_args()
    data = real_data()
    photos = photos_below(data)
    model = wm.load_model(mobilenet_spec(data)).module
    print_machine()
    scores = wm.probe(model, scenarios=("chinese",))["features", "chinese"]
    sources = {
        "own": (data / "data" / "caltech-101", None),
        "authors'": (photos, photos.with_name("chinese")),
    }
    for whose, (originals, copies) in sources.items():
        with tempfile.TemporaryDirectory() as folder:
            marked = mixed(Path(folder), originals, copies)
            for count in arguments.counts:
                units = [scores.unit(index) for index in scores.ranking()[:count]]
                found = wm.search(model, folder, units, top=None)
                truth = [find.image.startswith("marked/") for find in found.finds]
                assert sum(truth) == marked
                area = roc_auc_score(truth, [find.score for find in found.finds])
                precision = sum(truth[:marked]) / marked
                print(f"\n{whose} marks, {marked} of {len(truth)} images, {count} detectors")
                for first in (10, 20, 50):
                    print(f"  marked among the first {first}: {sum(truth[:first])}")
                least, least_area = AIMS[whose]
                line(
                    f"precision at {marked} (chance {marked / len(truth):.3f})",
                    f"{precision:.3f}",
                    f">= {least}",
                    precision >= least,
                )
                line("AUROC of the score", f"{area:.3f}", f">= {least_area}", area >= least_area)
            if arguments.gallery:
                arguments.gallery.mkdir(parents=True, exist_ok=True)
                first = wm.search(model, folder, units, top=48)
                first.gallery(arguments.gallery / f"{whose.strip(chr(39))}.jpg", folder)


if __name__ == "__main__":
    main()
