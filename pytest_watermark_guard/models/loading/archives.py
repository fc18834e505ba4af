"""Reading torch.export archives, so that none of their bytes is run as Python.

``torch.export.load`` unpickles, evaluates size expressions with ``sympify`` and writes names from
the archive into source code that it executes. Here the members that a model needs are checked,
everything else is left behind, and only the checked copy is handed to torch.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from pytest_watermark_guard.errors import ModelSpecError
from pytest_watermark_guard.models.loading.unpickling import (
    check_unpacked_size,
    first_line,
    weights_only,
)

# Dots and dashes, but nothing to call, quote, index or separate statements with.
_PLAIN = re.compile(r"[\w.:/+\-]*", re.ASCII)
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|quantized_decomposed)\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|_operator\.\w+|math\.\w+|torch\._?sym_\w+",
    re.ASCII,
)
_FILE_OPERATORS = ("torch.ops.aten.from_file",)
_EXPRESSION_NAMES = frozenset([
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Abs",
    "floor", "ceiling", "Piecewise", "ExprCondPair", "Equality", "Unequality", "StrictLessThan",
    "StrictGreaterThan", "LessThan", "GreaterThan", "And", "Or", "Not", "true", "false",
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt",
    "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv",
    "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
    "IsNonOverlappingAndDenseIndicator",
])  # fmt: skip
_EXPRESSION_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.Tuple,
    ast.UnaryOp, ast.USub, ast.UAdd, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv,
    ast.Mod, ast.Pow, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
_RAW_TENSOR = re.compile(r"(weight|tensor)_\d+")
_SIZE_SYMBOL = re.compile(r"(s|u|ps|zf|zuf)\d+")

_NEEDED = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|data/(weights|constants)/[\w.\-]+"
    r"|data/sample_inputs/\w+\.pt|models/\w+\.json"
    # The layout of torch 2.7 and older:
    r"|version|serialized_exported_program\.json"
    r"|serialized_(state_dict|constants|example_inputs)\.pt"
)


class _RefusedError(Exception):
    """Something in the archive could run code."""


def load_exported_program(path: Path) -> ExportedProgram:
    """Load a ``.pt2`` archive that ``torch.export.save`` wrote.

    Raises
    ------
    ModelSpecError
        When the file is not such an archive, or holds anything that could run code: pickled
        Python objects, compiled libraries, crafted expressions or names.
    """
    try:
        checked = _checked_copy(path)
        with weights_only(), warnings.catch_warnings():
            # torch warns about archives of its own older layout, which stay readable.
            warnings.simplefilter("ignore")
            return torch.export.load(checked)
    except _RefusedError as refusal:
        raise ModelSpecError(
            f"{path} was refused: {refusal}. Archives are loaded only when nothing in them can "
            "run code; export the model again with torch.export.save"
        ) from refusal
    except ModelSpecError:
        raise
    except Exception as error:  # torch raises whatever the broken part ran into
        raise ModelSpecError(
            f"{path} could not be loaded as a torch.export archive: {first_line(error)}"
        ) from error


def _checked_copy(path: Path) -> io.BytesIO:
    """Write the members that a model needs, checked, into an archive of our own.

    A copy, because two readers may see two different members in one crafted zip file.
    """
    check_unpacked_size(path)
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        names = source.namelist()
        if len(set(names)) != len(names):
            raise _RefusedError("two of its members have the same name")
        root = _root(names)
        for name in names:
            member = name[len(root) :]
            if "data/aotinductor/" in f"/{member}" or member.endswith((".so", ".dll", ".cubin")):
                raise _RefusedError(f"{name} is compiled code")
            if not _NEEDED.fullmatch(member):
                continue
            content = source.read(name)
            if member.endswith(".json"):
                content = _checked_json(name, content)
            elif member.endswith(".pt"):
                _check_pickle(name, content)
            target.writestr(name, content)
    copy.seek(0)
    return copy


def _root(names: list[str]) -> str:
    """Return the folder that torch's newer layout puts around all members."""
    first = names[0].split("/")[0] + "/" if names else ""
    return first if all(name.startswith(first) for name in names) else ""


def _check_pickle(name: str, content: bytes) -> None:
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _RefusedError(f"{name} holds pickled Python objects ({first_line(error)})") from error


def _checked_json(name: str, content: bytes) -> bytes:
    tree = json.loads(content)
    if not isinstance(tree, dict):
        raise _RefusedError(f"{name} is not an object")
    for payload in (tree.get("config") or {}).values():
        # Tensors are raw bytes; custom and opaque objects are unpickled whatever the flag says.
        if payload.get("use_pickle") or not _RAW_TENSOR.fullmatch(payload.get("path_name", "")):
            raise _RefusedError(f"{name} asks to unpickle {payload.get('path_name')}")
    return json.dumps(_checked(tree)).encode()


def _checked(value: Any) -> Any:
    """Return the JSON value without comments and metadata, or refuse it."""
    if isinstance(value, dict):
        if "target" in value and "outputs" in value:
            _check_target(value["target"])
        return {_plain(key): _checked_field(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_checked(item) for item in value]
    return _plain(value) if isinstance(value, str) else value


def _checked_field(key: str, value: Any) -> Any:
    if key == "metadata" and isinstance(value, dict):
        # Source lines and stack traces; module names are all that is wanted from it.
        kept = value.get("nn_module_stack")
        return {"nn_module_stack": kept} if isinstance(kept, str) else {}
    if isinstance(value, str):
        if key == "as_string":
            return value  # an argument such as einsum's; torch writes it with repr()
        if key == "expr_str":
            _check_expression(value)
            return value
        if key in ("in_spec", "out_spec") and value:
            _check_tree_spec(json.loads(value))
            return value
    if key == "as_strings":
        return value
    return _checked(value)


def _plain(text: str) -> str:
    if not _PLAIN.fullmatch(text):
        raise _RefusedError(f"it has a name that is not one: {text[:60]!r}")
    return text


def _check_target(target: Any) -> None:
    if (
        not isinstance(target, str)
        or not _TARGET.fullmatch(target)
        or target.startswith(_FILE_OPERATORS)
    ):
        raise _RefusedError(f"it calls {str(target)[:60]!r}, which is not a tensor operator")


def _check_expression(text: str) -> None:
    """Check a size such as ``Add(Symbol('s0', integer=True), Integer(1))``."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _RefusedError(f"it has a size that is not an expression: {text[:60]!r}") from error
    for node in ast.walk(tree):
        allowed = isinstance(node, _EXPRESSION_NODES)
        if isinstance(node, ast.Call):
            allowed = isinstance(node.func, ast.Name)
        elif isinstance(node, ast.Name):
            allowed = node.id in _EXPRESSION_NAMES or bool(_SIZE_SYMBOL.fullmatch(node.id))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            allowed = bool(_PLAIN.fullmatch(node.value))
        if not allowed:
            raise _RefusedError(f"it has a size that is not arithmetic: {text[:60]!r}")


def _check_tree_spec(value: Any) -> None:
    """Check a pytree description, whose contexts are JSON inside JSON."""
    if isinstance(value, dict):
        if "__enum__" in value or "default_factory_module" in value:
            raise _RefusedError("its inputs or outputs import Python modules")
        for key, item in value.items():
            _plain(key)
            if key == "context" and isinstance(item, str):
                try:
                    item = json.loads(item)
                except ValueError:
                    _plain(item)
            _check_tree_spec(item)
    elif isinstance(value, list):
        for item in value:
            _check_tree_spec(item)
    elif isinstance(value, str):
        _plain(value)
