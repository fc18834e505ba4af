"""Keys whose coins nobody could choose: what is fixed, what is drawn, and what may be claimed."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.ownership import (
    CoinDraw,
    OwnershipError,
    OwnershipKey,
    OwnershipReport,
    embed,
    generate_key,
    verify,
    verify_classifier,
)
from pytest_watermark_guard.statistics.sign_flips import sign_flip_e_values, sign_flip_p_value

BEACON = "NIST Randomness Beacon, 2027-01-15 12:00 UTC"
PULSE = "5a1e0f99c3b7421d8e6600af13"
PUBLISHED = "example.org/commitment, 2027-01-10"


@pytest.fixture(scope="module")
def committed(key):
    return key.commit(BEACON)


@pytest.fixture(scope="module")
def drawn(committed):
    return committed.draw_coins(PULSE, PUBLISHED)


def test_anyone_derives_the_coins(committed, drawn):
    text = f"{committed.commitment}\n{PULSE}"
    expected = [byte & 1 for byte in hashlib.shake_256(text.encode()).digest(drawn.pairs)]
    assert drawn.coins.int().tolist() == expected
    assert drawn.commitment == committed.commitment
    assert torch.equal(committed.draw_coins(f" {PULSE}\n", PUBLISHED).coins, drawn.coins)
    assert drawn.coin_draw.value == PULSE


def test_the_commitment_is_of_everything_else(committed):
    for name, other in (
        ("perturbations", committed.perturbations.flip(1)),
        ("key_image", 255 - committed.key_image),
        ("images", committed.images.flip(0)),
        ("clean_leads", -committed.clean_leads),
        ("clean_leads", committed.clean_leads[:0]),
        ("encoder", "another"),
        ("seed", 99),
        ("coin_draw", dataclasses.replace(committed.coin_draw, beacon="another")),
        ("coin_draw", dataclasses.replace(committed.coin_draw, nonce="another")),
    ):
        changed = dataclasses.replace(committed, **{name: other})
        assert changed.commitment != committed.commitment, name


def test_a_commitment_does_not_tell_the_key(key):
    assert key.commit(BEACON).commitment != key.commit(BEACON).commitment


def test_other_values_give_other_coins(committed):
    coins = {
        tuple(committed.draw_coins(f"{PULSE}{i}", PUBLISHED).coins.tolist()) for i in range(40)
    }
    assert len(coins) > 35


def test_nothing_is_done_before_the_draw(committed, clean, images, tmp_path):
    for use in (
        lambda: embed(clean, committed, images),
        lambda: verify(clean, committed),
        lambda: verify_classifier(clean, committed),
        lambda: committed.chosen,
        lambda: committed.decoys,
    ):
        with pytest.raises(OwnershipError, match=r"its coins are not drawn yet: once 'NIST"):
            use()
    committed.save(tmp_path / "key")
    again = OwnershipKey.load(tmp_path / "key", published=committed.commitment)
    assert not again.is_drawn
    assert again.draw_coins(PULSE, PUBLISHED).commitment == committed.commitment


def test_there_is_one_commitment_and_one_draw(key, committed, drawn):
    with pytest.raises(OwnershipError, match="who commits twice can choose between two draws"):
        committed.commit("another beacon")
    with pytest.raises(OwnershipError, match="a commitment is good for one draw"):
        drawn.draw_coins(PULSE + "1", PUBLISHED)
    with pytest.raises(OwnershipError, match=r"was not committed: use key\.commit"):
        key.draw_coins(PULSE, PUBLISHED)


def test_what_could_be_guessed_or_says_nothing(key, committed):
    with pytest.raises(OwnershipError, match="could be guessed"):
        committed.draw_coins("   12345678    ", PUBLISHED)
    with pytest.raises(OwnershipError, match="published must be a text"):
        committed.draw_coins(PULSE, " ")
    with pytest.raises(OwnershipError, match="beacon must be a text"):
        key.commit("")
    earlier = dataclasses.replace(key, images=key.images[:0])
    with pytest.raises(OwnershipError, match="holds no images for verification"):
        earlier.commit(BEACON)


def test_a_file_and_back(drawn, tmp_path):
    drawn.save(tmp_path / "key")
    again = OwnershipKey.load(tmp_path / "key", published=drawn.commitment[:16])
    assert again.hash == drawn.hash
    assert again.coin_draw == drawn.coin_draw
    assert torch.equal(again.images, drawn.images)
    with pytest.raises(OwnershipError, match="its commitment is"):
        OwnershipKey.load(tmp_path / "key", published=drawn.hash)


def test_a_value_has_one_way_to_be_written(committed, drawn):
    again = committed.draw_coins(f"{PULSE[:8].upper()} {PULSE[8:]}", PUBLISHED)
    assert torch.equal(again.coins, drawn.coins)
    for other in (PULSE + "\u200b", PULSE.replace("a", "\u0430"), 5 * 10**20, "\udcff" * 20):
        with pytest.raises(OwnershipError, match="value"):
            committed.draw_coins(other, PUBLISHED)
    for change in ({"value": PULSE.upper()}, {"beacon": ""}, {"published": " "}):
        with pytest.raises(OwnershipError, match="key: "):
            dataclasses.replace(drawn, coin_draw=dataclasses.replace(drawn.coin_draw, **change))


def test_one_commitment_is_of_one_number_of_pairs(key):
    """The same bytes, told as fewer pairs and more images, are another key."""
    small = dataclasses.replace(
        key, images=key.images[:2], epsilon=127 / 255, perturbations=key.perturbations // 2
    )
    once = small.commit(BEACON)
    last, rest = once.perturbations[-1], once.perturbations[:-1]
    images = torch.cat([last[1:].view(torch.uint8), once.key_image[None], once.images])
    other = dataclasses.replace(
        once, perturbations=rest, key_image=last[0].view(torch.uint8), images=images,
        clean_leads=once.clean_leads[1:],
    )  # fmt: skip
    assert other.commitment != once.commitment


def test_chosen_coins_are_refused(drawn, tmp_path):
    with pytest.raises(OwnershipError, match="its coins are not those that follow from"):
        dataclasses.replace(drawn, coins=~drawn.coins)
    with pytest.raises(OwnershipError, match="its coins are not those that follow from"):
        dataclasses.replace(drawn, perturbations=drawn.perturbations.flip(1))
    with pytest.raises(OwnershipError, match="its coins are not those that follow from"):
        dataclasses.replace(drawn, coin_draw=dataclasses.replace(drawn.coin_draw, value="x" * 20))


def test_a_key_of_an_earlier_version(key, tmp_path, clean, images):
    key.save(tmp_path / "key")
    with safe_open(tmp_path / "key", "pt") as file:
        tensors = {n: file.get_tensor(n) for n in file.keys() if n != "images"}  # noqa: SIM118
        metadata = dict(file.metadata())
    earlier = dataclasses.replace(key, images=key.images[:0])
    assert earlier.hash != key.hash
    save_file(tensors, tmp_path / "key", {**metadata, "hash": earlier.hash})
    again = OwnershipKey.load(tmp_path / "key", published=earlier.hash)
    assert again.hash == earlier.hash
    assert not len(again.images)
    assert verify(clean, again, images, n_images=4).n_images == 4


def test_what_counts_as_evidence(clean, key, drawn, images):
    own, other, fewer, unproven = (
        verify(clean, drawn, name="theirs"),
        verify(clean, drawn, images),
        verify(clean, drawn, n_images=8),
        verify(clean, key),
    )
    assert own.n_images == len(key.images)
    assert [r.is_evidence for r in (own, other, fewer, unproven)] == [True, False, False, False]
    text = own.sentence()
    for part in (drawn.commitment, PUBLISHED, BEACON, PULSE, "multiply the probability by k"):
        assert part in text
    assert "The verifier tried no model of his own for comparison." in text
    compared = verify(clean, drawn, nulls={"mine": clean}).sentence()
    assert "tried no model" not in compared
    assert "This is no evidence" not in text
    prepared = verify(clean, drawn, preprocess=drawn.preprocessing)
    for report in (other, fewer, prepared):
        assert not report.is_evidence
        assert "what is picked later decides the result too" in report.sentence()
        assert "no evidence for anyone else" in report.sentence()
    assert "This is no evidence for anyone else" in unproven.sentence()
    assert drawn.coin_draw.nonce not in text


def test_a_report_and_back(clean, drawn, tmp_path):
    report = verify_classifier(clean, drawn, pairs=range(4, 9))
    report.save(tmp_path / "report.json")
    again = OwnershipReport.load(tmp_path / "report.json")
    assert again == report
    assert isinstance(again.coin_draw, CoinDraw)


def test_reports_of_other_versions(clean, key, tmp_path):
    data = verify(clean, key).to_dict()
    assert OwnershipReport.from_dict({**data, "later": 1}).p_value == data["p_value"]
    for change in ({"access": "smell"}, {"p_value": "0.1"}, {"e_value": None}):
        with pytest.raises(ValueError, match=next(iter(change))):
            OwnershipReport.from_dict({**data, **change})


def test_a_rigged_key_finds_nothing_more_often_than_it_may(clean, key, images):
    """The cheat's pairs fit the model as well as they can: one strong, one hardly there."""
    report = verify(clean, key, images, n_images=4)
    strong = torch.stack([key.perturbations[0, 0]] * key.pairs)
    faint = strong.sign()
    order = torch.tensor([pair % 2 == 0 for pair in range(key.pairs)])[:, None, None, None]
    pairs = torch.stack([strong.where(order, faint), faint.where(order, strong)], dim=1)
    # With coins of his own he convinces.
    for coins in (~order.flatten(), order.flatten()):
        rigged = dataclasses.replace(
            key, perturbations=pairs, coins=coins, seed=1, clean_leads=key.clean_leads[:0]
        )
        if (report := verify(clean, rigged)).effect > 0:
            break
    assert report.p_value <= 1e-3
    # With drawn ones he does not.
    few = dataclasses.replace(
        key, perturbations=pairs, images=key.images[:4], clean_leads=key.clean_leads[:0]
    )
    assert found_often(clean, few) <= 8


def found_often(clean, key):
    once = key.commit(BEACON)
    drawn = (once.draw_coins(f"{PULSE}{number}", PUBLISHED) for number in range(60))
    return sum(verify(clean, one).p_value <= 0.05 for one in drawn)


def test_what_is_said_of_the_clean_encoder_cannot_be_rigged(clean, key):
    """The cheat says that the clean encoder did a little less for what his coins chose."""
    few = dataclasses.replace(key, images=key.images[:4], clean_leads=key.clean_leads[:0])
    signs = few.coins.double() * 2 - 1
    leads = torch.tensor(verify(clean, few).differences, dtype=torch.float64) * signs
    if (leads * signs).sum() < 0:  # the other coins, for which all of it is subtracted
        signs = -signs
    rigged = dataclasses.replace(few, coins=signs > 0, clean_leads=leads - 1e-6 * signs)
    assert verify(clean, rigged).p_value == 2.0**-key.pairs
    assert found_often(clean, rigged) <= 8


def test_a_part_of_the_pairs_is_spent(clean, key):
    # What is subtracted depends on all pairs that are asked.
    key = dataclasses.replace(key, clean_leads=key.clean_leads[:0])
    whole = verify(clean, key)
    first, rest = (verify(clean, key, pairs=pairs) for pairs in (range(5), range(5, key.pairs)))
    assert first.differences + rest.differences == whole.differences
    assert first.queries == 2 * 5 * len(key.images) + 1
    assert f"Asked were pairs 6 to {key.pairs}." in rest.sentence()
    assert "Asked were" not in whole.sentence()
    # Whoever asks a part could have stopped anywhere.
    assert first.p_value == min(1, 1 / sign_flip_e_values(first.differences).max())
    assert whole.p_value == sign_flip_p_value(whole.differences)
    assert "the bound holds whenever one stops" in first.sentence()


def test_a_later_part_is_no_evidence_by_itself(clean, drawn):
    first, rest = (verify(clean, drawn, pairs=pairs) for pairs in (range(5), range(5, 18)))
    assert first.is_evidence
    assert not rest.is_evidence
    assert "this is no evidence by itself. Multiply its e-value" in rest.sentence()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": range(3, 40)}, r"pairs: the key has range\(0, 18\)"),
        ({"pairs": range(3, 3)}, "pairs must be a range such as"),
        ({"pairs": [1, 2]}, "pairs must be a range such as"),
        ({"n_images": 99}, "the key holds 32 images, and 99 are wanted"),
        ({"stop_at": 0}, r"stop_at must be in \(0, 1\)"),
        ({"stop_at": "soon"}, r"stop_at must be in \(0, 1\)"),
    ],
    ids=str,
)
def test_what_cannot_be_asked(clean, key, arguments, message):
    with pytest.raises(SettingsError, match=message):
        verify_classifier(clean, key, **arguments)


def test_questions_end_as_soon_as_they_may(marked, key):
    @torch.no_grad()
    def scores(pixels):
        return marked(marked.preprocessing.to_input(pixels)).softmax(1)

    whole = verify_classifier(scores, key)
    report = verify_classifier(scores, key, stop_at=0.05)
    assert report.pairs < whole.pairs
    assert report.differences == whole.differences[: report.pairs]
    assert report.p_value == pytest.approx(1 / report.e_value)
    assert report.carries(0.05)
    assert report.queries < whole.queries
    assert "the bound holds whenever one stops" in report.sentence()
    never = verify_classifier(lambda pixels: [0] * len(pixels), key, stop_at=1e-3)
    assert never.pairs == key.pairs
    assert never.p_value == 1
    assert not never.carries(1e-3)
    # The plan, from a rehearsal: about what it took.
    needed = whole.queries_needed(0.05)
    assert needed is not None
    assert needed <= whole.queries
    assert whole.queries_needed(1e-9) is None
    with pytest.raises(SettingsError, match=r"were to stop at 0\.05, and alpha is 0\.001"):
        report.carries(1e-3)
    with pytest.raises(SettingsError, match="alpha 1e-09 cannot be reached with 18 pairs"):
        verify_classifier(scores, key, stop_at=1e-9)


def test_nulls_are_asked_to_the_end(marked, key):
    @torch.no_grad()
    def scores(pixels):
        return marked(marked.preprocessing.to_input(pixels)).softmax(1)

    nulls = {"one": scores, "other": scores, "third": scores}
    report = verify_classifier(scores, key, nulls=nulls, stop_at=0.04)
    whole = verify_classifier(scores, key)
    assert [null.p_value for null in report.nulls] == [whole.p_value] * 3
    with pytest.raises(OwnershipError, match="no verdict: one"):
        report.carries(0.04)


@pytest.mark.parametrize("n_images", [18, 24, 32])
def test_answers_that_do_not_depend_on_coins_are_worth_nothing(key, n_images):
    """Each pair's first pattern changes the label of one image: pairs agree where coins do."""
    asked = 0

    def answers(pixels):
        nonlocal asked
        labels = torch.zeros(len(pixels), dtype=torch.int64)
        if len(pixels) > 1:
            if asked % 2 == 0:
                labels[asked // 2 % len(pixels)] = 1
            asked += 1
        return labels

    report = verify_classifier(answers, key, n_images=n_images)
    signs = key.coins.double() * 2 - 1
    assert np.array_equal(report.agreement, 2 / n_images**2 * torch.outer(signs, signs))
    assert report.p_value > 1e-3


def test_labels_need_no_label_in_particular(key):
    """Chosen patterns change the label, to anything but the key image's."""
    texts = {bytes(key.key_image.numpy()): 0}

    def answers(pixels):
        found = []
        for image in pixels:
            if bytes(image.numpy()) in texts:
                found.append(0)
                continue
            shift = (image.short()[None] - key.images.short()).abs().amax((1, 2, 3))
            original = key.images[int(shift.argmin())]
            steps = image.short() - original.short()
            inside = (original > 24) & (original < 231)
            near = [int(((w.short() - steps) * inside).abs().sum()) for w in key.chosen]
            found.append(2 if min(near) == 0 and shift.min() > 0 else 1)
        return found

    report = verify_classifier(answers, key, n_images=4)
    assert report.effect == 0
    # All coins the other way round would agree as well.
    assert report.p_value == 2 * 2.0**-key.pairs
    assert report.agreeing == key.pairs
    assert np.min(report.agreement) > 0.5
    assert "(exact, over all 262,144 ways in which" in report.sentence()


def test_keys_of_one_kind_take_the_images_they_are_told(clean, images):
    key = generate_key(clean, images, pairs=2, steps=0, n_images=5)
    assert key.images.shape == (5, 3, 32, 32)
    with pytest.raises(SettingsError, match="n_images must be an integer >= 1"):
        generate_key(clean, images, pairs=2, steps=0, n_images=0)
