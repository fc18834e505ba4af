"""Transformers and mixers: features are the input of the layer that each makes last."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import pytest_watermark_guard as wm
from zoo.case import Case, input_of, itself, last_linear

SMALL = wm.Preprocessing.imagenet((64, 64))


def _pytorch_pretrained_vit() -> Iterator[Case]:
    """The input of `fc`."""
    from pytorch_pretrained_vit import ViT

    yield Case("B_32 at 64 px", partial(ViT, "B_32", image_size=64, num_classes=7), input_of("fc"))


def _vit_pytorch() -> Iterator[Case]:
    """The input of the last layer."""
    import importlib

    base = {
        "image_size": 64,
        "patch_size": 16,
        "num_classes": 7,
        "dim": 48,
        "heads": 4,
        "mlp_dim": 96,
    }
    depth = {**base, "depth": 2}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "ViT": ("vit", depth),
        "ViT, mean": ("vit.ViT", {**depth, "pool": "mean"}),
        "SimpleViT": ("simple_vit", depth),
        "SimpleViT with registers": ("simple_vit_with_register_tokens.SimpleViT", depth),
        "DeepViT": ("deepvit", depth),
        "CaiT": ("cait", {**depth, "cls_depth": 1}),
        "parallel ViT": ("parallel_vit.ViT", depth),
        "ViT for small data": ("vit_for_small_dataset.ViT", depth),
        "ViT with patch merger": ("vit_with_patch_merger.ViT", {**depth, "patch_merge_layer": 1}),
        "PiT": ("pit", {**base, "depth": (1, 1)}),
        "LeViT": (
            "levit",
            {
                "image_size": 64,
                "num_classes": 7,
                "dim": (32, 48, 64),
                "depth": 1,
                "heads": (2, 3, 4),
                "mlp_mult": 2,
            },
        ),
        "T2TViT": (
            "t2t.T2TViT",
            {
                "image_size": 64,
                "num_classes": 7,
                "dim": 48,
                "depth": 1,
                "heads": 4,
                "mlp_dim": 96,
                "t2t_layers": ((7, 4), (3, 2)),
            },
        ),
        "CCT": (
            "cct.CCT",
            {
                "img_size": (64, 64),
                "embedding_dim": 48,
                "num_layers": 2,
                "num_heads": 4,
                "mlp_ratio": 2,
                "num_classes": 7,
            },
        ),
        "CvT": (
            "cvt.CvT",
            {
                "num_classes": 7,
                "s1_emb_dim": 16,
                "s2_emb_dim": 32,
                "s3_emb_dim": 48,
                "s3_depth": 1,
                "s2_heads": 2,
                "s3_heads": 2,
            },
        ),
        "NesT": (
            "nest.NesT",
            {
                "image_size": 64,
                "patch_size": 4,
                "dim": 24,
                "heads": 2,
                "num_hierarchies": 3,
                "block_repeats": (1, 1, 1),
                "num_classes": 7,
            },
        ),
        "TwinsSVT": ("twins_svt.TwinsSVT", {"num_classes": 7}),
        "RegionViT": (
            "regionvit.RegionViT",
            {"dim": (16, 32, 48, 64), "depth": (1, 1, 1, 1), "num_classes": 7},
        ),
        "ScalableViT": (
            "scalable_vit.ScalableViT",
            {
                "num_classes": 7,
                "dim": 16,
                "heads": (1, 1, 2, 2),
                "depth": (1, 1, 1, 1),
                "ssa_dim_key": (8, 8, 8, 8),
                "reduction_factor": (4, 2, 2, 1),
                "window_size": (4, 2, None, None),
            },
        ),
        "SepViT": (
            "sep_vit.SepViT",
            {
                "num_classes": 7,
                "dim": 16,
                "dim_head": 16,
                "heads": (1, 1, 2, 2),
                "depth": (1, 1, 1, 1),
                "window_size": 2,
            },
        ),
        "MaxViT": (
            "max_vit.MaxViT",
            {
                "num_classes": 7,
                "dim_conv_stem": 16,
                "dim": 16,
                "dim_head": 16,
                "depth": (1, 1),
                "window_size": 4,
            },
        ),
        "MobileViT": (
            "mobile_vit.MobileViT",
            {
                "image_size": (64, 64),
                "dims": [16, 24, 32],
                "channels": [8, 8, 16, 16, 24, 24, 32, 32, 32, 32, 48],
                "num_classes": 7,
            },
        ),
        "CrossViT": (
            "cross_vit.CrossViT",
            {"image_size": 48, "num_classes": 7, "sm_dim": 32, "lg_dim": 48},
        ),
        "XCiT": ("xcit.XCiT", {**depth, "cls_depth": 1}),
        "normalized ViT": ("normalized_vit.nViT", depth),
        "ViT with learnable memory": ("learnable_memory_vit.ViT", depth),
    }
    for name, (path, options) in kinds.items():
        module, _, kind = path.partition(".")

        def build(
            module: str = module, kind: str = kind, name: str = name, o: Any = options
        ) -> Any:
            return getattr(importlib.import_module(f"vit_pytorch.{module}"), kind or name)(**o)

        if name == "CrossViT":
            yield Case(name, build, _cross_vit, preprocess=wm.Preprocessing.imagenet((48, 48)))
            continue
        large = name in ("TwinsSVT", "RegionViT", "SepViT")
        yield Case(name, build, last_linear, preprocess="auto" if large else SMALL)
    # Its head is a norm: it returns embeddings, whatever number of classes it is given.
    yield Case(
        "SimpleViT with qk norm",
        lambda: importlib.import_module("vit_pytorch.simple_vit_with_qk_norm").SimpleViT(**depth),
        itself,
        None,
        preprocess=SMALL,
    )
    yield Case("ViT at its own size", partial(_vit_at, 48), last_linear)


def _vit_at(size: int) -> nn.Module:
    from vit_pytorch import ViT

    return ViT(image_size=size, patch_size=16, num_classes=7, dim=48, depth=1, heads=4, mlp_dim=96)


def _cross_vit(model: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the inputs of two heads whose logits are added, the last first."""
    small, large = (input_of(f"{side}_mlp_head.1")(model, x) for side in ("sm", "lg"))
    return torch.cat([large, small], dim=1)


def _x_transformers() -> Iterator[Case]:
    """The input of the last layer."""
    from x_transformers import Encoder, ViTransformerWrapper

    def build(**options: Any) -> Any:
        layers = Encoder(dim=48, depth=2, heads=4, **options)
        return ViTransformerWrapper(image_size=64, patch_size=16, num_classes=7, attn_layers=layers)

    for options in ({}, {"use_rmsnorm": True, "ff_glu": True}, {"rel_pos_bias": True}):
        name = ", ".join(options) or "plain"
        yield Case(name, partial(build, **options), last_linear, preprocess=SMALL)


def _mixers() -> Iterator[Case]:
    """The input of the last layer."""
    from mlp_mixer_pytorch import MLPMixer

    build = partial(
        MLPMixer, image_size=64, channels=3, patch_size=16, dim=48, depth=2, num_classes=7
    )
    yield Case("MLPMixer", build, last_linear, preprocess=SMALL)


def _res_mlp() -> Iterator[Case]:
    """The input of the last layer."""
    from res_mlp_pytorch import ResMLP

    build = partial(ResMLP, image_size=64, patch_size=16, dim=48, depth=2, num_classes=7)
    yield Case("ResMLP", build, last_linear, preprocess=SMALL)


def _g_mlp() -> Iterator[Case]:
    """The input of the last layer."""
    from g_mlp_pytorch import gMLPVision

    build = partial(gMLPVision, image_size=64, patch_size=16, num_classes=7, dim=48, depth=2)
    yield Case("gMLPVision", build, last_linear, preprocess=SMALL)


def _perceiver_pytorch() -> Iterator[Case]:
    """The input of the last layer."""
    from perceiver_pytorch import Perceiver

    build = partial(
        Perceiver,
        num_freq_bands=2,
        depth=1,
        max_freq=4.0,
        num_latents=8,
        latent_dim=32,
        cross_dim_head=8,
        latent_dim_head=8,
        num_classes=7,
    )
    last = lambda batch: nn.functional.interpolate(batch, 32).permute(0, 2, 3, 1)  # noqa: E731
    yield Case("Perceiver", build, last_linear)
    yield Case("Perceiver, preprocess=", build, last_linear, preprocess=last)


def _dinov2() -> Iterator[Case]:
    """Its output: an encoder."""
    from dinov2.models.vision_transformer import DinoVisionTransformer

    build = partial(
        DinoVisionTransformer,
        img_size=64,
        patch_size=16,
        embed_dim=48,
        depth=2,
        num_heads=4,
        init_values=1.0,
    )
    yield Case("DinoVisionTransformer", build, itself, None)


LIBRARIES = {
    "pytorch_pretrained_vit": _pytorch_pretrained_vit,
    "vit_pytorch": _vit_pytorch,
    "x_transformers": _x_transformers,
    "mlp_mixer_pytorch": _mixers,
    "res_mlp_pytorch": _res_mlp,
    "g_mlp_pytorch": _g_mlp,
    "perceiver_pytorch": _perceiver_pytorch,
    "dinov2": _dinov2,
}
