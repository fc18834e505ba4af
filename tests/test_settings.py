from __future__ import annotations

import numpy as np
import pytest

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.settings import Settings, parse_setting


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": ""}, "images is empty"),
        ({"threshold": 0.5}, r"threshold must be a number in \(0.5, 1\], got 0.5"),
        ({"threshold": 1.01}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": "0.9"}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"precision": "float16"}, "precision must be one of auto, float32, bfloat16"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"max_images": 1}, "max_images must be an integer >= 2"),
        ({"layers": ()}, "layers must be one or more"),
        ({"layers": ("logits", "logits")}, "each can be asked for once"),
        ({"layers": (3,)}, "layers must be one or more"),
        ({"allow": ["carton"]}, "must map units to reasons"),
        ({"allow": {"carton": ""}}, "'carton' needs a reason"),
        ({"allow": {"937": "why"}}, "of which layer"),
        ({"allow": {":937": "why"}}, "expected LAYER:UNIT"),
        ({"tresholt": 0.9}, "unknown setting 'tresholt'; known are images, threshold"),
    ],
)
def test_values_that_cannot_be_used(given, message):
    with pytest.raises(SettingsError, match=message):
        Settings().override(**given)


def test_numbers_of_numpy_become_plain_ones():
    settings = Settings(threshold=np.float32(0.75), seed=np.int64(3), max_images=np.int32(9))
    assert (settings.threshold, settings.seed, settings.max_images) == (0.75, 3, 9)
    assert {type(settings.threshold), type(settings.seed)} == {float, int}


def test_none_leaves_a_setting_alone():
    settings = Settings(threshold=0.8)
    assert settings.override(threshold=None, seed=3) == Settings(threshold=0.8, seed=3)


def test_one_name_is_as_good_as_a_list_of_one():
    assert Settings(layers="features").layers == ("features",)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("threshold", "0.9", 0.9),
        ("seed", "3", 3),
        ("scenarios", "chinese, latin", ("chinese", "latin")),
        ("scenarios", ["chinese", "stock logo, latin"], ("chinese", "stock logo", "latin")),
        ("threshold", 0.9, 0.9),
        ("layers", "logits features", ("logits", "features")),
        ("images", "a folder", "a folder"),
        ("allow", ["logits:carton = it is = fine"], {"logits:carton": "it is = fine"}),
    ],
)
def test_text_from_options(name, text, value):
    assert parse_setting(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("threshold", "high", "threshold must be a number, got 'high'"),
        ("seed", "1.5", "seed must be an integer, got '1.5'"),
        ("allow", ["carton"], "expected LAYER:UNIT = REASON"),
    ],
)
def test_text_that_is_no_value(name, text, message):
    with pytest.raises(SettingsError, match=message):
        parse_setting(name, text)
