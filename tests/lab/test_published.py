"""Tests of ports that other software publishes at the shared address (docker -p): they stay open."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from truth import families, running

from enforcer.kernel import conntrack
from lab.clients import family_of
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import CLIENT2, SHARED, Lab

PUBLISHED, INNER = 8080, 8081
INTERFACES = {"inside": ["in0"], "outside": ["out0"], "other": ["in1"]}
ANOTHER = {"ipv4": "198.51.100.77", "ipv6": "2001:db8:ffff::77"}


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    """A gateway where in1 leads to the containers' network."""
    to = "; ".join(
        f"add rule inet others pre iifname out0 {ip} daddr {SHARED[family]} tcp dport {PUBLISHED} "
        f"dnat {ip} to {at(CLIENT2[family], INNER)}"
        for family, ip in ((4, "ip"), (6, "ip6"))
    )
    lab.gw.run(
        "nft",
        "add table inet others; "
        f"add chain inet others pre {{ type nat hook prerouting priority -100; }}; {to}",
    )
    with running(lab, lab.config(interfaces=INTERFACES)) as gateway:
        yield gateway


def at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@contextmanager
def published(lab: Lab, family: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from outside, and its end in the container."""
    kind = family_of(SHARED[family])
    with (
        lab.client2.socket(kind, socket.SOCK_STREAM) as listener,
        lab.origin1.socket(kind, socket.SOCK_STREAM) as outer,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((CLIENT2[family], INNER))
        listener.listen()
        outer.settimeout(5)
        outer.connect((SHARED[family], PUBLISHED))
        inner, _ = listener.accept()
        with inner:
            inner.settimeout(5)
            exchange(outer, inner)
            yield outer, inner


def exchange(*ends: socket.socket) -> None:
    for sender, receiver in (ends, reversed(ends)):
        sender.sendall(b"?")
        assert receiver.recv(10) == b"?"


def known(lab: Lab) -> list[conntrack.Entry]:
    """conntrack's assured entries of published connections; an entry picked up midway is not assured."""
    entries = lab.gw.call(lambda: list(conntrack.entries()))
    return [entry for entry in entries if entry.original.destination_port == PUBLISHED and entry.assured]


@families
def test_the_shared_address_is_another_one(enforced: LabGateway, family: int) -> None:
    with published(enforced.lab, family) as ends:
        enforced.reload(enforced.lab.config(interfaces=INTERFACES, shared=ANOTHER))
        try:
            assert known(enforced.lab)
            exchange(*ends)
        finally:
            enforced.reload(enforced.lab.config(interfaces=INTERFACES))


@families
def test_down(enforced: LabGateway, family: int) -> None:
    with published(enforced.lab, family) as ends:
        enforced.down()
        try:
            assert known(enforced.lab)
            exchange(*ends)
        finally:
            enforced.start()
