"""The one test to add to a repository that ships a vision model.

The threshold is that of ``wm_threshold`` in the ini file or ``--wm-threshold``, 0.95 if neither is
given.
"""

import pytest
import torchvision

import pytest_watermark_guard as wm


@pytest.fixture(scope="module")
def model():
    # Yours comes from your own code; this one has random weights, so that nothing is downloaded.
    return torchvision.models.shufflenet_v2_x0_5(weights=None)


def test_backbone_is_not_watermark_sensitive(model):
    wm.assert_not_watermark_sensitive(model)
