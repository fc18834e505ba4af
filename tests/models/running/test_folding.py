from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from pytest_watermark_guard.models.running.folding import fold_batch_norms

X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def with_lively_norms(model):
    """Fresh batch norms are nearly the identity: folding them shows nothing."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_var, 0.5), (module.running_mean, -0.2)):
                tensor.uniform_(low, low + 1, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(generator=generator)
    return model.eval()


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (torchvision.models.resnet18, 0),
        (torchvision.models.mobilenet_v2, 0),
        (torchvision.models.densenet121, 62),  # norms of concatenated maps follow no convolution
        (lambda: timm.create_model("efficientnet_b0"), 0),  # timm's norms with activations inside
    ],
)
@torch.no_grad()
def test_a_folded_model_computes_the_same(build, left):
    model = with_lively_norms(build())
    folded = copy.deepcopy(model)
    count = fold_batch_norms(folded, X)
    assert norms(folded) == left
    assert count == norms(model) - left
    torch.testing.assert_close(folded(X), model(X), rtol=1e-3, atol=1e-3)


class Awkward(nn.Module):
    """Only `plain` may be folded."""

    def __init__(self):
        super().__init__()
        for name in ("plain", "twice", "hooked", "wanted"):
            self.add_module(name, nn.Conv2d(3, 3, 1))
            self.add_module(f"{name}_norm", nn.BatchNorm2d(3))
        self.hooked.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x):
        x = self.plain_norm(self.plain(x))
        x = self.twice_norm(self.twice(self.twice(x)))
        return self.wanted_norm(self.wanted(self.hooked_norm(self.hooked(x))))


@torch.no_grad()
def test_what_must_not_be_folded_is_left_alone():
    model = with_lively_norms(Awkward())
    folded = copy.deepcopy(model)
    assert fold_batch_norms(folded, X, keep={"wanted"}) == 1
    assert isinstance(folded.plain_norm, nn.Identity)
    assert norms(folded) == 3
    torch.testing.assert_close(folded(X), model(X))


@torch.no_grad()
def test_a_norm_after_an_activation_in_place_is_not_that_of_the_convolution():
    model = with_lively_norms(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(3))
    )
    assert fold_batch_norms(copy.deepcopy(model), X) == 0
