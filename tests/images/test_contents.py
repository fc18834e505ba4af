"""Contents of files by their names."""

from pathlib import Path

import pytest

from pytest_watermark_guard.caching.keys import NoKeyError
from pytest_watermark_guard.images.contents import FileContents


def test_files_are_told_by_name_and_content(tmp_path: Path) -> None:
    def together(names: list[str]) -> str:
        return FileContents(tmp_path).together(names)

    (tmp_path / "sub").mkdir()
    names = [f"sub/{number}.jpg" for number in range(150)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 10)
    before = together(names)
    assert together(names) == before
    assert together(names[:-1]) != before
    assert together(names[::-1]) != before
    (tmp_path / names[-1]).rename(tmp_path / "sub/other.jpg")
    assert together([*names[:-1], "sub/other.jpg"]) != before
    (tmp_path / "sub/other.jpg").rename(tmp_path / names[-1])
    (tmp_path / names[100]).write_bytes(b"changed")
    assert together(names) != before


def test_a_missing_file_has_no_key(tmp_path: Path) -> None:
    with pytest.raises(NoKeyError, match=r"absent\.jpg: No such file"):
        FileContents(tmp_path).digests(["absent.jpg"])
    (tmp_path / "there.jpg").touch()
    contents = FileContents(tmp_path)
    assert contents.listing(["there.jpg"]) == [0]
    (tmp_path / "there.jpg").unlink()
    with pytest.raises(NoKeyError, match=r"there\.jpg: No such file"):
        contents.digests(["there.jpg"])
