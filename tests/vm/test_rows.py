"""Tests of the main kinds of traffic by the source address that the origin sees."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest

from lab.clients import curl, dig, ping, tcp_ask, udp_ask, url
from lab.configuration import ABROAD_PORT, LAX1, LAX2, SHOP_PORT, TRAVEL_PORT
from lab.gateway import LabGateway
from lab.servers import logged
from lab.services import Services
from lab.topology import CLIENT, ORIGIN1, ORIGIN2, PRIVATE, RESOLVER, SHARED, Lab

PERSON = "ann@corp.example"
families = pytest.mark.parametrize("family", [4, 6])
Ask = Callable[[Lab, Services, int], str]


def policy(lab: Lab, services: Services, family: int) -> str:
    return tcp_ask(lab.client, ORIGIN1[family]).address


def policy_udp(lab: Lab, services: Services, family: int) -> str:
    return udp_ask(lab.client, ORIGIN1[family]).address


def private(lab: Lab, services: Services, family: int) -> str:
    return tcp_ask(lab.client, PRIVATE[family]).address


def default(lab: Lab, services: Services, family: int) -> str:
    return web(lab, family, SHOP_PORT, "https")


def fallback(lab: Lab, services: Services, family: int) -> str:
    return web(lab, family, TRAVEL_PORT)


def echo(lab: Lab, services: Services, family: int) -> str:
    reporter = services.reporter["origin1"]
    (seen,) = logged(lambda: reporter.seen("icmp"), lambda: ping(lab.client, ORIGIN1[family]))
    return seen.address


def dns_udp(lab: Lab, services: Services, family: int) -> str:
    return name_asked(lab, services, family, tcp=False)


def dns_tcp(lab: Lab, services: Services, family: int) -> str:
    return name_asked(lab, services, family, tcp=True)


def web(lab: Lab, family: int, port: int, scheme: str = "http") -> str:
    status, body = curl(lab.client, url(ORIGIN2[family], port, scheme), timeout=30)
    assert status == 200, body
    return body.split()[0]


def name_asked(lab: Lab, services: Services, family: int, *, tcp: bool) -> str:
    assert dig(lab.client, RESOLVER[family], "bank.lab", tcp=tcp) == [ORIGIN1[4]]
    return services.resolver.queries()[-1][0]


@families
@pytest.mark.parametrize(
    ("ask", "planned"),
    [
        (policy, LAX1),
        (policy_udp, LAX1),
        (default, SHARED),
        (fallback, LAX2),
        (private, SHARED),
        (echo, SHARED),
        (dns_udp, SHARED),
        (dns_tcp, SHARED),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_traffic_leaves_from_the_planned_address(
    gateway: LabGateway, services: Services, family: int, ask: Ask, planned: dict[int, str]
) -> None:
    seen = ask(gateway.lab, services, family)
    assert ipaddress.ip_address(seen) in ipaddress.ip_network(planned[family])


@families
def test_without_a_policy_it_is_the_nearest_egress_and_stays(
    gateway: LabGateway, services: Services, family: int
) -> None:
    client = gateway.lab.client
    seen = {tcp_ask(client, ORIGIN2[family]).address for _ in range(3)}
    assert len(seen) == 1
    assert any(
        ipaddress.ip_address(seen.copy().pop()) in ipaddress.ip_network(egress[family])
        for egress in (LAX1, LAX2)
    )


@families
def test_without_a_fallback_it_is_refused_at_once(
    gateway: LabGateway, services: Services, family: int
) -> None:
    status, said = curl(gateway.lab.client, url(ORIGIN2[family], ABROAD_PORT), timeout=30)
    assert status == 0
    assert "refused" in said or "Couldn't connect" in said


@families
def test_a_person_is_known_by_the_session(gateway: LabGateway, services: Services, family: int) -> None:
    client, source = gateway.lab.client, f"{CLIENT[family][:-1]}3"
    assert tcp_ask(client, ORIGIN2[family], source=source).address != SHARED[family]
    gateway.run("session", "add", source, "--email", PERSON)
    assert tcp_ask(client, ORIGIN2[family], source=source).address == SHARED[family]
    gateway.run("session", "remove", source)
    assert tcp_ask(client, ORIGIN2[family], source=source).address != SHARED[family]


@families
def test_a_name_is_learnt_before_its_first_connection(
    gateway: LabGateway, services: Services, family: int
) -> None:
    client, source = gateway.lab.client, f"{CLIENT[family][:-1]}4"
    assert tcp_ask(client, ORIGIN2[family], source=source).address != SHARED[family]
    kind = "A" if family == 4 else "AAAA"
    assert dig(client, RESOLVER[family], "www.lab", kind, source=source) == [ORIGIN2[family]]
    assert tcp_ask(client, ORIGIN2[family], source=source).address == SHARED[family]
    # Debian's kernel supports nftables' own queue expression.
    assert "queue flags bypass to" in gateway.lab.gw.run("nft", "list", "ruleset").stdout


@families
def test_explain_agrees(gateway: LabGateway, family: int) -> None:
    arguments = ("--src", CLIENT[family], "--dst", ORIGIN1[family], "--protocol", "tcp", "--dport", "443")
    answer = gateway.json("explain", *arguments)
    assert (answer["verdict"], answer["policy"]) == ("dedicated", "bank")


def test_down_leaves_nothing(gateway: LabGateway, services: Services) -> None:
    """Runs last: nothing of the enforcer is left."""
    gateway.down()
    assert gateway.lab.gw.run("nft", "list", "ruleset").stdout == ""
    for interface in ("in0", "out0"):
        assert "clsact" not in gateway.lab.gw.run("tc", "qdisc", "show", "dev", interface).stdout
    assert LAX1[4] not in gateway.lab.gw.run("ip", "addr").stdout
