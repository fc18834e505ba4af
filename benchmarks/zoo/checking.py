"""Holding what the product finds in a model against what is known about it."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import WatermarkGuardError
from pytest_watermark_guard.models.loading.introspection import resolve_preprocessing
from pytest_watermark_guard.models.near_misses import check_module
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from zoo.case import Case, awake, vector

EQUAL, ASSUMED, REFUSED, SAID, WRONG = "equal", "assumed", "refused", "said", "WRONG"
VERDICTS = (EQUAL, ASSUMED, REFUSED, SAID, WRONG)  # from the best to the worst
UNBUILT = "not built"
# Of the largest number.
_CLOSE = 1e-4
# In steps of 8 bits, of one picture: Pillow and torch round differently where they resample.
_MEAN, _LARGEST = 0.3, 12.0


@dataclass
class Outcome:
    """What was found for one model."""

    library: str
    model: str
    parts: dict[str, str] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        if UNBUILT in self.parts.values():
            return UNBUILT
        return max(self.parts.values(), key=VERDICTS.index)

    def add(self, part: str, verdict: str, detail: str = "") -> None:
        self.parts[part] = verdict
        if detail:
            self.details.append(f"{part}: {detail}")


@cache
def pictures() -> tuple[Image.Image, ...]:
    """Return photos of several shapes, cut from the two that scikit-learn ships."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "images"
    found = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(folder / name) as image:
            photo = image.convert("RGB")
        for box in ((0, 0, 400, 300), (200, 60, 640, 420), (120, 20, 420, 420)):
            found.append(photo.crop(box))
    return tuple(found)


def check(library: str, case: Case) -> Outcome:
    """Build a model and compare."""
    outcome = Outcome(library, case.name)
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = case.build()
            if isinstance(model, nn.Module):
                model = awake(model.eval())
    except Exception as error:
        outcome.add("build", UNBUILT, _short(error))
        return outcome
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _compare(case, model, outcome)
        except WatermarkGuardError as error:
            outcome.add("error", REFUSED if case.refused else SAID, _short(error))
        except Exception as error:
            outcome.add("crash", WRONG, _short(error))
    return outcome


def _compare(case: Case, model: Any, outcome: Outcome) -> None:
    check_module(model)  # as the probe does, which asks for a preprocessing afterwards
    preprocessing = resolve_preprocessing(case.preprocess, model)
    report = wm.probe(
        model,
        [np.asarray(picture.resize((320, 256))) for picture in pictures()[:4]],
        ("chinese",),
        preprocess=preprocessing,
        outputs=case.outputs,
        device="cpu",
        precision="float32",
        cache=False,
        progress=False,
    )
    if case.refused:
        told = "; ".join(note for note in report.notes if "no head found" in note)
        probed = ", ".join(_widths(report))
        outcome.add("refusal", SAID if told else WRONG, f"{probed} were probed; {told}")
        return
    _compare_pixels(case, model, preprocessing, outcome)
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    inputs = torch.stack([_input(preprocessing, picture) for picture in pictures()])
    inputs = inputs.to(next(iter(dtypes), torch.float32))
    # Layers are found on some of the pictures and read on others, in another order.
    recorder = ActivationRecorder(model, ("logits", "features"), inputs[:4], case.outputs)
    shown = inputs.flip(0)[:3]
    torch.manual_seed(1)  # for networks that draw their weights
    with recorder:
        read = recorder(shown)
    said = [note for note in report.notes if note not in preprocessing.notes]
    wanted = {"logits": case.logits, "features": case.features}
    for layer, oracle in wanted.items():
        torch.manual_seed(1)
        theirs = None if oracle is None else vector(oracle(model, shown)).float()
        _compare_layer(layer, read.get(layer), theirs, said, outcome)
        if layer in read and len(report[layer, "chinese"].auroc) != read[layer].shape[1]:
            outcome.add(layer, WRONG, "the report has another number of units")
    if more := [layer for layer in report.layers if layer not in ("logits", "features")]:
        outcome.details.append(f"also {', '.join(more)}")


def _compare_layer(
    layer: str, ours: Tensor | None, theirs: Tensor | None, notes: list[str], outcome: Outcome
) -> None:
    told = "; ".join(note for note in notes if layer in note or "head" in note)
    if ours is None and theirs is None:
        return
    if ours is None:
        outcome.add(layer, SAID if told else WRONG, f"not read: {told}")
    elif theirs is None:
        outcome.add(layer, SAID if told else WRONG, f"{ours.shape[1]} units, not known; {told}")
    elif _same(ours, theirs):
        outcome.add(layer, EQUAL)
    else:
        off = f"{ours.shape[1]} units for {theirs.shape[1]}"
        if ours.shape == theirs.shape:
            off = f"off by {float((ours - theirs).abs().max() / theirs.abs().max()):.2g}"
        outcome.add(layer, SAID if told else WRONG, f"{off}; {told}")


def _compare_pixels(case: Case, model: Any, preprocessing: Any, outcome: Outcome) -> None:
    assumed = "; ".join(preprocessing.notes)
    if case.preprocess != "auto":
        return
    if case.transform is None:
        outcome.add("pixels", ASSUMED if assumed else WRONG, assumed or preprocessing.source)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transform = case.transform(model)
        black, white = (
            transform(Image.new("RGB", (300, 300), (level,) * 3)).float() for level in (0, 255)
        )
        step = (white - black).abs().amax((1, 2), keepdim=True) / 255
        mean = largest = 0.0
        for picture in pictures():
            theirs, ours = transform(picture).float(), _input(preprocessing, picture)
            if ours.shape != theirs.shape:
                off = f"{[*ours.shape]} for {[*theirs.shape]}"
                break
            difference = (ours - theirs).abs() / step
            mean, largest = (
                max(mean, float(difference.mean())),
                max(largest, float(difference.max())),
            )
        else:
            off = f"off by {mean:.2g} steps of 8 bits, {largest:.2g} at most"
            if mean <= _MEAN and largest <= _LARGEST:
                outcome.add("pixels", EQUAL)
                return
    outcome.add("pixels", SAID if assumed else WRONG, f"{off}; {assumed or preprocessing.source}")


def _input(preprocessing: Any, picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(preprocessing.fit(picture).copy()).permute(2, 0, 1)[None]
    return preprocessing.to_input(pixels)[0]


def _same(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    return float((ours.float() - theirs).abs().max()) <= _CLOSE * float(theirs.abs().max())


def _widths(report: Any) -> list[str]:
    return [f"{layer} ({len(report[layer, 'chinese'].auroc)})" for layer in report.layers]


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
