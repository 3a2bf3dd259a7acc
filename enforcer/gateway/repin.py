"""Makes the programs in force reachable before a plan: mounts a bpffs and pins unreachable links again.

A bpffs mounted over another one hides the links pinned there. Programs attached beside hidden ones would
decide about each packet a second time.
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
    """Mounts a bpffs if none is mounted, and pins unreachable links of ours in it.

    Raises KernelError, PrivilegeError; enforcement is then unchanged.
    """
    if installed.pins is None:
        installed.pins = installed.pins_at(bpffs.mount_bpffs())
    for one, fd in unreachable_links.open_links(_unreachable(installed)).items():
        try:
            tcx.pin_link(installed.pins.links, one.interface, one.direction, fd)
        finally:
            os.close(fd)


def detach_unreachable(installed: Installed) -> int:
    """Detaches the programs of unreachable links; returns how many. Raises KernelError, PrivilegeError."""
    opened = unreachable_links.open_links(_unreachable(installed))
    for fd in opened.values():
        tcx.detach_link(fd)
        os.close(fd)
    return len(opened)


def _unreachable(installed: Installed) -> list[UnreachableLink]:
    state = installed.state
    reachable = tcx.link_ids(installed.pins.links) if installed.pins is not None else set()
    known = set(state.program_ids.values()) if state is not None else set()
    # Without a state file, the nftables table alone shows that a gateway is installed.
    doubtful = state is None and nft.installed() is not None
    interfaces = [link.index for link in links.links().values()]
    return unreachable_links.find(reachable, interfaces, known, doubtful=doubtful)
