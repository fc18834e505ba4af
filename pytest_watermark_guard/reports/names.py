"""Names in reports; read when pytest starts, so nothing heavy is imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from pytest_watermark_guard.reports.log_lines import inert


def asked_layer(layer: str) -> str:
    """Return the layer that was asked for: "logits" for a further output "logits[shape]"."""
    return layer.partition("[")[0]


def unit_label(name: str, index: int) -> str:
    """Return name and index: ``carton [478]``, or ``unit 937`` where there is no name."""
    return f"unit {index}" if name == str(index) else f"{name} [{index}]"


def printable(text: str, width: int | None = None) -> str:
    """Make text from outside safe for one line of a terminal: no control codes, no line breaks.

    Nor is it a command to a runner. Longer text than `width` is cut, with an ellipsis.
    """
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    clean = inert(clean)
    return clean if width is None or len(clean) <= width else clean[: width - 1] + "…"


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Return a short name for each model spec: ``resnet18`` for ``torchvision:resnet18@DEFAULT``.

    Specs that would have the same short name keep their own.
    """
    short = {model: _short(model) for model in models}
    times = Counter(short.values())
    return {model: name if times[name] == 1 else model for model, name in short.items()}


def _short(model: str) -> str:
    if any(c.isspace() for c in model):
        return model  # no spec: a name that somebody gave
    path = model.partition("@")[0].rpartition(":")[2] if ":" in model else model
    return PurePosixPath(path).name or model
