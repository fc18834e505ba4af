"""transformers: features by calling each architecture's parts, pixels by its image processor."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import transformers as tf
from torch import Tensor

from zoo.case import Case, Reading, input_of
from zoo.timm_models import trunk_transform

# Small networks of the same parts; what is not named is the library's default.
_VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
}
_STAGES = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "image_size": 64}
_LABELS = {"num_labels": 11}


def _first(part: str) -> Reading:
    return lambda m, x: getattr(m, part)(x).last_hidden_state[:, 0]


def _mean(part: str, skip: int = 0) -> Reading:
    return lambda m, x: getattr(m, part)(x).last_hidden_state[:, skip:].mean(1)


def _pooled(part: str) -> Reading:
    return lambda m, x: getattr(m, part)(x).pooler_output.flatten(1)


def _first_and_mean(part: str, skip: int) -> Reading:
    def read(m: Any, x: Tensor) -> Tensor:
        tokens = getattr(m, part)(x).last_hidden_state
        return torch.cat([tokens[:, 0], tokens[:, skip:].mean(1)], dim=1)

    return read


def _distilled(m: Any, x: Tensor) -> Tensor:
    return m.deit(x).last_hidden_state[:, :2].flatten(1)


def _poolformer(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.poolformer(x).last_hidden_state).mean([-2, -1])


def _swiftformer(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.swiftformer(x).last_hidden_state).flatten(2).mean(-1)


def _cvt(m: Any, x: Tensor) -> Tensor:
    return m.layernorm(m.cvt(x).cls_token_value).mean(1)


def _segformer(m: Any, x: Tensor) -> Tensor:
    return m.segformer(x).last_hidden_state.mean((2, 3))


def _levit(m: Any, x: Tensor) -> Tensor:
    """Return what reaches the linear layers: each classifier normalises before."""
    heads = [getattr(m, name, None) for name in ("classifier", "classifier_distill")]
    tokens = m.levit(x).last_hidden_state.mean(1)
    return torch.cat([head.batch_norm(tokens) for head in heads if head is not None], dim=1)


def _timm(m: Any, x: Tensor) -> Tensor:
    return m.timm_model.forward_head(m.timm_model.forward_features(x), pre_logits=True)


_PERCEIVER = {"num_latents": 8, "d_latents": 32, "num_blocks": 1, "num_self_attends_per_block": 1}
_PERCEIVER |= {"num_self_attention_heads": 2, "num_cross_attention_heads": 1, "image_size": 56}

CLASSIFIERS: dict[str, tuple[dict[str, Any], Reading]] = {
    "ViT": (_VIT, _first("vit")),
    "DeiT": (_VIT, _first("deit")),
    "Beit": (_VIT, _pooled("beit")),
    "Data2VecVision": (_VIT, _pooled("data2vec_vision")),
    "ViTMSN": (_VIT, _first("vit")),
    "IJepa": (_VIT, _mean("ijepa")),
    "Dinov2": (_VIT, _first_and_mean("dinov2", 1)),
    "Dinov2WithRegisters": (
        {**_VIT, "num_register_tokens": 4},
        _first_and_mean("dinov2_with_registers", 5),
    ),
    "Swin": ({**_STAGES, "window_size": 4}, _pooled("swin")),
    "Swinv2": ({**_STAGES, "window_size": 4}, _pooled("swinv2")),
    "DonutSwin": ({**_STAGES, "window_size": 4}, _pooled("donut")),
    "ConvNext": ({"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, _pooled("convnext")),
    "ConvNextV2": (
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        _pooled("convnextv2"),
    ),
    "ResNet": (
        {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        _pooled("resnet"),
    ),
    "RegNet": (
        {
            "embedding_size": 8,
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "groups_width": 8,
        },
        _pooled("regnet"),
    ),
    "Bit": (
        {"embedding_size": 32, "hidden_sizes": [128, 128, 128, 128], "depths": [1, 1, 1, 1]},
        _pooled("bit"),
    ),
    "HGNetV2": ({}, input_of("fc")),
    "PPLCNet": ({}, input_of("head")),
    "MobileNetV1": ({"depth_multiplier": 0.25}, _pooled("mobilenet_v1")),
    "MobileNetV2": ({"depth_multiplier": 0.35}, _pooled("mobilenet_v2")),
    "MobileViT": ({"image_size": 64}, _pooled("mobilevit")),
    "MobileViTV2": ({"image_size": 64, "width_multiplier": 0.5}, _pooled("mobilevitv2")),
    "EfficientNet": (
        {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
        _pooled("efficientnet"),
    ),
    "FocalNet": ({"embed_dim": 16, "depths": [1, 1], "image_size": 64}, _pooled("focalnet")),
    "PoolFormer": ({}, _poolformer),
    "Pvt": ({"image_size": 64, "depths": [1, 1, 1, 1]}, _first("pvt")),
    "PvtV2": (
        {"image_size": 64, "depths": [1, 1, 1, 1]},
        lambda m, x: m.pvt_v2(x).last_hidden_state.mean((2, 3)),
    ),
    "Levit": ({"depths": [1, 1, 1]}, _levit),
    "Cvt": ({}, _cvt),
    "SwiftFormer": ({"depths": [1, 1, 1, 1]}, _swiftformer),
    "Segformer": ({"depths": [1, 1, 1, 1]}, _segformer),
    "Hiera": (
        {
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 4, 8],
        },
        _pooled("hiera"),
    ),
    "TextNet": ({}, input_of("fc")),
    "PerceiverLearned": (
        _PERCEIVER | {"num_labels": 11},
        input_of("perceiver.decoder.decoder.final_layer"),
    ),
    "PerceiverFourier": (
        _PERCEIVER | {"d_model": 261, "image_size": 224, "num_labels": 11},
        input_of("perceiver.decoder.decoder.final_layer"),
    ),
    "PerceiverConvProcessing": (
        _PERCEIVER | {"d_model": 322, "image_size": 224},
        input_of("perceiver.decoder.decoder.final_layer"),
    ),
    "DeiTWithTeacher": (_VIT, _distilled),
    "LevitWithTeacher": ({"depths": [1, 1, 1]}, _levit),
}
# Around one encoder of pictures that has its own configuration.
TOWERS = {
    "CLIP": _mean("vision_model", 1),
    "MetaClip2": _mean("vision_model", 1),
    "Siglip": _mean("vision_model"),
}
ENCODERS: dict[str, tuple[dict[str, Any], str]] = {
    "CLIPVisionModel": (_VIT, "pooler_output"),
    "CLIPVisionModelWithProjection": (_VIT | {"projection_dim": 24}, "image_embeds"),
    "ChineseCLIPVisionModel": (_VIT, "pooler_output"),
    "MetaClip2VisionModel": (_VIT, "pooler_output"),
    "SiglipVisionModel": (_VIT, "pooler_output"),
    "BlipVisionModel": (_VIT, "pooler_output"),
    "Blip2VisionModel": (_VIT, "pooler_output"),
    "AltCLIPVisionModel": (_VIT, "pooler_output"),
    "Aimv2VisionModel": (_VIT, "pooler_output"),
    "GitVisionModel": (_VIT, "last_hidden_state"),
    "MLCDVisionModel": (_VIT, "pooler_output"),
    "OwlViTVisionModel": (_VIT, "pooler_output"),
    "XCLIPVisionModel": (_VIT, "pooler_output"),
    "ViTModel": (_VIT, "pooler_output"),
    "Dinov2Model": (_VIT, "pooler_output"),
    "DINOv3ViTModel": (_VIT, "pooler_output"),
    "ViTMAEModel": (_VIT | {"mask_ratio": 0.0}, "last_hidden_state"),
    "SwinModel": (_STAGES | {"window_size": 4}, "pooler_output"),
    "ConvNextModel": ({"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}, "pooler_output"),
    "ResNetModel": (
        {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4},
        "pooler_output",
    ),
}
REFUSED: dict[str, dict[str, Any]] = {
    "YolosForObjectDetection": _VIT | {"image_size": [64, 64]},
    "SegformerForSemanticSegmentation": {"depths": [1, 1, 1, 1]},
    "BeitForSemanticSegmentation": _VIT | {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "MobileNetV2ForSemanticSegmentation": {"depth_multiplier": 0.35},
    "GLPNForDepthEstimation": {"depths": [1, 1, 1, 1]},
    "DetrForObjectDetection": {"use_timm_backbone": False, "use_pretrained_backbone": False},
    "ImageGPTForImageClassification": {"n_embd": 32, "n_layer": 1, "n_head": 2},
    "CLIPModel": {},
    "SiglipModel": {},
    "Siglip2ForImageClassification": {},
}


def _build(kind: str, options: dict[str, Any], **labels: Any) -> Any:
    model = getattr(tf, kind)
    config = model.config_class(**options, **labels)
    return model(config)


def _around(name: str) -> Any:
    model = getattr(tf, f"{name}ForImageClassification")
    return model(model.config_class(vision_config=dict(_VIT), **_LABELS))


def _logits(model: Any, x: Tensor) -> Tensor:
    output = model(x)
    return output.logits if "logits" in output else output.last_hidden_state  # PP-LCNet's scores


def _field(name: str) -> Reading:
    return lambda model, x: getattr(model(x), name)


def _kind(name: str) -> str:
    for tail in ("Learned", "Fourier", "ConvProcessing", "WithTeacher"):
        if name.endswith(tail):
            return f"{name.removesuffix(tail)}ForImageClassification{tail}"
    return f"{name}ForImageClassification"


def cases() -> Iterator[Case]:
    """Each architecture's documented parts called by hand; its image processors; detectors,
    segmenters and models of text are refused.
    """
    for name, (options, features) in CLASSIFIERS.items():
        labels = {} if "num_labels" in options else _LABELS
        build = lambda n=name, o=options, k=labels: _build(_kind(n), o, **k)  # noqa: E731
        yield Case(_kind(name), build, features, _logits)
    for name, features in TOWERS.items():
        yield Case(f"{name}ForImageClassification", lambda n=name: _around(n), features, _logits)
    for name, (options, field) in ENCODERS.items():
        build = lambda n=name, o=options: _build(n, o)  # noqa: E731
        yield Case(name, build, _field(field), None)
    for name, options in REFUSED.items():
        yield Case(name, lambda n=name, o=options: _build(n, o), refused=True)
    yield Case("TimmWrapperForImageClassification", _timm_wrapper, _timm, _logits, trunk_transform)
    yield from _with_processors()


def _timm_wrapper() -> Any:
    return tf.TimmWrapperForImageClassification(
        tf.TimmWrapperConfig(architecture="resnet18", num_labels=11)
    )


# --- saved beside their image processors, as users load them -------------------------------------

PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTImageProcessor", {"size": {"height": 64, "width": 64}}),
    "DeiT": (
        "DeiTImageProcessor",
        {"size": {"height": 73, "width": 73}, "crop_size": {"height": 64, "width": 64}},
    ),
    "ConvNext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 96}}),
    "ResNet": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "MobileViT": (
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
    ),
    "EfficientNet": ("EfficientNetImageProcessor", {"size": {"height": 64, "width": 64}}),
    "Levit": ("LevitImageProcessor", {}),
    "PoolFormer": ("PoolFormerImageProcessor", {}),
    "Dinov2": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}},
    ),
    "MobileNetV1": ("MobileNetV1ImageProcessor", {}),
}


_FOLDER = tempfile.TemporaryDirectory()  # read again by the product, removed at exit


def _with_processors() -> Iterator[Case]:
    for name, (processor, options) in PROCESSORS.items():
        yield Case(
            f"{_kind(name)} with {processor}",
            partial(_saved, name, processor, options),
            CLASSIFIERS[name][1],
            _logits,
            partial(_processing, processor, options),
        )


def _saved(name: str, processor: str, options: dict[str, Any]) -> Any:
    folder = f"{_FOLDER.name}/{name}"
    _build(_kind(name), CLASSIFIERS[name][0], **_LABELS).save_pretrained(folder)
    getattr(tf, processor)(**options).save_pretrained(folder)
    return getattr(tf, _kind(name)).from_pretrained(folder)


def _processing(processor: str, options: dict[str, Any], _model: Any) -> Any:
    loaded = getattr(tf, processor)(**options)
    return lambda picture: loaded(picture, return_tensors="pt")["pixel_values"][0]


tf.utils.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()

LIBRARIES = {"transformers": cases}
