"""The HTML report's structure, words and safety, without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard import Impact, ProbeReport, Scores, judge
from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.reports.examples import PredictionExample
from pytest_watermark_guard.reports.html import units
from pytest_watermark_guard.reports.html.origin import origin_of
from pytest_watermark_guard.settings import Settings

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\u202eb\x07\udc80")
CLASSES = ("beach", "carton", "pointer", "safe")


def scores(layer, scenario, areas, names=None):
    areas = np.array(areas, dtype=float)
    names = names or tuple(map(str, range(len(areas))))
    return (layer, scenario), Scores(layer, scenario, areas, areas * 0 + 0.002, 256, names)


PLAIN = ProbeReport(
    model="torchvision:resnet18",
    baseline="256 images of the built-in set v1",
    n_images=256,
    seed=17,
    scores=dict(
        [
            scores("logits", "chinese", [0.5, 0.97, 0.71, 0.2], CLASSES),
            scores("features", "chinese", np.linspace(0.02, 0.93, 60)),
            scores("logits", "latin", [0.5, 0.52, 0.55, 0.49], CLASSES),
            scores("features", "latin", np.linspace(0.4, 0.6, 60)),
        ]
    ),
    impact={"chinese": Impact(0.382, 1, "carton", 0.061, 0.741, 0.623)},
    preprocessing="torchvision's preset",
    device="cpu",
    precision="float32",
    notes=("class names are assumed",),
)
CLEAN = replace(
    PLAIN, model="vgg", scores={k: s for k, s in PLAIN.scores.items() if k[1] == "latin"}
)


def render(entries, **options):
    with TemporaryDirectory() as folder:
        path = Path(folder, "page.html")
        wm.write_html(path, entries, **options)
        return path.read_bytes().decode()


class Page(HTMLParser):
    """Elements with their attributes, and the text of the page and of each kind of element."""

    VOID = frozenset(("meta", "link", "img", "input", "source"))

    def __init__(self, markup):
        super().__init__()
        self.elements = []
        self.texts = []
        self._open = []
        self.feed(markup)
        assert not self._open, "elements are left open"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *tags):
        return "".join(data for tag, data in self.texts if not tags or tag in tags)


def unpacked(markup):
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', markup)
    return json.loads(data)


def numbers(text, kind="<u2"):
    return np.frombuffer(base64.b64decode(text), kind)


def test_the_verdict_comes_first_in_words():
    page = Page(render([(CLEAN, [judge(CLEAN)]), (PLAIN, [judge(PLAIN)])]))
    assert page.text("h1") == "1 of 2 models fails"
    words = [data for tag, data in page.texts if tag == "span"]
    first = words.index("failed")
    assert first < words.index("passed")
    chinese = words.index("chinese")
    assert first < chinese
    assert words[chinese : chinese + 3] == [
        "chinese",
        "1 logit and 2 features react",
        "highest d 0.980, unit 0",
    ]
    assert "nothing reaches 0.95" in words


OTHER = replace(CLEAN, model="other")
FEW = replace(
    PLAIN,
    model="few",
    n_images=12,
    scores={k: replace(s, n_images=12) for k, s in PLAIN.scores.items()},
)


@pytest.mark.parametrize(
    ("entries", "failures", "expected"),
    [
        ([(PLAIN, [])], {}, "Watermark-sensitive"),
        ([(CLEAN, [])], {}, "Nothing reaches 0.95"),
        ([(CLEAN, []), (OTHER, [])], {}, "None of 2 models fails"),
        ([(FEW, [])], {}, "Inconclusive: these images cannot tell"),
        ([(CLEAN, []), (FEW, [])], {}, "None of 2 models fails, 1 inconclusive"),
        # A model that was probed twice is still one; and where there are gates, they count.
        ([(CLEAN, []), (CLEAN, [])], {}, "None of 2 probes fails"),
        ([(PLAIN, []), (CLEAN, [judge(CLEAN)])], {}, "Nothing reaches 0.95"),
        ([], {}, "No probe was made"),
        ([], {"hf:x": "no such model"}, "No model could be probed"),
        ([(CLEAN, [])], {"hf:x": "no"}, "Nothing reaches 0.95, 1 could not be probed"),
    ],
)
def test_headlines(entries, failures, expected):
    page = Page(render(entries, failures=failures))
    assert page.text("h1") == expected
    assert all(reason in page.text() for reason in failures.values())


def test_an_accepted_unit_is_no_failure():
    allow = {"logits:carton": "labels", "features:0": "a", "features:1": "b"}
    verdict = judge(PLAIN, 0.95, allow, inconclusive="pass")  # some are near the threshold
    page = Page(render([(PLAIN, [verdict])]))
    assert page.text("h1") == "Passes, with strong reactions"
    assert "3 accepted units, no other" in page.text("span")


@pytest.mark.parametrize("evil", HOSTILE)
def test_text_from_outside_stays_text(evil):
    names = (evil, "b")
    hostile = replace(
        PLAIN,
        model=evil,
        baseline=evil,
        device=evil,
        preprocessing=evil,
        notes=(evil,),
        scores=dict(
            [scores(evil, evil, [0.99, 0.4], names), scores("logits", evil, [1, 0], names)]
        ),
        impact={evil: Impact(0.1, 0, evil, 0.1)},
    )
    other = replace(hostile, model=evil + "2")
    entries = [(hostile, [judge(hostile, allow={"logits:b": evil})]), (other, [])]
    markup = render(entries, failures={evil: evil}, origin=origin_of(Settings(), [evil], [evil]))
    markup.encode("utf-8")
    page = Page(markup)
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert len(page.all("script")) == 2
    assert "\u202e" not in markup
    assert "\x07" not in markup
    if evil.isprintable():
        assert evil in page.text("th")
        assert any(evil in name for group in unpacked(markup)["names"] for name in group)
    for image in page.all("img"):
        kind, _, content = image["src"].partition(",")
        if "svg" in kind:
            svg = base64.b64decode(content).decode()
            assert "<script" not in svg
            assert "<img" not in svg


def test_it_asks_for_nothing_from_anywhere():
    markup = render([(PLAIN, [])])
    page = Page(markup)
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", markup, re.DOTALL)
        assert len(bodies) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for _, attributes in page.elements:
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#"))
        assert not any(name.startswith("on") or name == "style" for name in attributes)


def test_all_units_are_in_the_page():
    data = unpacked(render([(PLAIN, [judge(PLAIN)])]))
    assert data["total"] == data["shown"] == 128
    for block in data["blocks"]:
        found = PLAIN[block["layer"], block["scenario"]]
        low, high = found.interval()
        for name, values in (("a", found.auroc), ("low", low), ("high", high)):
            assert list(numbers(block[name])) == [round(1000 * value) for value in values]
        assert block["fails"] == [i for i, d in enumerate(found.differentiability) if d >= 0.95]
        names = None if block["names"] is None else tuple(data["names"][block["names"]])
        assert names == (CLASSES if block["layer"] == "logits" else None)


def test_too_many_units_leave_out_the_least_differentiable(monkeypatch):
    monkeypatch.setattr(units, "MOST", 40)
    markup = render([(PLAIN, [])])
    data = unpacked(markup)
    assert (data["total"], data["shown"]) == (128, 40)
    assert "and 88 more are in the JSON file" in Page(markup).text("caption")
    shown = [
        PLAIN[block["layer"], block["scenario"]].differentiability[numbers(block["units"], "<u4")]
        for block in data["blocks"]
    ]
    least = np.concatenate(shown).min()
    assert sum((found.differentiability > least).sum() for found in PLAIN) <= 40
    assert sum(block["count"] for block in data["blocks"]) == 40


def test_classes_are_ranked_in_a_table_too():
    few = replace(PLAIN, model="few", n_images=100)
    page = Page(render([(PLAIN, []), (few, []), (PLAIN, [])]))
    text = page.text()
    assert "Classes over all models" in text
    assert f"Between 100 and {PLAIN.n_images} images each" in text
    assert "No unit of any model reaches d = 0.7: logits under latin" in text
    assert "0.9700.9700.970" in page.text("td")  # mean, lowest and highest of carton
    one = Page(render([(PLAIN, []), (PLAIN, [])])).text()
    assert "Classes over all models" not in one


def test_people_without_eyes_or_mouse():
    page = Page(render([(PLAIN, []), (CLEAN, [])]))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(th["scope"] in ("col", "row") for th in page.all("th"))
    assert all(image["alt"] for image in page.all("img"))
    assert {"header", "main", "footer", "nav"} <= {tag for tag, _ in page.elements}
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby",):
            assert attributes.get(name, ids[0]) in ids
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids


def test_controls_have_columns_where_there_are_any():
    (key, against) = scores("logits", "chinese", [0.5, 0.8, 0.5, 0.5])
    (_, alone) = scores("logits", "chinese", [0.5, 0.7, 0.5, 0.5])
    (_, blobs) = scores("logits", "chinese", [0.5, 0.6, 0.5, 0.5])
    controls = {(*key, "strokes"): alone, (*key, "blobs"): blobs}
    html = render([(replace(PLAIN, controls={key: against}, controls_alone=controls), [])])
    page = Page(html)
    assert "A/controlA scrambledA blobs" in page.text("button")
    assert "0.8000.7000.600" in page.text("td")
    assert "scrambled strokes and blobs of the same ink" in page.text()
    assert "of what the mark does to it" in page.text("li")
    old = Page(render([(replace(PLAIN, controls={key: against}), [])]))  # reports without the rest
    assert "A/control" in old.text("button")
    assert "A blobs" not in old.text("button")
    assert "A/control" not in Page(render([(PLAIN, [])])).text("button")


def test_without_matplotlib_the_page_says_so(monkeypatch):
    monkeypatch.setattr("pytest_watermark_guard.reports.html.figures.can_draw", lambda: False)
    page = Page(render([(PLAIN, [])]))
    assert "pip install matplotlib" in page.text("p")
    assert not page.all("img")


def test_figures_tell_what_they_show():
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    two = replace(PLAIN, model="other")
    alts = [image["alt"] for image in Page(render([(PLAIN, []), (two, [])])).all("img")]
    assert any("at or above 0.95: chinese 1, highest 0.970" in alt for alt in alts)
    assert any("≥ 0.7 under chinese marks, by model: " in alt for alt in alts)
    assert not any("≥ 0.7 under latin" in alt for alt in alts)  # none does
    assert any("Classes by mean A under chinese" in alt and "carton 0.970" in alt for alt in alts)


def test_the_command_makes_the_same_run_again():
    settings = Settings(images="my photos", max_images=5, allow={"logits:carton": "it's a box"})
    settings = settings.override(threshold=0.9512345, cache=False)
    command = origin_of(settings, ["a:b"], ["tests"], ["--wm-no-known"]).command
    assert command == (
        "pytest tests --wm-model=a:b '--wm-images=my photos' --wm-threshold=0.9512345 "
        "--wm-max-images=5 --wm-seed=17 '--wm-allow=logits:carton=it'\"'\"'s a box' "
        "--wm-no-cache --wm-no-known"
    )


def test_the_consequence_is_a_sentence_made_from_numbers():
    page = Page(render([(PLAIN, [judge(PLAIN)])]))
    assert (
        "When Chinese text is printed on a photo, the score of 'carton' rises in 97 of 100 "
        "comparisons, and 38 of 100 photos get another predicted class." in page.text("p")
    )
    assert "threshold d ≥ 0.95" in page.text("span")
    assert "256 images" in page.text("span")
    # A feature that fails, where the classes hardly react.
    weak = dict([scores("logits", "latin", [0.5, 0.6]), scores("features", "latin", [0.01, 0.5])])
    report = replace(PLAIN, scores=weak, impact={})
    text = Page(render([(report, [judge(report)])])).text("p")
    assert (
        "Latin text is printed on a photo, feature unit 0 falls in 99 of 100 comparisons." in text
    )


@pytest.mark.parametrize(
    ("report", "threshold", "advice"),
    [
        (PLAIN, 0.95, 'wm.search(model, "training_images/", report)'),
        (PLAIN, 0.985, "--wm-strict"),
        (FEW, 0.95, "--wm-images=FOLDER"),
    ],
)
def test_what_to_do_is_said(report, threshold, advice):
    assert advice in Page(render([(report, [judge(report, threshold)])])).text("code")


def test_notes_are_told_once_with_their_models():
    noted = replace(CLEAN, notes=("class names are assumed", "few images"))
    page = Page(render([(PLAIN, []), (noted, [])]))
    text = page.text("li")
    assert text.count("Class names are assumed.") == 1
    assert "Few images." in text
    assert "vgg" in page.text("span")


def test_models_have_short_names_and_keep_their_specs():
    page = Page(render([(PLAIN, []), (CLEAN, [])]))
    assert "resnet18" in [data for tag, data in page.texts if tag == "a"]
    copies = [button["data-copy"] for button in page.all("button") if "data-copy" in button]
    assert copies == ["torchvision:resnet18", "vgg"]
    # Specs that would be called the same keep their own names.
    other = replace(CLEAN, model="timm:resnet18")
    links = [data for tag, data in Page(render([(PLAIN, []), (other, [])])).texts if tag == "a"]
    assert "torchvision:resnet18" in links
    assert "timm:resnet18" in links


def test_empty_columns_are_left_out():
    one = {key: found for key, found in CLEAN.scores.items() if key[0] == "logits"}
    heads = Page(render([(replace(CLEAN, scores=one, impact={}), [])])).text("button")
    for column in ("scenario", "model", "gate", "gain"):
        assert column not in heads
    assert "gate" in Page(render([(PLAIN, [judge(PLAIN)])])).text("button")


def test_an_earlier_release_is_compared_in_a_table():
    moved = dict([scores("logits", "chinese", [0.5, 0.6, 0.71, 0.9], CLASSES)])
    later = replace(PLAIN, scores={**PLAIN.scores, **moved})
    compared = wm.compare(PLAIN, later)
    page = Page(render([(later, [])], changes=[compared.sentence()], comparisons=[compared]))
    cells = page.text("td")
    assert "logitschineserose0.2000.900+0.700+0.694 to +0.706" in cells
    assert "logitschinesefell0.9700.600-0.370-0.376 to -0.364" in cells


def test_ownership_has_a_verdict_of_its_own():
    from pytest_watermark_guard.ownership import CoinDraw, OwnershipReport

    agree = (0.1,) * 30 + (-0.1,) * 2
    report = OwnershipReport("release", "labels", "ab", 2.0**-32, 0.1, agree, 0.6, 0.5, 64, "x", 9)
    page = Page(render([], owned=[report]))
    assert page.text("h1") == "Ownership: carries the key (own check)"
    draw = CoinDraw("a beacon", "", "0123456789abcdef", "here")
    shown = replace(report, coin_draw=draw, commitment="cd", as_committed=True)
    assert Page(render([], owned=[shown])).text("h1") == "Ownership: carries the key"
    foreign = replace(report, model="other", p_value=0.4)
    page = Page(render([], owned=[report, foreign]))
    assert page.text("h1") == "Ownership: 1 of 2 verifications shows the key"
    assert "not shown to carry the key" in page.text("span")
    # Too few pairs to tell: the reason is the verdict.
    short = replace(report, differences=(0.1,) * 4)
    page = Page(render([], owned=[short]))
    assert page.text("h1") == "Ownership: no verdict"
    assert "cannot be reached with 4 pairs" in page.text("p")


def test_a_report_tells_the_versions_it_was_made_by():
    page = Page(render([(replace(PLAIN, versions={"torch": "2.7.1", "numpy": "2.3"}), [])]))
    assert "torch 2.7.1, numpy 2.3" in page.text("dd")


class Bright(nn.Module):
    def forward(self, x):
        import torch

        return torch.stack([x.amax((1, 2, 3)), x.mean((1, 2, 3))], 1)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(8):
        pixels = np.full((60, 60, 3), 20 + 20 * index, np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def example_report(photos):
    return wm.probe(
        Bright(),
        photos,
        (wm.Scenario("small", ["A", "B"], length=2, size=60),),
        ("features",),
        preprocess=wm.Preprocessing(size=(60, 60)),
        cache=False,
        examples=True,
    )


def pictures(page):
    """Return all images of photos."""
    return [image for image in page.all("img") if "jpeg" in image["src"]]


def thumbnails(page):
    """Return the examples' images, without the large ones beside the verdict."""
    return pictures(page)[2:]


def test_examples_are_the_probe_s_own_images(photos):
    report = example_report(photos)
    (first, *_) = thumbnails(Page(render([(report, [])], by_name=True)))[::2]
    marked = thumbnails(Page(render([(report, [])], images=photos)))[1]
    shift = report.examples.units[0].most[0]
    assert first["alt"] == f"{shift.identity} without the mark"

    def pixels(image):
        import io

        data = base64.b64decode(image["src"].partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)

    grey = 20 + 20 * int(shift.identity.removesuffix(".png"))
    assert np.abs(pixels(first) - grey).max() < 3
    assert pixels(marked).max() > 200
    assert pixels(marked).shape == (60, 60, 3)


def test_images_that_are_gone_are_said_to_be(photos, tmp_path):
    report = example_report(photos)
    for image in photos.iterdir():
        image.rename(image.with_name("x" + image.name))
    page = Page(render([(report, [])], by_name=True))
    assert not pictures(page)
    assert "is not among the 8 images of" in page.text("p")


def changed(report, **fields):
    """Return a report as somebody may have changed it by hand."""
    return replace(report, examples=replace(report.examples, **fields))


@pytest.mark.parametrize("field", [{"layer": "logits"}, {"scenario": "none"}, {"index": 99}])
def test_units_that_are_not_there_have_no_images(photos, field):
    report = example_report(photos)
    units = tuple(replace(unit, **field) for unit in report.examples.units)
    page = Page(render([(changed(report, units=units), [])], by_name=True))
    assert not pictures(page)
    assert "Its images cannot be shown" in page.text("p")


def test_the_leading_image_alone_may_be_gone(photos):
    report = example_report(photos)
    gone = PredictionExample("small", "gone.png", "road", "carton")
    page = Page(render([(changed(report, predictions=(gone,)), [])], by_name=True))
    assert pictures(page)
    said = "The image that tells most cannot be shown: 'gone.png' is not among the 8 images of"
    assert said in page.text("li")


def test_reports_and_surveys_write_themselves(photos, tmp_path):
    report = example_report(photos)
    report.to_html(tmp_path / "one.html", images=photos)
    assert thumbnails(Page((tmp_path / "one.html").read_text("utf-8")))
    survey = wm.SurveyReport({"first": report, "second": PLAIN}, {"third": "no such model"})
    survey.to_html(tmp_path / "all.html", 0.96)
    page = Page((tmp_path / "all.html").read_text("utf-8"))
    assert page.text("h1") == "1 of 2 models fails, 1 inconclusive, 1 could not be probed"
    assert {"first", "second", "third"} <= {data for _, data in page.texts}
    with pytest.raises(SettingsError, match="threshold"):
        report.to_html(tmp_path / "none.html", 0.3)


def test_folders_that_a_report_names_are_opened_only_where_it_is_trusted(photos):
    page = Page(render([(example_report(photos), [])]))
    assert not pictures(page)
    assert "Its images cannot be shown" in page.text("p")
