"""Libraries of a field or of a task: medicine, remote sensing, detection, segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pytest_watermark_guard as wm
from zoo.case import Case, input_of, itself, last_linear
from zoo.timm_models import trunk_transform
from zoo.torchvision_models import transform

SMALL = wm.Preprocessing.imagenet((64, 64))


def _monai() -> Iterator[Case]:
    """The input of the last layer; volumes, bags and segmenters are refused."""
    from monai.networks import nets

    flat = {"spatial_dims": 2, "in_channels": 3}
    yield Case(
        "DenseNet121",
        partial(nets.DenseNet121, out_channels=5, **flat),
        input_of("class_layers.out"),
    )
    yield Case(
        "DenseNet121, 1 channel",
        partial(nets.DenseNet121, spatial_dims=2, in_channels=1, out_channels=5),
        input_of("class_layers.out"),
    )
    yield Case(
        "DenseNet121, 4 channels, preprocess=",
        partial(nets.DenseNet121, spatial_dims=2, in_channels=4, out_channels=5),
        input_of("class_layers.out"),
        preprocess=lambda batch: torch.cat([batch, batch.mean(1, keepdim=True)], dim=1),
    )
    yield Case(
        "DenseNet121, volumes",
        partial(nets.DenseNet121, spatial_dims=3, in_channels=1, out_channels=5),
        refused=True,
    )
    yield Case(
        "EfficientNetBN",
        partial(nets.EfficientNetBN, "efficientnet-b0", False, True, 2, 3, 5),
        input_of("_fc"),
    )
    yield Case(
        "resnet18",
        partial(nets.resnet18, spatial_dims=2, n_input_channels=3, num_classes=5),
        input_of("fc"),
    )
    yield Case(
        "SEResNet50", partial(nets.SEResNet50, num_classes=5, **flat), input_of("last_linear")
    )
    yield Case(
        "TorchVisionFCModel",
        partial(nets.TorchVisionFCModel, "resnet18", num_classes=5),
        input_of("fc"),
    )
    yield Case(
        "TorchVisionFCModel, head of 1x1 filters",
        partial(
            nets.TorchVisionFCModel,
            "resnet18",
            num_classes=5,
            use_conv=True,
            pool=("avg", {"kernel_size": 7, "stride": 1}),
        ),
        input_of("fc"),
    )
    yield Case(
        "ViT",
        partial(
            nets.ViT,
            in_channels=3,
            img_size=(64, 64),
            patch_size=(16, 16),
            hidden_size=48,
            mlp_dim=96,
            num_layers=2,
            num_heads=4,
            classification=True,
            num_classes=5,
            spatial_dims=2,
        ),
        lambda m, x: input_of("classification_head.0")(m, x),
        lambda m, x: m(x)[0],
        preprocess=SMALL,
    )
    yield Case(
        "Classifier",
        partial(nets.Classifier, (3, 64, 64), 5, (8, 16), (2, 2)),
        last_linear,
        preprocess=SMALL,
    )
    yield Case("MILModel", partial(nets.MILModel, num_classes=5, pretrained=False), refused=True)
    plain = {"spatial_dims": 2, "in_channels": 3, "out_channels": 2}
    yield Case(
        "UNet", partial(nets.UNet, channels=(8, 16, 32), strides=(2, 2), **plain), refused=True
    )
    yield Case("BasicUNet", partial(nets.BasicUNet, features=(8,) * 6, **plain), refused=True)
    yield Case("SegResNet", partial(nets.SegResNet, init_filters=8, **plain), refused=True)


def _torchxrayvision() -> Iterator[Case]:
    """Its `features2`; its `normalize`, crop and resizer."""
    import torchxrayvision as library

    def readme(_model: Any) -> Any:
        """Return what its README does."""
        crop, resize = library.datasets.XRayCenterCrop(), library.datasets.XRayResizer(224)

        def apply(picture: Any) -> Tensor:
            gray = library.datasets.normalize(np.asarray(picture.convert("L")), 255)[None]
            return torch.from_numpy(resize(crop(gray))).float()

        return apply

    for name, options in (("DenseNet", {}), ("DenseNet, sigmoid", {"apply_sigmoid": True})):
        yield Case(
            name,
            partial(library.models.DenseNet, num_classes=18, **options),
            lambda m, x: m.features2(x),
            transform=readme,
        )


def _torchgeo() -> Iterator[Case]:
    """The input of the last layer; the trunk's transform; 13 bands, segmenters are refused."""
    from torchgeo import models, trainers

    yield Case("resnet18", models.resnet18, input_of("fc"), transform=trunk_transform)
    yield Case("resnet18, 13 bands", partial(models.resnet18, in_chans=13))
    yield Case(
        "vit_small_patch16_224",
        models.vit_small_patch16_224,
        input_of("head"),
        transform=trunk_transform,
    )
    yield Case("swin_v2_t", models.swin_v2_t, input_of("head"), transform=transform("swin_v2_t"))
    for name, options in (
        ("ClassificationTask", {"num_classes": 5}),
        ("RegressionTask", {"num_outputs": 1}),
    ):
        yield Case(
            name,
            partial(getattr(trainers, name), model="resnet18", in_channels=3, **options),
            input_of("model.fc"),
            transform=trunk_transform,
        )
    yield Case(
        "SemanticSegmentationTask",
        partial(
            trainers.SemanticSegmentationTask,
            model="unet",
            backbone="resnet18",
            in_channels=3,
            num_classes=3,
        ),
        refused=True,
    )
    yield Case("dofa_small_patch16_224", models.dofa_small_patch16_224, refused=True)
    yield Case("FCN", partial(models.FCN, in_channels=3, classes=3, num_filters=8), refused=True)


def _segmentation_models_pytorch() -> Iterator[Case]:
    """Segmenters are refused; the deepest map of its encoders."""
    import segmentation_models_pytorch as library

    plain = {"encoder_weights": None, "classes": 3}
    for kind in ("Unet", "FPN", "DeepLabV3Plus", "Linknet", "PSPNet"):
        yield Case(kind, partial(getattr(library, kind), "resnet18", **plain), refused=True)
    yield Case(
        "Unet with a head of labels",
        partial(library.Unet, "resnet18", aux_params={"classes": 4}, **plain),
        lambda m, x: m.encoder(x)[-1].mean((2, 3)),
        lambda m, x: m(x)[1],
    )
    yield Case(
        "encoder resnet18",
        partial(library.encoders.get_encoder, "resnet18", weights=None),
        lambda m, x: m(x)[-1].mean((2, 3)),
        None,
    )


def _ultralytics() -> Iterator[Case]:
    """The input of the last layer; its `classify_transforms`; detectors are refused."""
    from ultralytics import YOLO
    from ultralytics.data.augment import classify_transforms

    def network(name: str) -> Any:
        return YOLO(f"{name}.yaml", verbose=False).model

    for name in ("yolov8n-cls", "yolo11n-cls"):
        yield Case(
            name,
            partial(network, name),
            last_linear,
            lambda m, x: m(x)[0],
            lambda m: classify_transforms(224),
        )

    def carrying() -> Any:
        model = network("yolo11n-cls")
        model.transforms = classify_transforms(96)  # as its trainer leaves it
        return model

    yield Case(
        "yolo11n-cls with its transforms",
        carrying,
        last_linear,
        lambda m, x: m(x)[0],
        lambda m: m.transforms,
    )
    for name in ("yolov8n", "yolo11n", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb"):
        yield Case(name, partial(network, name), refused=True)
    yield Case("YOLO object", partial(YOLO, "yolo11n-cls.yaml", verbose=False), refused=True)


def _yolov5() -> Iterator[Case]:
    """The input of the last layer; detectors are refused."""
    from pathlib import Path

    import yolov5
    from yolov5.models.yolo import ClassificationModel, DetectionModel

    config = str(Path(yolov5.__file__).parent / "models" / "yolov5n.yaml")
    yield Case("yolov5n", partial(DetectionModel, config), refused=True)
    yield Case(
        "yolov5n, classes",
        lambda: ClassificationModel(model=DetectionModel(config), nc=7, cutoff=9),
        last_linear,
    )


def _rfdetr() -> Iterator[Case]:
    """Refused: boxes."""
    from rfdetr import RFDETRNano

    yield Case("RFDETRNano", partial(RFDETRNano, pretrain_weights=None), refused=True)


def _kornia() -> Iterator[Case]:
    """The input of the last layer; its `Normalize` inside of a model."""
    import kornia
    from torchvision.models import resnet18

    def normalising() -> nn.Module:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        return nn.Sequential(kornia.enhance.Normalize(mean, std), resnet18(weights=None))

    def unscaled(_model: Any) -> Any:
        from torchvision.transforms import v2

        return v2.Compose(
            [
                v2.Resize(256),
                v2.CenterCrop(224),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    yield Case("Normalize before resnet18", normalising, input_of("1.fc"), transform=unscaled)
    yield Case(
        "TinyViT",
        partial(
            kornia.models.tiny_vit.TinyViT,
            num_classes=7,
            embed_dims=[16, 32, 48, 64],
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 3, 4],
        ),
        last_linear,
    )
    yield Case(
        "DexiNed, edges", partial(kornia.models.dexined.DexiNed, pretrained=False), refused=True
    )


def _lightly() -> Iterator[Case]:
    """What goes into prototypes; the output of projection heads said to be encoders."""
    from lightly.models.modules import heads
    from torchvision.models import resnet18

    def trunk() -> nn.Module:
        net = resnet18(weights=None)
        net.fc = nn.Identity()
        return net

    made = {
        "SimCLRProjectionHead": partial(heads.SimCLRProjectionHead, 512, 64, 32),
        "BarlowTwinsProjectionHead": partial(heads.BarlowTwinsProjectionHead, 512, 64, 32),
        "DINOProjectionHead": partial(heads.DINOProjectionHead, 512, 64, 32, 40),
        "SwaVProjectionHead": partial(heads.SwaVProjectionHead, 512, 64, 32),
    }
    for name, head in made.items():
        yield Case(
            f"{name}, said to be an encoder",
            lambda h=head: nn.Sequential(trunk(), h()),
            itself,
            None,
            outputs="features",
        )
    yield Case(
        "SwaVPrototypes",
        lambda: nn.Sequential(trunk(), made["SwaVProjectionHead"](), heads.SwaVPrototypes(32, 40)),
        lambda m, x: m[1](m[0](x)),
    )
    yield Case(
        "SimCLRProjectionHead, auto",
        lambda: nn.Sequential(trunk(), made["SimCLRProjectionHead"]()),
        last_linear,
    )
    yield Case("trunk", trunk, itself, None)


def _pytorch_metric_learning() -> Iterator[Case]:
    """The embeddings whose `get_logits` are the output."""
    from pytorch_metric_learning import losses

    class Scored(nn.Module):
        """A trunk whose embeddings are compared with a loss's classes, as in its LogitGetter."""

        def __init__(self, loss: Any) -> None:
            super().__init__()
            self.trunk = nn.Sequential(
                nn.Conv2d(3, 16, 4, 4),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(16, 24),
            )
            self.loss = loss

        def forward(self, x: Tensor) -> Tensor:
            return self.loss.get_logits(self.trunk(x))

    for name in (
        "ArcFaceLoss",
        "CosFaceLoss",
        "NormalizedSoftmaxLoss",
        "SphereFaceLoss",
        "SubCenterArcFaceLoss",
    ):
        yield Case(
            name,
            lambda n=name: Scored(getattr(losses, n)(num_classes=7, embedding_size=24)),
            lambda m, x: m.trunk(x),
        )


LIBRARIES = {
    "monai": _monai,
    "torchxrayvision": _torchxrayvision,
    "torchgeo": _torchgeo,
    "segmentation_models_pytorch": _segmentation_models_pytorch,
    "ultralytics": _ultralytics,
    "yolov5": _yolov5,
    "rfdetr": _rfdetr,
    "kornia": _kornia,
    "lightly": _lightly,
    "pytorch_metric_learning": _pytorch_metric_learning,
}
