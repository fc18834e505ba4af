from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from scipy.stats import t

from pytest_watermark_guard.statistics.quantiles import sidak, student_quantile, tail_of


@given(st.floats(1e-6, 0.4), st.integers(9, 5000))
def test_student_quantile_agrees_with_scipy(tail, freedom):
    assert student_quantile(tail, freedom) == pytest.approx(t.isf(tail, freedom), rel=0.02)


@given(st.floats(1e-6, 0.1), st.integers(1, 8))
def test_with_few_degrees_of_freedom_it_is_on_the_safe_side(tail, freedom):
    assert student_quantile(tail, freedom) >= 0.999 * t.isf(tail, freedom)


@given(st.floats(1e-6, 0.5), st.integers(1, 10**5))
def test_as_many_independent_tests_have_the_tail_together(tail, tests):
    assert 1 - (1 - sidak(tail, tests)) ** tests == pytest.approx(tail, rel=1e-4)


@pytest.mark.parametrize("level", [0, 1, -0.5, 95])
def test_rejects_levels(level):
    with pytest.raises(ValueError, match="level"):
        tail_of(level)
