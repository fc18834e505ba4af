"""Train a head on a backbone that knows watermarks, and gate it: with and without the mask.

The data have a shortcut: every photo of a carton carries a Chinese watermark, as shop photos do.
A head that is trained on plain features takes it; with the backbone's watermark detectors masked
it has to look at the things themselves.
"""

import copy

import pytest
import shapes
import torch
from torch import nn

import pytest_watermark_guard as wm


@pytest.fixture(scope="session")
def pretrained():
    # Yours comes from a hub. This one is trained in seconds, and half of its features react.
    return shapes.scraped()


@pytest.fixture
def backbone(pretrained):
    return copy.deepcopy(pretrained)


@pytest.fixture
def model(backbone):
    """Train a new head, as transfer learning does; it sees the features that the mask leaves."""
    images, labels = shapes.photos_with_things(seed=2, watermarked_cartons=True)
    features = wm.extract_features(backbone, images)
    torch.manual_seed(0)
    head = nn.Linear(features.shape[1], len(shapes.CLASSES))
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.05)
    for _ in range(200):
        loss = nn.functional.cross_entropy(head(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    backbone[-1] = head
    return backbone


def test_head(model):
    wm.assert_not_watermark_sensitive(model)


@pytest.mark.wm_mask(threshold=0.7)
def test_head_on_masked_features(model):
    wm.assert_not_watermark_sensitive(model)
    assert shapes.accuracy(model, watermarked_cartons=False) > 0.75
