from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from pytest_watermark_guard.errors import PreprocessingError
from pytest_watermark_guard.models.loading.introspection import resolve_preprocessing
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing

PLAIN = nn.Linear(1, 1)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def prepared(preprocessing: Preprocessing, image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(preprocessing.fit(image).copy()).permute(2, 0, 1)
    return preprocessing.to_input(pixels[None])[0]


SIZES = [(500, 375), (333, 501), (257, 256), (40, 300), (640, 480), (1, 9)]


@pytest.mark.parametrize(
    "weights",
    [
        torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
        torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
        torchvision.models.Inception_V3_Weights.IMAGENET1K_V1,
        torchvision.models.EfficientNet_B1_Weights.IMAGENET1K_V1,
        torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1,
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_torchvision_presets_to_the_bit(weights: Any, size: tuple[int, int]) -> None:
    preset = weights.transforms()
    preprocessing = resolve_preprocessing(preset, PLAIN)
    image = picture(*size)
    torch.testing.assert_close(prepared(preprocessing, image), preset(image), rtol=0, atol=0)
    assert not preprocessing.assumed


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "compose",
    [
        transforms.Compose([
            transforms.Resize(72, InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        ]),
        transforms.Compose([transforms.Resize((48, 64)), transforms.ToTensor()]),
        transforms.Compose([transforms.CenterCrop((48, 64)), transforms.ToTensor()]),
        v2.Compose([
            v2.Resize(70), v2.CenterCrop(64), v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3),
        ]),
        v2.Compose([
            v2.Resize([70]), v2.CenterCrop([64]), v2.ToImage(),
            v2.ToDtype(torch.float32, scale=False), v2.Normalize([128.0] * 3, [64.0] * 3),
        ]),
    ],
)  # fmt: skip
def test_compose_is_read(compose: Any, size: tuple[int, int]) -> None:
    preprocessing = resolve_preprocessing(compose, PLAIN)
    image = picture(*size)
    expected = torch.as_tensor(compose(image))
    torch.testing.assert_close(prepared(preprocessing, image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("compose", "problem"),
    [
        (transforms.Compose([transforms.Resize(64), transforms.ToTensor()]), "add a CenterCrop"),
        (
            transforms.Compose([
                transforms.Resize(64), transforms.FiveCrop(32),
                transforms.Lambda(lambda c: torch.stack([v2.functional.to_image(x) for x in c])),
            ]),
            r"gives shape \[5, 3, 32, 32\]",
        ),
        (
            transforms.Compose([
                transforms.Resize((32, 32)), transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]),
            "is random",
        ),
        (
            # The crop keeps three quarters of what was resized after normalising.
            transforms.Compose([
                transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,)),
                transforms.Resize(64), transforms.CenterCrop(48),
            ]),
            "no mark can be printed in between: pass preprocess= a function",
        ),
        (transforms.Compose([transforms.Lambda(lambda image: 1 / 0)]), "ZeroDivisionError"),
        (
            transforms.Compose([
                transforms.Resize((32, 32)), transforms.ToTensor(),
                transforms.Lambda(lambda values: (values - values) / 0),
            ]),
            "not finite",
        ),
    ],
)  # fmt: skip
def test_compose_that_cannot_be_used(compose: Any, problem: str) -> None:
    with pytest.raises(PreprocessingError, match=problem):
        resolve_preprocessing(compose, PLAIN)


def test_an_image_of_the_input_size_is_untouched() -> None:
    image = picture(224, 224)
    fitted = Preprocessing.imagenet().fit(image)
    np.testing.assert_array_equal(fitted, np.asarray(image))
    assert fitted.dtype == np.uint8


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    image = picture(60, 50, mode)
    preprocessing = Preprocessing.imagenet((32, 48))
    fitted = preprocessing.fit(image)
    assert fitted.shape == (32, 48, 3)
    np.testing.assert_array_equal(fitted, preprocessing.fit(image.convert("RGB")))


def test_none_leaves_size_and_range() -> None:
    preprocessing = resolve_preprocessing("none", PLAIN)
    result = prepared(preprocessing, picture(31, 17))
    assert result.shape == (3, 17, 31)
    assert 0 <= result.min() < result.max() <= 1


def test_input_takes_bytes_and_floats_and_gives_the_dtype() -> None:
    preprocessing = Preprocessing.imagenet()
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    from_bytes = preprocessing.to_input(pixels)
    torch.testing.assert_close(from_bytes, preprocessing.to_input(pixels / 255), rtol=0, atol=0)
    assert preprocessing.to_input(pixels, torch.bfloat16).dtype == torch.bfloat16


def test_auto_prefers_what_the_spec_loaded() -> None:
    loaded = Preprocessing.imagenet((96, 96), source="weights")
    assert resolve_preprocessing("auto", PLAIN, loaded) is loaded


def test_auto_assumes_imagenet_and_says_so() -> None:
    preprocessing = resolve_preprocessing("auto", PLAIN)
    assert preprocessing.assumed
    assert (preprocessing.size, preprocessing.resize) == ((224, 224), 256)
    assert "assumed" in preprocessing.source
    assert not resolve_preprocessing("imagenet", PLAIN).assumed


@pytest.mark.parametrize(
    ("name", "size", "assumed"),
    [
        ("resnet18", 224, False),
        ("resnet50", 224, True),  # two sets of weights, of different resizing
        ("efficientnet_b0", 224, False),
        ("efficientnet_b3", 300, False),
        ("efficientnet_v2_s", 384, False),
        ("densenet121", 224, False),
        ("vit_b_32", 224, False),
        ("swin_v2_t", 256, False),
        ("maxvit_t", 224, False),
    ],
)
def test_auto_knows_torchvisions_classes(name: str, size: int, assumed: bool) -> None:
    with torch.device("meta") if name != "maxvit_t" else torch.device("cpu"):
        model = torchvision.models.get_model(name, weights=None)
    preprocessing = resolve_preprocessing("auto", model)
    assert preprocessing.size == (size, size)
    assert preprocessing.assumed == assumed
    assert "torchvision" in preprocessing.source


def test_auto_goes_by_the_family_when_the_head_was_replaced() -> None:
    with torch.device("meta"):
        model = torchvision.models.inception_v3(weights=None, num_classes=7, init_weights=False)
        vit = torchvision.models.vit_b_16(image_size=384, num_classes=7)
        small = torchvision.models.vit_b_16(image_size=64, num_classes=7)
    assert resolve_preprocessing("auto", model).size == (299, 299)
    assert resolve_preprocessing("auto", vit).size == (384, 384)
    odd = resolve_preprocessing("auto", small)
    assert odd.size == (64, 64)
    assert odd.assumed


def test_auto_reads_timms_configuration() -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    for name in ("vit_tiny_patch16_224", "resnet10t", "convnext_atto", "fastvit_t8"):
        model = timm.create_model(name, pretrained=False)
        config = timm.data.resolve_model_data_config(model)
        transform = timm.data.create_transform(**config, is_training=False)
        preprocessing = resolve_preprocessing("auto", model)
        image = picture(500, 375)
        torch.testing.assert_close(
            prepared(preprocessing, image), transform(image), rtol=1e-5, atol=1e-5
        )
        assert not preprocessing.assumed


PROCESSORS = [
    ("ViTImageProcessor", {}),
    ("BeitImageProcessor", {"do_center_crop": True, "size": {"height": 256, "width": 256}}),
    ("DeiTImageProcessor", {}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    ("ConvNextImageProcessor", {}),
    ("MobileNetV2ImageProcessor", {}),
    ("LevitImageProcessor", {}),
    ("ViTImageProcessor", {"do_normalize": False}),
    ("ViTImageProcessor", {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}),
]


@pytest.mark.parametrize(("name", "settings"), PROCESSORS)
def test_image_processors_of_transformers(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")
    from pytest_watermark_guard.models.loading.presets import from_hf_processor

    processor = getattr(transformers, name)(**settings)
    preprocessing = from_hf_processor(processor, source="test")
    image = picture(500, 375)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = prepared(preprocessing, image)
    # Their backend resizes tensors, and rounds some pixels by one step of 255.
    assert ours.shape == expected.shape
    step = 2.1 / 255 / min(preprocessing.std)
    torch.testing.assert_close(ours, expected, rtol=0, atol=step)
    assert (ours - expected).abs().mean() < step / 10


def test_auto_takes_the_size_from_a_transformers_configuration() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")
    config = transformers.ViTConfig(
        image_size=48, patch_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    preprocessing = resolve_preprocessing("auto", transformers.ViTForImageClassification(config))
    assert preprocessing.size == (48, 48)
    assert preprocessing.assumed


def test_a_function_of_the_batch() -> None:
    def to_grey(batch: Tensor) -> Tensor:
        return batch.mean(1, keepdim=True)

    preprocessing = resolve_preprocessing(to_grey, PLAIN)
    assert preprocessing.size == (224, 224)
    assert "to_grey" in preprocessing.source
    pixels = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    torch.testing.assert_close(preprocessing.to_input(pixels), torch.ones(2, 1, 4, 4))

    class Scale:
        size = (64, 96)

        def __call__(self, batch: Tensor) -> Tensor:
            return batch

    assert resolve_preprocessing(Scale(), PLAIN).size == (64, 96)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda batch: batch[0], "shape"),
        (lambda batch: None, "NoneType"),
        (lambda batch: batch @ batch[:, :1], "failed on a float32 batch"),
    ],
)
def test_functions_that_do_not_work(function: Any, said: str) -> None:
    preprocessing = resolve_preprocessing(function, PLAIN)
    with pytest.raises(PreprocessingError, match=said):
        preprocessing.to_input(torch.zeros(2, 3, 4, 5))


@pytest.mark.parametrize(
    "given",
    [
        {"mean": [0.5, 0.5, 0.5], "std": 0.25, "size": 64},
        ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (64, 64)),
        (0.5, 0.25, 64),
        [torch.full((3,), 0.5), np.full(3, 0.25), 64],
    ],
)
def test_mean_std_and_size(given: Any) -> None:
    preprocessing = resolve_preprocessing(given, PLAIN)
    assert preprocessing.size == (64, 64)
    assert preprocessing.resize == 64
    assert preprocessing.mean == (0.5,) * 3
    assert preprocessing.std == (0.25,) * 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("imagnet", '"auto", "imagenet", "none"'),
        (3, "is not understood"),
        ({"means": 0.5}, "unknown fields means"),
        ({"size": 0}, "not a height and width"),
        ({"size": "big"}, "is not understood"),
        ({"size": 64, "std": 0}, "positive standard deviations"),
        ({"size": 64, "mean": (0.5, 0.5)}, "as many values each"),
        ({"size": 64, "interpolation": "cubic"}, "nearest, bilinear, bicubic, lanczos"),
    ],
)
def test_what_is_not_understood(given: Any, said: str) -> None:
    with pytest.raises(PreprocessingError, match=said):
        resolve_preprocessing(given, PLAIN)
