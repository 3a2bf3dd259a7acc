"""The constants of the BPF programs that Python needs, under C's names: the numbers are read from bpf/.

A comment names the C enum that has the members; C says there what each of them means.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag, auto
from typing import Any, Final

from enforcer.constants.header import number

SLOTS: Final = number("SLOTS")
POLICIES: Final = number("POLICIES")
RULES: Final = number("RULES")
NEAREST_BUCKETS: Final = number("NEAREST_BUCKETS")
FAMILIES: Final = number("FAMILIES")
REASON_COUNTERS: Final = number("REASON_COUNTERS")
NO_SLOT: Final = number("NO_SLOT")

TIMEOUTS: Final = number("TIMEOUTS")
IPV6_KIND: Final = number("IPV6_KIND")
REAP_BATCH: Final = number("REAP_BATCH")
REAP_UNKNOWN: Final = number("REAP_UNKNOWN")
REAP_EVERY: Final = number("REAP_EVERY")
KEPT_AT_ONCE: Final = number("KEPT_AT_ONCE")
KEYS_AT: Final = number("KEYS_AT")


class _Enumerated(IntEnum):
    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[Any]) -> int:
        return number(name)


class _Flags(IntFlag):
    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[Any]) -> int:
        return number(name)


class Role(_Enumerated):
    """What an interface is listed as (enum role)."""

    NO_ROLE = auto()
    INSIDE = auto()
    OUTSIDE = auto()
    OTHER = auto()


class Unfit(_Enumerated):
    """Why egress by an interface is refused (enum unfit)."""

    FIT = auto()
    RENAMED = auto()
    TAKEN = auto()


class State(_Enumerated):
    """A flow's state, and the index of its timeout: UDP's two, then conntrack's of TCP (enum state)."""

    UDP_UNREPLIED = auto()
    UDP_STREAM = auto()
    SYN_SENT = auto()
    SYN_RECV = auto()
    ESTABLISHED = auto()
    FIN_WAIT = auto()
    CLOSE_WAIT = auto()
    LAST_ACK = auto()
    TIME_WAIT = auto()
    CLOSE = auto()
    SYN_SENT2 = auto()


class FlowFlag(_Flags):
    """Bits of a flow's ``flags`` (enum flow_flag)."""

    ASSURED = auto()
    ENDED_BY_PEER = auto()
    SIMULTANEOUS = auto()
    CHALLENGING = auto()
    TRANSITORY = auto()
    TELL_CONNTRACK = auto()


class BankBits(_Flags):
    """Bits of ``settings.bank``: the bank's number, and what its rules ask about (enum bank_bits)."""

    BANK = auto()
    USES_SOURCE = auto()
    USES_SOURCE_PORT = auto()
    USES_PORT = auto()
    USES_PROTOCOL = auto()
    USES_SOURCE_REGION = auto()
    USES_DESTINATION_REGION = auto()
    USES_CLIENT = auto()
    USES_HOST = auto()


class Override(_Flags):
    """What a question (explain) assumes instead of what is known (enum override)."""

    OVERRIDE_CLIENT = auto()
    OVERRIDE_HOST = auto()


class Event(_Enumerated):
    """Keys of the map `events` (enum event)."""

    EVICTED_FLOWS = auto()
    CORRECTED_ORIGINS = auto()
    CORRECTED_CLIENTS = auto()


class Stage(_Enumerated):
    """Keys of the table of tail calls (enum stage)."""

    DECIDE = auto()
    EXPECT = auto()
