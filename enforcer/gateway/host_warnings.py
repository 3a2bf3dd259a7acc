"""Warnings about kernel settings of other software that conflict with a configuration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from enforcer.errors import EnforcerError, abridged
from enforcer.kernel import arp, ip_rules, links
from enforcer.kernel.addresses import LOOPBACK
from enforcer.kernel.links import Link, below


def kernel_warnings(mark_mask: int, outside: Sequence[str]) -> list[str]:
    """Policy routing rules that depend on marks; ARP that does not answer on the first outside interface."""
    return [
        *collect("rules of policy routing by bits of mark_mask", lambda: ip_rules.using_mark_bits(mark_mask)),
        *collect(
            "rules of policy routing by marks of others", lambda: ip_rules.using_foreign_marks(mark_mask)
        ),
        *collect(f"answers to ARP on {outside[0]}", lambda: arp.unanswered(outside[0])),
    ]


def unlisted_interfaces(listed: Collection[str]) -> list[str]:
    """A warning about interfaces that are up and in no list."""
    return collect("interfaces in no list", lambda: unlisted_among(listed, links.links()))


def collect(subject: str, look: Callable[[], Iterable[str]]) -> list[str]:
    """The warnings that ``look`` returns. If it fails, its error is the warning: warnings only advise.

    Kernel tables may change during each reading, and some are readable only with CAP_NET_ADMIN.
    """
    try:
        return list(look())
    except EnforcerError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return [f"{subject} could not be checked: {error.message}{hint}"]


def unlisted_among(listed: Collection[str], found: Mapping[str, Link]) -> list[str]:
    """As :func:`unlisted_interfaces`, for the given links.

    Ports of a bridge or bond and the lower interfaces of listed ones are left out: their packets arrive at
    the upper interface.
    """
    carriers = {lower.name for name in listed if name in found for lower in below(found[name], found)}
    names = sorted(
        name
        for name, link in found.items()
        if link.up and name not in listed and name not in carriers | {LOOPBACK} and link.port_of is None
    )
    if not names:
        return []
    are, them = ("is", "it") if len(names) == 1 else ("are", "them")
    return [
        f"{abridged(names)} {are} up and in no list of `interfaces`: clients' traffic by "
        f"{them} is dropped, and for {them} the enforcer switches no forwarding on; if that is not meant (a "
        f"bridge of containers, a VPN), list {them} there"
    ]
