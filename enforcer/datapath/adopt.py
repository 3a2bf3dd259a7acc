"""Builds rows of the flow map from conntrack entries, after the flow map was lost.

conntrack has what a live connection must keep: its egress address and state. Policy, counters and sequence
numbers, which only the map had, start at zero, like every field that is not set here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from enforcer.address import IPNetwork, mapped
from enforcer.constants import TCP, UDP
from enforcer.constants.bpf import FlowFlag, State
from enforcer.kernel.conntrack import Entry
from enforcer.reasons import by_name

# States that nf_conncount does not count (already_closed).
_OVER = [State.TIME_WAIT, State.CLOSE]
_CLOSING = [State.FIN_WAIT, State.CLOSE_WAIT, State.LAST_ACK, *_OVER]
_SECOND = 10**9


class Slots:
    """Look-up of the slot of an egress or shared address."""

    def __init__(self, networks: Mapping[IPNetwork, int]):
        by_length: dict[int, dict[int, int]] = {}
        for network, slot in networks.items():
            wide = mapped(network)
            shift = 128 - wide.prefixlen
            by_length.setdefault(shift, {})[int(wide.network_address) >> shift] = slot
        self._by_length = sorted(by_length.items(), key=lambda item: item[0])

    def of(self, address: bytes) -> int | None:
        """The slot of a 16-byte address, or None."""
        value = int.from_bytes(address, "big")
        for shift, slots in self._by_length:
            slot = slots.get(value >> shift)
            if slot is not None:
                return slot
        return None


class Adopted(NamedTuple):
    """Rows of the flow map."""

    keys: np.ndarray
    flows: np.ndarray


def adopt(
    entries: Iterable[Entry], slots: Slots, types: tuple[np.dtype, np.dtype], timeouts: np.ndarray, now: int
) -> Adopted:
    """The TCP and UDP connections translated to an address in ``slots``, as flows.

    ``types`` are the flow map's (key, value). ``timeouts`` are nanoseconds by state, ``now`` is nanoseconds
    of CLOCK_MONOTONIC: a flow's last packet is dated so that it expires together with the conntrack entry.
    """
    ours = [
        (entry, slot)
        for entry in entries
        if entry.original.protocol in (TCP, UDP)
        and entry.original.source != entry.reply.destination
        and (slot := slots.of(entry.reply.destination)) is not None
    ]
    key, value = types
    keys, flows = np.zeros(len(ours), dtype=key), np.zeros(len(ours), dtype=value)
    if not ours:
        return Adopted(keys, flows)
    keys["client"] = _words([entry.original.source for entry, _ in ours])
    keys["origin"] = _words([entry.original.destination for entry, _ in ours])
    keys["client_port"] = _ports([entry.original.source_port for entry, _ in ours])
    keys["origin_port"] = _ports([entry.original.destination_port for entry, _ in ours])
    keys["protocol"] = [entry.original.protocol for entry, _ in ours]

    state = np.array([_state(entry) for entry, _ in ours])
    replied = np.array([entry.replied for entry, _ in ours])
    assured = np.array([entry.assured for entry, _ in ours])
    flows["slot"] = [slot for _, slot in ours]
    reasons = by_name()
    dedicated, shared = reasons["adopted"].number, reasons["adopted-shared"].number
    flows["reason"] = np.where(flows["slot"] > 0, dedicated, shared)
    flows["egress_address"] = _words([entry.reply.destination for entry, _ in ours])
    flows["state"] = state
    # A connection picked up midway and never answered has the timeout of an opening one (flow.h, timeout_of).
    flows["timeout"] = np.where((state == State.ESTABLISHED) & ~replied, State.SYN_SENT, state)
    flows["replied"] = replied
    flows["counted"] = ~np.isin(state, _OVER)
    # conntrack does not record which side began to close: the flow's state is conntrack's.
    closing = np.isin(state, _CLOSING)
    flows["flags"] = np.where(assured, FlowFlag.ASSURED, 0) | np.where(closing, FlowFlag.ENDED_BY_PEER, 0)
    left = np.array([entry.timeout for entry, _ in ours], dtype=np.int64) * _SECOND
    seen = now - np.maximum(timeouts.astype(np.int64)[flows["timeout"]] - left, 0)
    flows["created"] = flows["last_seen"] = np.maximum(seen, 1)
    return Adopted(keys, flows)


def _state(entry: Entry) -> State:
    if entry.original.protocol == UDP:
        return State.UDP_STREAM if entry.assured else State.UDP_UNREPLIED
    if entry.state == "NONE":
        return State.SYN_SENT
    return State.__members__.get(entry.state, State.ESTABLISHED)  # conntrack's names are State's


def _words(addresses: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(addresses), dtype="<u4").reshape(-1, 4)


def _ports(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, dtype="<u2").byteswap()
