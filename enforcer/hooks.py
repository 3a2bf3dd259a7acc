"""Our programs at the interfaces' TC hooks: by TCX where the kernel has it (Linux 6.6), else by clsact."""

from __future__ import annotations

from enforcer.datapath import tcx
from enforcer.kernel import filters
from enforcer.kernel.filters import NAME_PREFIX, Direction

PROGRAMS = ("from_client", "to_client", "to_origin", "from_origin")


def attached(interface: int) -> dict[Direction, int]:
    """Our programs at the interface with this index: ids by direction; 0: not attached as it should be."""
    found: dict[Direction, int] = {}
    for one in filters.attached(interface):
        if one.ours:
            found[one.direction] = 0 if tcx.supported() else one.program
    if tcx.supported():
        for program in tcx.attached(interface):
            if program.name in PROGRAMS and program.direction not in found:
                found[program.direction] = program.id
    return found


def prepare(interface: int) -> bool:
    """Makes an interface ready; True: it was given a clsact qdisc (``filters.remove_clsact``)."""
    return not tcx.supported() and filters.ensure_clsact(interface)


def attach(interface: int, direction: Direction, program: int, name: str) -> None:
    """Attaches a program in front of all others; one of ours that is there is replaced in place."""
    if tcx.supported():
        tcx.attach(interface, direction, program, PROGRAMS)
        filters.detach(interface, direction)  # an earlier version's
    else:
        filters.attach(interface, direction, program, f"{NAME_PREFIX}{name}")


def detach(interface: int, direction: Direction) -> bool:
    """Takes our programs off; other people's stay. True if there was one."""
    gone = bool(filters.detach(interface, direction))
    if tcx.supported():
        gone |= bool(tcx.detach(interface, direction, PROGRAMS))
    return gone
