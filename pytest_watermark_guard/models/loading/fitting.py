"""Loading weights into a module under whatever prefix they were saved."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pytest_watermark_guard.errors import ModelSpecError
from pytest_watermark_guard.models.loading.checkpoints import read_checkpoint
from pytest_watermark_guard.models.loading.unpickling import listed

_BATCHES = "num_batches_tracked"
_COUNTERS = ("total_ops", "total_params")  # of thop, a profiler


def load_checkpoint(module: nn.Module, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Load a checkpoint into a module; every one of its names and shapes must be there.

    Parameters
    ----------
    module : torch.nn.Module
        Its parameters and buffers are overwritten, unless an error is raised.
    path : path
        See `read_checkpoint`.

    Returns
    -------
    tuple of str
        What was chosen, taken off or left out, for the report.

    Raises
    ------
    ModelSpecError
        When the file cannot be read or does not belong to the module: names the first keys that
        are missing, unexpected or of another shape.
    """
    state, notes = read_checkpoint(path)
    return (*notes, *load_state_dict(module, state, path))


def load_state_dict(
    module: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> tuple[str, ...]:
    """Load ``state``, which was read from ``path``, into a module; see `load_checkpoint`.

    The names may have a prefix, of a wrapper (``module.``, ``_orig_mod.``) or of the larger model
    that the module is a part of (``model.``, ``backbone.``), if under one prefix alone they fit.
    """
    own: Mapping[str, Any] = module.state_dict()
    harmless = [key for key in state if key not in own and _is_harmless(key, own)]
    others = {key: state[key] for key in state if key not in {*harmless}}
    votes = _prefixes(own, others)
    best = max(votes, key=lambda prefix: (votes[prefix], not prefix))
    needed = sum(not key.endswith(_BATCHES) for key in own)
    fits = [_Fit.of(own, others, p) for p in votes if p == best or votes[p] >= needed]
    good = [fit for fit in fits if fit.complete]
    # Names that fit as they are need no prefix, whatever else there is.
    averaged = [fit for fit in good if fit.averaged]
    chosen = next((fit for fit in good if not fit.prefix), _only(averaged) or _only(good))
    file = Path(path).name
    if chosen is None:
        if good:
            prefixes = [repr(fit.prefix) for fit in good]
            raise ModelSpecError(
                f"{os.fspath(path)} holds weights that fit {type(module).__name__} under several "
                f"prefixes ({listed(prefixes)}): save those that you mean alone, "
                "{k.removeprefix(p): v for k, v in state.items() if k.startswith(p)}"
            )
        closest = next(fit for fit in fits if fit.prefix == best)
        raise ModelSpecError(f"{os.fspath(path)} does not fit {closest.told(module, own)}")
    module.load_state_dict(chosen.state, strict=False)
    notes = []
    if chosen.averaged and len(good) > 1:
        notes.append(f"weights: the averaged ones in {file} ({chosen.prefix!r}) were taken")
    if chosen.prefix:
        notes.append(f"weights: the prefix {chosen.prefix!r} was taken off the names in {file}")
    left_out = [*chosen.outside, *harmless]
    if left_out:
        notes.append(f"weights: {file} holds more, which was left out: {listed(left_out)}")
    return tuple(notes)


@dataclass(frozen=True)
class _Fit:
    """How far the weights under one prefix fit a module."""

    prefix: str
    state: dict[str, Tensor]
    outside: list[str]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    @classmethod
    def of(cls, own: Mapping[str, Any], state: Mapping[str, Tensor], prefix: str) -> _Fit:
        within = {
            key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)
        }
        return cls(
            prefix,
            within,
            [key for key in state if not key.startswith(prefix)],
            # Batch norm's counter is younger than many checkpoints, and unused in evaluation.
            [k for k in own if k not in within and not k.endswith(_BATCHES)],
            [key for key in within if key not in own],
            [
                key
                for key in own
                if key in within
                and isinstance(own[key], Tensor)
                and own[key].shape != within[key].shape
            ],
        )

    @property
    def averaged(self) -> bool:
        return any("ema" in part.split("_") for part in self.prefix.split("."))

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def told(self, module: nn.Module, own: Mapping[str, Any]) -> str:
        """Tell what does not fit, and what may help."""
        problems = [
            f"{len(keys)} {what} ({listed(keys)})"
            for what, keys in (("missing", self.missing), ("unexpected", self.unexpected))
            if keys
        ]
        if self.misshapen:
            shapes = [
                f"{key} {[*self.state[key].shape]} instead of {[*own[key].shape]}"
                for key in self.misshapen
            ]
            problems.append(f"{len(self.misshapen)} of another shape ({listed(shapes)})")
        without = f", also without the prefix {self.prefix!r}" if self.prefix else ""
        if without and self.missing and self.outside:
            problems.append(f"while other names do not have the prefix ({listed(self.outside)})")
        return f"{type(module).__name__}{without}: {', '.join(problems)}{self._advice(own)}"

    def _advice(self, own: Mapping[str, Any]) -> str:
        if any(".lora_" in key for key in (*self.unexpected, *self.outside)):
            return "; it holds an adapter (LoRA): merge it into its base first, merge_and_unload()"
        if self.missing or self.unexpected:
            return ""
        counts = {self.state[key].shape[:1] for key in self.misshapen}
        if len(counts) == 1 and all(
            own[key].ndim > 0 and own[key].shape[1:] == self.state[key].shape[1:]
            for key in self.misshapen
        ):
            classes = self.state[self.misshapen[-1]].shape[0]
            return f"; only the head differs: add num_classes={classes}"
        return ""


def _only(fits: list[_Fit]) -> _Fit | None:
    return fits[0] if len(fits) == 1 else None


def _prefixes(own: Mapping[str, Any], keys: Iterable[str]) -> Counter[str]:
    """Return the prefixes without which names are the module's own, and for how many they are."""
    votes = Counter({"": 0})
    for key in keys:
        for prefix in _starts(key):
            if key[len(prefix) :] in own:
                votes[prefix] += 1
    return votes


def _starts(key: str) -> Iterator[str]:
    parts = key.split(".")
    for length in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:length])


def _is_harmless(key: str, own: Mapping[str, Any]) -> bool:
    """Tell a profiler's counters, and the copies that mmcv's EMA hook keeps beside the average."""
    if key.rpartition(".")[2] in _COUNTERS:
        return True
    name = key.removeprefix("ema_")
    return name != key and any(known.replace(".", "_") == name for known in own)
