"""Activations that an earlier probe computed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.caching.keys import NoKeyError
from pytest_watermark_guard.caching.store import Store
from pytest_watermark_guard.images.looks import LOOK, Looks
from pytest_watermark_guard.probing.activation_buffer import Array
from pytest_watermark_guard.probing.caches.contents import are_activations, text, texts
from pytest_watermark_guard.probing.caches.keys import CacheKeys
from pytest_watermark_guard.probing.caches.used_images import (
    ContentRows,
    with_contents,
    with_rows,
)
from pytest_watermark_guard.probing.recording import Recording
from pytest_watermark_guard.watermarks.streams import UNMARKED

Table = npt.NDArray[np.void]
"""Rows of images with their contents, see `used_images.with_contents`."""


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
    answers : mapping of (stream, layer) to ndarray
        What the model answered to the first images, see `first_answers`, where k > 0.
    looks : ndarray
        What the images look like, of as many as any array has.
    contents : tuple of (stream, ndarray)
        What the images of each array were; see `ActivationCache.holds`.
    """

    layers: tuple[str, ...]
    notes: tuple[str, ...]
    plan: str
    weights: str
    run: str
    arrays: Mapping[tuple[str, str], Array]
    answers: Mapping[tuple[str, str], Array]
    looks: Looks
    contents: tuple[tuple[str, ContentRows], ...]

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

    def until(self, images: int) -> CachedActivations:
        """Return what is known of the first images alone."""
        return replace(
            self,
            arrays={key: rows[:images] for key, rows in self.arrays.items()},
            looks=self.looks[:images],
        )

    def part(self, streams: Sequence[str], first: int, last: int) -> dict[tuple[str, str], Array]:
        """Return some images' activations."""
        return {
            (s, layer): self.arrays[s, layer][first:last] for s in streams for layer in self.layers
        }


@dataclass(frozen=True)
class ActivationCache:
    """Keeps one probe's activations.

    Scores compare streams, whose activations must have been computed alike. Those in float32
    throughout are, whichever run they come from. A run that found bfloat16 to agree may have
    computed some images in it and others not: its activations are kept under a name of its own,
    and used together or not at all. So are those of ``precision="float32"``, which must be the
    same to the last bit: there, another set of streams makes other batches.
    """

    store: Store
    keys: CacheKeys

    def load(
        self, streams: Sequence[str], layers: Sequence[str], images: int
    ) -> CachedActivations | None:
        """Return what is known of these layers of `images`, or None if nothing is."""
        loaded = [
            self._load(key, streams, images)
            for key in (self._facts_key(layers), self._facts_key(layers, streams))
        ]
        known = [cached for cached in loaded if cached is not None]
        return max(known, key=lambda cached: cached.complete, default=None)

    def _load(self, key: str, streams: Sequence[str], images: int) -> CachedActivations | None:
        facts = self.store.get("layers", key, _facts)
        if facts is None:
            return None
        found_looks = self._looks()
        if found_looks is None:  # removed to make room
            return None
        looks = found_looks["row"][:images]
        contents = [(UNMARKED, found_looks["content"])]
        arrays, answers = {}, {}
        for layer in facts["layers"]:
            places = [(stream, layer, facts["run"]) for stream in streams]
            found = [(self._array(*place), self._array(*place, "answers")) for place in places]
            if not self._of_one_width(places, found):
                found = [(None, None)] * len(places)
            for stream, (array, answer) in zip(streams, found, strict=True):
                if array is None or answer is None:
                    arrays[stream, layer] = np.empty((0, 0), np.float32)
                else:
                    arrays[stream, layer] = array["row"][: len(looks)]
                    answers[stream, layer] = answer["row"]
                    contents += [(stream, array["content"]), (stream, answer["content"])]
        return CachedActivations(
            **facts, arrays=arrays, answers=answers, looks=looks, contents=tuple(contents)
        )

    def holds(self, cached: CachedActivations, first: int, last: int) -> bool:
        """Tell whether images `first` to `last` are what they were; no others are read."""
        try:
            now = {
                stream: self.keys.images.contents(stream, first, last)
                for stream in dict.fromkeys(stream for stream, _ in cached.contents)
            }
        except NoKeyError:
            return False
        return all(
            np.array_equal(before[first:last], now[stream][: max(0, len(before) - first)])
            for stream, before in cached.contents
        )

    def _of_one_width(
        self,
        places: Sequence[tuple[str, ...]],
        found: Sequence[tuple[Table | None, Table | None]],
    ) -> bool:
        """Tell whether all arrays of a layer have as many units; else none of them is used."""
        arrays = [array["row"] for pair in found for array in pair if array is not None]
        if len({array.shape[1] for array in arrays}) <= 1:
            return True
        for place in places:
            for key in (self._array_key(*place), self._array_key(*place, "answers")):
                self.store.reject_array("activations", key)
        return False

    def save(
        self,
        recording: Recording,
        layers: Sequence[str],
        plan: str,
        answers: Mapping[tuple[str, str], Array],
        *,
        lower: bool,
        replace: bool,
    ) -> str:
        """Keep a recording, if it can be, as far as it goes beyond what is kept already.

        Parameters
        ----------
        recording : Recording
        layers : sequence of str
            As asked for.
        plan : str
            How the model was run.
        answers : mapping of (stream, layer) to ndarray
            What the model answers to the first images, for all streams that were computed.
        lower : bool
            Whether a faster precision was found, and some of it may have been computed so.
        replace : bool
            Whether what is kept already is not the model's answer any more.

        Returns
        -------
        str
            Which run it comes from.
        """
        run = uuid4().hex if lower else self.keys.exact
        if not recording.keepable:
            return run
        images, put = self.keys.images, self.store.put_array
        try:
            contents = {s: images.contents(s, 0, len(recording)) for s in recording.streams}
        except NoKeyError:
            return run
        facts = {
            "layers": [*recording.names],
            "notes": recording.model_notes,
            "plan": plan,
            "weights": recording.weights,
            "run": run,
        }
        if not _goes_as_far(self._looks(), contents[UNMARKED]):
            put("looks", self._looks_key, with_contents(recording.looks, contents[UNMARKED]))
        for stream in recording.streams:
            for layer in recording.names:
                known = None if replace else self._array(stream, layer, run)
                if self._array(stream, layer, run, "answers") is None:
                    known = None  # removed to make room: nothing could be checked
                if _goes_as_far(known, contents[stream]):
                    continue
                rows = with_contents(recording[stream, layer].columns(), contents[stream])
                put("activations", self._array_key(stream, layer, run), rows)
                if (stream, layer) in answers:
                    first = answers[stream, layer]
                    rows = with_contents(first, contents[stream][: len(first)])
                    put("activations", self._array_key(stream, layer, run, "answers"), rows)
        # Last: it says that the others are there.
        for some in _parts(layers, facts):
            key = self._facts_key(some, recording.streams if lower else ())
            of_these = facts if some == tuple(layers) else {**facts, "layers": some}
            self.store.put("layers", key, json.dumps(of_these).encode())
        return run

    def _array(self, *place: str) -> Table | None:
        key = self._array_key(*place)
        return self.store.get_array("activations", key, check=with_rows(are_activations))

    def _looks(self) -> Table | None:
        return self.store.get_array(
            "looks", self._looks_key, check=with_rows(lambda looks: looks.dtype == LOOK)
        )

    @property
    def _looks_key(self) -> str:
        return self.keys.key("looks")

    def _array_key(self, stream: str, layer: str, run: str, *more: str) -> str:
        return self.keys.key(self.keys.streams[stream], layer, run, *more)

    def _facts_key(self, layers: Sequence[str], streams: Sequence[str] = ()) -> str:
        drawn = (self.keys.streams[stream] for stream in streams)
        return self.keys.key(self.keys.exact, json.dumps([*layers]), *drawn)


def _goes_as_far(known: Table | None, contents: ContentRows) -> bool:
    """Tell whether what is kept already is of these images, or of more."""
    return known is not None and np.array_equal(known["content"][: len(contents)], contents)


def _facts(payload: bytes) -> dict[str, Any]:
    """Return what `ActivationCache.save` keeps beside the arrays."""
    data = json.loads(payload)
    layers = texts(data["layers"])
    if not layers:
        raise ValueError("no layers")
    facts: dict[str, Any] = {name: text(data[name]) for name in ("plan", "weights", "run")}
    return {"layers": layers, "notes": texts(data["notes"]), **facts}


def _parts(layers: Sequence[str], facts: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Give the layers, and those by themselves of which as much is known."""
    yield tuple(layers)
    # Notes may be on any of them.
    if len(layers) > 1 and not facts["notes"] and set(facts["layers"]) == set(layers):
        yield from ((layer,) for layer in layers)
