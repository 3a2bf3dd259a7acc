"""The rows that go into the store and come out of it.

Addresses are 16 bytes (enforcer/address.py).
"""

from __future__ import annotations

from typing import NamedTuple

from enforcer.policy.facts import Facts

ANY_CLIENT = bytes(16)
"""The client of a name that holds whoever asks."""

COMMAND, FILE = "command", "file"
"""Where a session comes from."""


class NewSession(NamedTuple):
    """A session to be; times are Unix seconds throughout, and None never expires."""

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
    """What a change of sessions changed."""

    clients: list[tuple[bytes, int]]
    """Clients whose profile is another one now."""
    profiles: list[tuple[int, Facts]]
    """Profiles that are new, or whose number is given again."""


class LearntName(NamedTuple):
    """One answer: for this client the address goes by this name until then."""

    client: bytes
    address: bytes
    name: str
    expires: float
    payer: bytes = b""
    """Who is charged, if not the client itself: whose answer it was that holds for ANY_CLIENT."""


class NameRow(NamedTuple):
    """A name in force."""

    client: bytes
    address: bytes
    name: str
    expires: float


class ChangedNames(NamedTuple):
    """What a change of names changed."""

    hosts: list[tuple[tuple[bytes, bytes], int]]
    """(client, address) → the number of its set of names; 0 if no name is left."""
    sets: list[tuple[int, tuple[str, ...]]]
    """Sets that are new, or whose number is given again."""
