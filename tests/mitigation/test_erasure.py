"""After an erasure no linear correlation with marks is left, and little else is lost."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import MaskError
from pytest_watermark_guard.probing.recorded import recorded

pytest.importorskip("concept_erasure", reason="an optional extra")

SMALL = wm.Preprocessing(size=(32, 32))
INK = wm.Scenario("ink", ["A", "B"], length=3, size=12)
WIDTH = 12


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, WIDTH, 5, stride=2)
        self.fc = nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.fc(self.stem(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def features():
    """Correlated features, and two marks that each move them their own way."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(WIDTH, WIDTH))
    plain = rng.normal(size=(400, WIDTH)) @ mix + 2
    return plain, {
        "strong": plain + mix[0] * 1.5 + rng.normal(size=plain.shape) * 0.1,
        "weak": plain + mix[1] * 0.2 + rng.normal(size=plain.shape) * 0.1,
    }


@pytest.fixture(scope="module")
def erasure(features):
    plain, marked = features
    return wm.FeatureErasure.from_features(plain, marked, weights="abc", source="numbers")


def erased(erasure, rows):
    return erasure.transform(torch.from_numpy(rows), erasure.tensors()).numpy()


def photos(count=60):
    """Dark ones, so that white marks are seen."""
    return np.random.default_rng(0).integers(0, 20, (count, 32, 32, 3), dtype=np.uint8)


def told_apart(plain, marked):
    """Return how well a linear classifier tells two sets, on the rows that it has not seen."""
    rows, truth = np.concatenate([plain, marked]), np.repeat([0, 1], len(plain))
    head = LogisticRegression(max_iter=2000).fit(rows[::2], truth[::2])
    scores = head.decision_function(rows[1::2])
    area = float(wm.auroc(scores[truth[1::2] == 0], scores[truth[1::2] == 1])[0])
    return max(area, 1 - area)


def test_no_linear_head_tells_marked_images(features, erasure):
    plain, marked = features
    assert told_apart(plain, marked["strong"]) > 0.8
    for rows in marked.values():
        assert told_apart(erased(erasure, plain), erased(erasure, rows)) < 0.56


def test_no_linear_correlation_is_left(features, erasure):
    plain, marked = features
    rows = np.concatenate([plain, *marked.values()])
    changed = erased(erasure, rows)
    for place in (1, 2):
        is_marked = np.repeat(np.arange(3) == place, len(plain)).astype(float)
        before, after = (np.abs(np.cov(x.T, is_marked)[-1, :-1]).max() for x in (rows, changed))
        assert before > 0.01
        assert after < 1e-9 * before


@pytest.fixture(scope="module")
def spread():
    """A mark that moves unit 1, and spreads unit 0 without any correlation."""
    rng = np.random.default_rng(2)
    plain = np.abs(rng.normal(size=(400, WIDTH)))
    marked = plain + np.eye(WIDTH)[1]
    marked[:, 0] = np.where(rng.random(400) < 0.8, 0.0, 5 * plain[:, 0])
    return plain, {"spread": marked}


def test_what_single_units_still_tell_is_measured_on_images_held_out(spread):
    plain, marked = spread
    found = wm.FeatureErasure.from_features(plain[:200], {"spread": marked["spread"][:200]})
    held_out = plain[200:], {"spread": marked["spread"][200:]}
    (unit,) = found.measured(*held_out)
    areas = [
        roc_auc_score(np.repeat([0, 1], 200), np.concatenate([x, y]))
        for x, y in zip(
            erased(found, held_out[0]).T, erased(found, held_out[1]["spread"]).T, strict=True
        )
    ]
    d = np.maximum(areas, 1 - np.array(areas))
    assert (unit.index, unit.differentiability) == (int(d.argmax()), pytest.approx(d.max()))
    assert d.max() > 0.7
    told = wm.FeatureErasure.from_features(
        plain[:200], {"spread": marked["spread"][:200]}, held_out=held_out
    )
    assert told.remaining == (unit,)
    assert f"still tell spread marks by up to d = {d.max():.3f} (unit 0)" in told.description
    assert "on 200 images held out" in told.description


def test_without_other_images_a_half_is_held_out(spread):
    found = wm.FeatureErasure.from_features(*spread)
    (unit,) = found.remaining
    assert (unit.scenario, unit.layer, unit.index) == ("spread", "features", 0)
    assert unit.differentiability > 0.7
    assert "no linear correlation is left" in found.description
    assert "on 200 of these images after a fit to the others" in found.description
    again = wm.FeatureErasure.from_features(*spread)
    assert again.remaining == found.remaining
    with pytest.raises(MaskError, match="an erasure of 3 images is none"):
        wm.FeatureErasure.from_features(spread[0][:3], {"spread": spread[1]["spread"][:3]})


def test_features_of_other_images_are_refused(spread):
    plain, marked = spread
    with pytest.raises(MaskError, match=r"features \[400, 12\] of 'spread', but \[399, 12\]"):
        wm.FeatureErasure.from_features(plain[1:], marked)


def test_the_marks_no_longer_move_the_mean(features, erasure):
    plain, marked = features
    for rows in marked.values():
        before = np.abs(rows.mean(0) - plain.mean(0)).max()
        after = np.abs(erased(erasure, rows).mean(0) - erased(erasure, plain).mean(0)).max()
        assert after < 0.05 * before


def test_one_direction_for_each_scenario_and_the_mean_stays(features, erasure):
    plain, marked = features
    assert len(erasure) == 2
    assert (erasure.left.shape, erasure.right.shape) == ((WIDTH, 2), (2, WIDTH))
    change = plain - erased(erasure, plain)
    assert np.linalg.matrix_rank(change - change.mean(0), tol=1e-8) == 2
    everything = np.concatenate([plain, *marked.values()])
    np.testing.assert_allclose(erased(erasure, everything).mean(0), everything.mean(0), atol=1e-9)


def test_what_is_erased_is_not_there_a_second_time(features, erasure):
    once = erased(erasure, features[0])
    np.testing.assert_allclose(erased(erasure, once), once, atol=1e-9)


def test_a_scenario_that_is_hard_to_see_is_erased_too():
    """One of nine, and moving the features by a hundredth of their spread."""
    rng = np.random.default_rng(1)
    plain = rng.normal(size=(500, WIDTH))
    steps = np.eye(WIDTH)[:9] * np.array([0.01, *[1.0] * 8])[:, None]
    found = wm.FeatureErasure.from_features(
        plain, {str(index): plain + step for index, step in enumerate(steps)}
    )
    assert len(found) == 9
    shift = erased(found, plain + steps[0]).mean(0) - erased(found, plain).mean(0)
    assert np.abs(shift).max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_folded_head_says_the_same(erasure, dtype):
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, 5, dtype=dtype)
    x = torch.randn(7, 3, WIDTH).to(dtype)
    given = x.clone()
    tensors = {name: tensor.to(dtype) for name, tensor in erasure.tensors().items()}
    changed = erasure.transform(x, tensors)
    assert changed.dtype is dtype
    assert torch.equal(x, given)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.15}[dtype]
    for bias in (head.bias.detach(), None):
        weight, offset = erasure.fold_into(head.weight.detach(), bias)
        assert weight.dtype is offset.dtype is dtype
        expected = nn.functional.linear(changed, head.weight, bias)
        folded = nn.functional.linear(x, weight, offset)
        torch.testing.assert_close(folded, expected, rtol=0.0, atol=tolerance)


def test_saved_and_loaded(erasure, tmp_path):
    path = tmp_path / "erasure.json"
    erasure.save(path)
    again = wm.FeatureErasure.load(path)
    for name in ("left", "right", "mean"):
        np.testing.assert_array_equal(getattr(again, name), getattr(erasure, name))
    assert (again.weights, again.scenarios) == ("abc", ("strong", "weak"))
    assert (again.description, again.remaining) == (erasure.description, erasure.remaining)
    mask = tmp_path / "mask.json"
    wm.FeatureMask((1,), WIDTH).save(mask)
    with pytest.raises(MaskError, match="holds 'mask'"):
        wm.FeatureErasure.load(mask)


@pytest.mark.parametrize(
    ("left", "right", "mean", "message"),
    [
        (np.ones((3, 1)), np.ones((1, 4)), np.ones(4), r"got \[3, 1\], \[1, 4\], \[4\]"),
        (np.ones((4, 1)), np.full((1, 4), np.nan), np.ones(4), "right: .* finite"),
    ],
)
def test_arrays_that_do_not_fit(left, right, mean, message):
    with pytest.raises(MaskError, match=message):
        wm.FeatureErasure(left, right, mean)


def test_fitted_to_a_model_and_applied_to_it():
    model, images = Net(), photos()
    before = wm.probe(model, images, (INK,), preprocess=SMALL, cache=False)
    found = wm.FeatureErasure.fit(model, images, (INK,), preprocess=SMALL, cache=False)
    assert (found.width, found.scenarios, found.weights) == (WIDTH, ("ink",), before.weights)
    example = torch.rand(2, 3, 32, 32)
    changed = wm.apply_mask(model, found, example=example)
    after = wm.probe(changed, images, (INK,), preprocess=SMALL, cache=False)
    assert before["logits", "ink"].differentiability.max() > 0.7
    assert after["logits", "ink"].differentiability.max() < 0.6
    folded = wm.fold_mask(model, found, example=example)
    with torch.no_grad():
        torch.testing.assert_close(folded(example), changed(example), rtol=0.0, atol=1e-5)


def test_a_probe_and_an_erasure_share_their_activations(tmp_path, monkeypatch):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    seen = []
    convolve = nn.functional.conv2d
    monkeypatch.setattr(
        nn.functional, "conv2d", lambda x, *rest: seen.append(len(x)) or convolve(x, *rest)
    )
    arguments = {"preprocess": SMALL, "precision": "float32"}
    report = wm.probe(Net(), photos(), (INK,), **arguments)
    assert sum(seen) >= 2 * len(photos())
    seen.clear()
    wm.FeatureErasure.fit(Net(), photos(), (INK,), **arguments)
    with recorded(Net(), photos(), (INK,), **arguments) as found:
        plain, marked = (found.recording[s, "features"].columns() for s in ("", "ink"))
        np.testing.assert_array_equal(wm.auroc(plain, marked), report["features", "ink"].auroc)
        assert found.recording.weights == report.weights
        assert len(found.identities) == len(plain) == report.n_images
    # What shows where the layers are, and the first images again, each time: not the photos.
    assert sum(seen) <= 2 * 12 < len(photos())


def test_other_layers_have_no_erasure():
    with pytest.raises(MaskError, match="an erasure is of 'features', got logits"):
        wm.FeatureErasure.fit(Net(), photos(), (INK,), layers=("logits",))


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "concept_erasure", None)
    with pytest.raises(MaskError, match=r"pip install pytest-watermark-guard\[erasure\]"):
        wm.FeatureErasure.fit(Net(), photos(), (INK,))
