"""Keys: what is made, and that a file is taken as it was written or not at all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import WatermarkGuardError
from pytest_watermark_guard.ownership import OwnershipError, OwnershipKey, generate_key

SIZE = 32
EPSILON = 24 / 255


def test_what_a_key_holds(key, clean):
    assert key.perturbations.dtype is torch.int8
    assert key.perturbations.shape == (key.pairs, 2, 3, SIZE, SIZE)
    assert key.epsilon == EPSILON
    assert 1 <= key.perturbations.abs().max() <= 24
    assert key.clean_leads.shape == (key.pairs,)
    assert key.preprocessing == clean.preprocessing
    assert 0 < int(key.coins.sum()) < key.pairs
    for pair, coin in enumerate(key.coins):
        assert torch.equal(key.chosen[pair], key.perturbations[pair, int(coin)])
        assert torch.equal(key.decoys[pair], key.perturbations[pair, 1 - int(coin)])


def test_the_seed_decides_all(clean, images, key):
    again = generate_key(clean, images, pairs=key.pairs, seed=3, epsilon=EPSILON)
    assert again.hash == key.hash
    assert generate_key(clean, images, pairs=key.pairs, seed=4).hash != key.hash


def test_every_bit_of_the_seed_counts(clean, images):
    one, other = (generate_key(clean, images, pairs=8, seed=s) for s in (1, 1 + 2**100))
    assert not torch.equal(one.coins, other.coins)
    assert not torch.equal(one.perturbations, other.perturbations)


def test_without_a_seed_nobody_can_guess(clean, images):
    one, other = (generate_key(clean, images, pairs=2, steps=0) for _ in range(2))
    assert one.seed != other.seed
    assert one.hash != other.hash


def test_learning_moves_towards_the_key_image(clean, images):
    def nearness(steps):
        key = generate_key(clean, images, pairs=8, steps=steps, seed=1)
        report = wm.ownership.verify(clean, key, images)
        return report.chosen + report.decoy

    assert nearness(20) > nearness(0)


def test_the_key_image_can_be_chosen(clean, images, tmp_path):
    picture = Image.fromarray(images[7])
    picture.save(tmp_path / "key.png")
    for given in (picture, images[7], tmp_path / "key.png", str(tmp_path / "key.png")):
        key = generate_key(clean, images, given, pairs=2, steps=0)
        assert np.array_equal(key.key_image.permute(1, 2, 0).numpy(), images[7])


def test_a_file_and_back(key, tmp_path):
    key.save(tmp_path / "key.safetensors")
    again = OwnershipKey.load(tmp_path / "key.safetensors")
    assert again.hash == key.hash
    assert again.seed == key.seed
    assert again.encoder == key.encoder
    assert again.preprocessing == key.preprocessing
    assert torch.equal(again.perturbations, key.perturbations)


def test_a_key_that_was_published(key, tmp_path):
    path = tmp_path / "key.safetensors"
    key.save(path)
    for published in (key.hash, key.hash[:16]):
        assert OwnershipKey.load(path, published).hash == key.hash
    for published in ("0" * 64, key.hash[:15], ""):
        with pytest.raises(OwnershipError, match="is not the key that was published"):
            OwnershipKey.load(path, published)


def rewritten(path, change):
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def toss(tensors, metadata):
    tensors["coins"] = ~tensors["coins"]


def turn(tensors, metadata):
    tensors["perturbations"] = tensors["perturbations"].flip(1).contiguous()


def other_epsilon(tensors, metadata):
    metadata["key"] = metadata["key"].replace('"epsilon": 0.09', '"epsilon": 0.19')


def other_leads(tensors, metadata):
    tensors["clean_leads"] = -tensors["clean_leads"]


def other_encoder(tensors, metadata):
    metadata["key"] = metadata["key"].replace('"encoder": "', '"encoder": "0')


@pytest.mark.parametrize("change", [toss, turn, other_leads, other_epsilon, other_encoder])
def test_a_file_that_was_changed_is_refused(key, tmp_path, change):
    path = tmp_path / "key.safetensors"
    key.save(path)
    rewritten(path, change)
    with pytest.raises(OwnershipError, match=r"was changed after it was written"):
        OwnershipKey.load(path)


def drop(tensors, metadata):
    del tensors["coins"]


def other_format(tensors, metadata):
    metadata["format"] = "something"


def wrong_type(tensors, metadata):
    tensors["coins"] = tensors["coins"].int()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "holds no ownership key"),
        (other_format, "is of format 'something'"),
        (wrong_type, r"coins must be torch\.bool"),
    ],
)
def test_a_file_that_is_no_key(key, tmp_path, change, message):
    path = tmp_path / "key.safetensors"
    key.save(path)
    rewritten(path, change)
    with pytest.raises(OwnershipError, match=message):
        OwnershipKey.load(path)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "noise").write_bytes(b"no safetensors at all")
    for name, message in (("none", "cannot read"), ("noise", "holds no ownership key")):
        with pytest.raises(OwnershipError, match=message):
            OwnershipKey.load(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.001}, "epsilon must be in"),
        ({"pairs": 0}, "pairs must be in"),
        ({"pairs": 45}, "pairs must be in"),
        ({"steps": -1}, "steps must be an integer >= 0"),
        ({"seed": "x"}, "seed must be an integer >= 0"),
        ({"preprocess": "none"}, "an input of one size"),
    ],
    ids=str,
)
def test_what_cannot_be_made(clean, images, arguments, message):
    with pytest.raises(WatermarkGuardError, match=message):
        generate_key(clean, images, **arguments)


def test_a_function_cannot_be_kept(clean, images):
    with pytest.raises(OwnershipError, match="a function cannot be kept"):
        generate_key(clean, images, pairs=2, steps=0, preprocess=lambda batch: batch * 2 - 1)


def test_parts_must_fit(key):
    with pytest.raises(OwnershipError, match="perturbations of 3 pairs"):
        dataclasses.replace(key, coins=key.coins[:3])
    with pytest.raises(OwnershipError, match=r"epsilon is 0\.001"):
        dataclasses.replace(key, epsilon=0.001)
    with pytest.raises(OwnershipError, match="key_image has shape"):
        dataclasses.replace(key, key_image=key.key_image[:, 1:])
    with pytest.raises(OwnershipError, match=r"clean_leads must be finite and of shape \[18\]"):
        dataclasses.replace(key, clean_leads=key.clean_leads[1:])
    with pytest.raises(OwnershipError, match="and 18 that are not finite"):
        dataclasses.replace(key, clean_leads=key.clean_leads * float("nan"))
