"""Which ways to run a model are tried, and when one of them is taken."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from operator import attrgetter

import torch

from pytest_watermark_guard.models.running.agreement import Shift
from pytest_watermark_guard.models.running.plan import Plan, faster_plans


@dataclass(frozen=True)
class TuningPolicy:
    """Which plans are tried, and when one of them is taken.

    Attributes
    ----------
    plans : callable
        Takes the plan to begin with and the model's device; returns the plans to try, in order.
        They are asked for one at a time, until one is clearly the fastest.
    agrees : callable
        Tells of an estimated `Shift` of A whether it is small enough.
    doubtful : callable
        Tells of one that is not, whether more inputs may show that it is.
    worth_tuning : float
        Seconds of work left below which trying costs more than it saves: to convert a network for
        OpenVINO takes 0.5 s (MobileNet V2) to 3 s (DenseNet-161) on two cores.
    gain : float
        Share of the fastest time so far that a plan must stay below; a smaller gain is noise.
    compiling : float
        Seconds that `torch.compile` takes, with much to spare.
    compiled_on : collection of str
        Types of devices where it is tried. On a CPU, OpenVINO is faster.
    """

    plans: Callable[[Plan, torch.device], Iterable[Plan]] = faster_plans
    agrees: Callable[[Shift], bool] = attrgetter("agrees")
    doubtful: Callable[[Shift], bool] = attrgetter("is_doubtful")
    worth_tuning: float = 2.0
    gain: float = 0.97
    compiling: float = 60.0
    compiled_on: Collection[str] = ("cuda",)
