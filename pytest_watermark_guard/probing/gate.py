"""The gate: a threshold and a report make a verdict, and a failed verdict tells its story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_watermark_guard.errors import (
    NotCheckedError,
    WatermarkSensitivityError,
)
from pytest_watermark_guard.models.near_misses import AnyModel
from pytest_watermark_guard.probing.arguments import (
    ProbeArguments,
    check_arguments,
    setting_values,
)
from pytest_watermark_guard.probing.cautions import warn_of
from pytest_watermark_guard.probing.context import check_release, current_run
from pytest_watermark_guard.probing.names import allowing
from pytest_watermark_guard.probing.probe import probe
from pytest_watermark_guard.reports.known_units import KnownUnits
from pytest_watermark_guard.reports.prediction_limits import PredictionLimits
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.unit_changes import UnitChange
from pytest_watermark_guard.reports.verdict import Uncompared, Verdict
from pytest_watermark_guard.settings import Settings
from pytest_watermark_guard.watermarks.scenarios import AnyScenario
from pytest_watermark_guard.watermarks.streams import BLOBS, kinds_of

if TYPE_CHECKING:
    from typing_extensions import Unpack


def judge(
    report: ProbeReport,
    threshold: float | None = None,
    allow: Mapping[str, str] | None = None,
    known: KnownUnits | None = None,
    warn: float | None = None,
    strict: bool | None = None,
    inconclusive: str | None = None,
    max_flips: float | None = None,
    max_drop: float | None = None,
    no_worse: bool | None = None,
) -> Verdict:
    """Hold a report against a threshold.

    A unit that reaches it fails, unless `allow` names it or its record among the `known` covers it,
    and unless so few images may show it by chance (see `reports.conclusion`).

    Parameters
    ----------
    report : ProbeReport
    threshold : float, optional
        On d = max(A, 1 − A), in (0.5, 1]; default 0.95. A unit that reaches it is sensitive.
    allow : mapping of str to str, optional
        Known units and the reason why each may stay: ``{"logits:carton": "..."}``,
        ``{"features:937": "..."}``; a class name alone holds for every layer. Where a number is the
        name of a class, the class is meant.
    known : KnownUnits, optional
        Units on record, which may stay as they were; default the run's (``--wm-known``).
    warn, strict, inconclusive, max_flips, max_drop, no_worse : optional
        See `ProbeArguments`.

    Returns
    -------
    Verdict

    Raises
    ------
    SettingsError
        If `threshold` is not in (0.5, 1], `allow` gives no reason, or another setting cannot be
        used.
    """
    settings = current_run().settings.override(
        threshold=threshold,
        allow=allow,
        warn=warn,
        strict=strict,
        inconclusive=inconclusive,
        max_flips=max_flips,
        max_drop=max_drop,
        no_worse=no_worse,
    )
    return _judged(report, settings, current_run().known if known is None else known)


def _judged(report: ProbeReport, settings: Settings, known: KnownUnits) -> Verdict:
    check_release(settings, current_run().against)
    names = {scores.layer: scores.names for scores in report}
    entries = {layer: allowing(layer, names[layer], settings.allow) for layer in names}
    exempt = {
        (layer, scenario, index): entry
        for layer, scenario in report.scores
        for index, entry in entries[layer].items()
    }
    failing, allowed, used, recorded, strong = [], [], set(), [], []
    for unit in report.sensitive(min(settings.threshold, settings.warn)):
        place = unit.layer, unit.scenario, unit.index
        sensitive = unit.differentiability >= settings.threshold
        if place in exempt:
            used.add(exempt[place])
            if sensitive:
                allowed.append((unit, settings.allow[exempt[place]]))
            continue
        if not sensitive:
            strong.append(unit)
            continue
        record = known.record(report, unit, settings.threshold)
        if record is not None:
            recorded.append((unit, record))
        if record is None or known.state(report, unit, record) != "passed":
            failing.append(unit)
    stale = tuple(entry for entry in settings.allow if entry not in used)
    if report.stopped_early:
        stale = ()  # only all images could tell
    findings = known.findings(report, settings.threshold, recorded)
    passed = ((unit.layer, unit.scenario, unit.index) for unit, _ in findings.passed)
    exempted = frozenset(exempt).union(passed)
    risen, uncompared = _since_release(report, settings, exempted)
    return Verdict(
        report,
        settings.threshold,
        tuple(failing),
        settings.allow,
        tuple(allowed),
        stale,
        findings,
        settings.warn,
        tuple(strong),
        settings.strict,
        settings.inconclusive,
        exempted,
        PredictionLimits(settings.max_flips, settings.max_drop),
        settings.no_worse,
        risen,
        uncompared,
    )


def _since_release(
    report: ProbeReport, settings: Settings, exempt: frozenset[tuple[str, str, int]]
) -> tuple[tuple[UnitChange, ...], tuple[Uncompared, ...]]:
    """Return the strong units that rose since a release, and what cannot be compared with it."""
    against = current_run().against
    if not settings.no_worse or against is None:
        return (), ()
    compared = against.compared(report, settings.threshold)
    if isinstance(compared, str):
        return (), tuple((layer, scenario, compared) for layer, scenario in report.scores)
    risen = tuple(
        unit
        for unit in compared.rose
        if unit.d_after >= settings.warn and (unit.layer, unit.scenario, unit.index) not in exempt
    )
    places = compared.places
    missing = [(p.layer, p.scenario, p.uncompared) for p in places if p.after and p.uncompared]
    return risen, tuple(missing)


def gate_arguments(settings: Settings) -> dict[str, Any]:
    """Return the arguments of a gate's probe: it may end early, but for one of predictions."""
    if not settings.gates_predictions:
        return {"stop_at": settings.threshold}
    if settings.max_flips is None or BLOBS in kinds_of(settings.control):
        return {}
    return {"control": True if settings.control else BLOBS}


def assert_not_watermark_sensitive(
    model: AnyModel,
    images: Any = None,
    scenarios: Sequence[str | AnyScenario] | None = None,
    layers: Sequence[str] | None = None,
    preprocess: Any = "auto",
    *,
    threshold: float | None = None,
    **arguments: Unpack[ProbeArguments],
) -> ProbeReport:
    """Fail if any unit of the model tells watermarked images from clean ones too well.

    The probe stops before the last image once the verdict is certain, at an error probability of
    0.001 for the whole of it (setting ``early_stop``; 0 uses all images). Where units of a model
    of this name are on record, it takes all images: whether one is worse now, only they can tell.

    Parameters
    ----------
    model : Module or str
        The model, or a model spec.
    images, scenarios, layers, preprocess
        As for `probe`.
    threshold : float, optional
        On d = max(A, 1 − A), in (0.5, 1]; default 0.95. A unit that reaches it fails the gate.
    **arguments
        As for `probe`, see `ProbeArguments`; among them ``allow``, the known units and the reason
        why each may stay: ``{"logits:carton": "..."}``.

    Returns
    -------
    ProbeReport
        When the model passes.

    Raises
    ------
    WatermarkSensitivityError
        An `AssertionError` whose message names the worst units and says what to do.
    NotCheckedError
        If no unit of a layer ever changes, so that a pass would say nothing; or if the images
        cannot tell on which side of the threshold the largest d is.
    WatermarkGuardError
        If the probe could not be made; see `probe`.

    Warns
    -----
    StrongReactionWarning
        When it passes, and units react with d at or above ``warn``, 0.8 by default.
    AssumptionWarning
        When it passes, and something about the model was assumed that the report notes.
    """
    __tracebackhide__ = True
    check_arguments("assert_not_watermark_sensitive", images, arguments)
    # Wrong settings are said before minutes of probing, not after.
    settings = current_run().settings.override(threshold=threshold, **setting_values(arguments))
    check_release(settings, current_run().against)
    asked: dict[str, Any] = {**arguments, **gate_arguments(settings)}
    report = probe(model, images, scenarios, layers, preprocess, **asked)
    verdict = _judged(report, settings, current_run().known)
    current_run().on_verdict(verdict)
    if verdict.outcome == "failed":
        raise WatermarkSensitivityError(verdict.story(), verdict)
    if not verdict.passed:
        raise NotCheckedError(verdict.story(), verdict)
    warn_of(verdict, stacklevel=2)
    return report
