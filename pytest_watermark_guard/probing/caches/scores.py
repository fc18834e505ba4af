"""Scores of activations that are cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.caching.keys import digest
from pytest_watermark_guard.caching.store import Store
from pytest_watermark_guard.probing.caches.contents import are_scores
from pytest_watermark_guard.probing.caches.keys import CacheKeys
from pytest_watermark_guard.probing.recording import Recording, UnitScores

Pair = tuple[str, str]
PairScores = Mapping[Pair, UnitScores]
"""By pair of streams."""


@dataclass(frozen=True)
class ScoreCache:
    """Keeps AUROC and standard errors by layer and pair of streams."""

    store: Store
    keys: CacheKeys

    def load(self, recording: Recording, layer: str, pairs: Sequence[Pair]) -> PairScores:
        """Return the scores of those pairs that are kept."""
        scores: dict[Pair, UnitScores] = {}
        content = self.keys.content(len(recording))
        if content is None:
            return scores
        units = recording[pairs[0][0], layer].units if pairs else 0
        for pair in pairs:
            key = self._key(recording, content, layer, pair)
            array = self.store.get_array("scores", key, mmap=False, check=partial(_fits, units))
            if array is not None:
                area, error = np.split(array[:-2], 2)
                low, high = map(float, array[-2:])
                scores[pair] = UnitScores(area, error, (low, high))
        return scores

    def save(self, recording: Recording, layer: str, scores: PairScores) -> None:
        """Keep what `load` returns."""
        content = self.keys.content(len(recording))
        if content is None:
            return
        for pair, scored in scores.items():
            key = self._key(recording, content, layer, pair)
            self.store.put_array("scores", key, np.concatenate(scored))

    def _key(self, recording: Recording, content: str, layer: str, pair: Pair) -> str:
        # With the sums: activations under the same name may have been computed anew.
        rows = [recording[stream, layer].columns() for stream in pair]
        sums = digest([(part[:1], part.sum(axis=0, dtype=np.float64)) for part in rows])
        drawn = (self.keys.streams[stream] for stream in pair)
        return self.keys.key(*drawn, layer, content, recording.run, sums)


def _fits(units: int, array: npt.NDArray[Any]) -> bool:
    return are_scores(array) and len(array) == 2 * units + 2
