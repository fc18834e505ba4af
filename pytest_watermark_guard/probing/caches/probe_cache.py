"""All that is cached of one probe."""

from __future__ import annotations

from typing import NamedTuple

from pytest_watermark_guard.caching.store import Store
from pytest_watermark_guard.probing.caches.activations import ActivationCache
from pytest_watermark_guard.probing.caches.keys import CacheKeys
from pytest_watermark_guard.probing.caches.notes import NoteCache
from pytest_watermark_guard.probing.caches.plans import PlanCache
from pytest_watermark_guard.probing.caches.results import ResultCache
from pytest_watermark_guard.probing.caches.scores import ScoreCache


class ProbeCache(NamedTuple):
    """One probe's caches, in one store and under the same keys."""

    activations: ActivationCache
    scores: ScoreCache
    results: ResultCache
    plans: PlanCache
    notes: NoteCache


def open_cache(store: Store, keys: CacheKeys) -> ProbeCache:
    """Open all caches of a probe."""
    return ProbeCache(
        ActivationCache(store, keys),
        ScoreCache(store, keys),
        ResultCache(store, keys),
        PlanCache(store, keys),
        NoteCache(store, keys),
    )
