"""Finds nftables rules of other software that set packet marks on arrival, before routing.

iptables-nft rules are nftables rules too; of iptables-legacy only the existence of a table `mangle` is
visible. Only chains reachable from a prerouting or ingress hook count. Marks set by TC programs are not
found.
"""

from __future__ import annotations

import struct
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from enforcer.kernel import netlink, nft
from enforcer.kernel.netlink import Channel
from enforcer.kernel.nft import protocol
from enforcer.kernel.nft.protocol import META_MARK, NFTA_RULE_CHAIN
from enforcer.kernel.nft_ingress import (
    GETCHAIN,
    NFPROTO_NETDEV,
    NFPROTO_UNSPEC,
    NFTA_CHAIN_HOOK,
    NFTA_HOOK_HOOKNUM,
)

# include/uapi/linux/netfilter/nf_tables.h, nf_tables_compat.h; prerouting, or a device's ingress, by family
GETRULE = protocol.SUBSYSTEM | 7
ARRIVAL = {2: (0,), 10: (0,), protocol.NFPROTO_INET: (0, 5), NFPROTO_NETDEV: (0,)}
FAMILIES = {2: "ip", 10: "ip6", protocol.NFPROTO_INET: "inet", NFPROTO_NETDEV: "netdev"}
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME = 1, 3
NFTA_RULE_TABLE, NFTA_RULE_EXPRESSIONS = 1, 4
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2
NFTA_META_DREG, NFTA_META_KEY, NFTA_META_SREG = 1, 2, 3
NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA, NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN = (
    1,
    2,
    1,
    2,
    2,
)
NFTA_BITWISE_SREG, NFTA_BITWISE_DREG, NFTA_BITWISE_MASK, NFTA_BITWISE_XOR = 1, 2, 4, 5
NFTA_LOOKUP_DREG = 3
NFT_REG32_00 = 8
NFTA_TARGET_NAME, NFTA_TARGET_INFO = 1, 3
# xtables targets that set a packet's mark; the first word of MARK's data is the value.
TARGETS = {"MARK", "CONNMARK", "TPROXY"}
# The tables of iptables-legacy that are in use (net/netfilter/x_tables.c).
LEGACY = [Path("/proc/thread-self/net") / name for name in ("ip_tables_names", "ip6_tables_names")]

_Attributes = dict[int, bytes]
ChainKey = tuple[int, str, str]
"""Family, table, chain."""


@dataclass(frozen=True)
class Setter:
    """A rule that sets the mark of arriving packets."""

    where: str
    mark: int | None
    """The mark that an unmarked packet gets; None: it depends on more than the rule."""


@dataclass
class _Chain:
    setters: list[int | None] = field(default_factory=list)
    jumps: set[str] = field(default_factory=set)
    maps: bool = False
    """Whether it has a verdict map, whose chains are not read."""


def setters() -> list[Setter]:
    """All such rules of other tables, each chain and mark once."""
    with Channel(netlink.NETLINK_NETFILTER, "reading the nftables rules") as channel:
        every = struct.pack(">BBH", NFPROTO_UNSPEC, 0, 0)
        bases = dict(map(_hooked, channel.snapshot(GETCHAIN, every)))
        chains: dict[ChainKey, _Chain] = {key: _Chain() for key in bases}
        for message in channel.snapshot(GETRULE, every):
            _read(message, chains)
    found: dict[Setter, None] = {}
    for key in _reachable(bases, chains):
        family, table, name = key
        where = f"chain {name} of nftables table {FAMILIES[family]} {table}"
        found |= {Setter(where, mark): None for mark in chains[key].setters}
    for path in LEGACY:
        with suppress(OSError):
            if "mangle" in path.read_text().split():
                found[Setter("the table mangle of iptables-legacy", None)] = None
    return list(found)


def _hooked(message: bytes) -> tuple[ChainKey, int | None]:
    parts = netlink.attributes(message, len(protocol.NFGEN))
    key = message[0], netlink.text(parts[NFTA_CHAIN_TABLE]), netlink.text(parts[NFTA_CHAIN_NAME])
    number = netlink.attributes(parts.get(NFTA_CHAIN_HOOK, b"")).get(NFTA_HOOK_HOOKNUM)
    return key, None if number is None else int.from_bytes(number, "big")


def _reachable(bases: dict[ChainKey, int | None], chains: dict[ChainKey, _Chain]) -> list[ChainKey]:
    """The chains of other tables that arriving packets can reach."""
    waiting = [key for key, hook in bases.items() if hook in ARRIVAL.get(key[0], ())]
    found: dict[ChainKey, None] = {}
    while waiting:
        key = waiting.pop()
        family, table, _ = key
        if key in found or key not in chains or (family, table) == (protocol.NFPROTO_INET, nft.TABLE):
            continue
        found[key] = None
        waiting += [(family, table, name) for name in chains[key].jumps]
        if chains[key].maps:
            waiting += [other for other, hook in bases.items() if hook is None and other[:2] == key[:2]]
    return list(found)


def _read(message: bytes, chains: dict[ChainKey, _Chain]) -> None:
    """Records the marks and jumps of one rule."""
    parts = netlink.attributes(message, len(protocol.NFGEN))
    key = message[0], netlink.text(parts[NFTA_RULE_TABLE]), netlink.text(parts[NFTA_RULE_CHAIN])
    chain = chains.setdefault(key, _Chain())
    registers = _Registers()
    for _, element in netlink.each_attribute(parts.get(NFTA_RULE_EXPRESSIONS, b"")):
        outer = netlink.attributes(element)
        kind, data = netlink.text(outer[NFTA_EXPR_NAME]), netlink.attributes(outer.get(NFTA_EXPR_DATA, b""))
        if kind == "meta" and NFTA_META_SREG in data:
            if _number(data[NFTA_META_KEY]) == META_MARK:
                chain.setters.append(registers.constant(data[NFTA_META_SREG]))
        elif kind == "target":
            _enter_target(data, chain)
        else:
            _enter_verdict(kind, data, chain)
            registers.follow(kind, data)


def _enter_target(data: _Attributes, chain: _Chain) -> None:
    """Records an xtables target that sets marks."""
    name = netlink.text(data.get(NFTA_TARGET_NAME, b""))
    if name in TARGETS:
        chain.setters.append(struct.unpack_from("=I", data[NFTA_TARGET_INFO])[0] if name == "MARK" else None)


def _enter_verdict(kind: str, data: _Attributes, chain: _Chain) -> None:
    """Records the chains that an expression can jump to."""
    if kind == "lookup" and NFTA_LOOKUP_DREG in data:
        chain.maps |= _number(data[NFTA_LOOKUP_DREG]) == protocol.VERDICT
    elif kind == "immediate":
        given = netlink.attributes(data[NFTA_IMMEDIATE_DATA])
        verdict = netlink.attributes(given.get(NFTA_DATA_VERDICT, b""))
        if NFTA_VERDICT_CHAIN in verdict:
            chain.jumps.add(netlink.text(verdict[NFTA_VERDICT_CHAIN]))


class _Registers:
    """The registers' values within a rule, as far as the rule alone determines them."""

    def __init__(self) -> None:
        self._values: dict[int, int] = {}
        self._marks: set[int] = set()
        """Registers that hold bits of the packet's mark: 0 for an unmarked packet."""

    def constant(self, register: bytes) -> int | None:
        """A register's value; None if it depends on more than the rule."""
        return self._values.get(_word(register))

    def follow(self, kind: str, data: _Attributes) -> None:
        """Applies an expression that sets no mark."""
        if kind == "meta" and _number(data[NFTA_META_KEY]) == META_MARK:
            self._put(data[NFTA_META_DREG], None, is_mark=True)
        elif kind == "immediate":
            given = netlink.attributes(data[NFTA_IMMEDIATE_DATA]).get(NFTA_DATA_VALUE, b"")
            self._put(data[NFTA_IMMEDIATE_DREG], given)
        elif kind == "bitwise":
            self._combine(data)
        else:
            # Other expressions may write any registers.
            self._forget()

    def _combine(self, data: _Attributes) -> None:
        """(source and mask) xor value: `and`, `or` and `xor` with constants; others make it unknown."""
        mask, changed = (
            netlink.attributes(data.get(part, b"")).get(NFTA_DATA_VALUE, b"")
            for part in (NFTA_BITWISE_MASK, NFTA_BITWISE_XOR)
        )
        if len(mask) != 4 or len(changed) != 4:
            self._forget()
            return
        source, target = _word(data[NFTA_BITWISE_SREG]), data[NFTA_BITWISE_DREG]
        if source in self._marks:
            # For an unmarked packet, `mark and x or y` is y.
            self._put(target, changed if any(changed) else None, is_mark=not any(changed))
        elif source in self._values:
            value = self._values[source] & _host(mask) ^ _host(changed)
            self._put(target, struct.pack("=I", value))
        else:
            self._put(target, None)

    def _put(self, register: bytes, value: bytes | None, *, is_mark: bool = False) -> None:
        if value is not None and len(value) != 4:
            self._forget()
            return
        word = _word(register)
        self._values.pop(word, None)
        self._marks.discard(word)
        if is_mark:
            self._marks.add(word)
        elif value is not None:
            self._values[word] = _host(value)

    def _forget(self) -> None:
        self._values.clear()
        self._marks.clear()


def _word(register: bytes) -> int:
    """The first 32-bit register of a register number; a 128-bit one is four of them (enum nft_registers)."""
    number = _number(register)
    return NFT_REG32_00 + (number - 1) * 4 if 1 <= number <= 4 else number


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _host(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)
