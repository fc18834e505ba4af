"""Building the model that a parsed spec names."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_watermark_guard.errors import ModelSpecError, did_you_mean
from pytest_watermark_guard.models.adapters.adapter import called
from pytest_watermark_guard.models.loading.checkpoints import (
    ADAPTER,
    adapter_error,
    read_checkpoint,
)
from pytest_watermark_guard.models.loading.fitting import load_checkpoint, load_state_dict
from pytest_watermark_guard.models.loading.introspection import class_names_of
from pytest_watermark_guard.models.loading.lookups import (
    file_of,
    library,
    timm_of,
    torchvision_weights,
    unknown,
)
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing
from pytest_watermark_guard.models.loading.presets import from_torchvision_preset
from pytest_watermark_guard.models.loading.published import fixed_size, from_object, from_timm
from pytest_watermark_guard.models.loading.specs import (
    FILES,
    LIBRARIES,
    RANDOM,
    ModelSpec,
    parse_spec,
)
from pytest_watermark_guard.models.loading.unpickling import first_line, weights_only
from pytest_watermark_guard.models.near_misses import AnyModel, check_module
from pytest_watermark_guard.setting_values import user_path

_RANDOM_SEED = 0
_RANDOM_NOTE = "random weights: the spec asks for @random, so the scores say nothing about training"
# torchvision renames these keys of older DenseNet files when it downloads them; this does so for
# local copies.
_OLD_DENSENET_KEY = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)")


@dataclass(frozen=True)
class LoadedModel:
    """What a spec named.

    Attributes
    ----------
    name : str
        The spec's text.
    module : torch.nn.Module
    preprocessing : Preprocessing or None
        What its weights say about their input; None when nothing does.
    class_names : tuple of str or None
        One per logit, where known.
    notes : tuple of str
        What was assumed, for the report.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def as_loaded(model: AnyModel) -> LoadedModel:
    """Take a model as it is, or load the one that a spec names.

    Raises
    ------
    ModelSpecError
        If it is neither, or cannot be run as it is, or as for `load_model`.
    """
    if isinstance(model, os.PathLike) and Path(model).suffix in FILES:
        model = os.fspath(model)
    if isinstance(model, str):
        return load_model(model)
    module = check_module(model)
    return LoadedModel(called(module), module)


def load_model(spec: str | ModelSpec) -> LoadedModel:
    """Build the model that a spec names and load its weights, on the CPU.

    Parameters
    ----------
    spec : str or ModelSpec
        See `parse_spec`.

    Returns
    -------
    LoadedModel

    Raises
    ------
    ModelSpecError
        When the spec, the library, the name, the weights or the network fails.
    """
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    return _LOADERS[spec.kind](spec)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Initialise reproducibly: the same spec gives the same random weights."""
    # Models are built on the CPU; torch.manual_seed would also reseed every GPU.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_RANDOM_SEED)
        yield


def _load_torchvision(spec: ModelSpec) -> LoadedModel:
    from torchvision import models

    entry = torchvision_weights(spec)
    categories = tuple(str(name) for name in entry.meta["categories"])
    preset = from_torchvision_preset(
        entry.transforms(), source=f"torchvision's preset of {spec.name}@{entry.name}"
    )
    if spec.tag != RANDOM and spec.weights is None:
        with _downloading(spec):
            module = models.get_model(spec.name, weights=entry, progress=False)
        return LoadedModel(spec.text, module.eval(), preset, categories)

    state, read_notes = read_checkpoint(spec.weights) if spec.weights else ({}, ())
    count = spec.num_classes or len(categories)
    module = _build_torchvision(spec.name, count, state)
    # Of a file without a tag nothing says the classes: where it has as many, they are assumed.
    names_known = count == len(categories) and spec.weights is not None and spec.tag is not None
    notes = [_RANDOM_NOTE] if spec.tag == RANDOM else []
    if spec.weights:
        if spec.name.startswith("densenet"):
            state = {_OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}
        fit_notes = load_state_dict(module, state, spec.weights)
        if spec.tag is None:
            preset = preset.as_assumed(f"{preset.source}, assumed for {spec.weights}")
        notes += (*read_notes, *fit_notes)
    return LoadedModel(
        spec.text, module.eval(), preset, categories if names_known else None, tuple(notes)
    )


def _build_torchvision(name: str, num_classes: int, state: dict[str, Any]) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # The published weights of these two were trained on another normalisation, which
        # torchvision undoes inside the model; their auxiliary heads may have been stripped.
        options = {
            "transform_input": num_classes == 1000,
            "aux_logits": any(".aux" in f".{key.lower()}" for key in state),
            "init_weights": not state,
        }
    with _seeded():
        module: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    return module


def _load_timm(spec: ModelSpec) -> LoadedModel:
    timm = timm_of(spec)
    pretrained = spec.tag != RANDOM and spec.weights is None
    options = {} if spec.num_classes is None else {"num_classes": spec.num_classes}
    with _downloading(spec), _seeded():
        module = timm.create_model(spec.name, pretrained=pretrained, **options)
    notes = [_RANDOM_NOTE] if spec.tag == RANDOM else []
    if spec.weights:
        notes += load_checkpoint(module, spec.weights)
    preprocessing = from_timm(
        timm.data.resolve_model_data_config(module),
        f"timm's configuration of {spec.name}",
        fixed_size(module),
    )
    names = None
    if spec.tag != RANDOM:
        names = _timm_class_names(module, of_a_file=spec.weights is not None)
    return LoadedModel(spec.text, module.eval(), preprocessing, names, tuple(notes))


def _timm_class_names(module: Any, of_a_file: bool) -> tuple[str, ...] | None:
    """Return ImageNet's names as torchvision writes them: unique, and the same in every report.

    Of a file's weights nothing says the classes; where they have as many, they are assumed.
    """
    own = module.pretrained_cfg.get("label_names")
    if own and len(own) == module.num_classes:
        return tuple(map(str, own))
    if module.num_classes != 1000 or of_a_file:
        return None
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def _load_hf(spec: ModelSpec) -> LoadedModel:
    transformers = library(spec, "transformers")
    directory = user_path(f"model spec {spec.text!r}", spec.name)
    source = str(directory) if directory.is_dir() else spec.name
    if (directory / ADAPTER).is_file():
        raise adapter_error(directory)
    # An older folder has no safetensors; what is read instead is unpickled without code.
    pickled = directory.is_dir() and not any(directory.glob("*.safetensors"))
    options: dict[str, Any] = {"trust_remote_code": False}
    notes = [_RANDOM_NOTE] if spec.tag == RANDOM else []
    auto = transformers.AutoModelForImageClassification
    with _downloading(spec):
        if spec.tag == RANDOM or spec.weights:
            sizes = {} if spec.num_classes is None else {"num_labels": spec.num_classes}
            config = transformers.AutoConfig.from_pretrained(source, **options, **sizes)
            with _seeded():
                module = auto.from_config(config, trust_remote_code=False)
        else:
            module, info = auto.from_pretrained(
                source, use_safetensors=not pickled, output_loading_info=True, **options
            )
            untrained = [*info["missing_keys"], *info["mismatched_keys"]]
            if untrained:
                raise ModelSpecError(
                    f"model spec {spec.text!r}: its checkpoint has no weights for "
                    f"{', '.join(sorted(map(str, untrained))[:3])}, and a gate on an untrained "
                    "head says nothing; name a checkpoint that was trained to classify"
                )
    if spec.weights:
        notes += load_checkpoint(module, spec.weights)
    preprocessing = None
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source, **options)
    except Exception as error:  # hub, file and configuration errors are of many types
        notes.append(f"no image processor could be loaded for {spec.name}: {first_line(error)}")
    else:
        preprocessing = from_object(processor, f"the image processor of {spec.name}")
    names = None if spec.tag == RANDOM else class_names_of(module)
    return LoadedModel(spec.text, module.eval(), preprocessing, names, tuple(notes))


def _load_factory(spec: ModelSpec) -> LoadedModel:
    module_name, _, attributes = spec.name.partition(":")
    with _current_directory_importable():
        try:
            target: Any = importlib.import_module(module_name)
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == module_name
            raise ModelSpecError(
                f"model spec {spec.text!r}: importing {module_name} failed with "
                f"{type(error).__name__}: {first_line(error)}"
                f"{did_you_mean(module_name, LIBRARIES) if missing else ''}"
            ) from error
        for attribute in attributes.split("."):
            try:
                target = getattr(target, attribute)
            except AttributeError as error:
                names = [name for name in dir(target) if not name.startswith("_")]
                raise unknown(spec, f"{module_name} has no attribute", attribute, names) from error
        if not isinstance(target, nn.Module):
            if not callable(target):
                raise ModelSpecError(
                    f"model spec {spec.text!r}: {attributes} is a {type(target).__name__}, neither "
                    "a torch.nn.Module nor a function that returns one"
                )
            try:
                target = target()
            except Exception as error:
                raise ModelSpecError(
                    f"model spec {spec.text!r}: {attributes}() raised "
                    f"{type(error).__name__}: {first_line(error)}"
                ) from error
    if not isinstance(target, nn.Module):
        if not callable(target):
            raise ModelSpecError(
                f"model spec {spec.text!r}: {attributes}() returned a {type(target).__name__}, "
                "neither a torch.nn.Module nor a function from a batch to logits"
            )
        if spec.weights:
            raise ModelSpecError(
                f"model spec {spec.text!r}: {attributes}() returned a function, which weights= "
                "cannot be loaded into: load them in your factory"
            )
        return LoadedModel(spec.text, check_module(target))
    notes = load_checkpoint(target, spec.weights) if spec.weights else ()
    return LoadedModel(spec.text, target, notes=notes)


@contextlib.contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _load_exported(spec: ModelSpec) -> LoadedModel:
    from pytest_watermark_guard.models.loading.archives import load_exported_program
    from pytest_watermark_guard.models.reading.exported import input_size

    path = file_of(spec)
    module = load_exported_program(path).module()
    size = input_size(module)
    preprocessing = None
    if size is not None:
        source = f"assumed: ImageNet's mean and std, at the {size[0]}x{size[1]} px of {path.name}"
        preprocessing = Preprocessing.imagenet(size, source=source, assumed=True)
    return LoadedModel(spec.text, module, preprocessing)


def _load_onnx(spec: ModelSpec) -> LoadedModel:
    from pytest_watermark_guard.models.loading.onnx_files import open_onnx

    module, preprocessing, notes = open_onnx(file_of(spec))
    return LoadedModel(spec.text, module, preprocessing, notes=notes)


@contextlib.contextmanager
def _downloading(spec: ModelSpec) -> Iterator[None]:
    """Turn the many errors of hubs and networks into one that says what to do."""
    try:
        with weights_only():
            yield
    except ModelSpecError:
        raise
    except Exception as error:
        raise ModelSpecError(
            f"model spec {spec.text!r}: the model or its weights could not be loaded or "
            f"downloaded ({type(error).__name__}: {first_line(error)}). Without a network, name "
            "a local file with ?weights=PATH, or ask for @random"
        ) from error


_LOADERS: dict[str, Callable[[ModelSpec], LoadedModel]] = {
    "torchvision": _load_torchvision,
    "timm": _load_timm,
    "hf": _load_hf,
    "factory": _load_factory,
    "exported": _load_exported,
    "onnx": _load_onnx,
}
