"""What the fixture ``wm_mask`` does: the marked test's model is masked, and then as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_watermark_guard.errors import MaskError, WatermarkGuardError
from pytest_watermark_guard.plugin.mask_marker import MASK_MARKER, REQUEST, MaskRequest
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.reports.log_lines import inert
from pytest_watermark_guard.reports.masked import Fall, Masked
from pytest_watermark_guard.watermarks.scenarios import resolve_scenarios

if TYPE_CHECKING:
    from torch import nn

    from pytest_watermark_guard.mitigation.erasure import FeatureErasure
    from pytest_watermark_guard.mitigation.mask import FeatureMask
    from pytest_watermark_guard.reports.probe import ProbeReport

MASKED = pytest.StashKey[Masked]()


@contextmanager
def masking(request: pytest.FixtureRequest) -> Iterator[FeatureMask | FeatureErasure]:
    """Mask the model of a marked test within the block; afterwards it is exactly as before.

    What was masked is left in the stash of the test's item.
    """
    from torch import nn

    from pytest_watermark_guard.mitigation.apply import apply_mask, masked_at
    from pytest_watermark_guard.mitigation.mask import FeatureMask
    from pytest_watermark_guard.models.snapshot import restored

    if REQUEST not in request.node.stash:
        pytest.fail(
            f"the fixture wm_mask tells what @pytest.mark.{MASK_MARKER} has masked, and this test "
            "has no such marker",
            pytrace=False,
        )
    asked = request.node.stash[REQUEST]
    model = request.getfixturevalue(asked.fixture)
    with ExitStack() as stack:
        try:
            if not isinstance(model, nn.Module):
                raise MaskError(
                    f"fixture {asked.fixture!r} gave a {type(model).__name__}, and only a "
                    "torch.nn.Module can be masked; name the fixture that gives the model by "
                    "fixture="
                )
            mask, report, after = _mask_for(model, asked)
            stack.enter_context(restored(model))
            apply_mask(model, mask, inplace=True)
        except WatermarkGuardError as error:
            # The message says it all; a traceback through us helps nobody.
            message = inert(f"@pytest.mark.{MASK_MARKER}: {error}")
            raise pytest.fail.Exception(message, pytrace=False) from None
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


def _mask_for(
    model: nn.Module, asked: MaskRequest
) -> tuple[FeatureMask | FeatureErasure, ProbeReport, dict[str, float]]:
    """Return what to take out of a model, on what evidence, and the largest d that then is left."""
    from pytest_watermark_guard.mitigation.mask import FeatureMask
    from pytest_watermark_guard.probing.probe import probe

    scenarios = resolve_scenarios(asked.scenarios, current_run().scenarios)
    arguments: dict[str, Any] = {"scenarios": scenarios, "layers": ("features",), "control": False}
    report = probe(model, **arguments)
    if asked.method == "mask":
        mask = FeatureMask.from_report(report, **asked.rule)
        largest = {}
        for scores in report:
            d = scores.differentiability.copy()
            d[list(mask.units)] = 0.5  # they never change any more
            largest[scores.scenario] = float(d.max())
        return mask, report, largest
    return _erasure(model, report, arguments)


def _erasure(
    model: nn.Module, report: ProbeReport, arguments: dict[str, Any]
) -> tuple[FeatureErasure, ProbeReport, dict[str, float]]:
    from pytest_watermark_guard.mitigation.erasure import FeatureErasure
    from pytest_watermark_guard.probing.recorded import recorded
    from pytest_watermark_guard.watermarks.streams import UNMARKED

    # Those of the probe: the model does not run again.
    with recorded(model, **arguments) as activations:
        recording = activations.recording
        rows = {stream: recording[stream, "features"].columns() for stream in recording.streams}
        erasure = FeatureErasure.from_features(
            rows[UNMARKED],
            {name: rows[name] for name in report.scenarios},
            weights=recording.weights,
            source=f"{activations.model}, probed with {activations.baseline}",
        )
    largest = {unit.scenario: unit.differentiability for unit in erasure.remaining}
    return erasure, report, largest
