"""The connections that conntrack translates to egress addresses, told from others' and forgotten."""

from __future__ import annotations

from typing import Any

from enforcer.gateway import availability
from enforcer.kernel import conntrack


def is_untranslated(entry: conntrack.Entry) -> bool:
    """Whether the connection keeps its source address."""
    return entry.original.source == entry.reply.destination


def is_translated_to(entry: conntrack.Entry, some: availability.AddressSet) -> bool:
    """A client's connection, or one that an origin has opened as a helper expected.

    Others translate destinations, too (a published port of a container): such a connection is not ours.
    """
    opened_by_origin = entry.expected and entry.original.destination != entry.reply.source
    if opened_by_origin and entry.original.destination in some:
        return True
    return not is_untranslated(entry) and entry.reply.destination in some


def delete_matching(chosen: Any) -> int:
    """Deletes the connections that are chosen from conntrack."""
    return conntrack.delete_entries([entry for entry in conntrack.entries() if chosen(entry)])
