"""A search for unknown marks: a comparison with clean models, worded as a suspicion."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.ownership import OwnershipError, Suspicion, blind_check


def test_what_is_measured(clean, images):
    one = blind_check(clean, {"itself": clean}, images, restarts=2, steps=10)
    assert one.collapse == one.clean["itself"]  # the same search, the same numbers
    assert not one.stands_out
    assert 0 < one.collapse < 1
    assert "no sign of a mark, and no proof that there is none" in one.sentence()


def test_a_larger_epsilon_collapses_further(clean, images):
    weak, strong = (
        blind_check(
            clean, {"itself": clean}, images, restarts=1, steps=10, epsilon=epsilon
        ).collapse
        for epsilon in (4 / 255, 32 / 255)
    )
    assert strong > weak


def test_a_suspicion_is_no_proof():
    found = Suspicion("stranger", 0.5, {"a": 0.2, "b": 0.4}, 8)
    assert found.stands_out
    assert "Of 3 models that are all without a mark one would do so as well" in found.sentence()
    assert "It proves nothing" in found.sentence()
    assert not dataclasses.replace(found, collapse=0.3).stands_out


def test_nothing_to_compare_with(clean, images):
    with pytest.raises(OwnershipError, match="give at least one model without a mark"):
        blind_check(clean, {}, images)
    with pytest.raises(OwnershipError, match="are too few"):
        blind_check(clean, {"a": clean}, images[:8])
    with pytest.raises(OwnershipError, match="an input of one size"):
        blind_check(clean, {"a": clean}, images, preprocess="none")
    with pytest.raises(SettingsError, match="restarts must be an integer >= 1"):
        blind_check(clean, {"a": clean}, images, restarts=0)
