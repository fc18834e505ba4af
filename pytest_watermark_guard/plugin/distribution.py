"""With pytest-xdist, whichever way tests are dealt out: one worker for all gates of a model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

_ONE_BY_ONE = ("LoadScheduling", "WorkStealingScheduling")


def keep_models_together(
    scheduler: Any, config: pytest.Config, log: Any, models: Collection[str]
) -> Any:
    """Return a scheduler of xdist that takes the gates of a model for one piece of work.

    Those of the scheduler's own groups are kept for all other tests. ``load`` and ``worksteal``
    know no groups: there the others are dealt out one by one, as ``loadgroup`` does it. A scheduler
    of another plugin is left as it is, unless it is made of one of xdist's that know groups;
    ``each`` runs everything everywhere, and is too.
    """
    from xdist.scheduler.loadscope import LoadScopeScheduling

    if type(scheduler).__name__ in _ONE_BY_ONE and type(scheduler).__module__.startswith("xdist."):
        scheduler = LoadScopeScheduling(config, log)
        scheduler._split_scope = lambda nodeid: nodeid
    if not isinstance(scheduler, LoadScopeScheduling):
        return scheduler
    # The way that xdist gives to group tests by what they are called.
    others = scheduler._split_scope

    def group(nodeid: str) -> str:
        spec = next((spec for spec in models if nodeid.startswith(f"{spec}::")), None)
        return others(nodeid) if spec is None else spec

    scheduler._split_scope = group
    return scheduler
