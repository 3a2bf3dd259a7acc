"""The desired contents of the nftables table, as plain values. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Network
from typing import Literal

# Part of every digest: raised when chains or rules change, so that an upgrade rebuilds the table.
LAYOUT = 9

DNS_QUEUE = 0xE935
"""Number of the NFQUEUE that holds DNS answers and of the NFLOG group that copies questions.

Each network namespace has numbers of its own; other programs begin at 0.
"""

DNS_RATE, DNS_BURST = 2000, 500
"""DNS packets per second and burst of one client, for questions and answers each.

Packets above the rate bypass the learner of names, so that one client cannot fill its queue or buffer. A
client is an IPv4 address or an IPv6 /64 (:func:`enforcer.facts.names.client_prefix`).
"""

Dns = Literal["", "pass", "drop"]

DNS_COUNTERS = DNS_ANSWERS_OVER, DNS_QUESTIONS_OVER = "dns_answers_over", "dns_questions_over"
COUNTERS = (
    "unsolicited",
    "conntrack_invalid",
    "unmarked",
    "inbound",
    "untranslatable",
    "astray",
    "not_forwarded",
    "unlisted",
    *DNS_COUNTERS,
)


@dataclass(frozen=True)
class Ruleset:
    """The contents of the table.

    ``mark_mask`` selects the enforcer's bits of the packet mark; all of them set means "refused". ``source4``
    and ``source6`` map ``mark & mark_mask`` (not shifted) to the translated source; an IPv6 client keeps its
    host bits within the range. Packets to ``dedicated4`` and ``dedicated6`` that belong to no flow are
    dropped. ``dns`` passes clients' DNS to the learner of names (enforcer/dns). Its value is what happens to
    answers without a listener, and above DNS_RATE: "pass" (they are not learnt) or "drop".

    Packets from inside are forwarded to listed interfaces only, and so are IPv4 packets from ``opened4``.
    With ``closed6``, IPv6 is forwarded from and to listed interfaces only, and between ports of the bridges
    ``bridged6``. ``renamed`` are the present names of renamed inside interfaces: their packets are not
    translated but may go to inside networks. ``indexes`` are those of the existing listed interfaces by name:
    a rule by index comes before the same rule by name, which serves a link that was recreated.
    """

    mark_mask: int
    inside: tuple[str, ...]
    outside: tuple[str, ...]
    source4: Mapping[int, IPv4Address] = field(default_factory=dict)
    source6: Mapping[int, IPv6Network] = field(default_factory=dict)
    dedicated4: frozenset[IPv4Address] = frozenset()
    dedicated6: frozenset[IPv6Network] = frozenset()
    dns: Dns = ""
    other: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()
    opened4: tuple[str, ...] = ()
    closed6: bool = False
    bridged6: tuple[str, ...] = ()
    indexes: Mapping[str, int] = field(default_factory=dict)

    @property
    def within(self) -> tuple[str, ...]:
        """The inside interfaces, including renamed ones."""
        return (*self.inside, *self.renamed)

    def indexes_of(self, interfaces: Iterable[str]) -> list[int]:
        """The indexes of those interfaces that exist."""
        return sorted(self.indexes[name] for name in set(interfaces) & self.indexes.keys())

    @property
    def listed(self) -> tuple[str, ...]:
        """Inside, outside and other interfaces."""
        return (*self.within, *self.outside, *self.other)

    def __post_init__(self) -> None:
        if not 0 < self.mark_mask <= 0xFFFFFFFF:
            raise ValueError(f"mark mask {self.mark_mask:#x} is not within 0x1 to 0xffffffff")
        for mark in (*self.source4, *self.source6):
            if not mark or mark & ~self.mark_mask or mark == self.mark_mask:
                raise ValueError(f"mark {mark:#x} is 0, all ones, or outside the mask {self.mark_mask:#x}")

    def digest(self) -> str:
        """32 hexadecimal digits, equal for equal contents in any order."""
        parts = [
            f"{LAYOUT} {self.mark_mask:x}",
            " ".join(sorted(set(self.inside))),
            " ".join(sorted(set(self.outside))),
            " ".join(f"{mark:x}={address}" for mark, address in sorted(self.source4.items())),
            " ".join(f"{mark:x}={network}" for mark, network in sorted(self.source6.items())),
            " ".join(str(address) for address in sorted(self.dedicated4)),
            " ".join(str(network) for network in sorted(self.dedicated6)),
            self.dns,
            " ".join(sorted(set(self.other))),
            " ".join(sorted(set(self.renamed))),
            " ".join(sorted(set(self.opened4))),
            str(self.closed6),
            " ".join(sorted(set(self.bridged6))),
            " ".join(f"{name}={index}" for name, index in sorted(self.indexes.items())),
        ]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
