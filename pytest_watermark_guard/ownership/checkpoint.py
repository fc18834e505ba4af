"""The state of an embedding under way, in a file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from pytest_watermark_guard.errors import OwnershipError

# What torch.load and a look into something else raise.
_UNREADABLE = (
    OSError, EOFError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, AttributeError,
)  # fmt: skip


class Checkpoint:
    """Keeps the state of one training, or nothing if there is no path.

    Parameters
    ----------
    path : path or None
    training : dict of str to plain data
        What makes the training what it is; another one must not go on from this state.
    """

    def __init__(self, path: str | Path | None, training: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._training = training

    def read(self) -> dict[str, Any] | None:
        """Return the state, if one was kept.

        Raises
        ------
        OwnershipError
            If the file holds something else, or the state of another training.
        """
        if self._path is None or not self._path.exists():
            return None
        where = str(self._path)
        try:
            kept = torch.load(self._path, map_location="cpu", weights_only=True)
            training, state = kept["training"], kept["state"]
        except _UNREADABLE as error:
            raise OwnershipError(
                f"checkpoint {where!r} cannot be read ({type(error).__name__}); delete it to start "
                "anew, or name another file"
            ) from error
        for name, value in self._training.items():
            if training.get(name) != value:
                raise OwnershipError(
                    f"checkpoint {where!r} is of another {name} ({training.get(name)!r}, and here "
                    f"{value!r}); delete it to start anew, or name another file"
                )
        found: dict[str, Any] = state
        return found

    def write(self, state: dict[str, Any]) -> None:
        """Replace what is kept, at once or not at all."""
        if self._path is None:
            return
        unfinished = self._path.with_name(f"{self._path.name}.unfinished")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"training": self._training, "state": state}, unfinished)
            unfinished.replace(self._path)
        except (OSError, RuntimeError) as error:
            first, *_ = str(error).splitlines() or [""]
            raise OwnershipError(
                f"checkpoint {str(self._path)!r} cannot be written: {first}"
            ) from error
