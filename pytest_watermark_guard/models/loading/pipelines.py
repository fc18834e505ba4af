"""Transforms of other libraries as functions from a photo to [C, H, W], and cut in two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from pytest_watermark_guard.errors import PreprocessingError

Pixels = npt.NDArray[np.uint8]
Geometry = Callable[[Image.Image], Pixels]
Cut = tuple[Geometry | None, Callable[[Pixels], Tensor]]
# What an image processor may do to an image before it scales its values.
_FITTING = ("do_resize", "do_center_crop", "do_pad", "do_crop_margin", "do_thumbnail")
_OVERSHOOT = 0.3  # of bicubic filters on floats, beyond black and white


def is_image_processor(value: Any) -> bool:
    """Tell whether an object is an image processor of transformers, or a processor with one."""
    names = {base.__name__ for base in type(value).__mro__}
    return bool(names & {"ImageProcessingMixin", "ProcessorMixin"})


def is_compose(value: Any) -> bool:
    """Tell whether an object is a ``Compose`` of steps, of any library."""
    names = {base.__name__ for base in type(value).__mro__}
    return "Compose" in names and hasattr(value, "transforms")


def shuffled_alike(function: Callable[[Pixels], Tensor], image: Pixels) -> bool:
    """Tell whether a function treats pixels one by one: it commutes with shuffling them."""
    height, width = image.shape[:2]
    order = np.random.default_rng(0).permutation(height * width)
    shuffled = image.reshape(-1, 3)[order].reshape(image.shape)
    plain, moved = function(image), function(shuffled)
    if plain.shape[1:] != (height, width) or plain.shape != moved.shape:
        return False
    return torch.allclose(plain.flatten(1)[:, torch.from_numpy(order)], moved.flatten(1), atol=1e-4)


class Pipeline:
    """A transform that takes whole photos; subclasses know how to cut it in two."""

    def __init__(self, call: Callable[[Image.Image], Any], name: str) -> None:
        self._call, self._name = call, name

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the model's input [C, H, W] for an RGB image.

        Raises
        ------
        PreprocessingError
            If the transform fails or does not return that.
        """
        try:
            result = self._call(image)
        except Exception as error:
            raise PreprocessingError(
                f"{self._name} failed on a PIL image (RGB, {image.width}x{image.height} px) with "
                f"{type(error).__name__}: {error}"
            ) from error
        return _values(result, self._name)

    def on_pixels(self, pixels: Pixels) -> Tensor:
        """Return the input for an image that has its size already."""
        return self(Image.fromarray(pixels))

    def cuts(self, photos: Sequence[Image.Image]) -> Iterator[Cut]:
        """Give ways to cut it into geometry (None: it has none) and what follows."""
        yield from ()


def pipeline_of(transform: Any, name: str) -> Pipeline:
    """Take any transform of images as a `Pipeline`."""
    if is_image_processor(transform):
        processor = getattr(transform, "image_processor", transform)
        steps = getattr(processor, "val_transforms", None)  # TimmWrapperImageProcessor
        return _Steps(steps, name) if is_compose(steps) else _Processor(processor, name)
    if is_compose(transform) or isinstance(transform, nn.Sequential):
        return _Steps(transform, name)
    return Pipeline(transform, name)


class _Processor(Pipeline):
    """An image processor of transformers, which can be told to leave parts of its work out."""

    def __init__(self, processor: Any, name: str) -> None:
        self._processor = processor
        super().__init__(partial(processor, return_tensors="pt"), name)

    def cuts(self, photos: Sequence[Image.Image]) -> Iterator[Cut]:
        settings = {n: v for n, v in vars(self._processor).items() if n.startswith("do_") and v}
        fitting = self._told({name: name in _FITTING for name in settings})
        scaling = self._told({name: name not in _FITTING for name in settings})
        try:
            form = _Form.of([fitting(photo) for photo in photos])
            scaling(photos[-1])
        except PreprocessingError:  # it does not take these options
            return
        if form is not None:
            yield (
                _Geometry((fitting,), _as_photo, form),
                _Rest((scaling,), _Form("RGB"), self._name),
            )

    def _told(self, settings: dict[str, bool]) -> Pipeline:
        off = {name: False for name, wanted in settings.items() if not wanted}
        return Pipeline(partial(self._processor, return_tensors="pt", **off), self._name)


class _Steps(Pipeline):
    """A ``Compose``, step by step; nested ones are opened."""

    def __init__(self, compose: Any, name: str) -> None:
        self._steps = tuple(flat_steps(compose))
        self._enter = _entry(compose, name)
        super().__init__(lambda image: compose(self._enter(image)), name)

    def cuts(self, photos: Sequence[Image.Image]) -> Iterator[Cut]:
        try:
            seen = [self._states(photo) for photo in photos]
        except Exception:  # steps of a Compose that does more than to call them in turn
            return
        changes = [
            at
            for states in seen
            for at in range(1, len(states))
            if _size(states[at]) != _size(states[at - 1])
        ]
        last = max(changes, default=0)
        forms = [
            (at, form)
            for at in range(last, len(self._steps) + 1)
            if (form := _Form.of([states[at] for states in seen])) is not None
        ]
        # As early as possible: what follows is done to the marked photo. Of floats, 8 bits are
        # kept, so that images of 8 bits come first.
        for at, form in sorted(forms, key=lambda cut: not cut[1].exact):
            geometry = _Geometry(self._steps[:at], self._enter, form) if at else None
            yield geometry, _Rest(self._steps[at:], form, self._name)

    def _states(self, photo: Image.Image) -> list[Any]:
        states = [self._enter(photo)]
        for step in self._steps:
            states.append(step(states[-1]))
        return states


@dataclass(frozen=True)
class _Geometry:
    """The first steps of a transform, from a photo to uint8 [H, W, 3]."""

    steps: tuple[Any, ...]
    enter: Callable[[Image.Image], Any]
    form: _Form

    def __call__(self, image: Image.Image) -> Pixels:
        return self.form.pixels(_run(self.steps, self.enter(image)))


@dataclass(frozen=True)
class _Rest:
    """The other steps, from uint8 [H, W, 3] to the model's input [C, H, W]."""

    steps: tuple[Any, ...]
    form: _Form
    name: str

    def __call__(self, pixels: Pixels) -> Tensor:
        return _values(_run(self.steps, self.form.value(pixels)), self.name)


@dataclass(frozen=True)
class _Form:
    """How a step hands an image on, and the way to 8-bit RGB and back.

    Attributes
    ----------
    kind : str
        A mode of PIL, ``"tensor"`` [C, H, W] or ``"array"`` [H, W, C].
    scale : int
        What white is: 255, or 1.
    channels : int
    dtype : torch.dtype
        Of a tensor or array.
    """

    kind: str
    scale: int = 255
    channels: int = 3
    dtype: torch.dtype = torch.uint8

    @property
    def exact(self) -> bool:
        """Whether nothing is rounded on the way."""
        return self.dtype is torch.uint8

    @classmethod
    def of(cls, values: Sequence[Any]) -> _Form | None:
        """Return the form of these images; None where they are none, or normalised already."""
        first = values[0]
        if isinstance(first, Image.Image):
            return cls(first.mode) if first.mode in ("RGB", "L") else None
        if not isinstance(first, Tensor | np.ndarray):
            return None
        kind = "tensor" if isinstance(first, Tensor) else "array"
        tensors = [_tensor(value) for value in values]
        if any(tensor.ndim != 3 for tensor in tensors):
            return None
        channels = tensors[0].shape[0 if kind == "tensor" else 2]
        low, high = min(float(t.min()) for t in tensors), max(float(t.max()) for t in tensors)
        scale = 255 if high > 1 + _OVERSHOOT else 1
        fits = -_OVERSHOOT * scale <= low and high <= (1 + _OVERSHOOT) * scale
        whole = scale == 1 or all(torch.equal(t, t.round()) for t in tensors)
        if channels not in (1, 3) or not fits or not whole:
            return None
        return cls(kind, scale, channels, tensors[0].dtype)

    def pixels(self, value: Any) -> Pixels:
        """Return an image of this form as uint8 [H, W, 3]."""
        if isinstance(value, Image.Image):
            return np.asarray(value.convert("RGB"))
        image = _tensor(value)
        image = image.permute(1, 2, 0) if self.kind == "tensor" else image
        levels = (image.double() * (255 / self.scale)).round().clamp(0, 255).byte()
        return levels.expand(*levels.shape[:2], 3).contiguous().numpy()

    def value(self, pixels: Pixels) -> Any:
        """Return uint8 [H, W, 3] as an image of this form."""
        image = Image.fromarray(pixels)
        if self.kind not in ("tensor", "array"):
            return image.convert(self.kind)
        levels = torch.from_numpy(np.array(image.convert("RGB" if self.channels == 3 else "L")))
        levels = levels.reshape(*levels.shape[:2], self.channels)
        scaled = levels if self.scale == 255 else levels.double() / 255
        scaled = scaled.to(self.dtype)
        return scaled.permute(2, 0, 1).contiguous() if self.kind == "tensor" else scaled.numpy()


def flat_steps(compose: Any) -> Iterator[Any]:
    """Give the steps of a ``Compose`` or ``Sequential``, those inside of nested ones too."""
    if is_compose(compose):
        steps = compose.transforms
    elif isinstance(compose, nn.Sequential):
        steps = compose
    else:
        yield compose
        return
    for step in steps:
        yield from flat_steps(step)


def _run(steps: Sequence[Any], value: Any) -> Any:
    for step in steps:
        value = step(value)
    return value


def _as_photo(image: Image.Image) -> Image.Image:
    return image


def _as_bytes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _as_floats(image: Image.Image) -> Tensor:
    return _as_bytes(image).float() / 255


def _entry(compose: Any, name: str) -> Callable[[Image.Image], Any]:
    """Return how a ``Compose`` wants its photos: the first way that makes numbers of them."""
    errors = []
    photo = Image.new("RGB", (320, 240))
    for enter in (_as_photo, _as_bytes, _as_floats, np.asarray):
        try:
            result = compose(enter(photo))
        except Exception as error:  # whatever it raises on what it does not take
            errors.append(error)
            continue
        numbers = isinstance(result, Tensor | np.ndarray)
        # Bytes of bytes: that nothing has scaled them may mean that floats were expected.
        if numbers and (enter is not _as_bytes or _tensor(result).is_floating_point()):
            return enter
    if len(errors) < len(("photo", "bytes", "floats", "array")):
        return _as_photo
    raise PreprocessingError(
        f"{name} failed on a PIL image (RGB, 320x240 px) with {type(errors[0]).__name__}: "
        f"{errors[0]}; as a tensor or an array, the image was not taken either"
    ) from errors[0]


def _tensor(value: Tensor | npt.NDArray[Any]) -> Tensor:
    # A copy, as arrays of photos cannot be written to.
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


def _size(state: Any) -> tuple[int, int] | None:
    if isinstance(state, Image.Image):
        return state.height, state.width
    if isinstance(state, Tensor):
        return state.shape[-2], state.shape[-1]
    if isinstance(state, np.ndarray):
        return state.shape[0], state.shape[1]
    return None


def _values(result: Any, name: str) -> Tensor:
    """Return the one image [C, H, W] in what a transform gave, as float32."""
    if isinstance(result, Mapping):
        result = result.get("pixel_values", result.get("image"))
    if isinstance(result, list | tuple) and len(result) == 1:
        (result,) = result
    if isinstance(result, np.ndarray):
        result = _tensor(result)
    if isinstance(result, Tensor):
        image = result.detach().as_subclass(Tensor)
        while image.ndim > 3 and len(image) == 1:
            image = image[0]
        if image.ndim == 3 and image.numel():
            return image.float()
        what = f"shape {[*result.shape]}"
    else:
        what = f"a {type(result).__name__}"
    raise PreprocessingError(
        f"{name} gives {what} for a PIL image: it must give one tensor [C, H, W] (a Compose ends "
        "with ToTensor and Normalize)"
    )
