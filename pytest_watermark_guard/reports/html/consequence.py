"""What a report means, in one sentence of words made from numbers, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import SensitiveUnit
from pytest_watermark_guard.reports.verdict import Verdict

_PRINTED = {
    "chinese": "Chinese text is",
    "latin": "Latin text is",
    "hindi": "Hindi text is",
    "arabic_numerals": "a row of numerals is",
    "imagenet_w": "the watermark of ImageNet's cartons is",
}


class Step(NamedTuple):
    """One thing to do: words, and a line to copy, or none."""

    words: str
    code: str = ""


def deciding_unit(verdict: Verdict) -> SensitiveUnit:
    """Return the strongest of the units that a verdict stands on."""
    deciding = verdict.failing or verdict.strong
    return deciding[0] if deciding else _strongest(verdict.report)


def telling_unit(verdict: Verdict) -> SensitiveUnit:
    """Return the unit that says most to a reader: a class that reacts strongly, if there is one."""
    report = verdict.report
    classes = [unit for unit in (*verdict.failing, *verdict.strong) if unit.layer == "logits"]
    if classes:
        return classes[0]
    if "logits" not in report.layers:
        return deciding_unit(verdict)
    best = _strongest(report, ("logits",))
    # A class that hardly reacts would hide a feature that does.
    telling = best.differentiability >= verdict.warn or verdict.outcome == "passed"
    return best if telling else deciding_unit(verdict)


def _strongest(report: ProbeReport, layers: Sequence[str] = ()) -> SensitiveUnit:
    units = (each.strongest() for each in report if not layers or each.layer in layers)
    return max(units, key=lambda unit: unit.differentiability)


def consequence(report: ProbeReport, unit: SensitiveUnit) -> str:
    """Say what a mark does to a unit, and to predictions: the page's most important sentence."""
    printed = _PRINTED.get(unit.scenario, f"the mark {unit.scenario!r} is")
    verb = "rises" if unit.fires else "falls"
    text = f"When {printed} printed on a photo, {_unit(unit)} {verb} in {_of_100(unit)}"
    impact = report.impact.get(unit.scenario)
    if impact is not None and impact.flip_rate > 0:
        changed = round(100 * impact.flip_rate)
        photos = f"{changed} of 100 photos" if changed else "fewer than 1 of 100 photos"
        text += f", and {photos} get another predicted class"
    return f"{text}."


def _unit(unit: SensitiveUnit) -> str:
    if unit.layer == "logits":
        named = unit.name != str(unit.index)
        return f"the score of {unit.name!r}" if named else f"the score of class {unit.index}"
    place = "" if unit.layer == "features" else f" of {unit.layer}"
    return f"unit {unit.index}{place}" if place else f"feature unit {unit.index}"


def _of_100(unit: SensitiveUnit) -> str:
    d = unit.differentiability
    # 100 of 100 would say that there is no exception.
    return "all comparisons" if d == 1 else f"{min(99, round(100 * d))} of 100 comparisons"


def steps(verdict: Verdict) -> Iterator[Step]:
    """Say what to do about a verdict."""
    units = verdict.failing or verdict.strong
    outcome = verdict.outcome
    if outcome == "inconclusive" or (outcome == "failed" and verdict.answer == "unclear"):
        needed = verdict.conclusion.images_needed
        about = "" if needed is None or verdict.limits else f", about {needed:,} in all"
        yield Step(f"Probe with more images{about}, no two of them nearly the same.",
                   "--wm-images=FOLDER")  # fmt: skip
        yield Step("Or say what becomes of such a gate.", "--wm-inconclusive=pass")
    elif outcome == "not checked":
        yield Step("Read the notes: there was nothing to go by.")
    elif outcome == "passed" or not units:
        yield Step("Nothing. Gate the next model too: a retraining may learn the shortcut.")
    else:
        where = "images of these classes" if units[0].layer == "logits" else "training images"
        yield Step(
            f"Find the {where} that teach it.", 'wm.search(model, "training_images/", report)'
        )
        yield Step("Take the marks out of them and train again, or mask the units.",
                   "wm.FeatureMask.from_report(report, threshold=0.8)")  # fmt: skip
        if outcome == "warned":
            yield Step("Or let strong reactions fail the gate.", "--wm-strict")
        else:
            entry = f"{units[0].layer}:{units[0].name}=why"
            yield Step("Or accept a known unit, with a reason.", f"--wm-allow={entry!r}")
