"""Images that belong together, such as near duplicates: one draw of the sample, not several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Groups:
    """Which images belong together.

    Attributes
    ----------
    order : ndarray of int, shape [images]
        The images, group by group.
    starts : ndarray of int, shape [groups]
        Where in that order each group begins.
    """

    order: npt.NDArray[np.intp]
    starts: npt.NDArray[np.intp]

    @classmethod
    def of(cls, identities: npt.ArrayLike | None, n_images: int) -> Groups:
        """Group equal `identities`, one for each image; without any each image is a group."""
        if identities is None:
            return cls(np.arange(n_images), np.arange(n_images))
        array = np.asarray(identities)
        if array.shape != (n_images,):
            raise ValueError(f"groups: expected one for each of {n_images} images, {array.shape}")
        _, index = np.unique(array, return_inverse=True)
        order = np.argsort(index, kind="stable")
        return cls(order, np.flatnonzero(np.diff(index[order], prepend=-1)))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def sizes(self) -> npt.NDArray[np.intp]:
        """Number of images of each group."""
        return np.diff(self.starts, append=len(self.order))

    def merged(self, batches: npt.NDArray[np.intp]) -> Groups:
        """Put the groups into batches, one number for each group."""
        of_images = np.empty(len(self.order), dtype=np.intp)
        of_images[self.order] = np.repeat(batches, self.sizes)
        return Groups.of(of_images, len(self.order))

    def sums(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sum values [..., images] over each group, [..., groups]."""
        if len(self) == len(self.order):
            return values  # the order of single images makes no difference
        return np.asarray(np.add.reduceat(values[..., self.order], self.starts, axis=-1))
