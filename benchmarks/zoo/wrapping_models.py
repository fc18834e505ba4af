"""Libraries that wrap, adapt, shrink or train somebody's network, and one's own code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import pytest_watermark_guard as wm
from zoo.case import Case, Reading, input_of, last_linear
from zoo.timm_models import trunk_transform
from zoo.torchvision_models import transform

SMALL = wm.Preprocessing.imagenet((64, 64))


def network(classes: int = 7) -> nn.Sequential:
    """Return a small network whose head is its last layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 4),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, classes),
    )


def _vit(**options: Any) -> Any:
    import timm

    return timm.create_model("test_vit", num_classes=7, **options)


def _fastai() -> Iterator[Case]:
    """The input of the last layer."""
    from fastai.vision import all as fastai

    yield Case(
        "create_vision_model(resnet18)",
        partial(fastai.create_vision_model, resnet18, 5, pretrained=False),
        last_linear,
    )
    yield Case("xresnet18", partial(fastai.xresnet18, n_out=5), last_linear)
    yield Case("xse_resnet18", partial(fastai.xse_resnet18, n_out=5), last_linear)
    yield Case(
        "create_timm_model(resnet18)",
        lambda: fastai.create_timm_model("resnet18", 5, pretrained=False)[0],
        last_linear,
        transform=trunk_transform,
    )
    yield Case(
        "create_unet_model",
        partial(fastai.create_unet_model, resnet18, 3, (64, 64), pretrained=False),
        refused=True,
        preprocess=SMALL,
    )
    yield Case(
        "Learner",
        lambda: fastai.Learner(fastai.DataLoaders([], []), network(), loss_func=nn.MSELoss()),
        refused=True,
    )


def _lightning() -> Iterator[Case]:
    """The input of the head inside; torchvision's preset."""
    import lightning

    class Trained(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = resnet18(weights=None)

        def forward(self, x: Tensor) -> Tensor:
            return self.backbone(x)

    class WithoutForward(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = resnet18(weights=None)

    yield Case("LightningModule", Trained, input_of("backbone.fc"), transform=transform("resnet18"))
    yield Case("LightningModule without forward", WithoutForward, refused=True)


def _peft() -> Iterator[Case]:
    """The input of the head inside, adapted or not; timm's transform."""
    import peft
    import timm

    def adapted(config: Any, model: Any) -> Any:
        return peft.get_peft_model(model, config)

    kinds = {
        "LoRA": partial(peft.LoraConfig, r=4),
        "DoRA": partial(peft.LoraConfig, r=4, use_dora=True),
        "LoHa": partial(peft.LoHaConfig, r=4),
        "IA3": partial(peft.IA3Config, feedforward_modules=[]),
        "OFT": partial(peft.OFTConfig, r=4, oft_block_size=0),
    }
    for name, kind in kinds.items():
        yield Case(
            f"{name} of timm's ViT",
            lambda k=kind: adapted(k(target_modules=["qkv"]), _vit()),
            input_of("base_model.model.head"),
            transform=trunk_transform,
        )
    yield Case(
        "LoRA of timm's ViT, head saved",
        lambda: adapted(kinds["LoRA"](target_modules=["qkv"], modules_to_save=["head"]), _vit()),
        input_of("base_model.model.head.modules_to_save.default"),
        transform=trunk_transform,
    )
    yield Case(
        "LoRA of the head",
        lambda: adapted(kinds["LoRA"](target_modules=["head"]), _vit()),
        input_of("base_model.model.head.base_layer"),
        transform=trunk_transform,
    )
    yield Case(
        "LoRA of convolutions",
        lambda: adapted(kinds["LoRA"](target_modules=["conv2"]), timm.create_model("resnet10t")),
        input_of("base_model.model.fc"),
        transform=trunk_transform,
    )


def _torchao() -> Iterator[Case]:
    """The input of the quantised head; timm's transform."""
    from torchao import quantization

    for name in (
        "Int8WeightOnlyConfig",
        "Int8DynamicActivationInt8WeightConfig",
        "Float8WeightOnlyConfig",
    ):

        def build(name: str = name) -> nn.Module:
            model = _vit().eval()
            quantization.quantize_(model, getattr(quantization, name)())
            return model

        yield Case(name, build, input_of("head"), transform=trunk_transform)


def _optimum_quanto() -> Iterator[Case]:
    """The input of the quantised head; timm's transform."""
    from optimum import quanto

    for weights in ("qint8", "qfloat8"):

        def build(weights: str = weights) -> nn.Module:
            model = _vit().eval()
            quanto.quantize(model, weights=getattr(quanto, weights))
            quanto.freeze(model)
            return model

        yield Case(weights, build, input_of("head"), transform=trunk_transform)


def _brevitas() -> Iterator[Case]:
    """The input of the quantised head."""
    from brevitas import nn as quantised

    def build() -> nn.Module:
        model = network()
        model[0] = quantised.QuantConv2d(3, 16, 4, 4, weight_bit_width=4)
        model[6] = quantised.QuantLinear(24, 7, bias=True, weight_bit_width=4)
        return model

    yield Case("QuantConv2d and QuantLinear", build, input_of("6"))


def _loralib() -> Iterator[Case]:
    """The input of the adapted head."""
    import loralib

    def build() -> nn.Module:
        model = network()
        model[6] = loralib.Linear(24, 7, r=4)
        return model

    yield Case("Linear", build, input_of("6"))


def _bayesian_torch() -> Iterator[Case]:
    """The input of the last layer, of one draw of the weights."""
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn

    def build() -> nn.Module:
        model = network()
        dnn_to_bnn(
            model,
            {
                "prior_mu": 0.0,
                "prior_sigma": 1.0,
                "posterior_mu_init": 0.0,
                "posterior_rho_init": -3.0,
                "type": "Flipout",
                "moped_enable": False,
                "moped_delta": 0.5,
            },
        )
        return model

    # Every pass draws other weights: they are the same for equal states of torch's generator.
    yield Case("dnn_to_bnn", build, input_of("6"))


def _torch_uncertainty() -> Iterator[Case]:
    """Refused: several rows for each image."""
    from torch_uncertainty import methods
    from torch_uncertainty.models.classification import packed_resnet

    yield Case(
        "packed_resnet",
        partial(
            packed_resnet,
            in_channels=3,
            num_classes=7,
            arch=18,
            num_estimators=2,
            alpha=2,
            gamma=1,
            conv_bias=False,
        ),
        refused=True,
    )
    yield Case(
        "deep_ensembles", lambda: methods.deep_ensembles([network(), network()]), refused=True
    )
    yield Case(
        "mc_dropout",
        lambda: methods.mc_dropout(nn.Sequential(network(), nn.Dropout()), 3),
        refused=True,
    )


def _skorch() -> Iterator[Case]:
    """An estimator is refused; its `module_`."""
    from skorch import NeuralNetClassifier

    def fitted() -> Any:
        return NeuralNetClassifier(network).initialize()

    yield Case("NeuralNetClassifier", fitted, refused=True)
    yield Case("its module_", lambda: fitted().module_, input_of("6"))


def _huggingface_hub() -> Iterator[Case]:
    """The input of the last layer."""
    from huggingface_hub import PyTorchModelHubMixin

    class Shared(nn.Module, PyTorchModelHubMixin):
        def __init__(self, classes: int = 7) -> None:
            super().__init__()
            self.net = network(classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    yield Case("PyTorchModelHubMixin", partial(Shared, classes=5), input_of("net.6"))


def _accelerate() -> Iterator[Case]:
    """The input of the last layer; offloaded weights are refused."""
    from accelerate import Accelerator, cpu_offload

    yield Case("prepare", lambda: Accelerator(cpu=True).prepare(network()), input_of("6"))
    # Its weights are on the meta device between the calls.
    yield Case("cpu_offload", lambda: cpu_offload(network(), torch.device("cpu")), refused=True)


def _snntorch() -> Iterator[Case]:
    """The mean over time of the input of the last layer."""
    import snntorch

    class Spiking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fire = nn.Conv2d(3, 16, 4, 4), snntorch.Leaky(beta=0.9)
            self.head = nn.Linear(16, 7)

        def forward(self, x: Tensor) -> Tensor:
            state, total = self.fire.init_leaky(), 0
            for _ in range(4):
                spikes, state = self.fire(self.conv(x), state)
                total = total + self.head(spikes.mean((2, 3)))
            return total

    # By linearity, the features of a sum over time are the mean over time.
    yield Case("spikes over 4 steps", Spiking, _mean_of_calls("head"), preprocess=SMALL)


def _mean_of_calls(head: str) -> Reading:
    def read(model: Any, x: Tensor) -> Tensor:
        taken: list[Tensor] = []
        module = model.get_submodule(head)
        handle = module.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
        model(x)
        handle.remove()
        return torch.stack(taken).mean(0)

    return read


def _ttach() -> Iterator[Case]:
    """The input of the head inside, averaged over the views."""
    import ttach

    def probabilities() -> nn.Sequential:
        return network().append(nn.Softmax(1))

    networks = (
        ("network", network, "6"),
        ("probabilities", probabilities, "6"),
        ("ViT", _vit, "head"),
    )
    for mode in ("mean", "gmean", "max", "tsharpen"):
        for name, build, head in networks:
            if mode in ("mean", "max") or name == "probabilities":  # others take roots
                yield Case(
                    f"{name}, flipped, {mode}",
                    lambda b=build, m=mode: ttach.ClassificationTTAWrapper(
                        b(), ttach.aliases.flip_transform(), merge_mode=m
                    ),
                    _mean_of_calls(f"model.{head}"),
                    preprocess=SMALL,
                )


def _torchensemble() -> Iterator[Case]:
    """The inputs of all heads, side by side."""
    import torchensemble

    def build(kind: str) -> nn.Module:
        options = {"estimator": network, "n_estimators": 3, "cuda": False}
        made = getattr(torchensemble, kind)(**options)
        made.n_outputs = 7
        made.estimators_.extend(network() for _ in range(3))
        return made

    def features(model: Any, x: Tensor) -> Tensor:
        return torch.cat([one[:6](x) for one in model.estimators_], dim=1)

    for kind in (
        "VotingClassifier",
        "BaggingClassifier",
        "SnapshotEnsembleClassifier",
        "FusionClassifier",
        "GradientBoostingClassifier",
    ):
        yield Case(kind, partial(build, kind), features)


def _keras() -> Iterator[Case]:
    """The output of the named pooling layer."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    if keras.backend.backend() != "torch":
        raise ImportError(f"keras runs on {keras.backend.backend()}: set KERAS_BACKEND=torch")

    def functional() -> Any:
        shown = keras.Input((64, 64, 3))
        maps = keras.layers.Conv2D(16, 3, strides=2, activation="relu")(shown)
        pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(maps)
        return keras.Model(shown, keras.layers.Dense(7)(pooled))

    def applied() -> Any:
        return keras.applications.MobileNetV2(
            (96, 96, 3), alpha=0.35, weights=None, classes=7, classifier_activation=None
        )

    def at(size: int) -> Any:
        def last(batch: Tensor) -> Tensor:
            return nn.functional.interpolate(batch, size).permute(0, 2, 3, 1)

        return last

    def pooled(name: str) -> Any:
        return lambda m, x: keras.Model(m.inputs, m.get_layer(name).output)(x)

    yield Case("functional model", functional, pooled("pooled"))
    yield Case("functional model, preprocess=", functional, pooled("pooled"), preprocess=at(64))
    yield Case(
        "MobileNetV2, preprocess=", applied, pooled("global_average_pooling2d"), preprocess=at(96)
    )
    yield Case(
        "Sequential, preprocess=",
        lambda: keras.Sequential(
            [
                keras.Input((64, 64, 3)),
                keras.layers.Conv2D(16, 3, strides=2),
                keras.layers.GlobalAveragePooling2D(name="pooled"),
                keras.layers.Dense(7, activation="softmax"),
            ]
        ),
        pooled("pooled"),
        preprocess=at(64),
    )


LIBRARIES = {
    "fastai": _fastai,
    "lightning": _lightning,
    "peft": _peft,
    "torchao": _torchao,
    "optimum.quanto": _optimum_quanto,
    "brevitas": _brevitas,
    "loralib": _loralib,
    "bayesian_torch": _bayesian_torch,
    "torch_uncertainty": _torch_uncertainty,
    "skorch": _skorch,
    "huggingface_hub": _huggingface_hub,
    "accelerate": _accelerate,
    "snntorch": _snntorch,
    "ttach": _ttach,
    "torchensemble": _torchensemble,
    "keras": _keras,
}
