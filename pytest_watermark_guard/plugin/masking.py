"""What the fixture ``wm_mask`` does: the marked test's model is masked, and then as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_watermark_guard.errors import MaskError, WatermarkGuardError
from pytest_watermark_guard.plugin.mask_marker import MASK_MARKER, REQUEST, MaskRequest
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.reports.masked import Fall, Masked
from pytest_watermark_guard.watermarks.scenarios import resolve_scenarios

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from pytest_watermark_guard.mitigation.erasure import FeatureErasure
    from pytest_watermark_guard.mitigation.mask import FeatureMask
    from pytest_watermark_guard.reports.probe import ProbeReport

_LAYERS = ("features",)


MASKED = pytest.StashKey[Masked]()


@contextmanager
def masking(request: pytest.FixtureRequest) -> Iterator[FeatureMask | FeatureErasure]:
    """Mask the model of a marked test within the block; afterwards it is exactly as before.

    Parameters
    ----------
    request : FixtureRequest
        Of a function-scoped fixture. What was masked is left in its item's stash.
    """
    from pytest_watermark_guard.mitigation.apply import apply_mask, masked_at
    from pytest_watermark_guard.mitigation.mask import FeatureMask
    from pytest_watermark_guard.models.snapshot import restored

    asked = _asked(request)
    model = request.getfixturevalue(asked.fixture)
    with ExitStack() as stack:
        try:
            _check_model(model, asked.fixture)
            mask, report, after = _mask_for(model, asked)
            stack.enter_context(restored(model))
            apply_mask(model, mask, inplace=True)
        except WatermarkGuardError as error:
            # The message says it all; a traceback through us helps nobody.
            told = f"@pytest.mark.{MASK_MARKER}: {error}"
            raise pytest.fail.Exception(told, pytrace=False) from None
        before = {scores.scenario: float(scores.differentiability.max()) for scores in report}
        request.node.stash[MASKED] = Masked(
            test=request.node.nodeid,
            fixture=asked.fixture,
            model=report.model,
            where=masked_at(model),
            method=asked.method,
            units=mask.units if isinstance(mask, FeatureMask) else (),
            directions=0 if isinstance(mask, FeatureMask) else len(mask.right),
            width=mask.width,
            falls=tuple(Fall(name, before[name], after[name]) for name in before),
            description=mask.description,
        )
        yield mask


def _asked(request: pytest.FixtureRequest) -> MaskRequest:
    asked: MaskRequest | None = request.node.stash.get(REQUEST, None)
    if asked is None:
        pytest.fail(
            f"the fixture wm_mask tells what @pytest.mark.{MASK_MARKER} has masked, and this test "
            "has no such marker",
            pytrace=False,
        )
    return asked


def _check_model(model: object, fixture: str) -> None:
    from torch import nn

    if not isinstance(model, nn.Module):
        raise MaskError(
            f"fixture {fixture!r} gave a {type(model).__name__}, and only a torch.nn.Module can be "
            "masked; name the fixture that gives the model by fixture="
        )


def _mask_for(
    model: nn.Module, asked: MaskRequest
) -> tuple[FeatureMask | FeatureErasure, ProbeReport, dict[str, float]]:
    """Return what to take out of a model, on what evidence, and the largest d that then is left."""
    from pytest_watermark_guard.mitigation.mask import FeatureMask
    from pytest_watermark_guard.probing.probe import probe

    scenarios = resolve_scenarios(asked.scenarios, current_run().scenarios)
    arguments: dict[str, Any] = {"scenarios": scenarios, "layers": _LAYERS, "control": False}
    report = probe(model, **arguments)
    if asked.method == "mask":
        mask = FeatureMask.from_report(report, **asked.rule)
        left = {s.scenario: _without(s.differentiability, mask.units) for s in report}
        return mask, report, left
    return _erasure(model, report, arguments)


def _without(d: npt.NDArray[np.float64], units: tuple[int, ...]) -> float:
    """Return the largest d when these units never change, which is to say that theirs is 0.5."""
    left = d.copy()
    left[list(units)] = 0.5
    return float(left.max())


def _erasure(
    model: nn.Module, report: ProbeReport, arguments: dict[str, Any]
) -> tuple[FeatureErasure, ProbeReport, dict[str, float]]:
    import torch

    from pytest_watermark_guard.mitigation.erasure import FeatureErasure
    from pytest_watermark_guard.probing.recorded import recorded
    from pytest_watermark_guard.statistics.auroc import auroc
    from pytest_watermark_guard.watermarks.streams import UNMARKED

    with recorded(model, **arguments) as found:  # those of the probe: the model does not run again
        rows = {s: found.recording[s, "features"].columns() for s in found.recording.streams}
        erasure = FeatureErasure.from_features(
            rows[UNMARKED],
            {name: rows[name] for name in report.scenarios},
            weights=found.recording.weights,
            source=f"{found.model}, probed with {found.baseline}",
        )
        # In the precision of the masked model.
        tensors = {name: tensor.float() for name, tensor in erasure.tensors().items()}
        erased = {s: erasure.transform(torch.tensor(x), tensors).numpy() for s, x in rows.items()}
    areas = {name: auroc(erased[UNMARKED], erased[name]) for name in report.scenarios}
    return erasure, report, {name: float(0.5 + abs(a - 0.5).max()) for name, a in areas.items()}
