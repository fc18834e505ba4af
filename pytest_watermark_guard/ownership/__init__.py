"""Ownership of encoders (AWEncoder, 2022): a mark that is embedded, and can be shown later.

``key = generate_key(encoder)`` makes a secret, ``embed(encoder, key)`` writes it into a copy,
``verify(model, key)`` and ``verify_classifier(classifier, key)`` tell whether a model was made from
that copy, as an exact p-value. To convince others, ``key.commit(beacon)`` and
``key.draw_coins(value, published)`` come before embedding.
"""

from __future__ import annotations

from pytest_watermark_guard.errors import OwnershipError, OwnershipMismatchError
from pytest_watermark_guard.ownership.blind import Suspicion, blind_check
from pytest_watermark_guard.ownership.embedding import embed
from pytest_watermark_guard.ownership.gate import assert_carries_watermark, assert_no_watermark
from pytest_watermark_guard.ownership.generation import generate_key
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.ownership.objective import Objective
from pytest_watermark_guard.ownership.utility import Utility, measure_utility
from pytest_watermark_guard.ownership.verification import verify, verify_classifier
from pytest_watermark_guard.reports.coin_draw import CoinDraw
from pytest_watermark_guard.reports.ownership import Null, OwnershipReport

__all__ = [
    "CoinDraw",
    "Null",
    "Objective",
    "OwnershipError",
    "OwnershipKey",
    "OwnershipMismatchError",
    "OwnershipReport",
    "Suspicion",
    "Utility",
    "assert_carries_watermark",
    "assert_no_watermark",
    "blind_check",
    "embed",
    "generate_key",
    "measure_utility",
    "verify",
    "verify_classifier",
]
