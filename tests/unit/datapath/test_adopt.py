"""Rows of the flow map from conntrack entries."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import numpy as np
import pytest
from layouts import FLOW_KEY

from enforcer.address import pack
from enforcer.constants import ICMP, TCP, UDP
from enforcer.constants.bpf import FlowFlag, State
from enforcer.datapath.adopt import Adopted, Slots, adopt
from enforcer.kernel.conntrack import IPS_ASSURED, IPS_SEEN_REPLY, Entry, Tuple
from enforcer.reasons import by_name

FLOW = np.dtype(
    [
        ("lock", "<u4"),
        ("slot", "<u4"),
        ("policy", "<u4"),
        ("reason", "<u4"),
        ("egress_address", "<u4", 4),
        ("created", "<u8"),
        ("last_seen", "<u8"),
        ("flags", "u1"),
        ("state", "u1"),
        ("timeout", "u1"),
        ("counted", "u1"),
        ("replied", "u1"),
        ("deleting", "<u8"),
        ("later", "<u8"),  # a field of another version
    ]
)
SLOTS = Slots(
    {
        ip_network("198.51.100.1/32"): 0,
        ip_network("2001:db8:ffff::1/128"): 0,
        ip_network("203.0.113.10/32"): 1,
        ip_network("2001:db8:1::/64"): 1,
        ip_network("203.0.113.11/32"): 2,
        ip_network("2001:db8:2::/48"): 2,
    }
)
NOW = 1_000 * 10**9
TIMEOUTS = (np.arange(1, 12) * 100 * 10**9).astype("<u8")
BOTH = IPS_SEEN_REPLY | IPS_ASSURED
ESTABLISHED, SYN_SENT = State.ESTABLISHED, State.SYN_SENT


def entry(
    source: str,
    protocol: int = TCP,
    *,
    state: str = "ESTABLISHED",
    status: int = BOTH,
    left: int = 0,
    client: str | None = None,
) -> Entry:
    """A client's connection that is translated to ``source``."""
    six = ":" in source
    inside = pack(ip_address(client or ("fd00:1::2" if six else "10.0.1.2")))
    origin = pack(ip_address("2001:db8:a1::10" if six else "198.18.1.10"))
    original = Tuple(protocol, inside, origin, 40000, 443)
    reply = Tuple(protocol, origin, pack(ip_address(source)), 443, 51000)
    return Entry(original, reply, state if protocol == TCP else "", left, 0, status)


def adopted(*entries: Entry) -> Adopted:
    return adopt(entries, SLOTS, (FLOW_KEY, FLOW), TIMEOUTS, NOW)


@pytest.mark.parametrize(
    ("source", "slot"),
    [
        ("198.51.100.1", 0),
        ("203.0.113.10", 1),
        ("203.0.113.11", 2),
        ("2001:db8:ffff::1", 0),
        ("2001:db8:1::2", 1),
        ("2001:db8:2:77::2", 2),
    ],
)
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_a_connection_keeps(source: str, slot: int, protocol: int) -> None:
    found = adopted(entry(source, protocol))
    (key,), (flow,) = found.keys, found.flows
    six = ":" in source
    assert key["client"].tobytes() == pack(ip_address("fd00:1::2" if six else "10.0.1.2"))
    assert key["origin"].tobytes() == pack(ip_address("2001:db8:a1::10" if six else "198.18.1.10"))
    assert key["client_port"].tobytes() == (40000).to_bytes(2, "big")
    assert key["origin_port"].tobytes() == (443).to_bytes(2, "big")
    assert (key["protocol"], flow["slot"], flow["policy"]) == (protocol, slot, 0)
    assert flow["egress_address"].tobytes() == pack(ip_address(source))
    assert (flow["counted"], flow["replied"], flow["later"], flow["lock"]) == (1, 1, 0, 0)
    name = "adopted" if slot else "adopted-shared"
    assert by_name()[name].number == flow["reason"]
    assert by_name()[name].verdict == ("dedicated" if slot else "shared")


def test_what_is_not_ours() -> None:
    untranslated = entry("198.51.100.1", client="198.51.100.1")
    found = adopted(untranslated, entry("192.0.2.1"), entry("2001:db8:3::1"), entry("203.0.113.10", ICMP))
    assert len(found.keys) == len(found.flows) == 0
    assert (found.keys.dtype, found.flows.dtype) == (FLOW_KEY, FLOW)


@pytest.mark.parametrize(
    ("state", "kept", "counted", "ended"),
    [
        ("NONE", State.SYN_SENT, 1, False),
        ("SYN_SENT", State.SYN_SENT, 1, False),
        ("SYN_RECV", State.SYN_RECV, 1, False),
        ("ESTABLISHED", State.ESTABLISHED, 1, False),
        ("FIN_WAIT", State.FIN_WAIT, 1, True),
        ("CLOSE_WAIT", State.CLOSE_WAIT, 1, True),
        ("LAST_ACK", State.LAST_ACK, 1, True),
        ("TIME_WAIT", State.TIME_WAIT, 0, True),
        ("CLOSE", State.CLOSE, 0, True),
        ("SYN_SENT2", State.SYN_SENT2, 1, False),
        ("a later version's", State.ESTABLISHED, 1, False),
    ],
)
def test_tcp_states_are_conntracks_and_count_as_it_counts(
    state: str, kept: State, counted: int, ended: bool
) -> None:
    (flow,) = adopted(entry("203.0.113.10", state=state)).flows
    assert (flow["state"], flow["timeout"], flow["counted"]) == (kept, kept, counted)
    assert bool(flow["flags"] & FlowFlag.ENDED_BY_PEER) is ended


@pytest.mark.parametrize(
    ("protocol", "status", "state", "timeout", "replied", "notes"),
    [
        (TCP, 0, ESTABLISHED, SYN_SENT, 0, 0),
        (TCP, IPS_SEEN_REPLY, ESTABLISHED, ESTABLISHED, 1, 0),
        (TCP, BOTH, ESTABLISHED, ESTABLISHED, 1, FlowFlag.ASSURED),
        (UDP, 0, State.UDP_UNREPLIED, State.UDP_UNREPLIED, 0, 0),
        (UDP, IPS_SEEN_REPLY, State.UDP_UNREPLIED, State.UDP_UNREPLIED, 1, 0),
        (UDP, BOTH, State.UDP_STREAM, State.UDP_STREAM, 1, FlowFlag.ASSURED),
    ],
)
def test_whether_it_was_answered(
    protocol: int, status: int, state: int, timeout: int, replied: int, notes: int
) -> None:
    (flow,) = adopted(entry("203.0.113.10", protocol, status=status)).flows
    assert (flow["state"], flow["timeout"], flow["replied"]) == (state, timeout, replied)
    assert flow["flags"] == notes


def test_it_is_forgotten_when_conntrack_forgets_it() -> None:
    found = adopted(
        entry("203.0.113.10", left=500), entry("203.0.113.10", left=480), entry("203.0.113.10", left=7000)
    )
    assert [int(seen) for seen in found.flows["last_seen"]] == [NOW, NOW - 20 * 10**9, NOW]
    assert (found.flows["created"] == found.flows["last_seen"]).all()


def test_a_machine_that_was_started_a_moment_ago() -> None:
    found = adopt([entry("203.0.113.10")], SLOTS, (FLOW_KEY, FLOW), TIMEOUTS, 5 * 10**9)
    assert found.flows["last_seen"].tolist() == [1]
