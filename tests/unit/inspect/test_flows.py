"""`flows`: the counters of the kernel's path and of the fast path, as sums and separately."""

from __future__ import annotations

import socket
import time
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from layouts import FLOW_KEY

from enforcer.address import pack, words
from enforcer.datapath.fast_entries import EntryUse
from enforcer.inspect import flows as views
from enforcer.kernel import conntrack

FLOW = np.dtype(
    [
        *((name, "<u4") for name in ("slot", "policy")),
        ("egress_address", "<u4", 4),
        *((name, "<u8") for name in ("created", "last_seen")),
        *((name, "<u8", 2) for name in ("packets", "bytes", "fast_packets", "fast_bytes")),
        *((name, "u1") for name in ("state", "replied")),
        ("egress_port", "<u2"),
    ]
)


ORIGIN = {4: "198.18.1.10", 6: "2001:db8:a1::10"}
EGRESS = {4: "203.0.113.10", 6: "2001:db8:1::2"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def shown(
    monkeypatch: pytest.MonkeyPatch,
    learnt: EntryUse | None,
    family: int = 4,
    *,
    reply: tuple[str, int] | None = None,
    replied: bool = True,
    way: int = 0,
) -> dict[str, Any]:
    """The row of one flow, last seen three seconds ago; ``learnt``: the use of its fast-path entries.

    ``reply``: the destination of answers in conntrack; None if it does not have the connection. ``way``: the
    port that the fast path writes.
    """
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    key, value = np.zeros(1, dtype=FLOW_KEY), np.zeros(1, dtype=FLOW)
    client, origin = ip_address("10.0.1.2" if family == 4 else "fd00:1::2"), ip_address(ORIGIN[family])
    key["client"], key["origin"], key["protocol"] = words(client), words(origin), 6
    key["client_port"], key["origin_port"] = (socket.htons(number) for number in (40000, 443))
    value["egress_address"], value["egress_port"] = words(ip_address(EGRESS[family])), socket.htons(way)
    value["created"], value["last_seen"] = now - 60 * 10**9, now - 3 * 10**9
    value["packets"], value["bytes"] = [3, 4], [300, 400]
    value["fast_packets"], value["fast_bytes"] = [10, 20], [1000, 2000]
    value["state"], value["replied"] = 4, replied
    source: Any = SimpleNamespace(
        maps=SimpleNamespace(flows=SimpleNamespace(chunks=lambda: [(key, value)])),
        egress_names={0: "shared"},
        policy_names={},
    )
    found = {} if learnt is None else {key[0].tobytes(): learnt}
    monkeypatch.setattr(views.fast_entries, "by_flow", lambda _: found)
    known = []
    if reply is not None:
        original = conntrack.Tuple(6, pack(client), pack(origin), 40000, 443)
        answers = conntrack.Tuple(6, pack(origin), pack(ip_address(reply[0])), 443, reply[1])
        known.append(conntrack.Entry(original, answers, "ESTABLISHED", 100, 0))
    monkeypatch.setattr(views.conntrack, "entries", lambda: iter(known))
    (row,) = views.flows(source)
    return row


@pytest.mark.parametrize("family", [4, 6])
def test_a_flow_that_nothing_is_learnt_of(monkeypatch: pytest.MonkeyPatch, family: int) -> None:
    row = shown(monkeypatch, None, family)
    assert (row["path"], row["state"]) == ("kernel", "ESTABLISHED")
    assert (row["packets"], row["fast_packets"], row["kernel_packets"], row["bytes"]) == (37, 30, 7, 3700)
    assert row["idle"] == pytest.approx(3, abs=1)


@pytest.mark.parametrize("valid", [True, False])
def test_what_ways_have_carried_counts(monkeypatch: pytest.MonkeyPatch, valid: bool) -> None:
    row = shown(monkeypatch, EntryUse(5, 50, valid, 0.25))
    assert row["path"] == ("fast" if valid else "kernel")
    assert (row["packets"], row["fast_packets"], row["kernel_packets"], row["bytes"]) == (42, 35, 7, 3750)
    assert row["idle"] == 0.25


def test_a_way_that_has_carried_nothing_does_not_make_it_younger(monkeypatch: pytest.MonkeyPatch) -> None:
    row = shown(monkeypatch, EntryUse(0, 0, valid=True, idle=None))
    assert row["path"] == "fast"
    assert row["idle"] == pytest.approx(3, abs=1)


def test_a_way_that_was_used_before_the_last_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, EntryUse(5, 50, valid=False, idle=20.0))["idle"] == pytest.approx(3, abs=1)


@FAMILIES
def test_the_translation_is_conntracks(monkeypatch: pytest.MonkeyPatch, family: int) -> None:
    for replied in (True, False):
        row = shown(monkeypatch, None, family, reply=(EGRESS[family], 20000), replied=replied, way=1)
        assert (row["source_ip"], row["source_port"]) == (EGRESS[family], 20000)


@FAMILIES
def test_what_conntrack_does_not_know_was_not_translated(
    monkeypatch: pytest.MonkeyPatch, family: int
) -> None:
    row = shown(monkeypatch, None, family, replied=False)
    assert (row["source_ip"], row["source_port"]) == (None, None)


@FAMILIES
def test_what_conntrack_leaves_as_it_is_was_not_translated(
    monkeypatch: pytest.MonkeyPatch, family: int
) -> None:
    client = "10.0.1.2" if family == 4 else "fd00:1::2"
    row = shown(monkeypatch, None, family, reply=(client, 40000))
    assert (row["source_ip"], row["source_port"]) == (None, None)


@FAMILIES
@pytest.mark.parametrize("way", [0, 20000])
def test_what_conntrack_has_forgotten_was_answered_at_the_egress_address(
    monkeypatch: pytest.MonkeyPatch, family: int, way: int
) -> None:
    row = shown(monkeypatch, None, family, way=way)
    assert (row["source_ip"], row["source_port"]) == (EGRESS[family], way or None)
