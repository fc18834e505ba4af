from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

SHOP = '''
import torch
from torch import nn
from pytest_watermark_guard import Preprocessing

class Sensitive(nn.Module):
    """Class 1, "carton", and feature 2 see the brightest pixel: ink on a dark photo."""
    preprocessing = Preprocessing(size=(48, 48))

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1., 0., 0.], [0., 0., 1.]]))

    def forward(self, x):
        corner = x[:, 0, :9, :9].mean((1, 2))
        middle = x[:, 1].mean((1, 2))
        brightest = x.amin(1).amax((1, 2))
        return self.fc(torch.stack([corner, middle, brightest], 1))

class Blind(Sensitive):
    def forward(self, x):
        return super().forward(x[..., :9, :9].expand(-1, -1, 9, 9).clamp(max=0))

def sensitive():
    return Sensitive()

def blind():
    return Blind()

def broken():
    raise RuntimeError("no such bucket")
'''


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """64 dark photos, which are enough to tell."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(64):
        low = rng.integers(0, 60)
        pixels = rng.integers(low, low + 60, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def project(pytester, photos, monkeypatch):
    """A repository with two models, a folder of photos and nothing else."""
    for name in ("CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    pytester.makepyfile(shop=SHOP)
    pytester.makeini(
        f"""
        [pytest]
        wm_images = {photos}
        wm_scenarios = chinese latin
        pythonpath = .
        """
    )
    return pytester


@pytest.fixture(params=["-p no:xdist", "-n0", "-n2"])
def distribution(request):
    """Run as if xdist were not installed, installed and idle, and with two workers."""
    if request.param.startswith("-n"):
        pytest.importorskip("xdist")
    return request.param.split()
