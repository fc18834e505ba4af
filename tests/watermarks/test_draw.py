from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, strategies as st

from pytest_watermark_guard import SCENARIOS, Scenario
from pytest_watermark_guard.watermarks.draw import draw_watermark

CHINESE = SCENARIOS["chinese"]


def test_a_draw_is_the_same_for_ever():
    """Written down once: a change here changes every user's numbers."""
    draw = draw_watermark(CHINESE, 17, "n01440764_tench.JPEG")
    assert draw.text == "和这不们的不在"
    assert (draw.across, draw.down) == (0.820193149062346, 0.3150145659560305)


@given(st.integers(0, 10**6), st.text())
def test_draws_stay_in_range(seed, identity):
    draw = draw_watermark(CHINESE, seed, identity)
    assert len(draw.text) == 7
    assert set(draw.text) <= set(CHINESE.alphabet)
    assert 0 <= draw.across < 1
    assert 0 <= draw.down < 1


@pytest.mark.parametrize(
    "other",
    [
        (CHINESE, 18, "a"),
        (CHINESE, 17, "b"),
        (Scenario("other name", CHINESE.alphabet), 17, "a"),
        (CHINESE, 1, "7a"),
    ],
)
def test_seed_scenario_and_image_all_count(other):
    assert draw_watermark(*other) != draw_watermark(CHINESE, 17, "a")


def test_size_and_opacity_leave_the_draw_alone():
    changed = Scenario("chinese", CHINESE.alphabet, size=60, opacity=0.5)
    assert draw_watermark(changed, 17, "a") == draw_watermark(CHINESE, 17, "a")


def test_symbols_and_places_are_uniform():
    """Chi-squared, at a level that a fixed seed passes or fails for good."""
    draws = [draw_watermark(CHINESE, 17, str(i)) for i in range(4000)]
    symbols = Counter(symbol for draw in draws for symbol in draw.text)
    expected = 4000 * 7 / 20
    assert len(symbols) == 20
    assert sum((n - expected) ** 2 / expected for n in symbols.values()) < 36.2  # p = 0.01, 19 df
    for share in ([draw.across for draw in draws], [draw.down for draw in draws]):
        bins = Counter(int(10 * s) for s in share)
        assert sum((n - 400) ** 2 / 400 for n in bins.values()) < 21.7  # p = 0.01, 9 df


def test_symbols_of_several_characters_stay_whole():
    draw = draw_watermark(Scenario("s", ["ab", "c d"], length=3), 17, "x")
    assert draw.text.replace("ab", "").replace("c d", "") == ""
