"""How a probe ended that may stop before the last image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pytest_watermark_guard.errors import ReportError
from pytest_watermark_guard.reports.documents import number
from pytest_watermark_guard.reports.names import asked_layer


class Decision(NamedTuple):
    """A verdict on one layer under one scenario: "sensitive", "clean" or None, and its images."""

    verdict: str | None
    n_images: int


def verdict_on_all(decisions: Iterable[Decision]) -> str | None:
    """Return the verdict on a whole from those on its parts."""
    verdicts = {decision.verdict for decision in decisions}
    # One sensitive layer makes the model sensitive, whatever the others are.
    return "sensitive" if "sensitive" in verdicts else None if None in verdicts else "clean"


@dataclass(frozen=True)
class EarlyStop:
    """How a gate's probe ended that may stop before the last image."""

    threshold: float
    error: float  # chance that any verdict of the probe differs from that of all images
    # "sensitive", "clean", or None: undecided to the last image, so that the scores decided.
    verdict: str | None
    n_available: int
    # By (layer, scenario), if each has a verdict of its own; empty if there is one on the whole.
    each: Mapping[tuple[str, str], Decision] = field(default_factory=dict)

    def restrict_to(self, layer: str, scenario: str) -> EarlyStop:
        """Return the part for one layer, "logits" with all outputs, and one scenario.

        That is all, if there was one verdict on all.
        """
        asked = layer, scenario
        own = {k: each for k, each in self.each.items() if (asked_layer(k[0]), k[1]) == asked}
        if not own:
            return self
        return replace(self, verdict=verdict_on_all(own.values()), each=own)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        each = [
            {"layer": layer, "scenario": scenario, **decision._asdict()}
            for (layer, scenario), decision in self.each.items()
        ]
        return {**vars(self), "each": each}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EarlyStop:
        """Read what `to_dict` gave."""
        each = {
            (str(entry["layer"]), str(entry["scenario"])): Decision(
                _verdict(entry["verdict"]), int(entry["n_images"])
            )
            # The first reports had one verdict on all layers and scenarios.
            for entry in data.get("each", ())
        }
        return cls(
            threshold=number(data["threshold"]),
            error=number(data["error"]),
            verdict=_verdict(data["verdict"]),
            n_available=int(data["n_available"]),
            each=each,
        )


def _verdict(value: Any) -> str | None:
    if value not in ("sensitive", "clean", None):
        raise ReportError(f"it has the early verdict {value!r}")
    return value  # type: ignore[no-any-return]
