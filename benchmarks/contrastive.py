"""Small encoders without labels, trained by lightly: SimCLR, MoCo v2, BYOL and VICReg."""

from __future__ import annotations

import copy

import numpy as np
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor, nn

import pytest_watermark_guard as wm

SIZE = 64
WIDTH = 256
PREPROCESSING = wm.Preprocessing(
    size=(SIZE, SIZE), resize=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
_MEMORY = 2048
_MOMENTUM = 0.99


def backbone() -> nn.Module:
    """Return a residual network of 0.9 million parameters, from images to [B, 256]."""
    from torchvision.models.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, [1, 1, 1, 1])
    net.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    net.layer4 = nn.Identity()
    net.fc = nn.Identity()
    net.preprocessing = PREPROCESSING
    return net.to(memory_format=torch.channels_last)


class SimCLR(nn.Module):
    """Chen et al., 2020."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.head = SimCLRProjectionHead(WIDTH, WIDTH, 64)
        self.loss = NTXentLoss(temperature=0.2)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.loss(self.head(self.backbone(one)), self.head(self.backbone(other)))


class MoCo(nn.Module):
    """MoCo v2, Chen et al., 2020."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.head = MoCoProjectionHead(WIDTH, WIDTH, 64)
        self.slow = copy.deepcopy(nn.Sequential(self.backbone, self.head))
        deactivate_requires_grad(self.slow)
        self.loss = NTXentLoss(temperature=0.2, memory_bank_size=(_MEMORY, 64))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        update_momentum(nn.Sequential(self.backbone, self.head), self.slow, m=_MOMENTUM)
        return self.loss(self.head(self.backbone(one)), self.slow(other).detach())


class BYOL(nn.Module):
    """Grill et al., 2020."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.head = BYOLProjectionHead(WIDTH, 2 * WIDTH, 64)
        self.predict = BYOLPredictionHead(64, 2 * WIDTH, 64)
        self.slow = copy.deepcopy(nn.Sequential(self.backbone, self.head))
        deactivate_requires_grad(self.slow)
        self.loss = NegativeCosineSimilarity()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        update_momentum(nn.Sequential(self.backbone, self.head), self.slow, m=_MOMENTUM)
        return sum(
            self.loss(self.predict(self.head(self.backbone(x))), self.slow(y).detach())
            for x, y in ((one, other), (other, one))
        )  # type: ignore[return-value]


class VICReg(nn.Module):
    """Bardes et al., 2022."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.head = VICRegProjectionHead(WIDTH, 2 * WIDTH, 2 * WIDTH)
        self.loss = VICRegLoss()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.loss(self.head(self.backbone(one)), self.head(self.backbone(other)))


METHODS = {"simclr": SimCLR, "moco_v2": MoCo, "byol": BYOL, "vicreg": VICReg}


class _Views(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, photos: np.ndarray) -> None:
        self.photos = photos
        self.transform = SimCLRTransform(input_size=SIZE, min_scale=0.3, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        one, other = self.transform(Image.fromarray(self.photos[index]))
        return one, other


def train(method: str, photos: np.ndarray, epochs: int, seed: int, device: str) -> nn.Module:
    """Train an encoder on photos [N, H, W, 3], uint8, and return its backbone in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = METHODS[method]().to(device)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=1e-4
        )
        loader = torch.utils.data.DataLoader(
            _Views(photos), batch_size=128, shuffle=True, num_workers=2, drop_last=True,
            persistent_workers=True,
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * len(loader))
        for _ in range(epochs):
            for views in loader:
                one, other = (
                    v.to(device, memory_format=torch.channels_last, non_blocking=True)
                    for v in views
                )
                loss = model(one, other)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    net = model.backbone.eval()
    net.requires_grad_(True)
    return net.cpu()
