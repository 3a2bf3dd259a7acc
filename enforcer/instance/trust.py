"""Checks of files and directories that other local users can influence (docs/security.md).

Two users are trusted: root, and the user of this process. With root's rights

- a directory of the enforcer's own (pins, state) is used only if one of these users owns it, no other user
  may write it, and it is no symbolic link;
- a file is read only if it is a regular file, symbolic links on its path belong to one of these users, and
  not every user may write the file or a directory on its path.

The owner of a file may be another user: a service that writes the sessions, for example.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from enforcer.errors import UntrustedError

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MOST_LINKS = 40  # as the kernel (MAXSYMLINKS)


class NotRegularError(OSError):
    """A path is not a regular file; ``strerror`` says what it is."""


def check_directory(path: Path) -> bool:
    """Whether the enforcer's directory exists. Raises UntrustedError if another user may have prepared it."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(status.st_mode):
        raise _prepared(path, f"is a link, made by {_who(status)}")
    _check_owned(path, status)
    return True


def check_mount(path: Path) -> None:
    """Checks the directory that contains ours; it may be sticky, like /tmp. Raises UntrustedError."""
    status = path.stat()
    if status.st_mode & stat.S_ISVTX and status.st_uid in _trusted():
        return  # only its owner can rename or remove an entry
    _check_owned(path, status)


def make_directory(path: Path) -> None:
    """Creates a private directory unless it exists. Raises UntrustedError, OSError."""
    path.mkdir(mode=0o700, exist_ok=True)
    check_directory(path)


def remove_tree(path: Path) -> bool:
    """Removes a directory and its contents without following links; False if it does not exist.

    Raises UntrustedError if ``path`` itself is a link.
    """
    try:
        _empty(str(path), None)
        path.rmdir()
    except FileNotFoundError:  # or another process removed it
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _prepared(path, "is no directory") from error
        raise
    return True


def open_file(path: Path, *, strict: bool = True) -> int:
    """Opens a regular file for reading. Raises UntrustedError, NotRegularError, OSError.

    Pipes and devices are never opened. Without ``strict``, or in a process without privileges, links are
    followed and permissions are not checked.
    """
    with ExitStack() as stack:
        if strict and _is_privileged():
            found = _walk(path.absolute(), stack)
        else:
            found = os.open(path, os.O_PATH | os.O_CLOEXEC)
            stack.callback(os.close, found)
        kind = os.fstat(found).st_mode
        if not stat.S_ISREG(kind):
            what = "a directory" if stat.S_ISDIR(kind) else "a pipe, socket or device"
            raise NotRegularError(errno.EINVAL, what, str(path))
        return os.open(f"/proc/self/fd/{found}", _READ)


def read_file(path: Path, most: int, *, strict: bool = True) -> bytes:
    """Reads a file that open_file accepts; a result of ``most`` + 1 bytes means that the file is larger."""
    with open(open_file(path, strict=strict), "rb") as file:
        return file.read(most + 1)


def _walk(path: Path, stack: ExitStack) -> int:
    """Resolves a path component by component and checks each; returns an O_PATH descriptor."""
    names = _names(str(path))
    here = _opened("/", None, stack)
    followed = 0
    while names:
        there = _opened(names.pop(), here, stack)
        status = os.fstat(there)
        _check_step(path, os.fstat(here), status, last=not names)
        if not stat.S_ISLNK(status.st_mode):
            here = there
            continue
        followed += 1
        if followed > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = os.readlink("", dir_fd=there)
        names += _names(target)
        if target.startswith("/"):
            here = _opened("/", None, stack)
    return here


def _names(path: str) -> list[str]:
    """The components of a path in reverse order."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _opened(name: str, directory: int | None, stack: ExitStack) -> int:
    number = os.open(name, _PATH, dir_fd=directory)
    stack.callback(os.close, number)
    return number


def _check_step(path: Path, directory: os.stat_result, entry: os.stat_result, *, last: bool) -> None:
    ours = entry.st_uid in _trusted()
    open_to_all = directory.st_mode & stat.S_IWOTH
    elsewhere = "Put it where only root, or the user who writes it, may write."
    if open_to_all and not directory.st_mode & stat.S_ISVTX:
        raise UntrustedError(f"{path} lies in a directory that every user may write", elsewhere)
    if open_to_all and not ours:
        what = f"lies in a directory that every user may write, and belongs to {_who(entry)}"
        raise UntrustedError(f"{path} {what}", elsewhere)
    if stat.S_ISLNK(entry.st_mode) and not ours:
        what = f"is reached by a link that {_who(entry)} made"
        raise UntrustedError(f"{path} {what}", "Name the file itself; links of root are followed.")
    if last and stat.S_ISREG(entry.st_mode):
        if entry.st_mode & stat.S_IWOTH:
            raise UntrustedError(f"{path} may be written by every user", f"Close it: chmod o-w {path}")
        if entry.st_nlink > 1 and not _is_private(directory):
            what = f"has another name (a hard link), which {_who(directory)} may have given it"
            raise UntrustedError(f"{path} {what}", "Copy it: a file of its own has one name.")


def _check_owned(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise _prepared(path, "is no directory")
    if status.st_uid not in _trusted():
        raise _prepared(path, f"belongs to {_who(status)}")
    if not _is_private(status):
        mode = stat.S_IMODE(status.st_mode)
        what = f"may be written by others (mode {mode:o})"
        raise UntrustedError(f"{path} {what}", f"If nothing strange is in it, close it: chmod 700 {path}")


def _is_private(directory: os.stat_result) -> bool:
    """Whether only trusted users may write it; group 0 counts as root."""
    mode, others = directory.st_mode, directory.st_gid != 0
    return directory.st_uid in _trusted() and not mode & (stat.S_IWOTH | (stat.S_IWGRP if others else 0))


def _is_privileged() -> bool:
    """Whether this process runs as root or has capabilities."""
    if os.geteuid() == 0:
        return True
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return any(line.startswith("CapEff:") and int(line.split()[1], 16) for line in lines)


def _trusted() -> tuple[int, int]:
    return 0, os.geteuid()


def _who(status: os.stat_result) -> str:
    return "root" if status.st_uid == 0 else f"the user {status.st_uid}"


def _prepared(path: Path, what: str) -> UntrustedError:
    hint = f"Another user may have prepared it. Look at it, then remove it: rm -r {path}"
    return UntrustedError(f"{path} {what}", hint)


def _empty(name: str, parent: int | None) -> None:
    directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for entry, is_directory in list(_entries(directory)):
            with suppress(FileNotFoundError):  # another process removed it
                if is_directory:
                    _empty(entry, directory)
                    os.rmdir(entry, dir_fd=directory)
                else:
                    os.unlink(entry, dir_fd=directory)
    finally:
        os.close(directory)


def _entries(directory: int) -> Iterator[tuple[str, bool]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name, entry.is_dir(follow_symlinks=False)
