"""Many models, one probe each: which classes and units react, across all of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from pytest_watermark_guard.batches import open_for
from pytest_watermark_guard.context import Run, current_run, using_run
from pytest_watermark_guard.documents import read_document, write_document
from pytest_watermark_guard.engines import Engine, one_for_all, open_engine
from pytest_watermark_guard.errors import SettingsError, WatermarkGuardError
from pytest_watermark_guard.probing import probe
from pytest_watermark_guard.progress import progress_bar
from pytest_watermark_guard.report import ProbeReport
from pytest_watermark_guard.settings import Settings, check_threshold
from pytest_watermark_guard.watermarks.scenarios import resolve_scenarios

KIND = "survey"


@dataclass(frozen=True, eq=False)
class ClassRanking:
    """How the same classes react in several models, under one scenario.

    Attributes
    ----------
    scenario : str
    models : tuple of str
        Those with these classes, M of them.
    left_out : tuple of str
        Models with other classes, or without logits.
    names : tuple of str
        Of the C classes.
    auroc : ndarray of float64, shape [M, C]
        A of each class in each model.
    """

    scenario: str
    models: tuple[str, ...]
    left_out: tuple[str, ...]
    names: tuple[str, ...]
    auroc: npt.NDArray[np.float64]

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of A over the models, shape [C]."""
        average: npt.NDArray[np.float64] = self.auroc.mean(axis=0)
        return average

    def ranking(self) -> npt.NDArray[np.intp]:
        """Return class indices: those that fire most on the mark first, those silenced last."""
        return np.argsort(-self.mean, kind="stable")

    def ends(self, each: int) -> npt.NDArray[np.intp]:
        """Return the first and the last `each` classes of the ranking; all, if they are no more."""
        order = self.ranking()
        return order if len(order) <= 2 * each else np.concatenate([order[:each], order[-each:]])


@dataclass(frozen=True, eq=False)
class SurveyReport:
    """What a survey found.

    Attributes
    ----------
    reports : mapping of str to ProbeReport
        By the model's name, in the order asked for.
    failures : mapping of str to str
        Models that could not be probed, and why.
    """

    reports: Mapping[str, ProbeReport]
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Those of any model, in order."""
        return tuple(dict.fromkeys(name for r in self.reports.values() for name in r.scenarios))

    @property
    def layers(self) -> tuple[str, ...]:
        """Those of any model, in order."""
        return tuple(dict.fromkeys(layer for r in self.reports.values() for layer in r.layers))

    def classes(self, scenario: str) -> ClassRanking:
        """Rank the classes that most of the models have (Bykov et al., 2023, figure 2).

        Parameters
        ----------
        scenario : str

        Raises
        ------
        KeyError
            If no model has logits under this scenario.
        """
        known = {
            model: report["logits", scenario]
            for model, report in self.reports.items()
            if ("logits", scenario) in report.scores
        }
        if not known:
            raise KeyError(f"no model of this survey has logits under {scenario!r}")
        (names, _), *_ = Counter(scores.names for scores in known.values()).most_common(1)
        models = tuple(model for model, scores in known.items() if scores.names == names)
        return ClassRanking(
            scenario,
            models,
            tuple(model for model in self.reports if model not in models),
            names,
            np.array([known[model].auroc for model in models]),
        )

    def counts(self, layer: str, scenario: str, threshold: float) -> dict[str, tuple[int, int]]:
        """Return by model how many units reach a threshold on d, and of how many."""
        return {
            model: (report[layer, scenario].count(threshold), len(report[layer, scenario].names))
            for model, report in self.reports.items()
            if (layer, scenario) in report.scores
        }

    def table(self, width: int = 80, ascii_only: bool = False) -> str:
        """Return the survey as text for a terminal: counts by model, and the classes' ranking."""
        from pytest_watermark_guard.reporting.survey_table import render_survey

        return render_survey(self, width=width, ascii_only=ascii_only)

    def plot(self, path: str | Path, scenario: str = "chinese") -> None:
        """Draw one scenario into a picture (PNG, PDF or SVG); needs matplotlib.

        Raises
        ------
        SettingsError
            If matplotlib is missing, or no model was probed under this scenario.
        """
        from pytest_watermark_guard.reporting.survey_figure import draw_survey

        if scenario not in self.scenarios:
            raise SettingsError(
                f"scenario: no model was probed under {scenario!r}, only under "
                f"{', '.join(self.scenarios) or 'none'}"
            )
        draw_survey(self, Path(path), scenario)

    def to_html(self, path: str | Path, threshold: float = 0.95, images: Any = None) -> None:
        """Write the survey to one HTML file that opens offline; as `ProbeReport.to_html`."""
        from pytest_watermark_guard.reporting.html.page import write_html

        check_threshold(threshold)
        entries = [(replace(report, model=name), ()) for name, report in self.reports.items()]
        write_html(path, entries, threshold, failures=self.failures, images=images)

    def save(self, path: str | Path) -> None:
        """Write the survey to a JSON file."""
        data = {
            "reports": {name: json.loads(r.to_json()) for name, r in self.reports.items()},
            "failures": dict(self.failures),
        }
        write_document(path, KIND, data)

    @classmethod
    def load(cls, path: str | Path) -> SurveyReport:
        """Read a survey that `save` wrote.

        Raises
        ------
        ReportError
            If the file cannot be read or holds something else.
        """
        with read_document(path, KIND) as data:
            reports = {
                str(name): ProbeReport.from_json(json.dumps(report))
                for name, report in data["reports"].items()
            }
            failures = {str(name): str(reason) for name, reason in data["failures"].items()}
            return cls(reports, failures)


def survey(
    models: Sequence[str | nn.Module] | Mapping[str, str | nn.Module],
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
        Modules or model specs. Specs are loaded one at a time. A mapping gives them names.
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
        for name, found in probed_elsewhere(chosen, named, images, arguments, progress):
            if isinstance(found, ProbeReport):
                current_run().on_report(found)
            outcomes[name] = found
    return SurveyReport(
        {name: found for name, found in outcomes.items() if isinstance(found, ProbeReport)},
        {name: found for name, found in outcomes.items() if isinstance(found, str)},
    )


def _check(images: Any, arguments: Mapping[str, Any]) -> None:
    """Raise what `probe` would raise for every model alike."""
    if "name" in arguments:
        raise TypeError("survey: names of models are the keys of a mapping; pass no name=")
    signature(probe).bind("", images, **arguments)
    names = {field.name for field in fields(Settings)} & {*arguments}
    run = current_run()
    settings = run.settings.override(images=images, **{name: arguments[name] for name in names})
    scenarios = resolve_scenarios(settings.scenarios, run.scenarios)
    open_for(scenarios, settings.images, settings.max_images, settings.seed)


class _Common(NamedTuple):
    """What all models of a survey are probed by."""

    images: Any
    arguments: Mapping[str, Any]
    run: Run | None = None


def _outcome(common: _Common, item: tuple[str, str | nn.Module]) -> ProbeReport | str:
    """Probe one model, in any process; returns why not where that fails."""
    name, model = item
    try:
        with using_run(common.run or current_run()):
            return probe(model, common.images, name=name, **common.arguments)
    except WatermarkGuardError as error:
        return str(error)
    except Exception as error:  # whatever someone's factory or forward pass raises
        return f"{type(error).__name__}: {error}"


def probed_elsewhere(
    engine: str,
    models: Mapping[str, str | nn.Module],
    images: Any,
    arguments: Mapping[str, Any],
    progress: bool,
) -> Iterator[tuple[str, ProbeReport | str]]:
    """Have every model probed by a worker of an engine; the outcomes are those of this process.

    Parameters
    ----------
    engine : {"ray"}
    models : mapping of str to model
    images, arguments, progress
        As for `survey`.

    Yields
    ------
    name : str
    outcome : ProbeReport or str
        Of the models in their order; why not where one could not be probed. The run is not told.

    Raises
    ------
    EngineError
        If the engine cannot be had, or the images cannot be sent to it.
    """
    run = current_run()
    settings = run.settings.override(
        precision=arguments.get("precision"), device=arguments.get("device")
    )
    precision, notes = one_for_all(settings.precision)
    there = Run(
        replace(run.settings, engine=None), run.scenarios, examples=run.examples, known=run.known
    )
    common = _Common(images, {**arguments, "precision": precision, "progress": False}, there)
    workers: Engine = open_engine(engine, settings.device)
    with progress_bar(len(models), progress) as advance:
        results = workers.map(_outcome, common, [*models.items()], done=advance)
        with closing(results):
            for model, found in zip(models, results, strict=True):
                if isinstance(found, ProbeReport):
                    yield model, replace(found, notes=(*notes, *found.notes))
                else:
                    yield model, str(found)


def _named(
    models: Sequence[str | nn.Module] | Mapping[str, str | nn.Module],
) -> dict[str, str | nn.Module]:
    if isinstance(models, Mapping):
        return {str(name): model for name, model in models.items()}
    if isinstance(models, str | nn.Module):
        raise SettingsError("survey: pass a list of models, or a mapping of names to models")
    named: dict[str, str | nn.Module] = {}
    for model in models:
        name = model if isinstance(model, str) else type(model).__name__
        same = sum(known == name or known.startswith(f"{name} (") for known in named)
        named[f"{name} ({same + 1})" if same else name] = model
    return named
