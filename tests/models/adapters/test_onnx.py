"""ONNX files: what onnxruntime computes with them is what torch computed before the export."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.caching.keys import digest
from pytest_watermark_guard.errors import (
    LayerError,
    MaskError,
    ModelSpecError,
    PreprocessingError,
    SettingsError,
)
from pytest_watermark_guard.models.loading.introspection import resolve_preprocessing
from pytest_watermark_guard.models.reading.activations import ActivationRecorder, extract_features

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

# Exporters and quantisers warn of what they will do otherwise some day.
pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
DYNAMIC = {"x": {0: "batch"}}
LAYERS = ("logits", "features")


class Net(nn.Module):
    """Convolutions, pooling, a linear head; `finish` makes the output of the features."""

    def __init__(
        self, channels: int = 3, finish: Callable[[Net, Tensor], Any] = lambda net, x: net.fc(x)
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(channels, 8, 3, 2)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)
        self.other = nn.Linear(8, 5)
        self.finish = finish
        self.eval()

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.stem(x)).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.finish(self, self.features(x))


def export(
    model: nn.Module,
    path: Path,
    x: Tensor = X,
    axes: dict[str, dict[int, str]] | None = DYNAMIC,
    **options: Any,
) -> str:
    file = path / "net.onnx"
    torch.onnx.export(
        model.eval(), (x,), file, dynamo=False, input_names=["x"], dynamic_axes=axes, **options
    )
    return str(file)


def read(spec: str, layers: tuple[str, ...] = LAYERS, x: Tensor = X, **how: Any) -> dict[str, Any]:
    with ActivationRecorder(wm.load_model(spec).module, layers, x, **how) as recorder:
        return {**recorder(x), "notes": " ".join(recorder.notes), "recorder": recorder}


def assert_close(one: Tensor, other: Tensor, **tolerance: float) -> None:
    with torch.no_grad():
        torch.testing.assert_close(one, other, **{"rtol": 1e-4, "atol": 1e-5, **tolerance})


def rewritten(spec: str, change: Callable[[Any], None]) -> str:
    """Change a file's graph as no exporter here does."""
    model = onnx.load(spec)
    change(model)
    onnx.save(model, spec)
    return spec


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2"])
def test_architectures(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(2, 3, 64, 64)
    found = read(export(model, tmp_path, x), x=x)
    assert_close(found["logits"], model(x))
    assert_close(found["features"], extract_features(model, x))
    assert "features: found by trying" in found["notes"]
    # Of a convolution whose answers are pooled nobody can tell if it is a head.
    assert ('outputs="features"' in found["notes"]) == (name == "squeezenet1_1")


def test_tokens(tmp_path: Path) -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.patch = nn.Conv2d(3, 8, 4, 4)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.block(self.patch(x).flatten(2).transpose(1, 2))
            result: Tensor = self.fc(self.norm(tokens)[:, 0])
            return result

    model = Transformer().eval()
    found = read(export(model, tmp_path))
    assert_close(found["logits"], model(X))
    assert_close(found["features"], extract_features(model, X))


FINISHES: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "softmax": lambda net, x: (net.fc(x) * 50).softmax(1),
    "tanh": lambda net, x: net.fc(x).tanh(),
    "scaled": lambda net, x: 3 * net.fc(x) + 1,
    "distances": lambda net, x: -(x[:, None] - net.fc.weight[None]).pow(2).sum(-1),
}


@pytest.mark.parametrize("finish", FINISHES)
def test_heads_of_any_kind(finish: str, tmp_path: Path) -> None:
    model = Net(finish=FINISHES[finish])
    found = read(export(model, tmp_path))
    assert_close(found["logits"], model(X))
    assert_close(found["features"], model.features(X))


@pytest.mark.parametrize(
    "finish",
    [lambda net, x: x, lambda net, x: x.relu(), lambda net, x: net.fc(x).relu()],
    ids=["pooled", "activated", "hidden layer"],
)
def test_backbones(finish: Callable[[Net, Tensor], Tensor], tmp_path: Path) -> None:
    model = Net(finish=finish)
    found = read(export(model, tmp_path))
    assert found["recorder"].layers == ("features",)
    assert "no head found" in found["notes"]
    assert_close(found["features"], model(X))


def test_an_encoder_that_ends_with_a_head_is_told_by_the_user(tmp_path: Path) -> None:
    found = read(export(Net(), tmp_path), outputs="features")
    assert_close(found["features"], Net()(X))


def test_features_that_cannot_be_proven_are_said(tmp_path: Path) -> None:
    """Two heads read two different places, and only together make the logits."""

    class TwoPlaces(Net):
        def forward(self, x: Tensor) -> Tensor:
            maps = self.stem(x)
            return self.fc(maps.mean((2, 3))) + self.other(maps.amax((2, 3)))

    model = TwoPlaces()
    spec = export(model, tmp_path)
    found = read(spec)
    assert_close(found["logits"], model(X))
    assert "features" not in found
    assert "features are not probed: net.onnx has no value on which alone" in found["notes"]
    with pytest.raises(LayerError, match="features are not probed"):
        read(spec, ("features",))


def test_every_output_has_its_name(tmp_path: Path) -> None:
    model = Net(finish=lambda net, x: (net.other(x), net.fc(x)))
    found = read(export(model, tmp_path, output_names=["shape", "logits"]))
    shape, logits = model(X)
    assert found["recorder"].layers == ("logits", "logits[shape]", "features")
    assert_close(found["logits"], logits)
    assert_close(found["logits[shape]"], shape)


def test_functions_of_the_file_itself(tmp_path: Path) -> None:
    """Older exporters make one of every module."""

    def wrap(model: Any) -> None:
        gemm = model.graph.node[-1]
        opsets = [*model.opset_import, onnx.helper.make_opsetid("own", 1)]
        model.functions.append(
            onnx.helper.make_function(
                "own", "Head", [*gemm.input], [*gemm.output], [copy.deepcopy(gemm)], opsets[:1]
            )
        )
        call = onnx.helper.make_node("Head", [*gemm.input], [*gemm.output], domain="own")
        del model.graph.node[-1]
        model.graph.node.append(call)
        model.opset_import.append(opsets[-1])

    found = read(rewritten(export(Net(), tmp_path), wrap))
    assert_close(found["logits"], Net()(X))
    assert_close(found["features"], Net().features(X))


def test_named_values(tmp_path: Path) -> None:
    model = Net()
    spec = export(model, tmp_path)
    name = next(n.output[0] for n in onnx.load(spec).graph.node if n.op_type == "Relu")
    assert_close(read(spec, (name,))[name], model.features(X))
    with pytest.raises(LayerError, match=rf"did you mean '{name}'.*its graph's values"):
        read(spec, (name[:-1],))


# --- what it is fed ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4])
def test_a_fixed_batch_is_filled_up_and_split(size: int, tmp_path: Path) -> None:
    model = Net()
    loaded = wm.load_model(export(model, tmp_path, X[:size], axes=None))
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.size == (16, 16)
    assert loaded.preprocessing.assumed
    with ActivationRecorder(loaded.module, LAYERS, X) as recorder:
        assert recorder.batch_size == size
        for count in (1, 4, 7):
            x = torch.randn(count, 3, 16, 16)
            assert_close(recorder(x)["logits"], model(x))
            assert_close(recorder(x)["features"], model.features(x))
    with pytest.raises(PreprocessingError, match=rf"shape \[{size}, 3, 16, 16\], not \[2, 3, 9, 9"):
        ActivationRecorder(loaded.module, LAYERS, torch.randn(2, 3, 9, 9))


def test_a_batch_that_is_declared_and_not_taken(tmp_path: Path) -> None:
    """A reshape to one row, as exporters leave it where the batch was a Python number."""

    def fix(model: Any) -> None:
        output = model.graph.output[0].name
        model.graph.node[-1].output[0] = "wide"
        shape = onnx.numpy_helper.from_array(np.array([1, 5]), "one_row")
        model.graph.initializer.append(shape)
        model.graph.node.append(onnx.helper.make_node("Reshape", ["wide", "one_row"], [output]))

    found = read(rewritten(export(Net(), tmp_path), fix))
    assert found["recorder"].batch_size == 1
    assert "net.onnx is run on one image at a time: more at once raise" in found["notes"]
    assert_close(found["logits"], Net()(X))


def test_images_that_change_the_answers_to_each_other(tmp_path: Path) -> None:
    def shift(model: Any) -> None:
        output = model.graph.output[0].name
        model.graph.node[-1].output[0] = "own"
        nodes = [("ReduceMax", ["own"], ["largest"]), ("Sub", ["own", "largest"], [output])]
        model.graph.node.extend(onnx.helper.make_node(*node) for node in nodes)

    found = read(rewritten(export(Net(), tmp_path), shift))
    assert "depend on what else is in the batch" in found["notes"]
    assert_close(found["logits"], Net()(X) - Net()(X).amax(1, keepdim=True))


def test_half_precision(tmp_path: Path) -> None:
    found = read(export(Net().half(), tmp_path, X.half()))
    assert_close(found["logits"].float(), Net()(X), rtol=0, atol=5e-3)
    assert_close(found["features"].float(), Net().features(X), rtol=0, atol=5e-3)


class OfPixels(Net):
    """Takes uint8, and scales it itself."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = super().forward((x.float() / 255 - 0.45) / 0.22)
        return result


def test_pixels(tmp_path: Path) -> None:
    pixels = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    loaded = wm.load_model(export(OfPixels(), tmp_path, pixels))
    how = resolve_preprocessing("auto", loaded.module, loaded.preprocessing)
    assert not how.assumed
    fed = how.to_input(pixels)
    torch.testing.assert_close(fed, pixels.float())
    with ActivationRecorder(loaded.module, LAYERS, fed) as recorder:
        assert_close(recorder(fed)["logits"], OfPixels()(pixels))
        assert_close(recorder(fed)["features"], Net().features((pixels / 255 - 0.45) / 0.22))
        with pytest.raises(PreprocessingError, match=r"pixels from 0 to 255.*from -\d"):
            recorder(X)
        with pytest.raises(PreprocessingError, match=r"pixels from 0 to 255.*to 1"):
            recorder(torch.rand_like(X).clamp_min(0.2) / 1.0001)
        recorder(torch.zeros_like(X))  # black


class ChannelsLast(Net):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = super().forward(x.permute(0, 3, 1, 2))
        return result


@pytest.mark.parametrize("open_axes", [(0,), (0, 1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("last", [True, False])
def test_channels_first_and_last(open_axes: tuple[int, ...], last: bool, tmp_path: Path) -> None:
    x = X.permute(0, 2, 3, 1).contiguous() if last else X
    axes = open_axes if last or len(open_axes) != 3 else (0, 2, 3)
    spec = export(
        ChannelsLast() if last else Net(),
        tmp_path,
        x,
        {"x": {axis: f"axis{axis}" for axis in axes}},
    )
    loaded = wm.load_model(spec)
    order = "[B, H, W, C]" if last else "[B, C, H, W]"
    noted = [f"net.onnx is fed {order} with 3 channels, found by trying"]
    assert list(loaded.notes) == (noted if len(open_axes) == 4 else [])
    assert_close(read(spec)["logits"], Net()(X))
    assert_close(read(spec)["features"], Net().features(X))
    report = wm.probe(spec, torch.rand(6, 3, 20, 20), "latin", cache=False, max_images=4)
    size = 16 if len(open_axes) == 1 else 224
    assert f"{size}" in report.preprocessing
    assert len(report["logits", "latin"].names) == 5


def test_one_channel_is_shown_gray_copies(tmp_path: Path) -> None:
    loaded = wm.load_model(export(Net(1), tmp_path, X[:, :1]))
    how = resolve_preprocessing("auto", loaded.module, loaded.preprocessing)
    assert how.channels == 1


def test_a_normalisation_inside_is_noticed(tmp_path: Path) -> None:
    class Normalising(Net):
        def forward(self, x: Tensor) -> Tensor:
            mean, std = torch.tensor([0.48, 0.45, 0.4]), torch.tensor([0.22, 0.23, 0.24])
            result: Tensor = super().forward((x - mean[:, None, None]) / std[:, None, None])
            return result

    for model, factor in ((Normalising(), 1.0), (Net(), None)):
        loaded = wm.load_model(export(model, tmp_path))
        how = resolve_preprocessing("auto", loaded.module, loaded.preprocessing)
        assert ("normalises them itself" in how.source) == (factor is not None)
        assert (how.mean == (0.0,) * 3) == (factor is not None)


# --- quantised -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_quantised_files(form: str, tmp_path: Path) -> None:
    from onnxruntime import quantization

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"x": X.numpy()}])

        def get_next(self) -> Any:
            return next(self.rest, None)

    class WithPool(Net):  # whose pooling has a quantised form
        def features(self, x: Tensor) -> Tensor:
            maps = self.norm(self.stem(x)).relu()
            return nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1)

    model = WithPool()
    spec, quantised = export(model, tmp_path), str(tmp_path / "quantised.onnx")
    if form == "dynamic":
        quantization.quantize_dynamic(spec, quantised)
    else:
        form_of = quantization.QuantFormat[form]
        quantization.quantize_static(spec, quantised, Images(), quant_format=form_of)
    found = read(quantised)
    assert_close(found["logits"], model(X), rtol=0, atol=0.05)
    # Steps of quantisation in any unit of their own.
    correlations = np.corrcoef(found["features"].T, model.features(X).detach().T).diagonal(8)
    assert correlations.min() > 0.95


# --- files ---------------------------------------------------------------------------------------


def with_external_data(spec: str) -> Path:
    def move(model: Any) -> None:
        onnx.external_data_helper.convert_model_to_external_data(
            model, location="net.data", size_threshold=0
        )

    return Path(rewritten(spec, move)).parent / "net.data"


def test_weights_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = export(Net(), tmp_path)
    data = with_external_data(spec)
    monkeypatch.chdir(Path(__file__).parent)  # they lie beside the file, wherever the run is
    assert_close(read(spec)["logits"], Net()(X))
    assert_close(read(spec)["features"], Net().features(X))
    before = digest(wm.load_model(spec).module)
    data.write_bytes(data.read_bytes()[:-4] + b"\0\0\0\0")
    assert digest(wm.load_model(spec).module) != before
    data.unlink()
    with pytest.raises(ModelSpecError, match=r"its weights in 'net\.data', which is not there"):
        wm.load_model(spec)


def test_links_as_in_the_cache_of_a_hub(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    spec = Path(export(Net(), tmp_path))
    data = with_external_data(str(spec))
    for file in (spec, data):
        file.rename(blobs / f"of_{file.suffix[1:]}")
        file.symlink_to(blobs / f"of_{file.suffix[1:]}")
    assert_close(read(str(spec))["logits"], Net()(X))
    assert_close(read(str(spec))["features"], Net().features(X))


def test_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    spec = export(Net(), tmp_path)
    with_external_data(spec)

    def lead_out(model: Any) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../net.data"

    model = onnx.load(spec, load_external_data=False)
    lead_out(model)
    Path(spec).write_bytes(model.SerializeToString())
    with pytest.raises(ModelSpecError, match=r"names weights elsewhere, in '\.\./net\.data'"):
        wm.load_model(spec)


def test_keys_are_those_of_the_bytes(tmp_path: Path) -> None:
    spec = export(Net(), tmp_path)
    moved = tmp_path / "renamed.onnx"
    moved.write_bytes(Path(spec).read_bytes())
    first = digest(wm.load_model(spec).module)
    assert digest(wm.load_model(str(moved)).module) == first
    spec = export(Net(finish=lambda net, x: net.other(x)), tmp_path)
    assert digest(wm.load_model(spec).module) != first


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copied: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    module = wm.load_model(export(Net(), tmp_path)).module
    assert_close(copied(module)(X), Net()(X))


def test_the_file_is_not_written(tmp_path: Path) -> None:
    spec = Path(export(Net(), tmp_path))
    before = spec.read_bytes()
    wm.probe(spec, torch.rand(6, 3, 16, 16), "latin", cache=False)
    assert spec.read_bytes() == before
    assert [*tmp_path.iterdir()] == [spec]


def two_inputs(model: Any) -> None:
    more = onnx.helper.make_tensor_value_info("age", onnx.TensorProto.FLOAT, [1])
    model.graph.input.append(more)


def of_vectors(model: Any) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[2:]


def of_whole_numbers(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64


def of_no_operator(model: Any) -> None:
    model.graph.node[0].op_type = "NoSuch"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (two_inputs, r"takes 2 inputs \(x, age\).*a function of a batch"),
        (of_vectors, r"takes 'x', float32 of shape \[any, 3\], and not a batch of images"),
        (of_whole_numbers, r"takes 'x', int64 of shape .* float16, float32, float64 or uint8"),
        (of_no_operator, r"onnxruntime cannot open .*NoSuch"),
    ],
)
def test_files_that_cannot_be_probed(
    change: Callable[[Any], None], said: str, tmp_path: Path
) -> None:
    spec = rewritten(export(Net(), tmp_path), change)
    with pytest.raises(ModelSpecError, match=said):
        wm.load_model(spec)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"hello", "cannot be read as ONNX"), (b"", "no graph"), (None, "no file")],
)
def test_what_is_no_model(content: bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelSpecError, match=said):
        wm.load_model(str(file))


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_library_is_named(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = export(Net(), tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    said = rf"{missing} is not installed: pip install pytest-watermark-guard\[onnx\]"
    with pytest.raises(ModelSpecError, match=said):
        wm.load_model(spec)


# --- probes --------------------------------------------------------------------------------------

IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_a_probe_is_that_of_the_module(tmp_path: Path) -> None:
    spec = Path(export(Net(), tmp_path))
    how: dict[str, Any] = {"preprocess": wm.Preprocessing(size=(16, 16)), "precision": "float32"}
    of_file = wm.probe(spec, IMAGES, "chinese", **how)
    of_module = wm.probe(Net(), IMAGES, "chinese", **how)
    assert of_file.layers == of_module.layers
    for scores in of_module:
        found = of_file[scores.layer, scores.scenario]
        np.testing.assert_allclose(found.auroc, scores.auroc, atol=0.02)  # one pair in 64
    assert of_file.precision == "as the file has it (float32 input)"
    again = wm.probe(spec, IMAGES, "chinese", **how)
    np.testing.assert_array_equal(
        again["logits", "chinese"].auroc, of_file["logits", "chinese"].auroc
    )
    assert not any("not cached" in note for note in again.notes)


def test_settings_that_do_not_hold(tmp_path: Path) -> None:
    spec = export(Net(), tmp_path)
    report = wm.probe(spec, IMAGES, "latin", precision="bfloat16", cache=False)
    assert "precision='bfloat16' changes nothing: net.onnx computes as the file has it" in " ".join(
        report.notes
    )


def test_a_gpu_that_onnxruntime_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    module: Any = wm.load_model(export(Net(), tmp_path)).module
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    cuda = torch.device("cuda", 0)
    with pytest.raises(SettingsError, match="pip install onnxruntime-gpu"):
        module.placed(cuda)
    same, device, why = module.placed_by_default(cuda)
    assert (same, device) == (module, torch.device("cpu"))
    assert "net.onnx runs on the CPU" in why


def test_masks_are_for_modules(tmp_path: Path) -> None:
    module = wm.load_model(export(Net(), tmp_path)).module
    for change in (wm.apply_mask, wm.fold_mask):
        with pytest.raises(
            MaskError, match=r"net\.onnx takes no hooks: mask the model that it was"
        ):
            change(module, wm.FeatureMask((1,), 8), example=X)


def test_a_gate_on_the_command_line(pytester: pytest.Pytester) -> None:
    export(Net(), pytester.path, axes=None)
    for index, pixels in enumerate(IMAGES.permute(0, 2, 3, 1).mul(255).byte().numpy()):
        Image.fromarray(pixels).save(pytester.path / f"{index}.png")
    result = pytester.runpytest_inprocess(
        "--wm-model=net.onnx", "--wm-scenarios=latin", "--wm-images=.", "--wm-no-cache"
    )
    result.assert_outcomes(passed=2)
