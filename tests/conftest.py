from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
import torchvision  # noqa: F401
from hypothesis import HealthCheck, settings

import pytest_watermark_guard as wm
import pytest_watermark_guard.reports.json_file
import pytest_watermark_guard.reports.terminal
from pytest_watermark_guard.models.running.execution import Executor
from pytest_watermark_guard.models.running.openvino_model import load_openvino
from pytest_watermark_guard.models.running.policy import TuningPolicy

# A busy machine is slow now and then; that is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

pytest_plugins = ["pytester"]

# pytester forgets modules that a run inside a test imported first; imported twice, classes would
# no longer be themselves, and torch and rich would break.
for name in dir(wm):
    getattr(wm, name)
load_openvino()
with suppress(ImportError):  # an optional extra
    import onnxscript  # noqa: F401

REAL_DATA = "WATERMARK_GUARD_DATA"
QUIET = " ".join(
    f"-Wdefault::pytest_watermark_guard.errors.{kind}"
    for kind in ("AssumptionWarning", "StrongReactionWarning")
)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the built-in images out of the user's cache folder."""
    folder = str(tmp_path_factory.mktemp("cache"))
    os.environ.setdefault("WATERMARK_GUARD_CACHE", folder)


@pytest.fixture(autouse=True)
def toys_run_as_they_are(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no faster way to run a model tried, but where a test asks for that, or has real data.

    Toy models are too fast for it to pay, unless the machine stands still for a moment.
    """
    if "real_data" not in request.fixturenames:
        never = TuningPolicy(worth_tuning=float("inf"))
        monkeypatch.setitem(Executor.__init__.__kwdefaults__, "policy", never)


@pytest.fixture(autouse=True)
def no_spinning_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep pytest-rerunfailures out of the runs inside a test, but of those that ask for it.

    For every xdist worker of such a run it leaves a thread in this process that reads a closed
    socket for ever: after some dozens of runs everything is ten times slower.
    """
    if "pytester" in request.fixturenames:
        request.getfixturevalue("pytester")  # which takes the variable away, so that it comes first
        # Filters of this run hold inside too, where a gate's warnings are no errors.
        monkeypatch.setenv("PYTEST_ADDOPTS", f"-p no:rerunfailures {QUIET}")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real images and weights, for the tests that measure on them."""
    folder = os.environ.get(REAL_DATA)
    if not folder:
        pytest.skip(f"{REAL_DATA} is not set: no real images and weights to measure on")
    return Path(folder)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden texts anew")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--update-golden")
