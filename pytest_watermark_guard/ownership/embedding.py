"""Writing a key into an encoder, without spoiling what it is for."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_watermark_guard.context import current_run
from pytest_watermark_guard.device import resolve_device
from pytest_watermark_guard.errors import OwnershipError
from pytest_watermark_guard.models.memory import kept_memory
from pytest_watermark_guard.models.specs import as_loaded
from pytest_watermark_guard.ownership.encoder import (
    Encoder,
    marked,
    of_pairs,
    opened,
    read_pixels,
    similarity,
)
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.progress import progress_bar
from pytest_watermark_guard.statistics.sign_flips import sign_flip_p_value

_HELD_OUT = 16  # images that tell when it is enough
_CHECK_EVERY = 40  # steps
_WARM_UP = 20  # steps: Adam's first ones, blind to curvature, would cost the most utility


@dataclass(frozen=True)
class Objective:
    """The joint loss: weights of its terms, and what is wanted of the watermark.

    Attributes
    ----------
    utility : float
        Weight of E[1 − cos(E′(x), E(x))].
    watermark : float
        Weight of E[(apart − cos(E′(x + w), k) + cos(E′(x + v), k))²] / apart, where v is the decoy
        of w, and k = E′(x_key) has no gradient. More than is wanted would cost utility.
    specificity : float
        Weight of E[1 − cos(E′(x + r), E(x + r))] for random signs r of the same size.
    apart : float
        How much nearer to the key image an embedded perturbation shall move an image than its decoy
        does, in cosine.
    """

    utility: float = 6.0
    watermark: float = 1.0
    specificity: float = 1.0
    apart: float = 0.2


_OBJECTIVE = Objective()


def embed(
    encoder: nn.Module | str,
    key: OwnershipKey,
    images: Any = None,
    *,
    steps: int = 600,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    objective: Objective = _OBJECTIVE,
    least_utility: float = 0.99,
    alpha: float = 1e-8,
    max_images: int = 512,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> nn.Module:
    """Return a copy of an encoder that carries the key.

    It is trained until, on images that it was not trained on, embeddings keep `least_utility`, the
    key is found with a p-value of at most `alpha`, and embedded perturbations move images towards
    the key image by half of the objective's ``apart`` more than their decoys do. The statistics of
    batch norm are frozen, and the head is not touched.

    Parameters
    ----------
    encoder : Module or str
        The one that the key was made for.
    key : OwnershipKey
    images : optional
        As for `probe`; at most `max_images` of them are used, a random choice.
    steps : int, default 600
        The most to take. The learning rate is level in the first half, and falls to 0.
    batch_size : int, default 16
        Images per step; each is embedded as it is, with an embedded perturbation, with its decoy,
        and with random signs.
    learning_rate : float, default 1e-3
        Adam's. Large pretrained networks lose their utility at this; try 1e-4.
    objective : Objective, optional
    least_utility : float, default 0.99
        Mean cosine of embeddings to those of the original.
    alpha : float, default 1e-8
    max_images : int, default 512
    checkpoint : path, optional
        Where to keep the state every 40 steps; if it is there, training goes on from it. It is as
        secret as the key.
    device, progress
        As for `probe`.

    Returns
    -------
    Module
        On the encoder's device.

    Raises
    ------
    OwnershipError
        If the key is another encoder's, or the goal was not reached within `steps`; the message
        says how far it came.

    Notes
    -----
    AWEncoder states the purpose of its joint loss; the terms are ours, see `Objective`.
    The mark is embedded as a difference, because that is what is verified: images with an embedded
    perturbation gather around the key image, and those with its decoy do not.
    """
    run = current_run()
    settings = run.settings.override(images=images, device=device)
    target = resolve_device(settings.device, run.worker)
    original = as_loaded(encoder).module
    home = next((p.device for p in original.parameters()), torch.device("cpu"))
    model, clean = (
        copy.deepcopy(original).to(target).to(memory_format=torch.channels_last) for _ in range(2)
    )
    with (
        kept_memory(),
        opened(clean, key.preprocessing, target) as before,
        opened(model, key.preprocessing, target) as after,
    ):
        if before.weights() != key.encoder:
            raise OwnershipError(
                f"the key was made for weights {key.encoder[:12]}..., and this encoder's are "
                f"{before.weights()[:12]}...: make a key for it with generate_key"
            )
        pixels, _ = read_pixels(settings.images, key.preprocessing, max_images, key.seed % 2**63)
        if len(pixels) <= _HELD_OUT:
            raise OwnershipError(f"images: {len(pixels)} are too few, more than {_HELD_OUT} needed")
        training = _Training(
            before, after, key, pixels, objective, batch_size, learning_rate, steps
        )
        training.resume(checkpoint)
        with progress_bar(steps, progress, "embedding") as advance:
            while not training.finished(least_utility, alpha, checkpoint):
                if training.taken == steps:
                    raise OwnershipError(training.shortfall(least_utility, alpha))
                training.step()
                advance(1)
    finished: nn.Module = model.to(home).to(memory_format=torch.contiguous_format)
    return finished


class _Training:
    """The state of an embedding under way."""

    def __init__(
        self,
        before: Encoder,
        after: Encoder,
        key: OwnershipKey,
        pixels: Tensor,
        objective: Objective,
        batch_size: int,
        learning_rate: float,
        steps: int,
    ) -> None:
        self._before, self._after, self._key = before, after, key
        self._held_out, self._pixels = pixels[:_HELD_OUT], pixels[_HELD_OUT:]
        self._kept = before.all(self._held_out)
        self._chosen, self._decoys = key.chosen, key.decoys
        self._key_image, self._levels = key.key_image[None], int(key.perturbations.abs().max())
        self._objective = objective
        self._batch_size = batch_size
        self._parameters = after.parameters()
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._optimizer = torch.optim.Adam(self._parameters, lr=learning_rate)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            partial(_pace, steps=steps),
        )
        self._generator = torch.Generator().manual_seed((key.seed + 1) % 2**63)
        self._steps = steps
        self.taken = 0
        self._wanted = objective.apart / 2
        self.utility = self.p_value = self.effect = float("nan")

    def step(self) -> None:
        """Take one step of the joint loss."""
        size, generator = self._batch_size, self._generator
        x = self._pixels[torch.randint(len(self._pixels), (size,), generator=generator)]
        pair = torch.randint(len(self._chosen), (size,), generator=generator)
        noise = torch.randint(2, x.shape, generator=generator) * 2 - 1
        other = marked(x, (noise * self._levels).to(torch.int8))
        with_mark, without = marked(x, self._chosen[pair]), marked(x, self._decoys[pair])
        with torch.no_grad():
            kept = self._before(torch.cat([x, other]))
        with torch.enable_grad():
            moved = self._after(torch.cat([x, other, with_mark, without, self._key_image]))
            gone = 1 - similarity(moved[: 2 * size], kept)
            near = similarity(moved[2 * size : -1], moved[-1].detach())
            wanted = self._objective.apart
            missed = (wanted - near[:size] + near[size:]).square() / wanted
            loss = (
                self._objective.utility * gone[:size].mean()
                + self._objective.specificity * gone[size:].mean()
                + self._objective.watermark * missed.mean()
            )
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._schedule.step()
        self.taken += 1

    def finished(self, least_utility: float, alpha: float, checkpoint: str | Path | None) -> bool:
        """Every now and then, and at the end, measure whether all that is wanted is there."""
        if self.taken % _CHECK_EVERY and self.taken != self._steps:
            return False
        self._save(checkpoint)
        self.utility = float(similarity(self._after.all(self._held_out), self._kept).mean())
        near = self._after.nearness(self._key.key_image)
        chosen, decoys = of_pairs(near, self._key, self._held_out[: _HELD_OUT // 4])
        gains = (chosen - decoys).numpy()
        self.p_value, self.effect = sign_flip_p_value(gains), float(gains.mean())
        enough = self.p_value <= alpha and self.effect >= self._wanted
        return enough and self.utility >= least_utility

    def shortfall(self, least_utility: float, alpha: float) -> str:
        """Say what is missing."""
        return (
            f"after {self.taken} steps the utility is {self.utility:.4f} (wanted >= "
            f"{least_utility:g}), the key's p-value {self.p_value:.2g} (wanted <= {alpha:g}) and "
            f"the mean difference {self.effect:+.3f} (wanted >= {self._wanted:g}): allow more "
            "steps, another learning_rate, an objective with another balance, or a key with a "
            "larger epsilon"
        )

    def resume(self, checkpoint: str | Path | None) -> None:
        """Go on from a checkpoint, if there is one."""
        if checkpoint is None or not Path(checkpoint).exists():
            return
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["key"] != self._key.hash:
            raise OwnershipError(f"{str(checkpoint)!r} is a checkpoint of another key")
        with torch.no_grad():
            for parameter, value in zip(self._parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"])
        self.taken = state["taken"]

    def _save(self, checkpoint: str | Path | None) -> None:
        if checkpoint is None:
            return
        state = {
            "key": self._key.hash,
            "parameters": [parameter.detach() for parameter in self._parameters],
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "generator": self._generator.get_state(),
            "taken": self.taken,
        }
        unfinished = Path(f"{checkpoint}.unfinished")
        torch.save(state, unfinished)
        unfinished.replace(checkpoint)


def _pace(taken: int, steps: int) -> float:
    """Return the share of the learning rate after some steps: up, level, and down again."""
    level = steps // 2
    down = (1 + math.cos(math.pi * max(taken - level, 0) / (steps - level))) / 2
    return min((taken + 1) / _WARM_UP, 1) * down
