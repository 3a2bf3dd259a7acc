"""Policy routing rules that match packet marks (ip-rule(8), net/core/fib_rules.c), and their warnings."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from enforcer.kernel import netlink, nft_marks
from enforcer.kernel.netlink import NETLINK_ROUTE, Channel

# include/uapi/linux/rtnetlink.h, fib_rules.h
RTM_GETRULE = 34
FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK = 6, 10, 15, 16
FIB_RULE_INVERT = 2
# struct fib_rule_hdr: family, lengths, TOS, table, two unused, action, flags
_HEADER = struct.Struct("=BBBBBBBBI")


@dataclass(frozen=True)
class MarkRule:
    """A rule with ``fwmark``."""

    family: int
    priority: int
    mark: int
    mask: int
    table: int
    inverted: bool
    """Whether it matches all other packets (``not fwmark``)."""

    def __str__(self) -> str:
        command = "ip rule" if self.family == socket.AF_INET else "ip -6 rule"
        negation = "not " if self.inverted else ""
        return (
            f"{command} {self.priority} ({negation}fwmark {self.mark:#x}/{self.mask:#x} lookup {self.table})"
        )

    def uses(self, bits: int) -> bool:
        """Whether marks within ``bits`` can change whether the rule matches.

        An inverted rule whose mark has bits outside of ``bits`` matches unmarked packets and those with any
        mark within ``bits`` alike.
        """
        if self.inverted and self.mark & ~bits:
            return False
        return bool(self.mask & bits)

    def distinguishes(self, mark: int | None) -> bool:
        """Whether the rule treats packets with this mark (None: any mark) differently from unmarked ones."""
        if mark is None:
            return bool(self.mask)
        wanted = self.mark & self.mask
        return (mark & self.mask == wanted) != (wanted == 0)


def mark_rules() -> list[MarkRule]:
    """The rules with ``fwmark`` of both families, in the kernel's order."""
    found = []
    with Channel(NETLINK_ROUTE, "reading the rules of policy routing") as channel:
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in channel.snapshot(RTM_GETRULE, _HEADER.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
                header = _HEADER.unpack_from(message)
                parts = netlink.attributes(message, _HEADER.size)
                numbers = {kind: int.from_bytes(part[:4], "little") for kind, part in parts.items()}
                if FRA_FWMASK in parts:
                    found.append(
                        MarkRule(
                            family,
                            numbers.get(FRA_PRIORITY, 0),
                            numbers.get(FRA_FWMARK, 0),
                            numbers[FRA_FWMASK],
                            numbers.get(FRA_TABLE, header[4]),
                            bool(header[8] & FIB_RULE_INVERT),
                        )
                    )
    return found


def using_mark_bits(bits: int) -> list[str]:
    """A warning for each rule that depends on ``bits``, the mark bits of clients' packets."""
    return [
        f"{rule}: looks at bits of mark_mask ({bits:#x}), which are set in clients' packets; "
        "give it a mark and a mask without them, or choose another mark_mask"
        for rule in mark_rules()
        if rule.uses(bits)
    ]


def using_foreign_marks(bits: int) -> list[str]:
    """A warning for each rule that depends on marks which other software sets on arrival.

    The programs look a route up before that (bpf/route.h), with the mark that the packet has then. Rules that
    depend on ``bits``, the enforcer's own, are reported by :func:`using_mark_bits`.
    """
    others = [rule for rule in mark_rules() if not rule.uses(bits)]
    setters = nft_marks.setters() if others else []
    found = []
    for rule in others:
        by = [setter.where for setter in setters if rule.distinguishes(setter.mark)]
        if by:
            found.append(
                f"{rule}: looks at marks that {', '.join(dict.fromkeys(by))} sets on packets as they arrive, "
                "which is after the enforcer has looked up their route: if these are packets of clients, "
                "`explain` may show another route, and what leaves by no outside interface is refused "
                "(astray) or dropped"
            )
    return found
