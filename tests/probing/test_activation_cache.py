"""Nothing is computed twice, and nothing that has changed is taken for the same."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.utils import prune

import pytest_watermark_guard as wm
from pytest_watermark_guard.probing import doubts, recording, running

N = 40
CHECK = 20
"""Rows at most that show where the layers are, and what the first images are answered again."""
SMALL = wm.Preprocessing(size=(32, 32))


class Net(nn.Module):
    def __init__(self, slope=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)
        self.slope = slope

    def forward(self, x):
        return self.fc(self.slope * self.stem(x).relu().mean((2, 3)))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_built_in_images(monkeypatch):
    """Count the rows of the probe alone; the check for marked images has a test of its price."""
    monkeypatch.setattr(doubts, "marked_notes", lambda *_: ())


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(N):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def rows(monkeypatch):
    """Rows that convolutions have seen since last asked; a hook would change the model."""
    seen = []
    convolve = nn.functional.conv2d
    monkeypatch.setattr(
        nn.functional, "conv2d", lambda x, *rest: seen.append(len(x)) or convolve(x, *rest)
    )

    def since():
        total = sum(seen)
        seen.clear()
        return total

    return since


def probe(photos, model=None, scenarios=("latin",), **arguments):
    arguments = {"preprocess": SMALL, "precision": "float32", **arguments}
    return wm.probe(model or Net(), photos, scenarios, **arguments)


def test_the_second_probe_runs_the_first_images_and_says_the_same(photos, rows):
    first = probe(photos)
    needed = rows()
    assert needed >= 2 * N
    second = probe(photos)
    # It looks for the layers and answers again, no more than the first had done.
    assert needed - 2 * N == rows() <= CHECK
    assert second.to_json() == first.to_json()


def test_the_second_gate_runs_the_first_images(photos, rows):
    arguments = {"images": photos, "scenarios": "latin", "preprocess": SMALL}
    first = wm.assert_not_watermark_sensitive(Net(), **arguments)
    assert rows() > 0
    second = wm.assert_not_watermark_sensitive(Net(), **arguments)
    assert rows() <= CHECK
    assert second.to_json() == first.to_json()


CHANGES = {
    "weights": {"model": Net().requires_grad_(False)},
    "attribute": {"model": Net(slope=0.5)},
    "seed": {"seed": 3},
    "scenario": {"scenarios": (wm.Scenario("latin", "A B C"),)},
    "preprocessing": {"preprocess": wm.Preprocessing(size=(32, 32), mean=(0.1, 0.1, 0.1))},
    "subset": {"max_images": 30},
    "precision": {"precision": "bfloat16"},
}
with torch.no_grad():
    CHANGES["weights"]["model"].fc.weight[0, 0] += 1e-3


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_computed_anew(photos, rows, change):
    probe(photos)
    rows()
    probe(photos, **CHANGES[change])
    # Of another scenario, only the marked images are new.
    assert rows() >= (N if change == "scenario" else 2 * 30)


def test_changed_images_are_computed_anew(photos, rows):
    probe(photos)
    rows()
    Image.new("RGB", (40, 40)).save(photos / "07.png")
    probe(photos)
    assert rows() >= 2 * N


def test_what_only_reads_differently_is_not(photos, rows):
    first = probe(photos)
    rows()
    named = probe(photos, class_names=["a", "b", "c"], name="other")
    assert rows() <= CHECK
    np.testing.assert_array_equal(named["logits", "latin"].auroc, first["logits", "latin"].auroc)
    assert named["logits", "latin"].names == ("a", "b", "c")


def test_one_more_scenario_runs_that_one_only(photos, rows):
    probe(photos, precision="auto")
    rows()
    both = probe(photos, scenarios=("latin", "arabic_numerals"), precision="auto")
    assert N <= rows() <= N + 2 * CHECK
    fresh = probe(photos, scenarios=("latin", "arabic_numerals"), cache=False)
    for scores in fresh:
        found = both[scores.layer, scores.scenario]
        np.testing.assert_allclose(found.auroc, scores.auroc, atol=2e-3)


def test_float32_gives_the_same_bits_whatever_is_known(photos, rows):
    probe(photos)
    probe(photos, batch_size=3)
    rows()
    scenarios = ("latin", "arabic_numerals")
    both = probe(photos, scenarios=scenarios)
    assert rows() >= 3 * N
    assert both.to_json() == probe(photos, scenarios=scenarios, cache=False).to_json()


def test_a_layer_by_itself_is_known_as_well(photos, rows):
    both = probe(photos)
    rows()
    for layer in both.layers:
        one = probe(photos, layers=(layer,))
        assert rows() <= CHECK
        np.testing.assert_array_equal(one[layer, "latin"].auroc, both[layer, "latin"].auroc)


def test_a_short_gate_on_fewer_layers_keeps_what_is_known_of_more(rows):
    many = np.random.default_rng(1).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    arguments = {"layers": ("logits", "stem"), "stop_at": 0.95}
    probe(many)
    probe(many, **arguments)
    rows()
    probe(many)
    assert rows() <= CHECK


@pytest.fixture
def found_bfloat16(monkeypatch):
    """Every run with precision="auto" says that it found bfloat16 to be faster."""
    plan = running.Plan(8, "bfloat16")
    monkeypatch.setattr(running.Executor, "plan", property(lambda executor: plan))


def test_runs_in_unlike_precision_are_never_put_together(rows, found_bfloat16):
    many = np.random.default_rng(1).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    both = ("latin", "arabic_numerals")
    probe(many, precision="auto")
    rows()
    gate = probe(many, scenarios=both, precision="auto", stop_at=0.95)
    assert rows() >= 3 * gate.n_images  # of the first run, nothing is used
    for again in ({"scenarios": both, "stop_at": 0.95}, {}):  # and neither forgets the other
        assert probe(many, precision="auto", **again).precision.startswith("bfloat16")
        assert rows() <= CHECK


def test_what_went_on_in_float32_is_not_called_float32(rows, monkeypatch):
    many = np.random.default_rng(1).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    with monkeypatch.context() as patch:
        plan = running.Plan(8, "bfloat16")
        patch.setattr(running.Executor, "plan", property(lambda executor: plan))
        gate = probe(many, precision="auto", stop_at=0.95)
    rows()
    full = probe(many, precision="auto")
    assert (gate.n_images < 400, full.n_images) == (True, 400)
    assert full.precision == "float32, some images in bfloat16"
    rows()
    more = probe(many, precision="auto", scenarios=("latin", "arabic_numerals"))
    assert rows() >= 3 * 400
    assert more.precision.startswith("float32")


def test_an_interrupted_probe_goes_on(rows, monkeypatch):
    class StoppedError(Exception):
        pass

    many = np.random.default_rng(1).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    append = recording.Recording.append

    def stopping(filled, *arguments):
        append(filled, *arguments)
        if len(filled) > 200:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(recording.Recording, "append", stopping)
        with pytest.raises(StoppedError):
            probe(many)
    used = rows()
    full = probe(many)
    assert rows() <= 2 * 400 - used + 80
    assert full.to_json() == probe(many, cache=False).to_json()


def test_a_full_probe_goes_on_where_a_gate_stopped(photos, rows):
    many = np.random.default_rng(1).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    gate = probe(many, stop_at=0.95)
    used = rows()
    assert gate.early_stop.verdict == "clean"
    full = probe(many)
    assert full.n_images == 400
    assert rows() <= 2 * 400 - used + 20 + CHECK
    fresh = probe(many, cache=False)
    assert full.to_json() == fresh.to_json()


def test_a_gate_that_stops_early_does_not_forget_what_was_known(photos, rows):
    many = np.random.default_rng(1).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    probe(many, precision="auto")
    rows()
    gate = probe(many, scenarios=("latin", "arabic_numerals"), stop_at=0.95, precision="auto")
    assert gate.n_images < 400
    assert rows() < 400
    probe(many, precision="auto")
    assert rows() <= CHECK


def test_of_a_large_probe_the_result_is_kept(photos, rows, monkeypatch):
    monkeypatch.setattr(recording, "_SPILL", 100)  # bytes
    arguments = {"examples": True, "labels": [0, 1] * (N // 2)}
    first = probe(photos, **arguments)
    rows()
    assert probe(photos, **arguments).to_json() == first.to_json()
    assert rows() <= CHECK
    named = probe(photos, **arguments, class_names=["a", "b", "c"])
    assert named["logits", "latin"].names == ("a", "b", "c")
    assert rows() >= 2 * N


def test_a_kept_result_is_that_of_the_streams_asked_for(photos, monkeypatch):
    monkeypatch.setattr(recording, "_SPILL", 100)  # bytes
    arguments = {"precision": "auto"}
    plain = probe(photos, **arguments)
    with_control = probe(photos, **arguments, control=True)
    assert with_control.controls
    again = probe(photos, **arguments)
    assert not again.controls
    assert again.to_json() == plain.to_json()


@pytest.mark.parametrize("each", [False, True])
def test_of_a_large_gate_the_verdict_is_kept(photos, rows, monkeypatch, each):
    monkeypatch.setattr(recording, "_SPILL", 100)  # bytes
    gate = probe(photos, stop_at=0.95, decide_each=each)
    rows()
    assert probe(photos, stop_at=0.95, decide_each=each).to_json() == gate.to_json()
    assert rows() <= CHECK
    for other in ({"stop_at": 0.9}, {"early_stop": 0.01}, {"allow": {"logits:0": "known"}}, {}):
        report = probe(photos, **{"stop_at": 0.95, "decide_each": not each, **other})
        assert report.early_stop is not None
        assert rows() > 0
    assert probe(photos).early_stop is None


def test_of_a_large_folder_a_gate_s_few_images_are_kept(rows, monkeypatch):
    many = np.random.default_rng(1).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(recording, "_SPILL", 20_000)  # bytes; of all images they would be 22,400
    gate = probe(many, stop_at=0.95)
    assert gate.n_images < 300
    rows()
    assert probe(many, stop_at=0.95).to_json() == gate.to_json()
    assert rows() <= CHECK


def test_without_a_cache(photos, rows, own_folder):
    for _ in range(2):
        probe(photos, cache=False)
        assert rows() >= 2 * N
    assert not [path for path in own_folder.rglob("*") if path.is_file()]


def test_datasets_are_never_cached(rows):
    class Noise(torch.utils.data.Dataset):
        def __len__(self):
            return N

        def __getitem__(self, index):
            return torch.rand(3, 32, 32)

    for _ in range(2):
        report = probe(Noise())
        assert rows() >= 2 * N
        assert any(note.startswith("not cached: images: a Dataset") for note in report.notes)


def _set_weight(net):
    with torch.no_grad():
        net.fc.weight[1, 2] += 1e-3


def _double(module, inputs, output):
    return output * 2


def _hide(module, inputs):
    return (inputs[0].flip(1),)


def _silence(module, inputs, output):
    return output * torch.tensor([1.0, 0.0, 1.0])


CHANGES_OF_A_MODEL = {
    "weight": _set_weight,
    "buffer": lambda net: net.norm.running_mean.add_(0.1),
    "non-persistent buffer": lambda net: net.offset.add_(0.1),
    "attribute": lambda net: setattr(net, "slope", 2.0),
    "plain tensor": lambda net: setattr(net, "scale", torch.tensor(2.0)),
    "attribute of a submodule": lambda net: setattr(net.norm, "eps", 0.5),
    "function": lambda net: setattr(net, "act", torch.tanh),
    "closure": lambda net: setattr(net, "factor", lambda: 2.0),
    "instance's forward": lambda net: setattr(
        net, "forward", types.MethodType(lambda self, x: type(self).forward(self, x) * 2, net)
    ),
    "activation": lambda net: setattr(net, "last", nn.Softplus()),
    "missing bias": lambda net: setattr(net.fc, "bias", None),
    "parametrization": lambda net: nn.utils.parametrizations.weight_norm(net.fc),
    "pruning mask": lambda net: prune.random_unstructured(net.fc, "weight", amount=0.5),
    "forward hook": lambda net: net.fc.register_forward_hook(_double),
    "hook on one unit": lambda net: net.fc.register_forward_hook(_silence),
    "hook before forward": lambda net: net.register_forward_pre_hook(_hide),
}


class Rich(Net):
    """A model with everything that may change."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Identity()
        self.register_buffer("offset", torch.zeros(4), persistent=False)
        self.scale = torch.tensor(1.0)
        self.act = torch.relu
        self.factor = lambda: 1.0

    def forward(self, x):
        x = self.act(self.norm(self.stem(x))).mean((2, 3)) * self.scale + self.offset
        return self.last(self.fc(x * self.slope * self.factor()))


@pytest.mark.parametrize("change", CHANGES_OF_A_MODEL)
def test_every_change_of_what_a_model_computes_is_noticed(photos, change):
    probe(photos, model=Rich())
    net = Rich()
    CHANGES_OF_A_MODEL[change](net)
    cached, fresh = (probe(photos, model=net, cache=cache) for cache in (True, False))
    for scores in fresh:
        again = cached[scores.layer, scores.scenario]
        np.testing.assert_array_equal(again.auroc, scores.auroc)
        np.testing.assert_array_equal(again.standard_error, scores.standard_error)
    assert cached.impact == fresh.impact


@pytest.mark.parametrize(
    "place", [(nn.Linear, "forward"), (nn.Module, "__call__"), (nn.functional, "relu")]
)
def test_a_changed_library_is_noticed(photos, monkeypatch, place):
    probe(photos, model=Rich())
    before = getattr(*place)
    monkeypatch.setattr(*place, lambda *arguments, **more: before(*arguments, **more) * 1.5)
    cached, fresh = (probe(photos, model=Rich(), cache=cache) for cache in (True, False))
    assert [s.auroc.tolist() for s in cached] == [s.auroc.tolist() for s in fresh]


def test_a_change_that_only_code_knows_is_noted_and_then_cached(photos, rows):
    def scaled(sign):
        net = Net()
        net.stem.register_forward_hook(lambda module, inputs, output: sign * output)
        return net

    probe(photos, model=scaled(1))
    rows()
    changed = probe(photos, model=scaled(-1))
    assert rows() >= 2 * N
    (note,) = [note for note in changed.notes if "cached" in note]
    assert "answers the first images otherwise" in note
    again = probe(photos, model=scaled(-1))
    assert rows() <= CHECK
    assert not [note for note in again.notes if "cached" in note]
    np.testing.assert_array_equal(again["logits", "latin"].auroc, changed["logits", "latin"].auroc)


def test_what_was_cached_of_other_marks_is_checked_as_well(photos, rows):
    """A change that was noticed with one scenario must not leave another one's activations."""

    def scaled(sign):
        net = Net()
        net.stem.register_forward_hook(lambda module, inputs, output: sign * output)
        return net

    both = ("latin", "arabic_numerals")
    arguments = {"precision": "auto"}
    probe(photos, scaled(1), both, **arguments)
    probe(photos, scaled(-1), ("latin",), **arguments)
    again = probe(photos, scaled(-1), both, **arguments)
    fresh = probe(photos, scaled(-1), both, **arguments, cache=False)
    for scores in fresh:
        found = again[scores.layer, scores.scenario]
        np.testing.assert_array_equal(found.auroc, scores.auroc)


def test_a_kept_result_is_checked_as_well(photos, rows, monkeypatch):
    monkeypatch.setattr(recording, "_SPILL", 100)  # bytes

    def scaled(sign):
        net = Net()
        net.stem.register_forward_hook(lambda module, inputs, output: sign * output)
        return net

    probe(photos, scaled(1))
    rows()
    changed = probe(photos, scaled(-1))
    assert rows() >= 2 * N
    assert [note for note in changed.notes if "answers the first images otherwise" in note]
    fresh = probe(photos, scaled(-1), cache=False)
    np.testing.assert_array_equal(changed["logits", "latin"].auroc, fresh["logits", "latin"].auroc)
    assert not [note for note in probe(photos, scaled(-1)).notes if "cached" in note]


def test_an_output_that_a_model_gained_is_noticed(photos):
    class Two(Net):
        both = False

        def forward(self, x):
            logits = super().forward(x)
            return (logits, 2 * logits[:, :2]) if self.both else logits

    probe(photos, Two())
    model = Two()
    type(model).both = True
    assert probe(photos, model).layers == ("logits", "logits[1]", "features")


def test_a_model_that_draws_at_random_is_never_taken_for_the_same(photos):
    class Noisy(Net):
        def forward(self, x):
            return super().forward(x) + torch.rand(len(x), 3)

    model = Noisy()
    probe(photos, model)
    torch.rand(1)
    again = probe(photos, model)
    assert [note for note in again.notes if "draws at random" in note]


def _hooked():
    net = Net()
    net.stem.register_forward_hook(_double)
    return net


def _scripted():
    return torch.jit.script(Net().eval())


def _quantised():
    return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})


@pytest.mark.parametrize(
    ("make", "layer"), [(_hooked, "logits"), (_scripted, "logits"), (_quantised, "features")]
)
# Torch calls quantization and TorchScript deprecated.
@pytest.mark.filterwarnings("ignore")
def test_models_of_all_kinds_are_cached(photos, make, layer):
    images = []
    arguments = {"layers": (layer,)}
    first = probe(photos, make(), **arguments)
    read = wm.Preprocessing.scale_image

    def reading(*values):
        images.append(1)
        return read(*values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wm.Preprocessing, "scale_image", reading)
        second = probe(photos, make(), **arguments)
        known = len(images)
        probe(photos, make(), **arguments, cache=False)
    assert known < len(images) / 4
    assert second.to_json() == first.to_json()


def test_damaged_files_are_computed_again(photos, rows, own_folder):
    first = probe(photos)
    rows()
    for path in (own_folder / "cache" / "activations").rglob("*.npy"):
        content = bytearray(path.read_bytes())
        content[-40] ^= 0xFF
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        again = probe(photos)
    assert rows() >= 2 * N
    assert again.to_json() == first.to_json()


def test_decoded_images_of_two_runs_are_never_put_together(photos):
    """A run that stops and one that goes on see all images, neither of them alone."""
    stopped = probe(photos, stop_at=0.95)
    probe(photos)
    again = probe(photos, model=Net(slope=0.5))
    fresh = probe(photos, model=Net(slope=0.5), cache=False)
    assert stopped.n_images < N
    np.testing.assert_array_equal(again["logits", "latin"].auroc, fresh["logits", "latin"].auroc)


def test_settings_of_torch_s_new_kind(photos):
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has no such setting")
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        assert probe(photos).n_images == N
    finally:
        matmul.fp32_precision = before


def test_decoded_images_are_kept(photos, monkeypatch):
    first = probe(photos)
    reads = []
    read = wm.Preprocessing.fit
    monkeypatch.setattr(wm.Preprocessing, "fit", lambda *a: reads.append(1) or read(*a))
    second = probe(photos, model=Net(slope=0.5))
    assert not reads
    third = probe(photos, model=Net(slope=0.5), cache=False)
    assert reads
    np.testing.assert_array_equal(second["logits", "latin"].auroc, third["logits", "latin"].auroc)
    assert first.n_images == N
