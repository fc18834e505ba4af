"""Someone else's preprocessing, tried on photos: what it does counts, not what it is called.

A `Preprocessing` that was read from another library's object is only as good as our knowledge of
that library. So the object is run, and ours is used only where it gives the same pixels. Where it
does not, theirs is used as it is, in two parts with the mark between them: the steps that resize
and crop, and the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pytest_watermark_guard.errors import PreprocessingError
from pytest_watermark_guard.models.loading.pictures import exact, photos
from pytest_watermark_guard.models.loading.pipelines import (
    Pipeline,
    Pixels,
    pipeline_of,
    shuffled_alike,
)
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing
from pytest_watermark_guard.models.state import same_random_state

# In steps of 8 bits. Implementations of the same filter round differently, by 0.14 in the mean and
# 5 in a single pixel at most (bytes of torch against Pillow's, enlarging by cubics). What differs
# is further off: lanczos for bicubic by 0.55 and 15, without antialiasing by 1.3 and 50, a crop
# that is off by one pixel by 5 and 140.
_MEAN_ROUNDING, _LARGEST_ROUNDING = 0.25, 7.0
# Scaling of values has no such freedom; half precision may have been used.
_SCALING = 0.1
# Theirs cut in two: what lay between is rounded to 8 bits, a quarter of a step in the mean.
_MEAN_CUT, _MEAN_EXACT = 0.3, 1e-3
_LEVELS = (0, 64, 192, 255)
_REPEATS = 8  # a flip of every second image would escape these once in 128 times

_WAY_OUT = (
    "pass preprocess= a function of a float32 batch [B, 3, H, W] in [0, 1] that does what follows "
    "on resizing and cropping, or a torchvision.transforms.Compose of single steps"
)


def tried(
    transform: Any,
    name: str,
    translate: Callable[[], Preprocessing] | None = None,
    *,
    keep_exact_size: bool = False,
) -> Preprocessing:
    """Return what does the same as someone else's transform.

    Parameters
    ----------
    transform : Compose, image processor or callable on a PIL image
    name : str
        What messages and reports call it.
    translate : callable, optional
        Reads its attributes as a `Preprocessing`; it may fail. Used where it gives the same
        pixels on photos of many sizes, the input's among them.
    keep_exact_size : bool
        Of a translation: whether photos of the input size are left as they are all the same.

    Raises
    ------
    PreprocessingError
        If it fails on photos, gives inputs of different shapes, is random, or its resizing cannot
        be told apart from the rest.
    """
    with same_random_state(), torch.no_grad():
        found = _Trial(pipeline_of(transform, name), name).result(translate)
    return dataclasses.replace(found, keep_exact_size=True) if keep_exact_size else found


def is_foreign(normalize: Any) -> bool:
    """Tell whether a `Preprocessing.normalize` is the rest of a transform that was tried."""
    return isinstance(normalize, _EachImage)


class _Trial:
    """Runs a pipeline on photos, and compares."""

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        self._pipeline, self._name = pipeline, name
        self._photos = photos()
        self._theirs = [pipeline(photo) for photo in self._photos]
        shapes = [(theirs.shape[1], theirs.shape[2]) for theirs in self._theirs]
        self._size: tuple[int, int] | None = None
        if shapes != [(photo.height, photo.width) for photo in self._photos]:
            if len(set(shapes)) > 1:
                seen = " and ".join(
                    f"{photo.width}x{photo.height} becomes {shape[1]}x{shape[0]}"
                    for photo, shape in list(zip(self._photos, shapes, strict=True))[::7]
                )
                raise PreprocessingError(
                    f"{name} gives inputs of different shapes ({seen} px), and a batch has one: "
                    "add a CenterCrop, or pass a preprocess= with a size"
                )
            self._size = shapes[0]
            self._photos.append(exact(shapes[0]))
            self._theirs.append(pipeline(self._photos[-1]))
        if not all(torch.isfinite(theirs).all() for theirs in self._theirs):
            raise PreprocessingError(f"{name} makes values that are not finite of a photo")
        self._check_repeatable()
        plain = [Image.new("RGB", self._photos[-1].size, (level,) * 3) for level in _LEVELS]
        self._plain = plain, [pipeline(image) for image in plain]
        # Differences count in steps of 8 bits, so in the unit of what one step of a photo does.
        self._unit = self._step()

    def _check_repeatable(self) -> None:
        photo, theirs = self._photos[-1], self._theirs[-1]
        if not all(torch.equal(theirs, self._pipeline(photo)) for _ in range(_REPEATS)):
            raise PreprocessingError(
                f"{self._name} is random: it does not give the same for the same photo twice; "
                "pass the transform of the evaluation, not that of the training"
            )

    def _step(self) -> Tensor:
        """Return what a step of 8 bits is, in each channel of their input."""
        _, dark, light, _ = self._plain[1]
        step = (light - dark).abs().amax((1, 2), keepdim=True) / 128
        return step if (step > 0).all() else torch.ones_like(step) / 255

    def _differences(self, ours: list[Tensor], theirs: list[Tensor]) -> tuple[float, float]:
        """Return the worst photo's mean difference and the largest one, in steps of 8 bits."""
        if [o.shape for o in ours] != [t.shape for t in theirs]:
            return np.inf, np.inf
        if not all(torch.isfinite(t).all() for t in theirs):
            return np.inf, np.inf
        off = [(o - t).abs() / self._unit for o, t in zip(ours, theirs, strict=True)]
        return max(float(o.mean()) for o in off), max(float(o.max()) for o in off)

    def result(self, translate: Callable[[], Preprocessing] | None) -> Preprocessing:
        ours = None
        if translate is not None:
            try:
                ours = translate()
            except Exception:  # attributes may be anything; theirs is tried in any case
                ours = None
        for candidate in self._translations(ours):
            if self._alike(candidate):
                count = len(self._photos)
                source = f"{self._name}, translated and checked on {count} images"
                return dataclasses.replace(candidate, source=source, assumed=False)
        return self._as_it_is(ours)

    def _translations(self, ours: Preprocessing | None) -> list[Preprocessing]:
        """Give what our reading may mean: their objects resample photos of the input size too."""
        if ours is None or ours.size != self._size:
            return []
        return [ours, dataclasses.replace(ours, keep_exact_size=False)]

    def _alike(self, ours: Preprocessing) -> bool:
        """Tell whether ours does the same as theirs, but for rounding."""
        mean, largest = self._differences(self._by(ours), self._theirs)
        if mean > _MEAN_ROUNDING or largest > _LARGEST_ROUNDING:
            return False
        plain, theirs = self._plain
        return self._differences(self._by(ours, plain), theirs)[0] <= _SCALING

    def _by(
        self, preprocessing: Preprocessing, photos: Sequence[Image.Image] | None = None
    ) -> list[Tensor]:
        photos = self._photos if photos is None else photos
        return [_batch_of(preprocessing, preprocessing.fit(photo)) for photo in photos]

    def _as_it_is(self, ours: Preprocessing | None) -> Preprocessing:
        channels = len(self._theirs[0])
        theirs = Preprocessing(
            self._size,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            source=f"{self._name}, as it is",
        )
        for geometry, rest in self._pipeline.cuts(self._photos):
            whole = dataclasses.replace(theirs, geometry=geometry, normalize=_EachImage(rest))
            fitted = [np.asarray(geometry(p) if geometry else p) for p in self._photos]
            exactly = [rest(pixels) for pixels in fitted]
            if self._differences(exactly, self._theirs)[0] > _MEAN_CUT:
                continue
            # Where ours does one of the two parts, it is faster, and can be kept in a file.
            if ours is not None and channels == ours.channels:
                scaled = dataclasses.replace(whole, **_arithmetic(ours))
                by_ours = [_batch_of(scaled, pixels) for pixels in fitted]
                if self._differences(by_ours, exactly)[0] <= _MEAN_EXACT:
                    return scaled
            for candidate in self._translations(ours):
                mixed = dataclasses.replace(candidate, **_arithmetic(whole), source=theirs.source)
                if self._alike(mixed):
                    return dataclasses.replace(mixed, assumed=False)
            return whole
        return self._on_fitted(ours, theirs)

    def _on_fitted(self, ours: Preprocessing | None, theirs: Preprocessing) -> Preprocessing:
        """Fit images ourselves, and run the whole of theirs on images of the input size."""
        rest = self._pipeline.on_pixels
        if self._size is not None:
            fitted = np.asarray(self._photos[-1])
            if not shuffled_alike(rest, fitted):
                raise PreprocessingError(
                    f"{self._name} resizes or filters images in a way that cannot be told apart "
                    f"from its scaling of values, so no mark can be printed in between: {_WAY_OUT}"
                )
            height, width = self._size
            resize = height if height == width else self._size
            fit = Preprocessing(self._size, resize)
            if ours is not None and ours.size == self._size:
                fit = dataclasses.replace(ours, geometry=None)
            theirs = dataclasses.replace(theirs, resize=fit.resize, interpolation=fit.interpolation)
        theirs = dataclasses.replace(theirs, normalize=_EachImage(rest))
        if self._differences(self._by(theirs), self._theirs)[0] <= _MEAN_CUT:
            return theirs
        return theirs.as_assumed(
            f"{self._name}, as it is, on images resized and cropped by this package (assumed, as "
            "its own resizing could not be told apart from the rest)"
        )


@dataclasses.dataclass(frozen=True)
class _EachImage:
    """Runs a function of one uint8 image [H, W, 3] on the images of a float batch."""

    function: Callable[[Pixels], Tensor]

    def __call__(self, batch: Tensor) -> Tensor:
        pixels = (batch * 255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1)
        images = pixels.cpu().contiguous().numpy()
        with torch.no_grad():
            results = [self.function(image) for image in images]
        return torch.stack(results).to(batch.device)


def _arithmetic(of: Preprocessing) -> dict[str, Any]:
    return {"mean": of.mean, "std": of.std, "normalize": of.normalize}


def _batch_of(preprocessing: Preprocessing, pixels: Pixels) -> Tensor:
    """Return the input [C, H, W] of an image that is fitted."""
    batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    return preprocessing.to_input(batch)[0]
