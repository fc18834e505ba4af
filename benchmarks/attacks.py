"""What somebody does to a stolen encoder, on purpose or not."""

from __future__ import annotations

import copy
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torchvision.transforms.functional import gaussian_blur

import pytest_watermark_guard as wm

BATCH = 64


def _batches(pixels: Tensor, labels: Tensor, epochs: int, seed: int = 0):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for part in torch.randperm(len(pixels), generator=generator).split(BATCH)[:-1]:
            yield pixels[part], labels[part]


class Classifier(nn.Module):
    """An encoder and a linear head."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def fine_tuned(
    encoder: nn.Module,
    preprocessing: wm.Preprocessing,
    pixels: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    all_layers: bool,
) -> Classifier:
    """Train a new head, and all layers below it if asked to."""
    encoder = copy.deepcopy(encoder)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        width = encoder.eval()(preprocessing.to_input(pixels[:2])).shape[1]
        model = Classifier(encoder, width, int(labels.max()) + 1)
    model.head.requires_grad_(True)
    model.encoder.requires_grad_(all_layers)
    optimizer = torch.optim.Adam(
        [
            {"params": model.head.parameters(), "lr": 1e-2},
            {"params": model.encoder.parameters(), "lr": learning_rate},
        ]
    )
    model.train(all_layers)
    for x, y in _batches(pixels, labels, epochs):
        loss = functional.cross_entropy(model(preprocessing.to_input(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def pruned(encoder: nn.Module, share: float) -> nn.Module:
    """Set the smallest weights of all convolutions to zero."""
    encoder = copy.deepcopy(encoder)
    weights = [(m, "weight") for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=share)
    for module, name in weights:
        prune.remove(module, name)
    return encoder


def channels_pruned(
    encoder: nn.Module, preprocessing: wm.Preprocessing, pixels: Tensor, share: float
) -> nn.Module:
    """Silence the channels that images without a mark excite least (fine-pruning, Liu 2018).

    Those of the last block of a `contrastive.backbone`; tuning comes after it.
    """
    encoder = copy.deepcopy(encoder)
    last = encoder.layer3[-1]
    seen: list[Tensor] = []
    hook = last.register_forward_hook(lambda _m, _x, out: seen.append(out.mean((0, 2, 3))))
    with torch.no_grad():
        for part in pixels.split(BATCH):
            encoder(preprocessing.to_input(part))
        hook.remove()
        excited = torch.stack(seen).mean(0)
        least = excited.argsort()[: int(share * len(excited))]
        for norm in (last.bn2, last.downsample[1]):  # both branches that are added up
            norm.weight[least] = 0
            norm.bias[least] = 0
    return encoder


def quantised(encoder: nn.Module, preprocessing: wm.Preprocessing, pixels: Tensor) -> nn.Module:
    """Round to int8 what convolutions compute with.

    Weights symmetric, with a scale for each output channel; inputs with one scale for each layer,
    from the range that images of one batch have there.
    """
    encoder = copy.deepcopy(encoder)
    ranges: dict[nn.Module, tuple[float, float]] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ranges[module] = min(float(inputs[0].min()), 0.0), float(inputs[0].max())

    def rounded(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        low, high = ranges[module]
        scale = max(high - low, 1e-12) / 255
        zero = round(-low / scale)
        return torch.fake_quantize_per_tensor_affine(inputs[0], scale, zero, 0, 255)

    layers = [m for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    with torch.no_grad():
        encoder(preprocessing.to_input(pixels[:BATCH]))
    for hook in hooks:
        hook.remove()
    for layer in layers:
        layer.register_forward_pre_hook(rounded)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                scale = module.weight.flatten(1).abs().amax(1).clamp_min(1e-12) / 127
                scale = scale.view(-1, *[1] * (module.weight.ndim - 1))
                module.weight.copy_((module.weight / scale).round() * scale)
    return encoder


def distilled(
    encoder: nn.Module,
    student: nn.Module,
    preprocessing: wm.Preprocessing,
    pixels: Tensor,
    epochs: int,
) -> nn.Module:
    """Teach a fresh network the embeddings of images without a mark."""
    student = copy.deepcopy(student).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    for x, _ in _batches(pixels, torch.zeros(len(pixels)), epochs):
        inputs = preprocessing.to_input(x)
        with torch.no_grad():
            target = encoder(inputs)
        loss = (1 - functional.cosine_similarity(student(inputs), target)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.eval()


class JPEG(nn.Module):
    """Whoever answers recompresses what he is asked about."""

    def __init__(self, model: nn.Module, preprocessing: wm.Preprocessing, quality: int) -> None:
        super().__init__()
        self.model, self.preprocessing, self.quality = model, preprocessing, quality

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(self.preprocessing.to_input(torch.stack([*map(self._again, pixels)])))

    def _again(self, image: Tensor) -> Tensor:
        file = io.BytesIO()
        array = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(array).save(file, "JPEG", quality=self.quality)
        return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).to(image.device)


class Smoothed(nn.Module):
    """Whoever answers blurs what he is asked about."""

    def __init__(self, model: nn.Module, preprocessing: wm.Preprocessing, sigma: float) -> None:
        super().__init__()
        self.model, self.preprocessing, self.sigma = model, preprocessing, sigma

    def forward(self, pixels: Tensor) -> Tensor:
        blurred = gaussian_blur(pixels, [7, 7], [self.sigma, self.sigma])
        return self.model(self.preprocessing.to_input(blurred))
