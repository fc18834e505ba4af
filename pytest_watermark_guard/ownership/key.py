"""The secret that ownership is shown with, and its file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from pytest_watermark_guard.caching.files import write_atomically
from pytest_watermark_guard.errors import OwnershipError
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing
from pytest_watermark_guard.reports.documents import DocumentFormat

FORMAT = DocumentFormat(
    "ownership-key", "ownership key", OwnershipError, "get the original file, or name another one"
)
_TENSORS = {"perturbations": torch.int8, "coins": torch.bool, "key_image": torch.uint8}


@dataclass(frozen=True, eq=False)
class OwnershipKey:
    """Pairs of universal perturbations, and which of each pair a secret coin chose.

    The chosen one of each pair is embedded into an encoder, the other is its decoy. Both were made
    in the same way, so that nothing but the coin tells them apart to whoever does not have the key.

    Attributes
    ----------
    perturbations : Tensor of int8, shape [pairs, 2, 3, H, W]
        In steps of 1/255 of the range of a pixel; added to images of the encoder's input size,
        before normalisation, and clamped.
    coins : Tensor of bool, shape [pairs]
        True: the second of the pair was chosen.
    key_image : Tensor of uint8, shape [3, H, W]
        The image whose embedding marked images gather around.
    epsilon : float
        Largest size of a perturbation (L∞), of pixels in [0, 1].
    preprocessing : Preprocessing
        The encoder's, with which the key was made.
    seed : int
        All random choices follow from it.
    encoder : str
        Identity of the weights below the head for which the key was made.

    Raises
    ------
    OwnershipError
        If the parts do not fit each other.
    """

    perturbations: Tensor
    coins: Tensor
    key_image: Tensor
    epsilon: float
    preprocessing: Preprocessing
    seed: int
    encoder: str

    def __post_init__(self) -> None:
        for name, dtype in _TENSORS.items():
            if getattr(self, name).dtype is not dtype:
                raise OwnershipError(
                    f"key: {name} must be {dtype}, not {getattr(self, name).dtype}"
                )
        pairs, size = len(self.coins), self.preprocessing.size
        how = self.preprocessing
        if how.normalize is not None or how.geometry is not None or size is None:
            raise OwnershipError(
                "key: preprocessing must have a size, a mean and a standard deviation: a function "
                "cannot be kept in a file (pass preprocess=Preprocessing(size=..., mean=..., ...))"
            )
        if [*self.perturbations.shape] != [pairs, 2, 3, *size]:
            raise OwnershipError(
                f"key: perturbations of {pairs} pairs at {size} have shape "
                f"{[pairs, 2, 3, *size]}, not {[*self.perturbations.shape]}"
            )
        if [*self.key_image.shape] != [3, *size]:
            raise OwnershipError(f"key: key_image has shape {[*self.key_image.shape]}")
        largest = int(self.perturbations.int().abs().max()) if pairs else 0
        if not 0 < largest <= self.epsilon * 255 + 1e-6:
            raise OwnershipError(
                f"key: the largest step is {largest}/255, and epsilon is {self.epsilon:g}"
            )

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return len(self.coins)

    @property
    def chosen(self) -> Tensor:
        """What is embedded: int8 [pairs, 3, H, W]."""
        return self.perturbations[torch.arange(self.pairs), self.coins.long()]

    @property
    def decoys(self) -> Tensor:
        """What is not: int8 [pairs, 3, H, W]."""
        return self.perturbations[torch.arange(self.pairs), (~self.coins).long()]

    @property
    def hash(self) -> str:
        """SHA-256 of everything in the key, hexadecimal: publish it before you need it."""
        total = hashlib.sha256(_canonical(self._fields()).encode())
        for name in _TENSORS:
            total.update(getattr(self, name).contiguous().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()

    def _fields(self) -> dict[str, Any]:
        preprocessing = dataclasses.asdict(self.preprocessing)
        del preprocessing["normalize"], preprocessing["geometry"]
        # Keys that are older than these fields have the same hash as before.
        for name in ("keep_exact_size", "crop_floor"):
            if name not in self.preprocessing.fitting:
                del preprocessing[name]
        return {
            "epsilon": self.epsilon,
            "preprocessing": preprocessing,
            "seed": str(self.seed),
            "encoder": self.encoder,
        }

    def save(self, path: str | Path) -> None:
        """Write the key to a safetensors file.

        It is a secret: whoever has it can remove the mark, or put it into another model.
        """
        metadata = {
            **{name: str(value) for name, value in FORMAT.head.items()},
            "key": _canonical(self._fields()),
            "hash": self.hash,
        }
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        data = serialize(tensors, metadata)
        write_atomically(path, lambda file: file.write(data))

    @classmethod
    def load(cls, path: str | Path, published: str | None = None) -> OwnershipKey:
        """Read a key that `save` wrote; nothing in it can run.

        Parameters
        ----------
        path : path
        published : str, optional
            The `hash` that was published, or its beginning (at least 16 digits). The file itself
            only shows that it was not damaged: whoever wrote another one has its hash in it too.

        Raises
        ------
        OwnershipError
            If the file cannot be read, holds something else, is not what `save` wrote (its content
            must have the hash that it names), or is not the key that was published.
        """
        with FORMAT.reading(path):
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                # Metadata are texts.
                version = int(metadata.get("format_version", 0))
                FORMAT.check({**metadata, "format_version": version})
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
            fields = json.loads(metadata["key"])
            preprocessing: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in fields["preprocessing"].items()
            }
            key = cls(
                **tensors,
                epsilon=float(fields["epsilon"]),
                preprocessing=Preprocessing(**preprocessing),
                seed=int(fields["seed"]),
                encoder=str(fields["encoder"]),
            )
            stated = metadata["hash"]
        where = str(path)
        if key.hash != stated:
            raise OwnershipError(
                f"{where!r} was changed after it was written: its content has the hash "
                f"{key.hash[:16]}..., and it names {stated[:16]}...; get the original file"
            )
        if published is not None and (len(published) < 16 or not stated.startswith(published)):
            raise OwnershipError(
                f"{where!r} is not the key that was published: its hash is {stated}, and not "
                f"{published!r} (give at least 16 digits)"
            )
        return key


def _canonical(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, allow_nan=False)
