"""The gate: a threshold and a report make a verdict, and a failed verdict tells its story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_watermark_guard.errors import NotCheckedError, WatermarkSensitivityError
from pytest_watermark_guard.models.near_misses import AnyModel
from pytest_watermark_guard.probing.arguments import ProbeArguments, check_arguments
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.probing.names import matches_unit
from pytest_watermark_guard.probing.probe import probe
from pytest_watermark_guard.reports.known_units import KnownUnits
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.verdict import Verdict
from pytest_watermark_guard.watermarks.scenarios import AnyScenario

if TYPE_CHECKING:
    from typing_extensions import Unpack


def judge(
    report: ProbeReport,
    threshold: float | None = None,
    allow: Mapping[str, str] | None = None,
    known: KnownUnits | None = None,
) -> Verdict:
    """Hold a report against a threshold.

    A unit that reaches it fails, unless `allow` names it or its record among the `known` covers it.

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

    Returns
    -------
    Verdict

    Raises
    ------
    SettingsError
        If `threshold` is not in (0.5, 1], or `allow` gives no reason.
    """
    settings = current_run().settings.override(threshold=threshold, allow=allow)
    known = current_run().known if known is None else known
    names = {scores.layer: (scores.names, frozenset(scores.names)) for scores in report}
    failing, allowed, used, recorded = [], [], set(), []
    for unit in report.sensitive(settings.threshold):
        where = unit.layer, unit.index, *names[unit.layer]
        entry = next((entry for entry in settings.allow if matches_unit(entry, *where)), None)
        if entry is not None:
            allowed.append((unit, settings.allow[entry]))
            used.add(entry)
            continue
        record = known.record(report, unit, settings.threshold)
        if record is not None:
            recorded.append((unit, record))
        if record is None or record.state(unit.differentiability, known.today) != "passed":
            failing.append(unit)
    stale = tuple(entry for entry in settings.allow if entry not in used)
    if report.stopped_early:
        stale = ()  # only all images could tell
    return Verdict(
        report,
        settings.threshold,
        tuple(failing),
        settings.allow,
        tuple(allowed),
        stale,
        known.findings(report, settings.threshold, recorded),
    )


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
        If no unit of a layer ever changes, so that a pass would say nothing.
    WatermarkGuardError
        If the probe could not be made; see `probe`.
    """
    __tracebackhide__ = True
    check_arguments("assert_not_watermark_sensitive", images, arguments)
    # Wrong settings are said before minutes of probing, not after.
    settings = current_run().settings.override(threshold=threshold, allow=arguments.get("allow"))
    report = probe(
        model, images, scenarios, layers, preprocess, stop_at=settings.threshold, **arguments
    )
    verdict = judge(report, settings.threshold, settings.allow)
    current_run().on_verdict(verdict)
    if verdict.failing:
        raise WatermarkSensitivityError(verdict.story(), verdict)
    if verdict.unchecked:
        raise NotCheckedError(verdict.story(), verdict)
    return report
