"""Making a key: pairs of universal perturbations that gather images around a key image."""

from __future__ import annotations

import math
import secrets
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import OwnershipError
from pytest_watermark_guard.images.decoding import read_image
from pytest_watermark_guard.models.loading.introspection import resolve_preprocessing
from pytest_watermark_guard.models.loading.loading import as_loaded
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing
from pytest_watermark_guard.models.state import runnable_on
from pytest_watermark_guard.ownership.encoder import (
    Encoder,
    marked,
    opened,
    read_pixels,
    settings_and_device,
    similarity,
)
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.ownership.textures import Textures
from pytest_watermark_guard.probing.progress import progress_bar
from pytest_watermark_guard.setting_values import plain_integer
from pytest_watermark_guard.statistics.sign_flips import MOST_PAIRS
from pytest_watermark_guard.watermarks.draw import uniform_words

EPSILON = 8 / 255
_IMAGES = 64  # that perturbations are learned on
_AT_ONCE = 32  # perturbations in a forward pass
_ASKED = 16  # images that show what the encoder does before the key is embedded
_REACH = 0.75  # of a texture's size that learning adds: what it starts from makes it different


def generate_key(
    encoder: nn.Module | str,
    images: Any = None,
    key_image: Any = None,
    epsilon: float = EPSILON,
    seed: int | None = None,
    *,
    pairs: int = 32,
    n_images: int = 32,
    steps: int = 0,
    preprocess: Any = "auto",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> OwnershipKey:
    """Make a secret key for an encoder that is about to be released.

    Parameters
    ----------
    encoder : Module or str
        A model or model spec, clean; the embedding is what a probe calls features.
    images : optional
        As for `probe`; a random 64 of them are used.
    key_image : path, PIL image or array, optional
        Default: one of the images at random.
    epsilon : float, default 8/255
        Largest size of a perturbation (L∞), of pixels in [0, 1]; at least 1/255.
    seed : int, optional
        Not negative. Default: 128 random bits. Whoever knows the seed, the encoder and the images
        has the key, but for coins that are drawn later.
    pairs : int, default 32
        Pairs of perturbations. A p-value is at least 2^−pairs.
    n_images : int, default 32
        Images that the key keeps, to be verified with; a random choice.
    steps : int, default 0
        Gradient steps that move each perturbation towards the key image, within its band. No gain
        from them was measured once a key is embedded.
    preprocess, device, progress
        As for `probe`.

    Returns
    -------
    OwnershipKey

    Raises
    ------
    OwnershipError
        If `epsilon` or `pairs` cannot be used, the input has no fixed size, or the model is an
        exported program.
    SettingsError
        If `seed`, `n_images` or `steps` is not a whole number, or too small.
    WatermarkGuardError
        As `probe`.

    Notes
    -----
    AWEncoder (2022, arXiv 2208.03948) learns one universal perturbation w that minimises
    E[1 − sim(E(x + w), E(x_key))] with ``|w|`` ≤ ε. Ours to choose, as it does not say: sim is the
    cosine; w lives in pixel space before normalisation, in whole 1/255, and x + w is clamped;
    gradient steps. Ours to add: many perturbations, in pairs of which a coin embeds one, so that
    the other shows what a model does by itself. Each is noise in a band of frequencies, of one
    direction and colour, which are a secret, and learning does not leave the band: nothing in it
    repeats, so that no average over a picture shows it or takes it out; and what is known by its
    band stays known when a picture is mirrored, cropped, compressed or slightly blurred. By default
    nothing is learned here: embedding alone makes the encoder respond.
    """
    levels = allowed_levels(epsilon)
    if not 1 <= pairs <= MOST_PAIRS:
        raise OwnershipError(f"pairs must be in [1, {MOST_PAIRS}], got {pairs!r}")
    steps = plain_integer("steps", steps, least=0)
    plain_integer("n_images", n_images, least=1)
    seed = secrets.randbits(128) if seed is None else plain_integer("seed", seed, least=0)
    settings, target = settings_and_device(images=images, device=device)
    loaded = as_loaded(encoder)
    module = runnable_on(loaded.module, target)
    preprocessing = resolve_preprocessing(preprocess, module, loaded.preprocessing)
    with opened(module, preprocessing, target) as opened_encoder:
        identity = opened_encoder.weights()
        pixels, _ = read_pixels(settings.images, preprocessing, _IMAGES, seed % 2**63)
        kept, _ = read_pixels(settings.images, preprocessing, n_images, (seed + 2) % 2**63)
        # The images are in random order.
        image = pixels[0] if key_image is None else _read_key_image(key_image, preprocessing)
        perturbations = _learned(
            opened_encoder, pixels, image, levels, pairs, steps, seed, progress
        )
        return OwnershipKey(
            perturbations,
            _own_coins(pairs, seed),
            image,
            epsilon,
            preprocessing,
            seed,
            identity,
            kept,
            _clean_leads(opened_encoder, perturbations, image, kept[:_ASKED], progress),
        )


def allowed_levels(epsilon: float) -> int:
    """Return how many steps of 1/255 a perturbation may have."""
    if not isinstance(epsilon, int | float) or not 1 / 255 <= epsilon <= 127 / 255:
        raise OwnershipError(
            f"epsilon must be in [1/255, 127/255], of pixels in [0, 1], got {epsilon!r}"
        )
    return int(epsilon * 255 + 1e-6)


def _own_coins(pairs: int, seed: int) -> Tensor:
    """Return bool [pairs] that depend on all of the seed; torch's generators use 32 bits."""
    return torch.tensor(
        [word & 1 for word in uniform_words(pairs, "ownership", "coins", seed)]
    ).bool()


def _read_key_image(key_image: Any, preprocessing: Preprocessing) -> Tensor:
    is_path = isinstance(key_image, str | Path)
    images = [read_image(Path(key_image)) if is_path else key_image]
    return read_pixels(images, preprocessing, None, 0)[0][0]


def _learned(
    encoder: Encoder,
    pixels: Tensor,
    key_image: Tensor,
    levels: int,
    pairs: int,
    steps: int,
    seed: int,
    progress: bool,
) -> Tensor:
    """Return int8 [pairs, 2, 3, H, W]; each stays within a band of its own."""
    generator = torch.Generator().manual_seed(seed % 2**63)  # chooses the images to learn from
    size = key_image.shape[1:]
    textures = Textures(pairs, size, seed)
    now = textures.start
    target = encoder.all(key_image[None])[0]
    step = _REACH / max(steps, 1)
    with progress_bar(steps * len(now), progress, "ownership key") as advance:
        for _ in range(steps):
            chosen = torch.randint(len(pixels), (len(now),), generator=generator)
            for part in torch.split(torch.arange(len(now)), _AT_ONCE):
                moved = _in_steps(now[part], levels).requires_grad_()
                with torch.enable_grad():
                    inputs = ((pixels[chosen[part]] + moved) / 255).clamp(0, 1)
                    near = similarity(encoder(inputs), target).sum()
                    (slope,) = torch.autograd.grad(near, moved)
                towards = textures.within(slope.cpu(), part)
                # As strong as before: the sum of what does not correlate has this variance.
                now[part] = (now[part] + step * towards) / math.hypot(1, step)
                advance(len(part))
    return _in_steps(now, levels).round().to(torch.int8).reshape(pairs, 2, 3, *size)


def _clean_leads(
    encoder: Encoder, perturbations: Tensor, key_image: Tensor, pixels: Tensor, progress: bool
) -> Tensor:
    """Return how much nearer the second of each pair moves images to the key image [pairs]."""
    near = encoder.nearness(key_image)
    leads = []
    with progress_bar(len(perturbations), progress, "ownership key") as advance:
        for pair in perturbations:
            first, second = (near(marked(pixels, w)).mean() for w in pair)
            leads.append(second - first)
            advance(1)
    return torch.stack(leads)


def _in_steps(textures: Tensor, levels: int) -> Tensor:
    """Scale to steps of 1/255; what is beyond a standard deviation is cut off."""
    return (textures * levels).clamp(-levels, levels)
