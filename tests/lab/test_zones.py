"""Tests of connections in conntrack zones of other software: counts, limits and what `down` leaves."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from truth import Origin, agree, counted, families, leaves_from, running, tracked, wait_for
from zones import QUIET, zoned

from enforcer.kernel import conntrack
from lab.clients import Session, UdpFlow, family_of, tcp_ask
from lab.configuration import LAX1, without
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import ORIGIN1, Lab

LIMIT = 6
ZONES = {"both directions": "ct zone set 7", "the original direction": "ct original zone set 7"}


@pytest.fixture(scope="module", params=ZONES)
def enforced(lab: Lab, services: Services, request: pytest.FixtureRequest) -> Iterator[LabGateway]:
    statement = ZONES[request.param]
    if "original" not in statement:
        statement = f"iifname {{ in0, out0 }} {statement}"
    limits = {"connections_per_origin": LIMIT}
    with zoned(lab, statement), running(lab, lab.config(limits=limits)) as gateway:
        yield gateway


def at(family: int, protocol: str = "tcp") -> Origin:
    return Origin(leaves_from(LAX1, family), protocol, ORIGIN1[family], 9000)


@families
def test_silent_and_unanswered_connections_stay_counted(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(Session(lab.client, ORIGIN1[family])) for _ in range(LIMIT)]
        flow = stack.enter_context(UdpFlow(lab.client, ORIGIN1[family]))
        flow.ask()
        unanswered = stack.enter_context(lab.client.socket(family_of(ORIGIN1[family]), socket.SOCK_DGRAM))
        unanswered.sendto(b"?", (ORIGIN1[family], 9))
        time.sleep(QUIET)
        assert counted(enforced)[at(family)] == LIMIT == tracked(lab)[at(family)]
        assert counted(enforced)[at(family, "udp")] == 1
        assert agree(enforced)[at(family, "udp")._replace(port=9)] == 1
        with pytest.raises(ConnectionRefusedError):
            tcp_ask(lab.client, ORIGIN1[family])
        assert all(session.ask() == session.seen for session in sessions)
        assert enforced.json("status")["warnings"] == []
    agree(enforced)


@families
def test_what_conntrack_has_forgotten_is_not_counted(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with Session(lab.client, ORIGIN1[family]), UdpFlow(lab.client, ORIGIN1[family]) as flow:
        flow.ask()
        assert counted(enforced)[at(family)] >= 1
        lab.gw.run("conntrack", "-F")
        wait_for(lambda: not counted(enforced), "the end of the counts")


@families
def test_a_reset_behind_the_fast_path_is_told(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with Session(lab.client, ORIGIN1[family]) as session:
        for _ in range(10):
            session.ask()
        port = session.socket.getsockname()[1]
        session.reset()

    def state() -> str:
        entries = lab.gw.call(lambda: list(conntrack.entries()))
        (entry,) = [entry for entry in entries if entry.original.source_port == port]
        assert entry.zone == 7
        return entry.state

    wait_for(lambda: state() == "CLOSE", "conntrack's state")
    agree(enforced)


@families
def test_an_egress_ip_that_goes_ends_its_connections(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    known = lab.config(limits={"connections_per_origin": LIMIT})
    with Session(lab.client, ORIGIN1[family]) as session:
        remaining = without(without(known, "egress_ips", "lax-1"), "policies", "bank")
        enforced.reload(remaining)
        try:
            assert not [one for one in tracked(lab) if one.egress == leaves_from(LAX1, family)]
            with pytest.raises(OSError):
                session.ask()
        finally:
            enforced.reload(known)


@families
def test_down_leaves_no_translated_connection(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with Session(lab.client, ORIGIN1[family]):
        assert tracked(lab)[at(family)]
        enforced.down()
        assert not tracked(lab)
    enforced.start()
