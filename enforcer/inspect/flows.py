"""`enforcer flows`: the flows with their egress, translation, state and counters."""

from __future__ import annotations

import time
from typing import Any

from enforcer.address import of_bytes, port, unpack
from enforcer.constants import PROTOCOL_NAMES
from enforcer.constants.bpf import State
from enforcer.datapath import fast_entries
from enforcer.gateway.reader import GatewayReader
from enforcer.kernel import conntrack

Row = dict[str, Any]
_UDP_STATES = {State.UDP_UNREPLIED: "REPLIED", State.UDP_STREAM: "ASSURED"}
_NOTHING = fast_entries.EntryUse(0, 0, valid=False, idle=None)


def flows(reader: GatewayReader) -> list[Row]:
    """One row per flow, youngest first. Source address and port are those after translation, or None.

    conntrack does not know a flow whose packets other rules dropped after the egress was chosen; nothing has
    left then. ``path`` is "fast" while a direction's packets bypass routing, conntrack and netfilter.
    ``idle`` may be a few seconds too small after packets on that path, which record no time.
    """
    # Read before conntrack's table, so that a connection opened between the two is found there.
    chunks = list(reader.maps.flows.chunks())
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    replies: dict[conntrack.Tuple, conntrack.Tuple] = {}
    for entry in conntrack.entries():
        replies[entry.original] = entry.reply
        if entry.original.destination != entry.reply.source:
            # Opened by the origin, as a conntrack helper expected (reason `expected`).
            replies.setdefault(entry.reply, entry.original)
    learnt = fast_entries.by_flow(reader.maps)
    rows: list[Row] = []
    for keys, values in chunks:
        for key, flow in zip(keys, values, strict=True):
            original = conntrack.Tuple(
                int(key["protocol"]),
                key["client"].tobytes(),
                key["origin"].tobytes(),
                port(key["client_port"]),
                port(key["origin_port"]),
            )
            fast = learnt.get(key.tobytes(), _NOTHING)
            source_ip, source_port = _translation(flow, original, replies.get(original))
            kernel_packets = int(flow["packets"].sum())
            fast_packets = int(flow["fast_packets"].sum()) + fast.packets
            idle = round((now - int(flow["last_seen"])) / 1e9, 3)
            rows.append(
                {
                    "protocol": PROTOCOL_NAMES[original.protocol],
                    "client_ip": str(unpack(key["client"])),
                    "client_port": original.source_port,
                    "origin_ip": str(unpack(key["origin"])),
                    "origin_port": original.destination_port,
                    "egress": reader.egress_names.get(int(flow["slot"]), f"slot {flow['slot']}"),
                    "source_ip": source_ip,
                    "source_port": source_port,
                    "policy": reader.policy_names.get(int(flow["policy"])),
                    "state": _state(flow),
                    "path": "fast" if fast.valid else "kernel",
                    "packets": kernel_packets + fast_packets,
                    "bytes": int(flow["bytes"].sum() + flow["fast_bytes"].sum()) + fast.bytes,
                    "age": round((now - int(flow["created"])) / 1e9, 3),
                    "idle": idle if fast.idle is None else min(idle, round(fast.idle, 3)),
                    "fast_packets": fast_packets,
                    "kernel_packets": kernel_packets,
                }
            )
    rows.sort(key=lambda row: row["age"])
    return rows


def _translation(
    flow: Any, original: conntrack.Tuple, reply: conntrack.Tuple | None
) -> tuple[str | None, int | None]:
    """The translated source address and port, as far as they are known.

    Without a conntrack entry, an answered flow has left with its egress address; the port is known if a
    fast-path entry was created.
    """
    if reply is not None:
        outside = reply.destination, reply.destination_port
        translated = outside != (original.source, original.source_port)
        return (str(of_bytes(outside[0])), outside[1]) if translated else (None, None)
    if not flow["replied"]:
        return None, None
    return str(unpack(flow["egress_address"])), port(flow["egress_port"]) or None


def _state(flow: Any) -> str:
    """conntrack's name of the state: TCP's state; UNREPLIED, REPLIED or ASSURED of UDP."""
    state = State(int(flow["state"]))
    if state == State.UDP_UNREPLIED and not flow["replied"]:
        return "UNREPLIED"
    return _UDP_STATES.get(state, state.name)
