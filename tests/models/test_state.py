from __future__ import annotations

import contextlib
import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.models.state import eager, preserved, runnable_on, unwrapped


class Restless(nn.Module):
    """Everything that a forward pass should not do, and some do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(3, 2)
        self.register_buffer("count", torch.zeros(()))
        self.head.bias.requires_grad_(False)

    def train(self, mode: bool = True) -> Restless:
        raise AssertionError("the flags are to be set, not this method called")

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        random.random()
        np.random.rand()
        self.head.weight.requires_grad_(False)
        return self.head(self.dropout(self.norm(x) + torch.rand(())).mean((2, 3)))


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_it_was(fails: bool) -> None:
    model = Restless()
    model.dropout.training = False  # frozen by its owner
    model(torch.rand(4, 3, 2, 2)).sum()
    model.head.weight.requires_grad_(True)
    model.head.weight.grad = gradient = torch.ones(2, 3)
    state = copy.deepcopy(model.state_dict())
    randoms = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

    with contextlib.suppress(ZeroDivisionError), preserved(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        model(torch.rand(4, 3, 2, 2))
        model.head.weight.grad = None
        if fails:
            raise ZeroDivisionError

    assert torch.is_grad_enabled()
    flags = {name: module.training for name, module in model.named_modules()}
    assert flags == {"": True, "norm": True, "dropout": False, "head": True}
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)
    assert model.head.weight.requires_grad
    assert not model.head.bias.requires_grad
    assert model.head.weight.grad is gradient
    assert random.getstate() == randoms[0]
    assert np.random.get_state()[1].tolist() == randoms[1]
    assert torch.equal(torch.get_rng_state(), randoms[2])


def test_a_pending_backward_pass_still_works() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    loss = model(torch.rand(2, 3, 2, 2)).sum()
    with preserved(model):
        model(torch.rand(2, 3, 2, 2))
    loss.backward()


def test_what_a_model_caches_can_be_trained_on() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.ones(3)
            return x * self.weight * self.table

    model = Caching()
    with preserved(model):
        model(torch.ones(2, 3))
    model(torch.ones(2, 3)).sum().backward()


def test_runnable_on() -> None:
    model = nn.Linear(2, 2)
    assert runnable_on(model, "cpu") is model
    without_tensors = nn.Flatten()
    assert runnable_on(without_tensors, "meta") is without_tensors
    moved = runnable_on(model, "meta")
    assert moved.weight.device.type == "meta"
    assert model.weight.device.type == "cpu"


def test_a_model_that_cannot_be_copied() -> None:
    class Locked(nn.Linear):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise TypeError("cannot pickle '_thread.lock' object")

    with pytest.raises(SettingsError, match=r"on cpu and could not be copied to meta.*lock.*cpu"):
        runnable_on(Locked(2, 2), "meta")


def test_unwrapped() -> None:
    model = nn.Linear(2, 2)
    assert unwrapped(nn.DataParallel(model)) is model
    assert unwrapped(nn.DataParallel(torch.compile(model))) is model
    assert unwrapped(torch.compile(nn.DataParallel(model))) is model


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own
def test_eager_runs_compiled_modules_without_the_compiler() -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        compiled.append(graph)
        return graph.forward

    inner = nn.Linear(2, 2)
    inner.compile(backend=backend)
    model = nn.Sequential(inner, torch.compile(nn.Linear(2, 2), backend=backend))
    with torch.no_grad():
        with eager(model):
            expected = model(torch.ones(1, 2))
        assert compiled == []
        torch.testing.assert_close(model(torch.ones(1, 2)), expected)
    assert len(compiled) == 2  # afterwards both are compiled again
    assert len(compiled) == 2


def test_inference_mode_is_the_caller_s_alone() -> None:
    model = Restless()
    with torch.inference_mode(), preserved(model):
        assert not torch.is_inference_mode_enabled()
        assert not model(torch.rand(2, 3, 4, 4)).is_inference()
    assert model.count == 0


def test_a_model_that_was_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = Restless()
        with preserved(model):
            model(torch.rand(2, 3, 4, 4))
    assert model.count == 0
    quiet = model.norm
    with preserved(quiet):
        quiet(torch.rand(2, 3, 4, 4))
    assert torch.equal(quiet.running_var, torch.ones(3))
