"""Any function from a batch to its logits is a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import LayerError, MaskError, ModelError, ModelSpecError

IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
HOW = wm.Preprocessing(size=(16, 16))
WEIGHTS = torch.randn(3 * 16 * 16, 5, generator=torch.Generator().manual_seed(0))


def logits(x: Tensor) -> Tensor:
    return x.flatten(1) @ WEIGHTS


class Callee:
    """As a wrapper of another framework's model."""

    class_names = tuple("abcde")
    preprocessing = HOW

    def __call__(self, x: Tensor) -> Any:
        return logits(x).numpy()


class Array:
    """As an array of another framework: NumPy makes one of it."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.values, dtype)


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": logits,
    "array": Callee(),
    "float64": lambda x: logits(x).numpy().astype(np.float64),
    "rows of numbers": lambda x: logits(x).tolist(),
    "rows of arrays": lambda x: [*logits(x).numpy()],
    "rows of tensors": lambda x: [*logits(x)],
    "onnxruntime's list of outputs": lambda x: [logits(x).numpy()],
    "by name": lambda x: {"logits": Array(logits(x).numpy()), "labels": [0] * len(x)},
}


def probe(model: Any, **arguments: Any) -> wm.ProbeReport:
    return wm.probe(model, IMAGES, "latin", preprocess=HOW, precision="float32", **arguments)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_whatever_array_it_returns(function: str) -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return logits(x)

    report = probe(FUNCTIONS[function])
    expected = probe(Net(), layers=("logits",), outputs="logits")
    found, wanted = report["logits", "latin"].auroc, expected["logits", "latin"].auroc
    np.testing.assert_array_equal(found, wanted)
    assert report.layers == ("logits",)
    assert report.precision == "as the function has it"
    notes = " ".join(report.notes)
    assert "features are not probed: a function shows what it returns and no more; pass" in notes
    assert "not cached: nothing tells the function" in notes


class Sequential(torch.nn.Module):
    """As Keras' models on torch: a module that does not register its layers."""

    __module__ = "keras.src.models.sequential"

    def forward(self, x: Tensor) -> Tensor:
        return logits(x)


def test_a_model_of_keras() -> None:
    report = probe(Sequential())
    np.testing.assert_array_equal(
        report["logits", "latin"].auroc, probe(logits)["logits", "latin"].auroc
    )
    assert report.layers == ("logits",)
    assert "Sequential of Keras shows what it returns and no more; let it" in str(report.notes)
    with pytest.raises(MaskError, match=r"of Sequential are not found.*of Keras cannot"):
        wm.apply_mask(Sequential(), wm.FeatureMask((1,), 5), example=IMAGES)


def test_names() -> None:
    assert probe(logits).model == "logits"
    assert probe(Callee()).model == "Callee"
    survey = wm.survey([logits, Callee()], IMAGES, scenarios="latin", preprocess=HOW)
    assert [*survey.reports] == ["logits", "Callee"]


def test_attributes_are_read_as_a_modules() -> None:
    report = wm.probe(Callee(), IMAGES, "latin")
    assert report["logits", "latin"].names == Callee.class_names
    assert "assumed" not in " ".join(report.notes)


@pytest.mark.filterwarnings("ignore::pytest_watermark_guard.errors.AssumptionWarning")
def test_a_gate_and_what_it_raises() -> None:
    wm.assert_not_watermark_sensitive(lambda x: logits(x), IMAGES, "latin", preprocess=HOW)
    error = KeyError("input_1")

    def broken(x: Tensor) -> Any:
        raise error

    with pytest.raises(
        ModelError, match=r"broken raised KeyError.*\nwhile finding.*\[4, 3, 16, 1"
    ) as caught:
        wm.assert_not_watermark_sensitive(broken, IMAGES, "latin", preprocess=HOW)
    assert caught.value.__cause__ is error


def test_other_layers_and_outputs_are_refused() -> None:
    with pytest.raises(LayerError, match="layer 'layer4' of a function cannot be read"):
        probe(logits, layers=("layer4",))
    with pytest.raises(LayerError, match="features"):
        wm.extract_features(logits, IMAGES)  # type: ignore[arg-type]
    for wrong in (lambda x: "cat", lambda x: None, lambda x: logits(x)[:1].numpy(), lambda x: [0]):
        with pytest.raises(LayerError, match="the model returned"):
            probe(wrong)


FACTORY = """
import numpy as np

def build():
    def brightness(x):
        means = x.numpy().mean((2, 3))
        return means @ np.eye(3, 4, dtype=np.float32)
    return brightness
"""


def test_a_factory_may_return_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(of_functions=FACTORY)
    for index, pixels in enumerate(IMAGES.permute(0, 2, 3, 1).mul(255).byte().numpy()):
        Image.fromarray(pixels).save(pytester.path / f"{index}.png")
    result = pytester.runpytest_inprocess(
        "--wm-model=of_functions:build", "--wm-scenarios=latin", "--wm-images=.",
        "--wm-layers=logits", "--wm-report", "--wm-inconclusive=pass",
    )  # fmt: skip
    assert "features are not probed" not in result.stdout.str()
    assert "of_functions:build" in result.stdout.str()
    result.assert_outcomes(passed=1)


def test_a_factorys_function_takes_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_functions.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelSpecError, match="returned a function, which weights= cannot"):
        wm.load_model("of_functions:build?weights=w.pth")
