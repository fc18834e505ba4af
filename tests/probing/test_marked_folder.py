from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pytest_watermark_guard import PairedFolder, Scenario, write_marked_folder
from pytest_watermark_guard.errors import ImagesError, ScenarioError, SettingsError


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "deep/er/b.bmp", "c.JPG"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 99, (90, 120, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def written(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_only_the_ink_differs(photos, tmp_path, suffix):
    scenario = Scenario("mine", "AB", length=2, size=90, color="red")
    assert write_marked_folder(photos, tmp_path / "out", scenario, format=suffix) == 3
    assert written(tmp_path / "out") == [f"a.{suffix}", f"c.{suffix}", f"deep/er/b.{suffix}"]
    for name, copy in (("a.png", "a"), ("deep/er/b.bmp", "deep/er/b")):
        original = np.asarray(Image.open(photos / name).convert("RGB"))
        marked = np.asarray(Image.open(tmp_path / "out" / f"{copy}.{suffix}"))
        changed = (original != marked).any(axis=2)
        assert 20 < changed.sum() < 5000
        # Red ink raises red and lowers green and blue, all the way where it is opaque.
        assert (marked[changed][:, 0] >= original[changed][:, 0]).all()
        assert (marked[changed][:, 1:] <= original[changed][:, 1:]).all()
        assert (marked[changed] == [255, 0, 0]).all(axis=1).any()


def test_jpeg_is_for_those_who_ask(photos, tmp_path):
    write_marked_folder(photos, tmp_path / "out", format="jpeg")
    assert written(tmp_path / "out") == ["a.jpeg", "c.jpeg", "deep/er/b.jpeg"]


def test_the_seed_counts(photos, tmp_path):
    for seed in (1, 2, 1):
        folder = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}"
        write_marked_folder(photos, folder, seed=seed)
    first, second, again = sorted(
        (p for p in tmp_path.iterdir() if p.name != "photos"), key=lambda p: p.name[2:]
    )
    assert (first / "a.png").read_bytes() == (again / "a.png").read_bytes()
    assert (first / "a.png").read_bytes() != (second / "a.png").read_bytes()


def test_nothing_is_overwritten(photos, tmp_path):
    write_marked_folder(photos, tmp_path / "out")
    with pytest.raises(ImagesError, match=r"a\.png exists already"):
        write_marked_folder(photos, tmp_path / "out")


def test_two_originals_for_one_name(photos, tmp_path):
    Image.new("RGB", (90, 90)).save(photos / "a.bmp")
    with pytest.raises(ImagesError, match=r"a\.bmp and .*a\.png would both be written"):
        write_marked_folder(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_words(photos, tmp_path):
    with pytest.raises(SettingsError, match="format must be one of png, webp, jpeg, got 'gif'"):
        write_marked_folder(photos, tmp_path / "out", format="gif")
    with pytest.raises(ScenarioError, match="there is nothing to draw"):
        write_marked_folder(photos, tmp_path / "out", PairedFolder("p", "q"))
    with pytest.raises(ScenarioError, match="unknown scenario"):
        write_marked_folder(photos, tmp_path / "out", "klingon")
