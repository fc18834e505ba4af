"""Running a model the fastest way that gives the same activations, found on the first batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.running.agreement import Activations, Shift
from pytest_watermark_guard.models.running.compared import KnownAnswers
from pytest_watermark_guard.models.running.openvino_model import Converter
from pytest_watermark_guard.models.running.plan import Plan
from pytest_watermark_guard.models.running.policy import TuningPolicy
from pytest_watermark_guard.models.running.runner import Runner
from pytest_watermark_guard.models.running.tuning import Tuner

_DEFAULT_POLICY = TuningPolicy()


class Executor:
    """Runs a model over all batches; use it as a context manager.

    With `tuning`, the first batches are run in several ways, and the rest in the fastest of those
    that agree with plain float32: see `Tuner`.

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
    known : KnownAnswers, optional
        To the first inputs, as the model gives them by `plan`.
    converter : Converter, optional
        Of the recorder, for what it has converted already.
    only_float32 : bool, default False
        Whether lower precision is out of the question.
    remembered : Plan, optional
        What was the fastest before: it is checked for agreement again, and taken.
    policy : TuningPolicy, optional
        Which plans are tried, and when one of them is taken.
    clock : callable, default time.perf_counter
        Returns the time in seconds.

    Attributes
    ----------
    plan : Plan
        How the model is run now.
    tuned : bool
        Whether `plan` was found to be the fastest, and was not known before.
    not_by_openvino : str
        Why OpenVINO does not run the model, if that was tried.
    """

    def __init__(
        self,
        recorder: ActivationRecorder,
        plan: Plan,
        rows: int,
        *,
        tuning: bool,
        sizes: bool,
        known: KnownAnswers | None = None,
        converter: Converter | None = None,
        only_float32: bool = False,
        remembered: Plan | None = None,
        policy: TuningPolicy = _DEFAULT_POLICY,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if recorder.batch_size:  # part of an exported program
            plan, sizes = replace(plan, batch_size=recorder.batch_size), False
        self._recorder = recorder
        self._start = plan
        self._clock = clock
        self._rows_left = rows
        self._current = Runner(recorder, plan, clock)
        self._tuner: Tuner | None = None
        if tuning:
            self._tuner = Tuner(
                recorder,
                self._current,
                policy,
                sizes=sizes,
                only_float32=only_float32,
                remembered=remembered,
                known=known,
                converter=converter or Converter(recorder),
            )
        self.tuned = False
        self.not_by_openvino = ""

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tuner is not None:
            self._tuner.close()
        self._current.close()

    def expect(self, rows: int) -> None:
        """Say that there will be more inputs than was said."""
        self._rows_left = max(self._rows_left, 0) + rows

    def prepare(self, images: int, streams: int) -> None:
        """Do what can be done before the first batch is there, of so many images and streams."""
        if self._tuner is not None and not self._tuner.started:
            self._tuner.prepare(images, streams, self._rows_left)

    @property
    def seconds(self) -> float:
        """How long an input took in the last call."""
        return self._current.seconds

    @property
    def seconds_left(self) -> float | None:
        """How long the inputs that are left will take; None while the way to run may change."""
        return None if self._tuner else self._current.seconds * max(self._rows_left, 0)

    @property
    def plan(self) -> Plan:
        """How the model is run now."""
        return self._current.plan

    @property
    def shift(self) -> Shift | None:
        """How far that moves A, by estimate; None where it is run as it is."""
        return self._current.shift

    def __call__(self, inputs: torch.Tensor, streams: int = 1) -> Activations:
        """Run all rows of `inputs`; returns float32 or float64 [n, units] by layer.

        `streams` is how many times their images come in them, without and with marks.
        """
        self._rows_left -= len(inputs)
        if self._tuner is not None and not self._tuner.started:
            activations = self._tuner.start(inputs, streams, self._rows_left)
            self._current = self._tuner.best
            self.not_by_openvino = self._tuner.not_by_openvino
        else:
            activations = self._run(inputs)
        if self._tuner is not None:
            self._current = self._tuner.propose(self._rows_left, inputs, streams, activations)
            if self._tuner.finished:
                self.tuned = self._tuner.tuned
                self._tuner = None
        return activations

    def _run(self, inputs: torch.Tensor) -> Activations:
        """Run the model; a copy that fails after all is given up for the original."""
        try:
            return self._current(inputs)
        except Exception:
            if not self._current.is_copy:
                raise
        self._current.close()
        if self._tuner is not None:
            self._tuner.close()
            self._tuner = None
        self._current = Runner(self._recorder, self._start, self._clock)
        return self._current(inputs)
