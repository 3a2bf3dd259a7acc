"""Tests of watched files: written, replaced, linked, removed and created again."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcer.kernel import file_watch
from enforcer.kernel.file_watch import FileWatch, stamp


@pytest.fixture
def watch() -> Iterator[FileWatch]:
    opened = FileWatch()
    yield opened
    opened.close()


def changed(watch: FileWatch, patience: float = 1.0) -> set[Path]:
    """The files that have changed according to events; waits for the first event."""
    if not select.select([watch], [], [], patience)[0]:
        return set()
    time.sleep(0.01)
    return watch.drain()


def test_a_file_that_is_written_or_replaced(watch: FileWatch, tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    watch.watch([file])
    assert watch.drain() == set()
    file.write_text("1")
    assert changed(watch) == {file}
    other.write_text("2")
    assert changed(watch) == set()
    other.rename(file)
    assert changed(watch) == {file}
    file.unlink()
    assert changed(watch) == {file}
    file.write_text("3")
    assert changed(watch) == {file}
    os.utime(file)
    assert changed(watch, 0.05) == set()


def test_a_file_that_is_not_whole_yet(watch: FileWatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    watch.watch([file])
    with file.open("w") as half:
        half.write("1")
        half.flush()
        assert changed(watch, 0.1) == set()
        assert watch.look() == set()
    assert changed(watch) == {file}


def test_a_link_into_another_directory(
    watch: FileWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to a link to a directory for each version, as configuration is mounted into containers."""
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "file").write_text(version)
    (tmp_path / "data").symlink_to("v1")
    file = tmp_path / "file"
    file.symlink_to("data/file")
    watch.watch([file])
    (tmp_path / "new").symlink_to("v2")
    (tmp_path / "new").rename(tmp_path / "data")
    assert changed(watch) == {file}
    # A change of the link's target causes no event.
    (tmp_path / "v2" / "file").write_text("longer")
    assert changed(watch, 0.05) == set()
    assert watch.look() == set()  # the write may be in progress
    monkeypatch.setattr(file_watch, "_SETTLED", 0.0)
    assert watch.look() == {file}
    assert watch.look() == set()


def test_a_directory_that_comes_and_goes(
    watch: FileWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "_SETTLED", 0.0)
    file = tmp_path / "directory" / "file"
    watch.watch([file])
    assert watch.look() == set()
    file.parent.mkdir()
    file.write_text("1")
    assert watch.look() == {file}
    file.write_text("22")
    assert changed(watch) == {file}
    file.unlink()
    file.parent.rmdir()
    assert changed(watch) == {file}
    file.parent.mkdir()
    file.write_text("333")
    assert watch.look() == {file}


def test_other_files_are_watched_from_now_on(watch: FileWatch, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    watch.watch([one])
    one.write_text("1")
    watch.watch([one, two])  # earlier events are kept
    two.write_text("2")
    assert changed(watch) == {one, two}
    watch.watch([])
    one.write_text("3")
    assert changed(watch, 0.05) == set()
    assert stamp(one) is not None
    assert stamp(tmp_path / "nowhere") is None
