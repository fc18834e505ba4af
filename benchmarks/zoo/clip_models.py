"""Encoders of pictures that were trained with texts, and classifiers made of them by prompts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.case import Case, itself


class ZeroShot(nn.Module):
    """Scores pictures by the cosine of their embeddings to those of prompts."""

    def __init__(self, clip: Any, width: int) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("prompts", nn.functional.normalize(torch.randn(width, 9), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        embedded = nn.functional.normalize(self.clip.encode_image(x), dim=-1)
        return 100.0 * embedded @ self.prompts


_FOLDER = tempfile.TemporaryDirectory()


def _open_clip() -> Iterator[Case]:
    """Its `encode_image`, of towers, whole models and zero-shot heads; its `image_transform_v2`."""
    import open_clip

    plain = {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 32, "layers": 2}
    trunk = {"image_size": 64, "timm_proj": "linear"}
    towers = {
        "vit": plain,
        "vit-attentional-pool": {**plain, "attentional_pool": True, "attn_pooler_heads": 4},
        "vit-mean-of-tokens": {**plain, "pool_type": "avg"},
        "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
        "timm-convnext": {**trunk, "timm_model_name": "convnext_atto", "timm_pool": "avg"},
        "timm-vit": {
            "image_size": 160,
            "timm_model_name": "test_vit",
            "timm_pool": "map",
            "timm_proj": "none",
        },
    }
    text = {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
    for name, vision in towers.items():
        width = 64 if vision.get("timm_proj") == "none" else 32
        config = {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}
        Path(_FOLDER.name, f"small-{name}.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(_FOLDER.name)

    def transform(model: Any) -> Any:
        tower = getattr(getattr(model, "clip", model), "visual", model)
        cfg = open_clip.transform.PreprocessCfg(**tower.preprocess_cfg)
        return open_clip.transform.image_transform_v2(cfg, is_train=False)

    for name in (*(f"small-{name}" for name in towers), "ViT-S-32-alt", "RN50"):
        width = 64 if name == "small-timm-vit" else 32
        build = partial(open_clip.create_model, name, pretrained=None)
        yield Case(f"{name}, tower", lambda b=build: b().visual, itself, None, transform)
        if not name.startswith("small"):
            continue
        yield Case(
            f"{name}, whole",
            build,
            lambda m, x: m.encode_image(x, normalize=True),
            None,
            transform,
        )
        yield Case(
            f"{name}, zero-shot classifier",
            lambda b=build, w=width: ZeroShot(b(), w),
            lambda m, x: m.clip.encode_image(x),
            transform=transform,
        )
    yield Case(
        "coca_ViT-B-32",
        partial(open_clip.create_model, "coca_ViT-B-32", pretrained=None),
        lambda m, x: m.encode_image(x, normalize=True),
        None,
        transform,
    )


def _clip() -> Iterator[Case]:
    """Its `encode_image`, of towers and zero-shot heads."""
    from clip.model import CLIP

    def build(layers: Any, width: int) -> Any:
        return CLIP(32, 64, layers, width, 16, 8, 99, 32, 2, 1).float()

    for name, layers, width in (("ViT", 2, 64), ("ResNet", (1, 1, 1, 1), 16)):
        made = lambda k=layers, w=width: build(k, w)  # noqa: E731
        yield Case(f"{name}, visual", lambda b=made: b().visual, itself, None)
        yield Case(f"{name}, whole", made, refused=True)
        yield Case(
            f"{name}, zero-shot classifier",
            lambda b=made: ZeroShot(b(), 32),
            lambda m, x: m.clip.encode_image(x),
        )


def _sentence_transformers() -> Iterator[Case]:
    """Refused: from dictionary to dictionary."""
    import transformers
    from sentence_transformers import SentenceTransformer

    class Pictures(nn.Module):
        """A module of a pipeline, from a dictionary to a dictionary."""

        def __init__(self) -> None:
            super().__init__()
            self.net = transformers.ViTModel(
                transformers.ViTConfig(
                    hidden_size=48,
                    num_hidden_layers=1,
                    num_attention_heads=4,
                    intermediate_size=96,
                    image_size=64,
                )
            )

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            pooled = self.net(features["pixel_values"]).pooler_output
            return {**features, "sentence_embedding": pooled}

    yield Case(
        "SentenceTransformer", lambda: SentenceTransformer(modules=[Pictures()]), refused=True
    )


LIBRARIES = {
    "open_clip": _open_clip,
    "clip": _clip,
    "sentence_transformers": _sentence_transformers,
}
