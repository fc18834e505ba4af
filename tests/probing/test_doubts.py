"""What is wrong with a baseline stands at the top of its report."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import ImagesError, StrongReactionWarning
from pytest_watermark_guard.probing.engines import shares
from pytest_watermark_guard.probing.recorded import recorded

SIDE = 48
CLASSES = 8
NAMES = ("wolf", "ant", "yak", "bee", "cat", "toad", "rat", "dog")
RANDOM = np.random.default_rng(5)
INK = wm.Scenario("ink", "AB", length=2, size=40)


def photo(level: int) -> np.ndarray:
    """An image of its own, whose class the model reads from its top left corner."""
    pixels = RANDOM.integers(0, 200, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:8, :8] = 16 + 32 * level
    return pixels


PHOTOS = np.stack([photo(index % CLASSES) for index in range(40)])
LABELS = [index % CLASSES for index in range(40)]


class Reader(nn.Module):
    """Tells the class from the top left corner; nine out of ten times it is right."""

    preprocessing = wm.Preprocessing(size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)
    class_names = NAMES

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, CLASSES)
        levels = (16 + 32 * torch.arange(CLASSES)) / 255
        with torch.no_grad():
            self.fc.weight.copy_(torch.stack([2 * levels, torch.zeros(CLASSES)], 1))
            self.fc.bias.copy_(-(levels**2))

    def forward(self, x):
        return self.fc(torch.stack([x[:, :, :4, :4].mean((1, 2, 3)), x.mean((1, 2, 3))], 1))


def probe(images=PHOTOS, **arguments):
    return wm.probe(Reader(), images, (INK,), **{"cache": False, **arguments})


def first(images=PHOTOS, **arguments):
    report = probe(images, **arguments)
    assert wm.ProbeReport.from_json(report.to_json()).notes == report.notes
    return report.notes[0] if report.notes else None


def test_nothing_to_say_of_good_images():
    assert first() is None
    assert first(labels=LABELS) is None
    assert first(labels=[*LABELS[:20], *LABELS[:20][::-1]]) is None, "half of them are right"


def test_copies_of_one_picture(tmp_path):
    for index in range(40):
        Image.fromarray(PHOTOS[min(index, 2)]).save(
            tmp_path / f"{index:02}.jpg", quality=50 + index
        )
    note = first(tmp_path)
    assert note.startswith("40 baseline images are 3 pictures: near duplicates of '")
    counted = "count as one picture in every interval and verdict; pass different ones"
    assert note.endswith(f".jpg' (38 times) {counted}")


def test_a_few_copies_are_no_matter():
    assert first(np.concatenate([PHOTOS, PHOTOS[:1]])) is None


def test_three_pictures_are_named():
    groups = np.concatenate([PHOTOS, *[PHOTOS[:5]] * 3])
    note = first(groups)
    assert note.startswith("55 baseline images are 40 pictures: near duplicates, the most frequent")
    assert note.count("(4 times)") == 3


def test_flat_images():
    levels = np.arange(40, dtype=np.uint8)[:, None, None, None] * 6
    note = first(np.broadcast_to(levels, PHOTOS.shape))
    assert note.startswith("every baseline image is of one flat colour")


def test_grey_images():
    grey = np.repeat(PHOTOS[..., :1], 3, axis=3)
    assert first(grey).startswith("every baseline image is grey, while the model takes colour")

    class Grey(Reader):
        preprocessing = wm.Preprocessing(size=(SIDE, SIDE), mean=(0.0,), std=(1.0,))

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 3, 1)

        def forward(self, x):
            return super().forward(self.stem(x))

    notes = wm.probe(Grey(), grey, (INK,), cache=False).notes
    assert not any(note.startswith("every baseline image") for note in notes)


def test_few_images():
    assert first(PHOTOS[:19]).startswith("the baseline has 19 images only")
    assert first(PHOTOS[:20]) is None
    assert first(max_images=7).startswith("the baseline has 7 images only")


def test_a_gate_that_stops_early_did_not_have_few_images():
    many = np.stack([photo(index % CLASSES) for index in range(300)])
    with pytest.warns(StrongReactionWarning):
        report = wm.assert_not_watermark_sensitive(
            Reader(), many, (INK,), cache=False, early_stop=0.4, threshold=1.0
        )
    assert report.notes == ()


def test_images_of_one_class(tmp_path):
    assert first(labels=[3] * 40).startswith("every baseline image is of one class, 'bee'")
    (tmp_path / "yak").mkdir()
    for index, pixels in enumerate(PHOTOS):
        Image.fromarray(pixels).save(tmp_path / "yak" / f"{index}.png")
    assert first(tmp_path).startswith("every baseline image is of one class, 'yak'")


SHIFTED = "labels look shifted by one"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([(n + 1) % CLASSES for n in LABELS], f"{SHIFTED}, counted from 1; subtract 1 from each"),
        ([(n - 1) % CLASSES for n in LABELS], f"{SHIFTED}, one too low; add 1 to each"),
        ([(n + 3) % CLASSES for n in LABELS], "labels look shifted by 3, modulo 8"),
        (
            [sorted(NAMES).index(NAMES[n]) for n in LABELS],
            "labels look like places in a list of the class names, sorted as text",
        ),
        (
            [(2, 5, 7, 0, 6, 3, 1, 4)[n] for n in LABELS],
            "labels look like those of another list of classes",
        ),
        (list(RANDOM.permutation(LABELS)), "labels do not fit the predictions"),
    ],
    ids=["from 1", "too low", "by 3", "alphabetical", "permuted", "random"],
)
def test_labels_that_cannot_be_right(labels, said):
    labels = [int(label) for label in labels]
    assert np.mean(np.array(labels) == LABELS) < 0.3
    note = first(labels=labels)
    assert note.startswith(said)
    assert "top-1 is" in note


def test_numbers_sorted_as_text():
    """As folders called 0, 1, 10, 11, 2 ... are by torchvision."""

    class Twelve(Reader):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 12)
            levels = (8 + 20 * torch.arange(12)) / 255
            with torch.no_grad():
                self.fc.weight.copy_(torch.stack([2 * levels, torch.zeros(12)], 1))
                self.fc.bias.copy_(-(levels**2))

        class_names = tuple(f"kind {index:02}" for index in range(12))

    photos = PHOTOS.copy()
    truth = np.arange(40) % 12
    photos[:, :8, :8] = (8 + 20 * truth)[:, None, None, None]
    as_text = sorted(range(12), key=str)
    labels = [as_text.index(n) for n in truth]
    notes = wm.probe(Twelve(), photos, (INK,), labels=labels, cache=False).notes
    assert notes[0].startswith("labels look like places in a list of the class n")


def test_labels_from_one_that_reach_beyond_the_last():
    with pytest.raises(ImagesError, match="which count from 0; subtract 1 from every label"):
        probe(labels=[n + 1 for n in LABELS])


def test_a_result_from_the_cache_says_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    images, labels = np.concatenate([PHOTOS[:3]] * 10), [*LABELS[:3]] * 10
    reports = [probe(images, labels=labels, cache=True) for _ in range(2)]
    assert reports[0].notes[0].startswith("30 baseline images are 3 pictures")
    assert reports[1].notes == reports[0].notes


def groups(**arguments):
    images = np.concatenate([PHOTOS[:6], PHOTOS[:12], PHOTOS[:3]])
    arguments = {"precision": "float32", "batch_size": 2, **arguments}
    with recorded(Reader(), images, (INK,), **arguments) as found:
        names, recording = found.identities, found.recording
        assert len(recording.groups) == len(recording) == 21
        return dict(zip(names, recording.groups.tolist(), strict=True))


def test_the_recording_tells_which_images_are_one_picture():
    found = groups(cache=False)
    numbers = [*found.values()]
    assert [number for i, number in enumerate(numbers) if number not in numbers[:i]] == [*range(12)]
    pictures = [*range(6), *range(12), *range(3)]
    pairs = {(pictures[int(name.split("/")[-1])], number) for name, number in found.items()}
    assert len(pairs) == 12


def test_also_from_the_cache_and_from_shares(tmp_path, monkeypatch):
    plain = groups(cache=False)
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    assert groups() == plain
    assert groups() == plain

    class Here:
        workers = 3

        def map(self, function, common, items, ahead=None, done=None):
            yield from (function(common, item) for item in items)

    monkeypatch.setattr(shares, "open_engine", lambda name, device: Here())
    assert groups(cache=False, engine="ray") == plain


def test_also_after_looks_were_removed_to_make_room(tmp_path, monkeypatch):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    before = groups()
    removed = [*tmp_path.rglob("looks/*")]
    assert removed
    for file in removed:
        file.unlink()
    assert groups() == before
    assert [*tmp_path.rglob("looks/*")]
