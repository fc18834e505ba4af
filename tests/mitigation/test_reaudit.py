from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import MaskError, SettingsError
from pytest_watermark_guard.probing.context import Run, using_run


class TwoInks(nn.Module):
    """Feature 0 sees white ink, feature 1 black ink, feature 2 the brightness of a corner."""

    def __init__(self, weights):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor(weights))
            self.fc.bias.zero_()
        self.preprocessing = wm.Preprocessing(
            size=(96, 96), resize=96, mean=(0, 0, 0), std=(1, 1, 1), source="its own"
        )
        self.class_names = ("beach", "carton")

    def forward(self, x):
        seen = [x.amin(1).amax((1, 2)), -x.amax(1).amin((1, 2)), x[:, 0, :9, :9].mean((1, 2))]
        return self.fc(torch.stack(seen, 1))


WHITE = wm.Scenario("white", ["X"], length=3, size=20)
BLACK = wm.Scenario("black", ["X"], length=3, size=20, color="black")
HEAD = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]  # "beach" is white ink, "carton" is black ink
# Unmasked, white ink drowns in the sum with black ink's absence; masked, black ink stands out.
SWAPPED = [[0.0, 0.0, 1.0], [100.0, 1.0, 0.0]]


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(low, low + 60, (96, 96, 3), dtype=np.uint8))
        for low in rng.integers(40, 120, size=64)
    ]


def masked(weights, units):
    return wm.apply_mask(TwoInks(weights), wm.FeatureMask(units, 3, description="some features"))


def test_a_mask_that_helped(photos):
    # Of a head that the corner does not reach, nothing would be left to check.
    model = masked([[1.0, 0.0, 0.001], [0.0, 1.0, 0.001]], (0, 1))
    found = wm.reaudit(model, images=photos, scenarios=(WHITE, BLACK), threshold=0.9)
    largest = {
        (c.layer, c.scenario): (c.before.differentiability, c.after.differentiability)
        for c in found.changes
    }
    assert set(largest) == {(a, b) for a in ("logits", "features") for b in ("white", "black")}
    assert all(before == 1 and after < 0.7 for before, after in largest.values())
    assert found.verdict.passed
    assert found.passed
    assert not found.moved
    story = found.story()
    assert "logits, white: the largest d falls from 1.000 (beach [0]) to 0." in story
    assert "The gate passes: no unit reaches d = 0.9." in story
    assert "Nothing reacts more than without the mask" in story


def test_it_is_what_two_probes_say(photos):
    model = masked(HEAD, (0,))
    arguments = {"images": photos, "scenarios": (WHITE, BLACK)}
    found = wm.reaudit(model, **arguments)
    for report, own in ((found.after, model), (found.before, TwoInks(HEAD))):
        expected = wm.probe(own, **arguments)
        for scores in expected:
            assert np.array_equal(report[scores.layer, scores.scenario].auroc, scores.auroc)
    assert found.before.model == "TwoInks without its mask"
    assert found.after.model == "TwoInks"


def test_a_mask_that_moved_the_problem(photos):
    model = masked(SWAPPED, (0,))
    found = wm.reaudit(model, images=photos, scenarios=(WHITE, BLACK), threshold=0.9)
    assert {(c.layer, c.scenario) for c in found.moved} == {("logits", "black")}
    (change,) = found.moved
    assert change.before.differentiability < 0.8
    assert change.after.differentiability == 1
    assert not found.passed
    assert not found.verdict.passed
    story = found.story()
    assert "The mask moved the problem: logits react more to black marks than without it." in story
    assert "The gate fails: " in story


def test_the_gate_s_allowed_units_count(photos):
    model = masked(SWAPPED, (0,))
    found = wm.reaudit(
        model,
        images=photos,
        scenarios=(BLACK,),
        threshold=0.9,
        allow={"carton": "known", "features:1": "known"},
    )
    assert found.verdict.passed
    assert found.moved
    assert not found.passed
    assert "no unit outside the allowed ones reaches d = 0.9" in found.story()


def test_the_model_comes_back_as_it_was(photos):
    model = masked(HEAD, (0, 1)).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mask, attributes = wm.applied_mask(model), sorted(vars(model))
    wm.reaudit(model, images=photos, scenarios=WHITE)
    assert wm.applied_mask(model) is mask
    assert model.training
    assert sorted(vars(model)) == attributes
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(wm.errors.ImagesError):
        wm.reaudit(model, images="no/such/folder")
    assert wm.applied_mask(model) is mask
    ink = torch.ones(1, 3, 96, 96)
    assert wm.extract_features(model, ink).tolist() == [[0, 0, 1]]


def test_without_a_mask_there_is_nothing_to_compare(photos):
    with pytest.raises(MaskError, match=r"TwoInks carries no mask.*apply_mask first"):
        wm.reaudit(TwoInks(HEAD), images=photos)


def test_arguments_are_checked_before_anything_runs(photos):
    model = masked(HEAD, (0,))
    with pytest.raises(SettingsError, match="threshold must be"):
        wm.reaudit(model, 0.5, images=photos)
    with pytest.raises(SettingsError, match="stop_at: both probes are of all images"):
        wm.reaudit(model, images=photos, stop_at=0.9)


def test_the_run_s_settings_hold_and_both_reports_are_handed_on(photos):
    reports = []
    run = Run(on_report=reports.append)
    settings = run.settings.override(threshold=0.8, scenarios=(WHITE,), max_images=6)
    with using_run(Run(settings, on_report=reports.append)):
        found = wm.reaudit(masked(HEAD, (0, 1)), images=photos, name="v2")
    assert found.verdict.threshold == 0.8
    assert found.after.n_images == 6
    assert [report.model for report in reports] == ["v2 without its mask", "v2"]
