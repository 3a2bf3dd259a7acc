"""What other software, or the administrator, has set in the kernel that a configuration meets badly."""

from __future__ import annotations

from collections.abc import Sequence

from enforcer.kernel import arp, rules


def said_of(mark_mask: int, outside: Sequence[str]) -> list[str]:
    """Each in a sentence: rules of policy routing by marks; ARP that is silent on the first outside one."""
    return [*rules.said_of(mark_mask), *arp.unanswered(outside[0])]
