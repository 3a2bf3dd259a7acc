"""Writes availability into the maps: interfaces, egress addresses, conntrack's timeouts.

The daemon calls this at every change of addresses, routes and links; the programs act on it from the next
packet on.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Network

import numpy as np

from enforcer.address import IPAddress, mapped, mask_words, pack, words
from enforcer.constants.bpf import FAMILIES, NEAREST_BUCKETS, NO_SLOT, TIMEOUTS, State
from enforcer.datapath.banks import prefix_of
from enforcer.datapath.maps import Map, Maps
from enforcer.gateway import roles
from enforcer.gateway.desired import Desired, Egress
from enforcer.gateway.roles import LinkStatus
from enforcer.kernel import addresses, links, sysctl
from enforcer.kernel.addresses import InterfaceAddress
from enforcer.policy.nearest import buckets

Pair = tuple[bool, bool]
TIMEOUT_NAMES = {State.UDP_UNREPLIED: "udp", State.UDP_STREAM: "udp_stream"} | {
    state: f"tcp_{state.name.lower()}" for state in State if state >= State.SYN_SENT
}
"""Names of conntrack's timeouts by flow state."""
_TIMEOUT_OF_SYN_SENT2 = 120.0  # seconds; conntrack has no sysctl for it
# Seconds added to conntrack's timeouts, which conntrack counts in jiffies of up to 10 ms. If a flow ended
# before its conntrack entry, its next packet would be decided again while conntrack still applies the
# former translation.
GRACE = 1.0


class AddressSet:
    """The addresses and ranges of egress IPs, and the shared addresses of ``shared``; `in` takes 16 bytes."""

    def __init__(self, egresses: Sequence[Egress], shared: Desired | None = None):
        single: list[IPAddress] = [egress.ipv4 for egress in egresses]
        if shared is not None:
            single += [shared.shared4, shared.shared6]
        self._take(single, [egress.ipv6 for egress in egresses])

    @classmethod
    def of(cls, single: Iterable[IPAddress], ranges: Iterable[IPv6Network]) -> AddressSet:
        """The set of these addresses and ranges."""
        made = cls(())
        made._take(single, ranges)
        return made

    def _take(self, single: Iterable[IPAddress], ranges: Iterable[IPv6Network]) -> None:
        self._single = {pack(address) for address in single}
        self._ranges: dict[int, set[int]] = {}
        for network in ranges:
            shift = 128 - network.prefixlen
            self._ranges.setdefault(shift, set()).add(int(network.network_address) >> shift)

    def __contains__(self, address: bytes) -> bool:
        value = int.from_bytes(address, "big")
        return address in self._single or any(
            value >> shift in found for shift, found in self._ranges.items()
        )


@dataclass(frozen=True)
class Availability:
    """Which desired addresses and links exist at present; pairs are (IPv4, IPv6)."""

    egresses: dict[str, Pair]
    """Availability of this gateway's egress IPs by name."""
    shared: Pair
    """Whether the gateway holds the shared addresses."""
    links: LinkStatus


def refresh(maps: Maps, wanted: Desired) -> Availability:
    """Updates the maps; returns what it found."""
    found = links.links()
    seen = roles.refresh(maps, wanted, found)
    held = addresses.held()
    single, ranges = {interface.ip for _, interface in held}, addresses.ranges()
    there = Availability(
        {egress.name: (egress.ipv4 in single, egress.ipv6 in ranges) for egress in wanted.ours},
        (wanted.shared4 in single, wanted.shared6 in single),
        seen,
    )
    _write_egresses(maps.egresses, wanted, there)
    _write_nearest(maps.nearest, wanted, there.egresses)
    _write_on_link(maps.on_link, _answered_for(wanted, held, ranges))
    return there


def _answered_for(
    wanted: Desired, held: Iterable[InterfaceAddress], ranges: Container[IPv6Network]
) -> list[IPv6Network]:
    """On-link IPv6 networks that the gateway holds and the kernel answers no solicitation for (RFC 4861).

    An answer for an address that this gateway does not hold would divert another gateway's traffic.
    """
    networks = [egress.ipv6 for egress in wanted.ours if egress.on_link and egress.ipv6 in ranges]
    holders = {name for name, interface in held if interface.ip == wanted.shared6}
    if holders and holders.isdisjoint(wanted.outside):  # on lo
        networks.append(IPv6Network(wanted.shared6))
    return networks


def _write_egresses(egresses: Map, wanted: Desired, there: Availability) -> None:
    _, current = egresses.items()
    rows = np.zeros_like(current)
    ones = mask_words(128)
    address = rows["address"]
    address["prefix"][0] = [words(wanted.shared4), words(wanted.shared6)]
    address["mask"][0] = [ones, ones]
    address["local"][0] = 1
    address["available"][0] = there.shared
    # A slot without an egress IP matches no address: prefix 0 under a full mask.
    address["mask"][1:] = ones
    for egress in wanted.egresses:
        slot = egress.slot
        address["prefix"][slot] = [words(egress.ipv4), words(egress.ipv6.network_address)]
        address["mask"][slot] = [ones, mask_words(egress.ipv6.prefixlen)]
        address["local"][slot] = int(egress.here)
        address["available"][slot] = there.egresses.get(egress.name, (False, False))
    changed = np.flatnonzero(rows != current).astype(egresses.key)
    egresses.put_many(changed, rows[changed])


def _write_nearest(nearest: Map, wanted: Desired, available: Mapping[str, Pair]) -> None:
    slots = {egress.name: egress.slot for egress in wanted.egresses}
    rows = np.full((NEAREST_BUCKETS, FAMILIES), NO_SLOT, dtype=nearest.value)
    for family in range(FAMILIES):
        names = [name for name in wanted.nearest if available.get(name, (False, False))[family]]
        if names:
            chosen = np.array([slots[name] for name in names], dtype=nearest.value)
            rows[:, family] = chosen[buckets(names, NEAREST_BUCKETS)]
    nearest.put_many(np.arange(rows.size, dtype=nearest.key), rows.reshape(-1))


def _write_on_link(on_link: Map, networks: Iterable[IPv6Network]) -> None:
    keys = {network: prefix_of(network, on_link.key) for network in map(mapped, networks)}
    keep = {key.tobytes() for key in keys.values()}
    for key in on_link.items()[0]:
        if key.tobytes() not in keep:
            on_link.delete(key)
    for key in keys.values():
        on_link.put(key, 1)


def write_timeouts(maps: Maps) -> np.ndarray:
    """Writes and returns the flows' idle timeouts in ns by state: conntrack's, plus GRACE."""
    seconds = sysctl.conntrack_timeouts()
    rows = np.zeros(TIMEOUTS, dtype=maps.timeouts.value)
    for state, name in TIMEOUT_NAMES.items():
        rows[state] = (seconds.get(name, _TIMEOUT_OF_SYN_SENT2) + GRACE) * 1e9
    maps.timeouts.put_many(np.arange(len(rows), dtype=maps.timeouts.key), rows)
    return rows
