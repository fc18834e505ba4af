from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pytest_watermark_guard.errors import ImagesError
from pytest_watermark_guard.images.baseline import open_baseline

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, 8, 10, 3), dtype=np.uint8)


def save(folder, *names):
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[index % 3]).save(folder / name)
    return folder


def pixels_of(baseline):
    return np.stack([np.asarray(baseline.load(i)[0]) for i in range(len(baseline))])


def test_a_folder_is_read_whole_and_in_order(tmp_path):
    save(tmp_path, "b.PNG", "a.bmp", "deep/c.webp", "deep/er/d.JPEG", ".hidden.png", ".git/e.png")
    (tmp_path / "notes.txt").write_text("no image")
    baseline = open_baseline(tmp_path)
    assert baseline.identities == ("a.bmp", "b.PNG", "deep/c.webp", "deep/er/d.JPEG")
    assert baseline.description == f"4 images of {tmp_path}"
    assert baseline.root == tmp_path
    np.testing.assert_array_equal(pixels_of(baseline)[:2], PIXELS[[1, 0]])


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        PIXELS.transpose(0, 3, 1, 2),
        PIXELS / 255,
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255,
        [Image.fromarray(p) for p in PIXELS],
        [{"image": p} for p in PIXELS],
        [{"pixel_values": torch.from_numpy(p).permute(2, 0, 1)} for p in PIXELS],
        [(p, index) for index, p in enumerate(PIXELS)],
        torch.utils.data.TensorDataset(torch.from_numpy(PIXELS)),
        list(PIXELS),
    ],
)
def test_arrays_tensors_and_datasets_hold_the_same_pixels(images):
    baseline = open_baseline(images)
    assert baseline.identities == ("0", "1", "2")
    np.testing.assert_array_equal(pixels_of(baseline), PIXELS)


def test_a_sequence_of_paths(tmp_path):
    save(tmp_path, "a.png")
    np.testing.assert_array_equal(pixels_of(open_baseline([tmp_path / "a.png"])), PIXELS[:1])


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    for mode in ("L", "P", "RGBA", "LA", "1"):
        Image.fromarray(PIXELS[0]).convert(mode).save(tmp_path / f"{mode}.png")
    baseline = open_baseline(tmp_path)
    assert {baseline.load(i)[0].mode for i in range(5)} == {"RGB"}


def test_sixteen_bits_keep_their_shades(tmp_path):
    shades = np.linspace(0, 65535, 80).reshape(8, 10).astype(np.uint16)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(
        pixels_of(open_baseline(tmp_path))[0, :, :, 0], np.rint(shades / 257)
    )


def test_values_without_a_range_are_refused(tmp_path):
    with pytest.raises(
        ImagesError, match=r"images\[0\]: floating-point values have no known range"
    ):
        open_baseline([Image.fromarray(np.zeros((4, 4), np.float32))]).load(0)


def test_links_that_lead_round_are_walked_once(tmp_path):
    save(tmp_path, "a.png", "deep/b.png")
    (tmp_path / "deep" / "again").symlink_to(tmp_path)
    assert open_baseline(tmp_path).identities == ("a.png", "deep/b.png")


def test_labels_come_along():
    labelled = [(PIXELS[0], 4), {"image": PIXELS[1], "label": torch.tensor(2)}, (PIXELS[2], "cat")]
    assert [open_baseline(labelled).load(i)[1] for i in range(3)] == [4, 2, None]
    given = open_baseline(PIXELS, labels=[7, 8, 9])
    assert [given.load(i)[1] for i in range(3)] == [7, 8, 9]
    some = open_baseline(PIXELS, labels={"1": 5})
    assert [some.load(i)[1] for i in range(3)] == [None, 5, None]


@pytest.mark.parametrize(
    ("labels", "message"),
    [([1, 2], "got 2 of them for 3 images"), ({"9": 1}, "'9' is not among the 3 images")],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(ImagesError, match=message):
        open_baseline(PIXELS, labels=labels)


def test_a_subset_depends_on_the_images_and_the_seed_alone(tmp_path):
    names = [f"{letter}{digit}.png" for letter in "abcde" for digit in range(8)]
    baseline = open_baseline(save(tmp_path / "one", *names))
    chosen = baseline.subset(10, seed=1)
    assert len(chosen) == 10
    assert chosen.description.startswith("10 of 40 images")
    assert list(chosen.identities) == sorted(chosen.identities)
    assert chosen.identities != baseline.identities[:10]
    assert chosen.identities != baseline.subset(10, seed=2).identities
    # An image that is not chosen can go without changing the choice.
    gone = next(name for name in names if name not in chosen.identities)
    (tmp_path / "one" / gone).unlink()
    assert open_baseline(tmp_path / "one").subset(10, seed=1).identities == chosen.identities
    # Each name still belongs to its own pixels.
    position = baseline.identities.index(chosen.identities[3])
    assert chosen.load(3)[0].tobytes() == baseline.load(position)[0].tobytes()
    assert baseline.subset(40, 1) is baseline


def test_damaged_files_are_errors(tmp_path):
    save(tmp_path, "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("not a picture")
    baseline = open_baseline(tmp_path)
    for name in ("half.png", "text.jpg"):
        with pytest.raises(ImagesError, match=rf"cannot read '.*{name}'.*Remove or replace"):
            baseline.load(baseline.identities.index(name))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("/no/such/folder", "'/no/such/folder' is not a folder"),
        ([], "this list is empty"),
        (5, "got int"),
        (iter([]), "map-style Dataset"),
        (np.zeros((4, 4)), r"has shape \[N, H, W, 3\]"),
    ],
)
def test_what_is_no_baseline(images, message):
    with pytest.raises(ImagesError, match=message):
        open_baseline(images)


def test_an_empty_folder(tmp_path):
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ImagesError, match=r"no image in .* looked for \.jpg"):
        open_baseline(tmp_path)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"images\[0\]: expected shape .* got \[4, 4, 2\]"),
        (np.zeros((4, 4, 3), np.int64), "uint8 or floating point, got int64"),
        (np.full((4, 4, 3), 1.5), r"must lie in \[0, 1\].*without Normalize"),
        (np.full((4, 4, 3), np.nan), r"must lie in \[0, 1\]"),
        ("/no/such.png", "cannot read"),
        (object(), "expected a PIL image.*got object"),
        ({"text": 1}, "got NoneType"),
    ],
)
def test_items_that_are_no_images(item, message):
    with pytest.raises(ImagesError, match=message):
        open_baseline([item]).load(0)


def test_the_fingerprint_tells_images_and_not_folders(tmp_path):
    one, other = (save(tmp_path / name, "a.png", "b.png", "c.png") for name in ("one", "other"))
    prints = [open_baseline(folder).fingerprint() for folder in (one, other)]
    assert prints[0] == prints[1] == open_baseline(one).shuffled(3).fingerprint()
    assert open_baseline(one).subset(2, seed=1).fingerprint() != prints[0]
    Image.fromarray(PIXELS[2]).save(other / "a.png")
    assert open_baseline(other).fingerprint() != prints[0]
    assert open_baseline(PIXELS).fingerprint() != open_baseline(PIXELS[::-1]).fingerprint()
    assert open_baseline(list(PIXELS)).fingerprint() == ""  # a sequence may give others next time
