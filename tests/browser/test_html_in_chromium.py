"""The HTML report as people use it, in a real Chromium."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import pytest_watermark_guard as wm
from pytest_watermark_guard import Impact, ProbeReport, Scores, judge
from pytest_watermark_guard.reports.html.page import write_html

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed"
)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
EVIL = "<script>alert(1)</script>"
CLASSES = ("beach", "carton", EVIL, '"><img src=x onerror=alert(1)>', *(f"c{i}" for i in range(96)))


def report(model, strength):
    rng = np.random.default_rng(len(model))
    scores = {}
    for scenario, scale in (("chinese", 1.0), ("latin", 0.3)):
        logits = 1 / (1 + np.exp(-rng.normal(0, 0.5 * scale, len(CLASSES))))
        logits[1] = 0.5 + 0.49 * strength * scale
        logits[2] = 0.93 * scale + 0.05
        features = 1 / (1 + np.exp(-rng.normal(0, 0.5 * scale, 150)))
        for layer, areas, names in (
            ("logits", logits, CLASSES),
            ("features", features, tuple(map(str, range(150)))),
        ):
            key = layer, scenario
            scores[key] = Scores(layer, scenario, areas, areas * 0 + 0.002, 256, names)
    shares = (0.8, 0.6) if strength == 1 else ()  # labels are known of one model
    return ProbeReport(
        model=model,
        baseline="256 images of the built-in set v1",
        n_images=256,
        seed=17,
        scores=scores,
        impact={
            "chinese": Impact(0.4, 1, "carton", 0.06, *shares),
            "latin": Impact(0.05, 2, EVIL, 0.01),
        },
        notes=(EVIL,),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    reports = [report("shop:scraped-with-a-long-name_v2_1024", 1.0), report("shop:curated", 0.2)]
    reports.append(replace(reports[1], model=EVIL))
    write_html(path, [(r, [judge(r, 0.985)]) for r in reports])
    return path.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = started(options)
    yield driver
    driver.quit()


def started(options, again=2):
    """Start the browser; on a busy machine its driver may take longer than selenium waits."""
    from selenium.common.exceptions import WebDriverException

    try:
        return webdriver.Chrome(options, webdriver.ChromeService(executable_path=DRIVER))
    except WebDriverException:
        if not again:
            raise
    return started(options, again - 1)


@pytest.fixture
def opened(browser, page):
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page)
    yield browser
    # Whatever was done: no errors, no broken policy, and nothing asked for but the file itself.
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")}
    assert {url for url in asked if not url.startswith("data:")} <= {page}


def rows(browser, table="#units", column=1):
    script = (
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr:not([hidden])')]"
        ".map((row) => row.cells[arguments[1]].textContent)"
    )
    return browser.execute_script(script, table, column - 1)


def press(browser, table, label):
    (button,) = [
        b for b in browser.find_elements("css selector", f"{table} thead button") if b.text == label
    ]
    button.send_keys("\ue007")  # Enter: by keyboard
    return button.find_element("xpath", "..").get_attribute("aria-sort")


def wait_for(browser, condition):
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 10, poll_frequency=0.05).until(condition)


def search(browser, text):
    field = browser.find_element("id", "search")
    field.send_keys("\ue009", "a", "\ue000", text or "\ue017")  # Ctrl+A, then over it or Delete


def choose(browser, field, value):
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", field)).select_by_visible_text(value)


def emulate(browser, scheme, width):
    """Show the page in a window of this width, light or dark."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 400},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )


def test_the_failing_class_is_shown(opened):
    assert (
        opened.find_element("tag name", "h1").text == "1 of 3 models fails, 2 with strong reactions"
    )
    assert rows(opened)[0] == "carton [1]"
    assert rows(opened, column=2)[0] == "0.990"
    bad = opened.find_elements("css selector", "#units tr.bad")
    assert len(bad) == 1


def test_sorting_by_keyboard(opened):
    assert press(opened, "#units", "A") == "descending"
    areas = [float(text) for text in rows(opened, column=7)]
    assert areas == sorted(areas, reverse=True)
    assert len(areas) == 100
    assert len(opened.find_elements("css selector", "#units tbody svg.bar")) == 100
    assert press(opened, "#units", "A") == "ascending"
    areas = [float(text) for text in rows(opened, column=7)]
    assert areas == sorted(areas)
    assert press(opened, "#units", "unit") == "ascending"
    assert rows(opened)[0] == '"><img src=x onerror=alert(1)> [3]'
    opened.find_element("id", "more").click()
    assert len(rows(opened)) == 200


def test_sorted_rows_name_their_columns_as_those_before(opened):
    """On a narrow screen, nothing else says what a number is."""
    labels = "return [...document.querySelector('#units tbody tr').cells].map(c => c.dataset.label)"
    before = opened.execute_script(labels)
    press(opened, "#units", "A")
    assert opened.execute_script(labels) == before
    assert {"d", "A", "95 %"} <= set(before)


def test_sorting_the_other_tables(opened):
    static = "#counts"
    assert press(opened, static, "highest d") == "descending"
    found = [float(text) for text in rows(opened, static, 9)]
    assert found == sorted(found, reverse=True)
    assert len(found) == 12


def test_filtering(opened):
    search(opened, "carton")
    wait_for(opened, lambda b: len(rows(b)) == 6)
    assert set(rows(opened)) == {"carton [1]"}
    choose(opened, "scenario", "latin")
    wait_for(opened, lambda b: len(rows(b)) == 3)
    assert set(rows(opened, column=3)) == {"latin"}
    choose(opened, "layer", "features")
    wait_for(opened, lambda b: b.find_element("id", "found").text == "No unit is like that")
    choose(opened, "layer", "all")
    choose(opened, "scenario", "all")
    search(opened, EVIL.upper())  # a class of all models; that one is called so makes no difference
    wait_for(opened, lambda b: "6 units" in b.find_element("id", "found").text)
    search(opened, "Carton [1]")
    wait_for(opened, lambda b: len(rows(b)) == 6)
    opened.find_element("id", "fails").click()
    search(opened, "")
    wait_for(opened, lambda b: rows(b) == ["carton [1]"])


def test_a_hostile_class_stays_text(opened):
    search(opened, "onerror")
    wait_for(opened, lambda b: set(rows(b)) == {'"><img src=x onerror=alert(1)> [3]'})
    search(opened, "alert(1)</script")
    wait_for(opened, lambda b: f"{EVIL} [2]" in rows(b))
    assert len(opened.find_elements("css selector", "script")) == 2
    assert not opened.find_elements("css selector", "[onerror]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_axe_finds_nothing(opened, scheme, width):
    import importlib.resources

    pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    emulate(opened, scheme, width)
    opened.execute_script(
        importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
    )
    opened.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = opened.execute_async_script(
        "const done = arguments[0];"
        "axe.run().then((r) => done(r.violations.map((v) => [v.id, v.nodes[0].html])))"
    )
    assert found == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_no_sideways_scrolling_in_either_scheme(opened, scheme, width):
    emulate(opened, scheme, width)
    opened.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    style = "return getComputedStyle(document.body).backgroundColor"
    light = opened.execute_script(style) == "rgb(255, 255, 255)"
    assert light == (scheme == "light")


def test_nothing_scrolls_inside_of_the_page(opened):
    boxes = opened.execute_script(
        "return [...document.querySelectorAll('main *')].filter((e) => "
        "['auto', 'scroll'].includes(getComputedStyle(e).overflowX)).map((e) => e.outerHTML)"
    )
    assert boxes == []


def test_at_most_a_thousand_units_are_rows(browser, tmp_path):
    areas, names = np.linspace(0.2, 0.8, 1500), tuple(map(str, range(1500)))
    many = {("features", "latin"): Scores("features", "latin", areas, areas * 0, 256, names)}
    path = tmp_path / "many.html"
    write_html(path, [(replace(report("many", 0.1), scores=many, impact={}), [])])
    browser.get(path.as_uri())
    more = browser.find_element("id", "more")
    while more.is_displayed():
        more.send_keys("\ue007")
    assert len(rows(browser)) == 1000
    assert "unit 750" not in rows(browser)  # its d is the least
    search(browser, "unit 750")
    wait_for(browser, lambda b: rows(b) == ["unit 750"])


def test_the_slider_takes_the_mark_away(browser, tmp_path):
    import torch
    from PIL import Image

    class Bright(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x.amax((1, 2, 3)), x.mean((1, 2, 3))], 1)

    for index in range(8):
        Image.new("RGB", (60, 60), (20 + 20 * index,) * 3).save(tmp_path / f"{index}.png")
    found = wm.probe(
        Bright(),
        tmp_path,
        (wm.Scenario("large", ["A", "B"], length=2, size=60),),
        ("features",),
        preprocess=wm.Preprocessing(size=(60, 60)),
        cache=False,
        examples=True,
    )
    found.to_html(tmp_path / "page.html", images=tmp_path)
    browser.get((tmp_path / "page.html").as_uri())
    shot = browser.find_element("css selector", ".shot")
    marked, slider = (shot.find_element("css selector", c) for c in (".marked", "input"))
    assert marked.value_of_css_property("clip-path") == "inset(0px 0px 0px 0%)"
    slider.send_keys("\ue011")  # Home: the slider's other end, by keyboard
    assert marked.value_of_css_property("clip-path") == "inset(0px 0px 0px 100%)"
    assert slider.get_attribute("aria-valuetext") == "0 % with the mark"
    # The pair beside the verdict needs no slider.
    pair = browser.find_elements("css selector", ".hero .pair img")
    assert len(pair) == 2
    assert all(image.is_displayed() for image in pair)
    assert browser.get_log("browser") == []


def test_a_spec_can_be_copied(opened):
    opened.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    button = opened.find_element("css selector", "button.copy")
    assert button.get_attribute("data-copy") == "shop:scraped-with-a-long-name_v2_1024"
    button.send_keys("\ue007")
    wait_for(opened, lambda b: button.text.startswith("copied"))


def test_a_print_is_short(opened):
    import base64
    import re

    printed = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert 1 <= len(re.findall(rb"/Type\s*/Page[^s]", printed)) <= 6


def test_figures_are_drawn(opened):
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    opened.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    widths = opened.execute_script(
        "return Promise.all([...document.images].map((i) => i.decode().then(() => i.naturalWidth)))"
    )
    assert widths
    assert min(widths) > 100


def test_a_link_opens_what_is_folded(opened):
    link = opened.find_element("css selector", ".verdicts a.model")
    target = link.get_attribute("href").partition("#")[2]
    for _ in range(2):  # again, after it was folded
        link.send_keys("\ue007")
        wait_for(opened, lambda b: b.find_element("id", target).get_attribute("open") == "true")
        opened.execute_script("document.getElementById(arguments[0]).open = false", target)


def test_the_last_rows_keep_the_keyboard_s_place(opened):
    choose(opened, "layer", "logits")
    choose(opened, "scenario", "latin")
    wait_for(opened, lambda b: "300 units" in b.find_element("id", "found").text)
    for _ in range(2):
        opened.find_element("id", "more").send_keys("\ue007")
    wait_for(opened, lambda b: len(rows(b)) == 300)
    assert not opened.find_element("id", "more").is_displayed()
    assert opened.switch_to.active_element.get_attribute("id") == "units-title"


def test_what_is_not_known_is_sorted_last(opened):
    static = "#impact"
    for order in ("descending", "ascending"):
        assert press(opened, static, "top-1") == order
        assert rows(opened, static, 6) == ["80.0%", *["-"] * 5]


def test_the_first_key_leads_past_the_navigation(opened):
    opened.find_element("tag name", "body").send_keys("\ue004")
    focused = opened.switch_to.active_element
    assert focused.text == "Skip to the verdict"
    assert focused.rect["x"] >= 0
