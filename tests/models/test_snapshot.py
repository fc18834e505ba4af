"""Whatever is done to a model within the block, its own description of itself is the old one."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from pytest_watermark_guard.models.snapshot import restored


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, 2)
        self.tied = nn.Linear(4, 2)
        self.tied.weight = self.fc.weight
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("cached", torch.ones(2), persistent=False)
        self.register_buffer("none", None)
        self.table = torch.arange(3)
        self.tags = ["a"]
        self.options = {"depth": 2}
        self.scale = 1.5

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    net.fc.weight.grad = torch.full((2, 4), 7.0)
    net.body[0].bias.requires_grad_(False)
    net.body[1].eval()
    net.register_forward_hook(lambda module, args, output: None)
    net.fc.weight.register_hook(lambda grad: grad)
    return net


def described(net):
    """Describe a model by what it refers to (as identities) and holds (as values)."""
    tensors = [
        (
            name,
            id(tensor),
            tensor.data_ptr(),
            str(tensor.dtype),
            tensor.requires_grad,
            tensor.tolist(),
            id(tensor.grad),
            None if tensor.grad is None else tensor.grad.tolist(),
            dict(tensor._backward_hooks or {}),
        )
        for name, tensor in (
            *net.named_parameters(remove_duplicate=False),
            *net.named_buffers(),
            ("table", net.table),
        )
    ]
    modules = [
        (name, id(module), type(module), sorted(vars(module)), module.training)
        for name, module in net.named_modules()
    ]
    hooks = [
        (name, key, list(value.items()))
        for name, module in net.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, OrderedDict)
    ]
    rest = list(net.state_dict()), list(net.tags), dict(net.options), net.scale, net.none
    return tensors, modules, hooks, rest


def train(net):
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    for _ in range(2):
        net(torch.rand(2, 3, 8, 8)).sum().backward()
        optimizer.step()


def another_head(net):
    net.fc = nn.Linear(4, 9)
    net.body[1] = nn.Identity()
    del net.tied
    net.extra = nn.Linear(2, 2)
    net.body.append(nn.ReLU())


def buffers(net):
    net.seen += 1
    net.cached = net.cached + 1
    net.none = torch.ones(1)
    net.table.fill_(5)
    net.register_buffer("late", torch.ones(1))
    net.register_buffer("cached", torch.zeros(3))  # and now it is persistent


def hooks(net):
    net._forward_hooks.popitem()
    net.register_forward_pre_hook(lambda module, args: None)
    net.fc.weight.register_hook(lambda grad: grad * 2)
    net.fc.bias.register_hook(lambda grad: grad * 2)
    net.fc.weight.register_post_accumulate_grad_hook(lambda parameter: None)


def values_behind_its_back(net):
    net.fc.weight.data.add_(1)
    net.fc.weight.grad.zero_()
    net.body[0].weight.data = torch.zeros(4, 3, 3, 3)
    net.body[0].bias.requires_grad_(True)
    net.fc.requires_grad_(False)


def precision(net):
    net.half()
    net.zero_grad(set_to_none=True)


def parametrized(net):
    nn.utils.parametrizations.weight_norm(net.fc)
    nn.utils.parametrize.register_parametrization(net.body[0], "bias", nn.Identity())


def attributes(net):
    net.tags.append("b")
    net.options.clear()
    net.scale = 2
    net.forward = lambda x: x
    net.eval()


def not_a_number(net):
    with torch.no_grad():
        net.fc.bias.fill_(float("nan"))


DEEDS = [
    train,
    another_head,
    buffers,
    hooks,
    values_behind_its_back,
    precision,
    parametrized,
    attributes,
    not_a_number,
]


@pytest.mark.parametrize("deed", DEEDS)
def test_it_is_undone(net, deed):
    before = described(net)
    with restored(net):
        deed(net)
        assert described(net) != before
    assert described(net) == before


def test_all_of_it_at_once_and_when_it_raises(net):
    before = described(net)

    def everything():
        with restored(net):
            for deed in (train, buffers, hooks, attributes, parametrized, precision, another_head):
                deed(net)
            raise KeyError

    with pytest.raises(KeyError):
        everything()
    assert described(net) == before
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()


def test_hooks_on_tensors_are_silent_afterwards(net):
    calls = []
    with restored(net):
        net.fc.bias.register_hook(calls.append)
        net.fc.bias.register_post_accumulate_grad_hook(calls.append)
        net(torch.rand(2, 3, 8, 8)).sum().backward()
        assert len(calls) == 2
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    assert len(calls) == 2


def test_handles_from_before_and_within_still_remove_their_hooks(net):
    calls = []
    before = net.fc.register_forward_pre_hook(lambda module, args: calls.append("before"))
    with restored(net):
        within = net.fc.register_forward_pre_hook(lambda module, args: calls.append("within"))
        before.remove()
    within.remove()
    net(torch.rand(2, 3, 8, 8))
    assert calls == ["before"]
    before.remove()
    net(torch.rand(2, 3, 8, 8))
    assert calls == ["before"]


def test_a_tensor_that_nobody_changed_is_not_written_to(net):
    loss = net(torch.rand(2, 3, 8, 8)).sum()
    with restored(net), torch.no_grad():
        net(torch.rand(2, 3, 8, 8))
    loss.backward()  # which checks that what it needs was not written to


def test_inference_tensors(net):
    with torch.inference_mode():
        net.seen = torch.zeros(2)
    with restored(net), torch.inference_mode():
        net.seen.fill_(1)
    assert net.seen.tolist() == [0, 0]
