"""The main job in one page: images, watermarks, model, scores, report."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import pytest_watermark_guard
from pytest_watermark_guard.batches import ProbingBatches, check_batch_size, open_for
from pytest_watermark_guard.context import current_run
from pytest_watermark_guard.device import computing_in, resolve_device, resolve_precision
from pytest_watermark_guard.errors import NonFiniteActivationsError
from pytest_watermark_guard.impact import prediction_impact, true_classes
from pytest_watermark_guard.models.activations import ActivationRecorder
from pytest_watermark_guard.models.introspection import class_names_of
from pytest_watermark_guard.models.preprocessing import resolve_preprocessing
from pytest_watermark_guard.models.runner import Runner
from pytest_watermark_guard.models.specs import as_loaded
from pytest_watermark_guard.models.state import preserved, runnable_on
from pytest_watermark_guard.names import unit_names
from pytest_watermark_guard.progress import progress_bar
from pytest_watermark_guard.report import ProbeReport, Scores
from pytest_watermark_guard.statistics.auroc import paired_auroc
from pytest_watermark_guard.watermarks.scenarios import AnyScenario, resolve_scenarios

# Two probes of one model would switch its mode under each other's feet.
_ONE_AT_A_TIME = threading.RLock()
_PREPARED = 32  # rows prepared at once, however few the model takes at a time
UNMARKED = ""  # stands among the scenarios' names, which are never empty


def probe(
    model: nn.Module | str,
    images: Any = None,
    scenarios: Sequence[str | AnyScenario] | None = None,
    layers: Sequence[str] | None = None,
    preprocess: Any = "auto",
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    max_images: int | None = None,
    seed: int | None = None,
    *,
    labels: Sequence[int] | Mapping[str, int] | None = None,
    batch_size: int | None = None,
    name: str | None = None,
    progress: bool = True,
) -> ProbeReport:
    """Score every logit and feature unit of a model for its reaction to text watermarks.

    What is not given is taken from the run's settings (pytest's options, ini values and the
    ``wm_settings`` marker), else the defaults below hold.

    Parameters
    ----------
    model : Module or str
        Maps images to logits or to features; or a model spec such as
        ``torchvision:resnet18@IMAGENET1K_V1``. It comes back exactly as it was.
    images : folder, Dataset, array, tensor or sequence, optional
        Baseline images without watermarks; default is the built-in set.
    scenarios : sequence of str, Scenario or PairedFolder, optional
        Default ``("chinese", "latin", "hindi", "arabic_numerals")``.
    layers : sequence of str, optional
        ``"logits"``, ``"features"`` (the input of the layer that makes the logits) and names of
        modules. Default ``("logits", "features")``. Channels are averaged over the map, tokens
        over the sequence.
    preprocess : default "auto"
        ``"auto"`` (what the weights, the model's configuration or its attribute ``preprocessing``
        say), ``"imagenet"``, ``"none"``, a `Preprocessing`, a torchvision transform, or a callable
        on float32 [B, 3, H, W] in [0, 1].
    class_names : sequence of str, or mapping of int to str, optional
        One for each logit; default: those of the weights, of the model's attribute
        ``class_names``, or ImageNet's for 1000 logits.
    device : str, optional
        Default ``"auto"``: the GPU if there is one.
    precision : {"auto", "float32", "bfloat16"}, optional
        Default ``"auto"``: bfloat16 autocast on GPUs that have it, else float32.
    max_images : int, optional
        Take a seeded random subset of at most so many images.
    seed : int, optional
        Of draws and subset, default 17.
    labels : sequence or mapping, optional
        True class indices: one for each image, or by file name. Known without it where a Dataset
        gives (image, label), or folders carry the classes' names.
    batch_size : int, optional
        Images in a forward pass; halved when memory runs out. Default: 64, on a CPU two for each
        thread, as many as its caches like.
    name : str, optional
        What reports call the model; default its spec or class.
    progress : bool, default True
        Show a progress bar where standard error is a terminal and the variable ``CI`` is not set.

    Returns
    -------
    ProbeReport

    Raises
    ------
    WatermarkGuardError
        One of its subclasses says what cannot be used and what to do: `SettingsError`,
        `ScenarioError`, `ImagesError`, `ModelSpecError`, `PreprocessingError`, `LayerError`,
        `NonFiniteActivationsError`.

    Notes
    -----
    The method is that of Bykov et al. (2023), *Mark My Words: Dangers of Watermarked Images in
    ImageNet*, section 3. The result depends on weights, images, scenarios and seed; batch size and
    device change it by rounding of the forward pass only.
    """
    run = current_run()
    settings = run.settings.override(
        images=images,
        scenarios=scenarios,
        layers=layers,
        device=device,
        precision=precision,
        max_images=max_images,
        seed=seed,
    )
    resolved = resolve_scenarios(settings.scenarios, run.scenarios)
    target = resolve_device(settings.device, run.worker)
    if batch_size is None:
        batch_size = 64 if target.type != "cpu" else 2 * torch.get_num_threads()
    check_batch_size(batch_size)
    computed_in = resolve_precision(settings.precision, target)
    loaded = as_loaded(model)
    module = runnable_on(loaded.module, target)
    preprocessing = resolve_preprocessing(preprocess, module, loaded.preprocessing)
    baseline = open_for(
        resolved, settings.images, settings.max_images, settings.seed, labels=labels
    )
    batches = ProbingBatches(
        baseline,
        resolved,
        preprocessing,
        settings.seed,
        batch_size=max(1, max(batch_size, _PREPARED) // (1 + len(resolved))),
        device=target,
        dtype=_input_dtype(module),
    )
    naming = partial(
        unit_names, given=class_names, loaded=loaded.class_names or class_names_of(module)
    )
    recording = _run_model(
        module, batches, settings.layers, computed_in, batch_size, naming, progress
    )
    names = recording.names
    scores = {
        (layer, scenario.name): Scores(
            layer,
            scenario.name,
            *paired_auroc(recording[UNMARKED, layer], recording[scenario.name, layer]),
            len(baseline),
            names[layer],
        )
        for layer in names
        for scenario in resolved
    }
    impact = {}
    if "logits" in names:
        classes = true_classes(baseline.identities, recording.labels, names["logits"])
        impact = {
            scenario.name: prediction_impact(
                recording[UNMARKED, "logits"],
                recording[scenario.name, "logits"],
                names["logits"],
                classes,
            )
            for scenario in resolved
        }
    assumed: tuple[str, ...] = ()
    if preprocessing.assumed:
        advice = "pass preprocess=, or set the model's attribute preprocessing"
        assumed = (f"preprocessing is {preprocessing.source}; {advice}",)
    report = ProbeReport(
        model=name or loaded.name,
        baseline=baseline.description,
        n_images=len(baseline),
        seed=settings.seed,
        scores=scores,
        impact=impact,
        preprocessing=preprocessing.source,
        device=str(target),
        precision=_described(computed_in, module),
        notes=(*assumed, *loaded.notes, *recording.notes),
        version=pytest_watermark_guard.__version__,
    )
    run.on_report(report)
    return report


@dataclass
class _Recording:
    """Activations of all images, by scenario and layer; those without a mark under `UNMARKED`."""

    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    labels: list[int | None] = field(default_factory=list)
    parts: dict[tuple[str, str], list[npt.NDArray[np.floating]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def __getitem__(self, key: tuple[str, str]) -> npt.NDArray[np.floating]:
        return np.concatenate(self.parts[key])


def _run_model(
    module: nn.Module,
    batches: ProbingBatches,
    layers: Sequence[str],
    precision: str,
    batch_size: int,
    naming: Callable[[Mapping[str, int]], tuple[dict[str, tuple[str, ...]], tuple[str, ...]]],
    progress: bool,
) -> _Recording:
    """Run every image without and with every mark through the model, once."""
    recording = _Recording()
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(preserved(module))
        # Layers are told apart by comparing numbers: in full precision.
        with computing_in("float32", batches.device):
            recorder = ActivationRecorder(module, layers, batches.example())
        stack.enter_context(recorder)
        recording.notes = recorder.notes
        runner = Runner(recorder, batch_size, precision)
        advance = stack.enter_context(progress_bar(len(batches.baseline), progress))
        for batch in batches:
            keys = (UNMARKED, *batch.marked)
            activations = runner(torch.cat([batch.images, *batch.marked.values()]))
            if not recording.names:
                # Now, so that wrong class names are said before minutes of probing.
                widths = {layer: units.shape[1] for layer, units in activations.items()}
                recording.names, notes = naming(widths)
                recording.notes += notes
            for layer, units in activations.items():
                for key, rows in zip(keys, np.split(units, len(keys)), strict=True):
                    _check_finite(rows, layer, key, batch.identities)
                    recording.parts[key, layer].append(rows)
            recording.labels += batch.labels
            advance(len(batch.identities))
    return recording


def _check_finite(
    rows: npt.NDArray[np.floating], layer: str, scenario: str, identities: Sequence[str]
) -> None:
    if np.isfinite(rows).all():
        return
    row, unit = map(int, np.argwhere(~np.isfinite(rows))[0])
    marked = f"with the {scenario!r} mark" if scenario else "without a mark"
    raise NonFiniteActivationsError(
        f"the model returned {rows[row, unit]} in {layer} unit {unit} for image "
        f"{identities[row]!r} {marked}; scores need finite numbers. Check the weights and the "
        "preprocessing, or probe in float32 if this is a half-precision overflow"
    )


def _described(precision: str, module: nn.Module) -> str:
    dtype = _input_dtype(module)
    return precision if dtype is torch.float32 else f"{precision}, {dtype} weights"


def _input_dtype(module: nn.Module) -> torch.dtype:
    """Return the type that the model computes in: half-precision weights take such input."""
    tensors = (*module.parameters(), *module.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
