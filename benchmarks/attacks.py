"""What somebody does to a stolen encoder, on purpose or not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

import pytest_watermark_guard as wm
from pytest_watermark_guard.ownership.encoder import marked
from pytest_watermark_guard.ownership.transformations import (
    as_bytes,
    blurred,
    compressed,
    cropped,
    resized,
)

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


def tuned_to_ignore(
    encoder: nn.Module,
    preprocessing: wm.Preprocessing,
    pixels: Tensor,
    perturbations: Tensor,
    *,
    epochs: int,
    learning_rate: float,
) -> nn.Module:
    """Tune an encoder to embed images under perturbations of the thief's own as if without.

    Parameters
    ----------
    encoder : Module
    preprocessing : Preprocessing
    pixels : Tensor of uint8, shape [n, 3, H, W]
    perturbations : Tensor of int8, shape [pairs, 2, 3, H, W]
        Made as the owner makes them, with another secret.
    epochs : int
    learning_rate : float
    """
    tuned = copy.deepcopy(encoder).eval().requires_grad_(True)  # batch norm stays as it is
    optimizer = torch.optim.Adam(tuned.parameters(), lr=learning_rate)
    all_of_them = perturbations.flatten(0, 1)
    generator = torch.Generator().manual_seed(1)
    for x, _ in _batches(pixels, torch.zeros(len(pixels)), epochs):
        drawn = torch.randint(len(all_of_them), (len(x),), generator=generator)
        both = torch.cat([x, marked(x, all_of_them[drawn])])
        with torch.no_grad():
            target = encoder(preprocessing.to_input(x))
        embedded = tuned(preprocessing.to_input(both))
        near = functional.cosine_similarity(embedded, torch.cat([target, target]))
        optimizer.zero_grad()
        (1 - near).mean().backward()
        optimizer.step()
    return tuned


class Changed(nn.Module):
    """Whoever answers changes what he is asked about: uint8 [n, 3, H, W], and the same back."""

    def __init__(
        self,
        model: nn.Module,
        preprocessing: wm.Preprocessing,
        change: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.model, self.preprocessing, self.change = model, preprocessing, change

    def forward(self, pixels: Tensor) -> Tensor:
        changed = self.change((pixels * 255).round().byte().cpu())
        return self.model(self.preprocessing.to_input(changed.to(pixels.device)))


def comb_filtered(pixels: Tensor, period: int = 8) -> Tensor:
    """Take out what repeats: the mean over all tiles, but for its own mean."""
    height, width = pixels.shape[2:]
    tile = _mean_tile(pixels, period)
    times = -(-height // period), -(-width // period)
    return as_bytes(pixels - tile.repeat(1, 1, *times)[:, :, :height, :width])


def _mean_tile(pixels: Tensor, period: int) -> Tensor:
    count, channels, height, width = pixels.shape
    rows, columns = height // period, width // period
    whole = pixels[:, :, : rows * period, : columns * period].float()
    tile = whole.reshape(count, channels, rows, period, columns, period).mean((2, 4))
    return tile - tile.mean((2, 3), keepdim=True)


def mirrored(pixels: Tensor) -> Tensor:
    return pixels.flip(-1)


def randomly_resized(pixels: Tensor) -> Tensor:
    """Shrink each image to between 0.6 and 0.95 of its size, and enlarge it again."""
    height, width = pixels.shape[2:]
    shares = torch.rand(len(pixels), generator=torch.Generator().manual_seed(0)) * 0.35 + 0.6
    small = [
        resized(image[None], round(height * share), round(width * share))
        for image, share in zip(pixels, shares.tolist(), strict=True)
    ]
    return torch.cat([resized(image, height, width) for image in small])


def noisy(pixels: Tensor, size: float = 8.0) -> Tensor:
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return as_bytes(pixels + size * noise)


def coarse(pixels: Tensor, bits: int = 4) -> Tensor:
    """Keep the first bits of each number."""
    step = 2 ** (8 - bits)
    return pixels // step * step + step // 2


QUERIES: dict[str, Callable[[Tensor], Tensor]] = {
    "comb filter": comb_filtered,
    "mirrored": mirrored,
    "cropped to 80%": lambda pixels: cropped(pixels, 0.8),
    "randomly resized": randomly_resized,
    "noise of 8/255": noisy,
    "4 bits": coarse,
    **{
        f"recompressed: JPEG, quality {quality}": partial(compressed, quality=quality)
        for quality in (90, 70, 50)
    },
    **{
        f"smoothed: sigma {sigma:g} pixels": partial(blurred, sigma=sigma)
        for sigma in (0.5, 1.0, 2.0)
    },
}
"""What is done to queries."""


def detection(pixels: Tensor, perturbations: Tensor) -> dict[str, float]:
    """Tell marked images from clean ones by each statistic: the AUROC, 0.5 where it cannot.

    Parameters
    ----------
    pixels : Tensor of uint8, shape [n, 3, H, W]
        Clean images.
    perturbations : Tensor of int8, shape [pairs, 2, 3, H, W]
    """
    queries = _queries(pixels, perturbations)
    return {name: _auroc(value(pixels), value(queries)) for name, value in STATISTICS.items()}


def _repeats(pixels: Tensor) -> Tensor:
    return _mean_tile(pixels, 8).square().sum((1, 2, 3))


def _laplacian(planes: Tensor) -> Tensor:
    """Return mean sizes [n] of the Laplacian of planes [n, k, H, W]."""
    middle = planes[:, :, 1:-1, 1:-1]
    upright = planes[:, :, :-2, 1:-1] + planes[:, :, 2:, 1:-1]
    level = planes[:, :, 1:-1, :-2] + planes[:, :, 1:-1, 2:]
    return (4 * middle - upright - level).abs().mean((1, 2, 3))


def _brightness(pixels: Tensor) -> Tensor:
    return pixels.float().mean(1, keepdim=True)


def _colours(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.float().unbind(1)
    return torch.stack([red - green, (red + green) / 2 - blue], 1)


def _haar_diagonal(pixels: Tensor) -> Tensor:
    """Return the median size [n] of the finest diagonal detail."""
    height, width = (length // 2 * 2 for length in pixels.shape[2:])
    plane = _brightness(pixels)[:, 0, :height, :width]
    one, other = (
        plane[:, ::2, ::2] + plane[:, 1::2, 1::2],
        plane[:, 1::2, ::2] + plane[:, ::2, 1::2],
    )
    return ((one - other) / 2).abs().flatten(1).median(1).values


def _peak(pixels: Tensor) -> Tensor:
    """Return how far [n] the spectrum's highest peak is above its median, after 1/f^2."""
    plane = _brightness(pixels)[:, 0]
    height, width = plane.shape[1:]
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)
    power = torch.fft.rfft2((plane - plane.mean((1, 2), keepdim=True)) * window).abs().square()
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    inside = (frequency > 0.04) & (frequency < 0.5)
    level = (power.clamp_min(1e-6) * frequency.square()).log()[:, inside]
    return level.max(1).values - level.median(1).values


def _middle_frequencies(pixels: Tensor) -> Tensor:
    """Return the median size [n] of what one blur keeps and a wider one does not."""
    fine, wide = blurred(pixels, 1.0).float(), blurred(pixels, 3.0).float()
    return (fine - wide).abs().flatten(1).median(1).values


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "what repeats every 8 pixels": _repeats,
    "mean Laplacian": lambda pixels: _laplacian(_brightness(pixels)),
    "mean Laplacian of colours": lambda pixels: _laplacian(_colours(pixels)),
    "median diagonal Haar detail": _haar_diagonal,
    "peak of the spectrum": _peak,
    "median of middle frequencies": _middle_frequencies,
}


def learned_detection(
    network: nn.Module,
    preprocessing: wm.Preprocessing,
    own: tuple[Tensor, Tensor],
    asked: tuple[Tensor, Tensor],
    *,
    epochs: int,
) -> tuple[float, float, float]:
    """Train a network to tell queries of the thief's own from photos, and show it the owner's.

    Parameters
    ----------
    network : Module
        Untrained, from images to features.
    preprocessing : Preprocessing
    own, asked : (Tensor of uint8 [n, 3, H, W], Tensor of int8 [pairs, 2, 3, H, W])
        Photos and perturbations: the thief's to learn from, and the owner's with other photos.
    epochs : int

    Returns
    -------
    own_auroc : float
        Of the queries that it learned from: near 0.5, it learned nothing.
    auroc : float
        Of the owner's.
    refused : float
        The share of the owner's queries that are refused where one photo in a hundred is.
    """
    photos, queries = own[0], _queries(*own)
    labels = torch.tensor([0] * len(photos) + [1] * len(queries))
    told = fine_tuned(
        network, preprocessing, torch.cat([photos, queries]), labels,
        epochs=epochs, learning_rate=1e-3, all_layers=True,
    )  # fmt: skip

    @torch.no_grad()
    def score(pixels: Tensor) -> Tensor:
        outputs = [told(preprocessing.to_input(part)) for part in pixels.split(BATCH)]
        return torch.cat([output[:, 1] - output[:, 0] for output in outputs])

    clean, mark = score(asked[0]), score(_queries(*asked))
    refused = float((mark > clean.quantile(0.99)).float().mean())
    return _auroc(score(photos), score(queries)), _auroc(clean, mark), refused


def _auroc(clean: Tensor, queries: Tensor) -> float:
    truth = [0] * len(clean) + [1] * len(queries)
    return float(roc_auc_score(truth, torch.cat([clean, queries]).numpy()))


def _queries(pixels: Tensor, perturbations: Tensor) -> Tensor:
    all_of_them = perturbations.flatten(0, 1)
    return marked(pixels, all_of_them[torch.arange(len(pixels)) % len(all_of_them)])
