"""What the nftables table shall hold, as plain values: no kernel in here."""

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
"""Packets of DNS a second, and at once, that one client's questions and its answers may come to.

What is above is not shown to the learner of names, so that one client fills neither its queue nor its buffer.
A client is an IPv4 address or an IPv6 /64 (:func:`enforcer.facts.names.client_prefix`).
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
    """The table's contents.

    ``mark_mask`` selects our bits of the packet mark; all of them set means "refused". The keys of
    ``source4`` and ``source6`` are values of ``mark & mark_mask``, not shifted, and say what a packet's
    source becomes; an IPv6 client keeps its host bits within the range. What is addressed to ``dedicated4``
    or ``dedicated6`` and belongs to no flow is dropped. ``dns`` has the clients' DNS shown to the learner
    of names (enforcer/dns); without a listener, and above DNS_RATE, answers "pass" unlearnt or "drop".

    What comes from inside goes to listed interfaces alone. So does IPv4 from those of ``opened4``, and with
    ``closed6`` IPv6 passes from and to listed ones alone, and from port to port of the bridges ``bridged6``.
    ``renamed`` are the present names of inside interfaces that were renamed: nothing of theirs is translated,
    but the inside networks reach one another. ``indexes`` are those of the listed interfaces that are there,
    by name: a rule that compares them comes before the same rule by name, which serves a link made again.
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
        """The inside interfaces, those that were renamed too."""
        return (*self.inside, *self.renamed)

    def indexes_of(self, interfaces: Iterable[str]) -> list[int]:
        """The indexes of those of the interfaces that are there."""
        return sorted(self.indexes[name] for name in set(interfaces) & self.indexes.keys())

    @property
    def listed(self) -> tuple[str, ...]:
        """The interfaces of all lists."""
        return (*self.within, *self.outside, *self.other)

    def __post_init__(self) -> None:
        if not 0 < self.mark_mask <= 0xFFFFFFFF:
            raise ValueError(f"mark mask {self.mark_mask:#x} is not within 0x1 to 0xffffffff")
        for mark in (*self.source4, *self.source6):
            if not mark or mark & ~self.mark_mask or mark == self.mark_mask:
                raise ValueError(f"mark {mark:#x} is 0, all ones, or outside the mask {self.mark_mask:#x}")

    def digest(self) -> str:
        """32 hexadecimal digits that are equal for equal contents, whatever the order they were given in."""
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
