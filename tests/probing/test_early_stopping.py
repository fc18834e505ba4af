"""Gates stop when their verdict is certain, and say so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import NotCheckedError, SettingsError, WatermarkSensitivityError
from pytest_watermark_guard.probing.early_stopping import EarlyGate

N = 400
PHOTOS = np.random.default_rng(0).integers(0, 120, (N, 32, 32, 3), dtype=np.uint8)


class Units(nn.Module):
    """Features: a corner, the brightest pixel (ink, on these photos), and a blend of the two."""

    preprocessing = wm.Preprocessing(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)

    def __init__(self, ink=0.0):
        super().__init__()
        self.ink = ink
        self.rows = 0
        self.fc = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(2))

    def forward(self, x):
        self.rows += len(x)
        noise = x[:, 0, :4, :4].mean((1, 2))
        brightest = x.amin(1).amax((1, 2))
        return self.fc(torch.stack([noise, (1 - self.ink) * noise + self.ink * brightest], 1))


def check(model, **arguments):
    arguments = {"scenarios": "latin", "cache": False, **arguments}
    return wm.assert_not_watermark_sensitive(model, images=PHOTOS, **arguments)


def test_a_clean_model_passes_after_few_images():
    model = Units()
    report = check(model)
    assert (report.early_stop.verdict, report.early_stop.n_available) == ("clean", N)
    assert report.n_images < N / 4
    assert report.n_images == report["logits", "latin"].n_images
    assert model.rows < N


def test_a_perfect_detector_fails_before_the_last_image():
    with pytest.raises(WatermarkSensitivityError, match=r"Decided by \d+ of 400 images") as caught:
        check(Units(ink=1.0))
    verdict = caught.value.verdict
    assert verdict.report.early_stop.verdict == "sensitive"
    assert verdict.report.n_images < N
    assert f"Probed: the first {verdict.report.n_images} of 400 images" in verdict.story()


def test_early_and_full_runs_agree():
    full = wm.probe(Units(ink=0.3), PHOTOS, "latin", cache=False)
    d = max(s.differentiability.max() for s in full)
    assert 0.6 < d < 0.99, "a case that is neither clear nor at chance"
    for threshold in (0.55, d - 0.05, d + 0.05, 0.99):
        early = wm.probe(Units(ink=0.3), PHOTOS, "latin", cache=False, stop_at=threshold)
        assert wm.judge(early, threshold).passed == (d < threshold)


def test_every_layer_and_scenario_can_have_a_verdict_of_its_own():
    arguments = {"stop_at": 0.95, "cache": False}
    scenarios = ("latin", "arabic_numerals")
    one = wm.probe(Units(ink=1.0), PHOTOS, scenarios, **arguments)
    each = wm.probe(Units(ink=1.0), PHOTOS, scenarios, decide_each=True, **arguments)
    assert one.early_stop.verdict == each.early_stop.verdict == "sensitive"
    assert one.n_images < each.n_images < N
    # The unit is allowed under neither name of one layer: only the other one decides.
    allow = {"logits:1": "known"}
    report = wm.probe(Units(ink=1.0), PHOTOS, "latin", decide_each=True, allow=allow, **arguments)
    assert report.early_stop.verdict == "sensitive"


def test_each_verdict_tells_its_own_images():
    # The logits alone react: under text that is clear at once, and of the features too.
    model = Units(ink=0.3)
    with torch.no_grad():
        model.fc.weight[1] = torch.tensor([0.0, 0.0])
    full = wm.probe(Units(ink=0.3), PHOTOS, "latin", cache=False)
    close = float(full["features", "latin"].differentiability.max()) + 1e-4
    arguments = {"cache": False, "stop_at": close, "decide_each": True}
    report = wm.probe(model, PHOTOS, "latin", **arguments)
    logits, features = (report.early_stop.each[layer, "latin"] for layer in full.layers)
    assert logits.verdict == "clean"
    assert logits.n_images < N / 4
    assert features == (None, N)
    assert report.early_stop.verdict is None
    assert wm.ProbeReport.from_json(report.to_json()).early_stop == report.early_stop
    story = wm.judge(report, close).story()
    assert (
        f"Verdicts took {logits.n_images} of 400 images, at error probability 0.001 for all of "
        "them. Undecided to the last image, and so decided by the scores of all 400: features "
        "under latin." in " ".join(story.split())
    )


def test_nothing_is_said_of_allowed_units_that_early_images_do_not_show():
    report = check(Units(), allow={"logits:1": "known"})
    assert report.stopped_early
    assert wm.judge(report, allow={"logits:1": "known"}).stale == ()
    full = check(Units(), allow={"logits:1": "known"}, early_stop=0)
    assert wm.judge(full, allow={"logits:1": "known"}).stale == ("logits:1",)


def test_with_every_unit_allowed_there_is_nothing_to_test():
    allow = {f"{layer}:{unit}": "known" for layer in ("logits", "features") for unit in (0, 1)}
    assert check(Units(ink=1.0), allow=allow).early_stop.verdict == "clean"


def test_an_early_verdict_that_the_scores_contradict_takes_all_images(monkeypatch):
    monkeypatch.setattr(EarlyGate, "confirmed_by", lambda *_: False)
    report = check(Units())
    assert (report.n_images, report.early_stop.verdict) == (N, None)


def test_undecided_to_the_last_image():
    full = wm.probe(Units(ink=0.3), PHOTOS, "latin", cache=False)
    d = float(full["logits", "latin"].differentiability.max())
    with pytest.raises(NotCheckedError) as caught:
        check(Units(ink=0.3), threshold=d + 1e-4)
    report = caught.value.verdict.report
    assert report.early_stop.verdict is None
    assert report.n_images == N
    story = wm.judge(report, d + 1e-4).story()
    assert "Undecided at error probability 0.001 to the last image: decided by the scores" in story
    np.testing.assert_array_equal(report["logits", "latin"].auroc, full["logits", "latin"].auroc)


def test_allowed_units_do_not_keep_it_going():
    allow = {"logits:1": "known", "features:1": "known"}
    report = check(Units(ink=1.0), allow=allow)
    assert report.early_stop.verdict == "clean"
    assert report.n_images < N / 4


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_verdict_does_not_hang_on_the_batch_size(batch_size):
    one, other = check(Units()), check(Units(), batch_size=batch_size)
    assert one.to_json() == other.to_json()


def test_reports_use_all_images_and_gates_do_when_told_to():
    assert wm.probe(Units(), PHOTOS, "latin", cache=False).early_stop is None
    report = check(Units(), early_stop=0)
    assert (report.n_images, report.early_stop) == (N, None)


def test_the_outcome_survives_the_round_trip():
    report = check(Units())
    assert wm.ProbeReport.from_json(report.to_json()).early_stop == report.early_stop


@pytest.mark.parametrize("wrong", [-0.1, 0.5, True, "often"])
def test_wrong_error_probabilities(wrong):
    with pytest.raises(SettingsError, match=r"early_stop must be a probability in \[0, 0.5\)"):
        check(Units(), early_stop=wrong)
