"""From an image of any size to a model's input, in two steps with the watermark between them.

`Preprocessing.fit` does the geometry, so that the text is drawn at the model's own resolution and
nothing of it is cropped away; `Preprocessing.to_input` scales the values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pytest_watermark_guard.errors import PreprocessingError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


FUNCTION_WANTED = (
    "pass preprocess= a function that makes [B, {}, H, W] of a float32 batch [B, 3, H, W] in [0, 1]"
)


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images.

    Attributes
    ----------
    size : (int, int) or None
        Height and width of the model's input; None leaves the images as they are.
    resize : int, (int, int) or None
        Before the centre crop: length of the shorter side, or height and width. None: no resizing.
    mean, std : tuple of float
        Per channel of the model's input, of values in [0, 1]. One channel is the luma (ITU-R 601)
        of the RGB image; other numbers than 1 and 3 need `normalize`.
    interpolation : str
        ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``; downscaling is antialiased.
    source : str
        Where all this was read, for the report.
    assumed : bool
        Nothing about the model says so; it is a guess.
    normalize : callable or None
        Replaces mean and std: float32 batch [B, 3, H, W] in [0, 1] to model input.
    geometry : callable or None
        Replaces resize and interpolation: RGB image to uint8 array [H, W, 3] of `size`.
    keep_exact_size : bool
        An image that has `size` already is not resampled; False: it is resized and cropped like
        any other. Without effect where there is a `geometry`.
    crop_floor : bool
        A crop between two pixels begins at the first of them, as in transformers; False: at the
        even one, as in torchvision.
    """

    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    source: str = "given"
    assumed: bool = False
    normalize: Callable[[Tensor], Any] | None = None
    geometry: Callable[[Image.Image], npt.NDArray[np.uint8]] | None = None
    keep_exact_size: bool = True
    crop_floor: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise PreprocessingError(
                f"interpolation {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}"
            )
        for name, value in (("size", self.size), ("resize", self.resize)):
            square = name == "resize" and isinstance(value, int)
            if value is not None and not _is_pair((value, value) if square else value):
                raise PreprocessingError(
                    f"{name}={value!r} is not a height and width in whole pixels"
                )
        count = len(self.mean)
        if count == 0 or len(self.std) != count or not all(s > 0 for s in self.std):
            raise PreprocessingError(
                f"mean={self.mean!r} and std={self.std!r} must have as many values each as the "
                "model's input has channels, with positive standard deviations"
            )

    @classmethod
    def imagenet(cls, size: tuple[int, int] = (224, 224), **fields: Any) -> Preprocessing:
        """Return ImageNet's mean and std at ``size``, cropped from 8/7 of it (256 for 224)."""
        height, width = size
        resize = round(height * 256 / 224) if height == width else (height, width)
        return cls(**{"size": size, "resize": resize, **fields})

    @property
    def channels(self) -> int:
        """Number of channels of the model's input, where `normalize` does not change it."""
        return len(self.mean)

    @property
    def fitting(self) -> dict[str, Any]:
        """The fields that say how images are fitted; fields by their defaults where they are new.

        A report keeps them, to draw images again.
        """
        fields = {"size": self.size, "resize": self.resize, "interpolation": self.interpolation}
        if not self.keep_exact_size:
            fields["keep_exact_size"] = False
        if self.crop_floor:
            fields["crop_floor"] = True
        return fields

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What a report must say of it where it is a guess."""
        if not self.assumed:
            return ()
        advice = "pass preprocess=, or set the model's attribute preprocessing"
        return (f"preprocessing is {self.source}; {advice}",)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report must say about it: guesses, and images that are not shown in colour."""
        notes = [*self.assumptions]
        if self.channels == 1 and self.normalize is None:
            notes.append(
                "the model's input has 1 channel: it is shown grayscale copies (luma, ITU-R 601) "
                "of the photos, which are marked in colour"
            )
        return tuple(notes)

    def as_assumed(self, source: str) -> Preprocessing:
        """Return a copy that says it is a guess, and why."""
        return dataclasses.replace(self, source=source, assumed=True)

    def fit(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Resize and crop an image to the model's input size.

        Parameters
        ----------
        image : PIL.Image.Image
            An RGB image that already has the input size is not resampled, if `keep_exact_size`.

        Returns
        -------
        ndarray of uint8, shape [H, W, 3]

        Raises
        ------
        PreprocessingError
            When `geometry` fails or gives an image of another size.
        """
        if image.mode != "RGB":
            image = image.convert("RGB")
        if self.geometry is not None:
            return self._by_geometry(image)
        fits = self.keep_exact_size and (image.height, image.width) == self.size
        if self.size is not None and not fits:
            image = _centre_crop(self._resized(image), self.size, self.crop_floor)
        return np.asarray(image, dtype=np.uint8)

    def _by_geometry(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        assert self.geometry is not None
        size = f"an image of {image.width}x{image.height} px"
        try:
            pixels = np.asarray(self.geometry(image))
        except Exception as error:
            raise PreprocessingError(
                f"preprocess ({self.source}) failed on {size} with {type(error).__name__}: {error}"
            ) from error
        if pixels.dtype != np.uint8 or pixels.shape != (*(self.size or pixels.shape[:2]), 3):
            raise PreprocessingError(
                f"preprocess ({self.source}) made {pixels.dtype} {[*pixels.shape]} of {size}, and "
                f"uint8 {[*(self.size or ()), 3]} of others: it must give images of one size"
            )
        return pixels

    def _resized(self, image: Image.Image) -> Image.Image:
        size = self.scaled(*image.size)
        if size == image.size:
            return image
        return image.resize(size, INTERPOLATIONS[self.interpolation])

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Return to which width and height an image is resized before it is cropped.

        Of a `geometry`, which may do anything, it is told as if the shorter side were fitted.
        """
        resize = self.resize
        if self.geometry is not None and self.size is not None:
            resize = min(self.size)
        if resize is None:
            return width, height
        if isinstance(resize, tuple):
            return resize[1], resize[0]
        short, long = sorted((width, height))
        longer = int(resize * long / short)
        return (resize, longer) if width <= height else (longer, resize)

    def to_input(
        self, batch: Tensor, dtype: torch.dtype = torch.float32, out: Tensor | None = None
    ) -> Tensor:
        """Scale pixel values to what the model was trained on.

        Parameters
        ----------
        batch : Tensor
            uint8 in [0, 255] or floating-point in [0, 1], shape [B, 3, H, W], on any device.
        dtype : torch.dtype
            Of the result; computed in float32.
        out : Tensor, optional
            float32 memory to be used for the result, of the batch's shape but for the channels.
            Fresh memory would cost more than the arithmetic.

        Returns
        -------
        Tensor
            On the same device; shape [B, channels, H, W] unless `normalize` changes it.

        Raises
        ------
        PreprocessingError
            When `normalize` fails or does not return a batch, or is needed and not there.
        """
        if self.normalize is None:
            self._check_channels()
            if self.channels == 1:
                batch = _luma(batch)
        if out is None or self.normalize is not None:
            values = batch.to(torch.float32, copy=True)
        else:
            values = out.copy_(batch)
        if not batch.is_floating_point():
            values.div_(255)
        if self.normalize is not None:
            return self._normalized(values).to(dtype)
        mean, std = (torch.tensor(v, device=values.device) for v in (self.mean, self.std))
        if values.is_contiguous() or not values.is_contiguous(memory_format=torch.channels_last):
            values.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
        else:
            # Whole rows of pixels at once: vectors of three would be slow.
            rows = values.permute(0, 2, 3, 1)
            width = rows.shape[2]
            rows.flatten(2).sub_(mean.repeat(width)).div_(std.repeat(width))
        return values.to(dtype)

    def scale_image(self, pixels: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
        """Do what `to_input` does without `normalize`, to one image or a part of it, in NumPy.

        For threads that read images: tensor operations would start further threads in each.

        Parameters
        ----------
        pixels : ndarray of uint8, shape [h, w, 3]
        out : ndarray of float32, shape [h, w, channels]
            For the result, the same bits as those of `to_input`; in any memory format.
        """
        self._check_channels()
        if self.channels == 1:
            pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
        mean, std = (np.array(v, dtype=np.float32) for v in (self.mean, self.std))
        height, width, count = pixels.shape
        if out.strides[2] == out.itemsize:
            # Whole rows of pixels at once: vectors of three would be slow.
            parts = [
                (
                    pixels.reshape(height, -1),
                    np.lib.stride_tricks.as_strided(
                        out, (height, count * width), (out.strides[0], out.itemsize)
                    ),
                    np.tile(mean, width),
                    np.tile(std, width),
                )
            ]
        else:
            parts = [(pixels[..., c], out[..., c], mean[c], std[c]) for c in range(count)]
        for values, scaled, center, scale in parts:
            np.divide(values, 255, out=scaled, dtype=np.float32)
            np.subtract(scaled, center, out=scaled)
            np.divide(scaled, scale, out=scaled)

    def _check_channels(self) -> None:
        if self.channels not in (1, 3):
            raise PreprocessingError(
                f"preprocess ({self.source}): the model's input has {self.channels} channels, and "
                f"photos have 3: {FUNCTION_WANTED.format(self.channels)}"
            )

    def _normalized(self, values: Tensor) -> Tensor:
        assert self.normalize is not None
        try:
            result = self.normalize(values)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            raise PreprocessingError(
                f"preprocess ({self.source}) failed on a float32 batch of shape "
                f"{[*values.shape]} in [0, 1] with {type(error).__name__}: {error}. If it "
                "takes one PIL image, pass torchvision.transforms.Compose([it])"
            ) from error
        if not isinstance(result, Tensor) or result.ndim == 0 or len(result) != len(values):
            what = f"shape {[*result.shape]}" if isinstance(result, Tensor) else type(result)
            raise PreprocessingError(
                f"preprocess ({self.source}) got a batch of shape {[*values.shape]} and returned "
                f"{what}: it must return one tensor with as many images"
            )
        return result


def _is_pair(sides: Any) -> bool:
    return (
        isinstance(sides, tuple)
        and len(sides) == 2
        and all(isinstance(side, int) and side > 0 for side in sides)
    )


def _centre_crop(image: Image.Image, size: tuple[int, int], floor: bool) -> Image.Image:
    """Crop as torchvision does, to the pixel: round half to even, or down; pad with black."""
    height, width = size
    if width > image.width or height > image.height:
        padded = Image.new("RGB", (max(width, image.width), max(height, image.height)))
        corner = ((padded.width - image.width) // 2, (padded.height - image.height) // 2)
        padded.paste(image, corner)
        image = padded
    rounded = math.floor if floor else round
    left, top = rounded((image.width - width) / 2.0), rounded((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))


def _luma(batch: Tensor) -> Tensor:
    """Return [B, 1, H, W] of [B, 3, H, W], to the bit what Pillow's mode "L" is for uint8."""
    wide = batch if batch.is_floating_point() else batch.int()
    red, green, blue = wide[:, :1], wide[:, 1:2], wide[:, 2:]
    total = red * 19595 + green * 38470 + blue * 7471  # of 65536
    if batch.is_floating_point():
        return total / 65536
    return ((total + 0x8000) >> 16).to(batch.dtype)


def channels(value: Any, count: int = 3) -> tuple[float, ...]:
    """Return one float per channel from a number, a sequence, an array or a tensor."""
    numbers = np.asarray(value, dtype=np.float64).reshape(-1).tolist()
    return tuple(numbers * count if len(numbers) == 1 else numbers)


def sides_of(value: Any) -> tuple[int, int]:
    """Return height and width from a number, or from a sequence of one or two."""
    sides = (value,) if isinstance(value, int) else tuple(value)
    height, width = sides * 2 if len(sides) == 1 else sides
    return int(height), int(width)
