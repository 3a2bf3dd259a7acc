"""Tests of links that appear, disappear and change names, of addresses taken over, and of stacked links."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import pytest
from ontop import on_top, passes
from truth import dedicated, egresses, families, foretold, leaves_from, look, packets, running, wait_for

from enforcer.control import protocol as control
from enforcer.inspect.warnings import warnings
from enforcer.instance import Instance
from lab.capture import Capture
from lab.clients import Session, UdpFlow, fate, ping, tcp_ask, udp_ask
from lab.configuration import LAX1, Document
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, ORIGIN1, ORIGIN2, PRIVATE, SHARED, Lab

OURS = {4: "198.51.100.77", 6: "2001:db8:ffff::77"}
"""Shared addresses that no interface has."""


@pytest.fixture(scope="module")
def enforced(lab: Lab, services: Services) -> Iterator[LabGateway]:
    with running(lab) as gateway:
        yield gateway


@pytest.fixture
def with_ours(enforced: LabGateway) -> Iterator[LabGateway]:
    """A gateway whose shared addresses are on no interface: the enforcer adds them."""
    enforced.reload(enforced.lab.config(shared={"ipv4": OURS[4], "ipv6": OURS[6]}))
    yield enforced
    enforced.reload(enforced.lab.config())


@contextlib.contextmanager
def renamed(gateway: LabGateway, before: str, after: str) -> Iterator[None]:
    """Rename an interface and wait until the daemon has noticed."""
    lab, said = gateway.lab, gateway.said()
    lab.gw.ip(f"link set {before} name {after}")
    try:
        wait_for(lambda: f"{before} is called {after} now" in gateway.said().removeprefix(said))
        assert any(f"{before} is called {after} now" in line for line in look(gateway, warnings))
        yield
    finally:
        lab.gw.ip(f"link set {after} name {before}")
        wait_for(lambda: f"{before} has its name back" in gateway.said().removeprefix(said))
    assert not look(gateway, warnings)


def leaving(lab: Lab) -> Capture:
    """A capture of the packets that leave the gateway."""
    return Capture(lab.net, "gw0", lab.directory, direction="in")


def raw(capture: Capture) -> set[str]:
    """The clients' own addresses among the sources."""
    return {source for source in capture.sources() if source.startswith(("10.", "fd00:"))}


def asked(lab: Lab, family: int) -> list[str]:
    """The results of new TCP and UDP connections: the source address, or a word for the error."""
    found = []
    for ask in (tcp_ask, udp_ask):
        try:
            found.append(ask(lab.client, ORIGIN1[family], timeout=1).address)
        except OSError as error:
            found.append(fate(error))
    return found


@families
def test_a_renamed_outside_interface(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with leaving(lab) as wire, Session(lab.client, ORIGIN1[family]) as session:
        with renamed(enforced, "out0", "wan0"):
            before = packets(enforced)["renamed"]
            assert asked(lab, family) == ["silence", "silence"]
            ping(lab.client, ORIGIN1[family], CLIENT[family])
            assert packets(enforced)["renamed"] >= before + 3
            assert foretold(enforced, ORIGIN1[family], "tcp", 9000)["reason"] == "renamed"
            with pytest.raises(ConnectionError):
                session.ask()
            assert all(row["available"] for row in egresses(enforced).values() if row["location"] == "lax")
        assert asked(lab, family) == [leaves_from(LAX1, family)] * 2
    assert not raw(wire)


@contextlib.contextmanager
def leading_inwards(lab: Lab, family: int) -> Iterator[None]:
    """Add the internet's route to the clients' network."""
    network = {4: "10.0.1.0/24", 6: "fd00:1::/64"}[family]
    lab.net.ip(f"route add {network} via {SHARED[family]}")
    try:
        yield
    finally:
        lab.net.ip(f"route del {network}")


@families
def test_from_outside_while_no_daemon_runs(enforced: LabGateway, family: int) -> None:
    """The map still has the old name: packets from outside do not even reach a client one way."""
    lab = enforced.lab
    assert asked(lab, family) == [leaves_from(LAX1, family)] * 2
    enforced.kill()
    try:
        with (
            leading_inwards(lab, family),
            Capture(lab.client, "eth0", lab.directory, direction="in", expression="port 7777") as arrived,
        ):
            lab.gw.ip("link set out0 name wan0")
            before = packets(enforced)["inbound"]
            for ask in (tcp_ask, udp_ask):
                with pytest.raises(TimeoutError):
                    ask(lab.net, CLIENT[family], 7777, timeout=0.5)
            assert packets(enforced)["inbound"] >= before + 2
        assert not arrived.sources()
    finally:
        lab.gw.ip("link set wan0 name out0")
        enforced.start()


@families
def test_from_outside_by_a_renamed_interface(enforced: LabGateway, family: int) -> None:
    """The table matches the interface's name and misses these packets; the program drops them."""
    lab = enforced.lab
    with leading_inwards(lab, family):
        with (
            renamed(enforced, "out0", "wan0"),
            Capture(lab.client, "eth0", lab.directory, direction="in", expression="icmp or icmp6") as arrived,
        ):
            before = packets(enforced)["renamed"]
            assert ping(lab.net, CLIENT[family]).received == 0
            assert packets(enforced)["renamed"] > before
            assert ping(lab.net, SHARED[family]).received == 1  # the gateway itself
        assert not arrived.sources().keys() & {"198.51.100.254", "2001:db8:ffff::fe"}


@families
def test_a_renamed_inside_interface(enforced: LabGateway, family: int) -> None:
    """Live connections keep their address; new ones are not translated."""
    lab = enforced.lab
    with (
        leaving(lab) as wire,
        Session(lab.client, ORIGIN1[family]) as session,
        UdpFlow(lab.client, ORIGIN1[family]) as flow,
    ):
        flow.ask()
        with renamed(enforced, "in0", "lan0"):
            before = packets(enforced)["renamed"]
            assert asked(lab, family) == ["silence", "silence"]
            assert packets(enforced)["renamed"] >= before + 2
            assert session.ask().address == flow.ask().address == leaves_from(LAX1, family)
            assert ping(lab.client, CLIENT2[family], CLIENT[family]).received == 1  # no egress IP needed
    assert not raw(wire)


def is_known_by_index(lab: Lab, name: str) -> bool:
    """Whether the table has the interface's index: the daemon adds it after a link has its name back."""
    table = lab.gw.run("nft", "list", "table", "inet", "enforcer").stdout
    by_index = re.findall(r'(?:iif|oif) "(\w+)"|set \w+_index \{[^}]*elements = \{([^}]*)\}', table)
    return any(name in one or f'"{name}"' in many for one, many in by_index)


@families
@pytest.mark.parametrize(("before", "after"), [("out0", "wan0"), ("in0", "lan0")])
def test_renamed_while_no_daemon_runs(enforced: LabGateway, family: int, before: str, after: str) -> None:
    """The map and the table's first rules match the link's index: new connections work as planned."""
    lab = enforced.lab
    wait_for(lambda: is_known_by_index(lab, before))
    enforced.kill()
    try:
        with leaving(lab) as wire:
            lab.gw.ip(f"link set {before} name {after}")
            assert asked(lab, family) == [leaves_from(LAX1, family)] * 2
        assert not raw(wire)
    finally:
        lab.gw.ip(f"link set {after} name {before}")
        enforced.start()
    assert asked(lab, family) == [leaves_from(LAX1, family)] * 2


@contextlib.contextmanager
def a_port(lab: Lab, name: str) -> Iterator[None]:
    """Make an interface a bridge's port: the kernel treats its packets as the bridge's."""
    lab.gw.ip("link add br9 type bridge", "link set br9 up", f"link set {name} master br9")
    try:
        yield
    finally:
        lab.gw.ip(f"link set {name} nomaster", "link del br9")


@families
@pytest.mark.parametrize("name", ["in0", "out0"])
def test_an_interface_that_becomes_a_port(enforced: LabGateway, family: int, name: str) -> None:
    lab, said = enforced.lab, enforced.said()
    assert asked(lab, family) == [leaves_from(LAX1, family)] * 2
    with leaving(lab) as wire:
        with a_port(lab, name):
            wait_for(lambda: f"{name} is a port of br9 now" in enforced.said().removeprefix(said))
            assert any(f"{name} is a port of br9 now" in line for line in look(enforced, warnings))
            before = packets(enforced)["taken"]
            assert asked(lab, family) == ["silence", "silence"]
            ping(lab.client, ORIGIN1[family], CLIENT[family])
            assert packets(enforced)["taken"] >= before + 3
            assert foretold(enforced, ORIGIN1[family], "tcp", 9000)["reason"] == "taken"
        wait_for(lambda: f"{name} is no port of br9 any more" in enforced.said().removeprefix(said))
        assert not look(enforced, warnings)
        wait_for(lambda: asked(lab, family) == [leaves_from(LAX1, family)] * 2)
    assert not raw(wire)


@families
def test_a_port_while_no_daemon_runs(enforced: LabGateway, family: int) -> None:
    """Neither the table nor the map knows the bridge: the egress program drops what arrives by it."""
    lab = enforced.lab
    assert asked(lab, family) == [leaves_from(LAX1, family)] * 2
    enforced.kill()
    try:
        with leaving(lab) as wire, a_port(lab, "in0"):
            before = packets(enforced)["leak"]
            assert asked(lab, family) == ["silence", "silence"]
            ping(lab.client, ORIGIN1[family], CLIENT[family])
            assert packets(enforced)["leak"] >= before + 3
        assert not raw(wire)
    finally:
        enforced.start()
    wait_for(lambda: asked(lab, family) == [leaves_from(LAX1, family)] * 2)


@families
def test_a_new_name_in_the_file(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with Session(lab.client, ORIGIN1[family]) as session:
        lab.gw.ip("link set out0 name wan0")
        try:
            wait_for(lambda: look(enforced, warnings) != [])
            said = enforced.said()
            enforced.reload(lab.config(interfaces={"inside": ["in0", "in1"], "outside": ["wan0"]}))
            assert not look(enforced, warnings)
            assert "has its name back" not in enforced.said().removeprefix(said)
            assert asked(lab, family) == [leaves_from(LAX1, family)] * 2
            assert session.ask().address == leaves_from(LAX1, family)
        finally:
            lab.gw.ip("link set wan0 name out0")
            enforced.reload(lab.config())
    assert asked(lab, family) == [leaves_from(LAX1, family)] * 2


@pytest.fixture(scope="module")
def two_uplinks(machine: None) -> Iterator[LabGateway]:
    with Lab(f"lab{os.getpid()}-two", outside=2) as lab, Services(lab), running(lab, sides(lab)) as gateway:
        yield gateway


def sides(lab: Lab, outside: str = "out0") -> Document:
    return lab.config(interfaces={"inside": ["in0", "in1"], "outside": [outside]}, policies=[])


def put_back(gateway: LabGateway) -> None:
    """Make the daemon restore a table that this removes."""
    said = gateway.said()
    gateway.lab.gw.run("nft", "delete", "table", "inet", "enforcer")
    wait_for(lambda: "restored: install nftables table" in gateway.said().removeprefix(said))
    # The answer follows the restoration; the daemon takes events during the write for its own.
    control.ask(Instance(gateway.lab.gw.cookie()).control_socket, "warnings")


def test_another_interface_in_a_renamed_ones_place(two_uplinks: LabGateway) -> None:
    """The second interface gets everything that the enforcer had put on the renamed one."""
    lab = two_uplinks.lab
    lab.gw.ip("link set out0 name old0")
    lab.net.ip(
        "route replace 203.0.113.0/24 dev gw1",
        "route replace 2001:db8::/44 via 2001:db8:fffe::1",
        "route replace 2001:db8:9::/64 dev gw1",
    )
    try:
        two_uplinks.reload(sides(lab, "out1"))
        for _ in range(2):
            for family in (4, 6):
                answer = tcp_ask(lab.client, ORIGIN2[family])
                assert answer.address in dedicated(family)
            assert f"{LAX1[4]}/32" in lab.gw.run("ip", "address", "show", "dev", "out1").stdout
            assert LAX1[4] not in lab.gw.run("ip", "address", "show", "dev", "old0").stdout
            assert all(row["available"] for row in egresses(two_uplinks).values() if row["location"] == "lax")
            put_back(two_uplinks)
        assert "has its name back" not in two_uplinks.said()
    finally:
        lab.gw.ip("link set old0 name out0")


@families
@pytest.mark.parametrize("shared", [SHARED, OURS], ids=["the host's", "ours"])
def test_a_link_that_is_made_again(enforced: LabGateway, family: int, shared: dict[int, str]) -> None:
    """The new link gets everything that the enforcer had put on the old one."""
    lab = enforced.lab
    enforced.reload(lab.config(shared={"ipv4": shared[4], "ipv6": shared[6]}))
    address = leaves_from(LAX1, family)
    assert asked(lab, family) == [address, address]
    lab.replug()
    wait_for(lambda: asked(lab, family) == [address, address], "the egress address", patience=5)
    # The daemon must notice the shared address, too.
    wait_for(lambda: foretold(enforced, PRIVATE[family], "tcp", 9000)["reason"] == "tunnel", patience=5)
    assert tcp_ask(lab.client, PRIVATE[family]).address == shared[family]
    assert not look(enforced, warnings)


@families
def test_what_is_taken_away_stays_away_when_links_change(enforced: LabGateway, family: int) -> None:
    """The daemon restores only what was lost with its link."""
    lab, column = enforced.lab, f"available_ipv{family}"
    there = {4: f"address del {LAX1[4]}/32 dev out0", 6: f"route del local {LAX1[6]} table local"}
    lab.gw.ip(there[family])
    try:
        wait_for(lambda: foretold(enforced, ORIGIN1[family], "tcp", 9000)["reason"] == "unavailable")
        lab.gw.ip("link set in1 down", "link set in1 up")
        lab.gw.ip("link add fresh0 type veth peer name fresh1", "link del fresh0")
        assert asked(lab, family) == ["refused", "prohibited"]
        assert not egresses(enforced)["lax-1"][column]
    finally:
        enforced.reload()
    assert asked(lab, family) == [leaves_from(LAX1, family)] * 2


@contextlib.contextmanager
def another(gateway: LabGateway, name: str) -> Iterator[None]:
    """Another link of that name appears, changes and disappears."""
    lab = gateway.lab
    lab.gw.ip(f"link add {name} type veth peer name peer0")
    try:
        put_back(gateway)
        yield
        lab.gw.ip(f"link set {name} up")
        put_back(gateway)
        assert not egresses(gateway)["lax-1"]["available_ipv4"]
    finally:
        lab.gw.ip("link del peer0")


@pytest.mark.parametrize("has_another", [False, True], ids=["its own", "another's"])
def test_what_is_taken_away_stays_away_when_names_change(enforced: LabGateway, has_another: bool) -> None:
    """A link that gets its name back is not a new link, even if another link had that name meanwhile."""
    lab = enforced.lab
    meanwhile = another(enforced, "out0") if has_another else contextlib.nullcontext()
    try:
        with renamed(enforced, "out0", "wan0"), meanwhile:
            lab.gw.ip(f"address del {LAX1[4]}/32 dev wan0")
            wait_for(lambda: not egresses(enforced)["lax-1"]["available_ipv4"])
        put_back(enforced)
        assert not egresses(enforced)["lax-1"]["available_ipv4"]
        assert asked(lab, 4) == ["refused", "prohibited"]
    finally:
        enforced.reload()
    assert asked(lab, 4) == [leaves_from(LAX1, 4)] * 2


@families
def test_a_shared_address_that_is_taken_away(with_ours: LabGateway, family: int) -> None:
    """An address that was deleted: refused as "shared-unavailable", not sent without an answer."""
    lab, other = with_ours.lab, 10 - family
    assert tcp_ask(lab.client, PRIVATE[family]).address == OURS[family]
    lab.gw.ip(f"address del {OURS[family]} dev {'out0' if family == 4 else 'lo'}")
    wait_for(lambda: foretold(with_ours, PRIVATE[family], "tcp", 9000)["reason"] == "shared-unavailable")
    assert [line for line in look(with_ours, warnings) if OURS[family] in line]
    before = packets(with_ours)["shared-unavailable"]
    with pytest.raises(ConnectionRefusedError):
        tcp_ask(lab.client, PRIVATE[family])
    assert packets(with_ours)["shared-unavailable"] > before
    assert tcp_ask(lab.client, PRIVATE[other]).address == OURS[other]
    with_ours.reload()
    assert tcp_ask(lab.client, PRIVATE[family]).address == OURS[family]
    assert not look(with_ours, warnings)


@families
def test_a_shared_address_of_ours_is_found_by_neighbours(with_ours: LabGateway, family: int) -> None:
    lab = with_ours.lab
    lab.net.ip("neigh flush dev gw0")
    assert ping(lab.net, OURS[family]).received == 1


@families
def test_a_shared_address_that_another_machine_takes_over(with_ours: LabGateway, family: int) -> None:
    """The gateway does not answer for an address that was moved by hand, not even to DAD."""
    lab, address = with_ours.lab, OURS[family]
    lab.gw.ip(f"address del {address} dev {'out0' if family == 4 else 'lo'}")
    wait_for(lambda: foretold(with_ours, PRIVATE[family], "tcp", 9000)["reason"] == "shared-unavailable")
    before = packets(with_ours)["neighbour"]
    lab.net.sysctl("net.ipv6.conf.gw0.accept_dad", 1)
    lab.net.ip(f"address add {address} dev gw0")

    def is_settled() -> bool:
        shown = lab.net.run("ip", "address", "show", "dev", "gw0", "to", address).stdout
        assert "dadfailed" not in shown
        return "tentative" not in shown

    try:
        wait_for(is_settled, "the other machine's address")
        assert ping(lab.gw, address).received == 1
        assert packets(with_ours)["neighbour"] == before
    finally:
        lab.net.ip(f"address del {address} dev gw0")
        lab.net.sysctl("net.ipv6.conf.gw0.accept_dad", 0)


@families
@pytest.mark.parametrize("how", ["add", "replace"])
def test_the_hosts_own_address_comes_later(enforced: LabGateway, family: int, how: str) -> None:
    """At boot the enforcer may start first. Its address does not prevent the host's, which `down` leaves."""
    lab = enforced.lab
    own = {4: "198.51.100.1/24", 6: "2001:db8:ffff::1/64"}
    router = {4: "198.51.100.254", 6: "2001:db8:ffff::fe"}[family]
    enforced.down()
    lab.gw.ip(f"address del {own[family]} dev out0")
    enforced.start()
    lab.gw.ip(
        f"address {how} {own[family]} dev out0{' nodad' if family == 6 else ''}",
        f"route replace default via {router}",
    )
    assert asked(lab, family) == [leaves_from(LAX1, family)] * 2
    assert tcp_ask(lab.client, PRIVATE[family]).address == SHARED[family]
    enforced.down()
    left = lab.gw.run("ip", "-o", "address", "show", "dev", "out0", "scope", "global").stdout
    assert {line.split()[3] for line in left.splitlines()} == set(own.values())
    assert "allmulti 0" in lab.gw.run("ip", "-details", "link", "show", "dev", "out0").stdout
    enforced.start()


@families
@pytest.mark.parametrize("lower", ["out0", "in0"])
def test_an_inside_interface_on_top_of_another_one(enforced: LabGateway, family: int, lower: str) -> None:
    """The frames of a macvlan pass the lower interface's programs, which ignore them."""
    with on_top(enforced, enforced.lab.config(), lower, "macvlan"):
        passes(enforced, family)
        assert asked(enforced.lab, family) == [leaves_from(LAX1, family)] * 2
