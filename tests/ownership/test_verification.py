"""The mark is found where it was embedded, and nowhere else."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import (
    ModelError,
    ReportError,
    SettingsError,
    WatermarkGuardError,
)
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
PAIRS = 18


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_marked_encoder_carries_it(marked, clean, key, images):
    report = verify(marked, key, images, {"clean": clean})
    assert report.p_value <= 2e-4
    assert report.carries(ALPHA)
    assert report.adjusted
    expected = float(key.expected_leads(range(key.pairs)).mean())
    share = (report.chosen - report.decoy - report.effect) / expected
    assert 0 <= share <= 1
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
    assert utility.mean_cosine >= 0.96
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
    given = {"alpha": 1, "least_utility": 0, "objective": modest(), "learning_rate": 3e-3}
    copied = embed(model, key, images, steps=85, **given)
    assert not torch.equal(copied[0].bias, model[0].bias)  # it was trained, and the model was not
    assert torch.equal(torch.rand(3), expected)
    assert same(before, state(model))
    assert model.training
    assert not model[0].weight.requires_grad
    assert model[1].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def modest():
    """Return what is reached after a few steps, and not after none."""
    return wm.ownership.Objective(utility=1, whitened=0.0, apart=0.02)


def test_a_marked_copy_is_like_the_original(marked, clean, key):
    # The head is not touched, nor are the batch norms' statistics.
    for name, value in clean.state_dict().items():
        if name.startswith("11.") or "running" in name or "num_batches" in name:
            assert torch.equal(marked.state_dict()[name], value), name
    assert marked.training == clean.training
    assert [p.requires_grad for p in marked.parameters()] == [True] * 14


def test_embedding_goes_on_from_a_checkpoint(clean, key, images, tmp_path):
    arguments = {"steps": 80, "alpha": 1e-4, "least_utility": 1, "progress": False}
    with pytest.raises(OwnershipError, match="after 80 steps") as whole:
        embed(clean, key, images, checkpoint=tmp_path / "whole", **arguments)

    class KilledError(BaseException):  # as an interruption is: no error of the model
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
    one, other = (
        torch.load(tmp_path / name, weights_only=True)["state"] for name in ("whole", "part")
    )
    assert one["taken"] == other["taken"] == 80
    assert torch.equal(one["generator"], other["generator"])
    for weights in ("parameters", "average"):
        assert all(map(torch.equal, one[weights], other[weights]))


def test_weights_are_averaged_over_the_steps(clean, key, images, tmp_path):
    seen = []

    def record(layer, _):
        if torch.is_grad_enabled():  # once a step, before it is taken
            seen.append(layer.weight.detach().clone())

    watched = copy.deepcopy(clean)
    watched[0].register_forward_pre_hook(record)
    with pytest.raises(OwnershipError, match="after 4 steps"):
        embed(watched, key, images, steps=4, checkpoint=tmp_path / "state", alpha=1e-4)
    state = torch.load(tmp_path / "state", weights_only=True)["state"]
    after = torch.stack([*seen[1:], state["parameters"][0]])
    assert len(after) == 4
    assert not torch.equal(after[0], after[3])
    torch.testing.assert_close(state["average"][0], after.mean(dim=0))


def test_weights_go_back_as_far_as_utility_needs_it(clean, images):
    key = generate_key(clean, images, pairs=6, seed=3, epsilon=64 / 255)
    given = {"steps": 39, "alpha": 1, "learning_rate": 5e-3, "progress": False}
    given["objective"] = wm.ownership.Objective(utility=3, whitened=0.0, apart=0.05)
    far = embed(clean, key, images, least_utility=0, **given)
    reached = measure_utility(clean, far, images).mean_cosine
    # How far training comes depends on how a machine rounds.
    near = embed(clean, key, images, least_utility=1 - 0.8 * (1 - reached), **given)
    assert reached < measure_utility(clean, near, images).mean_cosine
    first, last = (model[0].weight.detach() - clean[0].weight.detach() for model in (far, near))
    share = float((first * last).sum() / first.square().sum())
    assert 0.4 < share < 0.96
    torch.testing.assert_close(last, share * first, atol=1e-6, rtol=1e-3)
    # Where the mark would be lost on the way, there is an error.
    with pytest.raises(OwnershipError, match="after 39 steps the utility is"):
        embed(clean, key, images, least_utility=0.9999, **given)


def test_a_checkpoint_of_another_training(clean, key, images, tmp_path):
    def train(key=key, **other):
        given = {"steps": 1, "alpha": 1e-4, "checkpoint": tmp_path / "state", **other}
        embed(clean, key, images, **given)

    with pytest.raises(OwnershipError, match="after 1 steps"):
        train()
    with pytest.raises(OwnershipError, match="is of another key"):
        train(generate_key(clean, images, pairs=key.pairs, seed=9))
    with pytest.raises(OwnershipError, match=r"another learning_rate \(0\.001, and here 0\.01"):
        train(learning_rate=0.01)
    with pytest.raises(OwnershipError, match="is of another objective"):
        train(objective=modest())
    with pytest.raises(OwnershipError, match="is of another images"):
        train(max_images=40)
    with pytest.raises(OwnershipError, match="after 41 steps"):
        train(steps=41)
    with pytest.raises(OwnershipError, match="after 41 steps"):
        train(steps=20)  # more than these were taken


def test_files_that_are_no_checkpoint(clean, key, images, tmp_path):
    (tmp_path / "noise").write_bytes(b"no checkpoint")
    torch.save({"model": 1}, tmp_path / "other")
    for name in ("noise", "other"):
        with pytest.raises(OwnershipError, match=f"{name}' holds no checkpoint: .* delete it"):
            embed(clean, key, images, alpha=1e-4, checkpoint=tmp_path / name)
    with pytest.raises(OwnershipError, match="cannot be written"):
        embed(clean, key, images, alpha=1e-4, checkpoint=tmp_path / "noise" / "state")


@pytest.mark.parametrize("part", ["parameters", "average", "optimizer", "generator", "balance"])
def test_checkpoints_of_which_a_part_does_not_fit(clean, key, images, tmp_path, part):
    given = {"steps": 1, "alpha": 1e-4, "checkpoint": tmp_path / "state"}
    with pytest.raises(OwnershipError, match="after 1 steps"):
        embed(clean, key, images, **given)
    whole = torch.load(tmp_path / "state", weights_only=True)
    for other in (None, [], "missing"):
        state = {**whole["state"], part: other}
        if other == "missing":
            del state[part]
        if part == "balance" and other != "missing":
            continue
        torch.save({**whole, "state": state}, tmp_path / "state")
        with pytest.raises(OwnershipError, match=r"state' holds no checkpoint: .* delete it"):
            embed(clean, key, images, **given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"batch_size": 1.5}, "batch_size must be an integer"),
        ({"max_images": -1}, "max_images must be an integer"),
        ({"alpha": 1e-8}, "cannot be reached with 18 pairs"),
        ({"least_utility": 1.5}, "least_utility must be at most 1"),
        ({"least_utility": float("nan")}, "least_utility must be at most 1"),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_used(clean, key, images, arguments, message):
    with pytest.raises(SettingsError, match=message):
        embed(clean, key, images, **arguments)
    with pytest.raises(SettingsError, match="apart must be positive"):
        wm.ownership.Objective(apart=0)
    with pytest.raises(SettingsError, match="n_images must be an integer >= 1"):
        verify(clean, key, images, n_images=0)


def test_weights_that_are_too_coarse(clean, images):
    half = copy.deepcopy(clean).to(torch.bfloat16)
    key = generate_key(half, images, pairs=2, steps=1)
    assert 0 < verify(half, key, images, n_images=4).p_value <= 1
    with pytest.raises(OwnershipError, match=r"weights are torch\.bfloat16"):
        embed(half, key, images, alpha=0.5)


def test_a_program_that_came_out_of_an_encoder(clean, marked, key, images):
    program = torch.export.export(marked, (torch.rand(4, 3, 32, 32),)).module()
    report = verify_classifier(program, key, images, n_images=4)
    assert report.queries == 2 * key.pairs * 4 + 1
    with pytest.raises(OwnershipError, match="the model that was exported or scripted"):
        generate_key(program, images, pairs=2, steps=0, preprocess=key.preprocessing)


def test_a_key_of_another_encoder(marked, key, images):
    with pytest.raises(OwnershipError, match="the key was made for weights"):
        embed(marked, key, images, alpha=1e-3)


def test_too_few_images(clean, key, images):
    with pytest.raises(OwnershipError, match="32 are too few"):
        embed(clean, key, images[:32], alpha=1e-3)


def test_a_goal_that_is_not_reached_is_told(clean, key, images):
    with pytest.raises(OwnershipError, match=r"after 1 steps the utility is .* allow more steps"):
        embed(clean, key, images, steps=1, alpha=1e-3)


def test_the_assertions(marked, clean, key, images):
    assert assert_carries_watermark(marked, key, images=images).p_value <= ALPHA
    assert assert_no_watermark(clean, key, images=images).p_value > ALPHA
    with pytest.raises(OwnershipMismatchError, match="does not carry the key") as caught:
        assert_carries_watermark(clean, key, images=images, name="release")
    assert "release does not carry" in str(caught.value)
    assert caught.value.report.p_value > ALPHA
    with pytest.raises(OwnershipMismatchError, match="carries the key") as caught:
        assert_no_watermark(marked, key, images=images)
    assert caught.value.report.agreeing >= 12


def test_no_verdict_where_a_null_carries_it(marked, clean, key, images):
    report = verify(marked, key, images, {"stranger": marked, "clean": clean})
    with pytest.raises(OwnershipError, match="no verdict: stranger"):
        report.carries(ALPHA)
    # Of ten pairs no p-value is below 1e-3 / 2: the least that there is must be enough.
    short = dataclasses.replace(
        report,
        differences=report.differences[:10],
        nulls=tuple(dataclasses.replace(null, p_value=2.0**-10) for null in report.nulls),
    )
    with pytest.raises(OwnershipError, match="no verdict: stranger"):
        short.carries(ALPHA)


def test_images_are_read_once_for_a_model_and_its_nulls(clean, key, images):
    read = []

    class Photos(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            read.append(index)
            return images[index]

    verify(clean, key, Photos(), {"one": clean, "other": clean}, n_images=4)
    assert len(read) == len(set(read)) == 4


def test_a_wrong_key_is_a_null(marked, clean, key, images):
    wrong = generate_key(clean, images, pairs=PAIRS, seed=77)
    report = verify(marked, key, images, {"a wrong key": wrong, "the right one": key})
    assert report.nulls[0].p_value == verify(marked, wrong, images).p_value
    assert report.nulls[1].p_value == report.p_value
    with pytest.raises(OwnershipError, match="no verdict: the right one"):
        report.carries(ALPHA)


def test_who_changes_his_mind_half_way_tells_nothing_of_the_coins(key, images):
    def asked_with(key):
        seen = []

        def answers(pixels):
            seen.extend(bytes(image) for image in pixels.numpy())
            # The key image's label first, and from the middle on another one.
            return torch.full((len(pixels),), int(len(seen) > key.pairs * 4))

        return verify_classifier(answers, key, images, n_images=4), seen

    report, seen = asked_with(key)
    assert report.p_value > 0.1
    other, seen_with_other_coins = asked_with(dataclasses.replace(key, coins=~key.coins))
    assert seen == seen_with_other_coins
    assert other.effect == -report.effect


def test_scores_are_more_than_labels(marked, key, images):
    def scores(pixels):
        with torch.no_grad():
            return marked(marked.preprocessing.to_input(pixels)).softmax(1)

    report = assert_carries_watermark(scores, key, images=images, n_images=32)
    assert report.access == "scores"
    assert "changed the scores (compared with the other one)" in report.sentence()
    listed = verify_classifier(lambda pixels: scores(pixels).tolist(), key, images, n_images=32)
    assert listed.differences == pytest.approx(report.differences, abs=1e-6)
    with pytest.raises(OwnershipMismatchError, match="carries the key"):
        assert_no_watermark(scores, key, images=images, n_images=32)


def test_no_verdict_that_no_result_could_give(clean, images):
    short = generate_key(clean, images, pairs=5, steps=0)
    with pytest.raises(SettingsError, match="cannot be reached with 5 pairs"):
        assert_no_watermark(clean, short, images=images)
    for alpha in (0, 1):
        with pytest.raises(SettingsError, match="alpha must be in"):
            verify(clean, short, images).carries(alpha)


def test_a_report_and_back(marked, clean, key, images, tmp_path):
    report = verify(marked, key, images, {"clean": clean}, name="release 1.0")
    report.save(tmp_path / "report.json")
    assert OwnershipReport.load(tmp_path / "report.json") == report
    with pytest.raises(ReportError, match="cannot read"):
        OwnershipReport.load(tmp_path / "none.json")


def test_what_a_lawyer_reads(marked, clean, key, images):
    report = verify(marked, key, images, {"clean": clean}, name="release 1.0")
    text = report.sentence()
    assert "for the model 'release 1.0'" in text
    assert f"{report.agreeing} of 18 pairs" in text
    assert f"a probability of {report.p_value:.3g} (exact, over all 262,144 ways" in text
    assert "For comparison, the same test of clean gave a probability of 0." in text
    labels = verify_classifier(marked, key, images, {"a": clean, "b": clean}).sentence()
    assert "changed the labels (compared with the other one) as it does in the other" in labels
    assert "the same test of a and b gave probabilities of at least" in labels


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda pixels: torch.zeros(len(pixels)), "returned float32"),
        (lambda pixels: torch.full((len(pixels), 3), torch.nan), "NaN or infinite"),
        ("a string that names nothing", "model spec"),
        (3, "a function from pixels to labels or scores, not int"),
        (lambda pixels: torch.zeros(3, dtype=torch.int64), "returned int64 of shape"),
        (lambda pixels: [[0.5], [0.5, 0.5]], "answers are no array"),
        (lambda pixels: torch.full((len(pixels), 2), 1e200, dtype=torch.float64), "infinite"),
        (lambda pixels: torch.zeros(len(pixels), 1 + (len(pixels) > 1)), "as many scores"),
        (lambda pixels: torch.zeros(len(pixels), 0), "must return 1 class indices"),
        (lambda pixels: ["cat"] * len(pixels), "must return 1 class indices, or scores of shape"),
    ],
)
def test_answers_that_are_no_labels(key, images, answer, message):
    with pytest.raises(WatermarkGuardError, match=message):
        verify_classifier(answer, key, images)


def test_an_encoder_has_no_labels(clean, key, images):
    backbone = copy.deepcopy(clean)
    backbone[-1] = nn.Identity()
    for encoder in (clean[:9], backbone):
        with pytest.raises(OwnershipError, match="returns no logits"):
            verify_classifier(encoder, key, images)


def test_an_input_of_another_size(clean, key, images):
    with pytest.raises(OwnershipError, match="give the model an input of that size"):
        verify(clean, key, images, preprocess=wm.Preprocessing(size=(64, 64)))


def test_embeddings_that_are_not_finite(clean, key, images):
    broken = copy.deepcopy(clean)
    with torch.no_grad():
        broken[0].weight[0] = float("nan")
    with pytest.raises(OwnershipError, match="NaN or infinite"):
        verify(broken, key, images)
    with pytest.raises(OwnershipError, match="logits are NaN or infinite"):
        verify_classifier(broken, key, images)


class Raises(nn.Module):
    """Takes the example, and no image."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.left = runs

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise ValueError("no such size")
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(("runs", "doing"), [(0, "finding its features"), (3, "embedding images")])
def test_what_a_model_raises_says_what_it_was_fed(key, images, runs, doing):
    with pytest.raises(ModelError, match=rf"Raises raised ValueError: no such size\nwhile {doing}"):
        verify(Raises(runs), key, images)
