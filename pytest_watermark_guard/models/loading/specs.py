"""The one grammar for naming a model; reading it imports no machine-learning library."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_watermark_guard.errors import ModelSpecError, did_you_mean

GRAMMAR = (
    "torchvision:NAME[@WEIGHTS], timm:NAME, hf:NAME, package.module:factory, path/to/file.pt2 or "
    "path/to/file.onnx; all but files take ?weights=PATH, the first three also @random, and "
    "?num_classes=N or ?weights=PATH&num_classes=N"
)
RANDOM = "random"
FILES = {".pt2": "exported", ".onnx": "onnx"}
LIBRARIES = ("torchvision", "timm", "hf")
_WEIGHTS = (".pt", ".pth", ".safetensors", ".ckpt", ".bin", ".tar", ".pkl", ".index.json")
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

_BARE_NAME = re.compile(r"[\w./-]+(@\w+)?")


@dataclass(frozen=True)
class ModelSpec:
    """A parsed model spec; ``str()`` gives back its text.

    Attributes
    ----------
    text : str
        What the user wrote.
    kind : str
        ``"torchvision"``, ``"timm"``, ``"hf"``, ``"factory"``, ``"exported"`` or ``"onnx"``.
    name : str
        The architecture, hub name or directory, ``package.module:factory``, or path of the file.
    tag : str or None
        What follows ``@``: a member of torchvision's weights, or ``"random"``.
    weights : str or None
        Local checkpoint.
    num_classes : int or None
        Width of the head to build.
    """

    text: str
    kind: str
    name: str
    tag: str | None = None
    weights: str | None = None
    num_classes: int | None = None

    def __str__(self) -> str:
        return self.text


def parse_spec(text: str) -> ModelSpec:
    """Read a model spec; nothing is imported, opened or downloaded.

    Parameters
    ----------
    text : str
        ``torchvision:resnet18``, ``timm:NAME``, ``hf:NAME``, ``package.module:factory``,
        ``file.pt2`` or ``file.onnx``; see the error message for the options.

    Raises
    ------
    ModelSpecError
        With the text, what is wrong with it, and the grammar.
    """
    text = text.strip()
    target, question, query = text.partition("?")
    library, colon, name = target.partition(":")
    if colon and library in LIBRARIES:
        name, at, tag = name.partition("@")
        if not name:
            raise _error(text, f"no name follows {library!r}")
        if at and not tag:
            raise _error(text, "nothing follows '@'")
        if tag and library != "torchvision" and tag != RANDOM:
            raise _error(text, f"{library} models take only @random, not @{tag}")
        weights, num_classes = _options(text, query, question)
        if tag == RANDOM and weights:
            raise _error(text, "@random and weights= exclude each other")
        if num_classes is not None and not weights and tag != RANDOM:
            raise _error(
                text,
                "num_classes= would give pretrained weights an untrained head; "
                "it needs weights= or @random",
            )
        return ModelSpec(text, library, name, tag or None, weights, num_classes)
    kind = next((kind for suffix, kind in FILES.items() if target.endswith(suffix)), None)
    if kind is not None:
        if question:
            raise _error(text, "an exported model carries its weights and takes no options")
        return ModelSpec(text, kind, target)
    if _FACTORY.fullmatch(target):
        weights, num_classes = _options(text, query, question)
        if num_classes is not None:
            raise _error(text, "num_classes= is for your factory to decide")
        return ModelSpec(text, "factory", target, weights=weights)
    if target.endswith(_WEIGHTS):
        raise _error(
            text,
            "weights alone do not say which architecture they belong to; name it, for instance "
            f"torchvision:resnet18?weights={target}",
        )
    if _BARE_NAME.fullmatch(target):
        likely = (f"{library}:{text}" for library in LIBRARIES)
        raise _error(text, f"it names no model; did you mean {' or '.join(likely)}?")
    raise _error(text, "it names no model")


def _options(text: str, query: str, question: str) -> tuple[str | None, int | None]:
    if question and not query:
        raise _error(text, "nothing follows '?'")
    options: dict[str, str] = {}
    for part in query.split("&") if query else ():
        key, _, value = part.partition("=")
        if key not in ("weights", "num_classes"):
            hint = did_you_mean(key, ("weights", "num_classes"))
            raise _error(text, f"unknown option {key!r}{hint}")
        if key in options:
            raise _error(text, f"{key}= is given twice")
        if not value:
            raise _error(text, f"{key}= has no value")
        options[key] = value
    count = options.get("num_classes")
    if count is not None and not (count.isascii() and count.isdigit() and int(count) > 0):
        raise _error(text, f"num_classes={count} is not a positive whole number")
    return options.get("weights"), None if count is None else int(count)


def _error(text: str, problem: str) -> ModelSpecError:
    end = "" if problem.endswith("?") else "."
    return ModelSpecError(f"model spec {text!r}: {problem}{end} A spec is {GRAMMAR}")
