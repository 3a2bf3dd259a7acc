"""Directories, links and files that another local user may have prepared are refused."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enforcer.errors import UntrustedError
from enforcer.instance import trust

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="missing: root, to give files to other users")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of root that other users may read, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="trust-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def give(path: Path) -> Path:
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return path


def file(path: Path, mode: int = 0o644) -> Path:
    path.write_text("content")
    path.chmod(mode)
    return path


def directory(path: Path, mode: int = 0o755) -> Path:
    path.mkdir()
    path.chmod(mode)
    return path


def link(path: Path, target: Path | str) -> Path:
    path.symlink_to(target)
    return path


# --- the enforcer's directories


def test_a_directory_of_root_s_is_used(place: Path) -> None:
    assert trust.check_directory(directory(place / "a", 0o700))
    assert trust.check_directory(directory(place / "b"))
    assert not trust.check_directory(place / "nowhere")


@pytest.mark.parametrize(
    ("prepare", "what"),
    [
        (lambda path: give(directory(path, 0o700)), "belongs to the user 65534"),
        (lambda path: directory(path, 0o777), "may be written by others (mode 777)"),
        (lambda path: directory(path, 0o1777), "may be written by others (mode 1777)"),
        (lambda path: link(path, "/etc"), "is a link, made by root"),
        (lambda path: give(link(path, "/etc")), "is a link, made by the user 65534"),
        (file, "is no directory"),
    ],
)
def test_a_prepared_directory_is_not(place: Path, prepare: Callable[[Path], Path], what: str) -> None:
    path = prepare(place / "ours")
    for use in (trust.check_directory, trust.make_directory):
        if path.is_file() and use is trust.make_directory:
            continue  # mkdir itself refuses
        with pytest.raises(UntrustedError) as caught:
            use(path)
        assert caught.value.message == f"{path} {what}"
        assert caught.value.hint and str(path) in caught.value.hint


def test_a_group_may_write_if_it_is_root_s(place: Path) -> None:
    path = directory(place / "ours", 0o775)
    assert trust.check_directory(path)
    os.chown(path, 0, NOBODY)
    with pytest.raises(UntrustedError):
        trust.check_directory(path)


def test_a_directory_is_made_private_whatever_the_umask(place: Path) -> None:
    before = os.umask(0)
    try:
        trust.make_directory(place / "ours")
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "ours").stat().st_mode) == 0o700


def test_what_ours_is_made_in_may_be_sticky(place: Path) -> None:
    trust.check_mount(directory(place / "sticky", 0o1777))
    trust.check_mount(directory(place / "closed", 0o700))
    for path in (directory(place / "open", 0o777), give(directory(place / "theirs", 0o1755))):
        with pytest.raises(UntrustedError):
            trust.check_mount(path)


# --- removing a directory


def test_removing_follows_no_link(place: Path) -> None:
    victim = directory(place / "victim")
    kept = file(victim / "kept")
    ours = directory(place / "ours")
    link(ours / "maps-0", victim)
    link(ours / "link", kept)
    link(directory(ours / "deep") / "er", victim)
    file(ours / "deep" / "file")
    os.mkfifo(ours / "pipe")
    assert trust.remove_tree(ours)
    assert not ours.exists() and kept.read_text() == "content"
    assert not trust.remove_tree(ours)


def test_a_link_itself_is_not_removed_as_a_tree(place: Path) -> None:
    victim = directory(place / "victim")
    kept = file(victim / "kept")
    for target in (victim, kept, "/nowhere"):
        path = link(place / "ours", target)
        with pytest.raises(UntrustedError):
            trust.remove_tree(path)
        assert path.is_symlink() and kept.exists()
        path.unlink()


# --- files


def content(path: Path) -> bytes:
    return trust.read_file(path, 100)


def refused(path: Path) -> str:
    with pytest.raises(UntrustedError) as caught:
        content(path)
    assert caught.value.hint
    return caught.value.message


def test_files_that_are_read(place: Path) -> None:
    """Files of root, also by root's links; files of another user where only that user or root may write."""
    path = file(place / "file")
    given = give(file(place / "given", 0o600))
    theirs = give(directory(place / "theirs"))
    for one in (
        path,
        given,
        link(place / "link", "file"),
        link(place / "far", path),
        give(file(theirs / "own")),
    ):
        assert content(one) == b"content"
    link(place / "way", theirs)
    assert content(place / "way" / "own") == content(place / "way" / ".." / "file") == b"content"
    assert trust.read_file(path, 3) == b"cont"


def test_a_link_of_another_user_is_not_followed(place: Path) -> None:
    """Neither as the last name nor as a directory of the path, for any target."""
    secret = file(place / "secret", 0o600)
    theirs = give(directory(place / "theirs"))
    said = refused(give(link(theirs / "sessions.jsonl", secret)))
    assert said == f"{theirs}/sessions.jsonl is reached by a link that the user 65534 made"
    give(link(theirs / "current", place))
    assert "is reached by a link" in refused(theirs / "current" / "secret")
    # root's link to a link of another user
    assert "is reached by a link" in refused(link(place / "ours", theirs / "sessions.jsonl"))


def test_a_hard_link_in_another_user_s_directory(place: Path) -> None:
    secret = file(place / "secret", 0o600)
    theirs = give(directory(place / "theirs"))
    (theirs / "sessions.jsonl").hardlink_to(secret)
    assert "has another name (a hard link)" in refused(theirs / "sessions.jsonl")
    (place / "twice").hardlink_to(secret)
    assert content(place / "twice") == b"content"


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_directory_that_every_user_may_write(place: Path, mode: int) -> None:
    """In a sticky directory another user cannot replace a file of root, but may have made any other file."""
    open_to_all = directory(place / "all", mode)
    own, theirs = file(open_to_all / "own"), give(file(open_to_all / "theirs"))
    assert "directory that every user may write" in refused(theirs)
    if mode == 0o777:
        assert "directory that every user may write" in refused(own)
    else:
        assert content(own) == b"content"


def test_a_file_that_every_user_may_write(place: Path) -> None:
    assert "may be written by every user" in refused(file(place / "file", 0o666))


def test_links_in_a_circle(place: Path) -> None:
    link(place / "a", "b")
    link(place / "b", "a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        content(place / "a")


@pytest.mark.parametrize("strict", [True, False])
def test_pipes_devices_and_directories_are_not_opened(place: Path, strict: bool) -> None:
    """Opening a pipe waits for its other end; opening a device may do anything."""
    os.mkfifo(place / "pipe")
    began = time.monotonic()
    for path, what in (
        (place / "pipe", "a pipe, socket or device"),
        (Path("/dev/null"), "a pipe, socket or device"),
        (place, "a directory"),
    ):
        with pytest.raises(trust.NotRegularError) as caught:
            trust.open_file(path, strict=strict)
        assert caught.value.strerror == what
    with pytest.raises(FileNotFoundError):
        trust.open_file(place / "nowhere", strict=strict)
    with pytest.raises(NotADirectoryError):
        trust.open_file(file(place / "file") / "x", strict=strict)
    assert time.monotonic() - began < 60


def test_without_privileges_any_link_is_followed(place: Path) -> None:
    """For example `policy test` in a CI directory that every user may write."""
    path = give(link(place / "link", file(place / "file", 0o666)))
    assert trust.read_file(path, 100, strict=False) == b"content"
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            code = int(content(path) != b"content")
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_capabilities_are_a_privilege(place: Path) -> None:
    """A process with capabilities is as strict as one of root."""
    path = give(link(place / "link", file(place / "file")))
    child = os.fork()
    if not child:
        code = 1
        try:
            import ctypes

            libc = ctypes.CDLL(None)
            libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
            os.setresuid(NOBODY - 1, NOBODY - 1, NOBODY - 1)
            header = (ctypes.c_uint32 * 2)(0x20080522, 0)
            sets = (ctypes.c_uint32 * 6)(1 << 12, 1 << 12, 0, 0, 0, 0)  # CAP_NET_ADMIN
            if libc.capset(header, sets) == 0:
                try:
                    content(path)
                except UntrustedError:
                    code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
