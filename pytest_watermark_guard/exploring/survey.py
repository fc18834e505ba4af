"""Many models, one probe each: which classes and units react, across all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

from pytest_watermark_guard.errors import SettingsError, WatermarkGuardError
from pytest_watermark_guard.images.batches import open_for
from pytest_watermark_guard.models.near_misses import AnyModel, name_of
from pytest_watermark_guard.probing.arguments import check_arguments, setting_values
from pytest_watermark_guard.probing.context import Run, current_run, using_run
from pytest_watermark_guard.probing.engines.engine import Engine
from pytest_watermark_guard.probing.engines.opening import one_for_all, open_engine
from pytest_watermark_guard.probing.probe import probe
from pytest_watermark_guard.probing.progress import progress_bar
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.survey import SurveyReport
from pytest_watermark_guard.watermarks.scenarios import resolve_scenarios

# What `probe` takes beside `ProbeArguments`.
_MORE_ARGUMENTS = ("scenarios", "layers", "preprocess", "stop_at", "decide_each")


def survey(
    models: Sequence[AnyModel] | Mapping[str, AnyModel],
    images: Any = None,
    *,
    engine: str | None = None,
    progress: bool = True,
    **arguments: Any,
) -> SurveyReport:
    """Probe many models with the same watermarks (Bykov et al., 2023, section 3).

    A model that cannot be loaded or probed is noted among the failures, and the others go on.
    Activations are cached, so that a survey that was interrupted goes on where it was when it is
    made again.

    Parameters
    ----------
    models : sequence, or mapping of str to model
        What `probe` takes. Specs are loaded one at a time. A mapping gives them names.
    images : optional
        As for `probe`, and so are the other arguments.
    engine : {"ray"}, optional
        Probe several models at once, each by a worker of a cluster: the same numbers to the last
        bit, in one precision (``"auto"`` is float32 then). Default: one after the other, here.
    progress : bool, default True
        As for `probe`; with an engine, of the number of models.

    Returns
    -------
    SurveyReport

    Raises
    ------
    SettingsError, ScenarioError, ImagesError, TypeError
        If there is no model, or an argument is wrong whatever the model is.
    EngineError
        If the engine cannot be had, or the images cannot be sent to it.

    Examples
    --------
    >>> found = wm.survey(["torchvision:resnet18@random", "torchvision:nosuch"])  # doctest: +SKIP
    >>> print(found.table())  # doctest: +SKIP
    """
    named = _named(models)
    if not named:
        raise SettingsError("survey: name at least one model")
    _check(images, arguments)
    chosen = current_run().settings.override(engine=engine).engine
    if chosen is None:
        common = _Common(images, {**arguments, "progress": progress})
        outcomes = {name: _outcome(common, (name, model)) for name, model in named.items()}
    else:
        outcomes = {}
        for name, outcome in probed_by_engine(chosen, named, images, arguments, progress):
            if isinstance(outcome, ProbeReport):
                current_run().on_report(outcome)
            outcomes[name] = outcome
    return SurveyReport(
        {name: report for name, report in outcomes.items() if isinstance(report, ProbeReport)},
        {name: reason for name, reason in outcomes.items() if isinstance(reason, str)},
    )


def _check(images: Any, arguments: Mapping[str, Any]) -> None:
    """Raise what `probe` would raise for every model alike."""
    if "name" in arguments:
        raise TypeError("survey: names of models are the keys of a mapping; pass no name=")
    check_arguments(
        "survey", images, {n: v for n, v in arguments.items() if n not in _MORE_ARGUMENTS}
    )
    run = current_run()
    settings = run.settings.override(images=images, **setting_values(arguments))
    scenarios = resolve_scenarios(settings.scenarios, run.scenarios)
    open_for(scenarios, settings.images, settings.max_images, settings.seed)


class _Common(NamedTuple):
    """What all models of a survey are probed by."""

    images: Any
    arguments: Mapping[str, Any]
    run: Run | None = None


def _outcome(common: _Common, item: tuple[str, AnyModel]) -> ProbeReport | str:
    """Probe one model, in any process; returns why not where that fails."""
    name, model = item
    try:
        with using_run(common.run or current_run()):
            return probe(model, common.images, name=name, **common.arguments)
    except WatermarkGuardError as error:
        return str(error)
    except Exception as error:  # whatever someone's factory or forward pass raises
        return f"{type(error).__name__}: {error}"


def probed_by_engine(
    engine: str,
    models: Mapping[str, AnyModel],
    images: Any,
    arguments: Mapping[str, Any],
    progress: bool,
) -> Iterator[tuple[str, ProbeReport | str]]:
    """Have every model probed by a worker of an engine; gives names and reports, in their order.

    In place of a report stands why a model could not be probed. `Run.on_report` is not called.
    Raises `EngineError` if the engine cannot be had, or the images cannot be sent to it.
    """
    run = current_run()
    settings = run.settings.override(
        precision=arguments.get("precision"), device=arguments.get("device")
    )
    precision, notes = one_for_all(settings.precision)
    workers_run = Run(
        replace(run.settings, engine=None),
        run.scenarios,
        examples=run.examples,
        known=run.known,
        against=run.against,
    )
    common = _Common(images, {**arguments, "precision": precision, "progress": False}, workers_run)
    workers: Engine = open_engine(engine, settings.device)
    with (
        progress_bar(len(models), progress) as advance,
        closing(workers.map(_outcome, common, [*models.items()], done=advance)) as results,
    ):
        for name, outcome in zip(models, results, strict=True):
            if isinstance(outcome, ProbeReport):
                yield name, replace(outcome, notes=(*notes, *outcome.notes))
            else:
                yield name, str(outcome)


def _named(
    models: Sequence[AnyModel] | Mapping[str, AnyModel],
) -> dict[str, AnyModel]:
    if isinstance(models, Mapping):
        return {str(name): model for name, model in models.items()}
    if isinstance(models, str | os.PathLike) or callable(models):
        raise SettingsError("survey: pass a list of models, or a mapping of names to models")
    named: dict[str, AnyModel] = {}
    for model in models:
        name = name_of(model)
        same = sum(known == name or known.startswith(f"{name} (") for known in named)
        named[f"{name} ({same + 1})" if same else name] = model
    return named
