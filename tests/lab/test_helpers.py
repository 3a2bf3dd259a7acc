"""Tests of an administrator's conntrack helpers: an origin opens the connection that the helper expects."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from truth import Origin, counted, families, leaves_from, packets, running, wait_for
from zones import QUIET

from enforcer.kernel import conntrack
from lab.clients import family_of
from lab.configuration import LAX1, Document
from lab.gateway import LabGateway
from lab.netns import LabError
from lab.services import Services
from lab.topology import CLIENT, ORIGIN1, SHARED, Lab

CONTROL, DATA, TFTP = 21, 20, 69
LIMIT = 2
SHARED_POLICY = {
    "name": "shared-ftp",
    "precedence": 5,
    "traffic": "net.dst.ip in {198.18.1.0/24 2001:db8:a1::/64} and net.src.ip in {10.0.1.9 fd00:1::9}",
    "egress": "default",
}
SHARED_CLIENT = {4: "10.0.1.9", 6: "fd00:1::9"}
RULES = """
table inet helpers {
  ct helper ftp { type "ftp" protocol tcp; }
  ct helper tftp { type "tftp" protocol udp; }
  chain arriving {
    type filter hook prerouting priority 0
    tcp dport 21 ct helper set "ftp"
    udp dport 69 ct helper set "tftp"
  }
}
"""


def configuration(lab: Lab, limit: int = LIMIT) -> Document:
    config = lab.config(fast_path=False, limits={"connections_per_origin": limit})
    config["policies"].append(SHARED_POLICY)
    return config


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    try:
        lab.gw.run("nft", "-f", "-", text=RULES)
    except LabError as error:
        pytest.skip(f"this kernel lacks conntrack's helpers: {error}")
    with running(lab, configuration(lab)) as gateway:
        yield gateway


@dataclass
class Transfer:
    """Both ends of an active FTP data connection (None: it failed); ``told``: the address the server got."""

    told: str
    server: socket.socket | None
    client: socket.socket | None


@contextlib.contextmanager
def transfer(lab: Lab, family: int, source: str | None = None) -> Iterator[Transfer]:
    """FTP's PORT or EPRT (RFC 959, 2428): the server connects to the address that the client names."""
    kind, found = family_of(ORIGIN1[family]), Transfer("", None, None)
    source = source or CLIENT[family]
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(namespace.socket(kind, socket.SOCK_STREAM))
            for namespace in (lab.origin1, lab.origin1, lab.client, lab.client)
        ]
        for sock in sockets:
            sock.settimeout(2)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        control, data, asker, listener = sockets
        control.bind((ORIGIN1[family], CONTROL))
        control.listen()
        data.bind((ORIGIN1[family], DATA))
        listener.bind((source, 0))
        listener.listen()
        asker.bind((source, 0))
        asker.connect((ORIGIN1[family], CONTROL))
        served = stack.enter_context(control.accept()[0])
        served.settimeout(2)
        # The helper parses only lines that follow a line it has seen.
        asker.sendall(b"USER me\r\n")
        served.recv(200)
        port = listener.getsockname()[1]
        if family == 4:
            asker.sendall(f"PORT {source.replace('.', ',')},{port // 256},{port % 256}\r\n".encode())
            *host, high, low = served.recv(200).decode().split()[1].split(",")
            found.told, port = ".".join(host), int(high) * 256 + int(low)
        else:
            asker.sendall(f"EPRT |2|{source}|{port}|\r\n".encode())
            _, _, told, number, _ = served.recv(200).decode().split()[1].split("|")
            found.told, port = str(ip_address(told)), int(number)
        with contextlib.suppress(OSError):
            data.connect((found.told, port))
            found.server = data
            found.client = stack.enter_context(listener.accept()[0])
            found.client.settimeout(2)
        yield found


def exchange(found: Transfer) -> None:
    """Send data in both directions and check it."""
    assert found.server is not None
    assert found.client is not None
    for sender, receiver in ((found.server, found.client), (found.client, found.server)):
        sender.sendall(b"data" * 5000)
        received = b""
        while len(received) < 20000:
            received += receiver.recv(65536)


@families
@pytest.mark.parametrize("kind", ["dedicated", "shared"])
def test_active_ftp(enforced: LabGateway, family: int, kind: str) -> None:
    lab, before = enforced.lab, packets(enforced)
    source = CLIENT[family] if kind == "dedicated" else SHARED_CLIENT[family]
    egress = leaves_from(LAX1, family, source) if kind == "dedicated" else SHARED[family]
    reason = "expected" if kind == "dedicated" else "expected-shared"
    with transfer(lab, family, source) as found:
        assert found.told == egress
        exchange(found)
        assert found.client is not None
        assert found.client.getpeername()[:2] == (ORIGIN1[family], DATA)
        assert found.server is not None
        assert found.server.getpeername()[0] == egress
        at = Origin(egress, "tcp", ORIGIN1[family], DATA)
        assert counted(enforced)[at] == 1
        time.sleep(QUIET)
        assert counted(enforced)[at] == 1
        exchange(found)
        assert packets(enforced)[reason] - before[reason] >= 3
        rows = [row for row in enforced.json("flows") if row["origin_port"] == DATA]
        (flow,) = [row for row in rows if row["source_ip"] == egress and row["state"] == "ESTABLISHED"]
        assert flow["source_port"] == found.server.getpeername()[1]
    wait_for(lambda: not counted(enforced)[at], "the end of the count")


@families
def test_the_limit_holds(enforced: LabGateway, family: int) -> None:
    """The limit holds for an origin's port 20, too."""
    lab, kind = enforced.lab, family_of(ORIGIN1[family])
    at = Origin(leaves_from(LAX1, family), "tcp", ORIGIN1[family], DATA)
    enforced.reload(configuration(lab, limit=1))
    try:
        with (
            lab.origin1.socket(kind, socket.SOCK_STREAM) as server,
            lab.client.socket(kind, socket.SOCK_STREAM) as client,
        ):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((ORIGIN1[family], DATA))
            server.listen()
            client.connect((ORIGIN1[family], DATA))
            with server.accept()[0]:
                server.close()
                before = packets(enforced)["limit"]
                with transfer(lab, family) as found:
                    assert found.client is None
                assert packets(enforced)["limit"] > before
                assert counted(enforced)[at] == 1
        wait_for(lambda: not counted(enforced)[at], "the end of the count")
        with transfer(lab, family) as found:
            exchange(found)
            assert counted(enforced)[at] == 1
    finally:
        enforced.reload(configuration(lab))


@families
def test_tftp(enforced: LabGateway, family: int) -> None:
    """The answer comes from another UDP port (RFC 1350, 4)."""
    lab, kind = enforced.lab, family_of(ORIGIN1[family])
    with (
        lab.origin1.socket(kind, socket.SOCK_DGRAM) as server,
        lab.origin1.socket(kind, socket.SOCK_DGRAM) as answering,
        lab.client.socket(kind, socket.SOCK_DGRAM) as client,
    ):
        for sock in (server, answering, client):
            sock.settimeout(2)
        server.bind((ORIGIN1[family], TFTP))
        answering.bind((ORIGIN1[family], 0))
        port = answering.getsockname()[1]
        client.bind((CLIENT[family], 0))
        client.sendto(b"\0\1file\0octet\0", (ORIGIN1[family], TFTP))
        _, peer = server.recvfrom(2048)
        assert peer[0] == leaves_from(LAX1, family)
        answering.sendto(b"\0\3\0\1data", peer)
        data, sender = client.recvfrom(2048)
        assert (data, sender[:2]) == (b"\0\3\0\1data", (ORIGIN1[family], port))
        client.sendto(b"\0\4\0\1", sender)
        acknowledged, again = answering.recvfrom(2048)
        assert (acknowledged, again[:2]) == (b"\0\4\0\1", peer[:2])
        at = Origin(leaves_from(LAX1, family), "udp", ORIGIN1[family], port)
        assert counted(enforced)[at] == 1
        time.sleep(QUIET)
        assert counted(enforced)[at] == 1


@families
def test_what_no_helper_expects(enforced: LabGateway, family: int) -> None:
    lab, before = enforced.lab, packets(enforced)
    with (
        transfer(lab, family) as found,
        lab.origin1.socket(family_of(found.told), socket.SOCK_STREAM) as other,
    ):
        other.settimeout(0.5)
        with pytest.raises(TimeoutError):
            other.connect((found.told, 4321))
    assert packets(enforced)["unsolicited"] > before["unsolicited"]


@families
def test_down_forgets_them(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab

    def expected() -> list[conntrack.Entry]:
        entries = lab.gw.call(lambda: list(conntrack.entries()))
        return [entry for entry in entries if entry.original.destination != entry.reply.source]

    with transfer(lab, family) as found:
        exchange(found)
        assert expected()
        enforced.down()
        assert not expected()
    enforced.start()
