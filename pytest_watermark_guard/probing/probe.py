"""The main job in one page: images, watermarks, model, scores, report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_watermark_guard.caching.fingerprint import Unfingerprintable, fingerprint
from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.probing.binned import BinnedRecording
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.probing.early_stopping import EarlyGate
from pytest_watermark_guard.probing.engines.opening import one_for_all
from pytest_watermark_guard.probing.engines.shares import shared_out
from pytest_watermark_guard.probing.examples import find_examples
from pytest_watermark_guard.probing.filling import fill
from pytest_watermark_guard.probing.prepare import ProbeContext, ProbeRequest, prepare
from pytest_watermark_guard.probing.recording import Recording
from pytest_watermark_guard.probing.result_cache import ProbeMeasurement, keep_result, load_result
from pytest_watermark_guard.probing.running import Compute
from pytest_watermark_guard.probing.scoring import impacts, score
from pytest_watermark_guard.reports.environment import versions
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.settings import check_threshold
from pytest_watermark_guard.version import __version__
from pytest_watermark_guard.watermarks.scenarios import AnyScenario


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
    control: bool | None = None,
    cache: bool | None = None,
    stop_at: float | None = None,
    decide_each: bool = False,
    allow: Mapping[str, str] | None = None,
    early_stop: float | None = None,
    histograms: bool = False,
    examples: bool | None = None,
    engine: str | None = None,
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
        Default ``"auto"``: on long runs, the fastest way of several is found by trying, among
        those where every unit agrees with float32 (see `models.execution`). ``"float32"`` is
        plain float32, the same bits when repeated on one machine; ``"bfloat16"`` is autocast.
    max_images : int, optional
        Take a seeded random subset of at most so many images.
    seed : int, optional
        Of draws and subset, default 17.
    labels : sequence or mapping, optional
        True class indices: one for each image, or by file name. Known without it where a Dataset
        gives (image, label), or folders carry the classes' names.
    batch_size : int, optional
        Images in a forward pass; halved when memory runs out. Default: 64, on a CPU two for each
        thread, and with ``precision="auto"`` what is fastest.
    name : str, optional
        What reports call the model; default its spec or class.
    progress : bool, default True
        Show a progress bar where standard error is a terminal and the variable ``CI`` is not set.
    control : bool, optional
        Probe with scrambled marks too: the same ink at the same place, and no text. The report
        then says by `ProbeReport.controls` how far a unit tells text from ink. Default False.
    cache : bool, optional
        Keep activations, and use those that an earlier probe of the same weights, images and
        marks has kept. Default True.
    stop_at : float, optional
        A gate's threshold on d: stop before the last image when its verdict is certain.
        Default: use all images.
    decide_each : bool, default False
        Stop when every layer and scenario has a verdict of its own, at `early_stop` for all of
        them together; else one verdict on the model is enough.
    allow : mapping of str to str, optional
        Units that this gate leaves aside, with reasons; see `judge`.
    early_stop : float, optional
        Chance at which the early verdict may differ from that of all images, default 0.001.
    histograms : bool, default False
        Count activations in 1024 bins for each unit, so that memory does not grow with the number
        of images; a note says how far off A can be. For all images: a gate needs ``early_stop=0``.
    examples : bool, optional
        Note in the report which images move the worst units most and least, to be shown by
        `ProbeReport.to_html`; histograms do not know. Default False.
    engine : {"ray"}, optional
        Share the images out among the workers of a cluster: the same numbers to the last bit, in
        one precision (``"auto"`` is float32 then). Default: all in this process.

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
    settings = current_run().settings.override(
        images=images,
        scenarios=scenarios,
        layers=layers,
        device=device,
        precision=precision,
        max_images=max_images,
        seed=seed,
        control=control,
        cache=cache,
        allow=allow,
        early_stop=early_stop,
        engine=engine,
    )
    if stop_at is not None:
        check_threshold(stop_at)
        if histograms and settings.early_stop > 0:
            raise SettingsError("histograms=True is for all images: pass early_stop=0 as well")
    request = ProbeRequest(model, settings, preprocess, class_names, labels, batch_size, progress)
    ready, elsewhere = _prepared(request)
    gate = None
    whole: tuple[str, ...] = ()
    known = current_run().known
    if stop_at is not None and settings.early_stop > 0:
        count, seed = len(ready.batches.baseline), settings.seed
        if known.concerns(name or ready.loaded.name):
            # Whether a unit is worse than its record is told by its d, not by a verdict.
            whole = (f"all images were used, for the known units in {known.file}",)
        else:
            gate = EarlyGate(stop_at, settings.early_stop, settings.allow, count, seed, decide_each)
    kind = BinnedRecording if histograms else Recording
    wanted = (current_run().examples if examples is None else examples) and not histograms
    found = _found(ready, elsewhere, gate, kind, wanted)
    batches = ready.batches
    full = batches.dtype is torch.float32
    report = ProbeReport(
        model=name or ready.loaded.name,
        baseline=batches.baseline.description,
        n_images=found.n_images,
        seed=settings.seed,
        scores=found.scores,
        impact=found.impact,
        preprocessing=batches.preprocessing.source,
        device=str(batches.device),
        precision=found.plan + ("" if full else f", {batches.dtype} weights"),
        notes=(*ready.notes, *found.notes, *whole),
        version=__version__,
        controls=found.controls,
        early_stop=found.early_stop,
        weights=found.weights,
        examples=found.examples,
        versions=versions(),
    )
    current_run().on_report(report)
    return report


class RecordedActivations(NamedTuple):
    """A model's activations as `probe` scores them.

    Attributes
    ----------
    recording : Recording
        ``recording[stream, layer].columns()`` is an ndarray [n, units], float32 or float64, in
        the order of `identities`; streams are named in `watermarks.streams`. It has labels, the
        units' names and the identity of the weights too.
    identities : tuple of str
        The images' names.
    model : str
        What reports call it.
    baseline : str
        Which images.
    notes : tuple of str
        What was assumed, guessed or left out.
    """

    recording: Recording
    identities: tuple[str, ...]
    model: str
    baseline: str
    notes: tuple[str, ...]


@contextlib.contextmanager
def recorded(
    model: nn.Module | str,
    images: Any = None,
    scenarios: Sequence[str | AnyScenario] | None = None,
    layers: Sequence[str] | None = None,
    preprocess: Any = "auto",
    *,
    labels: Sequence[int] | Mapping[str, int] | None = None,
    batch_size: int | None = None,
    name: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Iterator[RecordedActivations]:
    """Give the activations that a probe of all images would score, within the block.

    They are computed, or taken from where a probe with the same arguments keeps them; whoever
    comes second runs no model.

    Parameters
    ----------
    model, images, scenarios, layers, preprocess, labels, batch_size, name, progress
        As for `probe`; ``scenarios=()`` runs the model on the images without a mark alone.
    settings
        ``device``, ``precision``, ``max_images``, ``seed``, ``control`` and ``cache`` as for
        `probe`.

    Raises
    ------
    WatermarkGuardError
        As `probe`.
    """
    resolved = current_run().settings.override(
        images=images, scenarios=scenarios, layers=layers, **settings
    )
    marked = scenarios is None or resolved.scenarios != ()
    request = ProbeRequest(model, resolved, preprocess, None, labels, batch_size, progress, marked)
    ready, elsewhere = _prepared(request)
    identities = ready.batches.baseline.identities
    with Recording(ready.batches.streams, len(identities), ready.naming) as recording:
        fill(ready, recording, compute=elsewhere)
        notes = (*ready.notes, *recording.notes)
        called = name or ready.loaded.name
        yield RecordedActivations(
            recording, identities, called, ready.batches.baseline.description, notes
        )


def _prepared(request: ProbeRequest) -> tuple[ProbeContext, Compute | None]:
    """Make a probe ready, here and, where an engine is asked for, in its workers."""
    if request.settings.engine is None:
        return prepare(request), None
    precision, notes = one_for_all(request.settings.precision)
    request = replace(request, settings=replace(request.settings, precision=precision))
    elsewhere = shared_out(request)
    ready = prepare(request)
    return ready._replace(notes=(*notes, *ready.notes)), elsewhere


def _found(
    ready: ProbeContext,
    elsewhere: Compute | None,
    gate: EarlyGate | None,
    kind: type[Recording],
    wanted: bool,
) -> ProbeMeasurement:
    """Take what was found when the same was asked for, or measure it."""
    cache = ready.cache
    asked = None if cache is None else _asked(ready, gate, kind, wanted)
    if cache is not None and asked is not None and (known := load_result(cache, asked)) is not None:
        return known
    found, keepable = _measure(ready, elsewhere, gate, kind, wanted)
    if gate is not None:
        confirmed = gate.confirmed_by(found.scores)
        if not confirmed:  # only all images can tell
            found, keepable = _measure(ready, elsewhere, None, kind, wanted)
        found = found._replace(early_stop=gate.outcome(confirmed))
    if cache is not None and asked is not None and not keepable:
        keep_result(cache, asked, found)
    return found


def _measure(
    ready: ProbeContext,
    elsewhere: Compute | None,
    gate: EarlyGate | None,
    kind: type[Recording],
    wanted: bool,
) -> tuple[ProbeMeasurement, bool]:
    """Run the model and score what it answers; tell too whether its activations are kept."""
    batches, cache = ready.batches, ready.cache
    images = batches.baseline.identities
    names = [scenario.name for scenario in batches.scenarios]
    with kind(batches.streams, len(images), ready.naming) as recording:
        plan = fill(ready, recording, gate, elsewhere)
        scores, controls = score(recording, names, None if kind is BinnedRecording else cache)
        impact = impacts(recording, names, images)
        examples = find_examples(recording, scores, batches, ready.images) if wanted else None
        measurement = ProbeMeasurement(
            n_images=len(recording),
            scores=scores,
            controls=controls,
            impact=impact,
            notes=recording.notes,
            plan=plan,
            weights=recording.weights,
            examples=examples,
            early_stop=None,
        )
        return measurement, recording.keepable


def _asked(
    ready: ProbeContext, gate: EarlyGate | None, kind: type[Recording], wanted: bool
) -> str | None:
    """Tell what a result depends on beside model and images; None where that cannot be told."""
    baseline = ready.batches.baseline
    labels = [baseline.labels.get(identity) for identity in baseline.identities]
    where = str(baseline.root) if wanted else ""  # the examples' folder
    names = ready.naming.keywords
    how = kind.__name__, wanted, where, None if gate is None else gate.terms
    try:
        return fingerprint((ready.batches.streams, ready.execution.layers, names, labels, *how))
    except Unfingerprintable:
        return None
