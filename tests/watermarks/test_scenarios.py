from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_watermark_guard import SCENARIOS, PairedFolder, Scenario
from pytest_watermark_guard.errors import ScenarioError
from pytest_watermark_guard.watermarks.scenarios import resolve_scenarios


def test_the_four_scripts_of_the_paper():
    assert {name: "".join(s.alphabet) for name, s in SCENARIOS.items()} == {
        "chinese": "的一是不了在人有我他这个们中来上大为和国",
        "latin": "IEAUTSRNOMCLPDBQGVFH",
        "hindi": "ाकेरहसनींमि्तपलोयैबद",
        "arabic_numerals": "1234567890",
    }
    for scenario in SCENARIOS.values():
        assert (scenario.length, scenario.size, scenario.opacity, scenario.color) == (
            7,
            30,
            1.0,
            "white",
        )


@pytest.mark.parametrize(
    ("alphabet", "symbols"),
    [("ab", ("a", "b")), ("ab cd", ("ab", "cd")), (["x y", "z"], ("x y", "z"))],
)
def test_alphabets(alphabet, symbols):
    assert Scenario("s", alphabet).alphabet == symbols


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alphabet": ""}, "at least one visible symbol"),
        ({"alphabet": " "}, "at least one visible symbol"),
        ({"alphabet": ["a", " "]}, "at least one visible symbol"),
        ({"alphabet": "a", "length": 0}, "length must be an integer"),
        ({"alphabet": "a", "length": 2.5}, "length must be an integer"),
        ({"alphabet": "a", "size": 0}, "size must be a positive number"),
        ({"alphabet": "a", "size": "30"}, "size must be a positive number"),
        ({"alphabet": "a", "opacity": "1"}, r"opacity must be in \(0, 1\]"),
        ({"alphabet": "a", "opacity": 0}, r"opacity must be in \(0, 1\]"),
        ({"alphabet": "a", "opacity": 1.1}, r"opacity must be in \(0, 1\]"),
    ],
)
def test_values_that_cannot_be_drawn(arguments, message):
    with pytest.raises(ScenarioError, match=f"'mine': .*{message}"):
        Scenario("mine", **arguments)


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", 7])
def test_names_are_printable(name):
    with pytest.raises(ScenarioError, match="printable"):
        Scenario(name, "a")


def test_resolves_names_and_scenarios():
    mine, paired = Scenario("mine", "a"), PairedFolder("theirs", "folder")
    assert resolve_scenarios(["latin", mine, paired]) == (SCENARIOS["latin"], mine, paired)
    assert resolve_scenarios("latin") == (SCENARIOS["latin"],)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["klingon"], "unknown scenario 'klingon'; known are chinese, latin"),
        (["latin", Scenario("latin", "a")], "'latin' is asked for twice"),
        ([], "no scenario was asked for"),
        ([3], "got int"),
    ],
)
def test_what_cannot_be_resolved(wanted, message):
    with pytest.raises(ScenarioError, match=message):
        resolve_scenarios(wanted)


def test_the_package_imports_nothing_heavy():
    code = (
        "import sys, pytest_watermark_guard as wm; wm.Scenario;"
        "import pytest_watermark_guard.plugin.plugin;"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL', 'sklearn', 'rich.table'};"
        "sys.exit(' '.join(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
