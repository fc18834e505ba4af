"""What a scenario does to the predictions of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pytest_watermark_guard.reports.class_counts import ClassCounts

Interval = tuple[float, float]


@dataclass(frozen=True)
class Impact:
    """What a scenario does to the model's predictions.

    Attributes
    ----------
    flip_rate : float
        Share of images whose predicted class differs with the mark.
    gains_index, gains_name : int or None, str or None
        The class that more images are predicted as with the mark than without; None if no
        prediction changes.
    gains_share : float
        By how much its share of all predictions grows.
    top1_baseline, top1_marked : float or None
        Top-1 accuracy, where labels are known.
    control_flip_rate : float or None
        The same share with the scrambled mark, where that was probed.
    by_class : ClassCounts or None
        Predictions by class; None in reports of versions that did not count them.
    blob_flip_rate : float or None
        The same share with blobs of as much ink and no strokes, where that was probed.
    flip_interval, beyond_control_interval, top1_drop_interval, gains_gap_interval, \
    beyond_blobs_interval : tuple or None
        95 % confidence intervals of `flip_rate`, `flips_beyond_control`, `top1_drop`, `gains_gap`
        and `flips_beyond_blobs`, the images being paired; None where these are, or in older
        reports.
    """

    flip_rate: float
    gains_index: int | None
    gains_name: str | None
    gains_share: float
    top1_baseline: float | None = None
    top1_marked: float | None = None
    control_flip_rate: float | None = None
    by_class: ClassCounts | None = None
    flip_interval: Interval | None = None
    beyond_control_interval: Interval | None = None
    top1_drop_interval: Interval | None = None
    gains_gap_interval: Interval | None = None
    blob_flip_rate: float | None = None
    beyond_blobs_interval: Interval | None = None

    @property
    def flips_beyond_control(self) -> float | None:
        """Share of flips that the text makes and scrambled ink does not; None without control."""
        return None if self.control_flip_rate is None else self.flip_rate - self.control_flip_rate

    @property
    def flips_beyond_blobs(self) -> float | None:
        """Share of flips that the mark makes and as much ink does not; None without such blobs."""
        return None if self.blob_flip_rate is None else self.flip_rate - self.blob_flip_rate

    @property
    def gains_gap(self) -> float | None:
        """How much more of its own images the class that gains most gets right with the mark.

        None without labels. For "carton" under ``imagenet_w`` it is the Carton Gap of Li et al.
        (2023), as `top1_drop` is their IN-W Gap with its sign turned.
        """
        if self.by_class is None or self.gains_index is None:
            return None
        return self.by_class.top1_gap(self.gains_index)

    @property
    def top1_drop(self) -> float | None:
        """Top-1 accuracy lost to the mark, or None without labels."""
        if self.top1_baseline is None or self.top1_marked is None:
            return None
        return self.top1_baseline - self.top1_marked

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        # `asdict` copies the counts of a thousand classes one by one.
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        counts = None if self.by_class is None else vars(self.by_class)
        return {**data, "by_class": counts and dict(counts)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Impact:
        """Read what `to_dict` gave."""
        kinds: dict[str, Callable[[Any], Any]] = {
            "gains_index": int,
            "gains_name": str,
            "by_class": ClassCounts.from_dict,
            **{name: _interval for name in cls.__annotations__ if name.endswith("_interval")},
        }
        values: dict[str, Any] = {
            name: None if value is None else kinds.get(name, float)(value)
            for name, value in data.items()
        }
        return cls(**values)


def _interval(ends: Any) -> Interval:
    low, high = ends
    return float(low), float(high)
