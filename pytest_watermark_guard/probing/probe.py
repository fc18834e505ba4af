"""The main job in one page: images, watermarks, model, scores, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_watermark_guard.models.adapters.adapter import AdaptedModel
from pytest_watermark_guard.models.identity import weights_identity
from pytest_watermark_guard.models.near_misses import AnyModel
from pytest_watermark_guard.models.tensor_bytes import NoValuesError
from pytest_watermark_guard.probing.arguments import (
    ProbeArguments,
    check_arguments,
    setting_values,
)
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.probing.early_stopping import EarlyGate
from pytest_watermark_guard.probing.measuring import measured
from pytest_watermark_guard.probing.prepare import ProbeContext, ProbeRequest
from pytest_watermark_guard.probing.sharing import prepare_with_engine
from pytest_watermark_guard.probing.vacuous import warnings_of
from pytest_watermark_guard.reports.environment import versions
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.setting_values import check_threshold
from pytest_watermark_guard.settings import Settings
from pytest_watermark_guard.version import __version__
from pytest_watermark_guard.watermarks.scenarios import AnyScenario

if TYPE_CHECKING:
    from typing_extensions import Unpack

_NO_EXAMPLES = "no example images: someone else's code resizes them, which a report cannot do again"


def probe(
    model: AnyModel,
    images: Any = None,
    scenarios: Sequence[str | AnyScenario] | None = None,
    layers: Sequence[str] | None = None,
    preprocess: Any = "auto",
    *,
    stop_at: float | None = None,
    decide_each: bool = False,
    **arguments: Unpack[ProbeArguments],
) -> ProbeReport:
    """Score every logit and feature unit of a model for its reaction to text watermarks.

    What is not given is taken from the run's settings (pytest's options, ini values and the
    ``wm_settings`` marker), else the defaults below hold.

    Parameters
    ----------
    model : Module, str, path or callable
        Maps images to logits or to features; or a model spec such as
        ``torchvision:resnet18@IMAGENET1K_V1`` or ``net.onnx``. It comes back exactly as it was. A
        function from a batch [B, C, H, W] to an array [B, classes] is probed on its logits.
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
        say), ``"imagenet"``, ``"none"``, a `Preprocessing`, a transform of torchvision, timm,
        open_clip or ultralytics, an image processor of transformers, or a callable on float32
        [B, C, H, W] in [0, 1].
    stop_at : float, optional
        A gate's threshold on d: stop before the last image when its verdict is certain.
        Default: use all images.
    decide_each : bool, default False
        Stop when every layer and scenario has a verdict of its own, at `early_stop` for all of
        them together; else one verdict on the model is enough.
    **arguments
        See `ProbeArguments`: class_names, labels, outputs, device, precision, max_images, seed,
        batch_size, name, progress, control, cache, examples, engine, allow, early_stop.

    Returns
    -------
    ProbeReport

    Raises
    ------
    WatermarkGuardError
        One of its subclasses says what cannot be used and what to do: `SettingsError`,
        `ScenarioError`, `ImagesError`, `ModelSpecError`, `PreprocessingError`, `LayerError`,
        `ModelError`, `NonFiniteActivationsError`.

    Notes
    -----
    The method is that of Bykov et al. (2023), *Mark My Words: Dangers of Watermarked Images in
    ImageNet*, section 3. The result depends on weights, images, scenarios and seed; batch size and
    device change it by rounding of the forward pass only.
    """
    __tracebackhide__ = True
    check_arguments("probe", images, arguments)
    run = current_run()
    settings = run.settings.override(
        images=images, scenarios=scenarios, layers=layers, **setting_values(arguments)
    )
    if stop_at is not None:
        check_threshold(stop_at)
    context, compute = prepare_with_engine(
        ProbeRequest(
            model,
            settings,
            preprocess,
            class_names=arguments.get("class_names"),
            labels=arguments.get("labels"),
            batch_size=arguments.get("batch_size"),
            progress=arguments.get("progress", True),
        )
    )
    name = arguments.get("name") or context.loaded.name
    all_weights = _all_weights(context)
    gate, gate_notes = _gate(context, settings, name, all_weights, stop_at, decide_each)
    examples = arguments.get("examples")
    examples = run.examples if examples is None else examples
    thresholds = _thresholds(settings, stop_at)
    with context.warning_last():
        measurement, cache_notes = measured(
            context, gate, compute, examples, thresholds, _is_compared()
        )
    batches = context.batches
    precision = measurement.plan
    if isinstance(context.module, AdaptedModel):
        precision = context.module.computes
    elif batches.dtype is not torch.float32:
        precision += f", {batches.dtype} weights"
    report = ProbeReport(
        model=name,
        baseline=batches.baseline.description,
        n_images=measurement.n_images,
        seed=settings.seed,
        scores=measurement.scores,
        impact=measurement.impact,
        preprocessing=batches.preprocessing.source,
        device=str(batches.device),
        precision=precision,
        dead_units=measurement.dead_units,
        version=__version__,
        controls=measurement.controls,
        controls_alone=measurement.controls_alone,
        early_stop=measurement.early_stop,
        weights=measurement.weights,
        examples=measurement.examples,
        versions=versions(),
        images_digest=batches.baseline.take(range(measurement.n_images)).fingerprint(),
        all_weights=all_weights,
    )
    first, last = warnings_of(report, measurement.saturated, context.module)
    others = cache_notes
    if examples and batches.preprocessing.geometry is not None:
        others += (_NO_EXAMPLES,)
    report = replace(
        report,
        notes=(
            *first,
            *measurement.doubts,
            *context.notes,
            *measurement.notes,
            *others,
            *gate_notes,
            *last,
        ),
        assumptions=(
            *first,
            *measurement.doubts,
            *context.assumptions,
            *measurement.notes,
        ),
    )
    run.on_report(report)
    return report


def _thresholds(settings: Settings, stop_at: float | None) -> tuple[float, ...]:
    """Return where a unit fails a gate; without one, nothing is decided."""
    if stop_at is None:
        return ()
    return (stop_at, settings.warn) if settings.strict or settings.no_worse else (stop_at,)


def _is_compared() -> bool:
    """Tell whether its numbers are held against those of other probes."""
    run = current_run()
    return bool(run.known.units or run.known.updating or run.against)


def _all_weights(context: ProbeContext) -> str:
    """Return the identity of all the model's weights where a record of known units may need it."""
    known = current_run().known
    if not (known.units or known.updating):
        return ""
    try:
        return weights_identity(context.module, ())
    except NoValuesError:  # before a lazy model's first call: it is known by its name alone
        return ""


def _gate(
    context: ProbeContext,
    settings: Settings,
    name: str,
    all_weights: str,
    stop_at: float | None,
    decide_each: bool,
) -> tuple[EarlyGate | None, tuple[str, ...]]:
    """Return what may end the probe early, and what to note where nothing may."""
    if stop_at is None or settings.early_stop == 0:
        return None, ()
    known = current_run().known
    if known.concerns(name, all_weights):
        # Whether a unit is worse than its record is told by its d, not by a verdict.
        return None, (f"all images were used, for the known units in {known.file}",)
    if (against := current_run().against) is not None:
        return None, (f"all images were used, for the comparison with {against.file}",)
    images = len(context.batches.baseline)
    gate = EarlyGate(
        stop_at, settings.early_stop, settings.allow, images, settings.seed, decide_each
    )
    return gate, ()
