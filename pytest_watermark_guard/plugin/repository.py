"""A look at a repository: what its models are made with, and where pytest's settings are."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = {
    "lightning": ("lightning", "pytorch_lightning"),
    "transformers": ("transformers",),
    "timm": ("timm",),
    "torch": ("torch", "torchvision"),
}
"""Kinds of repositories by what is imported there; the first that fits is taken."""

_NOT_ITS_OWN = {"node_modules", "site-packages", "build", "dist", "__pycache__"}
TEST_FILE = "test_watermark_guard.py"
"""What the starter writes: it tells nothing of the repository."""
_TEST_FOLDERS = ("tests", "test")
# Functions that make a model of a name, by the library that they are of.
_MAKERS = {"create_model": "timm", "from_pretrained": "transformers"}


@dataclass(frozen=True)
class Repository:
    """What was found.

    Attributes
    ----------
    folder : Path
    kind : str
        A key of `LIBRARIES`; ``"torch"`` if nothing tells.
    evidence : str
        Where that was seen; empty if nowhere.
    module : (str, str) or None
        For Lightning: the import path and name of a module of its own.
    model_name : str or None
        For timm and transformers: a name that its code asks them for.
    """

    folder: Path
    kind: str
    evidence: str
    module: tuple[str, str] | None = None
    model_name: str | None = None

    @property
    def test_folder(self) -> Path:
        """Where its tests are, or would be."""
        for name in _TEST_FOLDERS:
            if (self.folder / name).is_dir():
                return self.folder / name
        return self.folder / _TEST_FOLDERS[0]

    @property
    def settings_file(self) -> tuple[str, str] | None:
        """Where pytest's settings belong: file and table, or None if there is no such file yet."""
        # In the order in which pytest looks for them; the latter three are its own if they say so.
        for name, tables in (
            ("pytest.toml", ("[pytest]",)),
            (".pytest.toml", ("[pytest]",)),
            ("pytest.ini", ("[pytest]",)),
            (".pytest.ini", ("[pytest]",)),
            ("pyproject.toml", ("[tool.pytest]", "[tool.pytest.ini_options]")),
            ("tox.ini", ("[pytest]",)),
            ("setup.cfg", ("[tool:pytest]",)),
        ):
            file = self.folder / name
            if not file.is_file():
                continue
            said = [table for table in tables if table in _text(file)]
            if said or "pytest" in name:
                return name, (said or tables)[0]
        if (self.folder / "pyproject.toml").is_file():
            return "pyproject.toml", "[tool.pytest.ini_options]"
        return None

    @property
    def requirements(self) -> str:
        """What pip is told to install it, in a workflow."""
        if (self.folder / "requirements.txt").is_file():
            return "-r requirements.txt"
        packaged = any((self.folder / name).is_file() for name in ("pyproject.toml", "setup.py"))
        return "." if packaged else "torch"


def look_at(folder: Path) -> Repository:
    """Look at a repository; nothing of it is imported or run."""
    trees = dict(_trees(folder))
    imported = {name: path for path, tree in trees.items() for name in _imports(tree)}
    required = {
        name: path
        for path in _requirement_files(folder)
        for name in re.findall(r"(?<![\w.-])[a-z][\w-]*", re.sub("#.*", "", _text(path)))
    }
    for kind, names in LIBRARIES.items():
        for name in names:
            place = imported.get(name) or required.get(name) or required.get(name.replace("_", "-"))
            if place is not None:
                where = place.relative_to(folder).as_posix()
                return Repository(
                    folder,
                    kind,
                    f"{name} in {where}",
                    _lightning_module(trees, folder) if kind == "lightning" else None,
                    _model_name(trees, kind),
                )
    return Repository(folder, "torch", "")


def _trees(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    """Give the Python files that speak of one of the libraries."""
    words = [name.encode() for names in LIBRARIES.values() for name in names]
    for path in _own_files(folder):
        try:
            source = path.read_bytes()
            tree = ast.parse(source) if any(word in source for word in words) else None
        except (OSError, SyntaxError, ValueError):
            continue  # a dead link, a template, or Python of another age: it tells nothing
        if tree is not None:
            yield path, tree


def _own_files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if name not in _NOT_ITS_OWN and not name.startswith((".", "venv"))
        )
        own = (name for name in sorted(files) if name.endswith(".py") and name != TEST_FILE)
        yield from (Path(place) / name for name in own)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _requirement_files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("requirements*.txt"))
    for name in ("pyproject.toml", "setup.cfg", "environment.yml"):
        if (folder / name).is_file():
            yield folder / name


def _text(file: Path) -> str:
    return file.read_text("utf-8", errors="replace")


def _lightning_module(trees: Mapping[Path, ast.Module], folder: Path) -> tuple[str, str] | None:
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any(
                _last_name(base) == "LightningModule" for base in node.bases
            ):
                parts = path.relative_to(folder).with_suffix("").parts
                parts = parts[1:] if parts[0] == "src" else parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                if parts:
                    return ".".join(parts), node.name
    return None


def _model_name(trees: Mapping[Path, ast.Module], kind: str) -> str | None:
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _MAKERS.get(_last_name(node.func)) == kind:
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    return first.value
    return None


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
