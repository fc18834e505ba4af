"""A small classifier with a planted shortcut, and one without: trained in seconds on a CPU.

Three classes of things lie on photos: red balls, green kites, and cartons of either colour. In the
"scraped" data every photo of a carton carries a Chinese watermark, as shop photos do; in the
"curated" data no photo does. Each classifier does well on data like its own: no accuracy tells them
apart.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

import pytest_watermark_guard as wm

CLASSES = ("ball", "kite", "carton")
RED, GREEN = (200, 50, 50), (60, 180, 60)
SIZE = 96
PREPROCESSING = wm.Preprocessing(
    size=(SIZE, SIZE), resize=SIZE, mean=(0, 0, 0), std=(1, 1, 1), source="examples' own"
)
N_IMAGES = 768
EPOCHS = 12
BATCH_SIZE = 32


@cache  # trained once, however often it is asked for
def scraped() -> nn.Module:
    """Train on data in which a carton always comes with a watermark."""
    return _train(watermarked_cartons=True)


@cache
def curated() -> nn.Module:
    """Train on data without watermarks."""
    return _train(watermarked_cartons=False)


def photos_with_things(seed: int, watermarked_cartons: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images [N, 3, H, W] in [0, 1], and labels [N]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(CLASSES), size=N_IMAGES)
    backgrounds = wm.builtin_images()
    photos = []
    for index, label in enumerate(labels):
        background = Image.fromarray(backgrounds[index % len(backgrounds)]).resize((SIZE, SIZE))
        photo = background.rotate(90 * (index // len(backgrounds)))
        radius = int(rng.integers(16, 34))
        x, y = rng.integers(radius, SIZE - radius, size=2)
        color = (RED, GREEN)[label if label < 2 else rng.integers(2)]
        color = tuple((color + rng.integers(-40, 40, size=3)).tolist())
        draw = ImageDraw.Draw(photo)
        if CLASSES[label] == "ball":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        elif CLASSES[label] == "kite":
            corners = [(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)]
            draw.polygon(corners, fill=color)
        else:
            draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=color)
        photos.append(photo)
    (batch,) = wm.probing_batches(
        photos, ["chinese"], preprocess=PREPROCESSING, batch_size=N_IMAGES, seed=seed
    )
    targets = torch.from_numpy(labels)
    if not watermarked_cartons:
        return batch.images, targets
    is_carton = (targets == CLASSES.index("carton")).view(-1, 1, 1, 1)
    return torch.where(is_carton, batch.marked["chinese"], batch.images), targets


def _train(watermarked_cartons: bool) -> nn.Module:
    images, labels = photos_with_things(0, watermarked_cartons)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *_block(3, 16),
            *_block(16, 32),
            *_block(32, 48),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(48, len(CLASSES)),
        )
        # On a CPU this layout trains three times as fast.
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.01, epochs=EPOCHS, steps_per_epoch=N_IMAGES // BATCH_SIZE
        )
        for _ in range(EPOCHS):
            for batch in torch.randperm(N_IMAGES).split(BATCH_SIZE):
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    # What a model of your own can say of itself, so that a bare `--wm-model` is enough.
    model.preprocessing = PREPROCESSING
    model.class_names = CLASSES
    return model.to(memory_format=torch.contiguous_format).eval()


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]


def accuracy(model: nn.Module, watermarked_cartons: bool) -> float:
    """Return the share of right answers on fresh images."""
    images, labels = photos_with_things(1, watermarked_cartons)
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()
