"""Activations that an earlier probe computed, under keys of all that they depend on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import PIL
import torch
from torch import nn

from pytest_watermark_guard.caching.fingerprint import (
    fingerprint,
    fingerprint_files,
    fingerprint_model,
)
from pytest_watermark_guard.caching.store import Store
from pytest_watermark_guard.images.batches import ProbingBatches
from pytest_watermark_guard.images.folder import paired_path
from pytest_watermark_guard.models.running.execution import Plan
from pytest_watermark_guard.probing.activation_buffer import Array
from pytest_watermark_guard.probing.recording import Recording
from pytest_watermark_guard.statistics.auroc import Floats
from pytest_watermark_guard.version import __version__
from pytest_watermark_guard.watermarks.scenarios import AnyScenario, PairedFolder
from pytest_watermark_guard.watermarks.streams import UNMARKED, control_of
from pytest_watermark_guard.watermarks.text import font_path

_FORMAT = "activations/3"  # raise the number when the same key would mean other numbers


@dataclass(frozen=True)
class CachedActivations:
    """What is known from earlier.

    Attributes
    ----------
    layers : tuple of str
        Those that the model has, of those asked for.
    notes : tuple of str
        What was guessed or left out when they were found.
    plan : str
        How the model was run.
    weights : str
        Identity of the model below its head.
    run : str
        Which run they come from, see `ActivationCache`; empty if it makes no difference.
    arrays : mapping of (stream, layer) to ndarray, shape [k, units]
        The first k images, in the probe's order; k may differ, and be 0.
    """

    layers: tuple[str, ...]
    notes: tuple[str, ...]
    plan: str
    weights: str
    run: str
    arrays: Mapping[tuple[str, str], Array]

    def length(self, stream: str) -> int:
        """Return for how many images all layers of a stream are known."""
        return min(len(self.arrays[stream, layer]) for layer in self.layers)

    @property
    def complete(self) -> int:
        """For how many images everything is known."""
        return min(self.length(stream) for stream, _ in self.arrays)

    @property
    def partial(self) -> bool:
        """Whether more is known of some streams than of others."""
        return len({self.length(stream) for stream, _ in self.arrays}) > 1

    def part(self, streams: Sequence[str], first: int, last: int) -> dict[tuple[str, str], Array]:
        """Return some images' activations."""
        return {
            (s, layer): self.arrays[s, layer][first:last] for s in streams for layer in self.layers
        }


class ActivationCache:
    """Keeps one probe's activations, and the fastest way to run its model.

    Scores compare streams, whose activations must have been computed alike. Those in float32
    throughout are, whichever run they come from. A run that found bfloat16 to agree may have
    computed some images in it and others not: its activations are kept under a name of its own,
    and used together or not at all. So are those of ``precision="float32"``, which must be the
    same to the last bit: there, another set of streams makes other batches.

    Parameters
    ----------
    store : Store
    module : torch.nn.Module
    batches : ProbingBatches
    precision : str
        As asked for: what is found to be the fastest may differ from run to run.
    batch_size : int, optional
        As asked for.

    Raises
    ------
    Unfingerprintable
        If not everything that the activations depend on can be told apart from its like.
    """

    def __init__(
        self,
        store: Store,
        module: nn.Module,
        batches: ProbingBatches,
        precision: str,
        batch_size: int | None = None,
    ) -> None:
        self._store = store
        model = fingerprint_model(module)
        size = batches.preprocessing.size
        self._exact = (
            fingerprint((batches.streams, batch_size, torch.get_num_threads()))
            if precision == "float32"
            else ""
        )
        machine = (
            batches.device.type,
            torch.__version__,
            torch.get_num_threads(),
            platform.machine(),
            device_name(batches.device),
        )
        version = __version__
        self._plan_key = fingerprint(
            (_FORMAT, version, model, machine, precision, size, batch_size)
        )
        seed, baseline = batches.seed, batches.baseline
        self._base = fingerprint(
            (
                _FORMAT,
                model,
                # What images and rounding depend on beside.
                (version, torch.__version__, PIL.__version__),
                (batches.device.type, precision, batches.dtype),
                _float32_settings(),
                device_name(batches.device),
                fingerprint(batches.preprocessing, "preprocess"),
                baseline.content(),
                baseline.identities,
            )
        )
        self._streams = {UNMARKED: fingerprint("")}
        for scenario in batches.scenarios:
            drawn = _fingerprint_scenario(scenario, seed, baseline.identities)
            self._streams[scenario.name] = drawn
            self._streams[control_of(scenario.name)] = fingerprint((drawn, "control"))

    def load(self, streams: Sequence[str], layers: Sequence[str]) -> CachedActivations | None:
        """Return what is known of these layers, or None if nothing is."""
        found = [
            self._load(key, streams)
            for key in (self._facts_key(layers), self._facts_key(layers, streams))
        ]
        kept = [one for one in found if one is not None]
        return max(kept, key=lambda one: one.complete, default=None)

    def _load(self, key: str, streams: Sequence[str]) -> CachedActivations | None:
        found = self._store.get("layers", key)
        if found is None:
            return None
        facts: dict[str, Any] = json.loads(found)
        arrays = {}
        for stream in streams:
            for layer in facts["layers"]:
                array = self._array(stream, layer, facts["run"])
                arrays[stream, layer] = np.empty((0, 0), np.float32) if array is None else array
        told = facts["plan"], facts["weights"], facts["run"]
        return CachedActivations(tuple(facts["layers"]), tuple(facts["notes"]), *told, arrays)

    def save(self, recording: Recording, layers: Sequence[str], plan: str, lower: bool) -> str:
        """Keep a recording, if it can be, as far as it goes beyond what is kept already.

        Parameters
        ----------
        recording : Recording
        layers : sequence of str
            As asked for.
        plan : str
            How the model was run.
        lower : bool
            Whether a faster precision was found, and some of it may have been computed so.

        Returns
        -------
        str
            Which run it comes from, for `scores`.
        """
        run = uuid4().hex if lower else self._exact
        if not recording.keepable:
            return run
        facts = {
            "layers": [*recording.names],
            "notes": recording.model_notes,
            "plan": plan,
            "weights": recording.weights,
            "run": run,
        }
        for stream in recording.streams:
            for layer in recording.names:
                known = self._array(stream, layer, run)
                if known is None or len(known) < len(recording):
                    key = self._array_key(stream, layer, run)
                    self._store.put_array("activations", key, recording[stream, layer].columns())
        # Last: it says that the others are there.
        for some in _parts(layers, facts):
            key = self._facts_key(some, recording.streams if lower else ())
            told = facts if some == tuple(layers) else {**facts, "layers": some}
            self._store.put("layers", key, json.dumps(told).encode())
        return run

    def scores(
        self, layer: str, pairs: Sequence[tuple[str, str]], images: int, run: str
    ) -> dict[tuple[str, str], tuple[Floats, Floats]]:
        """Return AUROC and standard error for those pairs of streams where they are kept."""
        found = {}
        for pair in pairs:
            array = self._store.get_array(
                "scores", self._scores_key(layer, pair, images, run), mmap=False
            )
            if array is not None:
                found[pair] = array[0], array[1]
        return found

    def keep_scores(
        self,
        layer: str,
        scores: Mapping[tuple[str, str], tuple[Floats, Floats]],
        images: int,
        run: str,
    ) -> None:
        """Keep what `scores` returns."""
        for pair, both in scores.items():
            key = self._scores_key(layer, pair, images, run)
            self._store.put_array("scores", key, np.stack(both))

    def _scores_key(self, layer: str, pair: tuple[str, str], images: int, run: str) -> str:
        return self._key(*(self._streams[stream] for stream in pair), layer, str(images), run)

    def _array(self, stream: str, layer: str, run: str) -> Array | None:
        return self._store.get_array("activations", self._array_key(stream, layer, run))

    def _array_key(self, stream: str, layer: str, run: str) -> str:
        return self._key(self._streams[stream], layer, run)

    def _facts_key(self, layers: Sequence[str], streams: Sequence[str] = ()) -> str:
        drawn = (self._streams[stream] for stream in streams)
        return self._key(self._exact, json.dumps([*layers]), *drawn)

    def result(self, asked: str) -> str | None:
        """Return the text that was kept for what is asked beside all that this cache knows."""
        found = self._store.get("results", self._result_key(asked))
        return None if found is None else found.decode()

    def keep_result(self, asked: str, text: str) -> None:
        """Keep what `result` returns."""
        self._store.put("results", self._result_key(asked), text.encode())

    def _result_key(self, asked: str) -> str:
        return self._key("result", self._exact, *self._streams.values(), asked)

    def plan(self) -> Plan | None:
        """Return the fastest way to run the model on this machine, where it is known."""
        found = self._store.get("plans", self._plan_key)
        return None if found is None else Plan(**json.loads(found))

    def remember(self, plan: Plan) -> None:
        """Keep the fastest way to run the model on this machine."""
        self._store.put("plans", self._plan_key, json.dumps(plan.to_dict()).encode())

    def _key(self, *rest: str) -> str:
        return fingerprint((self._base, rest))


def _parts(layers: Sequence[str], facts: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Give the layers, and those by themselves of which as much is known."""
    yield tuple(layers)
    # Notes may be on any of them.
    if len(layers) > 1 and not facts["notes"] and set(facts["layers"]) == set(layers):
        yield from ((layer,) for layer in layers)


def _fingerprint_scenario(scenario: AnyScenario, seed: int, identities: Sequence[str]) -> str:
    if isinstance(scenario, PairedFolder):
        folder = Path(scenario.folder).expanduser()
        copies = [os.path.relpath(paired_path(folder, name), folder) for name in identities]
        return fingerprint_files(folder, copies)
    path = font_path(scenario)
    return fingerprint((scenario, seed, fingerprint_files(path.parent, [path.name])))


def _float32_settings() -> object:
    """Return what float32 may mean on this machine: the old way to ask fails after the new."""
    owners = [torch.backends.cuda, torch.backends.mkldnn, torch.backends.cudnn]
    parts = [getattr(owner, name, None) for owner in owners for name in ("matmul", "conv")]
    found = [getattr(part, "fp32_precision", None) for part in parts]
    return found if any(found) else torch.get_float32_matmul_precision()


def device_name(device: torch.device) -> str:
    """Return what a graphics card is called, or what the processor can compute with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()
