from __future__ import annotations

import subprocess
import sys
import textwrap
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from pytest_watermark_guard.errors import ModelSpecError
from pytest_watermark_guard.models.loading.loading import load_model
from pytest_watermark_guard.models.loading.specs import ModelSpec, parse_spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torchvision:resnet18", ("torchvision", "resnet18", None, None, None)),
        (
            "torchvision:resnet18@IMAGENET1K_V1",
            ("torchvision", "resnet18", "IMAGENET1K_V1", None, None),
        ),
        (" torchvision:resnet18@random ", ("torchvision", "resnet18", "random", None, None)),
        (
            "torchvision:vgg11?weights=a/b.pth&num_classes=7",
            ("torchvision", "vgg11", None, "a/b.pth", 7),
        ),
        (
            "torchvision:googlenet@IMAGENET1K_V1?weights=g.pth",
            ("torchvision", "googlenet", "IMAGENET1K_V1", "g.pth", None),
        ),
        (
            "timm:vit_tiny_patch16_224.augreg_in21k",
            ("timm", "vit_tiny_patch16_224.augreg_in21k", None, None, None),
        ),
        ("timm:hf-hub:user/model", ("timm", "hf-hub:user/model", None, None, None)),
        ("hf:google/vit-base", ("hf", "google/vit-base", None, None, None)),
        ("hf:./local/dir", ("hf", "./local/dir", None, None, None)),
        ("my_pkg.models:build", ("factory", "my_pkg.models:build", None, None, None)),
        ("keras:resnet", ("factory", "keras:resnet", None, None, None)),
        (
            "models:Net.small?weights=w.safetensors",
            ("factory", "models:Net.small", None, "w.safetensors", None),
        ),
        ("out/model.pt2", ("exported", "out/model.pt2", None, None, None)),
        ("out/model.onnx", ("onnx", "out/model.onnx", None, None, None)),
        (r"C:\out\model.pt2", ("exported", r"C:\out\model.pt2", None, None, None)),
    ],
)
def test_grammar(text: str, expected: tuple[Any, ...]) -> None:
    assert parse_spec(text) == ModelSpec(text.strip(), *expected)
    assert str(parse_spec(text)) == text.strip()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no model"),
        ("resnet18", "names no model"),
        ("torchvision:", "no name follows 'torchvision'"),
        ("torchvision:resnet18@", "nothing follows '@'"),
        ("timm:resnet18@IMAGENET1K_V1", "only @random"),
        ("torchvision:resnet18?", r"nothing follows '\?'"),
        ("torchvision:resnet18?weight=x.pth", "unknown option 'weight'"),
        ("torchvision:resnet18?weights=", "weights= has no value"),
        ("torchvision:resnet18?weights=a&weights=b", "weights= is given twice"),
        ("torchvision:resnet18@random?num_classes=0", "not a positive whole number"),
        ("torchvision:resnet18@random?num_classes=ten", "not a positive whole number"),
        ("torchvision:resnet18?num_classes=5", "untrained head"),
        ("torchvision:resnet18@random?weights=a.pth", "exclude each other"),
        ("models:build?num_classes=5", "your factory"),
        ("model.pt2?weights=a.pth", "carries its weights"),
        ("model.onnx?weights=a.pth", "carries its weights"),
        ("weights/model.pth", "torchvision:resnet18.weights=weights/model.pth"),
        ("m/model.safetensors.index.json", "torchvision:resnet18.weights=m/model"),
        ("../models:build", "names no model"),
        ("models:build()", "names no model"),
    ],
)
def test_specs_that_are_none(text: str, problem: str) -> None:
    with pytest.raises(ModelSpecError, match=problem) as caught:
        parse_spec(text)
    assert repr(text) in str(caught.value)
    assert "package.module:factory" in str(caught.value)


def test_reading_specs_imports_no_library() -> None:
    code = """
        import sys
        from pytest_watermark_guard.models.loading.specs import parse_spec
        parse_spec("torchvision:resnet18@random")
        loaded = {"torch", "torchvision", "timm", "transformers", "numpy"} & set(sys.modules)
        assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_random_weights_are_the_same_each_time_and_announced() -> None:
    before = torch.get_rng_state()
    one, two = (load_model("torchvision:resnet18@random?num_classes=7") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(one.module.state_dict(), two.module.state_dict(), rtol=0, atol=0)
    assert one.module.fc.out_features == 7
    assert one.notes[0].startswith("random weights:")
    assert one.class_names is None
    assert one.preprocessing is not None
    assert one.preprocessing.size == (224, 224)
    assert not one.module.training


def test_local_weights(tmp_path: Path) -> None:
    source = load_model("torchvision:mobilenet_v3_small@random").module
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    loaded = load_model(f"torchvision:mobilenet_v3_small?weights={path}")
    torch.testing.assert_close(loaded.module.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert loaded.class_names is None  # nothing says them: the probe notes what it assumes
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.assumed
    assert loaded.notes == ()

    named = load_model(f"torchvision:mobilenet_v3_small@IMAGENET1K_V1?weights={path}")
    assert named.preprocessing is not None
    assert not named.preprocessing.assumed
    assert named.notes == ()
    assert named.class_names is not None
    assert named.class_names[478] == "carton"

    with pytest.raises(ModelSpecError, match="does not fit ResNet"):
        load_model(f"torchvision:resnet18?weights={path}")

    save_file({f"net.{key}": value for key, value in source.state_dict().items()}, path)
    loaded = load_model(f"torchvision:mobilenet_v3_small?weights={path}")
    assert loaded.notes == (
        "weights: the prefix 'net.' was taken off the names in weights.safetensors",
    )


def test_local_weights_of_another_number_of_classes(tmp_path: Path) -> None:
    source = load_model("torchvision:resnet18@random?num_classes=7").module
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": source.state_dict()}, path)
    loaded = load_model(f"torchvision:resnet18?weights={path}&num_classes=7")
    assert loaded.class_names is None
    with pytest.raises(ModelSpecError, match="add num_classes=7"):
        load_model(f"torchvision:resnet18?weights={path}")


@pytest.mark.parametrize("auxiliary", [True, False])
def test_googlenet_files_with_and_without_auxiliary_heads(tmp_path: Path, auxiliary: bool) -> None:
    source = torchvision.models.googlenet(
        weights=None, init_weights=False, aux_logits=auxiliary, transform_input=True
    )
    save_file(source.state_dict(), tmp_path / "g.safetensors")
    module = load_model(f"torchvision:googlenet?weights={tmp_path}/g.safetensors").module
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(module(x), source.eval()(x))


def test_the_published_densenet_files_have_old_names(tmp_path: Path) -> None:
    source = load_model("torchvision:densenet121@random").module
    old = {
        key.replace("norm1", "norm.1").replace("conv2", "conv.2"): value
        for key, value in source.state_dict().items()
    }
    assert old.keys() != source.state_dict().keys()
    torch.save(old, tmp_path / "d.pth")
    loaded = load_model(f"torchvision:densenet121?weights={tmp_path}/d.pth").module
    torch.testing.assert_close(loaded.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("torchvision:resnet81@random", "no classification model 'resnet81'; did you mean"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classification model"),
        ("torchvision:resnet18@IMAGENET1K_V9", "no weights 'IMAGENET1K_V9'; .*IMAGENET1K_V1"),
        ("torchvision:resnet18?weights=missing.pth", "'missing.pth' does not exist"),
    ],
)
def test_torchvision_names_that_are_none(spec: str, said: str) -> None:
    with pytest.raises(ModelSpecError, match=said):
        load_model(spec)


def _no_network(*_: Any, **__: Any) -> Any:
    raise urllib.error.URLError("no route to host")


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", _no_network)
    with pytest.raises(ModelSpecError, match=r"no route to host.*\?weights=PATH.*@random"):
        load_model("torchvision:resnet18")


def test_the_default_weights_are_downloaded_checked_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = load_model("torchvision:squeezenet1_1@random").module.state_dict()
    asked = []

    def download(url: str, **options: Any) -> Any:
        asked.append((url, options["check_hash"]))
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    loaded = load_model("torchvision:squeezenet1_1")
    ((url, checked),) = asked
    assert checked
    assert "squeezenet1_1" in url
    torch.testing.assert_close(loaded.module.state_dict(), state, rtol=0, atol=0)
    assert loaded.class_names is not None
    assert loaded.preprocessing is not None
    assert not loaded.preprocessing.assumed
    assert loaded.notes == ()


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    loaded = load_model("timm:resnet10t@random?num_classes=7")
    again = load_model("timm:resnet10t@random?num_classes=7")
    torch.testing.assert_close(loaded.module.state_dict(), again.module.state_dict())
    assert loaded.module.get_classifier().out_features == 7
    assert loaded.notes[0].startswith("random weights:")

    source = timm.create_model("resnet10t", pretrained=False)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    local = load_model(f"timm:resnet10t?weights={tmp_path}/w.safetensors")
    torch.testing.assert_close(local.module.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert local.class_names is None
    assert local.preprocessing is not None
    assert local.preprocessing.size == (176, 176)
    with pytest.raises(ModelSpecError, match="no model 'resnet10q'; did you mean"):
        load_model("timm:resnet10q@random")


def test_timm_pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    asked: dict[str, Any] = {}

    def create(name: str, **options: Any) -> nn.Module:
        asked.update(options, name=name)
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(ModelSpecError, match="no route to host"):
        load_model("timm:resnet10t.c3_in1k")
    assert asked == {"name": "resnet10t.c3_in1k", "pretrained": True}


def test_timms_classes_are_in_torchvisions_order() -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    info = timm.data.ImageNetInfo("imagenet-1k")
    descriptions = [info.index_to_description(i) for i in range(1000)]
    names = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    agree = sum(
        name.lower() in text.lower() for name, text in zip(names, descriptions, strict=True)
    )
    assert agree > 980


@pytest.fixture
def hf_directory(tmp_path: Path) -> Callable[..., Path]:
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")

    def make(processor: bool = True, head: bool = True, **settings: Any) -> Path:
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=16, **settings,
        )  # fmt: skip
        kind = transformers.ViTForImageClassification if head else transformers.ViTModel
        kind(config).save_pretrained(tmp_path / "model")
        if processor:
            transformers.ViTImageProcessor(
                size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]
            ).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def test_hf_directory(hf_directory: Callable[..., Path]) -> None:
    directory = hf_directory(id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    loaded = load_model(f"hf:{directory}")
    assert loaded.class_names == ("cat", "dog")
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.size == (32, 32)
    assert loaded.preprocessing.mean == (0.1, 0.2, 0.3)
    assert loaded.notes == ()
    again = load_model(f"hf:{directory}")
    torch.testing.assert_close(again.module.state_dict(), loaded.module.state_dict())
    randomised = load_model(f"hf:{directory}@random?num_classes=5")
    assert randomised.module.classifier.out_features == 5
    assert randomised.notes[0].startswith("random weights:")


def test_hf_directory_without_processor_or_names(hf_directory: Callable[..., Path]) -> None:
    loaded = load_model(f"hf:{hf_directory(processor=False, num_labels=3)}")
    assert loaded.class_names is None
    assert loaded.preprocessing is None
    assert "no image processor" in loaded.notes[0]


def test_hf_checkpoint_without_a_head_is_refused(hf_directory: Callable[..., Path]) -> None:
    with pytest.raises(ModelSpecError, match=r"no weights for classifier.*untrained head"):
        load_model(f"hf:{hf_directory(head=False)}")


def test_hf_directory_without_safetensors(hf_directory: Callable[..., Path]) -> None:
    directory = hf_directory(num_labels=3)
    state = load_model(f"hf:{directory}").module.state_dict()
    torch.save(state, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    loaded = load_model(f"hf:{directory}").module.state_dict()
    torch.testing.assert_close(loaded, state, rtol=0, atol=0)


def test_hf_directory_of_an_adapter(hf_directory: Callable[..., Path]) -> None:
    directory = hf_directory()
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelSpecError, match=r"adapter \(PEFT\).*merge_and_unload"):
        load_model(f"hf:{directory}")


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_missing_library(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    kind = {"timm": "timm", "transformers": "hf"}[library]
    with pytest.raises(ModelSpecError, match=rf"pytest-watermark-guard\[{library}\]"):
        load_model(f"{kind}:something@random")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a directory with a module, entered but not importable as such."""
    (tmp_path / "wm_factories.py").write_text(
        textwrap.dedent(
            """
            import torch
            ready = torch.nn.Linear(3, 2)
            number = 3
            class Models:
                small = torch.nn.Flatten
            def build(): return torch.nn.Linear(3, 2)
            def fail(): raise KeyError("checkpoint")
            def wrong(): return [1]
            """
        )
    )
    (tmp_path / "wm_broken.py").write_text("import a_module_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "wm_factories", raising=False)
    return tmp_path


def test_factories(project: Path) -> None:
    before = list(sys.path)
    assert isinstance(load_model("wm_factories:build").module, nn.Linear)
    assert sys.path == before
    assert isinstance(load_model("wm_factories:Models.small").module, nn.Flatten)
    ready = load_model("wm_factories:ready")
    assert ready.module is sys.modules["wm_factories"].ready
    assert ready.preprocessing is None
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, "w.safetensors")
    loaded = load_model("wm_factories:build?weights=w.safetensors").module
    torch.testing.assert_close(loaded(torch.ones(1, 3)), torch.full((1, 2), 3.0))


@pytest.mark.parametrize(
    ("name", "said", "cause"),
    [
        ("wm_factories:bild", "no attribute 'bild'; did you mean build", AttributeError),
        ("wm_factories:fail", r"fail\(\) raised KeyError: 'checkpoint'", KeyError),
        ("wm_factories:wrong", "returned a list, neither a torch.nn.Module nor", None),
        ("wm_factories:number", "is a int, neither", None),
        ("wm_broken:build", "a_module_that_is_not_there", ModuleNotFoundError),
        ("wm_missing:build", "importing wm_missing failed", ModuleNotFoundError),
    ],
)
def test_factories_that_fail(
    project: Path, name: str, said: str, cause: type[Exception] | None
) -> None:
    before = list(sys.path)
    with pytest.raises(ModelSpecError, match=said) as caught:
        load_model(name)
    assert sys.path == before
    assert isinstance(caught.value.__cause__, cause or type(None))
