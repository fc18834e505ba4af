from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pytest_watermark_guard.images import builtin
from pytest_watermark_guard.images.baseline import open_baseline
from pytest_watermark_guard.images.painting import painted


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def generated():
    return np.stack([painted(f"watermark-guard/{builtin.VERSION}", i) for i in range(256)])


def test_the_same_bytes_everywhere(generated):
    assert generated.shape == (builtin.COUNT, 224, 224, 3)
    assert builtin.COUNT >= 256
    assert generated.dtype == np.uint8
    assert hashlib.sha256(generated.tobytes()).hexdigest() == builtin.SHA256


def test_images_differ_and_hardly_any_is_bland(generated):
    assert len({image.tobytes() for image in generated}) == len(generated)
    spread = generated.reshape(len(generated), -1).std(axis=1)
    assert (spread < 10).mean() <= 0.01
    assert np.median(spread) > 40


@pytest.fixture
def paintings(monkeypatch, generated):
    calls = []
    monkeypatch.setattr(builtin, "painted", lambda _, i: calls.append(i) or generated[i])
    return calls


def test_painted_once_and_kept(folder, paintings):
    first, second = builtin.builtin_images(), builtin.builtin_images()
    np.testing.assert_array_equal(first, second)
    assert paintings == [*range(builtin.COUNT)]
    assert [path.name for path in folder.iterdir()] == [f"builtin-{builtin.BUILTIN_NAME}.npy"]


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_cache_is_made_again(folder, paintings, damage):
    builtin.builtin_images()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    one_bit = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes({"truncated": whole[:999], "empty": b"", "one bit": one_bit}[damage])
    with pytest.warns(UserWarning, match="is damaged"):
        builtin.builtin_images()
    assert len(paintings) == 2 * builtin.COUNT
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch, paintings):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="are not kept"):
        assert len(builtin.builtin_images()) == builtin.COUNT


def test_other_bytes_are_announced_and_not_kept(folder, monkeypatch, generated):
    monkeypatch.setattr(builtin, "digest_of_photos", lambda: "others")
    monkeypatch.setattr(builtin, "painted", lambda _, i: generated[i])
    with pytest.warns(UserWarning, match="differ from the published ones"):
        builtin.builtin_images()
    assert not list(folder.iterdir())


def test_an_image_is_painted_when_it_is_asked_for(folder, paintings):
    baseline = open_baseline().subset(5, seed=1)
    content = baseline.content()
    assert paintings == []
    baseline.load(2)
    assert paintings == [int(baseline.identities[2].rpartition("/")[2])]
    assert not list(folder.iterdir())
    builtin.builtin_images()  # from now on they are kept, and are the same
    assert open_baseline().subset(5, seed=1).content() == content


def test_it_is_the_default_baseline(folder, paintings):
    baseline = open_baseline()
    assert len(baseline) == builtin.COUNT
    assert baseline.description == f"{builtin.COUNT} images of the built-in set v{builtin.VERSION}"
    assert baseline.load(3)[0].size == (224, 224)
