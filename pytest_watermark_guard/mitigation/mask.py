"""Which feature units are set to zero, and why these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pytest_watermark_guard.errors import MaskError
from pytest_watermark_guard.reports.documents import DocumentFormat
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.setting_values import check_threshold, is_number

FORMAT = DocumentFormat("mask", "mask", MaskError)
_LAYER = "features"


@dataclass(frozen=True)
class FeatureMask:
    """Feature units to set to zero.

    Make one with `from_report`; hand it to `apply_mask` or `fold_mask`.

    Attributes
    ----------
    units : tuple of int
        Indices in the feature layer, ascending.
    width : int
        Number of units in that layer.
    weights : str
        Identity of the backbone that was probed; empty if unknown.
    description : str
        Which units these are, and on what evidence.

    Raises
    ------
    MaskError
        If a unit is no index of the layer, or is named twice.
    """

    units: tuple[int, ...]
    width: int
    weights: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        units = tuple(sorted(map(int, self.units)))
        object.__setattr__(self, "units", units)
        if units and not 0 <= units[0] <= units[-1] < self.width:
            wrong = units[0] if units[0] < 0 else units[-1]
            raise MaskError(f"units: {wrong} is no index of the {self.width} features")
        if len(set(units)) < len(units):
            raise MaskError(f"units: each can be named once, got {list(units)}")

    def __len__(self) -> int:
        return len(self.units)

    @classmethod
    def from_report(
        cls,
        report: ProbeReport,
        *,
        fraction: float | None = None,
        threshold: float | None = None,
        units: Sequence[int] | None = None,
        scenarios: Sequence[str] | None = None,
    ) -> FeatureMask:
        """Choose units by what a probe found; give one of the three rules.

        Parameters
        ----------
        report : ProbeReport
            With the layer "features".
        fraction : float, optional
            In [0, 1]: so large a part of the units, the most differentiable ones, rounded up to
            whole units (Bykov et al., 2023, section 4).
        threshold : float, optional
            Every unit with d at or above it; may be none.
        units : sequence of int, optional
            These.
        scenarios : sequence of str, optional
            Whose d counts, for several the largest; default all of the report's.

        Raises
        ------
        MaskError
            If the report has no features or no such scenario, or the rule cannot be used.
        SettingsError
            If `threshold` is not in (0.5, 1].
        """
        names = (scenarios,) if isinstance(scenarios, str) else scenarios
        names = report.scenarios if names is None else tuple(names)
        if _LAYER not in report.layers:
            raise MaskError(
                f"the report of {report.model} has no layer {_LAYER!r}, only "
                f"{', '.join(report.layers)}: probe with layers=({_LAYER!r},)"
            )
        if not names or (missing := [name for name in names if name not in report.scenarios]):
            wanted = repr(missing[0]) if names else "no scenario"
            raise MaskError(
                f"scenarios: {wanted}, but the report of {report.model} has "
                f"{', '.join(report.scenarios)}"
            )
        d = np.max([report[_LAYER, name].differentiability for name in names], axis=0)
        chosen, rule = _choose(d, fraction, threshold, units)
        return cls(
            tuple(map(int, chosen)),
            len(d),
            report.weights,
            f"{len(chosen)} of {len(d)} features of {report.model}: {rule} under "
            f"{', '.join(names)}, probed with {report.n_images} images ({report.baseline}), "
            f"seed {report.seed}",
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return {"zeroed": Tensor of bool [width]}."""
        zeroed = torch.zeros(self.width, dtype=torch.bool)
        zeroed[list(self.units)] = True
        return {"zeroed": zeroed}

    @staticmethod
    def transform(features: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a copy of features [..., width] with the units at exactly 0, whatever they are."""
        return with_zeros(features, tensors["zeroed"])

    @staticmethod
    def hook(module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Do so to what a module returns; of its own, it has the tensors, and the units' axis."""
        # In TorchScript too: what it calls, and every name, must be known to that.
        last = output.ndim - 1
        features = output.transpose(module._wm_axis % output.ndim, last)
        return with_zeros(features, module._wm_zeroed).transpose(
            module._wm_axis % output.ndim, last
        )

    def fold_into(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return a head's weight [out, width] with the units' columns at 0, and its bias."""
        return self.transform(weight, {"zeroed": self.tensors()["zeroed"].to(weight.device)}), bias

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "units": list(self.units)}

    def save(self, path: str | Path) -> None:
        """Write the mask to a JSON file."""
        FORMAT.write(path, {"kind": FORMAT.noun, **self.to_dict()})

    @classmethod
    def load(cls, path: str | Path) -> FeatureMask:
        """Read a mask that `save` wrote.

        Raises
        ------
        MaskError
            If the file cannot be read or holds something else.
        """
        with FORMAT.reading_json(path) as data:
            if data["kind"] != FORMAT.noun:
                raise MaskError(f"it holds {data['kind']!r}, not {FORMAT.noun!r}")
            return cls(
                units=tuple(map(int, data["units"])),
                width=int(data["width"]),
                weights=str(data["weights"]),
                description=str(data["description"]),
            )


def with_zeros(features: Tensor, zeroed: Tensor) -> Tensor:
    """Return features [..., width] with those that are `zeroed` at exactly 0."""
    # Not masked_fill, which would change the memory format, and with it the rounding of means.
    return torch.where(zeroed, 0, features)


def _choose(
    d: npt.NDArray[np.float64],
    fraction: float | None,
    threshold: float | None,
    units: Sequence[int] | None,
) -> tuple[Sequence[int] | npt.NDArray[np.intp], str]:
    """Return the units that a rule picks, and the rule in words."""
    if (fraction is not None) + (threshold is not None) + (units is not None) != 1:
        raise MaskError("give one of fraction=, threshold= and units=: each is a rule of its own")
    if threshold is not None:
        check_threshold(threshold)
        return np.flatnonzero(d >= threshold), f"those with d >= {threshold:g}"
    if units is not None:
        return list(units), "chosen by hand, with marks"
    if not is_number(fraction) or not 0 <= fraction <= 1:
        raise MaskError(f"fraction must be a number in [0, 1], got {fraction!r}")
    chosen = np.argsort(-d, kind="stable")[: number_masked(float(fraction), len(d))]
    return chosen, f"the {fraction:.3g} most differentiable"


def number_masked(fraction: float, width: int) -> int:
    """Return how many of `width` units a fraction is, rounded up to whole units."""
    # 0.1 of 30 is 3, and not the 4 that 3.0000000000000004 would be rounded up to.
    return math.ceil(fraction * width - 1e-9 * width)
