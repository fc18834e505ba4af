"""A mask in the head's weights: the masked model's logits, and nothing left to compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import MaskError

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
MASK = wm.FeatureMask((0, 3, 6), 8)


def backbone():
    torch.manual_seed(0)
    return [nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1)]


def linear():
    return nn.Sequential(*backbone(), nn.Flatten(), nn.Linear(8, 5)).eval()


def convolution():
    return nn.Sequential(*backbone(), nn.Conv2d(8, 5, 1), nn.Flatten()).eval()


@pytest.mark.parametrize("make", [linear, convolution])
def test_the_same_logits_from_the_weights_alone(make):
    model = make()
    before = model(X)
    masked = wm.apply_mask(model, MASK, example=X)
    for folded in (wm.fold_mask(model, MASK, example=X), wm.fold_mask(masked)):
        torch.testing.assert_close(folded(X), masked(X))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in folded.modules())
        assert wm.applied_mask(folded) is None
        fresh = make()
        fresh.load_state_dict(folded.state_dict())
        torch.testing.assert_close(fresh(X), masked(X))
    assert not torch.allclose(masked(X), before)
    torch.testing.assert_close(model(X), before, rtol=0, atol=0)
    assert wm.applied_mask(masked) is not None


def test_a_new_head_on_a_masked_backbone_is_folded(monkeypatch):
    masked = wm.apply_mask(linear(), MASK, example=X)
    masked[4] = nn.Linear(8, 2)
    folded = wm.fold_mask(masked)
    torch.testing.assert_close(folded(X), masked(X))
    assert (folded[4].weight[:, [0, 3, 6]] == 0).all()
    assert (masked[4].weight[:, [0, 3, 6]] != 0).all()
    assert folded[4].weight.requires_grad


def test_what_it_cannot_be_written_into_is_refused():
    with pytest.raises(MaskError, match="carries no mask: pass one"):
        wm.fold_mask(linear())
    with pytest.raises(MaskError, match="is a backbone: it has no head"):
        wm.fold_mask(nn.Sequential(*backbone(), nn.Flatten(), nn.Identity()).eval(), MASK)

    class Cosine(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 8))

        def forward(self, x):
            return nn.functional.normalize(x) @ nn.functional.normalize(self.weight).T

    model = nn.Sequential(*backbone(), nn.Flatten(), Cosine()).eval()
    with pytest.raises(MaskError, match=r"the head '4' is a Cosine, .* use apply_mask"):
        wm.fold_mask(model, MASK, example=X)


def test_a_second_reader_of_the_features_is_noticed():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*backbone(), nn.Flatten())
            self.fc = nn.Linear(8, 5)

        def get_classifier(self):
            return self.fc

        def forward(self, x):
            features = self.body(x)
            return self.fc(features) + 3 * features.sum(1, keepdim=True)

    with pytest.raises(MaskError, match="something else reads the features"):
        wm.fold_mask(Skips().eval(), MASK, example=X)


@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
)
# Torch calls the first of them deprecated.
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_normed_head_takes_a_mask(norm):
    model = linear()
    norm(model[-1])
    model.eval()
    with torch.no_grad():
        before = model(X)
    masked = wm.apply_mask(model, MASK, example=X)
    folded = wm.fold_mask(masked)
    with torch.no_grad():
        torch.testing.assert_close(folded(X), masked(X))
        assert not torch.allclose(folded(X), before)
        torch.testing.assert_close(model(X), before)  # it is as it was
    assert type(folded[-1].weight) is nn.Parameter


def test_a_quantised_head_says_why_it_takes_none():
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = nn.Sequential(*backbone(), nn.Flatten(), nn.Linear(8, 16)).eval()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    with pytest.raises(MaskError, match=r"Int8Tensor, which cannot be overwritten; fold the mask"):
        wm.fold_mask(model, MASK, example=X)


def test_another_head_on_the_same_features_is_seen():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*backbone(), nn.Flatten())
            self.one, self.two = nn.Linear(8, 5), nn.Linear(8, 3)

        def forward(self, x):
            features = self.body(x)
            return {"logits": self.one(features), "other": self.two(features)}

    with pytest.raises(MaskError, match="the output 'other' is off by"):
        wm.fold_mask(Two().eval(), MASK, example=X)
