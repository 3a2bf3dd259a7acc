"""Checks whether the kernel answers ARP requests for egress addresses (arp_ignore)."""

from __future__ import annotations

from enforcer.kernel import sysctl

# Values of arp_ignore (ip-sysctl.rst) with which the kernel answers no request for an address of scope "host"
# or outside the sender's subnet (net/ipv4/arp.c, arp_ignore).
_SILENT = {"2", "3", "8"}


def unanswered(interface: str) -> list[str]:
    """A warning if the kernel answers no ARP requests on this interface, which holds the addresses."""
    names = [f"net/ipv4/conf/{name}/arp_ignore" for name in ("all", interface)]
    values = sysctl.found(names)
    if len(values) < len(names):
        return []
    # The kernel uses the greater value (include/linux/inetdevice.h, IN_DEV_ARP_IGNORE).
    value, name = max((value, name) for name, value in values.items())
    if value not in _SILENT:
        return []
    return [
        f"{name.replace('/', '.')} is {value}: no ARP request for an IPv4 egress address is answered; "
        "set it to 0 or 1, unless the addresses are routed to this gateway"
    ]
