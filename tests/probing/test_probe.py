from __future__ import annotations

import inspect
import io
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor

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
from pytest_watermark_guard.probing import recording

SIZE = 224
N = 10


class Net(nn.Module):
    """Convolution, batch norm, pooling, dropout, head, a counter: all whose state could leak."""

    def __init__(self, classes=4):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.stem = nn.Conv2d(3, 8, 7, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        self.calls = self.calls + 1
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


def test_only_the_image_s_name_decides_its_mark(net, photos, folder):
    """The same photos, without the first ones: the others keep their marks, and their scores."""
    (whole,) = wm.probing_batches(folder, "chinese", batch_size=N)
    for name in ("a/0.png", "b/1.png"):
        (folder / name).unlink()
    (fewer,) = wm.probing_batches(folder, "chinese", batch_size=N)
    kept = [whole.identities.index(name) for name in fewer.identities]
    assert kept != list(range(len(kept)))
    assert torch.equal(fewer.marked["chinese"], whole.marked["chinese"][kept])


def test_the_seed_counts(net, folder):
    one, other = (wm.probe(net, folder, "chinese", seed=seed) for seed in (17, 18))
    assert (one["features", "chinese"].auroc != other["features", "chinese"].auroc).any()


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
        "parameters": [(p.data_ptr(), p.requires_grad, id(p.grad)) for p in model.parameters()],
        "buffers": [id(b) for b in model.buffers()],
        "values": [v.clone() for v in model.state_dict().values()],
        "random": (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        ),
        "grad": torch.is_grad_enabled(),
    }


class Breaks(Net):
    runs = 0

    def forward(self, x):
        torch.rand(1), np.random.rand(), random.random()
        self.runs += 1
        if self.runs > 3:
            raise RuntimeError("half-way")
        return super().forward(x)


@pytest.mark.parametrize("build", [Net, Breaks])
def test_the_model_comes_back_as_it_was(photos, build):
    model = build()
    model.train()
    model.drop.eval()
    model.stem.weight.requires_grad_(False)
    Net.forward(model, torch.rand(4, 3, 32, 32)).sum().backward()
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
    report = wm.probe(model, photos, "latin", batch_size=12, precision="float32")
    torch.manual_seed(0)
    plain = wm.probe(Net(), photos, "latin", batch_size=3, precision="float32")
    np.testing.assert_array_equal(
        report["features", "latin"].auroc, plain["features", "latin"].auroc
    )
    assert model.sizes.count(12) == 1, "the size that failed was tried again"


def test_out_of_memory_at_one_image_is_raised(photos):
    class Starved(Net):
        runs = 0

        def forward(self, x):
            self.runs += 1
            if self.runs == 1:  # the layers are found
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
    with pytest.raises(NonFiniteActivationsError, match=rf"{bad} in logits unit 2 for image '\d'"):
        wm.probe(model, photos, "latin")


def test_a_unit_that_never_changes_is_at_chance(photos):
    model = Net()
    with torch.no_grad():
        model.fc.weight[1] = 0
    scores = wm.probe(model, photos, "latin")["logits", "latin"]
    assert scores.auroc[1] == 0.5


def test_what_is_spilled_to_disk_gives_the_same_report(photos, monkeypatch):
    model = Net()

    def probed():
        return wm.probe(model, photos, ("latin", "chinese"), control=True, cache=False).to_json()

    kept = probed()
    spilled = []
    open_rows = recording.ActivationBuffer
    monkeypatch.setattr(
        recording, "ActivationBuffer", lambda folder: spilled.append(folder) or open_rows(folder)
    )
    monkeypatch.setattr(recording, "_SPILL", 1)
    assert probed() == kept
    assert all(spilled)


def test_float32_is_plain_whatever_the_process_has_set(photos):
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this torch has no such setting")
    switch = torch.backends.mkldnn.matmul
    before, seen = switch.fp32_precision, []

    class Watching(Net):
        def forward(self, x):
            seen.append(switch.fp32_precision)
            return super().forward(x)

    switch.fp32_precision = "bf16"
    try:
        wm.probe(Watching(), photos, "latin", precision="float32", device="cpu")
        assert switch.fp32_precision == "bf16"
    finally:
        switch.fp32_precision = before
    assert set(seen) == {"ieee"}


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


def test_wrong_class_names_are_said_at_once(photos):
    runs = []

    class Counted(Net):
        def forward(self, x):
            runs.append(len(x))
            return super().forward(x)

    with pytest.raises(SettingsError, match="got 2"):
        wm.probe(Counted(), np.tile(photos, (20, 1, 1, 1)), "latin", class_names=["a", "b"])
    assert sum(runs) < 150  # of 400


def test_class_names_by_index(net, photos):
    report = wm.probe(net, photos, "latin", class_names={1: "b", 0: "a", 3: "d", 2: "c"})
    assert report["logits", "latin"].names == ("a", "b", "c", "d")


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
    assert any(note.startswith("preprocessing is assumed") for note in report.notes)
    told = wm.probe(net, photos, "latin", preprocess="imagenet")
    assert not any("assumed" in note for note in told.notes)


def test_bfloat16_is_used_and_close_to_float32(photos):
    types = []

    class Watched(Net):
        def forward(self, x):
            types.append(self.stem(x).dtype)
            return super().forward(x)

    torch.manual_seed(0)
    model = Watched()
    exact = wm.probe(model, photos, "chinese", precision="float32")
    assert set(types) == {torch.float32}
    mixed = wm.probe(model, photos, "chinese", precision="bfloat16")
    assert torch.bfloat16 in types
    assert (exact.precision, mixed.precision) == ("float32", "bfloat16")
    difference = exact["features", "chinese"].auroc - mixed["features", "chinese"].auroc
    assert np.abs(difference).max() < 0.15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_types_get_their_own_input_and_are_told(photos, dtype):
    report = wm.probe(Net().to(dtype), photos, "latin")
    assert report.precision == f"float32, {dtype} weights"
    assert report["logits", "latin"].auroc.shape == (4,)


def test_double_precision_is_kept(photos):
    model = Net().double()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.weight[0, 0] = 1
        model.fc.bias.fill_(1e9)  # in single precision, everything would tie
    report = wm.probe(model, photos, "chinese")
    np.testing.assert_array_equal(
        report["logits", "chinese"].auroc[0], report["features", "chinese"].auroc[0]
    )


def test_precision_leaves_torch_s_own_settings_alone(photos):
    torch.set_float32_matmul_precision("medium")
    try:
        wm.probe(Net(), photos, "latin", precision="float32")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


class NotThreadSafe(torch.utils.data.Dataset):
    """One file position for all, as in many Datasets."""

    def __init__(self, photos):
        self.photos = photos
        self.position = 0

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, index):
        self.position = index
        time.sleep(0.001)
        return self.photos[self.position]


def test_a_dataset_is_read_by_one_thread(photos):
    (batch,) = wm.probing_batches(NotThreadSafe(photos), "latin", batch_size=N)
    (plain,) = wm.probing_batches(photos, "latin", batch_size=N)
    assert torch.equal(batch.images, plain.images)


def test_probes_in_threads_do_not_disturb_each_other(photos):
    model = Net().train()
    expected = wm.probe(model, photos, "latin")["features", "latin"].auroc
    with ThreadPoolExecutor(3) as pool:
        for report in pool.map(lambda _: wm.probe(model, photos, "latin"), range(6)):
            np.testing.assert_array_equal(report["features", "latin"].auroc, expected)
    assert all(module.training for module in model.modules())


class Scaled(Net):
    """A head that can only be guessed: the output is no linear function of it."""

    def forward(self, x):
        return super().forward(x).tanh() * 5 + 0.1


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_which_layers_there_are_does_not_depend_on_the_batch_size(photos, batch_size):
    twice = np.concatenate([photos[:1], photos[:1], photos])
    report = wm.probe(Scaled(), twice, "latin", batch_size=batch_size)
    assert report.layers == ("logits", "features")


def test_a_lazy_model_has_to_run_first(photos):
    with pytest.raises(LayerError, match="lazy parameters"):
        wm.probe(nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), photos, "latin")


class Switch(nn.Module):
    """One logit: yes where there is anything quite white."""

    def forward(self, x):
        return self.fc(x.amin(1).amax((1, 2))[:, None])

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 1)
        with torch.no_grad():
            self.fc.weight.fill_(1)
            self.fc.bias.fill_(-0.99)


def test_a_single_logit_says_yes_or_no(photos):
    dark = photos // 2
    report = wm.probe(
        Switch(), dark, "latin", preprocess="none", class_names=["text"], labels=[0] * N
    )
    impact = report.impact["latin"]
    assert (impact.flip_rate, impact.gains_name, impact.gains_share) == (1, "text", 1)
    assert (impact.top1_baseline, impact.top1_marked) == (1, 0)


def test_labels_that_are_no_classes(net, photos):
    with pytest.raises(ImagesError, match=r"9 of image '\d' is no index of the model's 4"):
        wm.probe(net, photos, "latin", labels=[9] * N)
    with pytest.raises(ImagesError, match="expected a class index for '0', got 'cat'"):
        wm.probe(net, photos, "latin", labels=["cat"] * N)


def test_a_mark_that_changes_nothing_is_no_scenario(net, photos):
    faint = wm.Scenario("faint", "AB", opacity=0.001)
    with pytest.raises(ScenarioError, match=r"at opacity 0\.001 no pixel changes"):
        wm.probe(net, photos, [faint])


def test_a_model_on_another_device_is_not_moved_there(net, photos):
    with pytest.raises(SettingsError, match="device 'meta' cannot be used"):
        wm.probe(net, photos, "latin", device="meta")


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
    wm.probe(net, photos, "latin", progress=wanted, cache=False)
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
        ({"model": 3}, ModelSpecError, "or a function from a batch to logits, got int"),
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


def test_a_number_where_images_belong_is_a_threshold_in_the_wrong_place(net):
    for function in (wm.probe, wm.assert_not_watermark_sensitive):
        with pytest.raises(SettingsError, match=r"passed by name: threshold=0\.9"):
            function(net, 0.9)


def test_an_argument_that_does_not_exist_names_its_neighbour(net, photos):
    for function in (wm.probe, wm.assert_not_watermark_sensitive):
        with pytest.raises(TypeError, match=r"'presision'; did you mean 'precision'"):
            function(net, photos, presision="float32")


def test_probe_and_gate_take_the_same_arguments_in_the_same_order():
    one, other = map(inspect.signature, (wm.probe, wm.assert_not_watermark_sensitive))
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    shared = [name for name, p in one.parameters.items() if p.kind is plain]
    assert shared == [name for name, p in other.parameters.items() if p.kind is plain]
    assert shared == ["model", "images", "scenarios", "layers", "preprocess"]
