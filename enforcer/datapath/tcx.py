"""TCX: attaches programs to an interface's TC hooks without a qdisc, since Linux 6.6.

The kernel runs them in sch_handle_ingress and sch_handle_egress (net/core/dev.c). clsact and its classifier
cost some 40 ns more per hook. A link holds the program and a pin holds the link, so tc(8) does not detach it;
it ends with its interface. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from enforcer.datapath import syscall

Direction = Literal["ingress", "egress"]

# include/uapi/linux/bpf.h: enum bpf_attach_type, BPF_F_BEFORE
ATTACH_TYPES: dict[Direction, int] = {"ingress": 46, "egress": 47}
_BEFORE = 1 << 3
_PROGRAMS = 64  # bpf_mprog_max()
_LOOPBACK = 1


@cache
def supported() -> bool:
    """Whether this kernel has TCX."""
    try:
        programs(_LOOPBACK, "ingress")
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise syscall.explain_error(error, "looking for TCX") from error
    return True


def programs(interface: int, direction: Direction) -> list[int]:
    """Ids of all programs at a hook in execution order. Raises OSError."""
    return [program for program, _ in chain(interface, direction)]


def chain(interface: int, direction: Direction) -> list[tuple[int, int]]:
    """(program id, link id or 0) of all programs at a hook in execution order. Raises OSError."""
    identifiers, links = (ctypes.c_uint32 * _PROGRAMS)(), (ctypes.c_uint32 * _PROGRAMS)()
    attributes = bytearray(144)
    struct.pack_into(
        "<IIIIQIIQQ", attributes, 0,
        interface, ATTACH_TYPES[direction], 0, 0, syscall.address(identifiers), _PROGRAMS, 0,
        0, syscall.address(links),
    )  # fmt: skip
    try:
        syscall.call(syscall.PROG_QUERY, attributes)
    except OSError as error:
        if error.errno == errno.ENOENT:  # nothing was attached yet
            return []
        raise
    (count,) = struct.unpack_from("<I", attributes, 24)
    return list(zip(identifiers[:count], links[:count], strict=True))


def link(interface: int, direction: Direction, program: int) -> int:
    """Attaches a program before all others; returns the link's descriptor. Raises OSError."""
    return syscall.call(
        syscall.LINK_CREATE, struct.pack("<4I", program, interface, ATTACH_TYPES[direction], _BEFORE)
    )


def attach(directory: Path, interface: int, direction: Direction, program: int) -> None:
    """Attaches the program with the descriptor ``program`` before all others; pins the link in ``directory``.

    An attached program of ours is replaced atomically. Raises KernelError, PrivilegeError.
    """
    path = _path(directory, interface, direction)
    try:
        if (interface, direction) in attached(directory):
            fd = syscall.get(str(path))
            try:
                syscall.call(syscall.LINK_UPDATE, struct.pack("<2I", fd, program))
            finally:
                os.close(fd)
            return
        directory.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # the pin of a removed interface's link
        fd = link(interface, direction, program)
        try:
            syscall.pin(fd, str(path))
        finally:
            os.close(fd)
    except OSError as error:
        what = f"attaching a program to {direction} of interface {interface}"
        raise syscall.explain_error(error, what) from error


def link_ids(directory: Path) -> set[int]:
    """Ids of the pinned links."""
    found = set()
    try:
        for path in _links(directory):
            fd = syscall.get(str(path))
            found.add(syscall.object_id(fd))
            os.close(fd)
    except OSError as error:
        raise syscall.explain_error(error, "reading the attached programs") from error
    return found


def pin_link(directory: Path, interface: int, direction: Direction, fd: int) -> None:
    """Pins the link at this hook in ``directory``."""
    path = _path(directory, interface, direction)
    directory.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        syscall.pin(fd, str(path))
    except OSError as error:
        raise syscall.explain_error(
            error, f"pinning the link at {direction} of interface {interface}"
        ) from error


def attached(directory: Path) -> dict[tuple[int, Direction], int]:
    """Program ids of the pinned links by interface and direction, for interfaces that exist."""
    found = {}
    try:
        for path in _links(directory):
            fd = syscall.get(str(path))
            try:
                program, interface, kind = syscall.link_info(fd)
            finally:
                os.close(fd)
            for direction, number in ATTACH_TYPES.items():
                if kind == number and path == _path(directory, interface, direction):
                    found[interface, direction] = program
    except OSError as error:
        raise syscall.explain_error(error, "reading the attached programs") from error
    return found


def detach(directory: Path, interface: int, direction: Direction) -> bool:
    """Detaches our program from a hook; True if there was one."""
    path = _path(directory, interface, direction)
    if not path.exists():
        return False
    try:
        if (interface, direction) in attached(directory):
            fd = syscall.get(str(path))
            try:
                # The kernel frees an unpinned link later; LINK_DETACH acts at once.
                detach_link(fd)
            finally:
                os.close(fd)
        path.unlink()
    except OSError as error:
        what = f"detaching a program from {direction} of interface {interface}"
        raise syscall.explain_error(error, what) from error
    return True


def detach_link(fd: int) -> None:
    """Detaches the program of a link."""
    try:
        syscall.call(syscall.LINK_DETACH, struct.pack("<I", fd))
    except OSError as error:
        raise syscall.explain_error(error, "detaching a program") from error


def _path(directory: Path, interface: int, direction: Direction) -> Path:
    return directory / f"{interface}-{direction}"


def _links(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield from sorted(directory.iterdir())
