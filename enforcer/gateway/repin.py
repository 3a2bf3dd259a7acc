"""Makes what is in force reachable before it is changed, or says why that can't be.

A mounted BPF file system, and links of ours pinned in it: one that is mounted on top of another hides the
links there, and programs attached beside them would decide about each packet a second time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from enforcer.datapath import bpffs, tcx, unreachable_links
from enforcer.datapath.unreachable_links import UnreachableLink
from enforcer.kernel import links, nft

if TYPE_CHECKING:
    from enforcer.gateway.installed import Installed


def ensure_reachable(installed: Installed) -> None:
    """Mounts a BPF file system if there is none, and pins links that are out of reach where they should be.

    Raises KernelError, PrivilegeError; then nothing that is enforced has changed.
    """
    if installed.pins is None:
        installed.pins = installed.pins_at(bpffs.mount_bpffs())
    for one, fd in unreachable_links.open_links(_unreachable(installed)).items():
        try:
            tcx.pin_link(installed.pins.links, one.interface, one.direction, fd)
        finally:
            os.close(fd)


def detach_unreachable(installed: Installed) -> int:
    """Takes the programs off whose links are out of reach; returns how many. Raises as :func:`reach`."""
    opened = unreachable_links.open_links(_unreachable(installed))
    for fd in opened.values():
        tcx.detach_link(fd)
        os.close(fd)
    return len(opened)


def _unreachable(installed: Installed) -> list[UnreachableLink]:
    state = installed.state
    reachable = tcx.link_ids(installed.pins.links) if installed.pins is not None else set()
    known = set(state.program_ids.values()) if state is not None else set()
    # Without its state only the table says that there is a gateway.
    doubtful = state is None and nft.installed() is not None
    interfaces = [link.index for link in links.links().values()]
    return unreachable_links.find(reachable, interfaces, known, doubtful=doubtful)
