from __future__ import annotations

import copy
import io
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import (
    ImagesError,
    LayerError,
    ModelSpecError,
    NonFiniteActivationsError,
    ScenarioError,
    SettingsError,
)

SIZE = 224
N = 10


class Net(nn.Module):
    """Convolution, batch norm, pooling, dropout, head: everything whose state could leak."""

    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.drop(self.norm(self.stem(x)).relu().mean((2, 3))))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (N, 14, 14, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(c).resize((SIZE, SIZE), Image.BICUBIC)) for c in coarse]
    )


@pytest.fixture
def folder(photos, tmp_path):
    for index, pixels in enumerate(photos):
        path = tmp_path / "photos" / f"{'ab'[index % 2]}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def test_scores_are_those_of_running_the_model_by_hand(net, photos):
    report = wm.probe(net, photos, ["chinese", "latin"], layers=["logits", "features", "stem"])
    assert report.layers == ("logits", "features", "stem")
    assert report.scenarios == ("chinese", "latin")
    assert report.n_images == N
    outputs = {}
    net.eval()
    with torch.no_grad():
        (batch,) = wm.probing_batches(photos, ["chinese", "latin"], model=net, batch_size=N)
        for name, x in (("", batch.images), *batch.marked.items()):
            stem = net.stem(x)
            features = net.norm(stem).relu().mean((2, 3))
            outputs[name] = {
                "logits": net.fc(features),
                "features": features,
                "stem": stem.mean((2, 3)),
            }
    truth = np.r_[np.zeros(N), np.ones(N)]
    for scores in report:
        pairs = torch.cat([outputs[""][scores.layer], outputs[scores.scenario][scores.layer]])
        expected = [roc_auc_score(truth, unit) for unit in pairs.T.numpy()]
        np.testing.assert_allclose(scores.auroc, expected, atol=1e-12)
        np.testing.assert_array_equal(
            scores.differentiability, np.maximum(scores.auroc, 1 - scores.auroc)
        )
    before, after = outputs[""]["logits"].argmax(1), outputs["latin"]["logits"].argmax(1)
    assert report.impact["latin"].flip_rate == (before != after).float().mean().item()


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batch_size_does_not_matter(net, photos, batch_size):
    whole = wm.probe(net, photos, ["chinese", "latin"], batch_size=30)
    other = wm.probe(net, photos, ["chinese", "latin"], batch_size=batch_size)
    for scores in whole:
        twin = other[scores.layer, scores.scenario]
        np.testing.assert_allclose(scores.auroc, twin.auroc, atol=0.03)
        assert np.median(np.abs(scores.auroc - twin.auroc)) == 0


def test_order_does_not_matter(net, folder):
    names = sorted(p.name for p in folder.rglob("*.png"))
    report = wm.probe(net, folder, "chinese")
    again = wm.probe(net, folder, "chinese", max_images=len(names))
    np.testing.assert_array_equal(
        report["features", "chinese"].auroc, again["features", "chinese"].auroc
    )
    different = wm.probe(net, folder, "chinese", seed=18)
    assert (report["features", "chinese"].auroc != different["features", "chinese"].auroc).any()


def test_a_marked_copy_on_disk_gives_the_same_numbers(net, folder, tmp_path):
    wm.write_marked_folder(folder, tmp_path / "marked", "chinese")
    paired = wm.PairedFolder("copy", tmp_path / "marked")
    report = wm.probe(net, folder, ["chinese", paired])
    for layer in ("logits", "features"):
        np.testing.assert_array_equal(report[layer, "chinese"].auroc, report[layer, "copy"].auroc)


def test_the_marked_copies_may_have_another_suffix_but_not_another_size(net, folder, tmp_path):
    marked = tmp_path / "marked"
    wm.write_marked_folder(folder, marked, "latin", format="webp")
    wm.probe(net, folder, [wm.PairedFolder("copy", marked)])
    victim = next(marked.rglob("*.webp"))
    Image.open(victim).resize((30, 20)).save(victim)
    with pytest.raises(ImagesError, match="has 30x20 px, its baseline image 224x224"):
        wm.probe(net, folder, [wm.PairedFolder("copy", marked)])
    victim.unlink()
    with pytest.raises(ImagesError, match="no marked copy of"):
        wm.probe(net, folder, [wm.PairedFolder("copy", marked)])


def test_a_paired_folder_needs_a_baseline_folder(net, photos, tmp_path):
    with pytest.raises(ImagesError, match="pairs files by name"):
        wm.probe(net, photos, [wm.PairedFolder("copy", tmp_path)])
    Image.fromarray(photos[0]).save(tmp_path / "a.png")
    with pytest.raises(ImagesError, match="'nowhere' is not a folder"):
        wm.probe(net, tmp_path, [wm.PairedFolder("copy", "nowhere")])


def state(model):
    return {
        "training": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "parameters": [(p.data_ptr(), p.requires_grad, p.grad) for p in model.parameters()],
        "values": [v.clone() for v in model.state_dict().values()],
        "random": (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        ),
        "grad": torch.is_grad_enabled(),
    }


class Breaks(Net):
    calls = 0

    def forward(self, x):
        torch.rand(1), np.random.rand(), random.random()
        self.calls += 1
        if self.calls > 3:
            raise RuntimeError("half-way")
        return super().forward(x)


@pytest.mark.parametrize("build", [Net, Breaks])
def test_the_model_comes_back_as_it_was(photos, build):
    model = build()
    model.train()
    model.drop.eval()
    model.stem.weight.requires_grad_(False)
    before = state(model)
    if build is Breaks:
        with pytest.raises(RuntimeError, match="half-way"):
            wm.probe(model, photos, "latin", batch_size=2)
    else:
        wm.probe(model, photos, "latin", batch_size=2)
    after = state(model)
    assert all(map(torch.equal, before.pop("values"), after.pop("values")))
    assert before == after


class Hungry(Net):
    """Fails as CUDA and the CPU allocator do when more than three images come at once."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > 3:
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(photos, error):
    torch.manual_seed(0)
    model = Hungry(error)
    report = wm.probe(model, photos, "latin", batch_size=12)
    torch.manual_seed(0)
    plain = wm.probe(Net(), photos, "latin", batch_size=3)
    np.testing.assert_array_equal(
        report["features", "latin"].auroc, plain["features", "latin"].auroc
    )
    assert model.sizes.count(12) == 1, "the size that failed was tried again"


def test_out_of_memory_at_one_image_is_raised(photos):
    class Starved(Net):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 1:  # the layers are found
                return super().forward(x)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        wm.probe(Starved(), photos, "latin", batch_size=8)


def test_other_errors_of_the_model_are_not_swallowed(photos):
    model = Hungry(RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        wm.probe(model, photos, "latin", batch_size=8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_cannot_be_ordered(photos, bad):
    model = Net()
    with torch.no_grad():
        model.fc.bias[2] = bad
    with pytest.raises(NonFiniteActivationsError, match=f"{bad} in logits unit 2 for image '0'"):
        wm.probe(model, photos, "latin")


def test_a_unit_that_never_changes_is_at_chance(photos):
    model = Net()
    with torch.no_grad():
        model.fc.weight[1] = 0
    scores = wm.probe(model, photos, "latin")["logits", "latin"]
    assert scores.auroc[1] == 0.5


def test_labels_give_the_top_1_drop(photos):
    model = Net()
    (batch,) = wm.probing_batches(photos, "latin", model=model, batch_size=N)
    with torch.no_grad():
        predicted = model.eval()(batch.images).argmax(1).tolist()
        marked = model(batch.marked["latin"]).argmax(1).tolist()
    expected = sum(a != b for a, b in zip(predicted, marked, strict=True)) / N
    for images, labels in (
        (photos, predicted),
        (list(zip(photos, predicted, strict=True)), None),
    ):
        impact = wm.probe(model, images, "latin", labels=labels).impact["latin"]
        assert impact.top1_baseline == 1
        assert impact.top1_drop == pytest.approx(expected)
    assert wm.probe(model, photos, "latin").impact["latin"].top1_drop is None


def test_folders_called_like_classes_are_labels(folder):
    report = wm.probe(Net(2), folder, "latin", class_names=["a", "b"])
    impact = report.impact["latin"]
    assert impact.top1_baseline is not None
    unnamed = wm.probe(Net(2), folder, "latin")
    assert unnamed.impact["latin"].top1_baseline is None


def test_class_names(net, photos):
    report = wm.probe(net, photos, "latin", class_names=["beach", "carton", "dog", "safe"])
    assert report["logits", "latin"].names[1] == "carton"
    assert report["features", "latin"].names[1] == "1"
    with pytest.raises(SettingsError, match="one name for each of the 4 logits, got 2"):
        wm.probe(net, photos, "latin", class_names=["a", "b"])
    imagenet = wm.probe(Net(1000), photos, "latin")
    assert imagenet["logits", "latin"].names[478] == "carton"
    assert any("assumed to be ImageNet's" in note for note in imagenet.notes)


def test_a_model_of_your_own_says_what_it_wants(photos):
    model = Net(2)
    model.preprocessing = wm.Preprocessing((112, 112), 112, source="mine")
    model.class_names = ["day", "night"]
    report = wm.probe(model, photos, "latin")
    assert report.preprocessing == "mine"
    assert report["logits", "latin"].names == ("day", "night")
    (batch,) = wm.probing_batches(photos, "latin", model=model)
    assert batch.images.shape == (N, 3, 112, 112)


def test_assumptions_are_announced(net, photos):
    report = wm.probe(net, photos, "latin")
    assert "assumed" in report.preprocessing
    told = wm.probe(net, photos, "latin", preprocess="imagenet")
    assert "assumed" not in told.preprocessing


def test_bfloat16_is_close_to_float32(net, photos):
    exact = wm.probe(net, photos, "chinese", precision="float32")
    mixed = wm.probe(net, photos, "chinese", precision="bfloat16")
    assert (exact.precision, mixed.precision) == ("float32", "bfloat16")
    difference = exact["features", "chinese"].auroc - mixed["features", "chinese"].auroc
    assert 0 < np.abs(difference).max() + 1e-9 < 0.15


def test_half_precision_weights_take_half_precision_input(photos):
    wm.probe(copy.deepcopy(Net()).to(torch.bfloat16), photos, "latin")


def test_a_copy_runs_where_the_model_is_not(photos):
    """The meta device stands in for a GPU: the module must not be moved there."""
    model = Net()
    with pytest.raises(Exception):  # noqa: B017, PT011 - nothing can be computed on meta
        wm.probe(model, photos, "latin", device="meta")
    assert {p.device.type for p in model.parameters()} == {"cpu"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("terminal", "ci", "wanted", "shown"),
    [
        (Terminal, "", True, True),
        (Terminal, "true", True, False),
        (Terminal, "", False, False),
        (io.StringIO, "", True, False),
    ],
)
def test_progress_is_for_terminals(net, photos, monkeypatch, terminal, ci, wanted, shown):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal())
    wm.probe(net, photos, "latin", progress=wanted)
    assert ("watermark probe" in sys.stderr.getvalue()) is shown


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scenarios": ["klingon"]}, ScenarioError, "unknown scenario 'klingon'"),
        ({"layers": ["logit"]}, LayerError, "'logit'"),
        ({"images": []}, ImagesError, "empty"),
        ({"device": "quantum"}, SettingsError, "device 'quantum' cannot be used"),
        ({"precision": "int4"}, SettingsError, "precision"),
        ({"batch_size": 0}, SettingsError, "batch_size"),
        ({"max_images": 0}, SettingsError, "max_images"),
        ({"model": 3}, ModelSpecError, "torch.nn.Module or a model spec, got int"),
        ({"model": "resnet"}, ModelSpecError, "model spec 'resnet'"),
    ],
)
def test_arguments_that_cannot_be_used(net, photos, arguments, error, message):
    with pytest.raises(error, match=message):
        wm.probe(**{"model": net, "images": photos, "scenarios": ["latin"], **arguments})


def test_images_of_several_sizes_need_a_size(net):
    images = [np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, 300, 3), np.uint8)]
    with pytest.raises(ImagesError, match=r"differ in size \('0': 224x224 px, '1': 300x224 px\)"):
        wm.probe(net, images, "latin", preprocess="none")
    wm.probe(net, images, "latin")
