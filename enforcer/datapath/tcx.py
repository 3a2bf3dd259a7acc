"""TCX: programs at an interface's TC hooks without a qdisc (Linux 6.6, Documentation/bpf/libbpf: tcx).

A packet's way through clsact and its classifier costs some 40 ns a hook more. Only the standard library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from enforcer.datapath import syscall

Direction = Literal["ingress", "egress"]

# include/uapi/linux/bpf.h: enum bpf_attach_type, BPF_F_*
_ATTACH_TYPES: dict[Direction, int] = {"ingress": 46, "egress": 47}
_REPLACE, _BEFORE = 1 << 2, 1 << 3
_PROGRAMS = 64  # bpf_mprog_max()
_LOOPBACK = 1


@dataclass(frozen=True)
class Program:
    """A program at a hook, in the order in which they run."""

    direction: Direction
    id: int
    name: str
    tag: str


@cache
def supported() -> bool:
    """Whether this kernel has TCX."""
    try:
        _query(_LOOPBACK, "ingress")
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise syscall.explain_error(error, "looking for TCX") from error
    return True


def attached(interface: int) -> list[Program]:
    """The programs at both hooks of the interface with this index, ours and other people's."""
    found = []
    try:
        for direction in _ATTACH_TYPES:
            for identifier in _query(interface, direction):
                fd = syscall.program_by_id(identifier)
                try:
                    found.append(Program(direction, identifier, *syscall.program_name(fd)))
                finally:
                    os.close(fd)
    except OSError as error:
        raise syscall.explain_error(error, f"reading the programs of interface {interface}") from error
    return found


def attach(interface: int, direction: Direction, program: int, names: Sequence[str]) -> None:
    """Attaches the program with the file descriptor ``program`` in front of all others.

    One that is there and has one of ``names`` is replaced in place: no packet passes between the two.
    """
    there = [one for one in attached(interface) if one.direction == direction and one.name in names]
    kind = _ATTACH_TYPES[direction]
    try:
        if there:
            old = syscall.program_by_id(there[0].id)
            try:
                if there[0].id != syscall.program_info(program)[0]:
                    syscall.call(
                        syscall.PROG_ATTACH, struct.pack("<5I", interface, program, kind, _REPLACE, old)
                    )
            finally:
                os.close(old)
        else:
            syscall.call(syscall.PROG_ATTACH, struct.pack("<4I", interface, program, kind, _BEFORE))
    except OSError as error:
        what = f"attaching a program to {direction} of interface {interface}"
        raise syscall.explain_error(error, what) from error


def detach(interface: int, direction: Direction, names: Sequence[str]) -> list[Program]:
    """Takes the programs of these names off; other people's stay. Returns what was there."""
    gone = [one for one in attached(interface) if one.direction == direction and one.name in names]
    try:
        for one in gone:
            fd = syscall.program_by_id(one.id)
            try:
                syscall.call(syscall.PROG_DETACH, struct.pack("<3I", interface, fd, _ATTACH_TYPES[direction]))
            finally:
                os.close(fd)
    except OSError as error:
        what = f"detaching a program from {direction} of interface {interface}"
        raise syscall.explain_error(error, what) from error
    return gone


def _query(interface: int, direction: Direction) -> list[int]:
    identifiers = (ctypes.c_uint32 * _PROGRAMS)()
    attributes = bytearray(64)
    struct.pack_into(
        "<IIIIQI", attributes, 0,
        interface, _ATTACH_TYPES[direction], 0, 0, syscall.address(identifiers), _PROGRAMS,
    )  # fmt: skip
    try:
        syscall.call(syscall.PROG_QUERY, attributes := bytearray(attributes.ljust(144, b"\0")))
    except OSError as error:
        if error.errno == errno.ENOENT:  # nothing has ever been attached
            return []
        raise
    (count,) = struct.unpack_from("<I", attributes, 24)
    return list(identifiers[:count])
