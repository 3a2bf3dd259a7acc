"""nf_tables' generation: a number of this network namespace that each committed transaction raises by one.

A listener whose queue overflowed reads it, and subtracts this process's own commits: what is left are the
commits of other software that it has not seen.
"""

from __future__ import annotations

import struct

from enforcer.errors import KernelError
from enforcer.kernel import netlink
from enforcer.kernel.netlink import REQUEST, Channel, Message
from enforcer.kernel.nft.protocol import GETGEN, NFGEN, NFTA_GEN_ID

MODULUS = 1 << 32


class Commits:
    """The transactions that this process has committed, in any network namespace."""

    def __init__(self) -> None:
        self.count = 0


OWN = Commits()


def generation() -> int:
    """The present generation."""
    operation = "reading the generation of nftables"
    with Channel(netlink.NETLINK_NETFILTER, operation) as channel:
        (answer,) = channel.ask([Message(GETGEN, REQUEST, NFGEN)])
    if isinstance(answer, int):
        raise netlink.failure(operation, answer)
    found = generation_in(answer)
    if found is None:
        raise KernelError(f"{operation}: the answer has no generation")
    return found


def generation_in(payload: bytes) -> int | None:
    """The generation in a NEWGEN message, or None."""
    value = netlink.attributes(payload, len(NFGEN)).get(NFTA_GEN_ID, b"")
    return int(struct.unpack(">I", value)[0]) if len(value) == 4 else None


def since(before: int, now: int) -> int:
    """Number of commits between two generations; negative if ``now`` is the earlier one."""
    return (now - before + MODULUS // 2) % MODULUS - MODULUS // 2
