from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageDraw, ImageFont, features

from pytest_watermark_guard import SCENARIOS, Scenario
from pytest_watermark_guard.errors import ScenarioError
from pytest_watermark_guard.watermarks.composite import composite, composite_on_device
from pytest_watermark_guard.watermarks.draw import Draw, draw_watermark
from pytest_watermark_guard.watermarks.scenarios import FONTS
from pytest_watermark_guard.watermarks.text import Mark, Renderer, needs_shaping, parse_color

SHAPED = pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm")
ALL = [
    pytest.param(scenario, marks=SHAPED if name == "hindi" else (), id=name)
    for name, scenario in SCENARIOS.items()
]


def place(mark, height, width):
    plane = np.zeros((height, width), np.uint8)
    rows, columns = mark.alpha.shape
    plane[mark.top : mark.top + rows, mark.left : mark.left + columns] = mark.alpha
    return plane


@settings(max_examples=60)
@given(st.data(), st.integers(100, 500), st.integers(100, 500), st.integers(0, 99))
def test_the_whole_ink_is_inside(data, height, width, identity):
    names = [name for name in SCENARIOS if name != "hindi" or features.check("raqm")]
    scenario = SCENARIOS[data.draw(st.sampled_from(names))]
    mark = Renderer(scenario, height, width).render(draw_watermark(scenario, 3, str(identity)))
    rows, columns = mark.alpha.shape
    assert 0 <= mark.top <= height - rows
    assert 0 <= mark.left <= width - columns
    for edge in (mark.alpha[0], mark.alpha[-1], mark.alpha[:, 0], mark.alpha[:, -1]):
        assert edge.any(), "the mask is not cropped to the ink"


@pytest.mark.parametrize("scenario", ALL)
def test_every_border_is_reached(scenario):
    renderer = Renderer(scenario, 224, 224)
    last = np.nextafter(1, 0)
    corner = renderer.render(Draw("".join(scenario.alphabet[:3]), 0.0, 0.0))
    assert (corner.top, corner.left) == (0, 0)
    corner = renderer.render(Draw("".join(scenario.alphabet[:3]), last, last))
    assert (corner.top + corner.alpha.shape[0], corner.left + corner.alpha.shape[1]) == (224, 224)


@pytest.mark.parametrize("scenario", ALL)
def test_the_mask_is_pillow_s_own_rendering(scenario):
    """Drawn straight onto a large canvas, without any of our cropping."""
    text = "".join(scenario.alphabet[:7])
    engine = ImageFont.Layout.RAQM if scenario.name == "hindi" else ImageFont.Layout.BASIC
    font = ImageFont.truetype(str(FONTS[scenario.font]), 30, layout_engine=engine)
    canvas = Image.new("L", (600, 200))
    ImageDraw.Draw(canvas).text((100, 100), text, font=font, fill=255, anchor="ls")
    expected = np.asarray(canvas.crop(canvas.getbbox()))
    mark = Renderer(scenario, 224, 224).render(Draw(text, 0.5, 0.5))
    np.testing.assert_array_equal(mark.alpha, expected)


def test_size_scales_with_the_shorter_side():
    draw = draw_watermark(SCENARIOS["latin"], 17, "a")
    small = Renderer(SCENARIOS["latin"], 224, 600).render(draw).alpha
    large = Renderer(SCENARIOS["latin"], 448, 500).render(draw).alpha
    assert large.shape[1] == pytest.approx(2 * small.shape[1], rel=0.05)
    assert large.shape[0] == pytest.approx(2 * small.shape[0], rel=0.1)


@SHAPED
def test_hindi_is_shaped():
    """The sign i is typed after its consonant and drawn before it."""
    renderer = Renderer(SCENARIOS["hindi"], 224, 224)
    shaped = renderer.render(Draw("कि", 0, 0)).alpha
    consonant = renderer.render(Draw("क", 0, 0)).alpha
    tail = shaped[-consonant.shape[0] :, -consonant.shape[1] :]
    assert np.corrcoef(tail.ravel(), consonant.ravel())[0, 1] > 0.9


def test_without_raqm_hindi_says_so(monkeypatch):
    monkeypatch.setattr(features, "check", lambda feature: False)
    with pytest.raises(ScenarioError, match=r"'hindi' needs text shaping.*libfribidi0"):
        Renderer(SCENARIOS["hindi"], 224, 224)
    Renderer(SCENARIOS["chinese"], 224, 224)  # needs no shaping


@pytest.mark.parametrize(
    ("text", "expected"), [("ABC 123 的", False), ("कि", True), ("שלום", True), ("سلام", True)]
)
def test_which_scripts_need_shaping(text, expected):
    assert needs_shaping(text) is expected


def test_a_space_is_a_glyph():
    """The serif font's missing glyph is as blank as its space."""
    spaced = Renderer(Scenario("s", ["A B"]), 224, 224).render(Draw("A B", 0, 0)).alpha
    joined = Renderer(Scenario("s", ["AB"]), 224, 224).render(Draw("AB", 0, 0)).alpha
    assert spaced.shape[1] > joined.shape[1]


def test_opacity_thins_the_ink():
    full = Renderer(Scenario("s", "A"), 224, 224).render(Draw("A", 0, 0)).alpha
    half = Renderer(Scenario("s", "A", opacity=0.5), 224, 224).render(Draw("A", 0, 0)).alpha
    np.testing.assert_array_equal(half, np.rint(full * 0.5))


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (Scenario("s", "A的"), r"font 'serif' has no glyph for 的 \(U\+7684\)"),
        (Scenario("s", "A", font="/no/such.ttf"), "neither a font of the package"),
        (Scenario("s", "A", color="no colour"), "color 'no colour'"),
        (Scenario("s", "A", color=(1, 2)), r"color \(1, 2\)"),
        (Scenario("s", "A", color=(1, 2, 300)), "0 to 255"),
    ],
)
def test_what_cannot_be_rendered(scenario, message):
    with pytest.raises(ScenarioError, match=message):
        Renderer(scenario, 224, 224)


def test_text_larger_than_the_image():
    with pytest.raises(ScenarioError, match="does not fit an image of 224x224 px"):
        Renderer(Scenario("s", "W", length=12), 224, 224).render(Draw("W" * 12, 0, 0))


@pytest.mark.parametrize(
    ("color", "rgb"),
    [("white", (255, 255, 255)), ("#ff8000", (255, 128, 0)), ((1, 2, 3), (1, 2, 3))],
)
def test_colors(color, rgb):
    assert parse_color(Scenario("s", "A", color=color)) == rgb


IMAGES = st.integers(0, 2**32 - 1).map(
    lambda seed: torch.randint(
        0, 256, (3, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
)


@settings(max_examples=40)
@given(
    IMAGES,
    st.tuples(*[st.integers(0, 255)] * 3),
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 50), st.floats(0, 1), st.floats(0, 1)),
        min_size=3,
        max_size=3,
    ),
    st.integers(0, 2**32 - 1),
)
def test_compositing_agrees_with_pillow(images, color, boxes, seed):
    rng = np.random.default_rng(seed)
    marks = [
        Mark(
            rng.integers(0, 256, (rows, columns), dtype=np.uint8),
            top=round(down * (40 - rows)),
            left=round(across * (50 - columns)),
        )
        for rows, columns, across, down in boxes
    ]
    before = images.clone()
    marked = composite(images, marks, color)
    assert torch.equal(marked, composite_on_device(images, marks, color))
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(marked, composite(strided, marks, color))
    assert torch.equal(images, before)
    assert torch.equal(strided, before)
    for original, result, mark in zip(images, marked, marks, strict=True):
        expected = Image.fromarray(original.permute(1, 2, 0).contiguous().numpy())
        expected.paste(color, mask=Image.fromarray(place(mark, 40, 50)))
        difference = np.abs(
            np.asarray(expected, dtype=int) - result.permute(1, 2, 0).numpy().astype(int)
        )
        # Pillow rounds the two products one by one, we round their sum.
        assert difference.max() <= 1


def test_opaque_ink_is_the_colour_and_no_ink_is_the_image():
    images = torch.full((1, 3, 4, 4), 7, dtype=torch.uint8)
    alpha = np.array([[255, 0], [128, 255]], dtype=np.uint8)
    marked = composite(images, [Mark(alpha, 1, 2)], (255, 0, 9))
    assert marked[0, :, 1, 2].tolist() == [255, 0, 9]
    assert marked[0, :, 1, 3].tolist() == [7, 7, 7]
    assert marked[0, :, 2, 2].tolist() == [131, 3, 8]  # (7·127 + color·128) / 255
    assert (marked[0, :, 0] == 7).all()
