"""What README and docs name is there: options, settings, fixtures, files, headings, errors."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pages
import pytest
from messages_in_code import error_messages, error_names

import pytest_watermark_guard as wm
from pytest_watermark_guard.plugin import plugin
from pytest_watermark_guard.plugin.options import all_options

WORKFLOWS = [
    *pages.ROOT.glob("examples/*/*.yml"),
    *pages.ROOT.glob(".github/**/*.yml"),
    *pages.ROOT.glob("pytest_watermark_guard/plugin/starter_files/*"),
]
LANGUAGES = {"console", "indented", "ini", "python", "text", "toml", "yaml"}
DIRECTIVES = ("{eval-rst}", "{glossary}", "{include}", "{toctree}", "{error-messages}")


@pytest.mark.parametrize("page", [*map(str, pages.PAGES), *map(str, WORKFLOWS)])
def test_options_and_ini_values_exist(page):
    text = (pages.ROOT / page).read_text("utf-8")
    options = {option.word for option in all_options()}
    assert set(re.findall(r"--wm-[a-z][a-z-]*[a-z]", text)) <= options
    known = {f"wm_{option.name}" for option in all_options()} | {"wm_settings", "wm_mask"}
    known |= {name for name, _ in inspect.getmembers(plugin) if name.startswith("wm_")}
    assert set(re.findall(r"(?<![\w./])wm_[a-z_]*[a-z]", text)) <= known


@pytest.mark.parametrize("page", pages.PAGES, ids=str)
def test_links_lead_somewhere(page):
    for link in pages.links_of(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (pages.ROOT / page.parent / path) if path else pages.ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in pages.anchors_of(target.resolve().relative_to(pages.ROOT)), link


@pytest.mark.parametrize("page", pages.PAGES, ids=str)
def test_every_block_says_its_language(page):
    for block in pages.blocks_of(page):
        known = block.language in LANGUAGES or block.language.startswith(DIRECTIVES)
        assert known, f"{page}:{block.line}: {block.language!r}"


def test_every_page_is_in_a_list_of_pages():
    docs = Path("docs")
    listed = {docs / "index.md"}
    for page in pages.PAGES:
        for block in pages.blocks_of(page):
            if block.language.startswith("{toctree}"):
                names = [line for line in block.code.split() if line[0] not in ":0123456789"]
                listed |= {
                    (page.parent / name).with_suffix(suffix)
                    for name in names
                    for suffix in (".md", ".ipynb")
                    if (pages.ROOT / page.parent / name).with_suffix(suffix).exists()
                }
    assert {page for page in pages.PAGES if page.parts[0] == "docs"} - listed == set()


def test_the_api_page_has_all_public_names():
    text = (pages.ROOT / "docs" / "reference" / "api.md").read_text("utf-8")
    named = set(re.findall(r"(?:wm|pytest_watermark_guard)\.(\w+)", text))
    assert set(dir(wm)) & set(wm._HOMES) <= named
    named = set(re.findall(r"pytest_watermark_guard\.ownership\.(\w+)", text))
    assert {name for name in wm.ownership.__all__ if not name.endswith("Error")} <= named


def test_troubleshooting_has_an_entry_for_every_error():
    text = (pages.ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    headings = " ".join(re.findall(r"^### (.*)$", text, re.M))
    assert set(error_names()) - set(headings.split()) == set()
    listed = re.findall(r"\{error-messages\} (\w+)", text)
    assert all(error_messages(name) for name in listed)
    assert "--wm-update-known and --wm-no-known exclude each other" in error_messages(
        "SettingsError"
    )


def test_no_host_of_packages_and_no_path_of_a_machine():
    for page in (*pages.PAGES, *(path.relative_to(pages.ROOT) for path in WORKFLOWS)):
        text = (pages.ROOT / page).read_text("utf-8")
        assert not re.search(r"/work/|/root/|pypi\.org|/simple\b", text), page


def test_the_readme_is_read_in_two_minutes_and_has_its_two_commands():
    lines = (pages.ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 150
    environments = (pages.ROOT / "tox.ini").read_text("utf-8")
    for name in ("demo", "test"):
        assert f"    python -m pip install tox && python -m tox run -e {name}" in lines
        assert f"[testenv:{name}]" in environments
