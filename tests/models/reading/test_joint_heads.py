"""Networks whose logits are made together: each one's features are read, side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pytest_watermark_guard as wm
from pytest_watermark_guard.models.reading.activations import ActivationRecorder

CLASSES = 10

Forward = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """A small network with a head of one of three kinds."""

    def __init__(self, width: int, classes: int = CLASSES, head: str = "linear") -> None:
        super().__init__()
        torch.manual_seed(width)
        self.stem = nn.Conv2d(3, width, 5, 4)
        self.head = nn.Linear(width, classes) if head == "linear" else nn.Conv2d(width, classes, 1)
        self.kind = head

    def maps(self, x: Tensor) -> Tensor:
        return self.stem(x).relu()

    def features(self, x: Tensor) -> Tensor:
        return self.maps(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "linear":
            return self.head(self.features(x))
        scores = self.head(self.maps(x))
        return (scores.relu() if self.kind == "as in SqueezeNet" else scores).mean((2, 3))


class Model(nn.Module):
    """Parts, and what is made of them."""

    def __init__(self, finish: Forward, **parts: nn.Module) -> None:
        super().__init__()
        self.finish = finish
        for name, part in parts.items():
            self.add_module(name, part)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self, x)


def ensemble(
    finish: Callable[[list[Tensor]], Tensor],
    number: int = 3,
    classes: int = CLASSES,
    heads: Sequence[str] = ("linear",),
) -> Model:
    nets = nn.ModuleList(
        Net(8 + i, classes, head) for i, head in zip(range(number), heads * number, strict=False)
    )
    return Model(lambda model, x: finish([net(x) for net in model.nets]), nets=nets)


def side_by_side(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([net.features(x) for net in model.nets], dim=1)


def mean(logits: list[Tensor]) -> Tensor:
    return torch.stack(logits).mean(0)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def record(model: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], str]:
    with ActivationRecorder(model, ("logits", "features"), x) as recorder:
        return recorder(x), " ".join(recorder.notes)


def check(model: nn.Module, x: Tensor, features: Callable[[nn.Module, Tensor], Tensor]) -> str:
    """Compare on the images by which the features were found, and on others; return the notes."""
    read, notes = record(model, x)
    other = torch.rand(7, *x.shape[1:], generator=torch.Generator().manual_seed(2)).to(x.dtype)
    with torch.no_grad():
        torch.testing.assert_close(read["logits"], model(x))
        torch.testing.assert_close(read["features"], features(model, x))
        with ActivationRecorder(model, ("features",), x) as recorder:
            torch.testing.assert_close(recorder(other)["features"], features(model, other))
    return notes


WAYS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "mean": mean,
    "sum": sum,
    "weighted": lambda logits: sum(w * one for w, one in zip((0.5, 0.3, 0.2), logits, strict=True)),
    "mean of probabilities": lambda logits: mean([one.softmax(1) for one in logits]),
    "of confident ones": lambda logits: mean([(300 * one).softmax(1) for one in logits]),
    "mean of probabilities in logarithms": lambda logits: mean(
        [o.softmax(1) for o in logits]
    ).log(),
    "probabilities of the mean": lambda logits: mean(logits).softmax(1),
    "mean of sigmoids": lambda logits: mean([one.sigmoid() for one in logits]),
    "median": lambda logits: torch.stack(logits).median(0).values,
    "largest": lambda logits: torch.stack(logits).amax(0),
    "normalised": lambda logits: mean([functional.normalize(one, dim=1) for one in logits]),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_ensemble_by_the_way_in_which_logits_are_combined(way: str, x: Tensor) -> None:
    notes = check(ensemble(WAYS[way]), x, side_by_side)
    assert (
        "what goes into 'nets.0.head' (units 0 to 7), 'nets.1.head' (units 8 to 16) and "
        "'nets.2.head' (units 17 to 26), side by side; only together" in notes
    )


@pytest.mark.parametrize("number", [2, 5, 10])
@pytest.mark.parametrize("classes", [1, 2, CLASSES])
@pytest.mark.parametrize("images", [2, 4])
def test_ensembles_of_any_size(number: int, classes: int, images: int, x: Tensor) -> None:
    notes = check(ensemble(mean, number, classes), x[:images], side_by_side)
    assert ("'nets.2.head' (units 17 to 26) and 7 more layers" in notes) == (number == 10)


@pytest.mark.parametrize(
    "heads",
    [["as in SqueezeNet"], ["convolution"], ["as in SqueezeNet", "linear"]],
    ids=" and ".join,
)
def test_heads_that_are_convolutions(heads: list[str], x: Tensor) -> None:
    check(ensemble(mean, 3, heads=heads), x, side_by_side)


def test_networks_of_one_width_are_not_mixed(x: Tensor) -> None:
    nets = nn.ModuleList([Net(8), Net(8)])
    nn.init.normal_(nets[1].stem.weight)
    model = Model(lambda model, x: mean([net(x) for net in model.nets]), nets=nets)
    check(model, x, side_by_side)


def test_half_precision(x: Tensor) -> None:
    model = ensemble(mean).bfloat16()
    read, notes = record(model, x.bfloat16())
    assert "side by side" in notes
    with torch.no_grad():
        torch.testing.assert_close(read["features"], side_by_side(model, x.bfloat16()))


@pytest.mark.parametrize("probabilities", [False, True], ids=["logits", "probabilities"])
@pytest.mark.parametrize("head", ["linear", "as in SqueezeNet"])
def test_mirrored_views_of_one_network_are_averaged(
    head: str, probabilities: bool, x: Tensor
) -> None:
    def finish(model: nn.Module, x: Tensor) -> Tensor:
        views = [model.net(view) for view in (x, x.flip(3))]
        return mean([view.softmax(1) for view in views] if probabilities else views)

    def features(model: nn.Module, x: Tensor) -> Tensor:
        return (model.net.features(x) + model.net.features(x.flip(3))) / 2

    assert not check(Model(finish, net=Net(8, head=head)), x, features)


def test_views_of_half_precision(x: Tensor) -> None:
    views: Callable[[Tensor], list[Tensor]] = lambda x: [x, x.flip(3), x.flip(2)]  # noqa: E731
    model = Model(lambda m, x: sum(m.net(view) for view in views(x)) / 3, net=Net(8)).bfloat16()
    read, notes = record(model, x.bfloat16())
    assert not notes
    with torch.no_grad():
        parts = [model.net.features(view) for view in views(x.bfloat16())]
        torch.testing.assert_close(read["features"], torch.stack(parts).mean(0))


def test_views_with_weights(x: Tensor) -> None:
    model = Model(lambda m, x: 0.7 * m.net(x) + 0.3 * m.net(x.flip(3)), net=Net(8))
    notes = check(model, x, lambda m, x: (m.net.features(x) + m.net.features(x.flip(3))) / 2)
    assert "what goes into 'net.head' (the mean of its 2 calls); only together" in notes


def test_views_of_several_networks(x: Tensor) -> None:
    def features(model: nn.Module, x: Tensor) -> Tensor:
        parts = [(net.features(x) + net.features(x.flip(3))) / 2 for net in model.nets]
        return torch.cat(parts, dim=1)

    def finish(model: nn.Module, x: Tensor) -> Tensor:
        return mean([net(view) for net in model.nets for view in (x, x.flip(3))])

    check(Model(finish, nets=nn.ModuleList([Net(8), Net(9)])), x, features)


class Transformer(nn.Module):
    """Has a parameter of its own beside its layers, as vision transformers have."""

    def __init__(self, width: int, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.net = Net(width)
        self.token = nn.Parameter(torch.rand(1, width))
        self.behind = nn.Flatten() if behind is None else behind

    def features(self, x: Tensor) -> Tensor:
        return self.net.features(x) * self.token

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.net.head(self.features(x)))


TRANSFORMERS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "probabilities": lambda m, x: m.one(x).softmax(1),
    "temperature": lambda m, x: 2 * m.one(x),
    "mirrored views": lambda m, x: m.one(x) + m.one(x.flip(3).flip(3)),
    "probabilities of mirrored views": lambda m, x: (
        m.one(x).softmax(1) + m.one(x.flip(3).flip(3)).softmax(1)
    ) / 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_pictures_are_no_features_of_a_network_with_parameters_of_its_own(
    kind: str, x: Tensor
) -> None:
    model = Model(TRANSFORMERS[kind], one=Transformer(8))
    check(model, x, lambda m, x: m.one.features(x))


@pytest.mark.parametrize("way", ["mean", "mean of probabilities", "largest"])
def test_ensembles_of_networks_with_parameters_of_their_own(way: str, x: Tensor) -> None:
    def features(model: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([model.one.features(x), model.two.features(x)], dim=1)

    model = Model(
        lambda m, x: WAYS[way]([m.one(x), m.two(x)]), one=Transformer(8), two=Transformer(9)
    )
    check(model, x, features)


def test_pictures_are_no_features_where_the_head_is_a_function(x: Tensor) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 5, 4)
            self.weight = nn.Parameter(torch.rand(CLASSES, 8))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(self.stem(x).amax((2, 3)), self.weight)

    model = Model(lambda m, x: m.net(x), net=Functional())
    read, notes = record(model, x)
    assert "no head found" in notes
    assert read["features"].shape == (4, CLASSES)


@pytest.mark.parametrize("where", ["in each network", "behind all"])
def test_an_identity_behind_heads_cuts_nothing_off(where: str, x: Tensor) -> None:
    if where == "behind all":
        one, two = Net(8), Net(9)
        model = Model(lambda m, x: m.end(m.one(x) + m.two(x)), one=one, two=two, end=nn.Identity())
    else:
        one, two = Transformer(8, nn.Identity()), Transformer(9, nn.Identity())
        model = Model(lambda m, x: m.one(x) + m.two(x), one=one, two=two)
    check(model, x, lambda m, x: torch.cat([m.one.features(x), m.two.features(x)], 1))


def test_networks_that_draw_at_random(x: Tensor) -> None:
    def finish(model: nn.Module, x: Tensor) -> Tensor:
        return mean([net.head(functional.dropout(net.features(x), 0.1)) for net in model.nets])

    model = Model(finish, nets=nn.ModuleList([Net(8), Net(9)]))
    read, notes = record(model, x)
    assert "side by side" in notes
    assert read["features"].shape == (4, 17)


def test_heads_on_every_token(x: Tensor) -> None:
    def finish(model: nn.Module, x: Tensor) -> Tensor:
        return mean([net.head(net.maps(x).flatten(2).mT).mean(1) for net in model.nets])

    check(Model(finish, nets=nn.ModuleList([Net(8), Net(9)])), x, side_by_side)


@pytest.mark.filterwarnings("ignore")  # torch calls its own quantisation deprecated
def test_quantised_networks(x: Tensor) -> None:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Net(8), Net(9)
            self.sum = nn.quantized.FloatFunctional()
            self.quant = torch.ao.quantization.QuantStub()
            self.dequant = torch.ao.quantization.DeQuantStub()

        def forward(self, x: Tensor) -> Tensor:
            x = self.quant(x)
            return self.dequant(self.sum.add(self.one(x), self.two(x)))

    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("no engine for quantised layers")
    model = Quantised().eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    prepared = torch.ao.quantization.prepare(model)
    prepared(x)
    quantised = torch.ao.quantization.convert(prepared)
    read, notes = record(quantised, x)
    assert "side by side" in notes
    with torch.no_grad():
        inputs = quantised.quant(x)
        expected = torch.cat(
            [net.features(inputs).dequantize() for net in (quantised.one, quantised.two)], dim=1
        )
    torch.testing.assert_close(read["features"], expected)


def test_a_network_that_answers_nearly_as_another_is_read_too(x: Tensor) -> None:
    one = Net(8)
    two = copy.deepcopy(one)
    with torch.no_grad():
        two.stem.weight *= 1.00001
    model = Model(lambda m, x: m.one(x) + m.two(x), one=one, two=two)
    check(model, x, lambda m, x: torch.cat([m.one.features(x), m.two.features(x)], 1))


def test_two_branches_with_heads_in_one_module(x: Tensor) -> None:
    model = Model(
        lambda m, x: m.fc1(m.one.features(x)) + m.fc2(m.two.features(x)),
        one=Net(8), two=Net(9), fc1=nn.Linear(8, CLASSES), fc2=nn.Linear(9, CLASSES),
    )  # fmt: skip
    check(model, x, lambda m, x: torch.cat([m.one.features(x), m.two.features(x)], 1))


def test_a_head_that_the_output_leaves_out_is_no_part(x: Tensor) -> None:
    def finish(model: nn.Module, x: Tensor) -> Tensor:
        one, _, three = (net(x) for net in model.nets)
        return one + three

    model = Model(finish, nets=nn.ModuleList([Net(8), Net(9), Net(10)]))
    check(model, x, lambda m, x: torch.cat([m.nets[0].features(x), m.nets[2].features(x)], 1))


class Classifier(nn.Module):
    """A name that timm knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = Net(width)

    def get_classifier(self) -> nn.Module:
        return self.net.head

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_what_one_network_calls_its_classifier_is_not_all(x: Tensor) -> None:
    model = Model(
        lambda m, x: m.one(x).softmax(1) / 3 + m.two(x).softmax(1), one=Classifier(8), two=Net(9)
    )
    check(model, x, lambda m, x: torch.cat([m.one.net.features(x), m.two.features(x)], 1))


def test_a_classifier_on_which_the_output_does_not_depend_alone_is_not_taken(x: Tensor) -> None:
    model = Model(
        lambda m, x: m.one(x) + m.two.stem(x).amax((1, 2, 3), keepdim=True)[..., 0, 0],
        one=Classifier(8), two=Net(9),
    )  # fmt: skip
    read, notes = record(model, x)
    assert "no head found" in notes
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model(x))


class LowRank(nn.Module):
    """A linear layer with a low-rank addition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, CLASSES)
        self.drop = nn.Dropout(0.1)
        self.down = nn.Linear(width, 3, bias=False)
        self.up = nn.Linear(3, CLASSES, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.base(features) + 2 * self.up(self.down(self.drop(features)))


ONE_VECTOR: dict[str, Model] = {
    "two heads": Model(
        lambda m, x: (lambda f: m.one(f) + m.two(f))(m.net.features(x)),
        net=Net(8), one=nn.Linear(8, CLASSES), two=nn.Linear(8, CLASSES),
    ),
    "two heads, one of them normalised before": Model(
        lambda m, x: (lambda f: m.one(f) + m.two(m.norm(f)))(m.net.features(x)),
        net=Net(8), one=nn.Linear(8, CLASSES), two=nn.Linear(8, CLASSES), norm=nn.BatchNorm1d(8),
    ),
    "low rank": Model(lambda m, x: m.head(m.net.features(x)), net=Net(8), head=LowRank(8)),
    "a shortcut past a hidden layer": Model(
        lambda m, x: (lambda f: m.one(f) + m.two(m.hidden(f).relu()))(m.net.features(x)),
        net=Net(8), one=nn.Linear(8, CLASSES), hidden=nn.Linear(8, 6), two=nn.Linear(6, CLASSES),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONE_VECTOR)
def test_what_several_layers_make_of_one_vector_is_read_once(kind: str, x: Tensor) -> None:
    check(ONE_VECTOR[kind], x, lambda m, x: m.net.features(x))


class Residual(nn.Module):
    """A network without a head whose blocks add to what comes in."""

    def __init__(self, rectified: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, 4, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 1), nn.ReLU(),
                nn.Conv2d(24, 16, 1),
            )
            for _ in range(4)
        )  # fmt: skip
        self.rectified = rectified

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
            x = x.relu() if self.rectified else x
        return x.mean((2, 3))


class LastStage(nn.Module):
    """A network without a head whose last stage has one block, with a projected shortcut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.hidden = nn.Conv2d(8, 12, 3, 2, 1)
        self.out = nn.Conv2d(12, 16, 1)
        self.shortcut = nn.Conv2d(8, 16, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return (self.out(self.hidden(x).relu()) + self.shortcut(x)).relu().mean((2, 3))


HEADLESS: dict[str, nn.Module] = {
    "residual": Residual(rectified=False),
    "residual with activations": Residual(rectified=True),
    "one block in the last stage": LastStage(),
    "two activated branches": Model(
        lambda m, x: (m.fc1(m.one.features(x)) + m.fc2(m.two.features(x))).relu(),
        one=Net(8), two=Net(9), fc1=nn.Linear(8, 12), fc2=nn.Linear(9, 12),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADLESS)
def test_what_ends_a_backbone_is_not_taken_for_heads(kind: str, x: Tensor) -> None:
    model = HEADLESS[kind].eval()
    with ActivationRecorder(model, ("logits", "features"), x) as recorder:
        assert recorder.layers == ("features",)
        assert "no head found" in recorder.notes[0]
        with torch.no_grad():
            torch.testing.assert_close(recorder(x)["features"], model(x))


def normed() -> Model:
    model = ensemble(mean)
    for net in model.nets:
        nn.utils.parametrizations.weight_norm(net.head)
    return model


EXPORTED: dict[str, tuple[Model, Callable[[nn.Module, Tensor], Tensor]]] = {
    "mean": (ensemble(mean), side_by_side),
    "probabilities": (ensemble(WAYS["mean of probabilities"]), side_by_side),
    "weights that are normed": (normed(), side_by_side),
    "views": (
        Model(lambda m, x: m.net(x) + m.net(x.flip(3)), net=Net(8)),
        lambda m, x: (m.net.features(x) + m.net.features(x.flip(3))) / 2,
    ),
    "two heads of one vector": (ONE_VECTOR["two heads"], lambda m, x: m.net.features(x)),
}


OF_ONE_NETWORK = ("views", "two heads of one vector")


@pytest.mark.parametrize("kind", EXPORTED)
def test_exported_programs(kind: str, x: Tensor) -> None:
    model, features = EXPORTED[kind]
    program = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(wm.extract_features(program, x), features(model, x))
    with ActivationRecorder(program, ("logits", "features"), x) as recorder:
        notes = recorder.notes
    if kind in OF_ONE_NETWORK:
        assert notes == ()
    else:
        assert "side by side" in notes[0]
        with ActivationRecorder(model, ("logits", "features"), x) as recorder:
            assert notes == recorder.notes


def test_views_in_an_exported_program_that_was_decomposed(x: Tensor) -> None:
    model, features = EXPORTED["views"]
    program = torch.export.export(model, (x,)).run_decompositions().module()
    with torch.no_grad():
        torch.testing.assert_close(wm.extract_features(program, x), features(model, x))
