"""Notes that take forward passes of their own to find."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_watermark_guard.caching.keys import digest
from pytest_watermark_guard.caching.store import Store
from pytest_watermark_guard.probing.caches.contents import texts
from pytest_watermark_guard.probing.caches.keys import CacheKeys
from pytest_watermark_guard.reports.scores import Scores


@dataclass(frozen=True)
class NoteCache:
    """Keeps notes by the scores that gave rise to them: a model that changes gives others."""

    store: Store
    keys: CacheKeys

    def load(self, scores: Mapping[tuple[str, str], Scores]) -> tuple[str, ...] | None:
        """Return the notes that were found for these scores of these images, or None."""
        key = self._key(scores)
        if key is None:
            return None
        return self.store.get("notes", key, lambda payload: texts(json.loads(payload)))

    def save(self, scores: Mapping[tuple[str, str], Scores], notes: tuple[str, ...]) -> None:
        """Keep what `load` returns."""
        key = self._key(scores)
        if key is not None:
            self.store.put("notes", key, json.dumps(notes).encode())

    def _key(self, scores: Mapping[tuple[str, str], Scores]) -> str | None:
        content = self.keys.content(max(one.n_images for one in scores.values()))
        if content is None:
            return None
        areas = digest([(key, one.auroc) for key, one in scores.items()])
        return self.keys.key("notes/2", content, areas)
