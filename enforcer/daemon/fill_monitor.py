"""Logs when a table that traffic fills becomes full, and when it has room again."""

from __future__ import annotations

import logging

from enforcer.datapath.table_usage import Fill

_log = logging.getLogger(__name__)

WHAT_HAPPENS = {
    "flows": "unanswered and closed ones make room, and without them new ones are refused (limits.flows)",
    "origins": "unused ones make room, and without them connections to new ones are refused (limits.origins)",
    "client_prefixes": "new clients are not held to limits.flows_per_client (a quarter of limits.flows fits)",
    "conntrack": "the kernel forgets unanswered connections or drops new ones (nf_conntrack_max)",
}
# A full table has room again below this share.
_ROOM = 0.8


class FillMonitor:
    """Tables that are full; each change is logged once."""

    def __init__(self) -> None:
        self._full: set[str] = set()

    def note(self, name: str, fill: Fill) -> None:
        """Takes how full the table of this name is now."""
        if name not in self._full and fill.full:
            self._full.add(name)
            _log.warning(
                f"the table of {name} is full, {fill.used:,} of {fill.size:,}: {WHAT_HAPPENS[name]}; "
                "`enforcer reasons` counts refusals"
            )
        elif name in self._full and fill.used < _ROOM * fill.size:
            self._full.remove(name)
            _log.info(f"the table of {name} has room again, {fill.used:,} of {fill.size:,}")
