"""Tests of `enforcer flows`: it shows the translations that have happened, and no others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from truth import families, leaves_from, look, running, wait_for

from enforcer.inspect.flows import flows as view_flows
from lab.clients import Session, UdpFlow
from lab.configuration import LAX1
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import CLIENT, ORIGIN1, Lab

HOOKS = {
    "forward": "type filter hook forward priority 10",
    "post": "type filter hook postrouting priority 200",
}
_ports = itertools.count(44000)


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    with running(lab) as gateway:
        yield gateway


@contextmanager
def dropped(lab: Lab, hook: str, protocol: str) -> Iterator[None]:
    """A rule of other software that drops packets after the program, before or after our translation."""
    rule = f"oifname out0 meta l4proto {protocol} th dport 9000 drop"
    lab.gw.run("nft", f"add table inet own; add chain inet own here {{ {HOOKS[hook]}; }}")
    lab.gw.run("nft", f"add rule inet own here {rule}")
    try:
        yield
    finally:
        lab.gw.run("nft", "delete table inet own")


def row(gateway: LabGateway, client_port: int, protocol: str) -> dict[str, Any]:
    """The flow with this client port."""
    (found,) = (
        each
        for each in look(gateway, view_flows)
        if (each["client_port"], each["protocol"]) == (client_port, protocol)
    )
    return found


@families
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("hook", HOOKS)
def test_what_others_drop_behind_the_program(
    enforced: LabGateway, hook: str, protocol: str, family: int
) -> None:
    lab, client_port = enforced.lab, next(_ports)
    with dropped(lab, hook, protocol):
        with pytest.raises(TimeoutError):
            if protocol == "tcp":
                Session(lab.client, ORIGIN1[family], source_port=client_port, timeout=0.4)
            else:
                with UdpFlow(lab.client, ORIGIN1[family], timeout=0.4) as flow:
                    client_port = flow.socket.getsockname()[1]
                    flow.ask()
        found = row(enforced, client_port, protocol)
    assert (found["client_ip"], found["egress"]) == (CLIENT[family], "lax-1")
    assert (found["source_ip"], found["source_port"]) == (None, None)
    table = enforced.run("flows").stdout
    (line,) = (each.split() for each in table.splitlines() if f" {client_port} " in each)
    assert line[5:8] == ["lax-1", "-", "-"]


@families
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_what_the_origin_has_seen(enforced: LabGateway, protocol: str, family: int) -> None:
    """After conntrack has forgotten the connection, the address is still known and the port is not."""
    lab = enforced.lab
    kind = Session if protocol == "tcp" else UdpFlow
    with kind(lab.client, ORIGIN1[family]) as connection:
        seen = connection.ask()
        client_port = connection.socket.getsockname()[1]
        found = row(enforced, client_port, protocol)
        assert (found["source_ip"], found["source_port"]) == (seen.address, seen.peer_port)
        assert seen.address == leaves_from(LAX1, family)
        lab.gw.run("conntrack", "-D", "-f", f"ipv{family}", "-p", protocol, "--sport", str(client_port))
        # A fast-path entry may record the port again for some seconds.
        wait_for(lambda: row(enforced, client_port, protocol)["source_port"] in (None, seen.peer_port))
        assert row(enforced, client_port, protocol)["source_ip"] == seen.address


@families
def test_what_is_over(enforced: LabGateway, family: int) -> None:
    """In TIME_WAIT both our table and conntrack still hold the flow."""
    with Session(enforced.lab.client, ORIGIN1[family]) as session:
        seen, client_port = session.ask(), session.socket.getsockname()[1]
    wait_for(lambda: row(enforced, client_port, "tcp")["state"] == "TIME_WAIT")
    found = row(enforced, client_port, "tcp")
    assert (found["source_ip"], found["source_port"]) == (seen.address, seen.peer_port)
