"""Other libraries' preprocessing: what the model is fed is what the object itself gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as v1
from torchvision.transforms import v2

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import PreprocessingError

STEP = 1 / 255
TO_TENSOR = v1.ToTensor()
TO_FLOAT = v2.ToDtype(torch.float32, scale=True)
FIT = [v1.Resize(40), v1.CenterCrop(32)]


def normalize(mean: float, std: float) -> v2.Normalize:
    return v2.Normalize([mean] * 3, [std] * 3)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    """Make an image like a photo: in noise, every pixel would be rounded in its own way."""
    return noise(width // 12, height // 12).resize((width, height), Image.Resampling.BICUBIC)


IMAGES = [noise(90, 70), noise(61, 130), noise(32, 32)]


class Colours(nn.Module):
    """A model that takes any number of channels and sizes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def fed(model: nn.Module, preprocess: Any = "auto", images: Any = None) -> Tensor:
    images = IMAGES if images is None else images
    batches = wm.probing_batches(
        images, ("latin",), model=model, preprocess=preprocess, batch_size=len(images)
    )
    (batch,) = batches
    assert all((marked - batch.images).abs().amax() > 0 for marked in batch.marked.values())
    return batch.images


def preprocessing_of(model: nn.Module, preprocess: Any = "auto") -> wm.Preprocessing:
    return wm.probing_batches(IMAGES, ("latin",), model=model, preprocess=preprocess).preprocessing


PIPELINES: dict[str, tuple[list[Any], float]] = {
    "a conversion after the scaling": (
        [*FIT, TO_TENSOR, v2.ToDtype(torch.float32), normalize(0.5, 0.5)],
        0,
    ),
    "values up to 255": ([*FIT, v2.ToImage(), v2.ToDtype(torch.float32)], 0),
    "two Normalize": (
        [*FIT, v2.ToImage(), TO_FLOAT, normalize(0.5, 0.5), normalize(0.1, 2.0)],
        0,
    ),
    "two Resize": ([v2.Resize(32), v2.Resize((24, 24)), v2.ToImage(), TO_FLOAT], 0),
    "a Resize after the crop": (
        [v2.CenterCrop(60), v2.Resize(32), TO_TENSOR, normalize(0.5, 0.2)],
        0,
    ),
    "no antialiasing": ([v2.ToImage(), v2.Resize((24, 24), antialias=False), TO_FLOAT], 0),
    "nested": (
        [v2.Compose(FIT), v1.Compose([v1.Compose([TO_TENSOR]), normalize(0.5, 0.2)])],
        0,
    ),
    "a lambda on PIL images": (
        [v1.Lambda(lambda image: image.transpose(Image.Transpose.ROTATE_180)), *FIT, TO_TENSOR],
        0,
    ),
    "another filter": (
        [v1.Lambda(lambda i: i.resize((32, 32), Image.Resampling.BOX)), TO_TENSOR],
        0,
    ),
    "arrays": (
        [
            v1.Lambda(lambda i: np.array(i.resize((32, 32)))),
            v1.Lambda(lambda a: torch.from_numpy(a).permute(2, 0, 1) / 127.5 - 1),
        ],
        0,
    ),
    "a batch of one": ([*FIT, TO_TENSOR, v1.Lambda(lambda t: t[None])], 0),
    "gray in three channels": ([*FIT, v1.Grayscale(3), TO_TENSOR], 0),
    "gray in one channel": ([*FIT, v1.Grayscale(1), TO_TENSOR, v1.Normalize(0.5, 0.2)], 0),
    "BGR up to 255": ([*FIT, TO_TENSOR, v1.Lambda(lambda t: t.flip(0) * 255)], 0),
    "a gamma": ([*FIT, TO_TENSOR, v1.Lambda(lambda t: t**2.2)], 0),
    "each image by its own mean": ([*FIT, TO_TENSOR, v1.Lambda(lambda t: t - t.mean())], 0),
    "padding": ([v1.Pad(10, fill=255), v1.Resize((40, 40)), TO_TENSOR], 0),
    # Floats are resized: the images that marks are printed on have 8 bits.
    "floats are resized": (
        [TO_TENSOR, v2.Resize(40), v2.CenterCrop(32), normalize(0.5, 0.2)],
        0.51 * STEP / 0.2,
    ),
    "normalised, then resized": (
        [TO_TENSOR, normalize(0.5, 0.2), v2.Resize((32, 32))],
        1.51 * STEP / 0.2,
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_compose_feeds_what_it_gives(name: str) -> None:
    steps, tolerance = PIPELINES[name]
    compose = v2.Compose(steps)
    given = [torch.as_tensor(compose(image)) for image in IMAGES]
    expected = torch.stack([each.float().reshape(-1, *each.shape[-2:]) for each in given])
    ours = fed(Colours(), compose)
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance + 2e-5 * expected.abs().max())


def test_what_was_chosen_is_said() -> None:
    usual = v1.Compose([*FIT, TO_TENSOR, normalize(0.5, 0.2)])
    read = preprocessing_of(Colours(), usual)
    assert read.source == "your Compose, translated and checked on 9 images"
    assert (read.size, read.resize, read.mean, read.std) == ((32, 32), 40, (0.5,) * 3, (0.2,) * 3)
    assert (read.normalize, read.geometry) == (None, None)
    odd = v1.Compose([*FIT, TO_TENSOR, v1.Lambda(lambda t: t**2.2)])
    assert preprocessing_of(Colours(), odd).source == "your Compose, as it is"
    report = wm.probe(Colours(), IMAGES, ("latin",), layers=("features",), preprocess=odd)
    assert report.preprocessing == "your Compose, as it is"


def test_images_of_the_input_size_go_through_a_given_transform_too() -> None:
    compose = v1.Compose([*FIT, TO_TENSOR])
    image = noise(32, 32)
    torch.testing.assert_close(fed(Colours(), compose, [image])[0], compose(image))


def test_odd_crops_are_rounded_as_theirs_are() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")
    size = {"height": 64, "width": 64}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 72}, crop_size=size)
    compose = v1.Compose([v1.Resize(72), v1.CenterCrop(64), TO_TENSOR])
    for width in range(180, 188):
        image = smooth(width * 12, 96 * 12).resize((width, 96))
        theirs = processor(image, return_tensors="pt")["pixel_values"]
        assert (fed(Colours(), processor, [image]) - theirs).abs().mean() < 0.02
        torch.testing.assert_close(fed(Colours(), compose, [image])[0], compose(image))


def test_a_report_shows_no_images_that_it_could_not_draw_again() -> None:
    mine = v1.Compose([v1.Lambda(lambda i: i.resize((32, 32), Image.Resampling.BOX)), TO_TENSOR])
    options: dict[str, Any] = {"layers": ("features",), "examples": True, "cache": False}
    report = wm.probe(Colours(), IMAGES, ("latin",), preprocess=mine, **options)
    assert report.examples is None
    assert any("no example images" in note for note in report.notes)
    usual = v1.Compose([*FIT, TO_TENSOR])
    report = wm.probe(Colours(), IMAGES, ("latin",), preprocess=usual, **options)
    assert report.examples is not None
    assert report.examples.geometry["keep_exact_size"] is False


def test_nothing_of_a_trial_shows_in_the_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with pytest.raises(PreprocessingError, match="is random"):
        fed(Colours(), v2.Compose([*FIT, v2.ColorJitter(0.5), TO_TENSOR]))
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


def test_a_preset_of_torchvision_given_to_a_probe() -> None:
    preset = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    images = [noise(300, 250), noise(224, 224)]
    expected = torch.stack([preset(image) for image in images])
    torch.testing.assert_close(fed(Colours(), preset, images), expected, rtol=0, atol=1e-5)


PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("ViTImageProcessor", {}),
    ("CLIPImageProcessor", {}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}}),
    ("PoolFormerImageProcessor", {}),  # crops by a percentage
    ("EfficientNetImageProcessor", {"size": {"height": 64, "width": 64}}),  # scales twice
    ("MobileViTImageProcessor", {}),  # flips the channels
]


@pytest.mark.parametrize(("name", "settings"), PROCESSORS)
def test_an_image_processor_is_a_preprocess(name: str, settings: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")
    processor = getattr(transformers, name)(**settings)
    images = [smooth(300, 220), smooth(200, 280)]
    expected = processor(images, return_tensors="pt")["pixel_values"]
    ours = fed(Colours(), processor, images)
    step = (expected.amax() - expected.amin()) / 255
    assert ours.shape == expected.shape
    assert (ours - expected).abs().mean() < 0.3 * step
    assert (ours - expected).abs().amax() < 5 * step


def test_open_clips_transform() -> None:
    reason = "open_clip is no dependency of this package"
    transform = pytest.importorskip("open_clip", reason=reason).image_transform(64, is_train=False)
    images = [smooth(90, 70), smooth(61, 130)]
    expected = torch.stack([transform(image) for image in images])
    torch.testing.assert_close(fed(Colours(), transform, images), expected, rtol=0, atol=1e-5)


def test_ultralytics_transform() -> None:
    reason = "ultralytics is no dependency of this package"
    augment = pytest.importorskip("ultralytics.data.augment", reason=reason, exc_type=ImportError)
    transform = augment.classify_transforms(64)
    expected = torch.stack([transform(image) for image in IMAGES])
    torch.testing.assert_close(fed(Colours(), transform), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_timms_transform(mode: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    transform = timm.data.create_transform((3, 48, 48), crop_mode=mode, crop_pct=0.9)
    expected = torch.stack([transform(image) for image in IMAGES])
    torch.testing.assert_close(fed(Colours(), transform), expected, rtol=0, atol=1e-5)


def test_an_image_processor_that_makes_no_images() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")
    with pytest.raises(PreprocessingError, match="your Siglip2ImageProcessor"):
        fed(Colours(), transformers.Siglip2ImageProcessor())
