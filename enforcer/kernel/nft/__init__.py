"""The nftables table ``inet enforcer``: installs it in one transaction, removes it, reads its counters.

:mod:`enforcer.kernel.nft.messages` has its contents. Reading (:func:`installed`, :func:`counters`) does not
import pyroute2.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping

from enforcer.errors import EnforcerError
from enforcer.kernel import netlink
from enforcer.kernel.netlink import ACK, REQUEST, Channel, Message, Refusal
from enforcer.kernel.nft.generations import OWN
from enforcer.kernel.nft.protocol import (
    DELTABLE,
    GETOBJ,
    GETTABLE,
    NEWRULE,
    NFGEN,
    NFGEN_BATCH,
    NFNL_MSG_BATCH_BEGIN,
    NFNL_MSG_BATCH_END,
    NFT_OBJECT_COUNTER,
    NFTA_COUNTER_BYTES,
    NFTA_COUNTER_PACKETS,
    NFTA_OBJ_DATA,
    NFTA_OBJ_NAME,
    NFTA_OBJ_TABLE,
    NFTA_OBJ_TYPE,
    NFTA_RULE_CHAIN,
    NFTA_TABLE_NAME,
    NFTA_TABLE_USERDATA,
    SUBSYSTEM,
)
from enforcer.kernel.nft.ruleset import COUNTERS, Ruleset

TABLE = "enforcer"
COMMENT_PREFIX = "enforcer "


def apply(ruleset: Ruleset, counters: Mapping[str, tuple[int, int]] | None = None) -> None:
    """Replaces the table's contents by ``ruleset`` atomically.

    ``counters`` are the initial values (packets, bytes), by default those of the present table. Packets
    counted between reading and committing (0.1 s with 4,000 egress IPs) are not carried over.
    """
    from enforcer.kernel.nft import messages as contents

    operation = f"installing the nftables table inet {TABLE}"
    comment = COMMENT_PREFIX + ruleset.digest()
    with Channel(netlink.NETLINK_NETFILTER, operation) as channel:
        start = _counters(channel) if counters is None else counters
        messages = _batch(contents.build(TABLE, comment, ruleset, start))
        refused = _commit(channel, messages)
        if _lacks_queue(messages, refused):
            messages = _batch(contents.build(TABLE, comment, ruleset, start, compat=True))
            refused = _commit(channel, messages)
    if refused:
        raise _refusal(operation, messages, refused)


def _commit(channel: Channel, messages: list[Message]) -> list[Refusal]:
    """Sends a transaction; returns the refused messages. If one is refused, nothing has changed."""
    refused = channel.transact(messages)
    OWN.count += not refused
    return refused


def _lacks_queue(messages: list[Message], refused: list[Refusal]) -> bool:
    """Whether the kernel lacks nft_queue: it refuses the first rule of dns_answers with ENOENT."""
    if not refused or refused[0].code != errno.ENOENT:
        return False
    kind, _, payload = messages[refused[0].position]
    chain = netlink.attributes(payload, len(NFGEN)).get(NFTA_RULE_CHAIN, b"") if kind == NEWRULE else b""
    return netlink.text(chain) == "dns_answers"


def remove() -> bool:
    """Removes the table; False if there was none."""
    operation = f"removing the nftables table inet {TABLE}"
    with Channel(netlink.NETLINK_NETFILTER, operation) as channel:
        if _table(channel) is None:
            return False
        messages = _batch([Message(DELTABLE, REQUEST, NFGEN + _name(NFTA_TABLE_NAME, TABLE))])
        refused = _commit(channel, messages)
    if refused:
        raise _refusal(operation, messages, refused)
    return True


def installed() -> str | None:
    """The digest of the installed ruleset; None without a table, "" for a table without a digest.

    The digest is the table's comment: it does not reveal changes that were made since.
    :mod:`enforcer.kernel.watch` reports such changes.
    """
    with Channel(netlink.NETLINK_NETFILTER, f"reading the nftables table inet {TABLE}") as channel:
        table = _table(channel)
    if table is None:
        return None
    # A list of (type, length, value); type 0 is a comment (libnftnl: include/udata.h).
    userdata = netlink.attributes(table, len(NFGEN)).get(NFTA_TABLE_USERDATA, b"")
    comment = netlink.text(userdata[2:]) if userdata[:1] == b"\0" else ""
    return comment.removeprefix(COMMENT_PREFIX) if comment.startswith(COMMENT_PREFIX) else ""


def counters() -> dict[str, tuple[int, int]]:
    """Packets and bytes of each counter in :data:`COUNTERS`; empty without a table."""
    operation = f"reading the counters of the nftables table inet {TABLE}"
    with Channel(netlink.NETLINK_NETFILTER, operation) as channel:
        return _counters(channel)


def _name(kind: int, name: str) -> bytes:
    return netlink.attribute(kind, name.encode() + b"\0")


def _table(channel: Channel) -> bytes | None:
    request = Message(GETTABLE, REQUEST, NFGEN + _name(NFTA_TABLE_NAME, TABLE))
    (answer,) = channel.ask([request])
    if isinstance(answer, bytes):
        return answer
    if answer == errno.ENOENT:
        return None
    raise netlink.failure(channel.operation, answer)


def _counters(channel: Channel) -> dict[str, tuple[int, int]]:
    request = NFGEN + _name(NFTA_OBJ_TABLE, TABLE)
    request += netlink.attribute(NFTA_OBJ_TYPE, struct.pack(">I", NFT_OBJECT_COUNTER))
    found = {}
    for answer in channel.snapshot(GETOBJ, request):
        parts = netlink.attributes(answer, len(NFGEN))
        name = netlink.text(parts[NFTA_OBJ_NAME])
        if name in COUNTERS and netlink.text(parts[NFTA_OBJ_TABLE]) == TABLE:
            values = netlink.attributes(parts[NFTA_OBJ_DATA])
            packets, size = values[NFTA_COUNTER_PACKETS], values[NFTA_COUNTER_BYTES]
            found[name] = int.from_bytes(packets, "big"), int.from_bytes(size, "big")
    return found


def _batch(messages: list[Message]) -> list[Message]:
    """The transaction's messages; the last change has the flag ACK, whose answer is the last one."""
    last = messages[-1]
    return [
        Message(NFNL_MSG_BATCH_BEGIN, REQUEST, NFGEN_BATCH),
        *messages[:-1],
        last._replace(flags=last.flags | ACK),
        Message(NFNL_MSG_BATCH_END, REQUEST, NFGEN_BATCH),
    ]


# Kind of object by message type, and the attribute with its name (of a rule: its chain's name).
_SUBJECTS = {
    0: ("table", NFTA_TABLE_NAME),
    2: ("table", NFTA_TABLE_NAME),
    3: ("chain", 3),
    6: ("a rule of chain", 2),
    9: ("set", 2),
    12: ("elements of set", 2),
    18: ("counter", NFTA_OBJ_NAME),
}


def _refusal(operation: str, messages: list[Message], refused: list[Refusal]) -> EnforcerError:
    """The error for the first refused message; it names the refused object."""
    position, code, detail = refused[0]
    kind, _, payload = messages[position]
    if kind & 0xFF00 != SUBSYSTEM:
        return netlink.failure(operation, code, detail)
    subject, attribute = _SUBJECTS[kind & 0xFF]
    name = netlink.text(netlink.attributes(payload, len(NFGEN)).get(attribute, b""))
    return netlink.failure(f"{operation}: {subject} {name}", code, detail)
