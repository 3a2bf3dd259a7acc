"""The rows of the store. Addresses are 16 bytes (enforcer/address.py), times are Unix seconds."""

from __future__ import annotations

from typing import NamedTuple

from enforcer.policy.facts import Facts

ANY_CLIENT = bytes(16)
"""The client of names that are valid for all clients."""

COMMAND, FILE = "command", "file"
"""The origin of a session: a command, or the watched file."""


class NewSession(NamedTuple):
    """A session to add; ``expires`` None: it does not expire."""

    client: bytes
    facts: Facts
    expires: float | None


class SessionRow(NamedTuple):
    """A session in force."""

    client: bytes
    profile: int
    facts: Facts
    expires: float | None
    since: float
    origin: str


class ChangedSessions(NamedTuple):
    """The effect of a transaction on sessions."""

    clients: list[tuple[bytes, int]]
    """Clients with a new profile, and its number."""
    profiles: list[tuple[int, Facts]]
    """Profiles that are new, or have a number that was used before."""


class LearntName(NamedTuple):
    """A learnt name of an address for one client, until ``expires``."""

    client: bytes
    address: bytes
    name: str
    expires: float
    payer: bytes = b""
    """The client prefix to charge; empty: that of ``client``. For ANY_CLIENT: that of the asking client."""


class NameRow(NamedTuple):
    """A name in force."""

    client: bytes
    address: bytes
    name: str
    expires: float


class ChangedNames(NamedTuple):
    """The effect of a transaction on names."""

    hosts: list[tuple[tuple[bytes, bytes], int]]
    """(client, address) and the number of its set of names; 0 if no name is left."""
    sets: list[tuple[int, tuple[str, ...]]]
    """Sets that are new, or have a number that was used before."""
