"""A mask at work: exactly zero where it should be, nowhere else, whatever is done to the model."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
import torch.distributed
import torchvision
from torch import nn
from torch.nn import functional

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import MaskError, ModelError
from pytest_watermark_guard.mitigation.apply import masked_at

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
MASK = wm.FeatureMask((1, 4, 5), 8)
OTHERS = [0, 2, 3, 6, 7]


class Net(nn.Module):
    """Convolutions, functional pooling, a linear head."""

    def __init__(self, width=8, classes=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, bias=False), nn.BatchNorm2d(width))
        self.body = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, classes)

    def features(self, x):
        return self.body(self.stem(x)).mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


class WithClassifier(Net):
    """Computes its features inside what one would call its head."""

    def __init__(self):
        super().__init__()
        del self.fc
        self.classifier = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        return self.classifier(self.features(x))


class ActivatedOutside(Net):
    """Only the head's own input is a module's business: a function works on the features last."""

    def forward(self, x):
        return self.fc(torch.tanh(self.features(x)) + 1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net().eval()
    model.stem[1].running_mean.normal_()
    return model


def features(model):
    return wm.extract_features(model, X)


def is_masked(model):
    found = features(model)
    return bool((found[:, list(MASK.units)] == 0).all())


def test_the_units_are_zero_and_the_others_are_not_changed(net):
    before = features(net)
    masked = wm.apply_mask(net, MASK, example=X)
    assert (before[:, list(MASK.units)] != 0).any()
    assert is_masked(masked)
    torch.testing.assert_close(features(masked)[:, OTHERS], before[:, OTHERS], rtol=0, atol=0)
    torch.testing.assert_close(features(net), before, rtol=0, atol=0)
    assert wm.applied_mask(masked) is not None
    assert wm.applied_mask(net) is None
    assert masked.state_dict().keys() == net.state_dict().keys()
    assert masked_at(masked) == "the output of 'body'"


def test_without_an_example_the_size_is_that_of_the_models_preprocessing(net):
    net.preprocessing = wm.Preprocessing(size=(40, 40), resize=40)
    sizes = []
    net.stem.register_forward_pre_hook(lambda _m, args: sizes.append(args[0].shape[-2:]))
    masked = wm.apply_mask(net, MASK)
    assert set(sizes) == {(40, 40)}
    assert is_masked(masked)


def test_in_place_and_undone(net):
    state = copy.deepcopy(net.state_dict())
    before = features(net)
    net.train()
    assert wm.apply_mask(net, MASK, example=X, inplace=True) is net
    assert net.training
    assert is_masked(net)
    assert wm.remove_mask(net) is net
    torch.testing.assert_close(features(net), before, rtol=0, atol=0)
    assert wm.applied_mask(net) is None
    assert [name for name, _ in net.named_buffers() if "_wm_" in name] == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not any("_watermark" in name for m in net.modules() for name in m.__dict__)
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
    net.fc = nn.Linear(3, 1)  # nobody watches any more


def test_whoever_reads_the_features_with_a_hook_sees_them_masked(net):
    seen = []
    net.fc.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    wm.apply_mask(net, MASK, example=X, inplace=True)
    net(X)
    assert (seen[-1][:, list(MASK.units)] == 0).all()


@pytest.mark.parametrize(
    "head",
    [
        nn.Linear(8, 11),
        nn.Sequential(nn.Dropout(), nn.Linear(8, 11)),
        nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)),
        nn.Identity(),
    ],
)
def test_it_survives_another_head(net, head):
    masked = wm.apply_mask(net, MASK, example=X)
    masked.fc = head
    assert masked.fc is head
    seen = []
    head.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    masked(X)
    assert (seen[0][:, list(MASK.units)] == 0).all()
    assert (seen[0][:, OTHERS] != 0).any()


def test_the_head_in_a_sequential_can_be_replaced_as_a_whole_and_in_part():
    model = torchvision.models.mobilenet_v2(weights=None).eval()
    mask = wm.FeatureMask((0, 7), 1280)
    wm.apply_mask(model, mask, inplace=True)
    model.classifier[1] = nn.Linear(1280, 5)
    model.classifier = nn.Linear(1280, 3)
    model.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, 2))
    assert (wm.extract_features(model, X)[:, [0, 7]] == 0).all()


def test_a_hook_on_the_heads_input_moves_along():
    torch.manual_seed(0)
    model = ActivatedOutside().eval()
    before = features(model)
    masked = wm.apply_mask(model, MASK, example=X)
    assert masked_at(masked) == "the input of 'fc'"
    old = masked.fc
    masked.fc = nn.Sequential(nn.Dropout(), nn.Linear(8, 2))
    assert is_masked(masked)
    torch.testing.assert_close(features(masked)[:, OTHERS], before[:, OTHERS])
    assert not old._forward_pre_hooks
    masked.fc = old  # and back
    assert is_masked(masked)


def test_a_head_that_is_used_by_its_weight_alone_is_masked_too(net):
    """Some losses and tied weights never call the head."""
    before = net.features(X)
    masked = wm.apply_mask(net, MASK, example=X)
    expected = before.clone()
    expected[:, list(MASK.units)] = 0
    logits = functional.linear(masked.features(X), masked.fc.weight, masked.fc.bias)
    torch.testing.assert_close(logits, net.fc(expected))


def test_what_would_lose_the_mask_is_refused_and_nothing_is_changed():
    torch.manual_seed(0)
    masked = wm.apply_mask(WithClassifier().eval(), MASK, example=X)
    old = masked.classifier
    with pytest.raises(MaskError, match=r"classifier cannot be replaced by Linear .* is gone.*"):
        masked.classifier = nn.Linear(8, 3)
    with pytest.raises(MaskError, match=r"Replace 'classifier\.2' alone"):
        masked.classifier = nn.Identity()
    assert masked.classifier is old
    assert is_masked(masked)
    masked.classifier[2] = nn.Linear(8, 9)
    assert is_masked(masked)


def test_a_backbone_of_another_width_is_refused(net):
    masked = wm.apply_mask(net, MASK, example=X)
    wider = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU())
    with pytest.raises(MaskError, match=r"shape \[3, 16\] and not the mask's 8 features"):
        masked.body = wider
    with pytest.raises(MaskError, match="nothing is there any more"):
        masked.fc = None
    assert is_masked(masked)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, "pickle"])
def test_copies_are_masked_and_watched_by_themselves(net, duplicate):
    masked = wm.apply_mask(net, MASK, example=X)
    if duplicate == "pickle":
        file = io.BytesIO()
        torch.save(masked, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = duplicate(masked)
    twin.fc = nn.Linear(8, 2)
    assert is_masked(twin)
    wm.remove_mask(twin)
    assert not is_masked(twin)
    assert is_masked(masked)


def test_inside_another_model(net):
    masked = wm.apply_mask(net, MASK, example=X)
    masked.fc = nn.Identity()
    model = nn.Sequential(masked, nn.Linear(8, 3)).eval()
    assert is_masked(model)
    assert wm.applied_mask(model) is not None
    model[1] = nn.Linear(8, 2)
    assert is_masked(model)
    wm.remove_mask(model)
    assert not is_masked(model)


def test_a_backbone_without_a_head(net):
    net.fc = nn.Identity()
    masked = wm.apply_mask(net, MASK, example=X)
    assert (masked(X)[:, list(MASK.units)] == 0).all()
    assert (net(X)[:, list(MASK.units)] != 0).any()


@pytest.mark.parametrize("model", [Net, ActivatedOutside])
def test_compiled_and_exported(model):
    torch.manual_seed(0)
    masked = wm.apply_mask(model().eval(), MASK, example=X)
    expected = masked(X)
    assert not torch.allclose(expected, wm.remove_mask(copy.deepcopy(masked))(X))
    compiled = torch.compile(masked, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), expected)
    exported = torch.export.export(masked, (X,)).module()
    torch.testing.assert_close(exported(X), expected)


def test_distributed_data_parallel(net, tmp_path):
    masked = wm.apply_mask(net, MASK, example=X)
    expected = masked(X)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(masked)
        torch.testing.assert_close(parallel(X), expected)
        parallel(X).sum().backward()
        assert wm.applied_mask(parallel) is not None
        wm.remove_mask(parallel)
        assert not is_masked(parallel)
        wm.apply_mask(parallel, MASK, example=X, inplace=True)
        assert is_masked(parallel)
    finally:
        torch.distributed.destroy_process_group()


def test_training_the_head_never_sees_the_units(net):
    masked = wm.apply_mask(net, MASK, example=X)
    masked.fc = nn.Linear(8, 2)
    masked.train()
    functional.cross_entropy(masked(X), torch.tensor([0, 1, 0])).backward()
    grad = masked.fc.weight.grad
    assert (grad[:, list(MASK.units)] == 0).all()
    assert (grad[:, OTHERS] != 0).any()


def test_it_follows_the_model_into_half_precision(net):
    masked = wm.apply_mask(net, MASK, example=X).to(torch.bfloat16)
    assert masked(X.to(torch.bfloat16)).dtype is torch.bfloat16
    found = wm.extract_features(masked, X.to(torch.bfloat16))
    assert (found[:, list(MASK.units)] == 0).all()


def test_infinite_activations_are_zeroed_too(net):
    with torch.no_grad():
        net.body[0].weight[list(MASK.units)] = torch.inf
    masked = wm.apply_mask(net, MASK, example=X, strict=False)
    assert is_masked(masked)


def test_a_mask_is_for_the_weights_that_were_probed(net):
    images = torch.randint(0, 256, (12, 32, 32, 3), dtype=torch.uint8)
    report = wm.probe(
        net, images, ("latin",), preprocess=wm.Preprocessing(size=(32, 32)), cache=False
    )
    mask = wm.FeatureMask.from_report(report, fraction=0.25)
    assert len(mask.weights) == 64
    other_head = copy.deepcopy(net)
    other_head.fc = nn.Linear(8, 2)
    wrapped = nn.Sequential(copy.deepcopy(net))
    for same in (net, other_head, wrapped, copy.deepcopy(net).train()):
        wm.apply_mask(same, mask, example=X)
    tuned = copy.deepcopy(net)
    with torch.no_grad():
        tuned.stem[0].weight[0, 0, 0, 0] += 1e-3
    for other in (tuned, copy.deepcopy(net).double()):
        example = X.to(next(other.parameters()).dtype)
        with pytest.raises(MaskError, match="made for other weights"):
            wm.apply_mask(other, mask, example=example)
        with pytest.raises(MaskError, match="made for other weights"):
            wm.fold_mask(other, mask, example=example)
        wm.apply_mask(other, mask, example=example, strict=False)


def test_a_mask_of_another_width_fits_never(net):
    with pytest.raises(MaskError, match=r"the mask is for 9 features, Net has 8"):
        wm.apply_mask(net, wm.FeatureMask((1,), 9), example=X, strict=False)


def test_one_mask_at_a_time(net):
    masked = wm.apply_mask(net, MASK, example=X)
    with pytest.raises(MaskError, match="carries a mask already"):
        wm.apply_mask(masked, MASK, example=X)
    with pytest.raises(MaskError, match="carries no mask"):
        wm.remove_mask(net)


def test_a_dead_unit_does_not_hide_a_wrong_place():
    """Channels are shuffled behind the body: only the head's input has them in order."""

    class Shuffled(Net):
        def forward(self, x):
            return self.fc(self.features(x).flip(1))

    torch.manual_seed(0)
    model = Shuffled().eval()
    with torch.no_grad():  # all units but one are dead on every image
        model.body[1].weight.zero_()
        model.body[1].bias.copy_(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]))
    masked = wm.apply_mask(model, wm.FeatureMask((2,), 8), example=X)
    assert masked_at(masked) == "the input of 'fc'"


def test_exported_programs_cannot_be_masked(net):
    exported = torch.export.export(net, (X,)).module()
    with pytest.raises(MaskError, match="takes no hooks"):
        wm.apply_mask(exported, MASK, example=X, inplace=True)


@pytest.mark.parametrize("model", ["net.onnx", abs])
def test_only_modules_can_be_masked(model):
    with pytest.raises(MaskError, match=r"only a torch\.nn\.Module can carry a mask"):
        wm.apply_mask(model, MASK)
    with pytest.raises(MaskError, match=r"only a torch\.nn\.Module can carry a mask"):
        wm.fold_mask(model, MASK)


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        raise ValueError("no such size")


def test_what_a_model_raises_says_what_it_was_fed():
    with pytest.raises(ModelError, match=r"Raises raised ValueError: no such size\nwhile finding"):
        wm.apply_mask(Raises(), MASK, example=X)


ERASURE = wm.FeatureErasure(
    np.linspace(-1, 1, 8)[:, None], np.linspace(0.1, 0.2, 8)[None], np.full(8, 0.3)
)


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda m: torch.jit.trace(m, X)])
@pytest.mark.parametrize("intervention", [MASK, ERASURE], ids=["mask", "erasure"])
@pytest.mark.filterwarnings("ignore")  # torch advises against TorchScript
def test_a_masked_model_becomes_torchscript(net, tmp_path, intervention, compiled):
    masked = wm.apply_mask(net, intervention, example=X)
    compiled(masked).save(tmp_path / "masked.pt")
    loaded = torch.jit.load(tmp_path / "masked.pt")
    x = torch.rand_like(X)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), masked(x))
        assert not torch.allclose(masked(x), net(x), atol=1e-4)
    plain = wm.remove_mask(masked)
    with torch.no_grad():
        torch.testing.assert_close(compiled(plain)(x), net(x))


@pytest.mark.filterwarnings("ignore")  # torch advises against TorchScript
def test_a_masked_input_cannot_be_scripted_but_traced(net):
    masked = wm.apply_mask(ActivatedOutside().eval(), MASK, example=X)
    assert "input" in masked_at(masked)
    with pytest.raises(MaskError, match=r"cannot be scripted.*torch\.jit\.trace.*fold_mask"):
        torch.jit.script(masked)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(masked, X)(X), masked(X))
        torch.jit.script(wm.remove_mask(masked))


@pytest.mark.parametrize("dynamo", [False, True])
# Exporters warn of what they will do otherwise some day.
@pytest.mark.filterwarnings("ignore")
def test_a_masked_model_is_exported_to_onnx(net, tmp_path, dynamo):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="torch exports by it")
    masked = wm.apply_mask(net, MASK, example=X)
    file = tmp_path / "masked.onnx"
    torch.onnx.export(masked, (X,), file, dynamo=dynamo)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), masked(X), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(masked(X), net(X), atol=1e-4)
