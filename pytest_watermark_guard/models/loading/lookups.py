"""What a spec names, looked up where it is; nothing is built, and no network is asked."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytest_watermark_guard.errors import ModelSpecError, did_you_mean
from pytest_watermark_guard.models.loading.specs import RANDOM, ModelSpec
from pytest_watermark_guard.setting_values import user_path


def check_named(spec: ModelSpec, *, importing: bool = True) -> None:
    """Raise `ModelSpecError` for a name that its library or disk does not have; nothing is built.

    What only a network or the user's own code can tell is not asked; nor is a library, which takes
    seconds to import, unless `importing`.
    """
    check = _OF_FILES.get(spec.kind)
    if check is None and importing:
        check = _OF_LIBRARIES.get(spec.kind)
    if check is not None:
        check(spec)
    if spec.weights is not None:
        weights_of(spec.weights)


def weights_of(name: str | os.PathLike[str]) -> Path:
    """Return the file or folder of weights that is named."""
    path = user_path("weights", name)
    if not (path.is_file() or path.is_dir()):
        raise ModelSpecError(f"weights file {str(path)!r} does not exist")
    return path


def torchvision_weights(spec: ModelSpec) -> Any:
    """Return torchvision's entry of the weights that are named, or of the default ones."""
    from torchvision import models

    names = models.list_models(module=models)
    if spec.name not in names:
        raise unknown(spec, "torchvision has no classification model", spec.name, names)
    entries = models.get_model_weights(spec.name)
    if spec.tag in (None, RANDOM):
        return entries.DEFAULT
    if spec.tag not in entries.__members__:
        known = [*entries.__members__, RANDOM]
        raise unknown(spec, f"torchvision's {spec.name} has no weights", str(spec.tag), known)
    return entries[spec.tag]


def timm_of(spec: ModelSpec) -> Any:
    """Return timm, which has a model of that name or may find one on its hub."""
    timm = library(spec, "timm")
    architecture = spec.name.partition(".")[0]
    if "/" not in spec.name and architecture not in timm.list_models():
        raise unknown(spec, "timm has no model", spec.name, timm.list_models())
    return timm


def file_of(spec: ModelSpec) -> Path:
    """Return the file that is named."""
    path = user_path(f"model spec {spec.text!r}", spec.name)
    if not path.is_file():
        raise ModelSpecError(f"model spec {spec.text!r}: there is no file {str(path)!r}")
    return path


def library(spec: ModelSpec, name: str) -> Any:
    """Import a library; the extra that installs it has its name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModelSpecError(
            f"model spec {spec.text!r} needs {name}, which is not installed: "
            f"pip install pytest-watermark-guard[{name}]"
        ) from error


def unknown(spec: ModelSpec, what: str, name: str, known: Sequence[str]) -> ModelSpecError:
    """Return the error for a name that is not among the known ones."""
    first = f"; known are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
    hint = did_you_mean(name, known, most=3, shown=str) or first
    return ModelSpecError(f"model spec {spec.text!r}: {what} {name!r}{hint}")


_OF_LIBRARIES: dict[str, Callable[[ModelSpec], object]] = {
    "torchvision": torchvision_weights,
    "timm": timm_of,
}
_OF_FILES: dict[str, Callable[[ModelSpec], object]] = {"exported": file_of, "onnx": file_of}
