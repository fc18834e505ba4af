"""OpenVINO runs a model with the layers that are read, and nothing of the model is touched."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import LayerError
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.running import openvino_model
from pytest_watermark_guard.models.running.agreement import UnitShifts
from pytest_watermark_guard.models.running.compared import ComparedPart, KnownAnswers
from pytest_watermark_guard.models.running.execution import Executor
from pytest_watermark_guard.models.running.openvino_model import Converter, load_openvino
from pytest_watermark_guard.models.running.plan import Plan, faster_plans
from pytest_watermark_guard.models.running.policy import TuningPolicy
from pytest_watermark_guard.models.running.threads import using_threads
from pytest_watermark_guard.probing import running

INPUTS = torch.rand(90, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LAYERS = ("logits", "features")


def by_openvino(start, device, *, bfloat16=False):
    return [p for p in faster_plans(start, device, bfloat16=bfloat16) if p.openvino]


ALWAYS = TuningPolicy(by_openvino, worth_tuning=0.0, gain=1e9)


def execute(model, layers=LAYERS, inputs=INPUTS, policy=ALWAYS):
    """Return all activations by plain torch and by the executor, and the executor."""
    with ActivationRecorder(model, layers, inputs[:2]) as recorder:
        expected = {layer: units.numpy() for layer, units in recorder(inputs.clone()).items()}
        options = {"tuning": True, "sizes": True, "policy": policy}
        with Executor(recorder, Plan(4), len(inputs), **options) as executor:
            parts = [executor(batch.clone()) for batch in inputs.split(15)]
    found = {layer: np.concatenate([part[layer] for part in parts]) for layer in expected}
    return expected, found, executor


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_32", "squeezenet1_1"])
def test_it_gives_the_activations_of_torch(name):
    torch.manual_seed(0)
    options = {"image_size": 64} if name.startswith("vit") else {}
    model = models.get_model(name, num_classes=7, **options)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    expected, found, executor = execute(model)
    assert executor.plan.openvino
    assert executor.shift is None  # the same numbers but for rounding
    for layer, units in expected.items():
        np.testing.assert_allclose(found[layer], units, atol=1e-4 * np.abs(units).max())
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert model.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_batches_side_by_side_keep_their_order():
    torch.manual_seed(0)
    with using_threads(2):  # so many batches
        expected, found, executor = execute(models.squeezenet1_1(num_classes=7))
    assert executor.plan.openvino
    for layer, units in expected.items():
        np.testing.assert_allclose(found[layer], units, atol=1e-4 * np.abs(units).max())


@pytest.mark.parametrize("at_once", [1, 2])
def test_threads_are_shared_out_among_no_more_batches_than_there_are(monkeypatch, at_once):
    made = []
    core = load_openvino().Core

    class Noting(core):
        def compile_model(self, *args):
            made.append(super().compile_model(*args))
            return made[-1]

    monkeypatch.setattr(load_openvino(), "Core", Noting)
    with using_threads(2), ActivationRecorder(Net(), LAYERS, INPUTS[:2]) as recorder:
        converter = Converter(recorder)
        converter.start(INPUTS[:4], ["float32"], at_once=at_once)
        converter.compiled("float32")
    (compiled,) = made
    assert compiled.get_property("NUM_STREAMS") <= at_once


def test_named_layers_are_read_too():
    torch.manual_seed(0)
    layers = ("layer2", "layer3.0.conv1", "logits")
    expected, found, executor = execute(models.resnet18(num_classes=5), layers=layers)
    assert executor.plan.openvino
    for layer in layers:
        np.testing.assert_allclose(found[layer], expected[layer], rtol=1e-3, atol=1e-4)


def by_known_answers(change=0.0, seconds=1.0, prepared=False, bfloat16=False):
    """Run a model of which the answers to the first two images in three streams are known.

    Returns how many inputs torch ran in each pass, whether OpenVINO runs the model now, and the
    activations by torch and by the executor.
    """
    torch.manual_seed(0)
    model = models.mobilenet_v2(num_classes=7).eval()
    inputs = INPUTS[:30]  # ten images
    rows = torch.tensor([[0, 1], [10, 11], [20, 21]])
    with ActivationRecorder(model, LAYERS, inputs[:2]) as recorder:
        expected = {layer: units.numpy() for layer, units in recorder(inputs.clone()).items()}
        known = {layer: units[rows] + np.float32(change) for layer, units in expected.items()}
        ran = []
        model.features[0].register_forward_pre_hook(lambda _, args: ran.append(len(args[0])))
        policy = TuningPolicy(partial(by_openvino, bfloat16=bfloat16), worth_tuning=2.0)
        given = KnownAnswers(known, seconds, inputs[5:8].clone())
        options = {"tuning": True, "sizes": True, "policy": policy}
        with Executor(recorder, Plan(4), len(inputs), known=given, **options) as executor:
            if prepared:
                executor.prepare(images=10, streams=3)
                ran.append("the first batch")
            found = executor(inputs.clone(), streams=3)
    return ran, executor.plan.openvino, expected, found


def test_known_answers_are_not_run_again():
    ran, openvino, expected, found = by_known_answers()
    assert openvino
    assert sum(ran) < 2 * 4  # to look at what it does, and to trace it
    for layer, units in expected.items():
        np.testing.assert_allclose(found[layer], units, atol=1e-4 * np.abs(units).max())


def test_with_known_answers_a_model_is_converted_before_the_first_batch_is_there():
    ran, openvino, expected, found = by_known_answers(prepared=True)
    assert openvino
    assert sum(ran[:-1]) > 0
    assert ran[-1] == "the first batch"
    for layer, units in expected.items():
        np.testing.assert_allclose(found[layer], units, atol=1e-4 * np.abs(units).max())


def test_nothing_is_prepared_that_will_not_pay():
    ran, openvino, *_ = by_known_answers(seconds=0.01, prepared=True)
    assert not openvino
    assert ran[0] == "the first batch"


def test_what_cannot_be_converted_is_tried_once(monkeypatch):
    tried = []

    def fails(recorder, example):
        tried.append(len(example))
        raise RuntimeError("no such operator")

    monkeypatch.setattr(openvino_model, "_graph_of", fails)
    _, openvino, expected, found = by_known_answers(prepared=True, bfloat16=True)
    assert not openvino
    assert tried == [4]
    for layer, units in expected.items():
        np.testing.assert_allclose(found[layer], units, rtol=1e-3, atol=1e-5)


def test_known_answers_decide_whether_openvino_may_run_the_model():
    ran, openvino, expected, found = by_known_answers(change=0.01)
    assert not openvino
    assert sum(ran) >= 30
    for layer, units in expected.items():
        np.testing.assert_allclose(found[layer], units, rtol=1e-3, atol=1e-5)


def test_known_answers_say_whether_to_convert_it_pays():
    ran, openvino, *_ = by_known_answers(seconds=0.01)
    assert not openvino
    assert sum(ran) == 30


@pytest.mark.parametrize(
    ("shifts", "taken"),
    [
        ([0.009], True),
        ([0.015, 0.004], True),
        ([0.015, 0.012, 0.002], True),
        ([0.015, 0.016, 0.015], False),
        ([0.015, 0.03], False),
        ([0.03], False),
        ([0.015, None], False),
    ],
)
def test_what_is_just_beyond_the_bound_is_compared_on_more_batches(monkeypatch, shifts, taken):
    left = [*shifts]

    def pretended(part, found):
        for layer, units in part._expected.items():  # of the same images
            np.testing.assert_allclose(found[layer], units, atol=0.1 * np.abs(units).max())
        noise = np.r_[np.zeros(99), left.pop(0)]
        if noise[-1] is None:
            raise RuntimeError("there is no memory left")
        return UnitShifts(noise, np.zeros(100), np.zeros(100))

    monkeypatch.setattr(ComparedPart, "shifts", pretended)
    policy = TuningPolicy(partial(by_openvino, bfloat16=True), worth_tuning=0.0, gain=1e9)
    expected, found, executor = execute(models.mobilenet_v2(num_classes=7), policy=policy)
    assert left == []
    assert executor.plan.openvino
    assert executor.plan.precision == ("bfloat16" if taken else "float32")
    if taken:
        assert executor.shift.largest == pytest.approx(np.mean(shifts))
    for layer, units in expected.items():
        np.testing.assert_allclose(found[layer], units, atol=0.1 * np.abs(units).max())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.stem(x).relu().mean((2, 3)))


class Branching(Net):
    """Goes another way for bright pictures: a trace of dark ones says nothing of them."""

    def __init__(self, is_bright):
        super().__init__()
        self.is_bright = is_bright

    def forward(self, x):
        if self.is_bright(x):
            x = 1 - x
        return super().forward(x)


LOOKS = {
    "bool": lambda x: x.mean() > 0.7,
    "item": lambda x: x.mean().item() > 0.7,
    "tolist": lambda x: sum(x.mean((1, 2, 3)).tolist()) > 0.7 * len(x),
    "numpy": lambda x: x.detach().numpy().mean() > 0.7,
    "asarray": lambda x: np.asarray(x.detach()).mean() > 0.7,
    "dlpack": lambda x: np.from_dlpack(x.detach()).mean() > 0.7,
    "equal": lambda x: torch.equal(x.clamp(min=0.7), x),
    "allclose": lambda x: torch.allclose(x.clamp(min=0.7), x),
    "nonzero": lambda x: len((x > 0.7).nonzero()) > x.numel() / 2,
    "mask": lambda x: x[x > 0.7].numel() > x.numel() / 2,
}


class Random(Net):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


class Changing(Net):
    def forward(self, x):
        x *= 2  # in place, of the caller's own batch
        return super().forward(x)


@pytest.mark.parametrize("is_bright", LOOKS.values(), ids=LOOKS)
def test_a_model_that_looks_at_numbers_is_not_traced(is_bright):
    torch.manual_seed(0)
    model = Branching(is_bright)
    with (
        ActivationRecorder(model, ("logits",), INPUTS[:2]) as recorder,
        pytest.raises(LayerError, match="looks at numbers"),
    ):
        Converter(recorder).start(INPUTS[:4], ["float32"])
    dark_and_bright = torch.cat([0.3 * INPUTS[:60], 0.9 + 0.1 * INPUTS[60:]])
    _, found, executor = execute(model, inputs=dark_and_bright)
    assert not executor.plan.openvino
    assert "the model's code looks at numbers" in executor.not_by_openvino
    bright = Net.forward(model, 1 - dark_and_bright[60:]).detach().numpy()
    np.testing.assert_allclose(found["logits"][60:], bright, rtol=1e-3, atol=1e-5)


def test_positions_that_are_no_numbers_of_images_may_be_looked_up():
    class Shuffled(Net):
        def forward(self, x):
            channels = torch.tensor([2, 0, 1])
            return super().forward(x[:, channels])

    torch.manual_seed(0)
    expected, found, executor = execute(Shuffled())
    assert executor.plan.openvino
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-3, atol=1e-5)


def test_a_model_that_draws_at_random_is_run_by_torch():
    executor = execute(Random())[2]
    assert not executor.plan.openvino
    assert executor.not_by_openvino == "it gave other numbers than torch"


def test_a_model_that_works_in_place_gives_the_same():
    expected, found, executor = execute(Changing())
    assert executor.plan.openvino
    np.testing.assert_allclose(found["features"], expected["features"], rtol=1e-3, atol=1e-5)


def test_an_error_leaves_a_model_that_can_be_run():
    with ActivationRecorder(Net(), LAYERS, INPUTS[:2]) as recorder:
        converter = Converter(recorder)
        converter.start(INPUTS[:4], ["float32"], at_once=2)
        expected = recorder(INPUTS[:30].clone())
    model = converter.compiled("float32")
    with pytest.raises(RuntimeError):
        model(INPUTS[:30, :, :32])  # of another size
    for layer, units in model(INPUTS[:30]).items():
        np.testing.assert_allclose(units, expected[layer], rtol=1e-3, atol=1e-5)


def test_what_was_converted_is_compiled_again_and_not_traced_again():
    ran, found = [], []
    model = Net()
    model.stem.register_forward_pre_hook(lambda *_: ran.append(1))
    with ActivationRecorder(model, LAYERS, INPUTS[:2]) as recorder:
        converter = Converter(recorder)
        for first, precision, most in ((0, "float32", 9), (4, "bfloat16", 0), (8, "float32", 0)):
            ran.clear()
            converter.start(INPUTS[first : first + 4], [precision])
            found.append(converter.compiled(precision)(INPUTS[:4]))
            assert len(ran) <= most
        converter.start(INPUTS[:5], ["float32"])
        assert ran  # another shape
    for layer, units in found[0].items():
        assert torch.equal(units, found[2][layer])
        np.testing.assert_allclose(units, found[1][layer], atol=0.05)


def test_the_last_batch_may_be_shorter():
    with ActivationRecorder(Net(), LAYERS, INPUTS[:2]) as recorder:
        expected = recorder(INPUTS[:3])
        converter = Converter(recorder)
        converter.start(INPUTS[:8], ["float32"])
        found = converter.compiled("float32")(INPUTS[:3])
    for layer, units in expected.items():
        assert len(found[layer]) == 3
        np.testing.assert_allclose(found[layer], units, rtol=1e-3, atol=1e-5)


def test_a_probe_says_by_what_it_ran(monkeypatch):
    monkeypatch.setattr(running, "Executor", partial(Executor, policy=ALWAYS))
    monkeypatch.setattr(running, "free_threads", lambda most: most)
    torch.manual_seed(0)
    photos = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    options = {"preprocess": wm.Preprocessing(size=(32, 32)), "cache": False}
    model = Net()
    report = wm.probe(model, photos, ("latin",), **options)
    threads = torch.get_num_threads()
    assert report.precision == f"float32, OpenVINO, {threads} thread{'s' * (threads > 1)}"
    assert report.number_format == "float32"
    for scores in wm.probe(model, photos, ("latin",), precision="float32", **options):
        other = report[scores.layer, scores.scenario]
        np.testing.assert_allclose(other.auroc, scores.auroc, atol=2e-3)


class Raising(Net):
    """Cannot be traced."""

    def forward(self, x):
        if torch.jit.is_tracing():
            raise NotImplementedError("not in a trace, of float16")
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Branching(LOOKS["item"]), "the model's code looks at numbers"),
        (Random(), "it gave other numbers than torch"),
        (Raising(), "it raised NotImplementedError"),
    ],
    ids=["branches", "random", "raises"],
)
def test_a_report_says_why_openvino_did_not_run_the_model(monkeypatch, model, why):
    monkeypatch.setattr(running, "Executor", partial(Executor, policy=ALWAYS))
    photos = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    small = wm.Preprocessing(size=(32, 32))
    with warnings.catch_warnings():  # of the one that answers at random
        warnings.simplefilter("ignore", UserWarning)
        report = wm.probe(model, photos, ("latin",), preprocess=small, cache=False)
    assert f", not by OpenVINO: {why}" in report.precision
    assert report.number_format == "float32"


WATCHED = """
import os, socket, sys
os.environ.pop("CI", None)

def refuse(*args, **options):
    raise SystemExit("it wants to send something")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.running.openvino_model import Converter
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3))
inputs = torch.rand(4, 3, 8, 8)
with ActivationRecorder(model, ("logits",), inputs) as recorder:
    converter = Converter(recorder)
    converter.start(inputs, ["float32"])
    print(converter.compiled("float32")(inputs)["logits"].shape)
print([name for name in sys.modules if "openvino_telemetry" in name])
"""


def test_nothing_is_sent(tmp_path):
    """OpenVINO's telemetry sends that it was imported, and keeps an identity in the home folder."""
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED],
        capture_output=True,
        text=True,
        env={**os.environ, **home},
        check=False,
    )
    assert done.stdout.splitlines() == ["torch.Size([4, 3])", "[]"], done.stderr
    assert [*tmp_path.iterdir()] == []


def test_parameters_ask_for_gradients_as_before():
    model = Net()
    model.fc.weight.requires_grad_(False)
    with ActivationRecorder(model, LAYERS, INPUTS[:2]) as recorder:
        Converter(recorder).start(INPUTS[:4], ["float32"])
        assert [p.requires_grad for p in model.parameters()] == [True, True, False, True]


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv3d(3, 8, (1, 3, 3)), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.stem(x).relu().mean((2, 3, 4)))


class Vectors(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.fc = nn.Linear(3 * 32 * 32, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.hidden(x).relu())


@pytest.mark.parametrize(
    ("kind", "change", "shape"),
    [
        (Net, lambda x: x, (3, 32, 32)),
        (Volumes, lambda x: x[:, :, None], (3, 1, 32, 32)),
        (Vectors, lambda x: x.flatten(1), (3 * 32 * 32,)),
    ],
)
def test_a_probe_converts_before_it_waits_for_images(monkeypatch, tmp_path, kind, change, shape):
    happened = []
    start = Converter.start

    def noted(converter, example, *args, **options):
        happened.append(example.shape)
        start(converter, example, *args, **options)

    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    monkeypatch.setattr(running, "Executor", partial(Executor, policy=ALWAYS))
    monkeypatch.setattr(Converter, "start", noted)
    model_inputs = running.model_inputs

    @contextmanager
    def given(*args):
        with model_inputs(*args) as coming:
            yield (happened.append("images") or batch for batch in coming)

    monkeypatch.setattr(running, "model_inputs", given)

    def preprocess(batch):
        return change(batch)

    preprocess.size = (32, 32)
    torch.manual_seed(0)
    photos = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    options = {"preprocess": preprocess, "device": "cpu", "batch_size": 6, "cache": True}
    wm.probe(kind(), photos, ("latin",), **options)
    converted = happened.index((6, *shape))
    assert [what for what in happened if what != "images"] == [(6, *shape)]
    # Two images that are answered for the cache, and then the first batch.
    assert happened[:converted] == ["images"]
    assert happened[converted + 1] == "images"
