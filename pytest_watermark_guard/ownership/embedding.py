"""Writing a key into an encoder, without spoiling what it is for."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import OwnershipError, SettingsError
from pytest_watermark_guard.models.loading.loading import as_loaded
from pytest_watermark_guard.models.state import input_dtype
from pytest_watermark_guard.ownership.checkpoint import Checkpoint
from pytest_watermark_guard.ownership.encoder import (
    Encoder,
    opened,
    pair_responses,
    read_pixels,
    settings_and_device,
    similarity,
)
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.ownership.objective import JointLoss, Objective
from pytest_watermark_guard.ownership.transformations import cropped
from pytest_watermark_guard.probing.progress import progress_bar
from pytest_watermark_guard.setting_values import plain_integer
from pytest_watermark_guard.statistics.levels import check_reachable
from pytest_watermark_guard.statistics.sign_flips import less_expected, sign_flip_p_value

_HELD_OUT = 32  # images that tell when it is enough
_ASKED = 8  # of them that the key is tried on
_CHECK_EVERY = 40  # steps
# By how much the weight of the watermark's term changes at a check: up while embeddings are as they
# should be and the mark is not there, down while the mark costs too much. Measured on SimCLR: with
# a level weight some keys end at a utility of 0.988 and stay there.
_UP, _DOWN = 1.25, 0.7
_CROPPED = 0.8  # of both sides, where queries are tried that somebody changed
_RETURNS = 4  # towards the original weights, each a little further
# Steps whose weights are averaged. Measured on MobileNet V2: more than half of what the weights of
# a single step lose of utility is noise. Small encoders learn too fast for an average.
_AVERAGED = 100
_WARM_UP = 20  # steps: Adam's first ones, blind to curvature, would cost the most utility


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
    key is found with a p-value of at most `alpha`, in queries that are mirrored and cropped to 0.8
    of their sides with one of at most the square root of that, and embedded perturbations move
    images towards the key image by an eighth of the objective's ``apart`` more than their decoys
    do. Tried are the weights of the last step, and their average over about the last hundred
    (Polyak and Juditsky, 1992), which has less noise; and where only utility is missing, those
    between these and the original's. The watermark's weight in the loss rises while only utility is
    reached, and falls while only the watermark is, but not before the learning rate does. The
    statistics of batch norm are frozen, and the head is not touched.

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
        Images per step; of each a part is embedded without a mark, all of it with an embedded
        perturbation and with its decoy, and a quarter of them with random signs.
    learning_rate : float, default 1e-3
        Adam's. Large pretrained networks lose their utility at this: for MobileNet V2, 2e-4 and 900
        steps of 16 images were enough.
    objective : Objective, optional
    least_utility : float, default 0.99
        Mean cosine of embeddings to those of the original.
    alpha : float, default 1e-6
        For eight images: others may show a p-value that is a little larger, or smaller.
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
    if not least_utility <= 1:
        raise SettingsError(
            f"least_utility must be at most 1, as it is a cosine, got {least_utility!r}"
        )
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
        before.check_made_for(key)
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
        # As `verify` subtracts it, for images that it knows.
        known = len(key.clean_leads) > 0
        self._expected = self._leads(before) if known else [0.0] * key.pairs
        self._loss = JointLoss(objective, before, after, key, self._pixels)
        self._batch_size = batch_size
        self._parameters = after.parameters()
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._average = [parameter.detach().clone() for parameter in self._parameters]
        self._optimizer = torch.optim.Adam(self._parameters, lr=learning_rate)
        pace = partial(_pace, steps=steps)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, pace)
        self._generator = torch.Generator().manual_seed((key.seed + 1) % 2**63)
        self._steps = steps
        self.taken = 0
        self._wanted = objective.apart / 8
        self._balance = 1.0
        self.utility = self.p_value = self.p_cropped = self.effect = float("nan")

    def step(self) -> None:
        """Take one step of the joint loss."""
        which = torch.randint(len(self._pixels), (self._batch_size,), generator=self._generator)
        with torch.enable_grad():
            loss = self._loss(self._pixels[which], self._balance, self._generator)
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._schedule.step()
        self.taken += 1
        weights = [parameter.detach() for parameter in self._parameters]
        torch._foreach_lerp_(self._average, weights, max(1 / self.taken, 1 / _AVERAGED))

    def finished(self, least_utility: float, alpha: float, checkpoint: Checkpoint) -> bool:
        """Every now and then, and at the end, measure whether all that is wanted is there."""
        if self.taken % _CHECK_EVERY and self.taken < self._steps:
            return False
        checkpoint.write(self._state())
        trained = [parameter.detach().clone() for parameter in self._parameters]
        for weights in (trained, self._average):
            self._put(weights)
            there, useful = self._is_marked(alpha), self._is_useful(least_utility)
            if weights is trained and there != useful:  # what is reached gives way to the other
                least = _pace(self.taken, self._steps)
                self._balance = max(least, self._balance * _DOWN) if there else self._balance * _UP
            if there and (useful or self._gone_back(weights, least_utility, alpha)):
                return True
        self._put(trained)
        return False

    def _put(self, weights: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, weights, strict=True):
                parameter.copy_(value)

    def _is_useful(self, least_utility: float) -> bool:
        self.utility = float(similarity(self._after.all(self._held_out), self._original).mean())
        return self.utility >= least_utility

    def _leads(
        self, encoder: Encoder, change: Callable[[Tensor], Tensor] = lambda pixels: pixels
    ) -> list[float]:
        """Return how much nearer to the key image chosen perturbations are than decoys [pairs]."""
        near = encoder.nearness(change(self._key.key_image[None])[0])
        asked = pair_responses(
            lambda pixels: near(change(pixels)),
            self._key,
            self._held_out[:_ASKED],
            range(self._key.pairs),
        )
        return [float((chosen - decoy).mean()) for chosen, decoy in asked]

    def _is_marked(self, alpha: float) -> bool:
        whole = less_expected(self._leads(self._after), self._expected)
        # As `verify` is asked: what the clean encoder does to changed queries is not in the key.
        changed = self._leads(self._after, lambda pixels: cropped(pixels, _CROPPED).flip(-1))
        in_key = self._key.expected_leads(range(self._key.pairs))
        self.p_value, self.effect = sign_flip_p_value(whole), float(whole.mean())
        self.p_cropped = sign_flip_p_value(less_expected(changed, in_key))
        return (
            self.p_value <= alpha
            and self.p_cropped <= math.sqrt(alpha)
            and self.effect >= self._wanted
        )

    def _gone_back(self, weights: list[Tensor], least_utility: float, alpha: float) -> bool:
        """Go back towards the original weights as far as utility needs it, if the mark stays.

        Weights in between keep more of both than training does (Wortsman et al., 2022).
        """
        reached = self.utility, self.p_value, self.p_cropped, self.effect
        original = [parameter.detach() for parameter in self._before.parameters()]
        lost = 1 - self.utility
        wanted = (1 - least_utility) / lost
        share = math.sqrt(wanted)  # the loss grows with the square of the way, to begin with
        for _ in range(_RETURNS):
            self._put([torch.lerp(*ends, share) for ends in zip(original, weights, strict=True)])
            if self._is_useful(least_utility):
                if self._is_marked(alpha):
                    return True
                break
            kept = (1 - self.utility) / lost
            if share == 0 or kept >= 1:
                break
            share = 0.97 * wanted ** (math.log(share) / math.log(kept))
        self.utility, self.p_value, self.p_cropped, self.effect = reached
        return False

    def shortfall(self, least_utility: float, alpha: float) -> str:
        """Say what is missing."""
        return (
            f"after {self.taken} steps the utility is {self.utility:.4f} (wanted >= "
            f"{least_utility:g}), the key's p-value {self.p_value:.2g} (wanted <= {alpha:g}), in "
            f"cropped and mirrored queries {self.p_cropped:.2g} (wanted <= "
            f"{math.sqrt(alpha):.2g}), and the mean difference {self.effect:+.3f} (wanted >= "
            f"{self._wanted:.2g}), all with the average of the last weights: allow more steps, "
            "another learning_rate, an objective with another balance, or a key with a larger "
            "epsilon"
        )

    def resume(self, state: dict[str, Any] | None) -> None:
        """Go on from a state, if there is one."""
        if state is None:
            return
        self._put(state["parameters"])
        for average, value in zip(self._average, state["average"], strict=True):
            average.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"])
        self.taken, self._balance = state["taken"], state["balance"]

    def _state(self) -> dict[str, Any]:
        return {
            "parameters": [parameter.detach() for parameter in self._parameters],
            "average": self._average,
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
