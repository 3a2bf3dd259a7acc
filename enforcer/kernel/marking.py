"""The rules of other software that set marks on packets as they arrive, before routing.

nftables' chains, which iptables-nft writes too; of iptables-legacy only that it has a table `mangle`. Only
what a packet can reach from a hook at arrival counts. Marks that programs at TC set are not seen.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from enforcer.kernel import netlink, nft
from enforcer.kernel.ingress import (
    GETCHAIN,
    NFPROTO_NETDEV,
    NFPROTO_UNSPEC,
    NFTA_CHAIN_HOOK,
    NFTA_HOOK_HOOKNUM,
)
from enforcer.kernel.netlink import Channel
from enforcer.kernel.nft import protocol

# include/uapi/linux/netfilter/nf_tables.h, nf_tables_compat.h; prerouting, or a device's ingress, by family
GETRULE = protocol.SUBSYSTEM | 7
ARRIVAL = {2: (0,), 10: (0,), protocol.NFPROTO_INET: (0, 5), NFPROTO_NETDEV: (0,)}
FAMILIES = {2: "ip", 10: "ip6", protocol.NFPROTO_INET: "inet", NFPROTO_NETDEV: "netdev"}
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME = 1, 3
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS = 1, 2, 4
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2
NFTA_META_DREG, NFTA_META_KEY, NFTA_META_SREG, META_MARK = 1, 2, 3, 3
NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA, NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN = (
    1,
    2,
    1,
    2,
    2,
)
NFTA_BITWISE_DREG, NFTA_BITWISE_XOR = 2, 5
NFTA_LOOKUP_DREG = 3
NFTA_TARGET_NAME, NFTA_TARGET_INFO = 1, 3
# Where expressions other than meta name the register that they write.
DESTINATIONS = {"immediate": NFTA_IMMEDIATE_DREG, "bitwise": NFTA_BITWISE_DREG, "lookup": NFTA_LOOKUP_DREG}
# xtables' targets that set a packet's mark; the first word of MARK's description is the value.
TARGETS = {"MARK", "CONNMARK", "TPROXY"}
# The tables of iptables-legacy that are in use (net/netfilter/x_tables.c).
LEGACY = [Path("/proc/thread-self/net") / name for name in ("ip_tables_names", "ip6_tables_names")]

Place = tuple[int, str, str]
"""Family, table, chain."""


@dataclass(frozen=True)
class Setter:
    """A rule that sets the mark of packets that arrive."""

    where: str
    mark: int | None
    """Of a packet that had none; None: it depends on more than the rule."""


@dataclass
class _Chain:
    setters: list[int | None] = field(default_factory=list)
    jumps: set[str] = field(default_factory=set)
    maps: bool = False
    """Whether a verdict map leads to chains that are not looked up."""


def on_arrival() -> list[Setter]:
    """All such rules of others, each place and mark once."""
    with Channel(netlink.NETLINK_NETFILTER, "reading the nftables rules") as channel:
        every = struct.pack(">BBH", NFPROTO_UNSPEC, 0, 0)
        bases = dict(map(_hooked, channel.snapshot(GETCHAIN, every)))
        chains: dict[Place, _Chain] = {place: _Chain() for place in bases}
        for message in channel.snapshot(GETRULE, every):
            _read(message, chains)
    found: dict[Setter, None] = {}
    for place in _reachable(bases, chains):
        family, table, name = place
        where = f"chain {name} of nftables table {FAMILIES[family]} {table}"
        found |= {Setter(where, mark): None for mark in chains[place].setters}
    for path in LEGACY:
        with suppress(OSError):
            if "mangle" in path.read_text().split():
                found[Setter("the table mangle of iptables-legacy", None)] = None
    return list(found)


def _hooked(message: bytes) -> tuple[Place, int | None]:
    parts = netlink.attributes(message, len(protocol.NFGEN))
    place = message[0], netlink.text(parts[NFTA_CHAIN_TABLE]), netlink.text(parts[NFTA_CHAIN_NAME])
    number = netlink.attributes(parts.get(NFTA_CHAIN_HOOK, b"")).get(NFTA_HOOK_HOOKNUM)
    return place, None if number is None else int.from_bytes(number, "big")


def _reachable(bases: dict[Place, int | None], chains: dict[Place, _Chain]) -> list[Place]:
    """The chains that packets meet as they arrive, of other tables than ours."""
    waiting = [place for place, hook in bases.items() if hook in ARRIVAL.get(place[0], ())]
    found: dict[Place, None] = {}
    while waiting:
        place = waiting.pop()
        family, table, _ = place
        if place in found or place not in chains or (family, table) == (protocol.NFPROTO_INET, nft.TABLE):
            continue
        found[place] = None
        waiting += [(family, table, name) for name in chains[place].jumps]
        if chains[place].maps:
            waiting += [other for other, hook in bases.items() if hook is None and other[:2] == place[:2]]
    return list(found)


def _read(message: bytes, chains: dict[Place, _Chain]) -> None:
    """Enters what one rule does."""
    parts = netlink.attributes(message, len(protocol.NFGEN))
    place = message[0], netlink.text(parts[NFTA_RULE_TABLE]), netlink.text(parts[NFTA_RULE_CHAIN])
    chain = chains.setdefault(place, _Chain())
    known: dict[int, int] = {}
    """Values of registers that the rule alone decides."""
    for element in _elements(parts.get(NFTA_RULE_EXPRESSIONS, b"")):
        outer = netlink.attributes(element)
        kind, data = netlink.text(outer[NFTA_EXPR_NAME]), netlink.attributes(outer.get(NFTA_EXPR_DATA, b""))
        if kind == "meta" and NFTA_META_SREG in data:
            if _number(data[NFTA_META_KEY]) == META_MARK:
                chain.setters.append(known.get(_number(data[NFTA_META_SREG])))
        elif kind == "meta":
            known.pop(_number(data[NFTA_META_DREG]), None)
        elif kind == "target" and netlink.text(data.get(NFTA_TARGET_NAME, b"")) in TARGETS:
            is_mark = netlink.text(data[NFTA_TARGET_NAME]) == "MARK"
            chain.setters.append(struct.unpack_from("=I", data[NFTA_TARGET_INFO])[0] if is_mark else None)
        elif kind in DESTINATIONS and DESTINATIONS[kind] in data:
            register = _number(data[DESTINATIONS[kind]])
            chain.maps |= kind == "lookup" and register == 0
            known.pop(register, None)
            if kind == "immediate":
                given = netlink.attributes(data[NFTA_IMMEDIATE_DATA])
                verdict = netlink.attributes(given.get(NFTA_DATA_VERDICT, b""))
                if NFTA_VERDICT_CHAIN in verdict:
                    chain.jumps.add(netlink.text(verdict[NFTA_VERDICT_CHAIN]))
                elif len(given.get(NFTA_DATA_VALUE, b"")) == 4:
                    known[register] = struct.unpack("=I", given[NFTA_DATA_VALUE])[0]
            elif kind == "bitwise" and NFTA_BITWISE_XOR in data:
                # `mark and x or y` of a packet without a mark is y.
                value = netlink.attributes(data[NFTA_BITWISE_XOR]).get(NFTA_DATA_VALUE, b"")
                if len(value) == 4 and struct.unpack("=I", value)[0]:
                    known[register] = struct.unpack("=I", value)[0]


def _elements(data: bytes) -> Iterator[bytes]:
    """The values of a list, all of one type."""
    while len(data) >= netlink.ATTRIBUTE.size:
        length, _ = netlink.ATTRIBUTE.unpack_from(data)
        if length < netlink.ATTRIBUTE.size:
            return
        yield data[netlink.ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")
