from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import features

from pytest_watermark_guard import SCENARIOS, Scenario
from pytest_watermark_guard.watermarks.control import draw_blobs, draw_scrambled
from pytest_watermark_guard.watermarks.draw import draw_watermark
from pytest_watermark_guard.watermarks.text import Mark, Renderer

TWO = Scenario("two", "AB", length=2)
SCRIPTS = [
    pytest.param(
        scenario,
        marks=pytest.mark.skipif(
            name == "hindi" and not features.check("raqm"), reason="this Pillow has no raqm"
        ),
        id=name,
    )
    for name, scenario in SCENARIOS.items()
]


def test_a_control_is_the_same_for_ever():
    """Written down once: a change here changes every user's numbers."""
    mark = Mark(np.arange(50, dtype=np.uint8).reshape(5, 10), top=3, left=4)
    control = draw_scrambled(mark, TWO, 17, "n01440764_tench.JPEG")
    assert (control.top, control.left) == (3, 4)
    assert control.alpha.tolist() == [
        [0, 1, 4, 22, 23, 49, 27, 28, 25, 26],
        [10, 11, 14, 32, 33, 29, 37, 38, 35, 36],
        [20, 21, 24, 42, 43, 39, 47, 48, 5, 6],
        [30, 31, 34, 2, 3, 9, 7, 8, 15, 16],
        [40, 41, 44, 12, 13, 19, 17, 18, 45, 46],
    ]


@st.composite
def marks(draw):
    rows, columns = draw(st.integers(1, 70)), draw(st.integers(1, 260))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ink = draw(st.sampled_from([0.1, 0.5, 1.0]))
    alpha = rng.integers(1, 256, (rows, columns)) * (rng.random((rows, columns)) < ink)
    return Mark(alpha.astype(np.uint8), draw(st.integers(0, 99)), draw(st.integers(0, 99)))


@settings(max_examples=200)
@given(marks(), st.integers(1, 12), st.integers(0, 10**6), st.text())
def test_the_ink_stays_in_its_box(mark, length, seed, identity):
    before = mark.alpha.copy()
    control = draw_scrambled(mark, Scenario("s", "A", length=length), seed, identity)
    np.testing.assert_array_equal(mark.alpha, before)
    assert (control.top, control.left) == (mark.top, mark.left)
    assert control.alpha.shape == mark.alpha.shape
    assert control.alpha.dtype == np.uint8
    width = mark.alpha.shape[1]
    borders = [-(-box * width // length) for box in range(length + 1)]
    for left, right in pairwise(borders):
        np.testing.assert_array_equal(
            np.sort(control.alpha[:, left:right], axis=None),
            np.sort(mark.alpha[:, left:right], axis=None),
        )


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (4, 4)])
def test_never_the_mark_itself(shape):
    """Not even where every second shuffle leaves two tiles as they were."""
    mark = Mark(np.arange(1, 1 + np.prod(shape), dtype=np.uint8).reshape(shape), 0, 0)
    for identity in map(str, range(60)):
        control = draw_scrambled(mark, Scenario("s", "A", length=1), 17, identity)
        assert not np.array_equal(control.alpha, mark.alpha)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (28, 200)])
def test_a_solid_bar_stays_one(shape):
    bar = Mark(np.full(shape, 200, np.uint8), 0, 0)
    np.testing.assert_array_equal(draw_scrambled(bar, TWO, 17, "a").alpha, bar.alpha)


def test_strokes_are_cut_into_tiles():
    """With a number for each pixel: nine in ten keep a neighbour, and hardly one its place."""
    numbered = np.arange(30 * 8, dtype=np.uint8).reshape(30, 8)
    control = draw_scrambled(Mark(numbered, 0, 0), Scenario("s", "A", length=1), 17, "a").alpha
    below = np.mean(control[1:].astype(int) - control[:-1] == 8)
    assert 24 / 29 <= below < 27 / 29  # 6 tiles of 5 rows; neighbours may meet again by chance
    assert np.mean(control == numbered) < 0.3


@pytest.mark.parametrize(
    ("scenario", "seed", "identity"),
    [(TWO, 18, "a"), (TWO, 17, "b"), (Scenario("other", "AB", length=2), 17, "a")],
)
def test_seed_scenario_and_image_all_count(scenario, seed, identity):
    mark = Mark(np.arange(240, dtype=np.uint8).reshape(12, 20), 0, 0)
    other = draw_scrambled(mark, scenario, seed, identity).alpha
    assert not np.array_equal(other, draw_scrambled(mark, TWO, 17, "a").alpha)


@pytest.mark.parametrize("scenario", SCRIPTS)
def test_no_text_is_left_and_as_much_to_see(scenario):
    renderer = Renderer(scenario, 224, 224)
    likeness, text_edges, control_edges = [], 0, 0
    for identity in map(str, range(60)):
        mark = renderer.render(draw_watermark(scenario, 17, identity))
        control = draw_scrambled(mark, scenario, 17, identity)
        likeness.append(np.corrcoef(mark.alpha.ravel(), control.alpha.ravel())[0, 1])
        text_edges += edges(mark.alpha)
        control_edges += edges(control.alpha)
    assert np.mean(likeness) < 0.2
    assert 1 < control_edges / text_edges < 1.7


def edges(alpha):
    plane = np.pad(alpha.astype(int), 1)
    return np.abs(np.diff(plane, axis=0)).sum() + np.abs(np.diff(plane, axis=1)).sum()


@settings(max_examples=200)
@given(marks(), st.integers(1, 12))
def test_a_blob_has_the_ink_of_its_box(mark, length):
    before = mark.alpha.copy()
    blobs = draw_blobs(mark, length)
    np.testing.assert_array_equal(mark.alpha, before)
    assert (blobs.top, blobs.left) == (mark.top, mark.left)
    assert (blobs.alpha.shape, blobs.alpha.dtype) == (mark.alpha.shape, np.uint8)
    width = mark.alpha.shape[1]
    borders = [-(-box * width // length) for box in range(length + 1)]
    for left, right in pairwise(borders):
        box = blobs.alpha[:, left:right].astype(int)
        assert box.sum() == mark.alpha[:, left:right].sum(dtype=int)
        # It only thins out from the middle, by one level of rounding at most.
        for half in (box[: len(box) // 2], box[::-1][: len(box) // 2]):
            assert (np.diff(half, axis=0) >= -1).all()


def test_blobs_are_the_same_for_ever():
    """Written down once: a change here changes every user's numbers."""
    mark = Mark(np.full((4, 5), 100, np.uint8), top=3, left=4)
    assert draw_blobs(mark, 1).alpha.tolist() == [
        [9, 51, 72, 51, 9],
        [43, 234, 255, 234, 43],
        [43, 233, 255, 233, 43],
        [9, 51, 72, 51, 9],
    ]


def test_a_full_box_stays_full_and_an_empty_one_empty():
    alpha = np.zeros((9, 20), np.uint8)
    alpha[:, :10] = 255
    np.testing.assert_array_equal(draw_blobs(Mark(alpha, 0, 0), 2).alpha, alpha)


@pytest.mark.parametrize("scenario", SCRIPTS)
def test_blobs_have_no_edges_that_text_has(scenario):
    renderer = Renderer(scenario, 224, 224)
    steepest, text_edges, blob_edges = 0, 0, 0
    for identity in map(str, range(30)):
        mark = renderer.render(draw_watermark(scenario, 17, identity))
        blobs = draw_blobs(mark, scenario.length).alpha
        text_edges += edges(mark.alpha)
        blob_edges += edges(blobs)
        steepest = max(steepest, np.abs(np.diff(np.pad(blobs.astype(int), 1), axis=0)).max())
    assert blob_edges < 0.6 * text_edges
    assert steepest < 128  # of 255, which text has everywhere
