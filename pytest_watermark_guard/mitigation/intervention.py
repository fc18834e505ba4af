"""What is done to a model's features, whichever method decided on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Intervention(Protocol):
    """An affine map of the features; `FeatureMask` and `FeatureErasure` are two."""

    @property
    def width(self) -> int:
        """Number of feature units."""

    @property
    def weights(self) -> str:
        """Identity of the backbone that it was made for, see `models.identity`; may be empty."""

    @property
    def description(self) -> str:
        """What is taken out, and on what evidence."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what `transform` needs, which follows the model from device to device."""

    @staticmethod
    def transform(features: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return changed features, shape [..., width]; the given ones are left as they are."""

    @staticmethod
    def hook(module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Transform what a module returns: a forward hook that TorchScript can compile.

        The tensors are the module's buffers, and the axis of the units is its attribute, under
        names that begin with `models.identity.OWN_BUFFER`.
        """

    def fold_into(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return a head's weight [out, width] and bias [out] that do the same by themselves."""
