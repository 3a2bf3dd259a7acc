"""TC: the clsact qdisc and its BPF filters. Reading does not import pyroute2."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from enforcer.errors import BusyError
from enforcer.kernel import netlink
from enforcer.kernel.netlink import Channel

if TYPE_CHECKING:
    from pyroute2 import IPRoute

Direction = Literal["ingress", "egress"]

NAME_PREFIX = "enforcer/"
PRIORITY = 1
HANDLE = 1

# include/uapi/linux/rtnetlink.h, pkt_sched.h, pkt_cls.h
RTM_GETQDISC, RTM_GETTFILTER = 38, 46
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_BPF_NAME, TCA_BPF_TAG, TCA_BPF_ID = 7, 10, 11
CLSACT = 0xFFFFFFF1
HOOKS: dict[Direction, int] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
ETH_P_ALL = 3
MESSAGE = struct.Struct("=BxxxiIII")  # struct tcmsg: family, interface index, handle, parent, info


@dataclass(frozen=True)
class Filter:
    """One TC filter; the fields from ``name`` on are empty for a kind other than "bpf"."""

    direction: Direction
    priority: int
    handle: int
    kind: str
    name: str = ""
    program: int = 0
    tag: str = ""

    @property
    def ours(self) -> bool:
        """Whether the enforcer attached it."""
        return self.name.startswith(NAME_PREFIX)


def attached(interface: int) -> list[Filter]:
    """All filters on the interface with this index; none without a clsact qdisc."""
    found = []
    with Channel(netlink.NETLINK_ROUTE, f"reading the filters of interface {interface}") as channel:
        for direction, parent in HOOKS.items():
            for message in channel.snapshot(RTM_GETTFILTER, MESSAGE.pack(0, interface, 0, parent, 0)):
                _, _, handle, _, info = MESSAGE.unpack_from(message)
                parts = netlink.attributes(message, MESSAGE.size)
                kind = netlink.text(parts.get(TCA_KIND, b""))
                options = netlink.attributes(parts.get(TCA_OPTIONS, b""))
                # The kernel also lists each priority by itself, without options.
                if not options or kind != "bpf":
                    if handle:
                        found.append(Filter(direction, info >> 16, handle, kind))
                    continue
                (program,) = struct.unpack("=I", options.get(TCA_BPF_ID, bytes(4)))
                name = netlink.text(options.get(TCA_BPF_NAME, b""))
                tag = options.get(TCA_BPF_TAG, b"").hex()
                found.append(Filter(direction, info >> 16, handle, kind, name, program, tag))
    return found


def attach(interface: int, direction: Direction, program: int, name: str) -> None:
    """Attaches the program with the file descriptor ``program`` before all other filters.

    A present filter of ours is replaced atomically. ``name`` starts with :data:`NAME_PREFIX`. The interface
    must have a clsact qdisc (:func:`ensure_clsact`). Raises BusyError if another filter has the priority.
    """
    if not name.startswith(NAME_PREFIX):
        raise ValueError(f"the filter's name {name!r} does not start with {NAME_PREFIX!r}")
    operation = f"attaching {name} to {direction} of interface {interface}"
    for other in attached(interface):
        if other.direction == direction and other.priority == PRIORITY and not other.ours:
            what = f"{other.kind} {other.name}".strip()
            hint = f"remove it, or give it a priority above {PRIORITY} (tc filter show dev … {direction})"
            raise BusyError(f"{operation}: another program's filter ({what}) has priority {PRIORITY}", hint)
    with _iproute(operation) as iproute:
        iproute.tc(
            "replace-filter",
            "bpf",
            interface,
            HANDLE,
            fd=program,
            name=name,
            parent=HOOKS[direction],
            prio=PRIORITY,
            protocol=ETH_P_ALL,
            direct_action=True,
            classid=1,
        )


def detach(interface: int, direction: Direction) -> list[Filter]:
    """Detaches the enforcer's filters; returns them."""
    ours = [entry for entry in attached(interface) if entry.ours and entry.direction == direction]
    if ours:
        with _iproute(f"detaching {ours[0].name} from {direction} of interface {interface}") as iproute:
            for entry in ours:
                iproute.tc(
                    "del-filter",
                    "bpf",
                    interface,
                    entry.handle,
                    parent=HOOKS[direction],
                    prio=entry.priority,
                    protocol=ETH_P_ALL,
                )
    return ours


def has_clsact(interface: int) -> bool:
    """Whether the interface has a clsact qdisc."""
    return _clsact_kind(interface) == "clsact"


def ensure_clsact(interface: int) -> bool:
    """Adds a clsact qdisc, which carries the filters; True if the interface had none."""
    operation = f"adding a clsact qdisc to interface {interface}"
    kind = _clsact_kind(interface)
    if kind == "clsact":
        return False
    if kind is not None:
        hint = "clsact does all that ingress does: replace it (tc qdisc del dev … ingress)"
        raise BusyError(f"{operation}: there is a qdisc {kind} in its place", hint)
    with _iproute(operation) as iproute:
        iproute.tc("add", "clsact", interface)
    return True


def remove_clsact(interface: int) -> bool:
    """Removes the clsact qdisc if it has no filters; True if it was removed."""
    if _clsact_kind(interface) != "clsact" or attached(interface):
        return False
    with _iproute(f"removing the clsact qdisc of interface {interface}") as iproute:
        iproute.tc("del", "clsact", interface)
    return True


def _clsact_kind(interface: int) -> str | None:
    with Channel(netlink.NETLINK_ROUTE, f"reading the qdiscs of interface {interface}") as channel:
        for message in channel.snapshot(RTM_GETQDISC, MESSAGE.pack(0, interface, 0, 0, 0)):
            _, index, _, parent, _ = MESSAGE.unpack_from(message)
            if index == interface and parent == CLSACT:
                return netlink.text(netlink.attributes(message, MESSAGE.size)[TCA_KIND])
    return None


@contextmanager
def _iproute(operation: str) -> Iterator[IPRoute]:
    """pyroute2's IPRoute with its errors mapped to ours; ``operation`` begins their messages."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as iproute:
            yield iproute
    except NetlinkError as error:
        raise netlink.failure(operation, error.code) from error
    except OSError as error:
        raise netlink.failure(operation, error.errno or errno.EIO) from error
