from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pytest_watermark_guard.errors import ModelSpecError
from pytest_watermark_guard.models.loading.checkpoints import read_checkpoint
from pytest_watermark_guard.models.loading.fitting import load_checkpoint
from pytest_watermark_guard.models.loading.unpickling import weights_only


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
    read = read_checkpoint(tmp_path / "w.pth")
    torch.testing.assert_close(read.state, {**state}, rtol=0, atol=0)


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"state_dict": small().state_dict(), "hook": Evil(trace)}, tmp_path / "w.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil(trace)))
    for name in ("w.pt", "raw.pt"):
        with pytest.raises(ModelSpecError, match=r"not loaded, they could run code.*safetensors"):
            read_checkpoint(tmp_path / name)
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
        read_checkpoint(tmp_path / "missing.safetensors")
    for name in ("broken.safetensors", "broken.pt"):
        (tmp_path / name).write_bytes(b"\x07nonsense")
        with pytest.raises(ModelSpecError, match="broken"):
            read_checkpoint(tmp_path / name)
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(ModelSpecError, match=r"unknown weights suffix '\.onnx'"):
        read_checkpoint(tmp_path / "w.onnx")
    torch.save({"a": torch.zeros(1), "b": 3}, tmp_path / "mixed.pt")
    with pytest.raises(ModelSpecError, match="b is not a tensor"):
        read_checkpoint(tmp_path / "mixed.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ModelSpecError, match="holds a list, not a state dict"):
        read_checkpoint(tmp_path / "list.pt")


def other(value: float) -> dict[str, Tensor]:
    """Weights of `small` that no initialisation gives."""
    return {
        key: torch.full_like(tensor, value) if tensor.is_floating_point() else tensor
        for key, tensor in small().state_dict().items()
    }


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        # timm's scripts, torchvision's (SWA's wrapper), BasicSR, mmengine, DINO
        ({"state_dict": other(1), "state_dict_ema": other(2)}, "'state_dict_ema'"),
        (
            {
                "model": other(1),
                "model_ema": prefixed("module.", other(2)) | {"n_averaged": torch.tensor(3)},
            },
            "'model_ema'",
        ),
        ({"params": other(1), "params_ema": other(2)}, "'params_ema'"),
        (
            {"student": other(1), "teacher": prefixed("module.", other(2)), "dino_loss": {}},
            "'teacher'",
        ),
        ({"state_dict": other(2), "ema_state_dict": other(1), "message_hub": {}}, None),
        ({"state_dict": other(2), "state_dict_ema": None}, None),
    ],
)
def test_averaged_weights_are_taken_and_said(
    tmp_path: Path, content: Mapping[str, Any], said: str | None
) -> None:
    torch.save(content, tmp_path / "w.pth")
    model = small()
    notes = load_checkpoint(model, tmp_path / "w.pth")
    assert_holds(model, other(2))
    if said is None:
        assert notes == ()
    else:
        assert notes[0] == f"weights: the averaged ones in w.pth ({said}) were taken"


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "module.encoder_q.", "a.b.c."])
def test_one_prefix_is_taken_off_and_said(tmp_path: Path, prefix: str) -> None:
    # Beside them a loss and a queue, as in Lightning's files and MoCo's.
    more = {"loss.weight": torch.zeros(3), "module.queue": torch.zeros(2)}
    torch.save({"state_dict": prefixed(prefix, other(2)) | more, "epoch": 3}, tmp_path / "w.ckpt")
    model = small()
    assert load_checkpoint(model, tmp_path / "w.ckpt") == (
        f"weights: the prefix {prefix!r} was taken off the names in w.ckpt",
        "weights: w.ckpt holds more, which was left out: loss.weight, module.queue",
    )
    assert_holds(model, other(2))


def test_averaged_weights_beside_the_others(tmp_path: Path) -> None:
    state = prefixed("model.", other(1)) | prefixed("ema_model.module.", other(2))
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    model = small()
    first, *_ = load_checkpoint(model, tmp_path / "w.ckpt")
    assert first == "weights: the averaged ones in w.ckpt ('ema_model.module.') were taken"
    assert_holds(model, other(2))


def test_two_prefixes_are_not_chosen_from(tmp_path: Path) -> None:
    torch.save(prefixed("q.", other(1)) | prefixed("k.", other(2)), tmp_path / "w.pt")
    with pytest.raises(ModelSpecError, match=r"several prefixes \('q\.', 'k\.'\)"):
        load_checkpoint(small(), tmp_path / "w.pt")
    # Without a word on how they came about, a teacher is another network.
    torch.save({"student": other(1), "teacher": other(2)}, tmp_path / "w.pt")
    with pytest.raises(ModelSpecError, match=r"several sets of weights \(student, teacher\)"):
        load_checkpoint(small(), tmp_path / "w.pt")


def test_what_does_not_fit_is_told_without_the_prefix(tmp_path: Path) -> None:
    state = prefixed("model.", other(1)) | {"model.3.bias": torch.zeros(9)}
    torch.save(state, tmp_path / "w.pt")
    said = r"Sequential, also without the prefix 'model\.': 1 of another shape \(3\.bias \[9\]"
    with pytest.raises(ModelSpecError, match=said):
        load_checkpoint(small(), tmp_path / "w.pt")


def test_names_outside_the_prefix_may_be_what_is_missing(tmp_path: Path) -> None:
    state = {("head." if k.startswith("3") else "backbone.") + k: v for k, v in other(1).items()}
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "w.pth")
    said = r"'backbone\.': 2 missing \(3\.weight.*do not have the prefix \(head\.3\.weight"
    with pytest.raises(ModelSpecError, match=said):
        load_checkpoint(small(), tmp_path / "w.pth")


def test_counters_of_profilers_and_copies_of_hooks_are_left_out(tmp_path: Path) -> None:
    more = {"total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)}
    more |= {"ema_3_weight": torch.zeros(5, 16)}
    torch.save(other(2) | more, tmp_path / "w.pt")
    model = small()
    (note,) = load_checkpoint(model, tmp_path / "w.pt")
    assert note.endswith("left out: total_ops, 0.total_params, ema_3_weight")
    assert_holds(model, other(2))


def test_a_key_of_any_name_holds_the_weights(tmp_path: Path) -> None:
    torch.save({"net": other(2), "acc": 90.0, "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    model = small()
    assert load_checkpoint(model, tmp_path / "w.pt") == ("weights: taken from 'net' in w.pt",)
    assert_holds(model, other(2))


class Settings:
    """A class of a training script's own."""

    def __init__(self) -> None:
        self.lr = 0.1


class EasyDict(dict[str, Any]):
    """A dict with more to it, as configurations often are."""


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "extra",
    [
        argparse.Namespace(lr=0.1, out=pathlib.Path("out")),
        np.float64(0.9),
        np.arange(3.0),
        Settings(),
        EasyDict(lr=EasyDict(base=0.1)),
        collections.defaultdict(list, a=[1]),
    ],
    ids=lambda extra: type(extra).__name__,
)
def test_what_else_a_file_holds_is_left_unread(tmp_path: Path, extra: Any, legacy: bool) -> None:
    content = {"state_dict": other(2), "extra": extra}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    model = small()
    (note,) = load_checkpoint(model, tmp_path / "w.pt")
    assert type(extra).__name__ in note or "numpy" in note
    assert note.endswith("too: left unread")
    assert_holds(model, other(2))


def test_classes_in_a_file_are_not_imported(tmp_path: Path, monkeypatch: Any) -> None:
    torch.save({"state_dict": other(2), "extra": Settings()}, tmp_path / "w.pt")
    monkeypatch.setattr(Settings, "__setstate__", lambda *_: pytest.fail("ran"), raising=False)
    monkeypatch.setattr(Settings, "__new__", lambda *_: pytest.fail("ran"))
    load_checkpoint(small(), tmp_path / "w.pt")


def test_a_pickled_model_is_named(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "w.pt")
    with pytest.raises(ModelSpecError, match=r"torch\.nn\..*Sequential.*save its state_dict"):
        load_checkpoint(small(), tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_messages_are_whole_and_plain(tmp_path: Path) -> None:
    torch.save({"state_dict": other(1), "hook": Evil(tmp_path / "ran")}, tmp_path / "w.pt")
    (tmp_path / "detectron.pkl").write_bytes(pickle.dumps({"model": {"a": np.zeros(3)}}))
    torch.jit.script(small()).save(str(tmp_path / "script.pt"))
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid 1")
    for name, said in {
        "w.pt": r"mkdir\) are not loaded",
        "detectron.pkl": "NumPy arrays, as Detectron's",
        "script.pt": r"TorchScript archive.*torch\.jit\.load",
        "pointer.pt": "git lfs pull",
    }.items():
        with pytest.raises(ModelSpecError, match=said) as caught:
            read_checkpoint(tmp_path / name)
        message = str(caught.value)
        assert "\x1b" not in message
        assert "two options" not in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights", "w.pkl", "w.v1.0"])
def test_the_content_tells_what_a_file_is(tmp_path: Path, name: str) -> None:
    for write in (torch.save, save_file):
        write(other(2), tmp_path / name)
        model = small()
        load_checkpoint(model, tmp_path / name)
        assert_holds(model, other(2))


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_folders_and_shards(tmp_path: Path, kind: str, sharded: bool) -> None:
    write = save_file if kind.endswith("safetensors") else torch.save
    state = other(2)
    if sharded:
        halves = [{k: v for k, v in state.items() if k.startswith(s)} for s in ("0", ("1", "3"))]
        for number, half in enumerate(halves):
            write(half, tmp_path / f"{number}-{kind}")
        files = {k: f"{n}-{kind}" for n, half in enumerate(halves) for k in half}
        (tmp_path / f"{kind}.index.json").write_text(json.dumps({"weight_map": files}))
    else:
        write(state, tmp_path / kind)
    for path in (tmp_path, tmp_path / f"{kind}.index.json" if sharded else tmp_path / kind):
        model = small()
        assert load_checkpoint(model, path) == ()
        assert_holds(model, state)


def test_folders_and_indices_that_say_too_little(tmp_path: Path) -> None:
    with pytest.raises(ModelSpecError, match="no weights file in it"):
        read_checkpoint(tmp_path)
    for name in ("a.pt", "b.pt"):
        torch.save(other(1), tmp_path / name)
    with pytest.raises(ModelSpecError, match=r"name one of a\.pt, b\.pt"):
        read_checkpoint(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for text, said in {
        "{}": "no weight_map",
        '{"weight_map": {"0.bias": "../a.pt"}}': r"not beside it: '\.\./a\.pt'",
        '{"weight_map": {"0.bias": "a.pt", "other": "b.pt"}}': "do not hold: other",
    }.items():
        index.write_text(text)
        with pytest.raises(ModelSpecError, match=said):
            read_checkpoint(index)


def test_adapters_say_that_they_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelSpecError, match=r"adapter \(PEFT\).*merge_and_unload"):
        read_checkpoint(tmp_path)
    state = {"base_model.model.3.lora_A.weight": torch.zeros(2, 2)}
    save_file(state, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelSpecError, match=r"an adapter \(LoRA\)"):
        load_checkpoint(small(), tmp_path / "adapter_model.safetensors")
