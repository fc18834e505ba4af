"""What a model answers to the first images: before anything cached is used, it answers them again.

Keys do not read code: a changed ``forward``, hook, library or closure shows by what it does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch

from pytest_watermark_guard.models.running.agreement import FLOAT32_ROUNDING, are_close
from pytest_watermark_guard.probing.activation_buffer import Array
from pytest_watermark_guard.probing.prepare import ProbeContext
from pytest_watermark_guard.probing.running import FoundLayers, ImageShard, OpenModel

Answers = Mapping[tuple[str, str], Array]
"""By stream and layer, shape [k, units], of the first k images."""

CHANGED = (
    "what was cached for these weights and images is not used: the model answers the first images "
    "otherwise than when it was computed (its code, its hooks or a library changed, or it draws at "
    "random)"
)
_IMAGES = 2
_LOWER_ROUNDING = 3e-2, 1e-2  # as `FLOAT32_ROUNDING`


class FirstAnswers:
    """A model's activations of the first images, computed when they are asked for.

    Every stream is a forward pass of its own, in the precision that was asked for and not in the
    fastest one: the same input each time, whatever else is probed.

    Parameters
    ----------
    context : ProbeContext

    Attributes
    ----------
    found : FoundLayers
        For whoever runs the model next.
    """

    def __init__(self, context: ProbeContext) -> None:
        self.found = FoundLayers()
        self._context = context

    def of(self, streams: Iterable[str]) -> Answers:
        """Return the answers to the first images of some streams."""
        wanted = {*streams}
        known = self.found.answers
        missing = wanted - {stream for stream, _ in known}
        if missing:
            self._compute(tuple(s for s in self._context.batches.streams if s in missing))
        return {key: rows for key, rows in known.items() if key[0] in wanted}

    def _compute(self, streams: tuple[str, ...]) -> None:
        context, known = self._context, self.found.answers
        images = min(_IMAGES, len(context.batches.baseline))
        plan = replace(context.execution.plan, batch_size=images)
        execution = replace(context.execution, plan=plan, tuning=False, sizes=False, progress=False)
        shard = ImageShard(0, images, streams)
        with (
            OpenModel(found=self.found) as model,
            closing(model(context.module, context.batches, execution, shard)) as chunks,
        ):
            for chunk in chunks:
                self.found.seconds = chunk.seconds
                for key, rows in chunk.activations.items():
                    before = known.get(key)
                    known[key] = rows if before is None else np.concatenate([before, rows])

    def are(self, before: Answers, layers: Collection[str]) -> bool:
        """Tell whether the model still has these layers and answers as it did, but for rounding."""
        now = self.of(stream for stream, _ in before)
        if {layer for _, layer in now} != {*layers}:
            return False
        context = self._context
        whole = context.execution.plan.precision == "float32"
        float32 = whole and context.batches.dtype in (torch.float32, torch.float64)
        within = FLOAT32_ROUNDING if float32 else _LOWER_ROUNDING
        return all(
            key in now and now[key].shape == old.shape and are_close(old, now[key], within)
            for key, old in before.items()
        )
