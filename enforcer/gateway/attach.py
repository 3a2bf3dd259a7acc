"""Attaches the programs to the interfaces' TC hooks: by TCX (Linux 6.6), else by a clsact qdisc's filters."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from enforcer.datapath import syscall, tcx
from enforcer.datapath.programs import Pins
from enforcer.kernel import filters
from enforcer.kernel.filters import NAME_PREFIX, Direction


def attached(pins: Pins | None, interfaces: Iterable[int]) -> dict[tuple[int, Direction], int]:
    """Ids of the enforcer's programs by interface index and direction; 0: attached by the wrong mechanism."""
    wanted = set(interfaces)
    found: dict[tuple[int, Direction], int] = {}
    if pins is not None and tcx.supported():
        found = {hook: program for hook, program in tcx.attached(pins.links).items() if hook[0] in wanted}
    for interface in wanted:
        for one in filters.attached(interface):
            if one.ours:
                found[interface, one.direction] = 0 if tcx.supported() else one.program
    return found


def others_filter(interface: int) -> bool:
    """Whether an ingress filter or TCX program of other software sees packets after ours."""
    if any(not one.ours and one.direction == "ingress" for one in filters.attached(interface)):
        return True
    try:
        return tcx.supported() and len(tcx.programs(interface, "ingress")) > 1
    except OSError as error:
        if error.errno == errno.ENODEV:  # the interface was removed meanwhile
            return False
        raise syscall.explain_error(error, f"reading the programs of interface {interface}") from error


def needs_qdisc(interface: int) -> bool:
    """Whether attaching requires a clsact qdisc that is missing (``filters.ensure_clsact`` adds it)."""
    return not tcx.supported() and not filters.has_clsact(interface)


def attach(pins: Pins, interface: int, direction: Direction, name: str) -> None:
    """Attaches a pinned program before all others; replaces one of ours in place."""
    with pins.open(name) as program:
        if tcx.supported():
            tcx.attach(pins.links, interface, direction, program)
            filters.detach(interface, direction)  # attached by an earlier version
        else:
            filters.attach(interface, direction, program, f"{NAME_PREFIX}{name}")


def detach(pins: Pins | None, interface: int, direction: Direction) -> bool:
    """Detaches the enforcer's programs from a hook; True if there was one."""
    gone = bool(filters.detach(interface, direction))
    if pins is not None:
        gone |= tcx.detach(pins.links, interface, direction)
    return gone
