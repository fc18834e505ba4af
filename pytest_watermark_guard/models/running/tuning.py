"""Finding the fastest plan that gives the same activations, while real work is done."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from pytest_watermark_guard.models.running.folding import fold_batch_norms
from pytest_watermark_guard.models.running.fusing import fuse_convolutions
from pytest_watermark_guard.models.running.plan import Plan, faster_plans
from pytest_watermark_guard.models.running.runner import Activations, Runner

AGREEMENT = 0.2
"""How far a unit's activations may be from plain float32, in its own standard deviations.

Noise of r standard deviations moves a binormal A = Φ(z) to Φ(z / √(1 + r²)): at 0.2 by 0.005 at
most. Chance adds as much for a unit at the bound, with 1,000 images; most units are far closer.
"""

_COMPARED = 32  # inputs
_CLEARLY_FASTER = 0.4  # of the first pass's time, warming up included: nothing else is tried
_LARGEST_BATCH = {"cpu": 32}
_SAVED = 0.15  # of the work left, by compiling
_WARM_UPS = 3  # passes: CUDA graphs are warmed up, recorded, and replayed
# Below this share of its mean, a unit's variation is nothing but rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class TuningPolicy:
    """Which plans are tried, and when one of them is taken.

    Attributes
    ----------
    plans : callable
        Takes the plan to begin with and the model's device; returns the plans to try, in order.
        They are asked for one at a time, until one is clearly the fastest.
    agreement : float
        How far a unit's activations may be from those of the first plan, see `disagreement`.
    worth_tuning : float
        Seconds of work left below which trying costs more than it saves.
    gain : float
        Share of the fastest time so far that a plan must stay below; a smaller gain is noise.
    compiling : float
        Seconds that `torch.compile` takes. On two cores with AVX-512, MobileNet V2 and ResNet-18
        take 6 to 11 s (14 to 35 s the first time on a machine) and save 0 to 23 % of a pass.
        Larger networks take longer.
    """

    plans: Callable[[Plan, torch.device], Iterable[Plan]] = faster_plans
    agreement: float = AGREEMENT
    worth_tuning: float = 5.0
    gain: float = 0.97
    compiling: float = 60.0


class Tuner:
    """Proposes one way to run a model after the other, and keeps the fastest that agrees.

    Plans are tried first, then other batch sizes, and last, only where the work left repays it,
    `torch.compile`. Every plan is tried on a copy of the model, on the next batch of real work,
    and only if every unit agrees with the first pass to within the policy's bound.

    Parameters
    ----------
    first : Runner
        How the model is run to begin with.
    policy : TuningPolicy
    sizes : bool
        Whether the batch size may change as well.
    only_float32 : bool
        Whether lower precision is out of the question.
    remembered : Plan, optional
        What was the fastest before: it is checked for agreement again, and taken.

    Attributes
    ----------
    started : bool
        Whether the first batch was run.
    finished : bool
        Whether nothing more will be tried.
    tuned : bool
        Whether the search went to its end and found something that was not known before.
    """

    def __init__(
        self,
        first: Runner,
        policy: TuningPolicy,
        *,
        sizes: bool,
        only_float32: bool,
        remembered: Plan | None,
    ) -> None:
        self._first = self._best = first
        self._policy = policy
        self._sizes = sizes
        self._only_float32 = only_float32
        self._tried = {first.plan}
        self._search = self._proposals(remembered)
        self._rows_left = 0
        self.started = self.finished = self.tuned = False

    def start(self, inputs: torch.Tensor) -> Activations:
        """Run the first batch, which all that is tried is compared with."""
        self.started = True
        # Spread over all streams: a unit may be silent without a mark.
        compared = np.unique(np.linspace(0, len(inputs) - 1, _COMPARED).astype(int))
        # Indexing copies, and does so before the model may work in place.
        self._inputs = inputs[torch.from_numpy(compared).to(inputs.device)]
        activations = self._first(inputs)
        self._expected = {layer: units[compared] for layer, units in activations.items()}
        self._rows_at_once = len(inputs)
        self._seconds = self._first.seconds  # of the best, per input
        return activations

    def propose(self, rows_left: int) -> Runner:
        """Return what to run the next batch with, once the batch before has been run.

        Parameters
        ----------
        rows_left : int
            How many inputs there still are to run.
        """
        self._rows_left = rows_left
        try:
            return next(self._search)
        except StopIteration:
            self.finished = True
            return self._best

    def close(self) -> None:
        """Give up the search."""
        self._search.close()
        self._best.close()

    def _proposals(self, remembered: Plan | None) -> Generator[Runner, None, None]:
        known = None if remembered is None else self._remembered(remembered)
        if remembered is not None and known is not None:
            self._best, self._seconds = known, known.seconds
            if remembered.compiled is False or not self._repays_compiling():
                return
            yield known
            self._seconds = known.seconds
        else:
            if self._seconds * self._rows_left < self._policy.worth_tuning:
                return
            yield from self._try_plans()
            if self._sizes:
                yield from self._try_batch_sizes()
        if self._repays_compiling():
            yield from self._try_compiling()
        # What is best without bfloat16 is not to be taken for the best of all.
        self.tuned = not self._only_float32

    def _remembered(self, plan: Plan) -> Runner | None:
        """Return the model run by what was the fastest before, if that may be used and agrees."""
        if self._only_float32 and plan.precision != "float32":
            return None
        size = plan.batch_size if self._sizes else self._best.plan.batch_size
        plan = replace(plan, batch_size=size, compiled=None)
        return self._best if plan in self._tried else self._candidate(plan)

    def _try_plans(self) -> Generator[Runner, None, None]:
        """Try one plan after the other until one is clearly faster than the first pass."""
        first_pass = self._seconds
        measured_again = False
        for plan in self._policy.plans(self._best.plan, self._inputs.device):
            if self._only_float32 and plan.precision != "float32":
                continue
            candidate = self._candidate(plan)
            if candidate is None:
                continue
            yield candidate
            if not measured_again and candidate.seconds > _CLEARLY_FASTER * first_pass:
                yield from self._measure_again()  # the first pass paid for warming up
                measured_again = True
            self._take_if_faster(candidate)
            if self._seconds <= _CLEARLY_FASTER * first_pass:
                return
        if not measured_again:
            yield from self._measure_again()

    def _measure_again(self) -> Generator[Runner, None, None]:
        yield self._best
        self._seconds = self._best.seconds

    def _take_if_faster(self, candidate: Runner) -> bool:
        faster = candidate.seconds < self._policy.gain * self._seconds
        if faster:
            self._best.close()
            self._best, self._seconds = candidate, candidate.seconds
        else:
            candidate.close()
        return faster

    def _try_batch_sizes(self) -> Generator[Runner, None, None]:
        """Raise the batch size as long as that helps; where it does not, lower it."""
        best, largest = self._best, _LARGEST_BATCH.get(self._inputs.device.type, 1024)
        first_size = best.plan.batch_size
        for factor in (4.0, 0.5):
            if factor < 1 and best.plan.batch_size > first_size:
                break
            while 1 <= (size := int(best.plan.batch_size * factor)) <= largest:
                before = best.plan
                best.plan = replace(before, batch_size=size)
                yield best  # not measured: kernels are made for a new size
                yield best
                if best.seconds >= self._policy.gain * self._seconds:
                    best.plan = before
                    break
                self._seconds = best.seconds

    def _repays_compiling(self) -> bool:
        return self._seconds * self._rows_left * _SAVED > self._policy.compiling

    def _try_compiling(self) -> Generator[Runner, None, None]:
        plan = self._best.plan
        size = _even_share(self._rows_at_once, plan.batch_size)
        candidate = self._candidate(replace(plan, batch_size=size, fused=False, compiled=True))
        if candidate is not None:
            yield candidate
            if self._take_if_faster(candidate):
                return
        self._best.plan = replace(plan, compiled=False)

    def _candidate(self, plan: Plan) -> Runner | None:
        """Return a copy of the model run by another plan, or None where it fails or disagrees.

        A part of the plan that the model has no use for is left out, such as folding without any
        batch norm; None, too, if what remains was tried already.
        """
        candidate = None
        try:
            recorder = self._first.recorder.copied()
            if recorder is None:
                return None
            module = recorder.module
            few = self._inputs[: plan.batch_size]
            if plan.folded and not fold_batch_norms(module, few.clone(), recorder.tapped):
                plan = replace(plan, folded=False)
            if plan.channels_last:
                module.to(memory_format=torch.channels_last)
            if plan.precision == "bfloat16 weights":
                module.to(torch.bfloat16)
                few = few.to(torch.bfloat16)
            if plan.fused and not fuse_convolutions(module, few.clone(), recorder.tapped):
                plan = replace(plan, fused=False)
            if plan in self._tried:
                return None
            self._tried.add(plan)
            if plan.compiled:
                recorder.compile(plan.batch_size)
            candidate = Runner(recorder, plan, self._first.clock, is_copy=True)
            for _ in range(_WARM_UPS if plan.compiled else 1):
                activations = candidate(self._inputs.clone())  # the model may work in place
            agrees = disagreement(self._expected, activations) <= self._policy.agreement
        except Exception:  # a model may refuse a layout or a type in any way; then it is not used
            agrees = False
        except BaseException:
            if candidate is not None:
                candidate.close()
            raise
        if not agrees and candidate is not None:
            candidate.close()
        return candidate if agrees else None


def disagreement(expected: Activations, computed: Activations) -> float:
    """Return how far activations are apart, in standard deviations of the unit.

    Parameters
    ----------
    expected, computed : dict of str to ndarray, shape [n, units]
        The same inputs' activations by layer.

    Returns
    -------
    float
        Root mean square over the inputs, of the worst unit.
    """
    worst = 0.0
    for layer, units in expected.items():
        wanted = units.astype(np.float64)
        noise = np.sqrt(np.square(computed[layer] - wanted).mean(axis=0))
        own = wanted.std(axis=0) + _ROUNDING * np.abs(wanted).max(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(noise == 0, 0.0, noise / own)
        # NaN compares false with everything: it must not pass for agreement.
        worst = max(worst, float(np.nan_to_num(ratio, nan=np.inf).max(initial=0.0)))
    return worst


def _even_share(rows: int, size: int) -> int:
    """Return a batch size that divides `rows`, if one above half of `size` does, else `size`."""
    return next((s for s in range(size, size // 2, -1) if rows % s == 0), size)
