"""How the model is run: the fastest way that agrees, and never at the model's expense."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.models import execution

PHOTOS = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
SMALL = wm.Preprocessing(size=(32, 32))


class Layouts(nn.Module):
    """Takes its time on one memory format, and may compute something else on the other."""

    def __init__(self, slow_on=torch.contiguous_format, noise=0.0, picky=False):
        super().__init__()
        self.slow_on, self.noise, self.picky = slow_on, noise, picky
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        last = x.is_contiguous(memory_format=torch.channels_last)
        if x.is_contiguous(memory_format=self.slow_on):
            time.sleep(0.001 * len(x))
        if self.picky:
            x = x.view(len(x), -1).view(x.shape)  # fails on channels last
        x = self.norm(self.stem(x)).relu().mean((2, 3))
        return self.fc(x + self.noise * last * torch.randn_like(x))


@pytest.fixture(autouse=True)
def eager_to_try(monkeypatch):
    monkeypatch.setattr(execution, "_WORTH_TUNING", 0.0)


def probe(model, **arguments):
    arguments = {"cache": False, "preprocess": SMALL, "seed": 5, **arguments}
    return wm.probe(model, PHOTOS, ("latin", "arabic_numerals"), **arguments)


def plain(model):
    return probe(model, precision="float32")


def test_the_faster_way_is_taken_and_gives_the_same_scores():
    torch.manual_seed(0)
    model = Layouts()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report, expected = probe(model), plain(model)
    assert "channels last" in report.precision
    assert expected.precision == "float32"
    for scores in expected:
        np.testing.assert_allclose(
            report[scores.layer, scores.scenario].auroc, scores.auroc, atol=2e-3
        )
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert model.stem.weight.is_contiguous()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.fc._forward_pre_hooks
    assert model.training


@pytest.mark.parametrize(
    "model",
    [
        Layouts(slow_on=torch.channels_last),
        Layouts(noise=1.0),
        Layouts(picky=True),
    ],
    ids=["slower", "disagrees", "fails"],
)
def test_ways_that_are_no_good_are_not_taken(model):
    report = probe(model)
    assert "channels last" not in report.precision
    expected = plain(model)
    np.testing.assert_allclose(
        report["logits", "latin"].auroc, expected["logits", "latin"].auroc, atol=2e-3
    )


def test_float32_is_the_same_to_the_bit():
    torch.manual_seed(0)
    model = Layouts()
    one, other = plain(model), plain(model)
    assert one.to_json() == other.to_json()


def test_a_model_that_cannot_be_copied_runs_as_it_is():
    class Single(Layouts):
        def __deepcopy__(self, memo):
            raise RuntimeError("there is one of me")

    assert probe(Single()).precision == "float32"


def test_short_runs_are_not_worth_trying(monkeypatch):
    monkeypatch.setattr(execution, "_WORTH_TUNING", 1e9)
    assert probe(Layouts()).precision == "float32"


def test_the_fastest_way_is_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = Layouts()
    first = probe(model, cache=True)
    monkeypatch.setattr(execution.Executor, "_variants", lambda *_: pytest.fail("tried again"))
    # Another subset is not known yet, the model is.
    second = probe(model, cache=True, max_images=250)
    assert second.precision == first.precision
    assert "channels last" in second.precision


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16 weights"])
def test_bfloat16_where_the_hardware_has_it(monkeypatch, precision):
    """On hardware without it the speed is beside the point: it must be tried, and agree."""
    tried = []
    candidate = execution.Executor._candidate

    def noted(self, plan):
        found = candidate(self, plan)
        tried.append((plan.precision, found is not None))
        return found

    monkeypatch.setattr(execution, "_has_bfloat16", lambda device: True)
    monkeypatch.setattr(execution.Executor, "_candidate", noted)
    torch.manual_seed(0)
    probe(Layouts(), batch_size=2)
    assert (precision, True) in tried


def test_disagreement_is_in_standard_deviations_of_the_unit():
    rng = np.random.default_rng(0)
    units = rng.normal(5, [1, 100, 0], size=(2000, 3))
    noise = rng.normal(0, [0.1, 1, 0], size=(2000, 3))
    found = execution.disagreement({"a": units}, {"a": units + noise})
    assert found == pytest.approx(0.1, rel=0.1)
    # Shared by all images, a shift moves no rank; but some may be known from an earlier run.
    assert execution.disagreement({"a": units}, {"a": units + np.array([0.5, 0, 0])}) > 0.4
    assert execution.disagreement({"a": units}, {"a": units}) == 0
    assert execution.disagreement({"a": units}, {"a": units * np.nan}) == np.inf
    # A unit that never changes must not start to.
    assert execution.disagreement({"a": units}, {"a": units + [0, 0, 1] * noise[:, :1]}) > 100
