"""The keyword arguments that a probe and its gate share: one list, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Real
from typing import Any, TypedDict

import torch

from pytest_watermark_guard.errors import SettingsError, did_you_mean
from pytest_watermark_guard.settings import Settings


class ProbeArguments(TypedDict, total=False):
    """Keyword arguments of `probe` and `assert_not_watermark_sensitive`.

    Attributes
    ----------
    class_names : sequence of str, or mapping of int to str
        One for each logit; default: those of the weights, of the model's attribute
        ``class_names``, or ImageNet's for 1000 logits.
    labels : sequence or mapping of int
        True class indices: one for each image, or by file name. Known without it where a Dataset
        gives (image, label), or folders carry the classes' names.
    outputs : {"auto", "logits", "features"}
        What the model returns. Default ``"auto"``: its attribute ``outputs`` if it has one, else
        found by trying: logits where something makes them of features, else features.
    device : str
        Default ``"auto"``: the GPU if there is one.
    precision : {"auto", "float32", "bfloat16"}
        Default ``"auto"``: on long runs, the fastest way of several is found by trying, among
        those where every unit agrees with float32 (see `models.running.tuning`).
        ``"float32"`` is plain float32, the same bits when repeated on one machine;
        ``"bfloat16"`` is autocast.
    max_images : int
        Take a seeded random subset of at most so many images.
    seed : int
        Of draws and subset, default 17.
    batch_size : int
        Images in a forward pass; halved when memory runs out. Default: 64, on a CPU two for each
        thread, and with ``precision="auto"`` what is fastest.
    name : str
        What reports call the model; default its spec or class.
    progress : bool
        Show a progress bar where standard error is a terminal and the variable ``CI`` is not set.
        Default True.
    control : bool or {"strokes", "blobs"}
        Probe with marks that are no text too: the mark's strokes, scrambled, and blobs of the same
        ink without strokes; or with one of the two. The report then says how units react to those
        alone (`ProbeReport.controls_alone`), and how far they tell the mark from its scrambled
        strokes (`ProbeReport.controls`). Default False.
    cache : bool
        Keep activations, and use those that an earlier probe of the same weights, images and
        marks has kept. Default True.
    examples : bool
        Note in the report which images move the worst units most and least, to be shown by
        `ProbeReport.to_html`. Default False.
    engine : {"ray"}
        Share the images out among the workers of a cluster: the same numbers to the last bit, in
        one precision (``"auto"`` is float32 then). Default: all in this process.
    allow : mapping of str to str
        Units that the gate leaves aside, with reasons; see `judge`.
    warn : float
        Units with d at or above it, which do not fail the gate, are strong reactions; default 0.8.
    strict : bool
        Strong reactions fail the gate too. Default False.
    inconclusive : {"error", "fail", "pass"}
        What becomes of a gate whose images are too few to tell. Default ``"error"``.
    max_flips : float
        Gate by predictions and not by d: the share of them that the marks may change beyond what
        blobs of as much ink change, which are then probed too.
    max_drop : float
        Gate by predictions and not by d: the points of top-1 accuracy that the marks may cost.
    no_worse : bool
        Units that rose beyond chance since the release of ``--wm-against`` fail the gate if they
        react strongly. Default False.
    early_stop : float
        Chance at which a gate's early verdict may differ from that of all images, default 0.001;
        0 uses all images.
    """

    class_names: Sequence[str] | Mapping[int, str] | None
    labels: Sequence[int] | Mapping[str, int] | None
    outputs: str | None
    device: str | torch.device | None
    precision: str | None
    max_images: int | None
    seed: int | None
    batch_size: int | None
    name: str | None
    progress: bool
    control: bool | str | None
    cache: bool | None
    examples: bool | None
    engine: str | None
    allow: Mapping[str, str] | None
    warn: float | None
    strict: bool | None
    inconclusive: str | None
    max_flips: float | None
    max_drop: float | None
    no_worse: bool | None
    early_stop: float | None


_BEFORE = ("images", "scenarios", "layers", "preprocess", "threshold")
"""What functions of a probe take besides."""


def check_arguments(function: str, images: object, arguments: Mapping[str, Any]) -> None:
    """Refuse what no probe takes.

    Raises
    ------
    TypeError
        If there is no argument of that name; says which one is near.
    SettingsError
        If a number stands where images belong.
    """
    __tracebackhide__ = True
    known = ProbeArguments.__annotations__
    for name in arguments:
        if name not in known:
            hint = did_you_mean(name, (*known, *_BEFORE)) or f"; it takes {', '.join(known)}"
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")
    if isinstance(images, Real):
        raise SettingsError(
            f"{function}: images is {images!r}; a threshold is passed by name: threshold={images!r}"
        )


def setting_values(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the arguments that are settings, by name."""
    names = {field.name for field in fields(Settings)}
    return {name: value for name, value in arguments.items() if name in names}
