"""Near duplicates, flat and grey images, by what they look like."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageEnhance

from pytest_watermark_guard.images.builtin import BuiltinImages
from pytest_watermark_guard.images.looks import LOOK, NEAR, look_of, near_duplicates, together


@pytest.fixture(scope="module")
def pictures():
    return [*BuiltinImages(40)]


def groups_of(images):
    return near_duplicates(together([look_of(np.asarray(image)) for image in images])).tolist()


def test_different_pictures_are_different(pictures):
    assert groups_of(pictures) == [*range(40)]


def jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    return Image.open(file)


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (jpeg, 1),
        (lambda image: image.resize((112, 112)), 1),
        (lambda image: image.resize((61, 97)), 1),
        (lambda image: image.convert("L").convert("RGB"), 1),
        (lambda image: ImageEnhance.Brightness(image).enhance(0.8), 1),
        (lambda image: image.crop((3, 3, 221, 221)), 0.75),
    ],
    ids=["jpeg", "half", "stretched", "grey", "darker", "cropped"],
)
def test_copies_are_one_picture(pictures, change, least):
    # Tiles of mirror images have many coefficients of 0, whose signs say nothing.
    plain = [picture for index, picture in enumerate(pictures) if index % 5 != 3]
    copies = [change(Image.fromarray(picture)) for picture in plain]
    groups = np.array(groups_of([*plain, *copies]))
    assert (groups[32:] == groups[:32]).mean() >= least


def test_mirrored_copies_are_others(pictures):
    # Tiles of mirror images are mirror images of themselves.
    asymmetric = [picture for index, picture in enumerate(pictures) if index % 5 != 3]
    mirrored = [picture[:, ::-1] for picture in asymmetric]
    found = groups_of([*asymmetric, *mirrored])
    assert len(set(found)) == len(found)


def test_flat_images_are_one_by_their_colour():
    def flat(*colour):
        return np.full((30, 40, 3), colour, np.uint8)

    noisy = flat(200, 10, 10)
    noisy[::2] += 3
    images = [flat(0, 0, 0), flat(9, 0, 0), flat(0, 0, 0), flat(255, 255, 255), noisy]
    looks = together([look_of(image) for image in images])
    assert looks["flat"].all()
    assert looks["grey"].tolist() == [True, False, True, True, False]
    assert near_duplicates(looks).tolist() == [0, 1, 0, 2, 3]


def test_a_small_spot_is_something_to_see():
    image = np.full((224, 224, 3), 255, np.uint8)
    image[100:102, 100:102] = 0
    other = np.roll(image, 60, axis=1)
    looks = together([look_of(image), look_of(other)])
    assert not looks["flat"].any()
    assert near_duplicates(looks).tolist() == [0, 1]


def test_grey_is_grey_after_jpeg(pictures):
    grey = [jpeg(Image.fromarray(p).convert("L").convert("RGB")) for p in pictures[:5]]
    assert all(look_of(np.asarray(image))["grey"][0] for image in grey)
    colour = np.concatenate([look_of(picture)["grey"] for picture in pictures])
    assert colour.mean() < 0.2


def by_all_pairs(hashes):
    """Connected components by trying all pairs until nothing changes."""
    group = [*range(len(hashes))]
    for _ in hashes:
        for i, one in enumerate(hashes):
            for j, other in enumerate(hashes):
                if (one ^ other).bit_count() <= NEAR:
                    group[i] = group[j] = min(group[i], group[j])
    return [sorted(set(group)).index(number) for number in group]


@given(
    hnp.arrays(np.uint64, st.integers(1, 4), elements=st.integers(0, 2**64 - 1)),
    st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=12)), max_size=8),
)
@settings(max_examples=60)
def test_groups_are_those_of_all_pairs(originals, changes):
    hashes = [int(one) for one in originals]
    for index, bits in changes:
        base = hashes[index % len(originals)]
        hashes.append(base ^ sum(1 << bit for bit in bits))
    looks = np.zeros(len(hashes), LOOK)
    looks["small"] = np.arange(256)
    looks["hash"] = np.array(hashes, np.uint64)
    assert near_duplicates(looks).tolist() == by_all_pairs(hashes)


def test_no_image_has_no_picture():
    assert len(near_duplicates(together([]))) == 0
