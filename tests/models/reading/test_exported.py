"""Programs of torch.export: what they compute, and what their files must not do."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pytest_watermark_guard.errors import LayerError, ModelSpecError, PreprocessingError
from pytest_watermark_guard.models.loading.loading import load_model
from pytest_watermark_guard.models.reading.activations import ActivationRecorder, extract_features

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.block(x).mean((2, 3))))


def export(model: nn.Module, x: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch", max=1024)},) if dynamic else None
    return torch.export.export(model.eval(), (x,), dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "small.pt2"
    torch.export.save(export(Small(), torch.randn(4, 3, 8, 8), dynamic=False), path)
    return path


@pytest.fixture(scope="module")
def saved_in_the_old_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torch._export.serde.schema import SCHEMA_VERSION
    from torch._export.serde.serialize import serialize

    parts = serialize(export(Small(), torch.randn(4, 3, 8, 8), dynamic=True))
    path = tmp_path_factory.mktemp("exported") / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
        archive.writestr("serialized_exported_program.json", parts.exported_program)
        archive.writestr("serialized_state_dict.pt", parts.state_dict)
        archive.writestr("serialized_constants.pt", parts.constants)
        archive.writestr("serialized_example_inputs.pt", parts.example_inputs)
    return path


def test_a_fixed_batch_is_padded_and_split(saved: Path) -> None:
    loaded = load_model(str(saved))
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.size == (8, 8)
    assert loaded.preprocessing.assumed
    model = Small().eval()
    with ActivationRecorder(
        loaded.module, ("logits", "features", "block"), torch.randn(2, 3, 8, 8)
    ) as recorder:
        assert recorder.batch_size == 4
        for count in (1, 4, 6):
            x = torch.randn(count, 3, 8, 8)
            read = recorder(x)
            with torch.no_grad():
                features = model.block(x).mean((2, 3))
                torch.testing.assert_close(read["logits"], model(x))
            torch.testing.assert_close(read["features"], features)
            torch.testing.assert_close(read["block"], features)


def test_the_old_layout(saved_in_the_old_layout: Path) -> None:
    module = load_model(str(saved_in_the_old_layout)).module
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(extract_features(module, x), extract_features(Small(), x))


@pytest.mark.parametrize(
    "name", ["resnet18", "squeezenet1_1", "mobilenet_v2", "vit_b_32", "swin_t", "alexnet"]
)
def test_architectures(name: str) -> None:
    torch.manual_seed(0)
    options = {"image_size": 64} if name.startswith("vit") else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    if name == "vit_b_32":
        nn.init.normal_(model.heads.head.weight)
    x = torch.randn(2, 3, 64, 64)
    program = export(model, x, dynamic=True).module()
    with ActivationRecorder(program, ("logits", "features"), x) as recorder:
        assert recorder.batch_size is None
        read = recorder(torch.cat([x, x]))
    with torch.no_grad():
        torch.testing.assert_close(read["logits"][:2], model(x), rtol=1e-4, atol=1e-4)
    expected = extract_features(model, x)
    torch.testing.assert_close(read["features"][2:], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11"])
def test_backbones(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None)
    if name == "resnet18":
        model.fc = nn.Identity()
    else:
        model.classifier[-1] = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    program = export(model, x, dynamic=True).module()
    with ActivationRecorder(program, ("logits", "features"), x) as recorder:
        read = recorder(x)
    assert recorder.layers == ("features",)
    assert "no head found" in recorder.notes[0]
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model(x), rtol=1e-4, atol=1e-5)


def test_unknown_layers_and_sizes(saved: Path) -> None:
    module = load_model(str(saved)).module
    with pytest.raises(LayerError, match="did you mean 'block'"):
        ActivationRecorder(module, ("blok",), torch.randn(4, 3, 8, 8))
    with pytest.raises(PreprocessingError, match=r"shape \[4, 3, 8, 8\], not \[2, 3, 9, 9\]"):
        ActivationRecorder(module, ("logits",), torch.randn(2, 3, 9, 9))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def evil_pickle(trace: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": Evil(trace)}, buffer)
    return buffer.getvalue()


def rewrite(
    source: Path, target: Path, change: Callable[[str, bytes], bytes | None], **added: bytes
) -> str:
    """Copy an archive with some of its members changed, and some added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0] + "/" if "/" in old.namelist()[0] else ""
        for name in old.namelist():
            content = change(name[len(root) :], old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in added.items():
            new.writestr(root + name.replace("__", "/"), content)
    return str(target)


def refuse(spec: str, trace: Path, said: str) -> None:
    with pytest.raises(ModelSpecError, match=said):
        load_model(spec)
    assert not trace.exists()


def edit(member: str, damage: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if name != member:
            return content
        tree = json.loads(content)
        damage(tree)
        return json.dumps(tree).encode()

    return change


def test_an_evil_pickle_among_the_sample_inputs(saved: Path, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    spec = rewrite(
        saved,
        tmp_path / "evil.pt2",
        lambda name, data: evil_pickle(trace) if name.startswith("data/sample_inputs") else data,
    )
    refuse(spec, trace, "refused: .*sample_inputs.*pickled Python objects")
    logging.disable(logging.WARNING)  # torch 2.14 trips over a warning of its own
    try:
        torch.export.load(spec)
    finally:
        logging.disable(logging.NOTSET)
    assert trace.exists(), "torch alone must be harmed by it, or the test shows nothing"


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_an_evil_legacy_pickle(saved: Path, tmp_path: Path, kind: str) -> None:
    trace = tmp_path / "ran"
    spec = rewrite(
        saved,
        tmp_path / "evil.pt2",
        lambda name, data: data,
        **{f"data__{kind}__model.pt": evil_pickle(trace)},
    )
    refuse(spec, trace, f"refused: .*{kind}/model.pt holds pickled Python objects")


def test_an_evil_pickled_weight(saved: Path, tmp_path: Path) -> None:
    trace = tmp_path / "ran"

    def damage(tree: Any) -> None:
        next(iter(tree["config"].values()))["use_pickle"] = True

    change = edit("data/weights/model_weights_config.json", damage)
    spec = rewrite(
        saved,
        tmp_path / "evil.pt2",
        lambda name, data: (
            evil_pickle(trace) if name == "data/weights/weight_0" else change(name, data)
        ),
    )
    refuse(spec, trace, "refused: .*asks to unpickle weight_0")


@pytest.mark.parametrize("path_name", ["custom_obj_0", "opaque_obj_0"])
@pytest.mark.parametrize("flag", [True, False])
def test_an_evil_object_among_the_constants(
    saved: Path, tmp_path: Path, path_name: str, flag: bool
) -> None:
    trace = tmp_path / "ran"

    def damage(tree: Any) -> None:
        tree["config"]["c"] = {
            "path_name": path_name, "is_param": False, "use_pickle": flag, "tensor_meta": None,
        }  # fmt: skip

    spec = rewrite(
        saved,
        tmp_path / "evil.pt2",
        edit("data/constants/model_constants_config.json", damage),
        **{f"data__constants__{path_name}": pickle.dumps(Evil(trace))},
    )
    refuse(spec, trace, f"refused: .*asks to unpickle {path_name}")


@pytest.mark.parametrize("member", ["state_dict", "constants", "example_inputs"])
def test_an_evil_pickle_in_the_old_layout(
    saved_in_the_old_layout: Path, tmp_path: Path, member: str
) -> None:
    trace = tmp_path / "ran"
    spec = rewrite(
        saved_in_the_old_layout,
        tmp_path / "evil.pt2",
        lambda name, data: evil_pickle(trace) if member in name else data,
    )
    refuse(spec, trace, f"refused: serialized_{member}.pt holds pickled Python objects")


def test_compiled_code_is_refused(saved: Path, tmp_path: Path) -> None:
    added = {"data__aotinductor__model__wrapper.so": b"\x7fELF"}
    spec = rewrite(saved, tmp_path / "evil.pt2", lambda name, data: data, **added)
    refuse(spec, tmp_path / "ran", "refused: .*compiled code")


def evil_expression(tree: Any, code: str) -> None:
    size = {"as_expr": {"expr_str": code, "hint": {"as_int": 4}}}
    tree["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0] = size


def evil_name(tree: Any, code: str) -> None:
    text = json.dumps(tree).replace('"relu"', json.dumps(f"relu\n{code}\n"))
    tree.clear()
    tree.update(json.loads(text))


def evil_target(tree: Any, code: str) -> None:
    tree["graph_module"]["graph"]["nodes"][0]["target"] = "torch.serialization.os.mkdir"


def file_target(tree: Any, code: str) -> None:
    tree["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def evil_tree(tree: Any, code: str) -> None:
    signature = tree["graph_module"]["module_call_graph"][0]["signature"]
    hidden = json.dumps([{"__enum__": True, "fqn": "antigravity:x", "name": "y"}])
    signature["in_spec"] = json.dumps(
        [1, {"type": "builtins.dict", "context": hidden, "children_spec": []}]
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (evil_expression, "a size that is not arithmetic"),
        (evil_name, "a name that is not one"),
        (evil_target, "not a tensor operator"),
        (file_target, "not a tensor operator"),
        (evil_tree, "import Python modules"),
    ],
)
def test_evil_graphs(
    saved: Path, tmp_path: Path, damage: Callable[[Any, str], None], said: str
) -> None:
    trace = tmp_path / "ran"
    code = f"__import__('os').mkdir({str(trace)!r})"
    spec = rewrite(
        saved, tmp_path / "evil.pt2", edit("models/model.json", lambda tree: damage(tree, code))
    )
    refuse(spec, trace, said)
    if damage is evil_expression:
        with pytest.raises(Exception):  # noqa: B017, PT011 - after the harm is done, any will do
            torch.export.load(spec)
        assert trace.exists(), "torch alone must be harmed by it, or the test shows nothing"


def test_two_members_of_one_name(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.pt2"
    path.write_bytes(saved.read_bytes())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"")
    refuse(str(path), tmp_path / "ran", "same name")


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("hello")
    refuse(str(tmp_path / "text.pt2"), tmp_path / "ran", "could not be loaded as a torch.export")
    refuse(str(tmp_path / "none.pt2"), tmp_path / "ran", "there is no file")
