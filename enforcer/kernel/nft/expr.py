"""Expressions of rules: what is loaded, compared, looked up and done (nft(8), "STATEMENTS", "EXPRESSIONS").

What is loaded lands in register 1, from where the next expression takes it.
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
    """Any expression, by its name in the kernel and its netlink attributes."""
    data = {"attrs": list(attributes.items())}
    return {"attrs": [("NFTA_EXPR_NAME", kind), ("NFTA_EXPR_DATA", data)]}


def load(kind: str, key: int) -> Expression:
    """What "meta" or "ct" calls ``key``."""
    prefix = f"NFTA_{kind.upper()}"
    return expression(kind, **{f"{prefix}_KEY": key, f"{prefix}_DREG": REG_1})


def _data(value: bytes) -> Expression:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def compare(comparison: int, value: bytes) -> Expression:
    """The rule goes on if the comparison (EQUAL, NOT_EQUAL) holds."""
    return expression("cmp", NFTA_CMP_SREG=REG_1, NFTA_CMP_OP=comparison, NFTA_CMP_DATA=_data(value))


def masked(mask: bytes) -> Expression:
    """These bits alone."""
    return expression(
        "bitwise",
        NFTA_BITWISE_SREG=REG_1,
        NFTA_BITWISE_DREG=REG_1,
        NFTA_BITWISE_LEN=len(mask),
        NFTA_BITWISE_MASK=_data(mask),
        NFTA_BITWISE_XOR=_data(bytes(len(mask))),
    )


def meta(key: int, value: bytes) -> list[Expression]:
    """The rule is for packets of which "meta" says this."""
    return [load("meta", key), compare(EQUAL, value)]


def set_mark() -> Expression:
    """The packet's mark becomes what register 1 has."""
    return expression("meta", NFTA_META_KEY=META_MARK, NFTA_META_SREG=REG_1)


def family(protocol: int) -> list[Expression]:
    """The rule is for packets of this family (NFPROTO_IPV4, NFPROTO_IPV6)."""
    return meta(META_NFPROTO, bytes([protocol]))


def lookup(name: str, destination: int | None = None) -> Expression:
    """The rule goes on if the set has it; what a map has for it lands in the register ``destination``."""
    attributes = {"NFTA_LOOKUP_SET": name, "NFTA_LOOKUP_SREG": REG_1}
    if destination is not None:
        attributes["NFTA_LOOKUP_DREG"] = destination
    return expression("lookup", **attributes)


def padded(interface: str) -> bytes:
    """An interface's name as sets have it."""
    return interface.encode().ljust(IFNAMSIZ, b"\0")


def interface(key: int, name: str, interfaces: Iterable[str]) -> list[Expression]:
    """One of these: a single one is compared, more are looked up in the set ``name``."""
    names = sorted(set(interfaces))
    return [load("meta", key), compare(EQUAL, padded(names[0])) if len(names) == 1 else lookup(name)]


def interface_index(key: int, name: str, indexes: Iterable[int]) -> list[Expression]:
    """One of these, by index: a single one is compared, more are looked up in the set ``name``."""
    values = sorted(set(indexes))
    return [load("meta", key), compare(EQUAL, wire.host32(values[0])) if len(values) == 1 else lookup(name)]


def no_interface(key: int, name: str) -> list[Expression]:
    """None of the set ``name``."""
    absent = expression(
        "lookup", NFTA_LOOKUP_SET=name, NFTA_LOOKUP_SREG=REG_1, NFTA_LOOKUP_FLAGS=["NFT_LOOKUP_F_INV"]
    )
    return [load("meta", key), absent]


def state(states: int, comparison: int = NOT_EQUAL) -> list[Expression]:
    """Any of these states, or with EQUAL none of them."""
    return [load("ct", CT_STATE), masked(wire.host32(states)), compare(comparison, bytes(4))]


def ct_destination(family: int) -> Expression:
    """Where the connection was opened to, before translation."""
    return expression(
        "ct", NFTA_CT_KEY=CT_DESTINATION[family], NFTA_CT_DREG=REG_1, NFTA_CT_DIRECTION=ORIGINAL
    )


def direction(direction: int) -> list[Expression]:
    """Of a connection that conntrack knows, packets of this direction."""
    return [load("ct", CT_DIRECTION), compare(EQUAL, bytes([direction]))]


def source_untranslated() -> list[Expression]:
    """Of a connection whose source conntrack does not translate."""
    return [load("ct", CT_STATUS), masked(wire.host32(IPS_SRC_NAT)), compare(EQUAL, bytes(4))]


def port(offset: int) -> Expression:
    """The source port (offset 0) or the destination port (2)."""
    return expression(
        "payload",
        NFTA_PAYLOAD_DREG=REG_1,
        NFTA_PAYLOAD_BASE=PAYLOAD_TRANSPORT_HEADER,
        NFTA_PAYLOAD_OFFSET=offset,
        NFTA_PAYLOAD_LEN=2,
    )


def address(offset: int, length: int) -> Expression:
    """An address out of the network header."""
    return expression(
        "payload",
        NFTA_PAYLOAD_DREG=REG_1,
        NFTA_PAYLOAD_BASE=PAYLOAD_NETWORK_HEADER,
        NFTA_PAYLOAD_OFFSET=offset,
        NFTA_PAYLOAD_LEN=length,
    )


def over_rate(rates: str) -> Expression:
    """Goes on if the client in register 1 is above DNS_RATE: its bucket is in the set ``rates``."""
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
    """This value in register 1."""
    return expression("immediate", NFTA_IMMEDIATE_DREG=REG_1, NFTA_IMMEDIATE_DATA=_data(value))


def verdict(code: int, chain: str | None = None) -> Expression:
    """The rule's end: DROP, ACCEPT, RETURN, or with a chain JUMP, GOTO."""
    verdict: list[tuple[str, Any]] = [("NFTA_VERDICT_CODE", code)]
    if chain is not None:
        verdict.append(("NFTA_VERDICT_CHAIN", chain))
    data = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": verdict})]}
    return expression("immediate", NFTA_IMMEDIATE_DREG=VERDICT, NFTA_IMMEDIATE_DATA=data)


def count_and_drop(counter: str) -> list[Expression]:
    """The end of what is counted by this name."""
    return [count(counter), verdict(DROP)]


def count(counter: str) -> Expression:
    """One more for the counter of this name."""
    return expression("objref", NFTA_OBJREF_IMM_TYPE=NFT_OBJECT_COUNTER, NFTA_OBJREF_IMM_NAME=counter)
