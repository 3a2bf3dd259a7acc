"""Tests of flows that conntrack has and does not find: the daemon does not trust its answer."""

from __future__ import annotations

import contextlib
import time

from truth import counted, families, running, wait_for
from zones import QUIET, zoned

from enforcer.daemon.conntrack_zones import MANY, MOST_ZONES
from lab.clients import Session
from lab.services import Services
from lab.topology import ORIGIN2, Lab


@families
def test_more_zones_than_are_looked_in(lab: Lab, services: Services, family: int) -> None:
    """The counts stay; the daemon and `status` warn until conntrack's answer is trusted again."""
    number = MANY + MOST_ZONES + 8
    ports = range(20000, 20000 + number)
    zones = ", ".join(f"{port} : {port}" for port in ports)
    statement = f"iifname in0 ct original zone set tcp sport map {{ {zones} }}"
    with zoned(lab, statement), running(lab, lab.config(policies=[])) as gateway:
        before = len(gateway.said())
        with contextlib.ExitStack() as stack:
            held = [
                stack.enter_context(Session(lab.client, ORIGIN2[family], source_port=port)) for port in ports
            ]
            time.sleep(QUIET)
            assert sum(counted(gateway).values()) >= number
            (warning,) = gateway.json("status")["warnings"]
            assert "conntrack does not find" in warning
            assert all(session.ask() == session.seen for session in held)
        lab.gw.run("conntrack", "-F")
        with Session(lab.client, ORIGIN2[family]):  # this connection is in no zone
            wait_for(lambda: not gateway.json("status")["warnings"], "the end of the doubt")
        said = gateway.said()[before:]
        assert said.count("conntrack does not find") == said.count("is trusted") == 1
