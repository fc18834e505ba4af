"""A model that cannot react passes no gate, and its report says so first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import NotCheckedError, WatermarkSensitivityError

N = 60
PHOTOS = np.random.default_rng(0).integers(0, 120, (N, 32, 32, 3), dtype=np.uint8)


class Net(nn.Module):
    """Three features, scaled unit by unit, and two logits."""

    preprocessing = wm.Preprocessing(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)

    def __init__(self, scales: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
        super().__init__()
        self.register_buffer("scales", torch.tensor(scales))
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 0.5, 0.2], [0.1, 1.0, 0.3]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(0.7 + self.scales * x[:, :, :4, :4].mean((2, 3)))


class WithNorm(Net):
    """Has a batch norm, whose buffers tell whether it was ever trained."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class Saturated(Net):
    """Gives a softmax whose every number is 0 or 1."""

    def __init__(self) -> None:
        super().__init__()
        pixels = torch.tensor(PHOTOS).permute(0, 3, 1, 2) / 255
        self.register_buffer("middle", super().forward(pixels).mean(0).detach())

    def forward(self, x: Tensor) -> Tensor:
        return ((super().forward(x) - self.middle) * 1e8).softmax(1)


def probe(model: nn.Module, **arguments: object) -> wm.ProbeReport:
    arguments = {"cache": False, **arguments}
    return wm.probe(model, PHOTOS, "latin", **arguments)  # type: ignore[arg-type]


def check(model: nn.Module, **arguments: object) -> wm.ProbeReport:
    arguments = {"cache": False, **arguments}
    return wm.assert_not_watermark_sensitive(
        model, PHOTOS, "latin", **arguments  # type: ignore[arg-type]
    )  # fmt: skip


DEAD = (0.0, 0.0, 0.0)


@pytest.mark.parametrize("early_stop", [0, 0.001, 0.4])
def test_a_dead_model_passes_no_gate(early_stop: float) -> None:
    with pytest.raises(NotCheckedError, match="could not be checked: no unit of its") as caught:
        check(Net(DEAD), early_stop=early_stop)
    assert not isinstance(caught.value, AssertionError)
    verdict = caught.value.verdict
    assert isinstance(verdict, wm.Verdict)
    assert not verdict.passed
    assert verdict.report.n_images == N, "the images to come could have moved it"
    if early_stop:
        assert verdict.report.early_stop is not None
        assert verdict.report.early_stop.verdict is None


@pytest.mark.parametrize("batch_size", [1, 7])
def test_its_report_says_so_first(batch_size: int) -> None:
    report = probe(Net(DEAD), batch_size=batch_size)
    assert report.dead_units == {"logits": 2, "features": 3}
    assert report.dead_layers == ("logits", "features")
    assert report.notes[0].startswith("logits and features: no unit ever changes")
    again = wm.ProbeReport.from_json(report.to_json())
    assert again.dead_units == report.dead_units
    assert not wm.judge(again).passed
    story = wm.judge(again).story()
    assert story.startswith("Net could not be checked: no unit of its logits and features")


def test_so_does_a_report_from_the_cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    for model in (Net(DEAD), Saturated()):
        first, second = (probe(model, cache=True) for _ in range(2))
        assert second.notes == first.notes
        assert second.dead_units == first.dead_units
        assert first.notes


def test_units_that_change_with_the_mark_alone_are_not_dead() -> None:
    class Ink(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc((x.amin(1).amax((1, 2)) > 0.5).float()[:, None].expand(-1, 3))

    assert probe(Ink()).dead_units == {}
    with pytest.raises(WatermarkSensitivityError):
        check(Ink())


def test_some_dead_units_are_counted_and_do_not_fail() -> None:
    report = check(Net((1.0, 0.0, 0.0)))
    assert report.dead_units == {"features": 2}
    assert report.notes[-1] == "features: 2 of 3 units never change"
    assert probe(Net()).notes == ()


def test_one_prediction_for_all_images_is_no_reason() -> None:
    model = Net()
    with torch.no_grad():
        model.fc.bias.copy_(torch.tensor([9.0, -9.0]))
    assert check(model).notes == ()


def test_a_dead_layer_beside_a_live_one_cannot_be_checked() -> None:
    model = Net()
    with torch.no_grad():
        model.fc.weight.zero_()
    with pytest.raises(NotCheckedError, match="no unit of its logits ever changes"):
        check(model)
    assert check(model, layers="features").dead_units == {}


def test_a_sensitive_unit_outweighs_a_dead_layer() -> None:
    class Ink(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.amin(1).amax((1, 2))[:, None].expand(-1, 3))

    model = Ink()
    with torch.no_grad():
        model.fc.weight.zero_()
    with pytest.raises(WatermarkSensitivityError):
        check(model, threshold=0.9)


def test_a_saturated_softmax_is_told_first() -> None:
    report = probe(Saturated(), batch_size=N)
    assert report.notes[0].startswith("logits: every output is exactly 0 or 1")


@pytest.mark.parametrize("form", ["values and indices", "shares"])
def test_the_largest_answers_in_order_are_told_first(form: str) -> None:
    class Top(Net):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 20)

        def forward(self, x: Tensor) -> object:
            found = super().forward(x).softmax(1).topk(5)
            return tuple(found) if form == "values and indices" else found.values

    torch.manual_seed(0)
    model = Top()
    assert probe(model).notes[0].startswith("logits: the answers to every image fall")

    class Whole(Top):
        def forward(self, x: Tensor) -> Tensor:
            return Net.forward(self, x).softmax(1)

    assert not any("fall from" in note for note in probe(Whole()).notes)


def test_untouched_batch_norms_are_told_first() -> None:
    model = WithNorm()
    assert probe(model).notes[0].startswith("the weights look untouched: no batch norm")
    model.train()(torch.rand(8, 3, 32, 32))
    assert probe(model).notes == ()
    # Files that are older than the counter have statistics.
    model.norm.num_batches_tracked.zero_()
    assert probe(model).notes == ()


def test_half_precision_that_underflows() -> None:
    class Small(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 1e-9)

    with pytest.raises(NotCheckedError, match=r"precision is wide enough"):
        check(Small().half())
