from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_watermark_guard.caching import releases
from pytest_watermark_guard.caching.releases import release_of


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    releases._release.cache_clear()
    yield
    releases._release.cache_clear()


def test_installed_packages_and_the_standard_library_are_pinned() -> None:
    for name in ("builtins", "os.path", "torch.nn", "torchvision", "numpy", "PIL.Image", "pytest"):
        assert release_of(name), name
    assert release_of("numpy.linalg") == release_of("numpy") != release_of("PIL")


def test_ones_own_files_are_not() -> None:
    for name in ("__main__", "", __name__, "no_such_module"):
        assert release_of(name) is None, name


Install = Callable[..., str | None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package as pip does, and say which release it is taken for."""
    site = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(str(site))

    def install(record: str | None, folder: Path = site) -> str | None:
        (folder / "company").mkdir(parents=True, exist_ok=True)
        (folder / "company/__init__.py").write_text("")
        information = site / "company-1.0.dist-info"
        information.mkdir(parents=True, exist_ok=True)
        (information / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: company\nVersion: 1.0\n"
        )
        if record is not None:
            (information / "RECORD").write_text(record)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, "company", raising=False)
        releases._release.cache_clear()
        return release_of("company.models")

    return install


def test_a_reinstallation_under_the_same_version_shows(install: Install) -> None:
    before = install("company/__init__.py,sha256=abc,0\n")
    assert before
    assert "1.0" in before
    assert install("company/__init__.py,sha256=def,0\n") != before


def test_without_a_record_the_version_counts(install: Install) -> None:
    assert install(None) == "company 1.0"


def test_an_editable_install_is_not_pinned(install: Install, tmp_path: Path) -> None:
    assert install("company.pth,sha256=abc,0\n", tmp_path / "src") is None


def test_files_beside_a_distribution_are_not_its_own(install: Install) -> None:
    assert install("company_data/company/__init__.py,sha256=abc,0\n") is None


def test_a_file_named_like_a_standard_module_is_not_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "colorsys"
    (tmp_path / f"{name}.py").write_text("")
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert release_of(name) is None
