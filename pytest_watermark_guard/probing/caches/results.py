"""What probes measured whose activations are too many to be kept, or were never kept at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pytest_watermark_guard.caching.store import Store
from pytest_watermark_guard.probing.activation_buffer import Array
from pytest_watermark_guard.probing.caches.contents import are_activations, text, texts
from pytest_watermark_guard.probing.caches.keys import CacheKeys
from pytest_watermark_guard.reports.early_stop import EarlyStop
from pytest_watermark_guard.reports.examples import Examples
from pytest_watermark_guard.reports.impact import Impact
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import Scores
from pytest_watermark_guard.watermarks.streams import UNMARKED


class ProbeMeasurement(NamedTuple):
    """What a probe measured; the rest of its report says what it was asked for."""

    n_images: int
    scores: Mapping[tuple[str, str], Scores]
    controls: Mapping[tuple[str, str], Scores]
    controls_alone: Mapping[tuple[str, str, str], Scores]
    impact: Mapping[str, Impact]
    notes: tuple[str, ...]
    plan: str
    weights: str
    examples: Examples | None
    early_stop: EarlyStop | None
    dead_units: Mapping[str, int]
    saturated: bool
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class ResultCache:
    """Keeps measurements, each with the model's answers to the first images."""

    store: Store
    keys: CacheKeys

    def load(self, asked: str) -> tuple[ProbeMeasurement, Mapping[tuple[str, str], Array]] | None:
        """Return what was measured when the same was asked for, or None."""
        key = self._key(asked)
        stored = self.store.get("results", key, self._stored)
        if stored is None:
            return None
        measurement, widths, content = stored
        if content != self.keys.content(measurement.n_images):
            return None
        answers: dict[tuple[str, str], Array] = {}
        for (stream, layer), width in widths.items():
            rows = self.store.get_array(
                "answers",
                self.keys.key(key, content, stream, layer),
                check=lambda rows, width=width: are_activations(rows) and rows.shape[1] == width,  # type: ignore[misc]
            )
            if rows is None:  # removed to make room, or damaged
                return None
            answers[stream, layer] = rows
        return measurement, answers

    def _stored(self, payload: bytes) -> tuple[ProbeMeasurement, dict[tuple[str, str], int], str]:
        """Return a measurement, the units of the answers by stream and layer, and its images."""
        data = json.loads(payload)
        report = ProbeReport.from_json(json.dumps(data["report"]))
        measurement = ProbeMeasurement(
            n_images=report.n_images,
            scores=dict(report.scores),
            controls=dict(report.controls),
            controls_alone=dict(report.controls_alone),
            impact=report.impact,
            notes=report.notes,
            plan=report.precision,
            weights=report.weights,
            examples=report.examples,
            early_stop=report.early_stop,
            dead_units=report.dead_units,
            saturated=bool(data["saturated"]),
            doubts=texts(data["doubts"]),
        )
        places = [(text(stream), text(layer)) for stream, layer in data["answers"]]
        units = {layer: len(scores.auroc) for (layer, _), scores in report.scores.items()}
        # Without the answer to every stream, nothing would show that the model has changed.
        needed = {(stream, layer) for stream in (UNMARKED, *report.scenarios) for layer in units}
        known = report.n_images >= 1 and bool(units) and {*report.scenarios} <= {*self.keys.streams}
        if not known or not needed <= {*places} or {layer for _, layer in places} != {*units}:
            raise ValueError("a report of something else")
        widths = {(stream, layer): units[layer] for stream, layer in places}
        return measurement, widths, text(data["content"])

    def save(
        self,
        asked: str,
        measurement: ProbeMeasurement,
        answers: Mapping[tuple[str, str], Array],
    ) -> None:
        """Keep a measurement, as a report without a name; not where an image has changed since."""
        content = self.keys.content(measurement.n_images)
        if content is None:
            return
        report = ProbeReport(
            model="",
            baseline="",
            n_images=measurement.n_images,
            seed=0,
            scores=measurement.scores,
            impact=measurement.impact,
            precision=measurement.plan,
            notes=measurement.notes,
            controls=measurement.controls,
            controls_alone=measurement.controls_alone,
            weights=measurement.weights,
            examples=measurement.examples,
            early_stop=measurement.early_stop,
            dead_units=measurement.dead_units,
        )
        key = self._key(asked)
        for (stream, layer), rows in answers.items():
            self.store.put_array("answers", self.keys.key(key, content, stream, layer), rows)
        data = {
            "report": json.loads(report.to_json()),
            "answers": [*answers],
            "content": content,
            "saturated": measurement.saturated,
            "doubts": measurement.doubts,
        }
        self.store.put("results", key, json.dumps(data).encode())

    def _key(self, asked: str) -> str:
        return self.keys.key("result/4", self.keys.exact, *self.keys.streams.values(), asked)
