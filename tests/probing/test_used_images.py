"""Of a folder's files, those that a verdict takes are opened; what is kept holds for these."""

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.images.baseline import open_baseline
from pytest_watermark_guard.probing import doubts, recording

N = 300
SMALL = wm.Preprocessing(size=(32, 32))
AHEAD = 4 + 2 * 32
"""Files beside those of the verdict: for an example input, and a batch read while another runs."""

_watched: list[tuple[str, list[str]]] = []


def _note(event, arguments):
    if _watched and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.fsdecode(arguments[0])
        for folder, opened in _watched:
            if path.startswith(folder) and Path(path).suffix == ".bmp":
                opened.append(Path(path).name)


sys.addaudithook(_note)  # PIL opens files by itself


@contextmanager
def opened_below(folder):
    """Give the names of the images that are opened within the block."""
    opened = []
    _watched.append((str(folder), opened))
    try:
        yield opened
    finally:
        _watched.pop()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.stem(x).relu().mean((2, 3)))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "cache"))
    # They are no images of the folder.
    monkeypatch.setattr(doubts, "marked_notes", lambda *_: ())


def _write(folder, seed):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(N):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.bmp")  # all of one size
    return folder


@pytest.fixture
def photos(tmp_path):
    return _write(tmp_path / "photos", seed=0)


def gate(photos, model=None, scenarios="latin", **arguments):
    arguments = {"preprocess": SMALL, "precision": "float32", **arguments}
    return wm.assert_not_watermark_sensitive(model or Net(), photos, scenarios, **arguments)


def drawn(folder):
    """Return the images in the order in which they are taken."""
    return [folder / name for name in open_baseline(folder).shuffled(17).identities]


def change(path):
    """Give a file other content of the same size."""
    size = path.stat().st_size
    Image.new("RGB", (32, 32), "white").save(path)
    assert path.stat().st_size == size


def same(one, other):
    return one.n_images == other.n_images and all(
        np.allclose(scores.auroc, other[scores.layer, scores.scenario].auroc) for scores in one
    )


KEPT = {"activations": 2**30, "result": 100}
"""Bytes of activations beyond which the result is kept instead."""


@pytest.fixture(params=KEPT)
def kept(request, monkeypatch):
    monkeypatch.setattr(recording, "_SPILL", KEPT[request.param])


@pytest.mark.usefixtures("kept")
def test_an_early_verdict_opens_the_files_that_it_takes(photos):
    with opened_below(photos) as opened:
        first = gate(photos)
    assert first.stopped_early
    assert first.n_images <= len({*opened}) <= first.n_images + AHEAD < N / 2
    with opened_below(photos) as opened:
        second = gate(photos)
    assert second.to_json() == first.to_json()
    assert first.n_images <= len({*opened}) <= first.n_images + AHEAD


def test_so_it_does_without_a_cache(photos):
    with opened_below(photos) as opened:
        report = gate(photos, cache=False)
    assert len({*opened}) <= report.n_images + AHEAD < N / 2


@pytest.mark.filterwarnings("ignore:.*too few")
def test_of_a_few_images_no_others_are_opened(photos):
    with opened_below(photos) as opened:
        gate(photos, max_images=16)
        gate(photos, max_images=16)
    assert len({*opened}) == 16


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("place", [0, 5, 14])
def test_a_verdict_on_other_content_is_never_used(photos, place):
    first = gate(photos)
    assert place < first.n_images
    change(drawn(photos)[place])
    again = gate(photos)
    assert same(again, gate(photos, cache=False))
    assert not same(again, first)
    assert again.images_digest != first.images_digest


@pytest.mark.usefixtures("kept")
def test_files_that_change_places_are_other_content(photos):
    first = gate(photos)
    one, other = drawn(photos)[3:5]
    content = one.read_bytes()
    shutil.copy(other, one)
    other.write_bytes(content)
    again = gate(photos)
    assert same(again, gate(photos, cache=False))
    assert not same(again, first)


@pytest.mark.usefixtures("kept")
def test_a_verdict_stands_while_its_images_do(photos):
    first = gate(photos)
    for path in drawn(photos)[100:]:
        change(path)
    with opened_below(photos) as opened:
        again = gate(photos)
    assert again.to_json() == first.to_json()
    assert len({*opened}) <= first.n_images + AHEAD


@pytest.mark.usefixtures("kept")
def test_another_size_tells_another_folder(photos):
    first = gate(photos)
    last = drawn(photos)[-1]
    Image.new("RGB", (40, 40)).save(last)
    with opened_below(photos) as opened:
        again = gate(photos)
    assert same(again, first)
    assert len({*opened}) <= first.n_images + AHEAD


@pytest.mark.parametrize("place", [2, 70, 250])
def test_of_what_a_longer_probe_kept_the_images_that_are_the_same_are_used(photos, place):
    """The gate replays what is kept; from the changed image on it runs the model."""
    arguments = {"stop_at": 0.78, "preprocess": SMALL, "precision": "float32"}
    wm.probe(Net(), photos, "latin", preprocess=SMALL, precision="float32")
    before = wm.probe(Net(), photos, "latin", **arguments)
    change(drawn(photos)[place])
    after = wm.probe(Net(), photos, "latin", **arguments)
    fresh = wm.probe(Net(), photos, "latin", **arguments, cache=False)
    assert 70 < fresh.n_images < 250
    assert same(after, fresh)
    assert same(after, before) == (place == 250)


@pytest.mark.parametrize("place", [0, 70])
def test_one_scenario_of_two_was_kept_of_other_content(photos, place):
    arguments = {"preprocess": SMALL, "precision": "auto"}
    wm.probe(Net(), photos, "latin", **arguments)
    two = {**arguments, "scenarios": ("latin", "arabic_numerals"), "stop_at": 0.78}
    change(drawn(photos)[place])
    report = wm.probe(Net(), photos, **two)
    fresh = wm.probe(Net(), photos, **two, cache=False)
    assert 70 < fresh.n_images < 250
    assert same(report, fresh)


def test_copies_are_opened_as_far_as_they_are_used_and_known_by_content(photos, tmp_path):
    wm.write_marked_folder(photos, tmp_path / "marked", "latin")
    for path in (tmp_path / "marked").iterdir():
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    scenario = wm.PairedFolder("copies", str(tmp_path / "marked"))
    with opened_below(tmp_path / "marked") as opened:
        first = gate(photos, scenarios=scenario)
    assert len({*opened}) <= first.n_images + AHEAD < N / 2
    original = drawn(photos)[5]
    shutil.copy(original, tmp_path / "marked" / original.name)  # without its mark
    again = gate(photos, scenarios=scenario)
    assert same(again, gate(photos, scenarios=scenario, cache=False))
    assert not same(again, first)


def test_what_changes_while_it_is_probed_is_not_kept(photos):
    path = drawn(photos)[5]

    class Changing(Net):
        def forward(self, x):
            if path.name in opened:
                change(path)  # it was decoded already
            return super().forward(x)

    with opened_below(photos) as opened:
        first = gate(photos, Changing())
    opened.clear()
    again = gate(photos, Changing())
    assert same(again, gate(photos, Changing(), cache=False))
    assert not same(again, first)


def test_an_image_that_changed_is_decoded_again(photos, monkeypatch):
    arguments = {"preprocess": SMALL, "precision": "float32"}
    wm.probe(Net(), photos, "latin", **arguments)
    change(drawn(photos)[7])
    other = Net()
    with torch.no_grad():
        other.fc.weight.mul_(2)
    fits = []
    fit = wm.Preprocessing.fit
    monkeypatch.setattr(wm.Preprocessing, "fit", lambda *a: fits.append(1) or fit(*a))
    report = wm.probe(other, photos, "latin", **arguments)
    assert len(fits) == 1
    assert same(report, wm.probe(other, photos, "latin", **arguments, cache=False))
