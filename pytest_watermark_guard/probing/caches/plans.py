"""The fastest way to run a model, as an earlier probe found it."""

from __future__ import annotations

import json

from pytest_watermark_guard.caching.store import Store
from pytest_watermark_guard.models.running.plan import Plan
from pytest_watermark_guard.probing.caches.keys import CacheKeys


class PlanCache:
    """Keeps the fastest plan for one model on this machine.

    Parameters
    ----------
    store : Store
    keys : CacheKeys
    """

    def __init__(self, store: Store, keys: CacheKeys) -> None:
        self._store = store
        self._key = keys.plan

    def load(self) -> Plan | None:
        """Return the plan, where one is known."""
        text = self._store.get("plans", self._key)
        return None if text is None else Plan(**json.loads(text))

    def save(self, plan: Plan) -> None:
        """Keep a plan."""
        self._store.put("plans", self._key, json.dumps(plan.to_dict()).encode())
