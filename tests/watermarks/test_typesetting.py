from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageDraw, ImageFont, features

from pytest_watermark_guard import SCENARIOS, Scenario
from pytest_watermark_guard.watermarks.draw import Draw
from pytest_watermark_guard.watermarks.scenarios import FONTS
from pytest_watermark_guard.watermarks.text import Renderer
from pytest_watermark_guard.watermarks.typesetting import Typesetter, draw_whole

ALPHABETS = {name: (s.alphabet, s.font) for name, s in SCENARIOS.items()}
ALPHABETS["words"] = (("STOCK", "c d", "AV", "."), "serif")
if not features.check("raqm"):
    del ALPHABETS["hindi"]


def pillow_s_own(font, text, opacity=1.0):
    """Draw straight onto a page far larger than the string."""
    pad = int(4 * font.size) + 9
    page = Image.new("L", (int(font.getlength(text)) + 2 * pad, 2 * pad))
    ImageDraw.Draw(page).text((pad, pad), text, font=font, fill=255, anchor="ls")
    return np.rint(np.asarray(page.crop(page.getbbox())) * opacity)


@settings(max_examples=150)
@given(st.data(), st.sampled_from(sorted(ALPHABETS)))
def test_every_string_is_pillow_s_own(data, name):
    alphabet, file = ALPHABETS[name]
    size = data.draw(st.floats(8, 60) | st.integers(8, 60), "size")
    side = data.draw(st.integers(64, 600), "side")
    opacity = data.draw(st.sampled_from([1.0, 0.5]) | st.floats(0.1, 1), "opacity")
    scenario = Scenario(name, alphabet, font=file, size=size, opacity=opacity)
    renderer = Renderer(scenario, side, 20 * side)
    font = ImageFont.truetype(
        str(FONTS[file]),
        size * side / 224,
        layout_engine=ImageFont.Layout.RAQM if name == "hindi" else ImageFont.Layout.BASIC,
    )
    # Several from one renderer, so that what it keeps of one string serves the next.
    for symbols in data.draw(
        st.lists(
            st.lists(st.sampled_from(alphabet), min_size=1, max_size=7), min_size=1, max_size=5
        )
    ):
        text = "".join(symbols)
        expected = pillow_s_own(font, text, opacity)
        if expected.any() and len(expected) <= side:
            alpha = renderer.render(Draw(text, 0.5, 0.5)).alpha
            assert alpha.dtype == np.uint8
            np.testing.assert_array_equal(alpha, expected)


@pytest.mark.parametrize("name", ["chinese", "latin", "arabic_numerals"])
@pytest.mark.parametrize("side", [96, 224, 384])
def test_every_pair_is_pillow_s_own(name, side):
    alphabet, file = ALPHABETS[name]
    renderer = Renderer(SCENARIOS[name], side, side)
    font = ImageFont.truetype(
        str(FONTS[file]), 30 * side / 224, layout_engine=ImageFont.Layout.BASIC
    )
    for pair in map("".join, itertools.product(alphabet, repeat=2)):
        alpha = renderer.render(Draw(pair, 0, 0)).alpha
        np.testing.assert_array_equal(alpha, pillow_s_own(font, pair), err_msg=pair)


@pytest.mark.parametrize("name", ["chinese", "latin", "arabic_numerals"])
def test_pillow_draws_no_pair_for_ever(name, monkeypatch):
    scenario = SCENARIOS[name]
    renderer = Renderer(scenario, 224, 224)
    for pair in itertools.product(scenario.alphabet, repeat=2):
        renderer.render(Draw("".join(pair), 0, 0))
    text = "".join(scenario.alphabet[6::-1])
    expected = pillow_s_own(
        ImageFont.truetype(str(FONTS[scenario.font]), 30, layout_engine=ImageFont.Layout.BASIC),
        text,
    )
    monkeypatch.delattr(ImageFont.FreeTypeFont, "getmask2")
    np.testing.assert_array_equal(renderer.render(Draw(text, 0, 0)).alpha, expected)


def serif(engine=ImageFont.Layout.BASIC, size=30, **instead):
    """Open a font that draws or measures some strings otherwise than their characters."""
    font = ImageFont.truetype(str(FONTS["serif"]), size, layout_engine=engine)
    for name, change in instead.items():
        setattr(font, name, change(getattr(font, name)))
    return font


def test_a_ligature_is_left_to_pillow():
    def ligature(own):
        return lambda text, **options: own(text.replace("AV", "W"), **options)

    font = serif(getmask2=ligature)
    setter, plain = Typesetter(font), Typesetter(serif())
    for _ in range(2):
        whole = setter.ink("HAVE")
        np.testing.assert_array_equal(whole, draw_whole(font, "HAVE").alpha)
    assert whole.shape != plain.ink("HAVE").shape


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm")
def test_a_shaped_string_is_left_to_pillow():
    """Its letters may depend on more than their neighbours."""

    def ligature(own):
        return lambda text, **options: own(text.replace("HHH", "W"), **options)

    font = serif(ImageFont.Layout.RAQM, getmask2=ligature)
    setter = Typesetter(font)
    for text in ("HH", "HHH"):
        np.testing.assert_array_equal(setter.ink(text), draw_whole(font, text).alpha)


def test_a_wrong_measure_is_found_out():
    font = serif(getlength=lambda own: lambda text: own(text) + len(text))
    setter, expected = Typesetter(font), pillow_s_own(serif(), "HATE")
    for _ in range(2):
        np.testing.assert_array_equal(setter.ink("HATE"), expected)


def test_pens_go_to_the_nearest_pixel():
    """Pillow reads kerning of a pixel as of 1/64."""
    font = serif(getlength=lambda own: lambda text: own(text) - (len(text) - 1) / 64)
    setter, expected = Typesetter(font), pillow_s_own(serif(), "HATE")
    setter.ink("HATE")
    font.getmask2 = None
    np.testing.assert_array_equal(setter.ink("HATE"), expected)


def test_inks_that_overlap_across_a_blank():
    """Each pair with the blank is harmless; Pillow blends what meets over it."""

    def without_blanks(own):
        return lambda text, **options: own(text.replace(" ", ""), **options)

    font = serif(size=13, getmask2=without_blanks, getlength=without_blanks)
    setter = Typesetter(font)
    for first, second in itertools.product(SCENARIOS["latin"].alphabet, repeat=2):
        setter.ink(f"{first} ")
        setter.ink(f" {second}")
        text = f"{first} {second}"
        np.testing.assert_array_equal(setter.ink(text), draw_whole(font, text).alpha)


def test_memory_is_bounded():
    """After more pairs than are kept, the first is drawn whole again, and is still right."""
    font = serif()
    setter = Typesetter(font)
    expected = setter.ink("HA")
    drawn = []
    draw = font.getmask2
    font.getmask2 = lambda text, **options: drawn.append(text) or draw(text, **options)
    np.testing.assert_array_equal(setter.ink("HA"), expected)
    assert drawn == []
    for pair in map("".join, itertools.product(map(chr, range(33, 33 + 75)), repeat=2)):
        setter.ink(pair)
    drawn.clear()
    np.testing.assert_array_equal(setter.ink("HA"), expected)
    assert drawn == ["HA"]


def test_no_ink():
    assert Typesetter(serif()).ink("  ") is None
    assert Typesetter(serif()).ink(" ") is None
    assert draw_whole(serif(), " ") is None
