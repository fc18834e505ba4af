"""Libraries of classifiers: features are the input of the layer that each names its last."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import pytest_watermark_guard as wm
from zoo.case import Case, input_of, itself, last_linear

LARGE = wm.Preprocessing.imagenet((256, 256))


def _efficientnet_pytorch() -> Iterator[Case]:
    """Its `extract_features`, pooled."""
    from efficientnet_pytorch import EfficientNet

    for name in ("efficientnet-b0", "efficientnet-b1"):
        yield Case(
            name,
            partial(EfficientNet.from_name, name),
            lambda m, x: m._avg_pooling(m.extract_features(x)).flatten(1),
        )
    yield Case(
        "efficientnet-b0, 1 channel, 4 classes",
        partial(EfficientNet.from_name, "efficientnet-b0", in_channels=1, num_classes=4),
        lambda m, x: m._avg_pooling(m.extract_features(x)).flatten(1),
    )
    yield Case(
        "efficientnet-b0, no head",
        partial(EfficientNet.from_name, "efficientnet-b0", include_top=False),
        lambda m, x: m(x).flatten(1),
        None,
    )


def _pretrainedmodels() -> Iterator[Case]:
    """The input of `last_linear`; its `TransformImage`."""
    import pretrainedmodels
    from pretrainedmodels.utils import TransformImage

    def build(name: str) -> Any:
        model = pretrainedmodels.__dict__[name](num_classes=1000, pretrained=None)
        for key, value in pretrainedmodels.pretrained_settings[name]["imagenet"].items():
            setattr(model, key, value)  # as it does itself where it loads weights
        return model

    for name in [
        "alexnet",
        "resnet18",
        "squeezenet1_1",
        "vgg11",
        "densenet121",
        "bninception",
        "nasnetamobile",
        "dpn68",
        "xception",
        "se_resnet50",
        "cafferesnet101",
        "inceptionv3",
        "polynet",
    ]:
        head = "last_conv" if name.startswith("squeezenet") else "last_linear"
        yield Case(name, partial(build, name), input_of(head), transform=TransformImage)


def _pytorchcv() -> Iterator[Case]:
    """The input of the last layer of `output`."""
    from pytorchcv.model_provider import get_model

    for name in [
        "alexnet",
        "resnet10",
        "preresnet10",
        "seresnet10",
        "resnetbc14b",
        "bninception",
        "densenet121",
        "dla34",
        "peleenet",
        "shufflenetv2_wd2",
        "squeezenet_v1_1",
        "squeezeresnet_v1_1",
        "mobilenet_wd4",
        "mobilenetv2_wd4",
        "fdmobilenet_wd4",
        "igcv3_wd4",
        "mnasnet_small",
        "proxylessnas_cpu",
        "mixnet_s",
        "ghostnet",
        "hardnet39ds",
        "vovnet27s",
        "darknet_ref",
        "menet108_8x1_g3",
        "condensenet74_c4_g4",
        "airnet50_1x64d_r16",
        "spnasnet",
        "lwopenpose2d_mobilenet_cmupan_coco",
        "lednet_cityscapes",
    ]:
        dense = name.startswith(("lwopenpose", "lednet"))
        features = None if dense else _pytorchcv_features
        yield Case(
            name,
            partial(get_model, name, pretrained=False),
            features,
            preprocess=LARGE if dense else "auto",
            refused=dense,
        )
    for name in (
        "resnet20_cifar10",
        "nin_cifar10",
        "wrn16_10_cifar10",
        "diaresnet20_cifar10",
        "densenet40_k12_cifar10",
        "shakeshakeresnet20_2x16d_cifar10",
    ):
        yield Case(
            name,
            partial(get_model, name, pretrained=False),
            _pytorchcv_features,
            preprocess=wm.Preprocessing.imagenet((32, 32)),
        )


def _pytorchcv_features(model: Any, x: torch.Tensor) -> torch.Tensor:
    names = [
        name
        for name, part in model.output.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d)
    ]
    return input_of(f"output.{names[-1]}".rstrip("."))(model, x)


def _geffnet() -> Iterator[Case]:
    """The input of `classifier`."""
    import geffnet

    for name in (
        "mobilenetv3_small_100",
        "mobilenetv2_100",
        "efficientnet_b0",
        "mnasnet_small",
        "mixnet_s",
        "fbnetc_100",
        "spnasnet_100",
        "efficientnet_cc_b0_4e",
    ):
        yield Case(
            name, partial(geffnet.create_model, name, pretrained=False), input_of("classifier")
        )


def _antialiased_cnns() -> Iterator[Case]:
    """The input of the last layer."""
    import antialiased_cnns as library

    heads = {
        "resnet18": "fc",
        "mobilenet_v2": "classifier.0",
        "densenet121": "classifier",
        "vgg11": "classifier.6",
        "alexnet": "classifier.6",
    }
    for name, head in heads.items():
        yield Case(name, partial(getattr(library, name), pretrained=False), input_of(head))


def _resnest() -> Iterator[Case]:
    """The input of `fc`."""
    from resnest import torch as library

    yield Case("resnest50_fast_1s1x64d", library.resnest50_fast_1s1x64d, input_of("fc"))


def _densenet_pytorch() -> Iterator[Case]:
    """The input of the last layer."""
    from densenet_pytorch import DenseNet

    yield Case("densenet121", partial(DenseNet.from_name, "densenet121"), last_linear)


def _facenet_pytorch() -> Iterator[Case]:
    """The input of `logits`; its embeddings."""
    from facenet_pytorch import InceptionResnetV1

    yield Case(
        "InceptionResnetV1, classes",
        partial(InceptionResnetV1, classify=True, num_classes=9),
        input_of("logits"),
    )
    yield Case(
        "InceptionResnetV1, embeddings",
        InceptionResnetV1,
        itself,
        None,
        outputs="features",
    )


def _ofa() -> Iterator[Case]:
    """The input of the last layer."""
    from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3

    build = partial(
        OFAMobileNetV3, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4]
    )
    yield Case("OFAMobileNetV3", build, last_linear)


def _mmpretrain() -> Iterator[Case]:
    """Its `extract_feat` and `head.pre_logits`."""
    import mmpretrain

    for name in ("resnet18_8xb32_in1k", "mobilenet-v2_8xb32_in1k", "deit-tiny_4xb256_in1k"):
        yield Case(
            name,
            partial(mmpretrain.get_model, name, pretrained=False),
            lambda m, x: m.head.pre_logits(m.extract_feat(x)),
        )


def _classy_vision() -> Iterator[Case]:
    """Its output: a trunk without a head."""
    from classy_vision.models import ResNeXt

    yield Case("ResNeXt", partial(ResNeXt, num_blocks=[1, 1, 1, 1]), itself, None)


def _catalyst() -> Iterator[Case]:
    """What goes into its ArcFace head."""
    from catalyst.contrib.layers import ArcFace

    class Faces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )
            self.head = ArcFace(16, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.net(x))

    yield Case("ArcFace", Faces, lambda m, x: m.net(x))


LIBRARIES = {
    "efficientnet_pytorch": _efficientnet_pytorch,
    "pretrainedmodels": _pretrainedmodels,
    "pytorchcv": _pytorchcv,
    "geffnet": _geffnet,
    "antialiased_cnns": _antialiased_cnns,
    "resnest": _resnest,
    "densenet_pytorch": _densenet_pytorch,
    "facenet_pytorch": _facenet_pytorch,
    "ofa": _ofa,
    "mmpretrain": _mmpretrain,
    "classy_vision": _classy_vision,
    "catalyst": _catalyst,
}
