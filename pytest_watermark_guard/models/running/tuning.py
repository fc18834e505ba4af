"""Finding the fastest plan that gives the same activations, while real work is done."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
import torch

from pytest_watermark_guard.errors import LayerError
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.running.agreement import (
    Activations,
    UnitShifts,
    are_equal,
    summarised,
)
from pytest_watermark_guard.models.running.compared import (
    ComparedPart,
    KnownAnswers,
    Rows,
    compared_images,
)
from pytest_watermark_guard.models.running.openvino_model import Converter, OpenVinoModel
from pytest_watermark_guard.models.running.plan import Plan
from pytest_watermark_guard.models.running.policy import TuningPolicy
from pytest_watermark_guard.models.running.runner import Runner

_FEW = 8  # inputs, about: enough to tell other numbers from rounding
_CLEARLY_FASTER = 0.4  # of the first pass's time, warming up included: nothing else is tried
_MAYBE_FASTER = 2.0  # times the fastest so far: what takes longer is not measured again
_MOST_BATCHES = 3  # that tell whether a plan agrees
_LARGEST_BATCH = {"cpu": 32}
_LITTLE = 0.3
_SAVED = 0.15  # of the work left, by compiling
_WARM_UPS = 3  # passes: CUDA graphs are warmed up, recorded, and replayed


class Tuner:
    """Proposes one way to run a model after the other, and keeps the fastest that agrees.

    Plans are tried first, then other batch sizes, and last, only where the work left repays it,
    `torch.compile`. Every plan is tried on a copy of the model, on the next batch of real work,
    and only if every unit agrees with the first pass to within the policy's bound. Where one of
    OpenVINO's is just beyond it, it is compared on a batch or two more: see `estimated_shifts`.

    Where OpenVINO runs the model, it does so from the first batch on, once a few inputs have come
    out as torch's own but for rounding: its float32 takes a quarter of the time or less.

    Parameters
    ----------
    recorder : ActivationRecorder
        The model and its layers, entered.
    first : Runner
        How it is run to begin with.
    policy : TuningPolicy
    sizes : bool
        Whether the batch size may change as well.
    only_float32 : bool
        Whether lower precision is out of the question.
    remembered : Plan, optional
        What was the fastest before: it is checked for agreement again, and taken.
    known : KnownAnswers or None
        Of the first images; where there are none, a few inputs are run for what they tell.
    converter : Converter
        Of the recorder.

    Attributes
    ----------
    started : bool
        Whether the first batch was run.
    finished : bool
        Whether nothing more will be tried.
    tuned : bool
        Whether the search went to its end and found something that was not known before.
    not_by_openvino : str
        Why OpenVINO does not run it, if that was tried.
    """

    def __init__(
        self,
        recorder: ActivationRecorder,
        first: Runner,
        policy: TuningPolicy,
        *,
        sizes: bool,
        only_float32: bool,
        remembered: Plan | None,
        known: KnownAnswers | None,
        converter: Converter,
    ) -> None:
        self._recorder = recorder
        self._converter = converter
        self._is_converted: bool | None = None  # None: not tried
        self._first = self._best = first
        self._known = known
        self._policy = policy
        self._sizes = sizes
        self._only_float32 = only_float32
        self._tried = {first.plan}
        self._search = self._proposals(remembered)
        self._rows_left = 0
        self._plans: Iterator[Plan] = self._asked()
        self._from_openvino = remembered is None or remembered.openvino
        self.started = self.finished = self.tuned = False
        self.not_by_openvino = ""

    def prepare(self, images: int, streams: int, rows: int) -> None:
        """Convert the model already, if OpenVINO will run the first batch.

        Parameters
        ----------
        images : int
            Of the first batch.
        streams : int
            How many times they come in it.
        rows : int
            How many inputs there are to run.
        """
        known = self._known
        if known is None or not self._from_openvino or not self._pays(known.seconds, rows):
            return
        plan = next(iter(self._policy.plans(self._first.plan, known.example.device)), None)
        if plan is not None and plan.openvino:
            size = min(plan.batch_size, compared_images(images, streams) * streams)
            example = known.example
            filled = example[torch.arange(size, device=example.device) % len(example)]
            self._convert(filled, images * streams)

    def start(self, inputs: torch.Tensor, streams: int, rows_left: int) -> Activations:
        """Run the first batch, which all that is tried is compared with.

        `streams` is how many times its images come in it: see `estimated_shifts`.
        """
        self.started = True
        self._rows_left = rows_left
        self._rows_at_once = len(inputs)
        self._compared = ComparedPart(inputs, streams)
        activations = None
        if self._from_openvino:
            plan = next(self._plans, None)
            if plan is not None and plan.openvino:
                activations = self._run_by_openvino(plan, inputs, streams)
            elif plan is not None:
                self._plans = chain([plan], self._plans)
        if activations is None:
            activations = self._best(inputs)
        self._compared.expect(activations)
        self._seconds = self._best.seconds  # of the best, per input
        return activations

    def _asked(self) -> Iterator[Plan]:
        """Give the policy's plans, which are made up when the first is asked for."""
        yield from self._policy.plans(self._first.plan, self._compared.inputs.device)

    def _run_by_openvino(
        self, plan: Plan, inputs: torch.Tensor, streams: int
    ) -> Activations | None:
        """Have OpenVINO run the first batch already, if that pays and gives the same numbers."""
        rows, expected, seconds = self._few(inputs, streams)
        if not self._pays(seconds, len(inputs) + self._rows_left):
            return None
        found: Activations = {}

        def are_the_same(_: Runner, activations: Activations) -> bool:
            found.update(activations)
            some = {layer: units[rows] for layer, units in found.items()}
            return some.keys() == expected.keys() and are_equal(expected, some)

        candidate = self._attempt(plan, inputs, are_the_same)
        if candidate is None:
            return None
        self._best = candidate
        return found

    def _pays(self, seconds: float, rows: int) -> bool:
        return seconds * rows >= self._policy.worth_tuning

    def _few(self, inputs: torch.Tensor, streams: int) -> tuple[Rows, Activations, float]:
        """Return some rows, what torch makes of them, and the seconds that it takes for each."""
        if self._known is None:
            rows = np.arange(0, len(inputs), -(-len(inputs) // _FEW))
            few = inputs[torch.from_numpy(rows).to(inputs.device)]  # a copy: the model may write
            return rows, self._first(few), self._first.seconds
        return *self._known.rows_of(inputs, streams), self._known.seconds

    @property
    def best(self) -> Runner:
        """The fastest so far."""
        return self._best

    def propose(
        self, rows_left: int, inputs: torch.Tensor, streams: int, activations: Activations
    ) -> Runner:
        """Return what to run the next batch with, once the batch before has been run.

        Parameters
        ----------
        rows_left : int
            How many inputs there still are to run.
        inputs : Tensor
            The batch before.
        streams : int
            How many times its images come in it.
        activations : dict of str to ndarray
            What the fastest so far, or what was proposed, made of it.
        """
        self._rows_left = rows_left
        if self._best.plan.openvino:
            self._before = inputs, streams, activations
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
        known = None
        if remembered is not None:
            known = yield from self._remembered(remembered)
        if remembered is not None and known is not None:
            if known is not self._best:
                self._best.close()
            self._best, self._seconds = known, known.seconds
            if remembered.compiled is False or not self._repays_compiling():
                return
            yield known
            self._seconds = known.seconds
        else:
            # Converted already, to try another precision costs little.
            worth = self._policy.worth_tuning * (_LITTLE if self._best.plan.openvino else 1)
            if self._seconds * self._rows_left < worth:
                return
            yield from self._try_plans()
            if self._sizes and not self._best.plan.openvino:  # it was converted for one size
                yield from self._try_batch_sizes()
        if self._repays_compiling():
            yield from self._try_compiling()
        # What is best without bfloat16 is not to be taken for the best of all.
        self.tuned = not self._only_float32

    def _remembered(self, plan: Plan) -> Generator[Runner, None, Runner | None]:
        """Return the model run by what was the fastest before, if that may be used and agrees."""
        if not self._allows(plan):
            return None
        if plan.openvino and not self._best.plan.openvino:
            return None  # it cannot run it, or there is too little to do
        size = plan.batch_size if self._sizes else self._best.plan.batch_size
        plan = replace(plan, batch_size=size, compiled=None)
        if plan in self._tried:
            return self._best
        return (yield from self._compared_until_sure(plan))

    def _allows(self, plan: Plan) -> bool:
        return plan.precision == "float32" or not self._only_float32

    def _try_plans(self) -> Generator[Runner, None, None]:
        """Try one plan after the other until one is clearly faster than the first pass."""
        first_pass = self._seconds
        # The first pass paid for warming up; OpenVINO compiles before it runs.
        measured_again = self._best.plan.openvino
        for plan in self._plans:
            if self._best.plan.openvino and not plan.openvino:
                return  # nothing else is as fast
            if not self._allows(plan):
                continue
            candidate = yield from self._compared_until_sure(plan)
            if candidate is None:
                continue
            yield candidate
            if not measured_again and candidate.seconds > _CLEARLY_FASTER * first_pass:
                yield from self._measure_again()
                measured_again = True
            if self._gains_nothing(candidate) and candidate.seconds < _MAYBE_FASTER * self._seconds:
                yield from self._measure_both_again(candidate)
            self._take_if_faster(candidate)
            if self._seconds <= _CLEARLY_FASTER * first_pass:
                return
        if not measured_again:
            yield from self._measure_again()

    def _measure_again(self) -> Generator[Runner, None, None]:
        yield self._best
        self._seconds = self._best.seconds

    def _measure_both_again(self, candidate: Runner) -> Generator[Runner, None, None]:
        """Let the faster of two passes count: one may have waited for threads that read images."""
        seconds = candidate.seconds
        yield self._best
        self._seconds = min(self._seconds, self._best.seconds)
        yield candidate
        candidate.seconds = min(seconds, candidate.seconds)

    def _gains_nothing(self, candidate: Runner) -> bool:
        return candidate.seconds >= self._policy.gain * self._seconds

    def _take_if_faster(self, candidate: Runner) -> bool:
        faster = not self._gains_nothing(candidate)
        if faster:
            self._best.close()
            self._best, self._seconds = candidate, candidate.seconds
        else:
            candidate.close()
        return faster

    def _try_batch_sizes(self) -> Generator[Runner, None, None]:
        """Raise the batch size as long as that helps; where it does not, lower it."""
        best, largest = self._best, _LARGEST_BATCH.get(self._compared.inputs.device.type, 1024)
        first_size = best.plan.batch_size
        for factor in (4.0, 0.5):
            if factor < 1 and best.plan.batch_size > first_size:
                break
            while 1 <= (size := int(best.plan.batch_size * factor)) <= largest:
                before = best.plan
                best.plan = replace(before, batch_size=size)
                yield best  # not measured: kernels are made for a new size
                yield best
                if self._gains_nothing(best):
                    best.plan = before
                    break
                self._seconds = best.seconds

    def _repays_compiling(self) -> bool:
        if self._compared.inputs.device.type not in self._policy.compiled_on:
            return False
        return self._seconds * self._rows_left * _SAVED > self._policy.compiling

    def _try_compiling(self) -> Generator[Runner, None, None]:
        plan = self._best.plan
        size = _even_share(self._rows_at_once, plan.batch_size)
        candidate = self._candidate(replace(plan, batch_size=size, compiled=True))
        if candidate is not None:
            yield candidate
            if self._take_if_faster(candidate):
                return
        self._best.plan = replace(plan, compiled=False)

    def _candidate(self, plan: Plan) -> Runner | None:
        """Return the model run by another plan, or None where it fails, disagrees, or was tried."""
        return self._attempt(plan, self._compared.inputs, self._agrees)

    def _agrees(self, candidate: Runner, found: Activations) -> bool:
        candidate.shift = summarised([self._compared.shifts(found)])
        return self._policy.agrees(candidate.shift)

    def _compared_until_sure(self, plan: Plan) -> Generator[Runner, None, Runner | None]:
        """As `_candidate`; what OpenVINO runs, and is in doubt, is compared on more batches."""
        # In torch, the model may have worked in place on the batch before.
        if not (plan.openvino and self._best.plan.openvino):
            return self._candidate(plan)
        policy = self._policy
        shifts: list[UnitShifts] = []

        def may_agree(_: Runner, found: Activations) -> bool:
            shifts.append(self._compared.shifts(found))
            first = summarised(shifts)
            return policy.agrees(first) or policy.doubtful(first)

        candidate = self._attempt(plan, self._compared.inputs, may_agree)
        if candidate is None:
            return None
        while not policy.agrees(shift := summarised(shifts)):
            more = None
            if len(shifts) < _MOST_BATCHES and policy.doubtful(shift):
                yield self._best
                more = self._shifts_of_batch_before(candidate)
            if more is None:
                candidate.close()
                return None
            shifts.append(more)
        candidate.shift = shift
        return candidate

    def _shifts_of_batch_before(self, candidate: Runner) -> UnitShifts | None:
        """Return what the batch before shows; None if it is short or the last, or the run fails."""
        if self._rows_left <= 0:  # nothing is left to be run by it
            return None
        inputs, streams, activations = self._before
        part = ComparedPart(inputs, streams)
        if part.images < self._compared.images:
            return None
        part.expect(activations)
        try:
            return part.shifts(candidate(part.inputs))
        except Exception:  # as in `_attempt`
            return None

    def _attempt(
        self, plan: Plan, inputs: torch.Tensor, agrees: Callable[[Runner, Activations], bool]
    ) -> Runner | None:
        """Run some inputs by another plan, and return what does so if the activations agree."""
        if plan.openvino:  # a shape of its input is a shape that was traced
            plan = replace(plan, batch_size=min(plan.batch_size, len(self._compared.inputs)))
        if plan in self._tried:
            return None
        self._tried.add(plan)
        candidate = None
        try:
            other = self._converted(plan) if plan.openvino else self._copied(plan)
            if other is None:
                return None
            candidate = Runner(other, plan, self._first.clock, is_copy=True)
            for _ in range(_WARM_UPS if plan.compiled else 1):
                # In torch, the model may work in place.
                activations = candidate(inputs if plan.openvino else inputs.clone())
            taken = agrees(candidate, activations)
            refusal = "it gave other numbers than torch"
        except Exception as error:  # a model may refuse a layout or a type in any way
            taken, refusal = False, _in_short(error)
        except BaseException:
            if candidate is not None:
                candidate.close()
            raise
        if not taken and candidate is not None:
            candidate.close()
        if not taken and plan.openvino and not self._best.plan.openvino:
            self.not_by_openvino = refusal
        return candidate if taken else None

    def _converted(self, plan: Plan) -> OpenVinoModel | None:
        self._convert(self._compared.inputs[: plan.batch_size], self._rows_at_once)
        return self._converter.compiled(plan.precision) if self._is_converted else None

    def _convert(self, example: torch.Tensor, rows_at_once: int) -> None:
        """Have the model converted for batches like the example, once; it may fail in any way."""
        if self._is_converted is not None:
            return
        plans = self._policy.plans(self._first.plan, example.device)
        try:
            self._converter.start(
                example,
                [p.precision for p in plans if p.openvino and self._allows(p)],
                at_once=-(-rows_at_once // len(example)),
            )
            self._is_converted = True
        except Exception as error:  # as in `_attempt`
            self._is_converted, self.not_by_openvino = False, _in_short(error)

    def _copied(self, plan: Plan) -> ActivationRecorder | None:
        recorder = self._recorder.copied()
        if recorder is None:
            return None
        if plan.channels_last:
            recorder.module.to(memory_format=torch.channels_last)
        if plan.precision == "bfloat16 weights":
            recorder.module.to(torch.bfloat16)
        if plan.compiled:
            recorder.compile(plan.batch_size)
        return recorder


def _in_short(error: Exception) -> str:
    """Return what a report, whose line is full, has room for."""
    return str(error) if isinstance(error, LayerError) else f"it raised {type(error).__name__}"


def _even_share(rows: int, size: int) -> int:
    """Return a batch size that divides `rows`, if one above half of `size` does, else `size`."""
    return next((s for s in range(size, size // 2, -1) if rows % s == 0), size)
