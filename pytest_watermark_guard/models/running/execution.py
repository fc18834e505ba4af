"""Running a model the fastest way that gives the same activations, found on the first batches."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.running.folding import fold_batch_norms
from pytest_watermark_guard.models.running.fusing import fuse_convolutions
from pytest_watermark_guard.models.running.runner import Activations, Runner

AGREEMENT = 0.2
"""How far a unit's activations may be from plain float32, in its own standard deviations.

Noise of r standard deviations draws a binormal A = Φ(z) to Φ(z / √(1 + r²)): at 0.2 by 0.005 at
most. Chance adds as much for a unit at the bound, with 1,000 images; most units are far closer.
"""

_COMPARED = 32  # inputs
_WORTH_TUNING = 5.0  # seconds of work left; below it, trying costs more than it saves
_GAIN = 0.97  # of the time so far: less of an improvement is noise
_CLEARLY = 0.4  # of the first pass's time, warming up included: no need to try anything else
_LARGEST_BATCH = {"cpu": 32}
# On two cores with AVX-512, MobileNet V2 and ResNet-18 take 6 to 11 s to compile (14 to 35 s the
# first time on a machine) and save 0 to 23 % of a pass. Larger networks take longer.
_COMPILING = 60.0  # seconds
_SAVED = 0.15  # of the work left
_WARM_UPS = 3  # passes: CUDA graphs are warmed up, recorded, and replayed
# Below this share of its mean, a unit's variation is rounding, and differs as it likes.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Plan:
    """One way to run a model.

    Attributes
    ----------
    batch_size : int
        Images in a forward pass.
    precision : {"float32", "bfloat16", "bfloat16 weights"}
        ``bfloat16`` is autocast; with weights in bfloat16 everything is computed in it.
    folded : bool
        Batch norm is folded into the convolutions before it.
    channels_last : bool
        Memory format of weights and input.
    fused : bool
        Convolutions compute the activation after them; on a CPU, and not under autocast.
    compiled : bool or None
        By ``torch.compile``, on a GPU with CUDA graphs. None: not, and whether it would be faster
        was not tried.
    """

    batch_size: int
    precision: str = "float32"
    folded: bool = False
    channels_last: bool = False
    fused: bool = False
    compiled: bool | None = None

    def __str__(self) -> str:
        parts = [self.precision]
        parts += ["batch norm folded"] * self.folded
        parts += ["channels last"] * self.channels_last
        parts += ["activations fused"] * self.fused
        parts += ["compiled"] * bool(self.compiled)
        return ", ".join(parts)

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the input."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which ``Plan(**data)`` reads."""
        return asdict(self)


class Executor:
    """Runs a model over all batches; use it as a context manager.

    With `tuning`, the first batches are run in several ways: all at once of memory format, folded
    batch norm, fused activations and, where the hardware has it, bfloat16; where that is not
    clearly the fastest, with some of them left out; then by other batch sizes; last, and only
    where the work left repays it, by `torch.compile`. Whatever is tried works on a copy, does real
    work, and counts only if every unit agrees with plain float32 to within `AGREEMENT`.

    Parameters
    ----------
    recorder : ActivationRecorder
        The model and its layers, entered.
    plan : Plan
        How to begin, and how to go on without `tuning`.
    rows : int
        How many inputs there will be: trying pays only for long runs.
    tuning : bool
        Whether to look for a faster way.
    sizes : bool
        Whether the batch size may change as well.
    only_float32 : bool, default False
        Whether lower precision is out of the question.
    remembered : Plan, optional
        What was the fastest before: it is checked for agreement again, and taken.

    Attributes
    ----------
    plan : Plan
        How the model is run now.
    tuned : bool
        Whether `plan` was found to be the fastest, and is news.
    """

    def __init__(
        self,
        recorder: ActivationRecorder,
        plan: Plan,
        rows: int,
        *,
        tuning: bool,
        sizes: bool,
        only_float32: bool = False,
        remembered: Plan | None = None,
    ) -> None:
        if recorder.batch_size:  # part of an exported program
            plan, sizes = replace(plan, batch_size=recorder.batch_size), False
        self._original = recorder
        self._start = plan
        self._current = _Candidate(recorder, plan)
        self._only_float32 = only_float32
        self._rows = rows
        self._batch = 0
        self._sizes = sizes
        self._search = self._tune(remembered) if tuning else None
        self._reference: tuple[torch.Tensor, Activations] | None = None
        self._tried = {plan}
        self.tuned = False

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._search is not None:
            self._search.close()
        self._current.close()

    @property
    def plan(self) -> Plan:
        """How the model is run now."""
        return self._current.plan

    def __call__(self, inputs: torch.Tensor) -> Activations:
        """Run all rows of `inputs`; returns float32 or float64 [n, units] by layer."""
        self._rows -= len(inputs)
        self._batch = len(inputs)
        if self._search is None:
            return self._run(inputs)
        if self._reference is None:
            # Of all streams: a unit may be silent without a mark.
            some = np.unique(np.linspace(0, len(inputs) - 1, _COMPARED).astype(int))
            # A copy, before the model may work in place.
            reference = inputs[torch.from_numpy(some).to(inputs.device)]
            first = self._current(inputs)
            few = {layer: units[some] for layer, units in first.items()}
            self._reference = reference, few
            self._advance(None)
            return first
        result = self._run(inputs)
        if self._search is not None:
            self._advance(self._current.seconds)
        return result

    def _run(self, inputs: torch.Tensor) -> Activations:
        """Run the model; a copy that fails after all is given up for the original."""
        try:
            return self._current(inputs)
        except Exception:
            if not self._current.owned:
                raise
        self._current.close()
        if self._search is not None:
            self._search.close()
        self._search = self._reference = None
        self._current = _Candidate(self._original, self._start)
        return self._current(inputs)

    def _advance(self, seconds: float | None) -> None:
        assert self._search is not None
        try:
            self._current = next(self._search) if seconds is None else self._search.send(seconds)
        except StopIteration as done:
            self._current, self.tuned = done.value
            self._search = self._reference = None

    def _tune(
        self, remembered: Plan | None
    ) -> Generator[_Candidate, float, tuple[_Candidate, bool]]:
        """Propose one candidate after the other; what is sent back is its seconds per input."""
        best = self._current
        try:
            known = self._known(remembered)
            if remembered is not None and known is not None:
                best = known
                if remembered.compiled is False or not self._repays_compiling(best.seconds):
                    return best, False
                fastest = yield best
            else:
                if best.seconds * self._rows < _WORTH_TUNING:
                    return best, False
                best, fastest = yield from self._fastest(best)
                if self._sizes:
                    fastest = yield from self._resized(best, fastest)
            if self._repays_compiling(fastest):
                best = yield from self._compiled(best, fastest)
        except GeneratorExit:
            best.close()
            raise
        # What is best without bfloat16 is not to be taken for the best of all.
        return best, not self._only_float32

    def _fastest(self, best: _Candidate) -> Generator[_Candidate, float, tuple[_Candidate, float]]:
        """Try one way after the other until one is clearly faster than the first pass."""
        first = fastest = best.seconds
        compared = False
        for variant in self._variants(best.plan):
            candidate = self._candidate(variant)
            if candidate is None:
                continue
            seconds = yield candidate
            if not compared and seconds > _CLEARLY * first:
                fastest = yield best  # once more: the first pass paid for warming up
                compared = True
            if seconds < _GAIN * fastest:
                best.close()
                best, fastest = candidate, seconds
            else:
                candidate.close()
            if fastest <= _CLEARLY * first:
                return best, fastest
        if not compared:
            fastest = yield best
        return best, fastest

    def _known(self, remembered: Plan | None) -> _Candidate | None:
        """Return the candidate by what was the fastest before, if it may be used and agrees."""
        if remembered is None or (self._only_float32 and remembered.precision != "float32"):
            return None
        size = remembered.batch_size if self._sizes else self._current.plan.batch_size
        plan = replace(remembered, batch_size=size, compiled=None)
        return self._current if plan == self._start else self._candidate(plan)

    def _repays_compiling(self, seconds: float) -> bool:
        return seconds * self._rows * _SAVED > _COMPILING

    def _compiled(
        self, best: _Candidate, fastest: float
    ) -> Generator[_Candidate, float, _Candidate]:
        plan = best.plan
        size = _even_share(self._batch, plan.batch_size)
        candidate = self._candidate(replace(plan, batch_size=size, fused=False, compiled=True))
        if candidate is not None:
            seconds = yield candidate
            if seconds < _GAIN * fastest:
                best.close()
                return candidate
            candidate.close()
        best.plan = replace(plan, compiled=False)
        return best

    def _resized(self, best: _Candidate, fastest: float) -> Generator[_Candidate, float, float]:
        """Raise the batch size as long as that helps, else halve it; returns the new seconds."""
        largest = _LARGEST_BATCH.get(best.device.type, 1024)
        begun = best.plan.batch_size
        for factor in (4.0, 0.5):
            if factor < 1 and best.plan.batch_size > begun:
                break
            while 1 <= (size := int(best.plan.batch_size * factor)) <= largest:
                before = best.plan
                best.plan = replace(before, batch_size=size)
                yield best  # kernels are made for a new size
                seconds = yield best
                if seconds >= _GAIN * fastest:
                    best.plan = before
                    break
                fastest = seconds
        return fastest

    def _variants(self, plan: Plan) -> Iterable[Plan]:
        unfused = replace(plan, folded=True, channels_last=True)
        whole = replace(unfused, fused=self._current.device.type == "cpu")
        lower = []
        if not self._only_float32 and _has_bfloat16(self._current.device):
            lower = [
                replace(whole, precision="bfloat16 weights"),
                replace(unfused, precision="bfloat16 weights"),
                replace(unfused, precision="bfloat16"),
            ]
        fewer = [replace(plan, folded=True), replace(plan, channels_last=True)]
        return dict.fromkeys([*lower, whole, unfused, *fewer])  # each once

    def _candidate(self, plan: Plan) -> _Candidate | None:
        """Return the model run by another plan, or None where it cannot be or disagrees.

        What a model has nothing of is left out: it may have no batch norm to fold.
        """
        assert self._reference is not None
        inputs, expected = self._reference
        candidate = None
        try:
            recorder = self._original.copied()
            if recorder is None:
                return None
            module = recorder.module
            few = inputs[: plan.batch_size]
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
            candidate = _Candidate(recorder, plan, owned=True)
            for _ in range(_WARM_UPS if plan.compiled else 1):
                found = candidate(inputs.clone())  # the model may work in place
            agrees = disagreement(expected, found) <= AGREEMENT
        except Exception:  # a model may refuse a layout or a type in any way; then it is not used
            agrees = False
        except BaseException:
            if candidate is not None:
                candidate.close()
            raise
        if not agrees and candidate is not None:
            candidate.close()
        return candidate if agrees else None


class _Candidate:
    """A model, or a copy of it, run by one plan."""

    def __init__(self, recorder: ActivationRecorder, plan: Plan, owned: bool = False) -> None:
        self._stack = ExitStack()
        self.owned = owned
        if owned:
            self._stack.enter_context(recorder)
        self._recorder = recorder
        self.device = next(
            (t.device for t in (*recorder.module.parameters(), *recorder.module.buffers())),
            torch.device("cpu"),
        )
        self.plan = plan
        self.seconds = 0.0

    @property
    def plan(self) -> Plan:
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._plan = plan
        self._runner = Runner(self._recorder, plan.batch_size, plan.precision)

    def __call__(self, inputs: torch.Tensor) -> Activations:
        inputs = inputs.contiguous(memory_format=self._plan.memory_format)
        start = time.perf_counter()
        result = self._runner(inputs)
        self.seconds = (time.perf_counter() - start) / len(inputs)
        if self._runner.batch_size != self._plan.batch_size:  # memory ran out
            self._plan = replace(self._plan, batch_size=self._runner.batch_size)
        return result

    def close(self) -> None:
        self._stack.close()


def disagreement(expected: Activations, found: Activations) -> float:
    """Return how far activations are apart, in standard deviations of the unit.

    Parameters
    ----------
    expected, found : dict of str to ndarray, shape [n, units]
        The same inputs' activations by layer.

    Returns
    -------
    float
        Root mean square over the inputs, of the worst unit.
    """
    worst = 0.0
    for layer, units in expected.items():
        wanted = units.astype(np.float64)
        noise = np.sqrt(np.square(found[layer] - wanted).mean(axis=0))
        own = wanted.std(axis=0) + _ROUNDING * np.abs(wanted).max(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(noise == 0, 0.0, noise / own)
        # NaN compares false with everything: it must not pass for agreement.
        worst = max(worst, float(np.nan_to_num(ratio, nan=np.inf).max(initial=0.0)))
    return worst


def _even_share(rows: int, size: int) -> int:
    """Return a batch size into which rows go without a rest, if there is one not much smaller."""
    return next((s for s in range(size, size // 2, -1) if rows % s == 0), size)


def _has_bfloat16(device: torch.device) -> bool:
    """Tell whether the hardware computes in bfloat16; emulation is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    found = [getattr(torch.cpu, check, None) for check in checks]
    return device.type == "cpu" and any(bool(check()) for check in found if check is not None)
