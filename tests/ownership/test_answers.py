"""What pairs change in answers, and what the clean encoder predicts of that."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from sklearn.linear_model import Ridge

from pytest_watermark_guard.errors import OwnershipError
from pytest_watermark_guard.ownership import generate_key, verify_classifier
from pytest_watermark_guard.ownership.answers import PairAnswers
from pytest_watermark_guard.statistics.sign_flips import agreement_p_value

N, UNITS, CLASSES, PAIRS = 12, 5, 3, 8


def some_pairs(seed):
    """Labels and scores that follow from embeddings, and these: [pairs, 2, n, ...]."""
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.randn(PAIRS, 2, 1, UNITS, generator=generator)
    embedded = shifts + torch.randn(N, UNITS, generator=generator)
    scores = (embedded @ torch.randn(UNITS, CLASSES, generator=generator)).double()
    return scores.argmax(-1), scores, embedded


def changes_of(answers, embedded, coins=(False,) * PAIRS):
    """What pairs change: less what those before them predict, and less what all of them do."""
    pairs = PairAnswers()
    for one, other, coin in zip(answers, embedded, coins, strict=False):
        pairs.add(one, int(coin), other)
    return pairs.so_far(), pairs.whole()


@given(st.integers(0, 2**32 - 1), st.lists(st.booleans(), min_size=PAIRS, max_size=PAIRS))
def test_coins_are_signs_and_nothing_else(seed, coins):
    labels, scores, embedded = some_pairs(seed)
    signs = np.array([-1.0 if coin else 1.0 for coin in coins])
    for answers in (labels, scores):
        none, drawn = changes_of(answers, embedded), changes_of(answers, embedded, coins)
        for before, after in zip(none, drawn, strict=True):
            if answers is labels:
                assert np.array_equal(after.of_label(1), before.of_label(1) * signs)
            expected = before.agreement() * np.outer(signs, signs)
            np.testing.assert_allclose(after.agreement(), expected, rtol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, PAIRS))
def test_later_pairs_change_nothing_in_what_is_known_so_far(seed, count):
    labels, _, embedded = some_pairs(seed)
    part = changes_of(labels[:count], embedded[:count])[0].agreement()
    whole = changes_of(labels, embedded)[0].agreement()
    np.testing.assert_allclose(part, whole[:count, :count], rtol=1e-9, atol=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_labels_are_counted(seed):
    """Without embeddings: the difference of two tables of counts."""
    labels, _, _ = some_pairs(seed)
    counts = np.array([[np.bincount(one, minlength=CLASSES) for one in pair] for pair in labels])
    changes = (counts[:, 0] - counts[:, 1]) / N  # the first is chosen
    whole = (counts[:, 0] - counts[:, 1]).astype(float)
    for found in changes_of(labels, [None] * PAIRS):
        # Exactly: what rounding leaves of a zero would count.
        assert np.array_equal(found.agreement(), whole @ whole.T / N**2)
        np.testing.assert_array_equal(found.of_label(1), changes[:, 1])
        assert found.of_label(99).tolist() == [0] * PAIRS


def squares(answers, embedded):
    """Squares of what is left of each pair's change, added up over classes: [2, pairs]."""
    return np.stack([np.diag(found.agreement()) for found in changes_of(answers, embedded)])


def test_what_embeddings_tell_is_no_news():
    """Scores that follow from the embeddings: after a few pairs almost nothing is left."""
    _, scores, embedded = some_pairs(0)
    (so_far, whole), (all_of_it, _) = squares(scores, embedded), squares(scores, [None] * PAIRS)
    assert so_far[0] == all_of_it[0]  # nothing is known before the first one
    assert so_far[4:].sum() < 0.1 * all_of_it[4:].sum()
    assert whole.sum() < 0.1 * all_of_it.sum()


def test_what_embeddings_do_not_tell_stays():
    """Of embeddings of other queries nothing follows: the factor keeps the harm small."""
    _, scores, _ = some_pairs(0)
    _, _, others = some_pairs(1)
    all_of_it = squares(scores, [None] * PAIRS)[0].sum()
    for left in squares(scores, others):
        assert left.sum() == pytest.approx(all_of_it, rel=0.15)


def test_predictions_and_factors_are_scikit_learns():
    """Scores of one class: by hand, with fits of the pairs before, and of all others."""
    _, scores, embedded = some_pairs(2)
    scores = scores[..., :1]
    so_far, whole = changes_of(scores, embedded)
    shifts = (embedded[:, 0] - embedded[:, 1].double()).mean(dim=1)
    found = np.asarray((scores[:, 0] - scores[:, 1]).mean(dim=1)[:, 0])

    def predicted(pair, by):
        """Of one pair by some pairs."""
        if not by:
            return 0.0
        x, y = embedded[by].reshape(-1, UNITS).double(), scores[by].reshape(-1)
        penalty = 0.1 * len(x) * float(x.var(dim=0, correction=0).mean())
        return float(np.asarray(shifts[pair]) @ Ridge(alpha=penalty).fit(x, y).coef_)

    def factor(found, predicted):
        return min(max(found @ predicted / (predicted @ predicted), 0), 2) if any(predicted) else 0

    before = np.array([predicted(pair, [*range(pair)]) for pair in range(PAIRS)])
    factors = [factor(found[:pair], before[:pair]) for pair in range(PAIRS)]
    left = found - factors * before
    np.testing.assert_allclose(so_far.agreement(), np.outer(left, left), rtol=1e-5)
    others = [[other for other in range(PAIRS) if other != pair] for pair in range(PAIRS)]
    by_others = np.array([predicted(pair, by) for pair, by in enumerate(others)])
    left = found - factor(found, by_others) * by_others
    np.testing.assert_allclose(whole.agreement(), np.outer(left, left), rtol=1e-5)


def test_predictions_of_the_wrong_sign_are_not_subtracted():
    """Pairs that move embeddings against what images teach."""
    images = torch.randn(N, 1, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    embedded = [images + shift] * PAIRS
    scores = [(3 * images - shift).expand(2, N, 1).double()] * PAIRS
    np.testing.assert_allclose(squares(scores, embedded), 1.0)


def test_a_masked_class_hides_nothing():
    _, scores, embedded = some_pairs(0)
    masked = torch.cat(
        [scores, torch.full_like(scores[..., :1], torch.finfo(torch.float32).min)], -1
    )
    np.testing.assert_allclose(squares(masked, embedded), squares(scores, embedded), rtol=1e-6)


def test_labels_that_never_change_are_worth_nothing():
    labels, _, embedded = some_pairs(0)
    for found in changes_of(torch.full_like(labels, 7), embedded):
        assert (found.agreement() == 0).all()
        assert agreement_p_value(found.agreement(), np.zeros(PAIRS), 0) == 1


def answers(model):
    @torch.no_grad()
    def labels(pixels):
        return model(model.preprocessing.to_input(pixels)).argmax(1)

    return labels


def test_a_weak_mark_is_found_beside_what_pairs_do_to_answers_anyway():
    generator = torch.Generator().manual_seed(0)
    pairs, mark = 30, torch.tensor([0.3, 0.0, 0.0])
    coins = torch.randint(2, (pairs,), generator=generator).bool()
    shifts = 0.3 * torch.randn(pairs, 2, 1, UNITS, generator=generator)
    embedded = shifts + torch.randn(N, UNITS, generator=generator)
    scores = (embedded @ torch.randn(UNITS, CLASSES, generator=generator)).double()
    for pair, coin in enumerate(coins):
        scores[pair, int(coin)] += mark
    none = np.zeros(pairs)
    _, alone = changes_of(scores, [None] * pairs, coins)
    assert agreement_p_value(alone.agreement(), none, 0) > 0.01
    for compared in changes_of(scores, embedded, coins):
        assert agreement_p_value(compared.agreement(), none, 0) < 1e-4


def test_a_clean_encoder_costs_no_queries(marked, clean, key):
    alone, compared = (
        verify_classifier(answers(marked), key, n_images=16, clean_encoder=encoder)
        for encoder in (None, clean)
    )
    assert compared.queries == alone.queries
    assert compared.adjusted
    assert not alone.adjusted
    assert (
        "beyond what is predicted from the encoder that the key was made for" in compared.sentence()
    )


def test_parts_and_stops_are_compared_as_well(marked, clean, key):
    whole, part = (
        verify_classifier(answers(marked), key, n_images=8, pairs=pairs, clean_encoder=clean)
        for pairs in (None, range(9))
    )
    assert part.pairs == 9
    assert whole.e_value != part.e_value
    stopped = verify_classifier(answers(marked), key, n_images=8, stop_at=0.5, clean_encoder=clean)
    assert stopped.pairs < key.pairs
    both = min(stopped.pairs, part.pairs)
    assert stopped.differences[:both] == part.differences[:both]


def test_no_coins_find_a_mark_more_often_than_they_may(clean, key):
    """Whatever the clean encoder predicts; a classifier without a mark, with 60 keys."""
    once = key.commit("a number that the verifier sends after 2027-01-15, in decimal digits")
    same = dataclasses.replace(once.coin_draw, nonce="0" * len(once.coin_draw.nonce))
    once = dataclasses.replace(once, coin_draw=same)
    p_values = [
        verify_classifier(
            answers(clean), once.draw_coins(f"{10**20 + number}", "here, 2027-01-10"),
            n_images=4, clean_encoder=clean,
        ).p_value
        for number in range(60)
    ]  # fmt: skip
    assert sum(p <= 0.05 for p in p_values) <= 8  # of Binomial(60, 0.05), P(> 8) = 0.3 %
    assert sum(p <= 0.5 for p in p_values) >= 18  # of Binomial(60, 0.5), P(< 18) = 0.1 %


def test_evidence_says_what_ran_the_encoder(marked, clean, key):
    once = key.commit("a number that the verifier sends after 2027-01-15, in decimal digits")
    drawn = once.draw_coins("12345678901234567890", "here, 2027-01-10")
    report = verify_classifier(answers(marked), drawn, clean_encoder=clean)
    assert report.is_evidence
    assert "is higher than predicted by" in report.sentence()
    assert (
        "that the encoder that the key was made for was run by code that does not know"
        in report.sentence()
    )
    assert "was run by code" not in verify_classifier(answers(marked), drawn).sentence()


def test_what_is_wrong_with_an_encoder_is_told_before_anything_is_asked(marked, clean, key):
    def never(pixels):
        raise AssertionError("asked")

    other = dataclasses.replace(key, encoder="0" * 64)
    with pytest.raises(OwnershipError, match="clean_encoder: the key was made for weights"):
        verify_classifier(never, key, clean_encoder=marked)
    with pytest.raises(OwnershipError, match=r"nulls: 'wrong': clean_encoder: .*0000"):
        verify_classifier(never, key, nulls={"wrong": other}, clean_encoder=clean)
    for encoder in ("a string that names nothing", torch.nn.Identity(), lambda x: x.mean((2, 3))):
        with pytest.raises(OwnershipError, match="clean_encoder: "):
            verify_classifier(clean, key, clean_encoder=encoder)


def test_nulls_are_compared_as_well(marked, clean, key, images):
    wrong = generate_key(clean, images, pairs=key.pairs, seed=4, steps=0, n_images=8)
    report = verify_classifier(
        answers(marked), key, n_images=8, clean_encoder=clean,
        nulls={"clean": answers(clean), "wrong": wrong},
    )  # fmt: skip
    alone = verify_classifier(answers(clean), key, n_images=8, clean_encoder=clean)
    by_wrong = verify_classifier(answers(marked), wrong, n_images=8, clean_encoder=clean)
    assert [null.p_value for null in report.nulls] == [alone.p_value, by_wrong.p_value]
