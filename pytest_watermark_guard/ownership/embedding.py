"""Writing a key into an encoder, without spoiling what it is for."""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import OwnershipError, SettingsError
from pytest_watermark_guard.models.loading.loading import as_loaded
from pytest_watermark_guard.models.state import input_dtype
from pytest_watermark_guard.ownership.checkpoint import Checkpoint
from pytest_watermark_guard.ownership.encoder import (
    Encoder,
    marked,
    opened,
    pair_responses,
    read_pixels,
    settings_and_device,
    similarity,
)
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.ownership.transformations import disturbed
from pytest_watermark_guard.probing.progress import progress_bar
from pytest_watermark_guard.setting_values import plain_integer
from pytest_watermark_guard.statistics.levels import check_reachable
from pytest_watermark_guard.statistics.sign_flips import sign_flip_p_value

_HELD_OUT = 32  # images that tell when it is enough
_ASKED = 8  # of them that the key is tried on
_CHECK_EVERY = 40  # steps
# By how much the weight of the watermark's term changes at a check: up while embeddings are as they
# should be and the mark is not there, down while the mark costs too much. Measured on SimCLR: with
# a level weight some keys end at a utility of 0.988 and stay there.
_UP, _DOWN = 1.25, 0.5
_SHARES = 0.95, 0.9, 0.8, 0.7, 0.6, 0.5  # of the way from the original, tried at the end
_WARM_UP = 20  # steps: Adam's first ones, blind to curvature, would cost the most utility


@dataclass(frozen=True)
class Objective:
    """The joint loss: weights of its terms, and what is wanted of the watermark.

    Attributes
    ----------
    utility : float
        Weight of E[1 − cos(E′(x), E(x))].
    watermark : float
        Weight, to begin with, of E[(apart − cos(E′(T(x + w)), k) + cos(E′(T(x + v)), k))²] / apart,
        where v is the decoy of w; T is what may happen to a picture on its way (it is mirrored,
        cropped, blurred or compressed); and k = E′(T(x_key)) has no gradient. More than is wanted
        would cost utility.
    specificity : float
        Weight of E[1 − cos(E′(x + r), E(x + r))] for random signs r of the same size.
    apart : float
        How much nearer to the key image an embedded perturbation shall move an image than its decoy
        does, in cosine.
    """

    utility: float = 12.0
    watermark: float = 6.0
    specificity: float = 1.0
    apart: float = 0.1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value >= 0 or (name == "apart" and value == 0):
                raise SettingsError(f"objective: {name} must be positive, got {value!r}")


_OBJECTIVE = Objective()


def embed(
    encoder: nn.Module | str,
    key: OwnershipKey,
    images: Any = None,
    *,
    steps: int = 600,
    batch_size: int = 24,
    learning_rate: float = 1e-3,
    objective: Objective = _OBJECTIVE,
    least_utility: float = 0.99,
    alpha: float = 1e-6,
    max_images: int = 512,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> nn.Module:
    """Return a copy of an encoder that carries the key.

    It is trained until, on images that it was not trained on, embeddings keep `least_utility`, the
    key is found with a p-value of at most `alpha`, and embedded perturbations move images towards
    the key image by an eighth of the objective's ``apart`` more than their decoys do. The
    watermark's weight in the loss rises while only utility is reached, and falls while only the
    watermark is. Where only utility is missing at the end, the weights go back towards the original
    as far as needed. The statistics of batch norm are frozen, and the head is not touched.

    Parameters
    ----------
    encoder : Module or str
        The one that the key was made for.
    key : OwnershipKey
    images : optional
        As for `probe`; at most `max_images` of them are used, a random choice.
    steps : int, default 600
        The most to take. The learning rate is level in the first half, and falls to 0.
    batch_size : int, default 24
        Images per step; each is embedded as it is, with an embedded perturbation, and with its
        decoy, and a quarter of them with random signs.
    learning_rate : float, default 1e-3
        Adam's. Large pretrained networks lose their utility at this; try 2e-4.
    objective : Objective, optional
    least_utility : float, default 0.99
        Mean cosine of embeddings to those of the original.
    alpha : float, default 1e-6
    max_images : int, default 512
    checkpoint : path, optional
        Where to keep the state every 40 steps, and at the end; if it is there, training goes on
        from it, with the same arguments but for `steps`, `least_utility` and `alpha`. It is as
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
        If the key is another encoder's, or has no coins yet, the encoder is not in float32, a
        checkpoint is of another training, or the goal was not reached within `steps`; the message
        says how far it came.
    SettingsError
        If a number cannot be used, or no key of this many pairs can reach `alpha`.

    Notes
    -----
    AWEncoder states the purpose of its joint loss; the terms are ours, see `Objective`.
    The mark is embedded as a difference, because that is what is verified: images with an embedded
    perturbation gather around the key image, and those with its decoy do not.
    """
    for name, number in (("steps", steps), ("batch_size", batch_size), ("max_images", max_images)):
        plain_integer(name, number, least=1)
    key.check_drawn()
    check_reachable(alpha, key.pairs, 2.0**-key.pairs)
    settings, target = settings_and_device(images=images, device=device)
    original = as_loaded(encoder).module
    if input_dtype(original) is not torch.float32:
        raise OwnershipError(
            f"the encoder's weights are {input_dtype(original)}, which small steps would be lost "
            "in: make the key for encoder.float(), embed it there, and convert the copy"
        )
    home = next((p.device for p in original.parameters()), torch.device("cpu"))
    model, clean = (_copied(original, target) for _ in range(2))
    with (
        opened(clean, key.preprocessing, target) as before,
        opened(model, key.preprocessing, target) as after,
    ):
        if before.weights() != key.encoder:
            raise OwnershipError(
                f"the key was made for weights {key.encoder[:12]}..., and this encoder's are "
                f"{before.weights()[:12]}...: make a key for it with generate_key"
            )
        pixels, baseline = read_pixels(
            settings.images, key.preprocessing, max_images, key.seed % 2**63
        )
        if len(pixels) <= _HELD_OUT:
            raise OwnershipError(f"images: {len(pixels)} are too few, more than {_HELD_OUT} needed")
        recipe = {
            "key": key.hash,
            "images": hashlib.sha256("\n".join(baseline.identities).encode()).hexdigest(),
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "objective": asdict(objective),
        }
        state_file = Checkpoint(checkpoint, recipe)
        training = _Training(
            before, after, key, pixels, objective, batch_size, learning_rate, steps
        )
        state = state_file.read()
        with state_file.reading():
            training.resume(state)
        with progress_bar(steps, progress, "embedding") as advance:
            advance(training.taken)
            while not training.finished(least_utility, alpha, state_file):
                if training.taken >= steps:
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
        self._original = before.all(self._held_out)
        self._chosen, self._decoys = key.chosen, key.decoys
        self._key_images = key.key_image.expand(batch_size, -1, -1, -1)
        self._levels = int(key.perturbations.abs().max())
        self._objective = objective
        self._batch_size = batch_size
        self._parameters = after.parameters()
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._optimizer = torch.optim.Adam(self._parameters, lr=learning_rate)
        pace = partial(_pace, steps=steps)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, pace)
        self._generator = torch.Generator().manual_seed((key.seed + 1) % 2**63)
        self._steps = steps
        self.taken = 0
        self._wanted = objective.apart / 8
        self._balance = 1.0
        self.utility = self.p_value = self.effect = float("nan")

    def step(self) -> None:
        """Take one step of the joint loss."""
        size, generator = self._batch_size, self._generator
        x = self._pixels[torch.randint(len(self._pixels), (size,), generator=generator)]
        pair = torch.randint(len(self._chosen), (size,), generator=generator)
        few = x[: -(-size // 4)]
        noise = torch.randint(2, few.shape, generator=generator) * 2 - 1
        other = marked(few, (noise * self._levels).to(torch.int8))
        # Whoever changes the queries also changes the key image.
        with_mark, without, keys = disturbed(
            torch.stack(
                [marked(x, self._chosen[pair]), marked(x, self._decoys[pair]), self._key_images]
            ),
            generator,
        )
        plain, asked = torch.cat([x, other]), torch.cat([with_mark, without])
        with torch.no_grad():
            original = self._before(plain)
            targets = self._after(keys)
        with torch.enable_grad():
            moved = self._after(torch.cat([plain, asked]))
            gone = 1 - similarity(moved[: len(plain)], original)
            near = similarity(moved[len(plain) :], torch.cat([targets, targets]))
            wanted = self._objective.apart
            missed = (wanted - near[:size] + near[size:]).square() / wanted
            loss = (
                self._objective.utility * gone[:size].mean()
                + self._objective.specificity * gone[size:].mean()
                + self._objective.watermark * self._balance * missed.mean()
            )
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._schedule.step()
        self.taken += 1

    def finished(self, least_utility: float, alpha: float, checkpoint: Checkpoint) -> bool:
        """Every now and then, and at the end, measure whether all that is wanted is there."""
        if self.taken % _CHECK_EVERY and self.taken < self._steps:
            return False
        checkpoint.write(self._state())
        there, useful = self._measured(least_utility, alpha)
        if there != useful:  # the goal that is reached gives way to the other
            self._balance *= _DOWN if there else _UP
        if there and not useful and self.taken >= self._steps:
            return self._gone_back(least_utility, alpha)
        return there and useful

    def _measured(self, least_utility: float, alpha: float) -> tuple[bool, bool]:
        """Measure, and say whether the mark is there, and whether the encoder is as useful."""
        self.utility = float(similarity(self._after.all(self._held_out), self._original).mean())
        near = self._after.nearness(self._key.key_image)
        asked = pair_responses(near, self._key, self._held_out[:_ASKED], range(self._key.pairs))
        gains = np.array([float((chosen - decoy).mean()) for chosen, decoy in asked])
        self.p_value, self.effect = sign_flip_p_value(gains), float(gains.mean())
        there = self.p_value <= alpha and self.effect >= self._wanted
        return there, self.utility >= least_utility

    def _gone_back(self, least_utility: float, alpha: float) -> bool:
        """Go back towards the original weights as far as utility needs it, if the mark stays.

        Weights in between keep more of both than training does (Wortsman et al., 2022).
        """
        trained = [parameter.detach().clone() for parameter in self._parameters]
        original = self._before.parameters()

        def take(share: float) -> tuple[bool, bool]:
            with torch.no_grad():
                for parameter, first, last in zip(self._parameters, original, trained, strict=True):
                    parameter.copy_(torch.lerp(first, last, share))
            return self._measured(least_utility, alpha)

        if any(all(take(share)) for share in _SHARES):
            return True
        take(1)
        return False

    def shortfall(self, least_utility: float, alpha: float) -> str:
        """Say what is missing."""
        return (
            f"after {self.taken} steps the utility is {self.utility:.4f} (wanted >= "
            f"{least_utility:g}), the key's p-value {self.p_value:.2g} (wanted <= {alpha:g}) and "
            f"the mean difference {self.effect:+.3f} (wanted >= {self._wanted:g}): allow more "
            "steps, another learning_rate, an objective with another balance, or a key with a "
            "larger epsilon"
        )

    def resume(self, state: dict[str, Any] | None) -> None:
        """Go on from a state, if there is one."""
        if state is None:
            return
        with torch.no_grad():
            for parameter, value in zip(self._parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"])
        self.taken, self._balance = state["taken"], state["balance"]

    def _state(self) -> dict[str, Any]:
        return {
            "parameters": [parameter.detach() for parameter in self._parameters],
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "generator": self._generator.get_state(),
            "taken": self.taken,
            "balance": self._balance,
        }


def _copied(module: nn.Module, device: torch.device) -> nn.Module:
    try:
        copied = copy.deepcopy(module)
    except Exception as error:  # whatever someone's module raises
        raise OwnershipError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), and a "
            "key is embedded into a copy"
        ) from error
    return copied.to(device).to(memory_format=torch.channels_last)


def _pace(taken: int, steps: int) -> float:
    """Return the share of the learning rate after some steps: up, level, and down again."""
    level = steps // 2
    down = (1 + math.cos(math.pi * max(taken - level, 0) / (steps - level))) / 2
    return min((taken + 1) / _WARM_UP, 1) * down
