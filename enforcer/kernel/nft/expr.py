"""Expressions of nftables rules: loads, comparisons, look-ups, statements (nft(8)).

Values are loaded into register 1, from which the next expression reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from enforcer.constants import IFNAMSIZ
from enforcer.kernel.nft import wire
from enforcer.kernel.nft.protocol import (
    CT_DESTINATION,
    CT_DIRECTION,
    CT_STATE,
    CT_STATUS,
    DROP,
    DYNSET_UPDATE,
    EQUAL,
    IPS_SRC_NAT,
    LIMIT_OVER,
    LIMIT_PACKETS,
    META_MARK,
    META_NFPROTO,
    NFT_OBJECT_COUNTER,
    NOT_EQUAL,
    ORIGINAL,
    PAYLOAD_NETWORK_HEADER,
    PAYLOAD_TRANSPORT_HEADER,
    REG_1,
    VERDICT,
)
from enforcer.kernel.nft.ruleset import DNS_BURST, DNS_RATE

Expression = dict[str, Any]


def expression(kind: str, **attributes: Any) -> Expression:
    """An expression by its kernel name and netlink attributes."""
    data = {"attrs": list(attributes.items())}
    return {"attrs": [("NFTA_EXPR_NAME", kind), ("NFTA_EXPR_DATA", data)]}


def load(kind: str, key: int) -> Expression:
    """Loads the value of a "meta" or "ct" key."""
    prefix = f"NFTA_{kind.upper()}"
    return expression(kind, **{f"{prefix}_KEY": key, f"{prefix}_DREG": REG_1})


def _data(value: bytes) -> Expression:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def compare(comparison: int, value: bytes) -> Expression:
    """Matches if the comparison (EQUAL, NOT_EQUAL) with the register holds."""
    return expression("cmp", NFTA_CMP_SREG=REG_1, NFTA_CMP_OP=comparison, NFTA_CMP_DATA=_data(value))


def masked(mask: bytes) -> Expression:
    """Masks the register."""
    return expression(
        "bitwise",
        NFTA_BITWISE_SREG=REG_1,
        NFTA_BITWISE_DREG=REG_1,
        NFTA_BITWISE_LEN=len(mask),
        NFTA_BITWISE_MASK=_data(mask),
        NFTA_BITWISE_XOR=_data(bytes(len(mask))),
    )


def meta(key: int, value: bytes) -> list[Expression]:
    """Matches packets with this value of a "meta" key."""
    return [load("meta", key), compare(EQUAL, value)]


def set_mark() -> Expression:
    """Sets the packet's mark to the value of register 1."""
    return expression("meta", NFTA_META_KEY=META_MARK, NFTA_META_SREG=REG_1)


def family(protocol: int) -> list[Expression]:
    """Matches packets of this family (NFPROTO_IPV4, NFPROTO_IPV6)."""
    return meta(META_NFPROTO, bytes([protocol]))


def lookup(name: str, destination: int | None = None) -> Expression:
    """Matches if the set contains the register; a map's value is stored in the register ``destination``."""
    attributes = {"NFTA_LOOKUP_SET": name, "NFTA_LOOKUP_SREG": REG_1}
    if destination is not None:
        attributes["NFTA_LOOKUP_DREG"] = destination
    return expression("lookup", **attributes)


def padded(interface: str) -> bytes:
    """An interface's name as sets hold it: padded with zeros."""
    return interface.encode().ljust(IFNAMSIZ, b"\0")


def interface(key: int, name: str, interfaces: Iterable[str]) -> list[Expression]:
    """Matches these interfaces: compares a single name, looks several up in the set ``name``."""
    names = sorted(set(interfaces))
    return [load("meta", key), compare(EQUAL, padded(names[0])) if len(names) == 1 else lookup(name)]


def interface_index(key: int, name: str, indexes: Iterable[int]) -> list[Expression]:
    """Matches these interface indexes: compares a single one, looks several up in the set ``name``."""
    values = sorted(set(indexes))
    return [load("meta", key), compare(EQUAL, wire.host32(values[0])) if len(values) == 1 else lookup(name)]


def no_interface(key: int, name: str) -> list[Expression]:
    """Matches interfaces that are not in the set ``name``."""
    absent = expression(
        "lookup", NFTA_LOOKUP_SET=name, NFTA_LOOKUP_SREG=REG_1, NFTA_LOOKUP_FLAGS=["NFT_LOOKUP_F_INV"]
    )
    return [load("meta", key), absent]


def state(states: int, comparison: int = NOT_EQUAL) -> list[Expression]:
    """Matches any of these conntrack states, with EQUAL none of them."""
    return [load("ct", CT_STATE), masked(wire.host32(states)), compare(comparison, bytes(4))]


def ct_destination(family: int) -> Expression:
    """Loads the original destination address of the connection, before translation."""
    return expression(
        "ct", NFTA_CT_KEY=CT_DESTINATION[family], NFTA_CT_DREG=REG_1, NFTA_CT_DIRECTION=ORIGINAL
    )


def direction(direction: int) -> list[Expression]:
    """Matches packets of this direction of a connection that conntrack knows."""
    return [load("ct", CT_DIRECTION), compare(EQUAL, bytes([direction]))]


def source_untranslated() -> list[Expression]:
    """Matches packets of connections whose source conntrack does not translate."""
    return [load("ct", CT_STATUS), masked(wire.host32(IPS_SRC_NAT)), compare(EQUAL, bytes(4))]


def port(offset: int) -> Expression:
    """Loads the source port (offset 0) or the destination port (2)."""
    return expression(
        "payload",
        NFTA_PAYLOAD_DREG=REG_1,
        NFTA_PAYLOAD_BASE=PAYLOAD_TRANSPORT_HEADER,
        NFTA_PAYLOAD_OFFSET=offset,
        NFTA_PAYLOAD_LEN=2,
    )


def address(offset: int, length: int) -> Expression:
    """Loads an address of the network header."""
    return expression(
        "payload",
        NFTA_PAYLOAD_DREG=REG_1,
        NFTA_PAYLOAD_BASE=PAYLOAD_NETWORK_HEADER,
        NFTA_PAYLOAD_OFFSET=offset,
        NFTA_PAYLOAD_LEN=length,
    )


def over_rate(rates: str) -> Expression:
    """Matches if the client in register 1 exceeds DNS_RATE; the set ``rates`` holds the token buckets."""
    limit = expression(
        "limit",
        NFTA_LIMIT_RATE=DNS_RATE,
        NFTA_LIMIT_UNIT=1,
        NFTA_LIMIT_BURST=DNS_BURST,
        NFTA_LIMIT_TYPE=LIMIT_PACKETS,
        NFTA_LIMIT_FLAGS=LIMIT_OVER,
    )
    return expression(
        "dynset",
        NFTA_DYNSET_SET_NAME=rates,
        NFTA_DYNSET_OP=DYNSET_UPDATE,
        NFTA_DYNSET_SREG_KEY=REG_1,
        NFTA_DYNSET_EXPR=limit,
    )


def constant(value: bytes) -> Expression:
    """Loads this value into register 1."""
    return expression("immediate", NFTA_IMMEDIATE_DREG=REG_1, NFTA_IMMEDIATE_DATA=_data(value))


def verdict(code: int, chain: str | None = None) -> Expression:
    """A verdict: DROP, ACCEPT, RETURN, or JUMP and GOTO with a chain."""
    verdict: list[tuple[str, Any]] = [("NFTA_VERDICT_CODE", code)]
    if chain is not None:
        verdict.append(("NFTA_VERDICT_CHAIN", chain))
    data = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": verdict})]}
    return expression("immediate", NFTA_IMMEDIATE_DREG=VERDICT, NFTA_IMMEDIATE_DATA=data)


def count_and_drop(counter: str) -> list[Expression]:
    """Counts the packet and drops it."""
    return [count(counter), verdict(DROP)]


def count(counter: str) -> Expression:
    """Increments the counter of this name."""
    return expression("objref", NFTA_OBJREF_IMM_TYPE=NFT_OBJECT_COUNTER, NFTA_OBJREF_IMM_NAME=counter)
