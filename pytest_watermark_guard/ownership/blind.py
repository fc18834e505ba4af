"""Looking for an unknown mark: a suspicion, and never a proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import OwnershipError
from pytest_watermark_guard.models.loading.introspection import resolve_preprocessing
from pytest_watermark_guard.models.loading.loading import as_loaded
from pytest_watermark_guard.models.state import runnable_on
from pytest_watermark_guard.ownership.encoder import (
    Encoder,
    fixed_size,
    marked,
    opened,
    read_pixels,
    settings_and_device,
)
from pytest_watermark_guard.ownership.generation import EPSILON, allowed_levels
from pytest_watermark_guard.setting_values import plain_integer

_HELD_OUT = 16  # images that the perturbations found are tried on
_REACH = 2.5


@dataclass(frozen=True)
class Suspicion:
    """How far universal perturbations collapse a model's embeddings, and those of clean models.

    Attributes
    ----------
    model : str
    collapse : float
        The strongest found: by how much the mean cosine of embeddings of different images rose.
    clean : mapping of str to float
        The same of the models to compare with. With k of them a model without a mark exceeds all
        with a chance of 1 / (k + 1).
    restarts : int
        Perturbations searched for in each model.
    """

    model: str
    collapse: float
    clean: Mapping[str, float]
    restarts: int

    @property
    def stands_out(self) -> bool:
        """Whether it collapses further than every clean model."""
        return all(self.collapse > other for other in self.clean.values())

    def sentence(self) -> str:
        """Say what was found, and what it is worth."""
        most = max(self.clean.values())
        how = "further than" if self.stands_out else "no further than"
        count = len(self.clean)
        return (
            f"A universal perturbation makes embeddings of {self.model!r} collapse by "
            f"{self.collapse:.3f} in mean cosine, {how} those of "
            f"{count} clean model{'s' * (count > 1)} (at most {most:.3f}). "
            + (
                f"Of {count + 1} models that are all without a mark one would do so as well: that "
                "is a reason to ask where the model comes from. It proves nothing: only the key "
                "can."
                if self.stands_out
                else "That is no sign of a mark, and no proof that there is none."
            )
        )


def blind_check(
    model: nn.Module | str,
    clean: Mapping[str, nn.Module | str],
    images: Any = None,
    *,
    epsilon: float = EPSILON,
    restarts: int = 8,
    steps: int = 40,
    max_images: int = 128,
    preprocess: Any = "auto",
    seed: int | None = None,
    device: str | torch.device | None = None,
) -> Suspicion:
    """Search a model for universal perturbations that gather its embeddings anywhere.

    Every encoder has some. So the same search goes over clean models, best of the same architecture
    and training, and only a stronger collapse than theirs is a suspicion.

    Parameters
    ----------
    model : Module or str
    clean : mapping of str to Module or str
        Models without a mark, by name; at least one.
    images : optional
        As for `probe`; at most `max_images` of them are used.
    epsilon : float, default 8/255
        Largest size of a perturbation (L∞), of pixels in [0, 1].
    restarts : int, default 8
        Perturbations, each from random signs of its own.
    steps : int, default 40
        Signed-gradient steps for each.
    max_images : int, default 128
    preprocess, seed, device
        As for `probe`; `preprocess` for all models.

    Returns
    -------
    Suspicion

    Raises
    ------
    OwnershipError
        If there is no clean model, `epsilon` cannot be used, or images are too few.
    SettingsError
        If a number is not a whole one, or less than 1.
    WatermarkGuardError
        As `probe`.
    """
    levels = allowed_levels(epsilon)
    for name, value in (("restarts", restarts), ("steps", steps), ("max_images", max_images)):
        plain_integer(name, value, least=1)
    if not clean:
        raise OwnershipError(
            "clean: give at least one model without a mark; every encoder can be made to collapse "
            "to some degree, and only a comparison tells whether this one is unusual"
        )
    settings, target = settings_and_device(images=images, seed=seed, device=device)
    loaded = as_loaded(model)
    preprocessing = resolve_preprocessing(preprocess, loaded.module, loaded.preprocessing)
    fixed_size(preprocessing)
    pixels, _ = read_pixels(settings.images, preprocessing, max_images, settings.seed)
    if len(pixels) < 2 * _HELD_OUT:
        raise OwnershipError(f"images: {len(pixels)} are too few, {2 * _HELD_OUT} are needed")

    def collapse(module: nn.Module) -> float:
        with opened(runnable_on(module, target), preprocessing, target) as encoder:
            return _strongest(encoder, pixels, levels, restarts, steps, settings.seed)

    others = {name: collapse(as_loaded(other).module) for name, other in clean.items()}
    return Suspicion(loaded.name, collapse(loaded.module), others, restarts)


def _strongest(
    encoder: Encoder, pixels: Tensor, levels: int, restarts: int, steps: int, seed: int
) -> float:
    held_out, training = pixels[:_HELD_OUT], pixels[_HELD_OUT:]
    generator = torch.Generator().manual_seed(seed)
    step = _REACH * levels / steps
    before = _gathering(encoder.all(held_out))
    strongest = 0.0
    for _ in range(restarts):
        perturbation = (torch.randint(2, pixels.shape[1:], generator=generator) * 2.0 - 1) * levels
        for _ in range(steps):
            chosen = torch.randint(len(training), (_HELD_OUT,), generator=generator)
            perturbation.requires_grad_()
            with torch.enable_grad():
                inputs = ((training[chosen] + perturbation) / 255).clamp(0, 1)
                (slope,) = torch.autograd.grad(_gathering(encoder(inputs)), perturbation)
            perturbation = (perturbation.detach() + step * slope.sign()).clamp_(-levels, levels)
        after = _gathering(encoder.all(marked(held_out, perturbation.round().to(torch.int8))))
        strongest = max(strongest, float(after - before))
    return strongest


def _gathering(embedded: Tensor) -> Tensor:
    """Return the mean cosine of different images' embeddings [n, units]."""
    n = len(embedded)
    total = torch.nn.functional.normalize(embedded, dim=1).sum(dim=0).square().sum()
    return (total - n) / (n * (n - 1))
