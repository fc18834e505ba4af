"""A model as ownership sees it: from pixels to embeddings, with gradients where wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_watermark_guard.errors import OwnershipError
from pytest_watermark_guard.images.baseline import Baseline, open_baseline
from pytest_watermark_guard.images.batches import fitted
from pytest_watermark_guard.models.adapters.adapter import called
from pytest_watermark_guard.models.device import resolve_device
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.reading.foreign import explained
from pytest_watermark_guard.models.state import input_dtype
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.settings import Settings

Response: TypeAlias = Callable[[Tensor], Tensor]
"""From pixels, uint8 [n, 3, H, W], to what the model makes of each, [n, ...]."""

CHUNK = 64  # images that a model or a function is asked about at once
_ON_CPU = 16  # of them in a forward pass without gradients: more take a CPU longer for each


class Encoder:
    """Embeds pixels, or gives a classifier's logits for them; made by `opened`."""

    def __init__(
        self, recorder: ActivationRecorder, preprocessing: Preprocessing, device: torch.device
    ) -> None:
        self._recorder = recorder
        self._device = device
        (self._layer,) = recorder.layers
        self.module = recorder.module
        self.preprocessing = preprocessing

    def weights(self) -> str:
        """Return the identity of the weights below the head."""
        # Of an exported program nobody can tell where the head begins.
        if not self._recorder.hookable:
            raise OwnershipError(
                f"{called(self.module)}: keys are made for, and embedded into, the model "
                "that was exported or scripted, and not what came out of it"
            )
        return self._recorder.weights()

    def check_made_for(self, key: OwnershipKey) -> None:
        """Raise `OwnershipError` if a key was made for other weights."""
        if self.weights() != key.encoder:
            raise OwnershipError(
                f"the key was made for weights {key.encoder[:12]}..., and this encoder's are "
                f"{self.weights()[:12]}...: make a key for it with generate_key"
            )

    def parameters(self) -> list[nn.Parameter]:
        """Return the floating-point parameters below the head."""
        heads = map(self.module.get_submodule, self._recorder.head_modules)
        excluded = {id(p) for head in heads for p in head.parameters()}
        below = (p for p in self.module.parameters() if id(p) not in excluded)
        return [p for p in below if p.is_floating_point()]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Embed pixels [B, 3, H, W], uint8 or in [0, 1], as float32 [B, units]."""
        inputs = self.preprocessing.to_input(pixels.to(self._device), input_dtype(self.module))
        with explained(self.module, inputs, "embedding images"):
            activations = self._recorder(inputs.contiguous(memory_format=torch.channels_last))
        embedded = activations[self._layer]
        if not torch.isfinite(embedded).all():
            raise OwnershipError(f"{called(self.module)}: some {self._layer} are NaN or infinite")
        return embedded.float()

    @torch.no_grad()
    def all(self, pixels: Tensor) -> Tensor:
        """Embed any number of images without gradients, in batches."""
        size = _ON_CPU if self._device.type == "cpu" else CHUNK
        return torch.cat([self(part) for part in torch.split(pixels, size)])

    def nearness(self, image: Tensor) -> Response:
        """Return what gives the cosine of pixels' embeddings to that of one image [3, H, W]."""
        target = self.all(image[None])[0]
        return lambda pixels: similarity(self.all(pixels), target).double().cpu()


@contextmanager
def opened(
    module: nn.Module, preprocessing: Preprocessing, device: torch.device, layer: str = "features"
) -> Iterator[Encoder]:
    """Open a model that is on `device`; it is as it was after the block, but for its weights.

    Within it is in evaluation mode (batch norm is frozen). Raises `LayerError` if it has no such
    layer.
    """
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(2, 3, *fixed_size(preprocessing), generator=generator)
    inputs = preprocessing.to_input(example.to(device), input_dtype(module))
    outputs = current_run().settings.outputs
    with explained(module, inputs, f"finding its {layer}"):
        recorder = ActivationRecorder(module, (layer,), inputs, outputs)
    with recorder:
        yield Encoder(recorder, preprocessing, device)


def fixed_size(preprocessing: Preprocessing) -> tuple[int, int]:
    """Return height and width of the input; `OwnershipError` if they are left open."""
    if preprocessing.size is None:
        raise OwnershipError(
            "preprocess: perturbations need an input of one size; pass "
            "preprocess=Preprocessing(size=(224, 224), ...)"
        )
    return preprocessing.size


def settings_and_device(**given: Any) -> tuple[Settings, torch.device]:
    """Return the run's settings, but for those that are given, and the device that they name."""
    run = current_run()
    settings = run.settings.override(**given)
    return settings, resolve_device(settings.device, run.worker)


def read_pixels(
    images: Any, preprocessing: Preprocessing, count: int | None, seed: int
) -> tuple[Tensor, Baseline]:
    """Read a random choice of images at the input size, uint8 [n, 3, H, W]; and say which."""
    baseline = open_baseline(images)
    if count is not None:
        baseline = baseline.subset(count, seed)
    baseline = baseline.shuffled(seed)
    pixels = [
        fitted(preprocessing, baseline.load(i)[0], repr(identity))
        for i, identity in enumerate(baseline.identities)
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), baseline


def marked(pixels: Tensor, perturbations: Tensor) -> Tensor:
    """Add perturbations, int8, to pixels, uint8 [..., 3, H, W], as an 8-bit image would keep it."""
    return (pixels.short() + perturbations.short()).clamp_(0, 255).byte()


def pair_responses(
    response: Response, key: OwnershipKey, pixels: Tensor, pairs: Iterable[int]
) -> Iterator[Tensor]:
    """Ask with pairs one after the other: [2, n, ...], the chosen perturbation's answers first."""
    for pair in pairs:
        both = in_order(response, key, pixels, pair)
        yield both.flip(0) if key.coins[pair] else both


def in_order(response: Response, key: OwnershipKey, pixels: Tensor, pair: int) -> Tensor:
    """Ask with the two of a pair: [2, n, ...], in the key's order.

    It does not depend on the coins: else a model that changes its answers in the course of the
    queries would look as if it knew them.
    """
    return torch.stack([response(marked(pixels, w)) for w in key.perturbations[pair]])


def similarity(embedded: Tensor, target: Tensor) -> Tensor:
    """Return cosines [...] of embeddings [..., units] with target's [units] or their own."""
    return functional.cosine_similarity(embedded, target, dim=-1)
