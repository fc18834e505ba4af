"""A first test, settings and workflow for a repository; nothing that exists is touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pytest_watermark_guard.plugin.repository import TEST_FILE, Repository, look_at

FILES = Path(__file__).parent / "starter_files"
WORKFLOW = ".github/workflows/watermark-guard.yml"
INI_LINES = ("wm_threshold = 0.95", "wm_scenarios = chinese latin arabic_numerals")
TOML_LINES = (
    "wm_threshold = {threshold}",
    'wm_scenarios = ["chinese", "latin", "arabic_numerals"]',
)
_WORKFLOW_REQUIREMENTS = "-r requirements.txt"
# How each kind loads a model: what is imported, and what is returned. {...} is filled in.
_LOADING = {
    "lightning": (
        "\nfrom {module} import {name}",  # of its own: a block apart
        'return {name}.load_from_checkpoint("last.ckpt", map_location="cpu")',
        "name your checkpoint",
    ),
    "transformers": (
        "from transformers import AutoModelForImageClassification",
        'return AutoModelForImageClassification.from_pretrained("{model}")',
        "name your model: a folder, or as you load it",
    ),
    "timm": (
        "import timm",
        'return timm.create_model("{model}", pretrained=True)',
        "load your weights: num_classes=, load_state_dict",
    ),
    "torch": (
        "import torchvision",
        'return torchvision.models.resnet18(weights="IMAGENET1K_V1")',
        "load your model and its weights",
    ),
}
_MODEL_NAMES = {"timm": "resnet18", "transformers": "microsoft/resnet-18"}
_MODULE = ("my_package.training", "Classifier")


def start(folder: Path) -> Iterator[str]:
    """Write what is missing in a repository; gives lines for its author.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    repository = look_at(folder)
    seen = f" ({repository.evidence})" if repository.evidence else ", as nothing says otherwise"
    yield f"Kind of repository: {repository.kind}{seen}."
    test = (repository.test_folder / TEST_FILE).relative_to(folder).as_posix()
    yield _write(folder, test, _test_text(repository))
    yield from _settings(repository)
    yield _write(folder, WORKFLOW, _workflow_text(repository, test))
    if (folder / ".gitlab-ci.yml").is_file():
        yield "GitLab CI: a job for it is in the documentation, under how-to/ci."
    yield ""
    yield "What to do next:"
    yield f"1. In {test}, load your model where it says TODO."
    yield f"2. python -m pytest {test} --wm-html=watermarks.html"
    yield "3. Read the page, and commit what was written."


def _test_text(repository: Repository) -> str:
    imported, returned, advice = _LOADING[repository.kind]
    module, name = repository.module or _MODULE
    model = repository.model_name or _MODEL_NAMES.get(repository.kind, "")
    words = {"module": module, "name": name, "model": model}
    template = (FILES / "test_watermark_guard.txt").read_text("utf-8")
    return template.format(
        imports=imported.format(**words),
        returned=returned.format(**words),
        advice=advice,
    )


def _settings(repository: Repository) -> Iterator[str]:
    place = repository.settings_file
    if place is None:
        text = "\n".join(["[pytest]", *INI_LINES, ""])
        yield _write(repository.folder, "pytest.ini", text)
        return
    file, table = place
    lines: tuple[str, ...] = INI_LINES
    if file.endswith(".toml"):
        # Its older table takes every number as text.
        number = "0.95" if table == "[tool.pytest]" else '"0.95"'
        lines = tuple(line.format(threshold=number) for line in TOML_LINES)
    yield f"{file} is there and was left as it is: add below {table}"
    yield from (f"    {line}" for line in lines)


def _workflow_text(repository: Repository, test: str) -> str:
    text = (FILES / "watermark-guard.yml").read_text("utf-8")
    text = text.replace(f"tests/{TEST_FILE}", test)
    return text.replace(_WORKFLOW_REQUIREMENTS, repository.requirements)


def _write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    if path.exists():
        return f"{name} is there and was left as it is."
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
    return f"wrote {name}"
