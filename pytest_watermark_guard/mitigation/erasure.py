"""Taking out of the features what is linearly correlated with marks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pytest_watermark_guard.errors import MaskError
from pytest_watermark_guard.models.near_misses import AnyModel
from pytest_watermark_guard.probing.activation_buffer import Array
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.probing.recorded import recorded
from pytest_watermark_guard.reports.documents import DocumentFormat
from pytest_watermark_guard.reports.scores import Scores, SensitiveUnit
from pytest_watermark_guard.statistics.auroc import paired_auroc
from pytest_watermark_guard.watermarks.scenarios import AnyScenario
from pytest_watermark_guard.watermarks.streams import UNMARKED

FORMAT = DocumentFormat("mask", "erasure", MaskError)
Floats = npt.NDArray[np.float64]
_LAYER = "features"
_ARRAYS = ("left", "right", "mean")
# Singular values above rounding errors count. The package's default ignores those below 0.01, and
# a scenario that is hard to see, or one of many, may have no larger one.
_LEAST_SINGULAR_VALUE = 1e-6
_FEWEST = 4  # images: fewer have no half to fit to and another to measure on


@dataclass(frozen=True, eq=False)
class FeatureErasure:
    """An affine map of the features after which no linear correlation with marks is left.

    Make one with `fit`; hand it to `apply_mask` or `fold_mask`. Features x become
    ``x - ((x - mean) @ right.T) @ left.T``.

    Attributes
    ----------
    left : ndarray of float64, shape [width, k]
        Directions that are taken out, k of them: at most one for each scenario.
    right : ndarray of float64, shape [k, width]
        How much of them there is.
    mean : ndarray of float64, shape [width]
        Stays as it is.
    weights : str
        Identity of the backbone that was probed; empty if unknown.
    description : str
        What is taken out, and on what evidence.
    scenarios : tuple of str
        Whose marks.
    remaining : tuple of SensitiveUnit
        For each scenario, the single feature that still tells marked images best after the erasure,
        on images held out; empty if that was not measured.

    Raises
    ------
    MaskError
        If the arrays do not fit together, or a number is not finite.

    Notes
    -----
    The method is LEACE, least-squares concept erasure: of all affine maps after which the features
    have no correlation with the scenarios, the one that changes them least (Belrose et al., 2023,
    *LEACE: Perfect linear concept erasure in closed form*). It makes the means of marked and
    unmarked features equal, and no more: their distributions still differ, so that a single unit,
    or a head that is not linear, may tell them apart. `remaining` says how well units do.
    """

    left: Floats
    right: Floats
    mean: Floats
    weights: str = ""
    description: str = ""
    scenarios: tuple[str, ...] = ()
    remaining: tuple[SensitiveUnit, ...] = ()

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            array = np.array(getattr(self, name), dtype=np.float64)
            if not np.isfinite(array).all():
                raise MaskError(f"{name}: an erasure is made of finite numbers")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        k = self.right.shape[0] if self.right.ndim else 0
        wanted = [(self.width, k), (k, self.width), (self.width,)]
        shapes = [array.shape for array in (self.left, self.right, self.mean)]
        if shapes != wanted:
            raise MaskError(
                "an erasure is made of arrays [width, k], [k, width] and [width], got "
                f"{', '.join(str([*shape]) for shape in shapes)}"
            )

    @property
    def width(self) -> int:
        """Number of units in the feature layer."""
        return self.mean.size

    def __len__(self) -> int:
        return len(self.right)

    @classmethod
    def fit(
        cls,
        model: AnyModel,
        images: Any = None,
        scenarios: str | Sequence[str | AnyScenario] = ("chinese",),
        layers: Sequence[str] | None = None,
        **arguments: Any,
    ) -> FeatureErasure:
        """Find what is to be taken out of a model's features; needs ``concept-erasure``.

        Parameters
        ----------
        model, images, scenarios
            As for `probe`.
        layers : sequence of str, optional
            Default: the run's, where they include "features". If a probe was of the same layers,
            images and scenarios, its activations are used and no model runs.
        **arguments
            ``preprocess``, ``labels``, ``batch_size``, ``name``, ``progress``, ``device``,
            ``precision``, ``max_images``, ``seed`` and ``cache`` as for `probe`.

        Raises
        ------
        MaskError
            If the package is missing, or the layers do not include "features".
        WatermarkGuardError
            As `probe`.
        """
        usual = current_run().settings.layers
        layers = layers or (usual if _LAYER in usual else (_LAYER,))
        if _LAYER not in layers:
            raise MaskError(f"layers: an erasure is of {_LAYER!r}, got {', '.join(layers)}")
        _leace()  # before minutes of probing
        names = (scenarios,) if isinstance(scenarios, str) else scenarios
        with recorded(model, images, names, layers, **arguments) as activations:
            recording = activations.recording
            rows = {stream: recording[stream, _LAYER].columns() for stream in recording.streams}
            return cls.from_features(
                rows.pop(UNMARKED),
                rows,
                weights=recording.weights,
                source=f"{activations.model}, probed with {activations.baseline}",
            )

    @classmethod
    def from_features(
        cls,
        unmarked: Array,
        marked: Mapping[str, Array],
        *,
        held_out: tuple[Array, Mapping[str, Array]] | None = None,
        weights: str = "",
        source: str = "",
    ) -> FeatureErasure:
        """Fit to features that are known.

        Parameters
        ----------
        unmarked : ndarray, shape [n, width]
            Features without a mark.
        marked : mapping of str to ndarray, shape [n, width]
            By scenario: features of the same images with it.
        held_out : tuple of (unmarked, marked), optional
            Features of other images, on which is measured what single units still tell. Default: an
            erasure that is fitted to a random half of the images is measured on the other half, and
            the one that is returned is fitted to all.
        weights : str
            Identity of the backbone; empty if unknown.
        source : str
            Of the features, for the description.

        Raises
        ------
        MaskError
            If ``concept-erasure`` is missing, there are fewer than four images, or a scenario has
            not as many.
        """
        if len(unmarked) < _FEWEST:
            raise MaskError(
                f"unmarked: an erasure of {len(unmarked)} images is none; pass at least {_FEWEST}, "
                "and better more than there are features"
            )
        for name, rows in marked.items():
            if rows.shape != unmarked.shape:
                raise MaskError(
                    f"marked: features {[*rows.shape]} of {name!r}, but {[*unmarked.shape]} "
                    "without a mark; pass those of the same images"
                )
        left, right, mean = _fitted(unmarked, marked)
        if held_out is None:
            remaining, how = _of_halves(unmarked, marked)
        else:
            after = cls(left, right, mean)
            remaining, how = after.measured(*held_out), f"{len(held_out[0]):,} images held out"
        names = tuple(marked)
        told = ", ".join(
            f"{unit.scenario} marks by up to d = {unit.differentiability:.3f} ({unit.label})"
            for unit in remaining
        )
        return cls(
            left,
            right,
            mean,
            weights,
            f"{len(right)} directions in {unmarked.shape[1]} features that are correlated with "
            f"{', '.join(names)} marks"
            + (f" in {source}" if source else "")
            + f"; no linear correlation is left, but single units still tell {told}, on {how}",
            names,
            remaining,
        )

    def measured(self, unmarked: Array, marked: Mapping[str, Array]) -> tuple[SensitiveUnit, ...]:
        """Return the single feature that tells marks best after the erasure, for each scenario.

        Takes features of images that it was not fitted to, as `from_features` does.
        """
        plain = self.applied_to(unmarked)
        units = tuple(map(str, range(self.width)))
        found = []
        for name, rows in marked.items():
            paired = paired_auroc(plain, self.applied_to(rows))
            scores = Scores(_LAYER, name, paired.auroc, paired.standard_error, len(rows), units)
            found.append(scores.strongest())
        return tuple(found)

    def applied_to(self, features: Array) -> Array:
        """Return features [n, width] after the erasure."""
        rows = torch.from_numpy(np.ascontiguousarray(features))
        result: Array = self.transform(rows, self.tensors()).numpy()
        return result

    def tensors(self) -> dict[str, Tensor]:
        """Return left, right and mean, as float64."""
        return {name: torch.tensor(getattr(self, name)) for name in _ARRAYS}

    @staticmethod
    def transform(features: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return features [..., width] without what is to be taken out, of the same type."""
        return erased(features, *(tensors[name] for name in _ARRAYS))

    @staticmethod
    def hook(module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Do so to what a module returns; of its own, it has the tensors, and the units' axis."""
        # In TorchScript too: what it calls, and every name, must be known to that.
        last = output.ndim - 1
        features = output.transpose(module._wm_axis % output.ndim, last)
        changed = erased(features, module._wm_left, module._wm_right, module._wm_mean)
        return changed.transpose(module._wm_axis % output.ndim, last)

    def fold_into(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weight [out, width] and bias [out] of a head that erases by itself."""
        left, right, mean = (tensor.to(weight.device) for tensor in self.tensors().values())
        taken = (weight.double() @ left) @ right
        old = 0 if bias is None else bias.double()
        return (weight - taken).to(weight.dtype), (old + taken @ mean).to(weight.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            **{name: getattr(self, name).tolist() for name in _ARRAYS},
            "weights": self.weights,
            "description": self.description,
            "scenarios": list(self.scenarios),
            "remaining": [asdict(unit) for unit in self.remaining],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureErasure:
        """Read what `to_dict` gave.

        Raises
        ------
        MaskError
            If the arrays do not fit together.
        ValueError, KeyError, TypeError
            If it is something else.
        """
        return cls(
            **{name: np.array(data[name], dtype=np.float64) for name in _ARRAYS},
            weights=str(data["weights"]),
            description=str(data["description"]),
            scenarios=tuple(map(str, data["scenarios"])),
            remaining=tuple(map(SensitiveUnit.from_dict, data["remaining"])),
        )

    def save(self, path: str | Path) -> None:
        """Write the erasure to a JSON file."""
        FORMAT.write(path, {"kind": FORMAT.noun, **self.to_dict()})

    @classmethod
    def load(cls, path: str | Path) -> FeatureErasure:
        """Read an erasure that `save` wrote.

        Raises
        ------
        MaskError
            If the file cannot be read or holds something else.
        """
        with FORMAT.reading_json(path) as data:
            if data["kind"] != FORMAT.noun:
                raise MaskError(f"it holds {data['kind']!r}, not {FORMAT.noun!r}")
            return cls.from_dict(data)


def erased(features: Tensor, left: Tensor, right: Tensor, mean: Tensor) -> Tensor:
    """Return features [..., width] without what an erasure takes out, of the same type."""
    exact = features.to(torch.promote_types(features.dtype, left.dtype))
    return (exact - ((exact - mean) @ right.t()) @ left.t()).to(features.dtype)


def _fitted(unmarked: Array, marked: Mapping[str, Array]) -> tuple[Floats, Floats, Floats]:
    """Return left, right and mean."""
    # No limit on the trace of the covariance is needed: the features are whitened by that
    # covariance, so its trace cannot rise.
    fitter = _leace()(
        unmarked.shape[1],
        len(marked),
        dtype=torch.float64,
        constrain_cov_trace=False,
        svd_tol=_LEAST_SINGULAR_VALUE,
    )
    for concept, rows in enumerate((unmarked, *marked.values()), start=-1):
        concepts = torch.zeros(len(rows), len(marked), dtype=torch.float64)
        if concept >= 0:
            concepts[:, concept] = 1
        fitter.update(torch.from_numpy(rows.astype(np.float64)), concepts)
    eraser = fitter.eraser
    used = eraser.proj_left.any(dim=0)
    return eraser.proj_left[:, used].numpy(), eraser.proj_right[used].numpy(), eraser.bias.numpy()


def _of_halves(
    unmarked: Array, marked: Mapping[str, Array]
) -> tuple[tuple[SensitiveUnit, ...], str]:
    """Measure an erasure that is fitted to one half of the images on the other; say which."""
    order = np.random.default_rng(0).permutation(len(unmarked))
    half = len(order) // 2
    fitted, rest = order[:half], order[half:]
    erasure = FeatureErasure(
        *_fitted(unmarked[fitted], {name: rows[fitted] for name, rows in marked.items()})
    )
    found = erasure.measured(unmarked[rest], {name: rows[rest] for name, rows in marked.items()})
    return found, f"{len(rest):,} of these images after a fit to the others"


def _leace() -> Any:
    """Return the class that fits; imported late, for it is an optional package."""
    try:
        with warnings.catch_warnings():
            # The package scripts a function that is not needed here, which torch advises against.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            from concept_erasure import LeaceFitter
    except ImportError as error:
        raise MaskError(
            "an erasure is fitted by the package concept-erasure, which is not installed: "
            "pip install pytest-watermark-guard[erasure]"
        ) from error
    return LeaceFitter
