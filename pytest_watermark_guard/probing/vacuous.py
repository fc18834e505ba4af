"""Whether a probe had anything to measure: units that never change react to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pytest_watermark_guard.probing.recording import Recording
from pytest_watermark_guard.reports.impact import Impact
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.text import count

_ROUNDINGS = 4  # of a unit's largest number: another batch size can change a constant by so much


def dead_units(recording: Recording) -> dict[str, int]:
    """Count, by layer, the units that are the same for all images, marked and unmarked.

    Layers without any are left out. Changes within rounding are none.
    """
    counts = {}
    for layer in recording.names:
        dead = 0
        for columns in recording.slices(layer):
            low = np.min([rows.min(axis=0) for rows in columns], axis=0).astype(np.float64)
            high = np.max([rows.max(axis=0) for rows in columns], axis=0).astype(np.float64)
            rounding = _ROUNDINGS * np.finfo(columns[0].dtype).eps
            same = high - low <= rounding * np.maximum(np.abs(low), np.abs(high))
            dead += int(same.sum())
        if dead:
            counts[layer] = dead
    return counts


def is_saturated(recording: Recording) -> bool:
    """Tell whether every output is exactly 0 or 1, as a softmax of large logits is."""
    return "logits" in recording.names and all(
        _is_binary(rows) for columns in recording.slices("logits") for rows in columns
    )


def _is_binary(rows: npt.NDArray[np.floating]) -> bool:
    return bool(((rows == 0) | (rows == 1)).all())


def warnings_of(
    report: ProbeReport, saturated: bool, module: nn.Module
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return notes on a model that tells little or nothing.

    Returns
    -------
    first : tuple of str
        Those that put the whole report in doubt.
    last : tuple of str
        Those on some units.
    """
    first = []
    if dead := report.dead_layers:
        first.append(
            f"{' and '.join(dead)}: no unit ever changes, whatever the image, so that nothing can "
            "be said of them; check that the weights are loaded and their precision is wide enough"
        )
    if saturated and "logits" not in dead:
        first.append(
            "logits: every output is exactly 0 or 1, as of a saturated softmax, so that only "
            "changed predictions show; probe what goes into it"
        )
    if _untouched(module):
        alike = ", and all images get one prediction" if _one_prediction(report.impact) else ""
        first.append(
            f"the weights look untouched: no batch norm has ever seen a batch{alike}; check that "
            "the checkpoint is loaded"
        )
    return tuple(first), tuple(_some_dead(report))


def _some_dead(report: ProbeReport) -> Iterator[str]:
    for layer, dead in report.dead_units.items():
        if layer not in report.dead_layers:
            units = len(next(scores.names for scores in report if scores.layer == layer))
            verb = "never changes" if dead == 1 else "never change"
            yield f"{layer}: {dead:,} of {count(units, 'unit')} {verb}"


def _untouched(module: nn.Module) -> bool:
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    return bool(norms) and all(
        norm.num_batches_tracked is not None
        and norm.running_mean is not None
        and norm.running_var is not None
        and not norm.num_batches_tracked.any()
        and not norm.running_mean.any()
        and bool((norm.running_var == 1).all())
        # Where norms were folded into convolutions and taken apart again, their biases are left.
        and (norm.bias is None or not norm.bias.any())
        for norm in norms
    )


def _one_prediction(impact: Mapping[str, Impact]) -> bool:
    counts: Sequence[int] = ()
    for one in impact.values():
        counts = () if one.by_class is None else one.by_class.predicted_baseline
    return len(counts) > 0 and sum(number > 0 for number in counts) == 1
