"""Weights, programs and keys of strangers: nothing in them runs, and what is wrong is said."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fuzzing import bounded_memory, counted, refusal, told, tried
from mutating import mutants
from onnx import TensorProto, helper
from safetensors.torch import save as safetensors
from small_reports import KEY

from pytest_watermark_guard.errors import ModelSpecError, OwnershipError
from pytest_watermark_guard.models.loading.archives import load_exported_program
from pytest_watermark_guard.models.loading.checkpoints import read_checkpoint
from pytest_watermark_guard.models.loading.onnx_files import open_onnx
from pytest_watermark_guard.ownership import OwnershipKey

STATE = {"stem.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.ones(2).half()}


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def saved(value, **options) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def enough(record_property, what, inputs, read, refused):
    counted(record_property, what, inputs, read, refused)
    assert refused > 10


def test_checkpoints(tmp_path, record_property):
    harmed = tmp_path / "harmed"
    seeds = [
        saved(STATE),
        saved(STATE, _use_new_zipfile_serialization=False),
        saved({"state_dict": STATE, "epoch": 3, "args": {"lr": 0.1}}),
        saved({"model": STATE, "optimizer": Harmful(harmed)}),
        saved({"model": STATE, "o": Harmful(harmed)}, _use_new_zipfile_serialization=False),
        safetensors(STATE, {"format": "pt"}),
        pickle.dumps({"model": np.arange(3.0), "o": Harmful(harmed)}, protocol=2),
    ]
    read = refused = 0
    with bounded_memory(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, content in enumerate(mutants(seeds, told("checkpoints"), 11)):
            path = tmp_path / f"weights{('.pt', '.safetensors', '.any')[number % 3]}"
            path.write_bytes(content)
            try:
                state = read_checkpoint(path).state
            except ModelSpecError as error:
                refused += refusal(error, "weights.")
            else:
                read += 1
                assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert not harmed.exists()
    enough(record_property, "checkpoints", told("checkpoints"), read, refused)
    assert read > 50


class Small(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * 2


def test_exported_programs(tmp_path, record_property):
    path = tmp_path / "net.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(Small(), (torch.rand(2, 3, 4, 4),)), path)
    contents = mutants([path.read_bytes()], told("programs"), 12)
    outcomes = tried(path, contents, load_exported_program, ModelSpecError)
    enough(record_property, "exported programs", told("programs"), *outcomes)


def graph() -> bytes:
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, 4, 4])
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 2])
    weights = helper.make_tensor("w", TensorProto.FLOAT, [48, 2], np.ones(96, np.float32))
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [taken], [given], [weights]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return model.SerializeToString()


def outside() -> bytes:
    model = onnx.load_model_from_string(graph())
    (tensor,) = model.graph.initializer
    tensor.ClearField("float_data")
    tensor.data_location = tensor.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"
    return model.SerializeToString()


def test_onnx_files(tmp_path, record_property, capfd):
    path = tmp_path / "net.onnx"
    contents = mutants([graph(), graph(), outside()], told("onnx"), 13)
    outcomes = tried(path, contents, open_onnx, ModelSpecError)
    capfd.readouterr()  # onnxruntime logs by itself
    enough(record_property, "ONNX files", told("onnx"), *outcomes)


@pytest.mark.parametrize("place", ["/etc/passwd", "../x", "a\0b", ""])
def test_onnx_files_name_no_files_elsewhere(tmp_path, place):
    model = onnx.load_model_from_string(outside())
    model.graph.initializer[0].external_data[0].value = place
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelSpecError, match=r"net\.onnx"):
        open_onnx(tmp_path / "net.onnx")


def test_ownership_keys(tmp_path, record_property):
    path = tmp_path / "key.safetensors"
    KEY.save(path)
    contents = mutants([path.read_bytes()], told("keys"), 14)
    outcomes = tried(path, contents, OwnershipKey.load, OwnershipError)
    enough(record_property, "keys", told("keys"), *outcomes)


@pytest.mark.parametrize("name", ["w.pt", "w.pt2"])
def test_an_archive_of_a_few_bytes_does_not_fill_the_memory(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl" if name == "w.pt" else "w/models/m.json", bytes(2**28))
    load = read_checkpoint if name == "w.pt" else load_exported_program
    with pytest.raises(ModelSpecError, match=rf"{name} was refused: it would be unpacked to 268,"):
        load(tmp_path / name)
