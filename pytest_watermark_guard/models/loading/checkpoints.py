"""Weights from local files, read without running any code that they may carry."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from pytest_watermark_guard.errors import ModelSpecError
from pytest_watermark_guard.models.loading.lookups import weights_of
from pytest_watermark_guard.models.loading.unpickling import (
    Inert,
    first_line,
    listed,
    load_pickled,
)

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".model", ".weights")
ADAPTER = "adapter_config.json"
_INDEX = ".index.json"
_IN_A_FOLDER = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
# Averaged weights come first, as in timm.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema")
# Whose teacher is the average of its student, as that of a distillation is not.
_SELF_DISTILLED = ("dino_loss", "ibot_loss")
_CONTAINERS = ("state_dict", "model_state_dict", "model")
_MOST_NESTED = 4
_MAGIC = (b"PK\x03\x04", b"\x80\x02")  # of a zip archive, of a pickle
_LFS = b"version https://git-lfs"


class Checkpoint(NamedTuple):
    """Weights by name, on the CPU, and what was chosen or left out, for the report."""

    state: dict[str, Tensor]
    notes: tuple[str, ...]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the weights in a checkpoint.

    Parameters
    ----------
    path : path
        A safetensors file, or one that ``torch.save`` wrote, whatever it is called; the
        ``*.index.json`` of such files in parts; or a folder with one of these. A state dict may
        lie under ``state_dict``, ``model_state_dict``, ``model`` or another key, if there is only
        one; averaged weights (``state_dict_ema``, ``model_ema``, ...) are taken first.

    Returns
    -------
    Checkpoint

    Raises
    ------
    ModelSpecError
        When there is no such file, or it is of another kind, damaged, ambiguous, or holds no
        state dict, or pickled functions.
    """
    path = weights_of(path)
    file = _in_folder(path) if path.is_dir() else path
    if file.name.endswith(_INDEX):
        return _shards(file)
    return _file(file)


def _file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(_LFS):
        raise ModelSpecError(
            f"{path} is not the weights but Git LFS's pointer to them: run git lfs pull"
        )
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        try:
            return Checkpoint(load_file(path), ())
        except Exception as error:  # of its header, of numbers without a type, of the disk
            raise ModelSpecError(
                f"{path} is not a readable safetensors file: {first_line(error)}"
            ) from error
    if path.suffix not in PICKLE_SUFFIXES and not start.startswith(_MAGIC):
        raise ModelSpecError(
            f"{path}: unknown weights suffix {path.suffix!r}, and neither a safetensors file nor "
            f"one of torch.save; known are .safetensors, {', '.join(PICKLE_SUFFIXES)}"
        )
    content, replaced = load_pickled(path)
    state, notes = _state_in(content, path)
    if replaced:
        notes = (*notes, f"weights: {path.name} holds {listed([*replaced])} too: left unread")
    return Checkpoint(state, notes)


def _state_in(content: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    for _ in range(_MOST_NESTED):
        key = _container(content, path)
        if key is None:
            break
        content = content[key]
        if key in (*_AVERAGED, "teacher"):
            notes += (f"weights: the averaged ones in {path.name} ({key!r}) were taken",)
        elif key not in _CONTAINERS:
            notes += (f"weights: taken from {key!r} in {path.name}",)
    if isinstance(content, Inert):
        raise ModelSpecError(
            f"{path} holds a pickled {content.qualified_name()}, not its weights, and no code is "
            "unpickled: load it yourself where you trust it, and pass the network in it or save "
            f"its state_dict(){_way_out(content.qualified_name())}"
        )
    if not isinstance(content, Mapping) or not content:
        raise ModelSpecError(f"{path} holds a {type(content).__name__}, not a state dict")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ModelSpecError(
            f"{path} is not a state dict: {listed(others)} "
            f"{'is not a tensor' if len(others) == 1 else 'are not tensors'}"
        )
    return {str(key): value for key, value in content.items()}, notes


def _container(content: Any, path: Path) -> str | None:
    """Return the key under which the weights are, None where they are not one level down."""
    if not isinstance(content, Mapping):
        return None
    if isinstance(content.get("teacher"), Mapping) and any(k in content for k in _SELF_DISTILLED):
        return "teacher"
    for key in (*_AVERAGED, *_CONTAINERS):
        # MMEngine swaps the two on saving: its state_dict is the average.
        swapped = key == "ema_state_dict" and "message_hub" in content
        if not swapped and isinstance(content.get(key), (Mapping, Inert)) and content[key] != {}:
            return key
    if any(isinstance(value, Tensor) for value in content.values()):
        return None
    found = [str(key) for key, value in content.items() if _is_state(value)]
    if len(found) > 1:
        raise ModelSpecError(
            f"{path} holds several sets of weights ({listed(found)}): save one of them alone, "
            f"torch.save(checkpoint[{found[0]!r}], 'weights.pt')"
        )
    return found[0] if found else None


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(entry, Tensor) for entry in value.values())
    )


def _way_out(name: str) -> str:
    if name.startswith("fastai."):
        return ": torch.save(learn.model.state_dict(), 'weights.pt')"
    if name.startswith("ultralytics."):
        return ": torch.save(YOLO(path).model.state_dict(), 'weights.pt')"
    return ""


def _in_folder(folder: Path) -> Path:
    """Return the file in a folder that says what its weights are."""
    if (folder / ADAPTER).is_file():
        raise adapter_error(folder)
    for name in _IN_A_FOLDER:
        for file in (folder / name, folder / f"{name}{_INDEX}"):
            if file.is_file():
                return file
    if (folder / "zero_to_fp32.py").is_file():
        raise ModelSpecError(
            f"{folder} is a DeepSpeed checkpoint, whose weights are spread over processes: run "
            "its zero_to_fp32.py, and name the file that it writes"
        )
    if (folder / ".metadata").is_file():
        raise ModelSpecError(
            f"{folder} is a distributed checkpoint: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt"
        )
    suffixes = (".safetensors", *PICKLE_SUFFIXES)
    files = sorted(file.name for file in folder.iterdir() if file.suffix in suffixes)
    if len(files) == 1:
        return folder / files[0]
    there = f"name one of {listed(files)}" if files else "there is no weights file in it"
    raise ModelSpecError(f"{folder} is a folder without {' or '.join(_IN_A_FOLDER[:2])}; {there}")


def adapter_error(folder: str | os.PathLike[str]) -> ModelSpecError:
    """Return the error for a folder of PEFT, which holds an adapter and no model."""
    return ModelSpecError(
        f"{os.fspath(folder)} holds an adapter (PEFT), which is no model by itself: merge it into "
        "its base, PeftModel.from_pretrained(base, folder).merge_and_unload(), and pass that "
        "model, or save it and name its folder"
    )


def _shards(index: Path) -> Checkpoint:
    """Read all parts that an index names; they lie beside it."""
    try:
        files = json.loads(index.read_text("utf-8"))["weight_map"]
        names = sorted({str(name) for name in files.values()})
    except Exception as error:  # a look into data of another shape may raise anything
        raise ModelSpecError(f"{index} is not an index of weights: it has no weight_map") from error
    state: dict[str, Tensor] = {}
    notes: tuple[str, ...] = ()
    for name in names:
        part = index.parent / name
        if Path(name).name != name or not part.is_file():
            raise ModelSpecError(f"{index} names a part that is not beside it: {name!r}")
        read = _file(part)
        state |= read.state
        notes += read.notes
    missing = [key for key in files if key not in state]
    if missing:
        raise ModelSpecError(f"{index} names weights that its parts do not hold: {listed(missing)}")
    return Checkpoint(state, tuple(dict.fromkeys(notes)))
