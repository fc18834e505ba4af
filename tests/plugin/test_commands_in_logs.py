"""Nothing from outside that is printed starts a workflow command of GitHub Actions."""

from __future__ import annotations

import re

import pytest

from pytest_watermark_guard.reports.log_lines import inert

NASTY = (
    "::error::pwned",
    "  ::warning::pwned",
    "x\n::error::pwned",
    "x\r::error::pwned",
    "##[error]pwned",
    "a name so long that it is cut or broken somewhere before ::error::pwned " * 3,
)
OURS = re.compile(r"::(error|warning) (file=[^:]+,line=\d+,)?title=[A-Za-z -]+::")


def commands(result):
    """Return the lines that a runner obeys, but for our own annotations."""
    lines = re.split(r"[\r\n]", result.stdout.str() + "\n" + result.stderr.str())
    return [
        line
        for line in lines
        if (line.lstrip().startswith("::") or "##[" in line) and not OURS.match(line)
    ]


@pytest.fixture
def actions(project, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    return project


@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
def test_names_of_all_kinds(actions, name):
    actions.makepyfile(
        nasty=f"""
        import shop

        NAME = {name!r}

        def build():
            model = shop.sensitive()
            model.class_names = [NAME, NAME + "2"]
            return model
        """
    )
    actions.makepyfile(
        test_it="""
        import pytest
        import pytest_watermark_guard as wm
        from nasty import NAME, build

        def test_gate():
            wm.assert_not_watermark_sensitive(build(), name=NAME)

        def test_unknown_unit():
            wm.assert_not_watermark_sensitive(build(), allow={f"logits:{NAME}3": NAME})

        def test_unknown_scenario():
            wm.probe(build(), scenarios=[NAME])

        def test_unknown_layer():
            wm.probe(build(), layers=[NAME])

        def test_passing():
            allow = {f"logits:{NAME}2": NAME, "features:2": NAME}
            wm.assert_not_watermark_sensitive(build(), allow=allow, name=NAME)
        """
    )
    options = ["--wm-model=nasty:build", "--wm-report", "-rA", "--wm-json=run.json"]
    result = actions.runpytest("test_it.py", *options)
    assert result.parseoutcomes()["failed"] >= 6
    assert commands(result) == []
    # The file says the same, and may be printed.
    text = (actions.path / "run.json").read_text("utf-8")
    assert "##[" not in text
    assert not re.search(r"(?m)^\s*::", text)


@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
def test_messages_of_somebody_else_s_errors(actions, name):
    actions.makepyfile(
        nasty=f"""
        def build():
            raise RuntimeError({name!r})
        """
    )
    result = actions.runpytest("--wm-model=nasty:build", "--wm-report")
    result.assert_outcomes(errors=4)
    assert commands(result) == []


def test_options(actions):
    for option in ("--wm-scenarios", "--wm-images", "--wm-model", "--wm-precision"):
        for name in NASTY:
            result = actions.runpytest("--wm-model=shop:blind", f"{option}={name}")
            assert result.ret == pytest.ExitCode.USAGE_ERROR
            assert commands(result) == [], (option, name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain::text, a :: b and #[x]", "plain::text, a :: b and #[x]"),
        ("::error::x", r"\x3a:error::x"),
        (" \t::error::x", " \t" + r"\x3a:error::x"),
        ("a\r::error::x\n\n ::warning::y", "a\r\\x3a:error::x\n\n \\x3a:warning::y"),
        ("\x1b[31m::error::x", "\x1b[31m\\x3a:error::x"),
        ("a ##[error]x", r"a #\x23[error]x"),
    ],
)
def test_only_what_a_runner_obeys_is_spelled_out(text, shown):
    assert inert(text) == shown
    assert inert(shown) == shown
