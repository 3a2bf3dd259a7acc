"""Our programs at the interfaces' TC hooks: by TCX where the kernel has it (Linux 6.6), else by clsact."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from enforcer.datapath import syscall, tcx
from enforcer.datapath.programs import Pins
from enforcer.kernel import filters
from enforcer.kernel.filters import NAME_PREFIX, Direction


def attached(pins: Pins | None, interfaces: Iterable[int]) -> dict[tuple[int, Direction], int]:
    """Our programs at these interfaces: ids by index and direction; 0: not attached as it should be."""
    wanted = set(interfaces)
    found: dict[tuple[int, Direction], int] = {}
    if pins is not None and tcx.supported():
        found = {place: program for place, program in tcx.attached(pins.links).items() if place[0] in wanted}
    for interface in wanted:
        for one in filters.attached(interface):
            if one.ours:
                found[interface, one.direction] = 0 if tcx.supported() else one.program
    return found


def others_filter(interface: int) -> bool:
    """Whether TC filters of others look at packets as they arrive there, behind ours."""
    if any(not one.ours and one.direction == "ingress" for one in filters.attached(interface)):
        return True
    try:
        return tcx.supported() and len(tcx.programs(interface, "ingress")) > 1
    except OSError as error:
        if error.errno == errno.ENODEV:  # it has gone meanwhile
            return False
        raise syscall.explain_error(error, f"reading the programs of interface {interface}") from error


def needs_qdisc(interface: int) -> bool:
    """Whether an interface has to be given a clsact qdisc first (``filters.ensure_clsact``)."""
    return not tcx.supported() and not filters.has_clsact(interface)


def attach(pins: Pins, interface: int, direction: Direction, name: str) -> None:
    """Attaches a pinned program in front of all others; one of ours that is there is replaced in place."""
    with pins.open(name) as program:
        if tcx.supported():
            tcx.attach(pins.links, interface, direction, program)
            filters.detach(interface, direction)  # an earlier version's
        else:
            filters.attach(interface, direction, program, f"{NAME_PREFIX}{name}")


def detach(pins: Pins | None, interface: int, direction: Direction) -> bool:
    """Takes our programs off; other people's stay. True if there was one."""
    gone = bool(filters.detach(interface, direction))
    if pins is not None:
        gone |= tcx.detach(pins.links, interface, direction)
    return gone
