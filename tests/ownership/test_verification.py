"""The mark is found where it was embedded, and nowhere else."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import ReportError, SettingsError
from pytest_watermark_guard.ownership import (
    OwnershipError,
    OwnershipMismatchError,
    OwnershipReport,
    assert_carries_watermark,
    assert_no_watermark,
    embed,
    generate_key,
    measure_utility,
    verify,
    verify_classifier,
)

ALPHA = 1e-3


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_marked_encoder_carries_it(marked, clean, key, images):
    report = verify(marked, key, images, {"clean": clean})
    assert report.p_value <= 1e-4
    assert report.carries(ALPHA)
    assert report.effect == pytest.approx(report.chosen - report.decoy)
    assert report.queries == 2 * key.pairs * 16 + 1
    assert [null.name for null in report.nulls] == ["clean"]
    assert report.nulls[0].p_value > 0.01


def test_labels_are_enough(marked, clean, key, images):
    asked = []

    def answers(pixels):
        assert pixels.dtype is torch.uint8
        asked.append(len(pixels))
        with torch.no_grad():
            return marked(marked.preprocessing.to_input(pixels)).argmax(1)

    report = verify_classifier(answers, key, images, {"clean": clean}, n_images=64)
    assert report.access == "labels"
    assert report.carries(0.01)
    assert sum(asked) == report.queries
    by_model = verify_classifier(marked, key, images, n_images=64)
    assert by_model.differences == report.differences


def test_it_stays_when_the_head_is_replaced(marked, key, images):
    backbone = copy.deepcopy(marked)
    backbone[-1] = nn.Identity()
    assert verify(backbone, key, images).carries(ALPHA)
    backbone[-1] = nn.Linear(96, 7)
    assert verify(backbone, key, images).carries(ALPHA)


def test_it_is_as_useful_as_before(marked, clean, images):
    rng = np.random.default_rng(0)
    turns = rng.integers(2, size=len(images))
    turned = [np.rot90(image, 2 * turn) for image, turn in zip(images, turns, strict=True)]
    pairs = list(zip(turned, map(int, turns), strict=True))
    utility = measure_utility(clean, marked, images, {"upside down": (pairs[:160], pairs[160:])})
    assert utility.mean_cosine >= 0.98
    assert utility.least_cosine <= utility.mean_cosine
    before, after = utility.accuracies["upside down"]
    assert before > 0.6
    assert abs(after - before) <= 0.1
    itself = measure_utility(clean, clean, images)
    assert itself.mean_cosine == pytest.approx(1, abs=1e-6)


def test_wrong_keys_find_nothing_more_often_than_they_may(marked, clean, images):
    for model in (marked, clean):
        wrong = [generate_key(clean, images, pairs=12, seed=100 + i, steps=2) for i in range(40)]
        p_values = [verify(model, key, images, n_images=4).p_value for key in wrong]
        # Binomial(40, 0.05): more than 6 has a chance of 0.003.
        assert sum(p <= 0.05 for p in p_values) <= 6
        assert np.mean(p_values) > 0.3


def test_other_coins_find_nothing(marked, key, images):
    generator = torch.Generator().manual_seed(0)
    p_values = []
    for _ in range(40):
        tossed = torch.randint(2, (key.pairs,), generator=generator).bool()
        wrong = dataclasses.replace(key, coins=tossed)
        p_values.append(verify(marked, wrong, images, n_images=2).p_value)
    assert sum(p <= 0.05 for p in p_values) <= 6
    swapped = dataclasses.replace(key, coins=~key.coins)
    assert verify(marked, swapped, images).p_value > 0.99


def test_models_come_back_as_they_were(clean, key, images):
    model = copy.deepcopy(clean).train()
    model[0].weight.requires_grad_(False)
    before = state(model)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    verify(model, key, images, n_images=4)
    verify_classifier(model, key, images, n_images=4)
    generate_key(model, images, pairs=2, steps=2)
    embed(model, key, images, steps=45, alpha=1.0, least_utility=0, objective=weak())
    assert torch.equal(torch.rand(3), expected)
    assert same(before, state(model))
    assert model.training
    assert not model[0].weight.requires_grad
    assert model[1].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def weak():
    return wm.ownership.Objective(apart=-9)


def test_a_marked_copy_is_like_the_original(marked, clean, key):
    # The head is not touched, nor are the batch norms' statistics.
    for name, value in clean.state_dict().items():
        if name.startswith("11.") or "running" in name or "num_batches" in name:
            assert torch.equal(marked.state_dict()[name], value), name
    assert marked.training == clean.training
    assert [p.requires_grad for p in marked.parameters()] == [True] * 14


def test_embedding_goes_on_from_a_checkpoint(clean, key, images, tmp_path):
    arguments = {"steps": 80, "alpha": 1e-9, "progress": False}
    with pytest.raises(OwnershipError, match="after 80 steps") as whole:
        embed(clean, key, images, checkpoint=tmp_path / "whole", **arguments)

    class KilledError(Exception):
        pass

    taken = 0

    class Dies(nn.Module):
        def forward(self, x):
            nonlocal taken
            if torch.is_grad_enabled():
                taken += 1
            if taken == 60:
                raise KilledError
            return x

    dying = copy.deepcopy(clean)
    dying[9] = nn.Sequential(clean[9], Dies())
    with pytest.raises(KilledError):
        embed(dying, key, images, checkpoint=tmp_path / "part", **arguments)
    with pytest.raises(OwnershipError, match="after 80 steps") as resumed:
        embed(clean, key, images, checkpoint=tmp_path / "part", **arguments)
    assert str(resumed.value) == str(whole.value)


def test_a_checkpoint_of_another_key(clean, key, images, tmp_path):
    with pytest.raises(OwnershipError):
        embed(clean, key, images, steps=1, checkpoint=tmp_path / "state")
    other = generate_key(clean, images, pairs=key.pairs, seed=9)
    with pytest.raises(OwnershipError, match="a checkpoint of another key"):
        embed(clean, other, images, steps=1, checkpoint=tmp_path / "state")


def test_a_key_of_another_encoder(marked, key, images):
    with pytest.raises(OwnershipError, match="the key was made for weights"):
        embed(marked, key, images)


def test_too_few_images(clean, key, images):
    with pytest.raises(OwnershipError, match="16 are too few"):
        embed(clean, key, images[:16])


def test_a_goal_that_is_not_reached_is_told(clean, key, images):
    with pytest.raises(OwnershipError, match=r"after 1 steps the utility is .* allow more steps"):
        embed(clean, key, images, steps=1)


def test_the_assertions(marked, clean, key, images):
    assert assert_carries_watermark(marked, key, images=images).p_value <= ALPHA
    assert assert_no_watermark(clean, key, images=images).p_value > ALPHA
    with pytest.raises(OwnershipMismatchError, match="does not carry the key") as caught:
        assert_carries_watermark(clean, key, images=images, name="release")
    assert "release does not carry" in str(caught.value)
    assert caught.value.report.p_value > ALPHA
    with pytest.raises(OwnershipMismatchError, match="carries the key") as caught:
        assert_no_watermark(marked, key, images=images)
    assert caught.value.report.agreeing == key.pairs


def test_no_verdict_where_a_null_carries_it(marked, clean, key, images):
    report = verify(marked, key, images, {"stranger": marked, "clean": clean})
    with pytest.raises(OwnershipError, match="no verdict: stranger"):
        report.carries(ALPHA)


def test_no_verdict_that_no_result_could_give(clean, images):
    short = generate_key(clean, images, pairs=5, steps=0)
    with pytest.raises(SettingsError, match="cannot be reached with 5 pairs"):
        assert_no_watermark(clean, short, images=images)
    with pytest.raises(SettingsError, match="alpha must be in"):
        verify(clean, short, images).carries(0)


def test_a_report_and_back(marked, clean, key, images, tmp_path):
    report = verify(marked, key, images, {"clean": clean}, name="release 1.0")
    report.save(tmp_path / "report.json")
    assert OwnershipReport.load(tmp_path / "report.json") == report
    with pytest.raises(ReportError, match="cannot read"):
        OwnershipReport.load(tmp_path / "none.json")


def test_what_a_lawyer_reads(marked, clean, key, images):
    text = verify(marked, key, images, {"clean": clean}, name="release 1.0").sentence()
    assert "for the model 'release 1.0'" in text
    assert "14 of 14 pairs" in text
    assert "a probability of 6.1e-05 (exact, over all 16,384 ways" in text
    assert "The same test of clean, made without the key, gave a probability of 0." in text
    labels = verify_classifier(marked, key, images, {"a": clean, "b": clean}).sentence()
    assert "got them the key image's label more often than the other one" in labels
    assert "a and b, made without the key, gave probabilities of at least" in labels


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda pixels: torch.zeros(len(pixels)), "returned float32"),
        (lambda pixels: torch.zeros(3, dtype=torch.int64), "class indices for"),
        (lambda pixels: ["cat"] * len(pixels), "class indices for"),
    ],
)
def test_answers_that_are_no_labels(key, images, answer, message):
    with pytest.raises(OwnershipError, match=message):
        verify_classifier(answer, key, images)


def test_an_encoder_has_no_labels(clean, key, images):
    with pytest.raises(OwnershipError, match="returns no logits"):
        verify_classifier(clean[:9], key, images)


def test_an_input_of_another_size(clean, key, images):
    with pytest.raises(OwnershipError, match="give the model an input of that size"):
        verify(clean, key, images, preprocess=wm.Preprocessing(size=(64, 64)))


def test_embeddings_that_are_not_finite(clean, key, images):
    broken = copy.deepcopy(clean)
    with torch.no_grad():
        broken[0].weight[0] = float("nan")
    with pytest.raises(OwnershipError, match="NaN or infinite"):
        verify(broken, key, images)
