"""Recognises and deletes the conntrack entries that are translated to egress addresses."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from contextlib import suppress

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
    """Whether an origin has opened it towards a client, as a helper expected."""
    return entry.expected and entry.original.destination != entry.reply.source


class Clients:
    """Tells clients' connections from those that other software translates to the shared address.

    That address may be an interface's own, which a container's MASQUERADE takes, too. A client's connection
    is in the map of flows, whose Tuples ``flows`` has; one that is not (ICMP, for instance) is a client's
    unless its source is reached by an interface that is not among ``sides``, the indexes of inside and
    outside ones: by an outside one when the inside one is gone.
    """

    def __init__(
        self, shared: availability.AddressSet, flows: Container[conntrack.Tuple], sides: Container[int]
    ) -> None:
        self._shared = shared
        self._flows = flows
        self._sides = sides

    def own(self, entries: Iterable[conntrack.Entry]) -> list[conntrack.Entry]:
        """The entries without those of other software."""
        found = list(entries)
        sources = {_client(entry).source for entry in found if self._is_doubtful(entry)}
        reached = dict(zip(sources, routes.interfaces_to(list(sources)), strict=True))
        ours = {source for source, index in reached.items() if index is None or index in self._sides}
        return [entry for entry in found if not self._is_doubtful(entry) or _client(entry).source in ours]

    def _is_doubtful(self, entry: conntrack.Entry) -> bool:
        return is_translated_to(entry, self._shared) and _client(entry) not in self._flows


def _client(entry: conntrack.Entry) -> conntrack.Tuple:
    """The direction that begins at the client."""
    return entry.reply if is_opened_by_origin(entry) else entry.original


def clients(
    shared: Iterable[Egress], flows: Container[conntrack.Tuple], listed: Iterable[Desired], maps: Maps | None
) -> Clients:
    """Of these shared addresses; ``maps`` tell which interfaces are inside or outside under another name."""
    found = links.links()
    sides = {found[name].index for each in listed for name in (*each.inside, *each.outside) if name in found}
    if maps is not None:
        with suppress(EnforcerError):  # the pin is lost: names tell
            rows = roles.by_index(maps.interfaces)
            sides |= {index for index, row in rows.items() if row["role"] in (roles.INSIDE, roles.OUTSIDE)}
    return Clients(availability.AddressSet(list(shared)), flows, sides)


def delete_matching(chosen: Callable[[conntrack.Entry], bool], clients: Clients | None = None) -> int:
    """Deletes the connections that are chosen from conntrack; with ``clients`` theirs alone."""
    entries = [entry for entry in conntrack.entries() if chosen(entry)]
    return conntrack.delete_entries(entries if clients is None else clients.own(entries))
