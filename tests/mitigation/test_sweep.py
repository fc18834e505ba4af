"""Heads for every share of masked features, against scikit-learn's and against each other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import ImagesError, MaskError, ReportError, SettingsError
from pytest_watermark_guard.models.linear_probe import HeadTrainer

SMALL = wm.Preprocessing(size=(48, 48))
INK = wm.Scenario("ink", ["A", "B"], length=3, size=16)
OTHER = wm.Scenario("other", ["C"], length=2, size=12)
UNITS = 10


class Eyes(nn.Module):
    """Features 0 and 1 see the brightest pixel, and so ink; the others see colours of regions."""

    def forward(self, x):
        brightest = x.amax((1, 2, 3))
        corners = x.unfold(2, 24, 24).unfold(3, 24, 24).mean((4, 5)).flatten(1)[:, : UNITS - 2]
        return torch.cat(
            [brightest[:, None], -brightest[:, None] + 0.1 * corners[:, :1], corners], 1
        )


def photos(seed, count=60):
    """Three classes by the colour of a corner; those of class 2 are brighter as well."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 60, (count, 48, 48, 3), dtype=np.uint8)
    images[..., 0] += (labels % 2 * 25).astype(np.uint8)[:, None, None]
    images[:, :6, :6] += (labels == 2).astype(np.uint8)[:, None, None, None] * 60
    return images, labels.tolist()


@pytest.fixture(scope="module")
def swept():
    pytest.importorskip("concept_erasure", reason="an optional extra")
    return sweep(alphas=(0.1, 0.2, 0.5))


def sweep(**arguments):
    (train, labels), (validation, truth) = photos(0), photos(1)
    arguments = {"scenarios": (INK,), "against": (INK, OTHER), **arguments}
    return wm.sweep(
        Eyes(),
        train,
        validation,
        train_labels=labels,
        validation_labels=truth,
        preprocess=SMALL,
        cache=False,
        **arguments,
    )


def flat(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=300)
    matches_unit = rng.normal(size=(4, 12))
    return (matches_unit[labels] + rng.normal(size=(300, 12)) * 1.5 + 3).astype(np.float32), labels


def test_heads_are_scikit_learns(features):
    x, y = features
    trainer = HeadTrainer(x, y, 4, seed=0)
    order = [5, 0, 7, 1, 2, 3, 4, 6, 8, 9, 10, 11]
    for count, head in zip((0, 3, 6), trainer.nested(order, (0, 3, 6)), strict=True):
        kept = np.setdiff1d(np.arange(12), order[:count])
        scale = np.sqrt(((x - x.mean(0)) ** 2).mean())
        scaled = (x[:, kept] - x[:, kept].mean(0)) / scale
        oracle = LogisticRegression(C=1 / (trainer.penalty * len(x)), tol=1e-8, max_iter=5000).fit(
            scaled, y
        )
        expected = oracle.predict_proba(scaled)
        logits = torch.from_numpy(head(x))
        np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=2e-3)
        assert (head.weight[order[:count]] == 0).all()


def test_the_penalty_is_chosen_on_images_held_out(features):
    x, y = features
    noise = np.random.default_rng(1).permutation(y)  # nothing to learn: the strongest is best
    assert HeadTrainer(x, noise, 4, seed=0).penalty == 3e-2
    sharp = (np.eye(4)[y] * 9 + np.random.default_rng(2).normal(size=(300, 4))).astype(np.float32)
    assert HeadTrainer(sharp, y, 4, seed=0).penalty < 3e-2


def test_what_a_mask_brings(swept):
    assert [head.alpha for head in swept.heads] == [0, 0.1, 0.2, 0.5]
    assert [head.masked for head in swept.heads] == [0, 1, 2, 5]
    assert set(swept.ranking[:2]) == {0, 1}
    plain, _, both, _ = swept.heads
    assert plain.d("ink") > 0.9
    assert both.d("ink") < plain.d("ink") - 0.1
    assert swept.erased.d("ink") < plain.d("ink") - 0.1
    assert plain.change == 0
    for head in (*swept.heads, swept.erased):
        low, high = head.accuracy_interval
        assert low < head.accuracy < high or head.accuracy in (0, 1)
        assert set(head.scores) == set(head.flips) == set(head.control_flips) == {"ink", "other"}


def test_a_mask_of_the_sweep_gives_the_very_scores(swept):
    """The head on really masked features, as a model that the probe sees: an independent way."""
    (train, labels), (validation, _) = photos(0), photos(1)
    mask = swept.mask(0.2)
    assert mask.units == (0, 1)
    masked = wm.apply_mask(Eyes(), mask, example=torch.rand(2, 3, 48, 48))
    with torch.no_grad():
        (batch,) = wm.probing_batches(train, (INK,), preprocess=SMALL, batch_size=60)
        x = masked(batch.images).numpy()
    y = np.array([labels[int(identity)] for identity in batch.identities])
    (head,) = HeadTrainer(x, y, 3, seed=17).nested(list(range(UNITS)), (0,))
    model = nn.Sequential(masked, nn.Linear(UNITS, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(head.weight.T))
        model[1].bias.copy_(torch.from_numpy(head.bias))
    report = wm.probe(model, validation, (INK,), preprocess=SMALL, cache=False, seed=18)
    np.testing.assert_allclose(
        report["logits", "ink"].auroc, swept.heads[2].scores["ink"].auroc, atol=0.02
    )


def test_one_half_chooses_and_the_other_is_reported(swept):
    assert swept.n_validation == 60
    for first, head in zip(swept.choosing, swept.heads, strict=True):
        assert (first.alpha, first.n_images, head.n_images) == (head.alpha, 30, 30)
    assert any(
        first.d("ink") != head.d("ink")
        for first, head in zip(swept.choosing, swept.heads, strict=True)
    )
    assert "with seed 17, 30 chose; all figures are of the 30 others" in flat(swept.table())


def test_a_share_is_recommended_where_the_margin_allows_for_so_few_images():
    strict = sweep(alphas=(0.2,), threshold=0.85, margin=0.3)
    best = strict.recommended
    assert best is not None
    assert best.alpha == 0.2
    assert strict.advice().startswith("Mask 0.2 of the features")
    tight = sweep(alphas=(0.2,), threshold=0.85)
    assert tight.recommended is None
    assert "A share of 0.2 was chosen on 30 images" in tight.advice()
    never = sweep(alphas=(0.2,), threshold=0.501)
    assert never.recommended is None
    assert "none brings every d under 0.501" in never.advice()


@pytest.mark.parametrize("margin", [-0.01, 1, True, "1"])
def test_margins_that_are_none(margin):
    with pytest.raises(SettingsError, match="margin must be a number in"):
        sweep(margin=margin)


def test_saved_and_loaded(swept, tmp_path):
    swept.save(tmp_path / "sweep.json")
    again = wm.SweepReport.load(tmp_path / "sweep.json")
    assert again.table() == swept.table()
    assert again.mask(0.5) == swept.mask(0.5)
    np.testing.assert_array_equal(again.erasure.left, swept.erasure.left)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "sweep.json").read_bytes()


@pytest.mark.parametrize("change", [{"heads": [{}]}, {"format": "x"}, {"classes": ["a"]}, None])
def test_files_that_hold_something_else(swept, tmp_path, change):
    path = tmp_path / "sweep.json"
    swept.save(path)
    data = json.loads(path.read_text("utf-8"))
    path.write_text("[]" if change is None else json.dumps({**data, **change}))
    with pytest.raises(ReportError):
        wm.SweepReport.load(path)


def test_the_table(swept):
    text = swept.table(ascii_only=True)
    assert text.isascii()
    assert all(len(line) <= 80 for line in text.splitlines())
    rows = [line.split("|") for line in text.splitlines() if line.startswith("0.2")]
    head = swept.heads[2]
    assert f"{head.accuracy:.3f}" in rows[0][2]
    assert "{:+.3f} to {:+.3f}".format(*head.change_interval) in rows[0][5]
    assert f"{head.largest_d:.3f}" in rows[1][1]
    assert "{:.3f}-{:.3f}".format(*head.d_interval) in rows[1][2]
    assert f"{head.d('ink'):.3f}" in rows[1][3]
    assert "\nerasure" in text
    assert swept.advice() in flat(text)


def test_the_picture(swept, tmp_path):
    pytest.importorskip("matplotlib", reason="an optional extra")
    swept.plot(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_an_alpha_that_was_not_swept(swept):
    with pytest.raises(MaskError, match=r"alpha 0.3 was not swept; known are 0, 0.1, 0.2, 0.5"):
        swept.mask(0.3)
    with pytest.raises(MaskError, match=r"in \[0, 1\], got 1.5"):
        sweep(alphas=(1.5,))
    with pytest.raises(MaskError, match=r"in \[0, 1\], got \('chinese',\)"):
        sweep(alphas=("chinese",))


def test_folders_of_classes(tmp_path):
    from PIL import Image

    for part, seed in (("train", 0), ("validation", 1)):
        for index, (pixels, label) in enumerate(zip(*photos(seed, 24), strict=True)):
            folder = tmp_path / part / "abc"[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index}.png")

    def swept_folders():
        return wm.sweep(
            Eyes(), tmp_path / "train", tmp_path / "validation", (0.2,), (INK,), (INK,),
            preprocess=SMALL, cache=False,
        )  # fmt: skip

    found = swept_folders()
    assert found.classes == ("a", "b", "c")
    assert (found.n_train, found.n_validation) == (24, 24)
    (tmp_path / "validation" / "d").mkdir()
    (tmp_path / "validation" / "a" / "0.png").rename(tmp_path / "validation" / "d" / "0.png")
    with pytest.raises(ImagesError, match="validation: class 'd' does not occur in the training"):
        swept_folders()
    (tmp_path / "validation" / "d" / "0.png").rename(tmp_path / "validation" / "0.png")
    with pytest.raises(ImagesError, match=r"'0.png' .* is in no class's subfolder"):
        swept_folders()


def test_images_without_labels_are_refused():
    train, _ = photos(0)
    with pytest.raises(ImagesError, match=r"train: image '.*' has no label"):
        wm.sweep(Eyes(), train, train, (0.2,), (INK,), (INK,), preprocess=SMALL, cache=False)
    with pytest.raises(ImagesError, match="validation: class 7 has no training image"):
        wm.sweep(
            Eyes(), train, train, (0.2,), (INK,), (INK,), preprocess=SMALL, cache=False,
            train_labels=[0, 1] * 30, validation_labels=[0, 7] * 30,
        )  # fmt: skip


def test_too_few_images_to_split():
    train, labels = photos(0)
    with pytest.raises(ImagesError, match="validation: 3 images, and one half chooses"):
        wm.sweep(
            Eyes(), train, train[:3], (0.2,), (INK,), (INK,), preprocess=SMALL, cache=False,
            train_labels=labels, validation_labels=labels[:3],
        )  # fmt: skip
