"""Recognises and deletes the conntrack entries that are translated to egress addresses."""

from __future__ import annotations

from typing import Any

from enforcer.gateway import availability
from enforcer.kernel import conntrack


def is_untranslated(entry: conntrack.Entry) -> bool:
    """Whether the connection keeps its source address."""
    return entry.original.source == entry.reply.destination


def is_translated_to(entry: conntrack.Entry, some: availability.AddressSet) -> bool:
    """Whether it is a client's connection, or one that an origin opened as a conntrack helper expected.

    A connection whose destination other software translates (a container's published port) is not.
    """
    opened_by_origin = entry.expected and entry.original.destination != entry.reply.source
    if opened_by_origin and entry.original.destination in some:
        return True
    return not is_untranslated(entry) and entry.reply.destination in some


def delete_matching(chosen: Any) -> int:
    """Deletes the conntrack entries for which ``chosen`` is true; returns how many still existed."""
    return conntrack.delete_entries([entry for entry in conntrack.entries() if chosen(entry)])
