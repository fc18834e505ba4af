"""The fastest way to run a model, as an earlier probe found it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pytest_watermark_guard.caching.store import Store
from pytest_watermark_guard.models.running.plan import Plan
from pytest_watermark_guard.probing.caches.keys import CacheKeys


@dataclass(frozen=True)
class PlanCache:
    """Keeps the fastest plan for one model on this machine."""

    store: Store
    keys: CacheKeys

    def load(self) -> Plan | None:
        """Return the plan, where one is known."""
        return self.store.get("plans", self.keys.plan, lambda p: Plan.from_dict(json.loads(p)))

    def save(self, plan: Plan) -> None:
        """Keep a plan."""
        self.store.put("plans", self.keys.plan, json.dumps(plan.to_dict()).encode())
