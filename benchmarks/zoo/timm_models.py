"""timm: features by ``forward_head(pre_logits=True)``, pixels by its evaluation transform."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm
from torch import Tensor

from zoo.case import Case

# One or more of each family, the smallest that there is.
CLASSIFIERS = [
    "resnet10t",
    "resnet18",
    "resnet50d",
    "resnetv2_18",
    "seresnet18",
    "res2net50_48w_2s",
    "resnest14d",
    "skresnet18",
    "ecaresnet26t",
    "densenet121",
    "dla34",
    "dpn48b",
    "vgg11",
    "vgg11_bn",
    "xception41",
    "inception_v3",
    "inception_resnet_v2",
    "inception_v4",
    "nasnetalarge",
    "pnasnet5large",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_050",
    "lcnet_050",
    "hardcorenas_a",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "mixnet_s",
    "fbnetc_100",
    "mnasnet_small",
    "spnasnet_100",
    "tinynet_e",
    "ghostnet_050",
    "ghostnetv2_100",
    "regnetx_002",
    "regnety_002",
    "repvgg_a0",
    "mobileone_s0",
    "rexnet_100",
    "cspresnet50",
    "cspdarknet53",
    "darknet17",
    "vovnet39a",
    "ese_vovnet19b_dw",
    "selecsls42",
    "hrnet_w18_small",
    "dm_nfnet_f0",
    "nf_resnet26",
    "gernet_s",
    "botnet26t_256",
    "halonet26t",
    "lambda_resnet26t",
    "sehalonet33ts",
    "convnext_atto",
    "convnextv2_atto",
    "convnext_zepto_rms",
    "inception_next_atto",
    "convmixer_768_32",
    "vit_tiny_patch16_224",
    "vit_small_patch32_224",
    "vit_small_r26_s32_224",
    "vit_relpos_small_patch16_224",
    "vit_srelpos_small_patch16_224",
    "vit_base_patch32_clip_224",
    "vit_pwee_patch16_reg1_gap_256",
    "flexivit_small",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "beit_base_patch16_224",
    "beitv2_base_patch16_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "crossvit_tiny_240",
    "convit_tiny",
    "tnt_s_legacy_patch16_224",
    "volo_d1_224",
    "visformer_tiny",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_ns_224",
    "swinv2_tiny_window8_256",
    "swin_s3_tiny_224",
    "twins_pcpvt_small",
    "twins_svt_small",
    "pvt_v2_b0",
    "pit_ti_224",
    "pit_ti_distilled_224",
    "levit_128s",
    "levit_conv_128s",
    "levit_384_s8",
    "coat_tiny",
    "coatnet_nano_rw_224",
    "maxvit_pico_rw_256",
    "coat_lite_tiny",
    "gcvit_xxtiny",
    "davit_tiny",
    "focalnet_tiny_srf",
    "hiera_tiny_224",
    "nest_tiny",
    "poolformer_s12",
    "poolformerv2_s12",
    "caformer_s18",
    "convformer_s18",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "fastvit_t8",
    "fastvit_mci0",
    "tiny_vit_5m_224",
    "efficientvit_b0",
    "efficientvit_m0",
    "repvit_m0_9",
    "repghostnet_050",
    "starnet_s1",
    "mambaout_femto",
    "rdnet_tiny",
    "shvit_s1",
    "swiftformer_xs",
    "sequencer2d_s",
    "mixer_s32_224",
    "gmixer_12_224",
    "resmlp_12_224",
    "gmlp_ti16_224",
    "csatv2",
    "nextvit_small",
    "hgnet_tiny",
    "hgnetv2_b0",
    "naflexvit_base_patch16_gap",
    "test_vit",
    "test_convnext",
    "test_byobnet",
    "test_efficientnet",
    "test_mambaout",
    "test_nfnet",
    "test_resnet",
    "test_vit4",
]
ENCODERS = ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"]
ENCODERS += ["mobilenetv3_small_050", "deit_tiny_distilled_patch16_224", "pvt_v2_b0"]
ENCODERS += ["eva02_tiny_patch14_224"]  # of which timm publishes no head


def pre_logits(model: Any, x: Tensor) -> Tensor:
    read = model.forward_head(model.forward_features(x), pre_logits=True)
    head = getattr(model, "head", None)
    if hasattr(head, "bn") and any(part is model.get_classifier() for part in head.children()):
        read = head.bn(read)  # a part of the head that is none of what it calls its classifier
    return read.mean(1) if isinstance(read, tuple) else read


def transform(model: Any, **changes: Any) -> Any:
    config = timm.data.resolve_model_data_config(model) | changes
    return timm.data.create_transform(**config, is_training=False)


def trunk_transform(model: Any) -> Any:
    """Return the transform of the one model of timm that another library wraps."""
    inside = (part for part in model.modules() if getattr(part, "pretrained_cfg", None))
    return transform(next(inside))


def cases() -> Iterator[Case]:
    """Its `forward_head(pre_logits=True)`; its evaluation transform."""
    for name in CLASSIFIERS:
        yield Case(name, lambda n=name: timm.create_model(n), pre_logits, transform=transform)
    for name in ENCODERS:
        build = lambda n=name: timm.create_model(n, num_classes=0)  # noqa: E731
        encode = lambda model, x: model(x)  # noqa: E731
        yield Case(f"{name}, no head", build, encode, None, transform)
    yield Case(
        "resnet18, 1 channel",
        lambda: timm.create_model("resnet18", in_chans=1),
        pre_logits,
    )
    yield Case("resnet18, 6 channels", lambda: timm.create_model("resnet18", in_chans=6))
    yield Case(
        "resnet18, 6 channels, preprocess=",
        lambda: timm.create_model("resnet18", in_chans=6),
        pre_logits,
        preprocess=lambda batch: batch.repeat(1, 2, 1, 1),
    )
    yield Case(
        "vit_tiny_patch16_224 at 96 px",
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=96),
        pre_logits,
        transform=lambda model: transform(model, input_size=(3, 96, 96)),
    )
    yield Case(
        "resnet18, features_only",
        lambda: timm.create_model("resnet18", features_only=True),
        lambda model, x: model(x)[-1].mean((2, 3)),
        None,
        transform,
    )
    yield Case(
        "convnext_atto in double precision, 7 classes",
        lambda: timm.create_model("convnext_atto", num_classes=7).double(),
        pre_logits,
        transform=transform,
    )


LIBRARIES = {"timm": cases}
