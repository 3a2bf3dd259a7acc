"""Finds TCX links of ours whose pins are unreachable, in a bpffs that another one is mounted over.

Their programs still decide about packets, so they must be found before programs are attached again. The
kernel lists the ids at a hook; opening by id requires CAP_SYS_ADMIN.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from enforcer.datapath import syscall, tcx
from enforcer.datapath.tcx import Direction
from enforcer.errors import PrivilegeError

# Names of the programs attached by direction; and names of maps that programs of any version use.
_NAMES: dict[Direction, tuple[str, str]] = {
    "ingress": ("from_client", "from_origin"),
    "egress": ("to_client", "to_origin"),
}
_MAPS = {"reasons"}, {"settings", "egresses", "flows", "interfaces", "origins"}
_ENOUGH = 2


@dataclass(frozen=True)
class UnreachableLink:
    """The id of a link of ours at a hook."""

    interface: int
    direction: Direction
    link: int


def find(
    reachable: Collection[int], interfaces: Iterable[int], known: Collection[int], *, doubtful: bool
) -> list[UnreachableLink]:
    """The links of ours at these interfaces whose ids are not in ``reachable``.

    ``known`` are ids of our programs. Others are recognised by name and maps, which requires opening them;
    without the capability they count as foreign, or raise PrivilegeError if ``doubtful``.
    """
    if not tcx.supported():
        return []
    return [
        UnreachableLink(interface, direction, link)
        for interface in interfaces
        for direction in tcx.ATTACH_TYPES
        for program, link in tcx.chain(interface, direction)
        if link and link not in reachable and (program in known or _is_ours(program, direction, doubtful))
    ]


def open_links(links: Iterable[UnreachableLink]) -> dict[UnreachableLink, int]:
    """The descriptors of links that still exist. Raises PrivilegeError without CAP_SYS_ADMIN."""
    opened = {}
    try:
        for one in links:
            fd = _open(syscall.LINK_GET_FD_BY_ID, one.link)
            if fd is not None:
                opened[one] = fd
    except OSError as error:
        for fd in opened.values():
            os.close(fd)
        raise _unreachable(error) from error
    return opened


def _open(command: int, identifier: int) -> int | None:
    """A descriptor, or None if the object does not exist any more."""
    try:
        return syscall.open_by_id(command, identifier)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EAGAIN):
            return None
        raise


def _is_ours(program: int, direction: Direction, doubtful: bool) -> bool:
    try:
        fd = _open(syscall.PROG_GET_FD_BY_ID, program)
        if fd is None:
            return False
        try:
            return syscall.program_name(fd) in _NAMES[direction] and _has_our_maps(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno == errno.EPERM and not doubtful:
            return False
        raise _unreachable(error) from error


def _has_our_maps(program: int) -> bool:
    names = set()
    for identifier in syscall.program_maps(program):
        fd = _open(syscall.MAP_GET_FD_BY_ID, identifier)
        if fd is not None:
            names.add(syscall.map_name(fd))
            os.close(fd)
    always, some = _MAPS
    return always <= names and len(some & names) >= _ENOUGH


def _unreachable(error: OSError) -> Exception:
    if error.errno != errno.EPERM:
        return syscall.explain_error(error, "looking for programs whose pins are out of reach")
    return PrivilegeError(
        "programs are attached whose pins are out of reach; they go on enforcing",
        "A BPF file system may be mounted on the one that has the pins: unmount it (umount /sys/fs/bpf). "
        "Else run `enforcer down` as root with CAP_SYS_ADMIN, which takes these programs off.",
    )
