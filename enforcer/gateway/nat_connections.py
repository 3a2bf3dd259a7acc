"""Recognises and deletes the conntrack entries that are translated to egress addresses."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from contextlib import suppress

from enforcer.constants.bpf import Role
from enforcer.datapath.maps import Maps
from enforcer.errors import EnforcerError
from enforcer.gateway import availability, roles
from enforcer.gateway.desired import Desired, Egress
from enforcer.kernel import conntrack, links, routes


def is_untranslated(entry: conntrack.Entry) -> bool:
    """Whether the connection keeps its source address."""
    return entry.original.source == entry.reply.destination


def is_translated_to(entry: conntrack.Entry, some: availability.AddressSet) -> bool:
    """Whether it is a client's connection, or one that an origin opened as a conntrack helper expected.

    A connection whose destination other software translates (a container's published port) is not.
    """
    if is_opened_by_origin(entry) and entry.original.destination in some:
        return True
    return not is_untranslated(entry) and entry.reply.destination in some


def is_opened_by_origin(entry: conntrack.Entry) -> bool:
    """Whether an origin opened it towards a client, as a conntrack helper expected."""
    return entry.expected and entry.original.destination != entry.reply.source


class Clients:
    """Distinguishes clients' connections from those that other software translates to the shared address.

    That address may be an interface's own, which MASQUERADE rules for containers use too. A client's TCP or
    UDP connection is in the flow map, whose keys ``flows`` has. Another connection (ICMP, for instance) is a
    client's unless the route to its source leaves by an interface that is not in ``sides``, the indexes of
    the inside and outside interfaces (after the inside interface was removed, the route leaves by an outside
    one).
    """

    def __init__(
        self, shared: availability.AddressSet, flows: Container[conntrack.Tuple], sides: Container[int]
    ) -> None:
        self._shared = shared
        self._flows = flows
        self._sides = sides

    def own(self, entries: Iterable[conntrack.Entry]) -> list[conntrack.Entry]:
        """The entries that are clients' connections."""
        found = list(entries)
        sources = {_client(entry).source for entry in found if self._is_doubtful(entry)}
        reached = dict(zip(sources, routes.interfaces_to(list(sources)), strict=True))
        ours = {source for source, index in reached.items() if index is None or index in self._sides}
        return [entry for entry in found if not self._is_doubtful(entry) or _client(entry).source in ours]

    def _is_doubtful(self, entry: conntrack.Entry) -> bool:
        return is_translated_to(entry, self._shared) and _client(entry) not in self._flows


def _client(entry: conntrack.Entry) -> conntrack.Tuple:
    """The tuple whose source is the client."""
    return entry.reply if is_opened_by_origin(entry) else entry.original


def clients(
    shared: Iterable[Egress], flows: Container[conntrack.Tuple], listed: Iterable[Desired], maps: Maps | None
) -> Clients:
    """Clients of these shared addresses; ``maps`` give the sides of interfaces that were renamed."""
    found = links.links()
    sides = {found[name].index for each in listed for name in (*each.inside, *each.outside) if name in found}
    if maps is not None:
        with suppress(EnforcerError):  # the pin is lost: the names suffice
            rows = roles.by_index(maps.interfaces)
            sides |= {index for index, row in rows.items() if row["role"] in (Role.INSIDE, Role.OUTSIDE)}
    return Clients(availability.AddressSet(list(shared)), flows, sides)


def delete_matching(chosen: Callable[[conntrack.Entry], bool], clients: Clients | None = None) -> int:
    """Deletes the conntrack entries for which ``chosen`` is true, with ``clients`` only clients' ones.

    Returns how many still existed.
    """
    entries = [entry for entry in conntrack.entries() if chosen(entry)]
    return conntrack.delete_entries(entries if clients is None else clients.own(entries))
