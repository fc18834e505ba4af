from __future__ import annotations

from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pytest_watermark_guard.errors import LayerError
from pytest_watermark_guard.models.reading.outputs import as_units, combined, main_tensor

LOGITS = torch.randn(2, 5)
MAP = torch.randn(2, 4, 3, 3)
Auxiliary = namedtuple("Auxiliary", "logits aux_logits")


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, torch.randn(2, 7)),
        [LOGITS],
        (MAP, LOGITS),
        (torch.zeros(2, 3, dtype=torch.long), LOGITS),
        Auxiliary(LOGITS, torch.randn(2, 5)),
        Auxiliary(LOGITS, None),
        {"features": MAP, "logits": LOGITS},
        {"aux": torch.randn(2, 3), "logits": LOGITS},
        OrderedDict(out=LOGITS),
        SimpleNamespace(logits=LOGITS, hidden_states=None),
    ],
)
def test_logits_in_whatever_a_classifier_returns(output: Any) -> None:
    logits, is_backbone = main_tensor(output)
    assert logits is LOGITS
    assert not is_backbone


@pytest.mark.parametrize(
    "output",
    [
        MAP,
        torch.randn(2, 9, 4),
        SimpleNamespace(logits=None, pooler_output=LOGITS, last_hidden_state=MAP),
        SimpleNamespace(pooler_output=None, last_hidden_state=MAP),
        (MAP,),
    ],
)
def test_backbones(output: Any) -> None:
    assert main_tensor(output)[1]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (torch.zeros(()), r"float32 tensor of shape \[\]"),
        (torch.zeros(2, 5, dtype=torch.long), r"int64 tensor of shape \[2, 5\]"),
        ({"out": MAP}, r"dict \(out: \[2, 4, 3, 3\]\)"),
        ((None, "text"), r"tuple \(NoneType, str\)"),
        (None, "object of type NoneType"),
        ([], "a list"),
    ],
)
def test_outputs_that_cannot_be_read_are_described(output: Any, said: str) -> None:
    with pytest.raises(LayerError, match=rf"{said}.*wrap the model"):
        main_tensor(output)


def test_units() -> None:
    tokens = torch.randn(2, 9, 4)
    assert as_units(LOGITS) is LOGITS
    torch.testing.assert_close(as_units(MAP), MAP.flatten(2).mean(2))
    torch.testing.assert_close(
        as_units(MAP.permute(0, 2, 3, 1), channels_last=True), MAP.flatten(2).mean(2)
    )
    torch.testing.assert_close(as_units(tokens), tokens.sum(1) / 9)


@pytest.mark.parametrize("shape", [(2,), (2, 3, 4, 5, 6)])
def test_units_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LayerError, match="cannot be read as units"):
        as_units(torch.zeros(shape))


def test_units_must_be_numbers_that_can_be_averaged() -> None:
    with pytest.raises(LayerError, match="int64"):
        as_units(torch.zeros(2, 3, dtype=torch.long))


def test_heads_of_one_width_are_averaged_and_others_stay_side_by_side() -> None:
    one, two = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(combined([one, two]), (one + two) / 2)
    wider = torch.randn(2, 4)
    assert torch.equal(combined([one, wider]), torch.cat([one, wider], dim=1))
