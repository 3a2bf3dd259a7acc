"""What other software, or the administrator, has set in the kernel that a configuration meets badly."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from enforcer.kernel import arp, rules
from enforcer.kernel.links import Link, below

# Names that a message lists before it counts the rest.
_SHOWN = 3


def said_of(mark_mask: int, outside: Sequence[str]) -> list[str]:
    """Each in a sentence: rules of policy routing by marks; ARP that is silent on the first outside one."""
    return [*rules.said_of(mark_mask), *arp.unanswered(outside[0])]


def unlisted(listed: Collection[str], found: Mapping[str, Link]) -> list[str]:
    """The same of interfaces that are up and in no list, though packets may come and go by them.

    Ports of a bridge or bond bring none by themselves, nor does what a listed interface lies on have to.
    """
    carriers = {lower.name for name in listed if name in found for lower in below(found[name], found)}
    names = sorted(
        name
        for name, link in found.items()
        if link.up and name not in listed and name not in carriers | {"lo"} and link.port_of is None
    )
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    are, them = ("is", "it") if len(names) == 1 else ("are", "them")
    return [
        f"{', '.join(names[:_SHOWN])}{more} {are} up and in no list of `interfaces`: clients' traffic by "
        f"{them} is dropped, and for {them} the enforcer switches no forwarding on; if that is not meant (a "
        f"bridge of containers, a VPN), list {them} there"
    ]
