"""Many models, one probe each: which classes and units react, across all of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from pytest_watermark_guard.errors import ReportError, SettingsError, WatermarkGuardError
from pytest_watermark_guard.probing import probe
from pytest_watermark_guard.report import ProbeReport

FORMAT = "pytest-watermark-guard/survey"
FORMAT_VERSION = 1


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

    def save(self, path: str | Path) -> None:
        """Write the survey to a JSON file."""
        data = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "reports": {name: json.loads(r.to_json()) for name, r in self.reports.items()},
            "failures": dict(self.failures),
        }
        Path(path).write_text(json.dumps(data, allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> SurveyReport:
        """Read a survey that `save` wrote.

        Raises
        ------
        ReportError
            If the file cannot be read or holds something else.
        """
        where = str(path)
        try:
            data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            if (data["format"], data["format_version"]) != (FORMAT, FORMAT_VERSION):
                raise ReportError(
                    f"{where!r} is of format {data['format']!r}, version "
                    f"{data['format_version']}; this version reads {FORMAT!r}, {FORMAT_VERSION}"
                )
            reports = {
                str(name): ProbeReport.from_json(json.dumps(report))
                for name, report in data["reports"].items()
            }
            failures = {str(name): str(reason) for name, reason in data["failures"].items()}
        except ReportError:
            raise
        except OSError as error:
            raise ReportError(f"cannot read {where!r}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ReportError(
                f"{where!r} holds no survey: {type(error).__name__}: {error}"
            ) from error
        return cls(reports, failures)


def survey(
    models: Sequence[str | nn.Module] | Mapping[str, str | nn.Module],
    images: Any = None,
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

    Returns
    -------
    SurveyReport

    Raises
    ------
    SettingsError
        If there is no model.

    Examples
    --------
    >>> found = wm.survey(["torchvision:resnet18@random", "torchvision:nosuch"])  # doctest: +SKIP
    >>> print(found.table())  # doctest: +SKIP
    """
    named = _named(models)
    if not named:
        raise SettingsError("survey: name at least one model")
    reports: dict[str, ProbeReport] = {}
    failures: dict[str, str] = {}
    for name, model in named.items():
        try:
            reports[name] = probe(model, images, name=name, **arguments)
        except WatermarkGuardError as error:
            failures[name] = str(error)
        except Exception as error:  # whatever someone's factory or forward pass raises
            failures[name] = f"{type(error).__name__}: {error}"
    return SurveyReport(reports, failures)


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
