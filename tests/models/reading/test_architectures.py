"""Features of many architectures, against oracles that do not know how they are found."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.models.reading.activations import ActivationRecorder, extract_features

pytestmark = pytest.mark.filterwarnings(
    # The architectures' own warnings, raised while they are built or run.
    "ignore:.*:FutureWarning:torchvision",
    "ignore:.*:FutureWarning:timm",
    "ignore:.*:UserWarning:timm",
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other make hundreds of small operators many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Class of the model to the name of its head, which returns the features once it is an Identity.
TORCHVISION_HEADS = {
    "AlexNet": "classifier.6",
    "ConvNeXt": "classifier.2",
    "DenseNet": "classifier",
    "EfficientNet": "classifier.1",
    "GoogLeNet": "fc",
    "Inception3": "fc",
    "MNASNet": "classifier.1",
    "MaxVit": "classifier.5",
    "MobileNetV2": "classifier.1",
    "MobileNetV3": "classifier.3",
    "RegNet": "fc",
    "ResNet": "fc",
    "ShuffleNetV2": "fc",
    "SwinTransformer": "head",
    "VGG": "classifier.6",
    "VisionTransformer": "heads.head",
}
# Pixels and options that keep the largest ones quick; the others run at 64.
TORCHVISION_INPUTS = {"inception_v3": 96, "maxvit_t": 224, "alexnet": 96}
TORCHVISION_NAMES = torchvision.models.list_models(module=torchvision.models)

# The paper's 20 architectures; BEiT comes from timm and is among its families below.
PAPER = [
    "alexnet", "resnet18", "resnet50", "resnet101", "resnet152", "resnext101_32x8d",
    "wide_resnet101_2", "vit_b_16", "inception_v3", "densenet121", "densenet161", "densenet201",
    "googlenet", "mobilenet_v2", "shufflenet_v2_x1_0", "vgg11", "vgg13", "vgg16", "vgg19",
]  # fmt: skip

# One small member per family.
TIMM_NAMES = [
    "beit_base_patch16_224", "byobnet:repvgg_a0", "byobnet:gernet_s", "byobnet:mobileone_s0",
    "cait_xxs24_224", "coat_tiny", "convit_tiny", "convnext_atto", "convnextv2_atto",
    "crossvit_tiny_240", "cspresnet50", "cs3darknet_s", "davit_tiny", "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224", "densenet121", "dla46_c", "dpn48b", "edgenext_xx_small",
    "efficientformer_l1", "efficientformerv2_s0", "efficientnet_lite0", "efficientvit_b0",
    "efficientvit_m0", "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny",
    "ghostnet_050", "hardcorenas_a", "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small",
    "inception_next_atto", "levit_128s", "levit_conv_128s", "mambaout_femto", "mnasnet_small",
    "maxxvit:coatnet_nano_rw_224", "metaformer:poolformer_s12", "mlp_mixer:mixer_s32_224",
    "mobilenetv2_035", "mobilenetv3_small_050", "mobilenetv4_conv_small", "mobilevit_xxs",
    "mobilevitv2_050", "mvitv2_tiny", "nfnet:nf_regnet_b0", "pit_ti_224", "pit_ti_distilled_224",
    "pvt_v2_b0", "regnetx_002", "repghostnet_050", "repvit_m0_9", "res2net50_26w_4s",
    "resnest14d", "resnet10t", "resnetv2_18", "rexnet_100", "selecsls42", "senet:legacy_seresnet18",
    "sequencer2d_s", "shvit_s1", "sknet:skresnet18", "starnet_s1", "swiftformer_xs",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224",
    "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "twins_svt_small", "visformer_tiny",
    "vit_tiny_patch16_224", "vit_relpos_small_patch16_224", "volo_d1_224",
    "vovnet:ese_vovnet19b_slim", "xcit_nano_12_p16_224",
]  # fmt: skip


def _fill(module: nn.Module, x: Tensor) -> None:
    """Give a module cheap weights with which different images get different logits."""
    pattern = torch.randn(99_991, generator=torch.Generator().manual_seed(0))

    def values(like: Tensor) -> Tensor:
        return pattern.repeat(math.ceil(like.numel() / len(pattern)))[: like.numel()].view_as(like)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(values(parameter)).mul_((2 / fan_in) ** 0.5)
            else:
                parameter.copy_(values(parameter)).mul_(0.1)
                parameter.add_(1.0 if name.endswith("weight") else 0.0)
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = 1.0
        if norms:
            # Statistics of the very images keep the signal from vanishing on its way down.
            module.train()(x)


def _torchvision_model(name: str) -> tuple[nn.Module, Tensor]:
    side = TORCHVISION_INPUTS.get(name, 64)
    options = {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, "aux_logits": False}
    if name.startswith("vit_"):
        side = 2 * int(name.rpartition("_")[2])  # two by two patches
        options = {"image_size": side}
    if name.startswith(("swin", "maxvit", "regnet")):
        # Tables of positions, and widths, are computed from tensors while they are built.
        model = torchvision.models.get_model(name, weights=None, **options)
    else:
        with torch.device("meta"):
            model = torchvision.models.get_model(name, weights=None, **options)
        model = model.to_empty(device="cpu")
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    _fill(model, x)
    return model, x


def _torchvision_oracle(model: nn.Module, x: Tensor) -> Tensor:
    """Cut the head off, and return what is left of the output."""
    family = type(model).__name__
    with torch.no_grad():
        if family == "SqueezeNet":  # its head is a convolution, averaged after it
            return model.features(x).mean((2, 3))
        owner, _, attribute = TORCHVISION_HEADS[family].rpartition(".")
        setattr(model.get_submodule(owner), attribute, nn.Identity())
        return model(x)


def test_the_papers_architectures_are_among_those_tested() -> None:
    assert set(PAPER) <= set(TORCHVISION_NAMES)
    assert "beit_base_patch16_224" in TIMM_NAMES
    assert len(PAPER) + 1 == 20


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_torchvision(name: str) -> None:
    model, x = _torchvision_model(name)
    model.eval()
    with torch.no_grad():
        logits = model(x)
    spread = float(logits.std(0).max() / logits.abs().max())
    assert spread > 1e-3, "different images must differ, for the oracle to mean anything"

    with ActivationRecorder(model, ("logits", "features"), x) as recorder:
        read = recorder(x)

    assert recorder.notes == ()
    torch.testing.assert_close(read["logits"], logits, rtol=0, atol=0)
    torch.testing.assert_close(read["features"], _torchvision_oracle(model, x))


def test_timm_covers_forty_families() -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    modules = {timm.model_entrypoint(_timm_name(name)).__module__ for name in TIMM_NAMES}
    assert len(modules) >= 50
    assert len(TIMM_NAMES) == len(set(TIMM_NAMES)) >= 75


def _timm_name(name: str) -> str:
    return name.rpartition(":")[2]  # after the name of the family, where it does not tell


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    torch.manual_seed(0)
    model = timm.create_model(_timm_name(name), pretrained=False)
    for head in _as_list(model.get_classifier()):
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.1)  # some start at zero
    model.eval()
    x = torch.rand(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        logits = model(x)
        oracle = model.forward_head(model.forward_features(x), pre_logits=True)
    if oracle.ndim == 4:
        oracle = oracle.mean((2, 3))

    with ActivationRecorder(model, ("logits", "features"), x) as recorder:
        read = recorder(x)

    torch.testing.assert_close(read["logits"], logits, rtol=0, atol=0)
    torch.testing.assert_close(read["features"], oracle)
    # VOLO adds the best token's logits to those of its head, so this one is announced.
    assert bool(recorder.notes) == (name == "volo_d1_224")


def _as_list(classifier: object) -> list[nn.Module]:
    return [*classifier] if isinstance(classifier, (tuple, nn.ModuleList)) else [classifier]


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "ghostnet_050", "vgg11"])
def test_timm_without_a_classifier_is_a_backbone(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    x = torch.rand(2, 3, 64, 64)
    with ActivationRecorder(model, ("logits", "features"), x) as recorder, torch.no_grad():
        torch.testing.assert_close(recorder(x)["features"], model(x))
    assert recorder.layers == ("features",)
    assert "no head found" in recorder.notes[0]


# Of twenty-odd families, with every way of pooling; one of them is the paper's BEiT.
MASKED_TIMM = [
    "beit_base_patch16_224", "byobnet:repvgg_a0", "cait_xxs24_224", "convit_tiny", "convnext_atto",
    "cspresnet50", "deit_tiny_distilled_patch16_224", "dla46_c", "edgenext_xx_small",
    "efficientnet_lite0", "fastvit_t8", "ghostnet_050", "hgnetv2_b0", "inception_next_atto",
    "mambaout_femto", "mlp_mixer:mixer_s32_224", "mobilenetv3_small_050", "nfnet:nf_regnet_b0",
    "pit_ti_224", "regnetx_002", "resnetv2_18", "rexnet_100", "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224", "vovnet:ese_vovnet19b_slim", "xcit_nano_12_p16_224",
]  # fmt: skip


def _check_masking(model: nn.Module, x: Tensor) -> None:
    """Units masked are exactly 0 at the head's input, others unchanged, folded logits equal."""
    model.eval()
    before = extract_features(model, x)
    mask = wm.FeatureMask(tuple(range(0, before.shape[1], 7)), before.shape[1])
    masked = wm.apply_mask(model, mask, example=x)
    changed = extract_features(masked, x)
    zeroed = mask.tensors()["zeroed"]
    assert (changed[:, zeroed] == 0).all()
    scale = float(before.abs().max())
    torch.testing.assert_close(changed[:, ~zeroed], before[:, ~zeroed], rtol=0, atol=3e-7 * scale)
    with torch.no_grad():
        plain, expected, found = (m(x) for m in (model, masked, wm.fold_mask(masked)))
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= 1e-5 * scale
    assert float((plain - expected).abs().max()) > 1e-4 * scale, "the mask must do something"


@pytest.mark.parametrize("name", PAPER)
def test_masking_the_papers_architectures(name: str) -> None:
    _check_masking(*_torchvision_model(name))


@pytest.mark.parametrize("name", MASKED_TIMM)
def test_masking_timm(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    torch.manual_seed(0)
    model = timm.create_model(_timm_name(name), pretrained=False)
    for head in _as_list(model.get_classifier()):
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.1)
    _check_masking(model, torch.rand(2, *model.pretrained_cfg["input_size"]))


def _transformers_model(family: str) -> tuple[nn.Module, nn.Module]:
    """Return a tiny classifier and its head."""
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")
    common = {"image_size": 32, "num_labels": 7}
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    if family == "vit":
        config = transformers.ViTConfig(**common, **sizes, intermediate_size=32, patch_size=8)
        model = transformers.ViTForImageClassification(config)
    elif family == "beit":
        config = transformers.BeitConfig(**common, **sizes, intermediate_size=32, patch_size=8)
        model = transformers.BeitForImageClassification(config)
    elif family == "convnext":
        config = transformers.ConvNextConfig(
            **common, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]
        )
        model = transformers.ConvNextForImageClassification(config)
    else:
        config = transformers.SwinConfig(
            **common, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
        )
        model = transformers.SwinForImageClassification(config)
    nn.init.normal_(model.classifier.weight)
    return model.eval(), model.classifier


class Tuples(nn.Module):
    """A transformers model that returns tuples."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.model(pixel_values=x, return_dict=False)


@pytest.mark.parametrize("family", ["vit", "beit", "convnext", "swin"])
@pytest.mark.parametrize("wrap", [nn.Sequential, Tuples])
def test_transformers(family: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, head = _transformers_model(family)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        logits = model(x).logits

    with ActivationRecorder(wrap(model), ("logits", "features"), x) as recorder:
        read = recorder(x)

    assert recorder.notes == ()
    torch.testing.assert_close(read["logits"], logits)
    torch.testing.assert_close(head(read["features"]), logits)


@pytest.mark.parametrize("family", ["vit", "beit", "convnext", "swin"])
def test_transformers_backbones_give_their_pooled_output(family: str) -> None:
    classifier, _ = _transformers_model(family)
    backbone = classifier.base_model
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        output = backbone(x)
    pooled = output.pooler_output
    expected = pooled if pooled is not None else output.last_hidden_state.mean(1)
    torch.testing.assert_close(extract_features(backbone, x), expected)


def test_a_model_in_training_mode_is_probed_in_evaluation_mode() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True)
    x = torch.randn(2, 3, 64, 64)
    _fill(model, x)
    oracle = copy.deepcopy(model).eval()
    features = extract_features(model.train(), x)
    torch.testing.assert_close(features, _torchvision_oracle(oracle, x))
    assert model.training
