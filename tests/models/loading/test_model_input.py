"""What the instance itself says, and does with its input, decides how it is fed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import PreprocessingError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,) * 3


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


IMAGES = [noise(90, 70), noise(61, 130), noise(80, 80)]


def fed(model: nn.Module | str, preprocess: Any = "auto") -> Tensor:
    batches = wm.probing_batches(IMAGES, ("latin",), model=model, preprocess=preprocess)
    return torch.cat([batch.images for batch in batches])


def preprocessing_of(model: nn.Module | str, preprocess: Any = "auto") -> wm.Preprocessing:
    return wm.probing_batches(IMAGES, ("latin",), model=model, preprocess=preprocess).preprocessing


def small_net(channels: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


class Wrapper(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


# What instances say


def timm_net(**settings: Any) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    net: nn.Module = timm.create_model("vit_tiny_patch16_224", depth=1, **settings)
    return net


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,  # Exponential moving averages
        lambda net: Wrapper(model=Wrapper(encoder=net)),
    ],
)
def test_a_model_inside_of_a_wrapper(wrap: Any) -> None:
    net = timm_net()
    assert preprocessing_of(wrap(net)) == preprocessing_of(net)
    assert preprocessing_of(net).mean == HALF


def test_a_model_inside_of_peft() -> None:
    peft = pytest.importorskip("peft", reason="PEFT is no dependency of this package")
    net = timm_net()
    adapted = peft.get_peft_model(net, peft.LoraConfig(target_modules=["qkv"]))
    assert torch.equal(fed(adapted), fed(timm_net()))


def test_parts_that_disagree_say_nothing() -> None:
    one, other = small_net(), small_net()
    one.preprocessing = wm.Preprocessing((32, 32))  # type: ignore[assignment]
    other.preprocessing = wm.Preprocessing((48, 48))  # type: ignore[assignment]
    assert preprocessing_of(Wrapper(one=one)).size == (32, 32)
    assert preprocessing_of(Wrapper(one=one, other=other)).assumed


def test_a_block_of_torchvisions_says_nothing_of_the_whole() -> None:
    block = torchvision.models.resnet.BasicBlock(3, 3)
    assert preprocessing_of(Wrapper(block=block, head=small_net())).source == (
        "assumed: ImageNet, 224 px"
    )
    whole = Wrapper(net=torchvision.models.resnet18(num_classes=3))
    assert "torchvision's presets of ResNet" in preprocessing_of(whole).source


def test_a_transform_that_a_model_carries() -> None:
    net, compose = (
        small_net(),
        v2.Compose([v2.Resize((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32)]),
    )
    net.transforms = compose  # type: ignore[assignment]
    expected = torch.stack([compose(image) for image in IMAGES])
    torch.testing.assert_close(fed(net), expected.as_subclass(Tensor), rtol=0, atol=1e-4)
    assert preprocessing_of(net).source.startswith("Sequential.transforms")


def test_the_size_that_an_instance_was_built_for() -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    net = timm_net(img_size=96)
    config = {**timm.data.resolve_model_data_config(net), "input_size": (3, 96, 96)}
    transform = timm.data.create_transform(**config)
    expected = torch.stack([transform(image) for image in IMAGES])
    torch.testing.assert_close(fed(net), expected, rtol=0, atol=1e-5)
    assert "96x96" in preprocessing_of(net).source
    assert wm.probe(net, IMAGES, ("latin",), progress=False).n_images == len(IMAGES)


def test_the_attributes_of_a_tower_like_open_clips() -> None:
    net = small_net()
    net.image_mean, net.image_std, net.image_size = HALF, HALF, (48, 48)  # type: ignore[assignment]
    assert (preprocessing_of(net).mean, preprocessing_of(net).size) == (HALF, (48, 48))
    assert preprocessing_of(Wrapper(visual=net)).mean == HALF


def test_a_model_of_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is no dependency")
    vision = open_clip.CLIPVisionCfg(
        layers=1, width=64, head_width=32, patch_size=16, image_size=64
    )
    text = open_clip.CLIPTextCfg(layers=1, width=64, heads=2, vocab_size=9, context_length=4)
    net = open_clip.CLIP(32, vision, text)
    config = open_clip.transform.PreprocessCfg(64, mean=HALF, std=(0.3, 0.4, 0.5))
    open_clip.factory.set_model_preprocess_cfg(net, vars(config))
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    expected = torch.stack([transform(image) for image in IMAGES])
    for model in (net, net.visual):
        torch.testing.assert_close(fed(model), expected, rtol=0, atol=1e-5)


def hf_resnet() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 4, 4, 4], depths=[1] * 4, num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def test_the_processor_in_the_folder_that_a_model_came_from(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")
    hf_resnet().save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(image_mean=HALF, size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path)
    net = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    expected = processor(IMAGES, return_tensors="pt")["pixel_values"]
    for model in (net, f"hf:{tmp_path}"):
        assert (fed(model) - expected).abs().amax() < 5 / 255 / 0.2
        assert preprocessing_of(model).source.endswith("translated and checked on 9 images")


def test_a_size_that_the_instance_does_not_take_is_not_fed(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")
    config = transformers.ViTConfig(
        image_size=96, patch_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(image_mean=HALF).save_pretrained(tmp_path)
    how = preprocessing_of(f"hf:{tmp_path}")
    assert (how.size, how.mean, how.assumed) == ((96, 96), HALF, True)
    assert "96x96 px that the model takes" in how.source


def test_a_model_of_timms_from_a_folder(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    pytest.importorskip("transformers", reason="transformers is an optional extra")
    safetensors = pytest.importorskip("safetensors.torch")
    net = timm.create_model("resnet10t", num_classes=5)
    config = {
        "mean": HALF, "std": HALF, "input_size": [3, 96, 96], "crop_pct": 0.9,
        "crop_mode": "center", "interpolation": "bicubic", "num_classes": 5,
        "first_conv": "conv1.0", "classifier": "fc",
    }  # fmt: skip
    whole = {"architecture": "resnet10t", "num_classes": 5, "pretrained_cfg": config}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    file = tmp_path / "model.safetensors"
    safetensors.save_file(net.state_dict(), file, metadata={"format": "pt"})
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
    expected = torch.stack([transform(image) for image in IMAGES])
    torch.testing.assert_close(fed(f"hf:{tmp_path}"), expected, rtol=0, atol=1e-5)


# Channels


def test_gray_copies_for_one_channel() -> None:
    net = small_net(1)
    how = wm.Preprocessing((48, 48), mean=(0.5,), std=(0.25,))
    gray = [np.asarray(Image.fromarray(how.fit(image)).convert("L")) for image in IMAGES]
    expected = (torch.from_numpy(np.stack(gray))[:, None] / 255 - 0.5) / 0.25
    torch.testing.assert_close(fed(net, how), expected, rtol=0, atol=1e-6)
    report = wm.probe(net, IMAGES, ("latin",), preprocess=how, cache=False)
    assert "the model's input has 1 channel: it is shown grayscale copies" in " ".join(report.notes)


def test_three_means_are_averaged_for_one_channel() -> None:
    how = preprocessing_of(small_net(1))
    assert (how.mean, how.std) == ((0.449,), (0.226,))
    assert how.assumed
    given = wm.Preprocessing((32, 32), mean=HALF, std=HALF)
    assert not preprocessing_of(small_net(1), given).assumed
    report = wm.probe(small_net(1), IMAGES, ("latin",))
    assert any("grayscale copies" in note for note in report.notes)


def test_threads_and_batches_make_the_same_gray_values(tmp_path: Path) -> None:
    for index, image in enumerate(IMAGES):
        image.save(tmp_path / f"{index}.png")
    seen = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net(1)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            result: Tensor = self.net(x)
            return result

    how = wm.Preprocessing((48, 48), mean=(0.5,), std=(0.25,))
    report = wm.probe(Watching(), tmp_path, ("latin",), preprocess=how, cache=False)
    assert report.n_images == 3
    (batch,) = wm.probing_batches(tmp_path, ("latin",), preprocess=how)
    rows = torch.cat([x for x in seen if x.shape[1:] == (1, 48, 48)])
    for expected in (*batch.images, *batch.marked["latin"]):
        assert (rows == expected).flatten(1).all(1).any()


@pytest.mark.parametrize("count", [2, 4, 13])
def test_other_numbers_of_channels_need_a_function(count: int) -> None:
    with pytest.raises(PreprocessingError, match=rf"{count} channels.*makes \[B, {count}, H, W\]"):
        fed(small_net(count))

    def stacked(batch: Tensor) -> Tensor:
        return batch.mean(1, keepdim=True).expand(-1, count, -1, -1)

    assert fed(small_net(count), stacked).shape == (3, count, 224, 224)


def test_a_mean_for_each_channel_is_no_way_to_make_them() -> None:
    how = wm.Preprocessing((32, 32), mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(PreprocessingError, match=r"makes \[B, 4, H, W\]"):
        fed(small_net(4), how)


def test_a_transform_for_other_channels_than_the_models() -> None:
    gray = v2.Compose(
        [v2.Grayscale(1), v2.Resize((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32)]
    )
    assert fed(small_net(1), gray).shape == (3, 1, 32, 32)
    with pytest.raises(PreprocessingError, match="gives 1 channels, and the model's input has 3"):
        fed(small_net(3), gray)


class Patches(nn.Module):
    """Begins with a linear layer on patches, and so with no convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels * 16 * 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(3)
        embedded: Tensor = self.embed(patches)
        return embedded.mean((1, 2))


class Functional(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.randn(5, channels, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.conv2d(x, self.filters).mean((2, 3))


def scripted(net: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # It is old, and still in use.
        return torch.jit.script(net)


@pytest.mark.parametrize(
    "net",
    [
        Patches(1),
        Functional(1),
        nn.Sequential(nn.PixelUnshuffle(2), small_net(4)),
        nn.Sequential(nn.BatchNorm2d(1), small_net(1)),
        scripted(small_net(1)),
    ],
    ids=["patches", "functional", "pixels to channels", "BatchNorm first", "TorchScript"],
)
def test_the_number_of_channels_is_found_by_running(net: nn.Module) -> None:
    assert preprocessing_of(net, wm.Preprocessing((32, 32))).channels == 1


def test_gray_inside_of_the_model_takes_colours() -> None:
    class Gray(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net(1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.net(x.mean(1, keepdim=True))
            return result

    assert preprocessing_of(Gray()).channels == 3


def test_a_mask_on_a_model_of_one_channel() -> None:
    net = small_net(1)
    report = wm.probe(net, IMAGES, ("latin",), preprocess=wm.Preprocessing((32, 32)))
    masked = wm.apply_mask(net, wm.FeatureMask.from_report(report, units=[1]))
    assert masked(torch.rand(2, 1, 32, 32)).shape == (2, 5)


# Normalising inside


class Normalizing(nn.Module):
    def __init__(self, scale: float = 1.0, net: nn.Module | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", scale * torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", scale * torch.tensor(STD).view(3, 1, 1))
        self.net = small_net() if net is None else net

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net((x - self.mean) / self.std)
        return result


@pytest.mark.parametrize(
    ("model", "white"),
    [
        (nn.Sequential(v2.Normalize(MEAN, STD), small_net()), 1),
        (Normalizing(), 1),
        (Normalizing(255), 255),
        (Normalizing(net=torchvision.models.resnet18(num_classes=3)), 1),
    ],
)
def test_what_a_model_normalises_is_not_normalised_twice(model: nn.Module, white: int) -> None:
    how = preprocessing_of(model)
    assert "as the model normalises them itself" in how.source
    pixels = torch.stack([torch.from_numpy(how.fit(image).copy()) for image in IMAGES])
    expected = pixels.permute(0, 3, 1, 2) * (white / 255)
    torch.testing.assert_close(fed(model), expected, rtol=0, atol=1e-4)


def test_an_inner_normalize_that_cannot_be_measured_is_assumed() -> None:
    resized = nn.Sequential(v2.Normalize(MEAN, STD), nn.Upsample(scale_factor=0.5), small_net())
    how = preprocessing_of(resized)
    assert (how.mean, how.std) == ((0.0,) * 3, (1.0,) * 3)
    assert how.assumed
    assert "seems to normalise" in how.source


@pytest.mark.parametrize(
    "model",
    [
        small_net(),
        nn.Sequential(nn.BatchNorm2d(3), small_net()),
        torchvision.models.googlenet(transform_input=True, init_weights=False, aux_logits=False),
    ],
    ids=["nothing", "BatchNorm", "another normalisation made of the published one"],
)
def test_what_does_not_normalise_photos(model: nn.Module) -> None:
    assert (preprocessing_of(model).mean, preprocessing_of(model).std) == (MEAN, STD)


def test_what_is_asked_for_is_not_changed() -> None:
    assert preprocessing_of(Normalizing(), "imagenet").mean == MEAN


def test_a_model_comes_back_as_it_was() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), small_net(1)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    preprocessing_of(net)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
