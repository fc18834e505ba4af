"""The state of an embedding under way, in a file."""

from __future__ import annotations

import pickle
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from pytest_watermark_guard.caching.files import write_atomically
from pytest_watermark_guard.errors import OwnershipError
from pytest_watermark_guard.reports.documents import DocumentFormat

FORMAT = DocumentFormat(
    "ownership-checkpoint",
    "checkpoint",
    OwnershipError,
    "delete it to start anew, or name another file",
)


class Checkpoint:
    """Keeps the state of one training, or nothing if there is no path.

    `training` is what makes the training what it is; another one must not go on from this state.
    """

    def __init__(self, path: str | Path | None, training: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._training = training

    def read(self) -> dict[str, Any] | None:
        """Return the state, if one was kept; `OwnershipError` if it is of another training."""
        if self._path is None or not self._path.exists():
            return None
        with FORMAT.reading(self._path):
            data = _load(self._path)
            if "format" in data:  # the first checkpoints had none
                FORMAT.check(data)
            training: dict[str, Any] = data["training"]
            state: dict[str, Any] = data["state"]
        for name, value in self._training.items():
            if training.get(name) != value:
                raise OwnershipError(
                    f"checkpoint {str(self._path)!r} is of another {name} "
                    f"({training.get(name)!r}, and here {value!r}); {FORMAT.advice}"
                )
        return state

    def reading(self) -> AbstractContextManager[None]:
        """Turn whatever goes wrong when its state is taken over into one error with its name."""
        return FORMAT.reading(self._path)

    def write(self, state: dict[str, Any]) -> None:
        """Replace what is kept, at once or not at all."""
        if self._path is None:
            return
        data = {**FORMAT.head, "training": self._training, "state": state}
        try:
            write_atomically(self._path, lambda file: torch.save(data, file))
        except (OSError, RuntimeError) as error:
            first, *_ = str(error).splitlines() or [""]
            raise OwnershipError(
                f"checkpoint {str(self._path)!r} cannot be written: {first}"
            ) from error


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except pickle.UnpicklingError as error:
        # Its text advises to load the file in a way in which it could run code.
        raise OwnershipError("it is no file of tensors and plain data") from error
