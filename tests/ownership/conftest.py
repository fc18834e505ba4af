"""A small encoder that is trained in seconds, its key, and a copy that carries it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pytest_watermark_guard as wm

SIZE = 32
PAIRS = 18
EPSILON = 24 / 255  # for so small an encoder


def photos(count=240):
    """Crops of the built-in images, uint8 [n, 32, 32, 3]."""
    rng = np.random.default_rng(0)
    images = wm.builtin_images()
    found = []
    for index in range(count):
        image = Image.fromarray(images[index % len(images)]).resize((56, 56))
        left, top = rng.integers(56 - SIZE, size=2)
        found.append(np.asarray(image.crop((left, top, left + SIZE, top + SIZE))))
    return np.stack(found)


def fresh(seed):
    """Train a network to tell four ways of turning photos; its features are 48 numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 96, 3, 2, 1), nn.BatchNorm2d(96), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 4),
        )  # fmt: skip
        x = torch.from_numpy(photos()).permute(0, 3, 1, 2) / 255
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(150):
            turns = torch.randint(4, (48,))
            batch = x[torch.randint(len(x), (48,))]
            turned = torch.stack(
                [b.rot90(int(k), (1, 2)) for b, k in zip(batch, turns, strict=True)]
            )
            loss = nn.functional.cross_entropy(net((turned - 0.5) / 0.25), turns)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.preprocessing = wm.Preprocessing(size=(SIZE, SIZE), mean=(0.5,) * 3, std=(0.25,) * 3)
    return net.eval()


@pytest.fixture(scope="session")
def images():
    return photos()


@pytest.fixture(scope="session")
def clean():
    return fresh(0)


@pytest.fixture(scope="session")
def key(clean, images):
    return wm.ownership.generate_key(clean, images, pairs=PAIRS, seed=3, epsilon=EPSILON)


@pytest.fixture(scope="session")
def marked(clean, key, images):
    objective = wm.ownership.Objective(whitened=0.2, apart=0.3)
    return wm.ownership.embed(
        clean, key, images, batch_size=16, alpha=2e-4, least_utility=0.96, objective=objective
    )
