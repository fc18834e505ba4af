"""Making a preprocessing suit what a model does with its input."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import nn

from pytest_watermark_guard.errors import PreprocessingError
from pytest_watermark_guard.models.loading.first_layer import FirstLayer, read_first_layer, runs_on
from pytest_watermark_guard.models.loading.foreign import is_foreign
from pytest_watermark_guard.models.loading.preprocessing import FUNCTION_WANTED, Preprocessing
from pytest_watermark_guard.models.loading.published import sizes_inside
from pytest_watermark_guard.models.state import unwrapped


def for_input(said: Preprocessing, module: nn.Module, *, auto: bool = False) -> Preprocessing:
    """Return a preprocessing for the number of channels of a model's input.

    Parameters
    ----------
    said : Preprocessing
    module : torch.nn.Module
        Run up to its first layer.
    auto : bool
        Nobody asked for exactly this: it is also changed where the model takes another size only,
        and where it normalises by itself.

    Raises
    ------
    PreprocessingError
        If the model takes neither 3 channels nor 1, and no function makes them, or other channels
        than someone's transform gives.
    """
    if said.normalize is not None and not is_foreign(said.normalize):
        return said  # a function of the user's knows what its model takes
    first = read_first_layer(module, said.size)
    if auto:
        said, first = _resized(said, module, first)
        said = _normalised_once(said, module, first)
    if first is None or first.channels in (None, said.channels):
        return said
    if first.channels == 1 and said.normalize is None and said.channels == 3:
        return _of_luma(said)
    if said.normalize is None and said.channels == 3:
        raise PreprocessingError(
            f"the model's input has {first.channels} channels, and photos have 3: "
            f"{FUNCTION_WANTED.format(first.channels)}"
        )
    raise PreprocessingError(
        f"preprocess ({said.source}) gives {said.channels} channels, and the model's input has "
        f"{first.channels}: {FUNCTION_WANTED.format(first.channels)}"
    )


def _of_luma(said: Preprocessing) -> Preprocessing:
    """Use one mean and standard deviation for the gray copies: the averages of the three."""
    mean, std = (round(sum(values) / 3, 6) for values in (said.mean, said.std))
    source = f"{said.source}, averaged over the channels for grayscale copies"
    result = dataclasses.replace(said, mean=(mean,), std=(std,), source=source)
    same = len(set(said.mean)) == 1 and len(set(said.std)) == 1
    return result if same or said.assumed else result.as_assumed(f"assumed: {source}")


def _resized(
    said: Preprocessing, module: nn.Module, first: FirstLayer | None
) -> tuple[Preprocessing, FirstLayer | None]:
    """Take a size that the instance was built for, where it does not run on the published one."""
    built_for = list(dict.fromkeys(sizes_inside(unwrapped(module))))
    if said.size is None or not built_for or said.size in built_for:
        return said, first
    channels = 3 if first is None or first.channels is None else first.channels
    if runs_on(module, channels, said.size):
        return said, first
    for size in built_for:
        found = read_first_layer(module, size)
        if found is not None and runs_on(module, found.channels or 3, size):
            resize: int | tuple[int, int] = size
            if isinstance(said.resize, int) and size[0] == size[1]:
                resize = round(said.resize * size[0] / said.size[0])
            fitted = dataclasses.replace(said, size=size, resize=resize, geometry=None)
            height, width = size
            source = f"assumed: {said.source}, but at the {height}x{width} px that the model takes"
            return fitted.as_assumed(source), found
    return said, first


def _normalised_once(
    said: Preprocessing, module: nn.Module, first: FirstLayer | None
) -> Preprocessing:
    """Leave the normalising to the model where it does that by itself."""
    if said.normalize is not None:
        return said
    if first is not None and first.mean is not None and first.std is not None:
        white = _range_taken(first.mean, first.std)
        if white is None:
            return said
        count = len(first.mean)
        values = "[0, 1]" if white == 1 else "[0, 255]"
        found = dataclasses.replace(said, mean=(0.0,) * count, std=(1 / white,) * count)
        if (found.mean, found.std) == (said.mean, said.std):
            return said
        source = f"{said.source}; values in {values}, as the model normalises them itself"
        return dataclasses.replace(found, source=source)
    for name in _normalising_parts(module):
        count = said.channels
        found = dataclasses.replace(said, mean=(0.0,) * count, std=(1.0,) * count)
        return found.as_assumed(
            f"assumed: {said.source}; values in [0, 1], as the model's {name} seems to normalise "
            "them itself"
        )
    return said


def _range_taken(mean: tuple[float, ...], std: tuple[float, ...]) -> float | None:
    """Return what white is for a model that subtracts and divides by these; None: it does not.

    Photos in [0, 1] have means near 0.45 and deviations near 0.22 (with 0.5 for both as the most
    common other choice). Networks that begin with a layer that leaves them near 0 and 1, as
    BatchNorm, or that adapt one published normalisation to another, are none of these.
    """
    if all(-0.05 <= m <= 0.95 for m in mean) and all(0.05 <= s <= 0.6 for s in std):
        return 1.0
    if all(-10 <= m <= 240 for m in mean) and all(12 <= s <= 260 for s in std):
        return 255.0
    return None


def _normalising_parts(module: nn.Module) -> Iterator[str]:
    """Give the names of parts with a mean and a standard deviation that are called Normalize."""
    for name, part in unwrapped(module).named_modules():
        values = getattr(part, "mean", None), getattr(part, "std", None)
        if "Normaliz" in type(part).__name__ and all(v is not None for v in values):
            yield name or type(part).__name__
