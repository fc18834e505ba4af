from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from pytest_watermark_guard.models.running.folding import fold_batch_norms
from pytest_watermark_guard.models.running.fusing import fuse_convolutions

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)
X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def activated(model):
    """Count how many activations were computed by modules in a forward pass."""
    computed = []
    handles = [
        # A module that leaves the activation to the convolution returns what it was given.
        module.register_forward_hook(lambda _, args, output: computed.append(output is not args[0]))
        for module in model.modules()
        if isinstance(module, (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.LeakyReLU))
        and not getattr(module, "inplace", False)
    ]
    model(X)
    for handle in handles:
        handle.remove()
    return sum(computed)


def out_of_place(model):
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return model.eval()


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (torchvision.models.resnet18, 8),  # those after a sum, by modules that serve both
        (torchvision.models.mobilenet_v2, 0),
        (torchvision.models.squeezenet1_1, 0),
        (lambda: timm.create_model("efficientnet_b0"), 0),  # SiLU
        (lambda: timm.create_model("cs3darknet_s"), 0),  # LeakyReLU or SiLU, by its version
    ],
)
@torch.no_grad()
def test_a_fused_model_computes_the_same(build, left):
    torch.manual_seed(0)
    model = out_of_place(build())
    fold_batch_norms(model, X)
    fused = copy.deepcopy(model)
    assert fuse_convolutions(fused, X) == sum(type(m) is nn.Conv2d for m in model.modules())
    assert activated(fused) <= left < activated(model)
    torch.testing.assert_close(fused(X), model(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.Hardswish(),
        nn.SiLU(),
        nn.GELU(),
        nn.GELU("tanh"),
        nn.LeakyReLU(0.3),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_every_activation_is_the_one_meant(activation, dtype):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    convolution.weight.mul_(20)  # far from where all of them are alike
    model = nn.Sequential(convolution, activation).to(dtype)
    fused = copy.deepcopy(model)
    assert fuse_convolutions(fused, X.to(dtype)) == 1
    expected = model(X.to(dtype))
    error = (fused(X.to(dtype)) - expected).abs().max() / expected.std()
    assert error < (1e-5 if dtype is torch.float32 else 0.05)


class Awkward(nn.Module):
    """One activation in many places, and convolutions that do more than one thing."""

    def __init__(self):
        super().__init__()
        for name in ("plain", "twice", "hooked", "wanted", "summed"):
            self.add_module(name, nn.Conv2d(3, 3, 1))
        self.reflected = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(3, 3, 3, padding="same")
        self.hooked.register_forward_hook(lambda module, args, output: output * 2)
        self.silu = nn.SiLU()

    def forward(self, x):
        x = self.silu(self.plain(x))
        x = x + self.silu(x)  # not again what a convolution has done
        x = self.silu(self.twice(self.twice(x)))
        x = self.silu(self.hooked(x))
        sum_ = self.summed(x)
        sum_ += x  # in place: what is activated is not the convolution's output
        x = self.silu(sum_)
        return self.silu(self.wanted(self.same(self.reflected(x))))


@torch.no_grad()
def test_what_must_not_be_fused_is_left_alone():
    torch.manual_seed(0)
    model = Awkward().eval()
    fused = copy.deepcopy(model)
    fuse_convolutions(fused, X, keep={"wanted"})
    torch.testing.assert_close(fused(X), model(X))
    wanted = []
    fused.wanted.register_forward_hook(lambda module, args, output: wanted.append(output))
    result = fused(X)
    assert not torch.equal(wanted[0], result)
    for name in ("reflected", "same", "hooked"):
        assert "forward" not in vars(fused.get_submodule(name))


@torch.no_grad()
def test_a_result_that_is_activated_again_is_not_taken_for_done():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.silu = nn.Conv2d(3, 3, 1), nn.SiLU()

        def forward(self, x):
            return self.silu(self.silu(self.convolution(x)))

    torch.manual_seed(0)
    model = Again()
    fused = copy.deepcopy(model)
    fuse_convolutions(fused, X)
    torch.testing.assert_close(fused(X), model(X))
