"""Models of which a part is TorchScript, which takes no hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import LayerError
from pytest_watermark_guard.models.reading.activations import ActivationRecorder

# TorchScript itself is deprecated; which category says so depends on the version.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
]
PICTURES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x).relu().mean((2, 3))


class Net(nn.Module):
    """A body, an activation and a head, each as it is or as TorchScript."""

    def __init__(self, scripted: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.act, self.head = Body(), Swish(), nn.Linear(8, 5)
        for name in scripted.split():
            setattr(self, name, torch.jit.script(getattr(self, name)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.body(x)))


def record(
    model: nn.Module, *layers: str, outputs: str = "auto"
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    with ActivationRecorder(model.eval(), layers, PICTURES, outputs) as recorder:
        return recorder(PICTURES), recorder.notes


@pytest.mark.parametrize("scripted", ["act", "body", "body act"])
def test_what_is_before_the_head_may_be_torchscript(scripted: str) -> None:
    read, notes = record(Net(scripted), "features", "logits")
    assert notes == ()
    plain = Net("")
    torch.testing.assert_close(read["features"], plain.act(plain.body(PICTURES)))
    torch.testing.assert_close(read["logits"], plain(PICTURES))


@pytest.mark.parametrize(("scripted", "last"), [("head", "act"), ("act head", "body")])
def test_what_goes_into_a_head_in_torchscript_is_found_by_trying(scripted: str, last: str) -> None:
    read, (note,) = record(Net(scripted), "features", "logits")
    assert f"found by trying to be the output of {last!r}" in note
    plain = Net("")
    embedded = plain.body(PICTURES)
    torch.testing.assert_close(read["features"], plain.act(embedded) if last == "act" else embedded)
    torch.testing.assert_close(read["logits"], plain(PICTURES))


def test_a_head_in_torchscript_is_not_taken_to_be_missing() -> None:
    read, (note,) = record(Net("body act head"), "features", "logits")
    assert [*read] == ["logits"]
    assert "features are not probed: the head may be in 'head', which is TorchScript" in note
    torch.testing.assert_close(read["logits"], Net("")(PICTURES))


def test_a_backbone_with_a_part_in_torchscript_may_be_said_to_be_one() -> None:
    model = nn.Sequential(torch.jit.script(Body()), nn.LayerNorm(8))
    read, (note,) = record(model, "features", "logits")
    assert [*read] == ["logits"]
    assert "say outputs='features' if there is no head" in note
    read, notes = record(model, "features", outputs="features")
    assert notes == ()
    torch.testing.assert_close(read["features"], model(PICTURES))


def test_a_head_that_the_model_says_is_missing_is_not_looked_for_in_torchscript() -> None:
    class Headless(Net):
        def get_classifier(self) -> nn.Module:
            return self.head

    model = Headless("body")
    model.head = nn.Identity()  # type: ignore[assignment]
    read, (note,) = record(model, "features", "logits")
    assert [*read] == ["features"]
    assert "no head found" in note
    torch.testing.assert_close(read["features"], model(PICTURES))


def test_whoever_says_that_the_output_is_logits_is_not_told_how_to_say_so() -> None:
    _, (note,) = record(Net("body head"), "features", "logits", outputs="logits")
    assert "say outputs=" not in note


def test_what_was_traced_takes_hooks() -> None:
    model, plain = Net(""), Net("")
    model.body = torch.jit.trace(plain.body, PICTURES)
    model.head = torch.jit.trace(plain.head, torch.rand(4, 8))
    read, notes = record(model, "features", "logits", "body")
    assert notes == ()
    torch.testing.assert_close(read["features"], plain.act(plain.body(PICTURES)))
    torch.testing.assert_close(read["logits"], plain(PICTURES))
    torch.testing.assert_close(read["body"], plain.body(PICTURES))


def test_a_part_in_torchscript_cannot_be_named() -> None:
    for layer in ("body", "body.stem"):
        with pytest.raises(LayerError, match=f"'{layer}' is TorchScript.*that it was made from"):
            record(Net("body"), layer)
    read, _ = record(Net("body"), "act")
    assert read["act"].shape == (4, 8)
