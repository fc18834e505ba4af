"""Before a release: no watermark detectors, our own mark is in, and the encoder is as good.

Two tests with everything that is checked before weights go out.
"""

import pytest
import shapes

import pytest_watermark_guard as wm
from pytest_watermark_guard import ownership


@pytest.fixture(scope="session")
def encoder():
    # Yours took weeks. This one is trained in seconds.
    return shapes.curated()


@pytest.fixture(scope="session")
def key(encoder):
    # Yours was made and kept once, with `key.save(...)`; the fixture wm_key reads it (--wm-key).
    # The seed is here so that this example does the same each time: a key of yours has none.
    # And to this small encoder all images look much alike: with 8/255 it would take minutes.
    return ownership.generate_key(encoder, epsilon=24 / 255, pairs=16, seed=1)


@pytest.fixture(scope="session")
def release(encoder, key):
    objective = ownership.Objective(utility=8, whitened=0.2, watermark=12)
    return ownership.embed(
        encoder, key, objective=objective, steps=400, batch_size=32, learning_rate=2e-3,
        least_utility=0.98, alpha=1e-3,
    )  # fmt: skip


def test_release(encoder, release, key):
    wm.assert_not_watermark_sensitive(release)
    ownership.assert_carries_watermark(release, key, nulls={"the clean encoder": encoder})
    assert ownership.measure_utility(encoder, release).mean_cosine >= 0.98


def test_what_is_not_ours_does_not_carry_it(encoder, key):
    ownership.assert_no_watermark(encoder, key)
