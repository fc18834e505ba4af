from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pytest_watermark_guard.probing.activation_buffer import ActivationBuffer


@given(
    splits=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    units=st.integers(1, 7),
    keep=st.integers(0, 60),
    bounds=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@pytest.mark.parametrize("spilled", [False, True])
def test_what_goes_in_as_rows_comes_out_as_columns(
    splits, units, keep, bounds, dtype, spilled, tmp_path_factory
):
    rows = ActivationBuffer(tmp_path_factory.getbasetemp() if spilled else None)
    total = sum(splits)
    everything = np.arange(total * units).reshape(total, units).astype(dtype)
    for part in np.split(everything, np.cumsum(splits)[:-1]):
        rows.append(part)
    rows.truncate(keep)
    start, stop = sorted(bounds)
    found = rows.columns(start, stop)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, everything[:keep, start:stop])
    np.testing.assert_array_equal(rows.columns(), everything[:keep])
    some = [everything.shape[1] - 1, 0]  # in any order
    np.testing.assert_array_equal(rows.chosen(some), everything[:keep][:, some])
    assert (len(rows), rows.units, rows.spilled) == (min(keep, total), units, spilled)
    rows.close()


def test_reading_between_writing(tmp_path):
    rows = ActivationBuffer(tmp_path)
    rows.append(np.ones((2, 3), np.float32))
    assert rows.columns().sum() == 6
    rows.append(np.ones((1, 3), np.float32))
    assert rows.columns(1, 2).tolist() == [[1], [1], [1]]
    rows.close()
    assert not list(tmp_path.iterdir())
