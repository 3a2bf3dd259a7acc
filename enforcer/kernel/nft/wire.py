"""nf_tables messages by pyroute2, with the object and expression types that it lacks."""

from __future__ import annotations

import struct
from typing import Any

from pyroute2.netlink import nla
from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_rule_msg

from enforcer.kernel import netlink
from enforcer.kernel.netlink import REQUEST, Message
from enforcer.kernel.nft.protocol import (
    NFPROTO_INET,
)


class nft_obj_msg(nfgen_msg):
    """A named object; only counters are encoded."""

    nla_map = (
        ("NFTA_OBJ_UNSPEC", "none"),
        ("NFTA_OBJ_TABLE", "asciiz"),
        ("NFTA_OBJ_NAME", "asciiz"),
        ("NFTA_OBJ_TYPE", "be32"),
        ("NFTA_OBJ_DATA", "counter"),
    )

    class counter(nft_chain_msg.counters):
        """The initial values."""


class rule_msg(nft_rule_msg):
    """A rule; three of its expressions have wrong widths or no encoder in pyroute2."""

    class nft_expr(nft_rule_msg.nft_expr):
        """One expression."""

        class nft_log(nla):
            """NFLOG."""

            nla_map = (("NFTA_LOG_UNSPEC", "none"), ("NFTA_LOG_GROUP", "be16"))

        class nft_queue(nla):
            """NFQUEUE."""

            nla_map = (
                ("NFTA_QUEUE_UNSPEC", "none"),
                ("NFTA_QUEUE_NUM", "be16"),
                ("NFTA_QUEUE_TOTAL", "be16"),
                ("NFTA_QUEUE_FLAGS", "be16"),
            )

        class nft_target(nla):
            """An xtables target."""

            nla_map = (
                ("NFTA_TARGET_UNSPEC", "none"),
                ("NFTA_TARGET_NAME", "asciiz"),
                ("NFTA_TARGET_REV", "be32"),
                ("NFTA_TARGET_INFO", "cdata"),
            )


def message(kind: Any, number: int, attributes: list[tuple[str, Any]], flags: int = 0) -> Message:
    """A message of a pyroute2 class for the family inet."""
    message = kind()
    message["nfgen_family"] = NFPROTO_INET
    message["attrs"] = attributes
    message.encode()
    return Message(number, REQUEST | flags, bytes(message.data[netlink.HEADER.size :]))


def string(kind: int, value: str) -> bytes:
    """A NUL-terminated string attribute."""
    return netlink.attribute(kind, value.encode() + b"\0")


def host32(value: int) -> bytes:
    """A 32-bit number in host order, as in registers."""
    return struct.pack("=I", value)


def element(key: bytes, data: bytes | None = None) -> bytes:
    """NFTA_LIST_ELEM with NFTA_SET_ELEM_KEY (1) and _DATA (2); values are NFTA_DATA_VALUE (1)."""
    parts = [netlink.nested(1, netlink.attribute(1, key))]
    if data is not None:
        parts.append(netlink.nested(2, netlink.attribute(1, data)))
    return netlink.nested(1, *parts)
