"""The configuration's timers as conntrack sysctls, which exist for each network namespace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_CONNTRACK: Final = "net/netfilter/nf_conntrack_"

# The sysctls that each timer sets. A connection that one side has closed is still in its established phase
# (RFC 5382, 5; RFC 6146, 3.5.2.2, "V4 FIN RCV"). The last two are conntrack's shorter timeouts for
# unacknowledged data and repeated acknowledgements, which conntrack cannot judge by the few packets of a fast
# flow that it sees.
_OF_FAST_FLOWS: Final[Mapping[str, tuple[str, ...]]] = {
    "tcp_established": (
        "tcp_timeout_established",
        "tcp_timeout_fin_wait",
        "tcp_timeout_close_wait",
        "tcp_timeout_unacknowledged",
        "tcp_timeout_max_retrans",
    ),
    "udp": ("udp_timeout", "udp_timeout_stream"),
}
_OF_OTHERS: Final[Mapping[str, tuple[str, ...]]] = {
    "tcp_transitory": ("tcp_timeout_syn_sent", "tcp_timeout_syn_recv"),
    "tcp_closing": ("tcp_timeout_last_ack",),
    "tcp_time_wait": ("tcp_timeout_time_wait",),
    "tcp_close": ("tcp_timeout_close",),
    "icmp": ("icmp_timeout", "icmpv6_timeout"),
}
REFRESH: Final = 5
"""Seconds within which a packet of every active fast flow takes the kernel's path.

conntrack counts from that packet, the configuration from the last one: so conntrack gets this much more.
"""


def sysctls(timers: Mapping[str, int]) -> dict[str, str]:
    """Values by sysctl name, for the timers in ``timers`` (seconds)."""
    # conntrack sees only some segments of a fast flow, so its TCP windows and the sequence numbers that it
    # compares a reset with are outdated.
    found = {_CONNTRACK + "tcp_be_liberal": "1", _CONNTRACK + "tcp_ignore_invalid_rst": "1"}
    for names, more in ((_OF_FAST_FLOWS, REFRESH), (_OF_OTHERS, 0)):
        for timer, each in names.items():
            if timer in timers:
                found |= {_CONNTRACK + name: str(timers[timer] + more) for name in each}
    return found
