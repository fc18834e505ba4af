"""Making a probe ready, here and in the workers of an engine."""

from __future__ import annotations

from dataclasses import replace

from pytest_watermark_guard.probing.engines.opening import one_for_all
from pytest_watermark_guard.probing.engines.shares import shared_out
from pytest_watermark_guard.probing.prepare import ProbeContext, ProbeRequest, prepare
from pytest_watermark_guard.probing.running import Compute


def prepare_with_engine(request: ProbeRequest) -> tuple[ProbeContext, Compute | None]:
    """Make a probe ready; return too what runs its model, None for this process.

    Raises
    ------
    WatermarkGuardError
        As `probe`.
    """
    if request.settings.engine is None:
        return prepare(request), None
    precision, notes = one_for_all(request.settings.precision)
    request = replace(request, settings=replace(request.settings, precision=precision))
    compute = shared_out(request)
    context = prepare(request)
    return context._replace(notes=(*notes, *context.notes)), compute
