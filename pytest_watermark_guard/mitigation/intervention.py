"""What is done to a model's features, whichever method decided on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Intervention(Protocol):
    """An affine map of the features; `FeatureMask` and `FeatureErasure` are two.

    Attributes
    ----------
    width : int
        Number of feature units.
    weights : str
        Identity of the backbone that it was made for, see `models.identity`; may be empty.
    description : str
        What is taken out, and on what evidence.
    """

    @property
    def width(self) -> int: ...  # noqa: D102 - described above

    @property
    def weights(self) -> str: ...  # noqa: D102

    @property
    def description(self) -> str: ...  # noqa: D102

    def tensors(self) -> dict[str, Tensor]:
        """Return what `transform` needs, which follows the model from device to device."""

    @staticmethod
    def transform(features: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return changed features, shape [..., width]; the given ones are left as they are."""

    def fold_into(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return a head's weight [out, width] and bias [out] that do the same by themselves."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
