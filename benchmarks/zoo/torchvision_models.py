"""torchvision: features are the input of the last layer, pixels the presets of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torchvision import models

from zoo.case import Case, input_of

HEADS = {
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "efficientnet_v2_s": "classifier.1",
    "googlenet": "fc",
    "inception_v3": "fc",
    "maxvit_t": "classifier.5",
    "mnasnet0_5": "classifier.1",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "mobilenet_v3_large": "classifier.3",
    "regnet_x_400mf": "fc",
    "regnet_y_400mf": "fc",
    "resnet18": "fc",
    "resnet50": "fc",
    "resnext50_32x4d": "fc",
    "wide_resnet50_2": "fc",
    "shufflenet_v2_x0_5": "fc",
    "squeezenet1_0": "classifier.1",
    "squeezenet1_1": "classifier.1",
    "swin_t": "head",
    "swin_v2_t": "head",
    "vgg11": "classifier.6",
    "vgg11_bn": "classifier.6",
    "vit_b_32": "heads.head",
}
SEGMENTERS = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
DETECTORS = (
    "ssdlite320_mobilenet_v3_large",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "retinanet_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
)


def transform(name: str) -> Any:
    return lambda model: models.get_model_weights(name).DEFAULT.transforms()


def cases() -> Iterator[Case]:
    """The input of the last layer; the presets of its weights; detectors, segmenters, video are
    refused.
    """
    for name, head in HEADS.items():
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        build = lambda n=name, o=options: models.get_model(n, weights=None, **o)  # noqa: E731
        yield Case(name, build, input_of(head), transform=transform(name))
    for name in SEGMENTERS + DETECTORS:
        options = {"weights": None, "weights_backbone": None}
        build = lambda n=name, o=options: models.get_model(n, **o)  # noqa: E731
        yield Case(name, build, refused=True)
    yield Case("resnet18, fc = Identity", _headless, lambda m, x: m(x), None, transform("resnet18"))
    for name in ("resnet18", "mobilenet_v3_large", "shufflenet_v2_x0_5"):
        yield Case(
            f"quantised {name}",
            lambda n=name: _quantised(n),
            _quantised_features(name),
            transform=transform(name),
        )
    for name in ("r3d_18", "mc3_18"):
        yield Case(name, lambda n=name: models.get_model(n, weights=None), refused=True)


def _headless() -> torch.nn.Module:
    model = models.resnet18(weights=None)
    model.fc = torch.nn.Identity()
    return model


def _quantised(name: str) -> torch.nn.Module:
    torch.backends.quantized.engine = "fbgemm"
    model = models.get_model(f"quantized_{name}", weights=None, quantize=False).eval()
    ao = torch.ao.quantization
    model.fuse_model()
    model.qconfig = ao.get_default_qconfig("fbgemm")
    ao.prepare(model, inplace=True)
    model(torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    return ao.convert(model)


def _quantised_features(name: str) -> Any:
    path = {"mobilenet_v3_large": "classifier.3"}.get(name, "fc")

    def read(model: Any, x: Tensor) -> Tensor:
        return input_of(path)(model, x).dequantize()

    return read


LIBRARIES = {"torchvision": cases}
