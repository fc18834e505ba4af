from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pytest_watermark_guard.errors import ModelSpecError
from pytest_watermark_guard.models.loading.checkpoints import (
    load_checkpoint,
    read_state_dict,
    weights_only,
)


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def assert_holds(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    held = module.state_dict()
    for key, value in state.items():
        torch.testing.assert_close(held[key], value, rtol=0, atol=0)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_reads_what_was_saved(tmp_path: Path, suffix: str, prefix: str) -> None:
    source, target = small(), small()
    state = {prefix + key: value for key, value in source.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    load_checkpoint(target, path)
    assert_holds(target, source.state_dict())


@pytest.mark.parametrize("container", ["state_dict", "model_state_dict", "model"])
def test_unwraps_training_checkpoints(tmp_path: Path, container: str) -> None:
    state = small().state_dict()
    torch.save({container: state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
    read = read_state_dict(tmp_path / "w.pth")
    torch.testing.assert_close(read, {**state}, rtol=0, atol=0)


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"state_dict": small().state_dict(), "hook": Evil(trace)}, tmp_path / "w.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil(trace)))
    for name in ("w.pt", "raw.pt"):
        with pytest.raises(ModelSpecError, match=r"not loaded, they could run code.*safetensors"):
            read_state_dict(tmp_path / name)
    assert not trace.exists()
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert trace.exists(), "the checkpoint must be one that does harm when it is trusted"


def test_weights_only_wins_inside_libraries_and_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(Evil(tmp_path / "ran"), tmp_path / "w.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    before = dict(os.environ)
    with weights_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "w.pt", weights_only=False)
    assert dict(os.environ) == before
    assert not (tmp_path / "ran").exists()


def test_lists_what_does_not_fit(tmp_path: Path) -> None:
    state = small().state_dict()
    state["3.extra"] = state.pop("3.weight")
    for i in range(7):
        state[f"head.{i}"] = torch.zeros(1)
    state["0.bias"] = torch.zeros(9)
    save_file(state, tmp_path / "w.safetensors")
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelSpecError) as caught:
        load_checkpoint(model, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "1 missing (3.weight)" in message
    assert "8 unexpected (" in message
    assert "and 3 more" in message
    assert "1 of another shape (0.bias [9] instead of [4])" in message
    assert "num_classes" not in message
    assert_holds(model, before)


def test_suggests_the_number_of_classes(tmp_path: Path) -> None:
    state = small().state_dict() | {"3.weight": torch.zeros(9, 16), "3.bias": torch.zeros(9)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelSpecError, match="only the head differs: add num_classes=9"):
        load_checkpoint(small(), tmp_path / "w.safetensors")


def test_old_checkpoints_lack_the_counter_of_batch_norm(tmp_path: Path) -> None:
    state = small().state_dict()
    del state["1.num_batches_tracked"]
    save_file(state, tmp_path / "w.safetensors")
    model = small()
    load_checkpoint(model, tmp_path / "w.safetensors")
    assert_holds(model, state)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelSpecError, match="does not exist"):
        read_state_dict(tmp_path / "missing.safetensors")
    for name in ("broken.safetensors", "broken.pt"):
        (tmp_path / name).write_bytes(b"\x07nonsense")
        with pytest.raises(ModelSpecError, match="broken"):
            read_state_dict(tmp_path / name)
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(ModelSpecError, match=r"unknown weights suffix '\.onnx'"):
        read_state_dict(tmp_path / "w.onnx")
    torch.save({"a": torch.zeros(1), "b": 3}, tmp_path / "mixed.pt")
    with pytest.raises(ModelSpecError, match="b is not a tensor"):
        read_state_dict(tmp_path / "mixed.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ModelSpecError, match="holds a list, not a state dict"):
        read_state_dict(tmp_path / "list.pt")
