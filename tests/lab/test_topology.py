"""Tests of the lab itself, on which all other tests rely; the gateway is plain nft here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import topology
from lab.capture import Capture
from lab.clients import (
    IcmpError,
    Session,
    UdpFlow,
    curl,
    dig,
    fate,
    ping,
    quic_ask,
    ssh_banner,
    tcp_ask,
    ttl_probe,
    udp_ask,
    url,
)
from lab.load import Hammer, Holders, client_sources
from lab.netns import LabError, Namespace, processes_in
from lab.program import Program, module
from lab.servers import logged
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, GATEWAY, ORIGIN1, ORIGIN2, PRIVATE, RESOLVER, Lab

EGRESS = {4: "203.0.113.10", 6: "2001:db8:1::5"}
MASQUERADE = f"""
table inet plain {{
  chain translate {{
    type nat hook postrouting priority 100
    oifname "out*" ip saddr 10.0.0.0/8 snat to {EGRESS[4]} fully-random
    oifname "out*" ip6 saddr fd00::/16 snat to {EGRESS[6]} fully-random
  }}
}}
"""

families = pytest.mark.parametrize("family", [4, 6])


def translate(lab: Lab) -> None:
    """A stand-in for the enforcer, which translates everything to one address."""
    lab.gw.ip(f"addr add {EGRESS[4]}/32 dev out0", "route add local 2001:db8:1::/64 dev lo")
    lab.gw.run("nft", "-f", "-", text=MASQUERADE)


@pytest.fixture(scope="module", autouse=True)
def plain_gateway(lab: Lab) -> None:
    translate(lab)


@families
def test_every_server_is_reached_and_sees_the_egress_address(
    lab: Lab, services: Services, family: int
) -> None:
    for origin in (ORIGIN1, ORIGIN2, PRIVATE):
        asks: list[Callable[[Namespace, str], object]] = [tcp_ask, udp_ask, quic_ask]
        for ask in asks:
            seen = ask(lab.client, origin[family])
            assert getattr(seen, "address") == EGRESS[family], ask  # noqa: B009
        for port, scheme in ((80, "http"), (8443, "https")):
            status, body = curl(lab.client, url(origin[family], port, scheme))
            assert (status, body.split()[0]) == (200, EGRESS[family])
    (seen,) = logged(services.nginx["origin1"].seen, lambda: curl(lab.client, url(ORIGIN1[family])))
    assert seen.address == EGRESS[family]
    assert services.reporter["origin2"].seen("udp")[-1].address == EGRESS[family]


@families
def test_a_client_has_several_addresses_and_answers_at_each(
    lab: Lab, services: Services, family: int
) -> None:
    for source in client_sources(family):
        assert udp_ask(lab.client, CLIENT2[family], source=source).address == source
        assert tcp_ask(lab.client, CLIENT2[family], source=source).address == source
    assert tcp_ask(lab.client, CLIENT2[family]).address == CLIENT[family]
    assert len(client_sources(family)) == 8


@families
@pytest.mark.parametrize("tcp", [False, True])
def test_resolvers_know_the_lab_and_log_who_asks(
    lab: Lab, services: Services, family: int, tcp: bool
) -> None:
    assert dig(lab.client, RESOLVER[family], "bank.lab", "AAAA", tcp=tcp) == [ORIGIN1[6]]
    assert services.resolver.queries()[-1] == (EGRESS[family], "bank.lab", "AAAA")
    assert dig(lab.client, GATEWAY[family], "shop.lab", tcp=tcp) == [ORIGIN2[4]]
    assert services.gateway_resolver.queries()[-1] == (CLIENT[family], "shop.lab", "A")


@families
def test_sshd_of_the_gateway_sees_the_client(lab: Lab, services: Services, family: int) -> None:
    assert ssh_banner(lab.client, GATEWAY[family]).startswith("SSH-2.0-OpenSSH")
    assert services.sshd.seen()[-1].address == CLIENT[family]


@families
def test_echo_requests_are_noticed(lab: Lab, services: Services, family: int) -> None:
    reporter = services.reporter["origin1"]
    seen = logged(lambda: reporter.seen("icmp"), lambda: ping(lab.client, ORIGIN1[family], count=3), 3)
    assert [echo.address for echo in seen] == [EGRESS[family]] * 3
    assert not ping(lab.client, "198.18.1.99" if family == 4 else "2001:db8:a1::99")


@families
def test_ttl_probes_walk_the_way(lab: Lab, services: Services, family: int) -> None:
    exceeded = (11, 0) if family == 4 else (3, 0)
    closed = (3, 3) if family == 4 else (1, 4)
    router = "198.51.100.254" if family == 4 else "2001:db8:ffff::fe"
    hops = [ttl_probe(lab.client, ORIGIN1[family], ttl) for ttl in (1, 2, 3)]
    assert hops == [
        IcmpError(GATEWAY[family], *exceeded),
        IcmpError(router, *exceeded),
        IcmpError(ORIGIN1[family], *closed),
    ]


@families
def test_a_small_mtu_is_reported_to_the_sender(lab: Lab, services: Services, family: int) -> None:
    lab.net.ip("link set origin2 mtu 1300")
    try:
        with UdpFlow(lab.client, ORIGIN2[family], dont_fragment=True) as flow:
            with pytest.raises(OSError, match="Message too long"):
                flow.ask(bytes(1400))
            error = flow.error()
            assert error is not None
            assert error.mtu == 1300
    finally:
        lab.net.ip("link set origin2 mtu 1500")
        for version in ("-4", "-6"):
            lab.client.run("ip", version, "route", "flush", "cache")


@families
def test_a_session_stays_and_fates_have_names(lab: Lab, services: Services, family: int) -> None:
    with Session(lab.client, ORIGIN1[family], source=CLIENT[family]) as session:
        assert session.ask() == session.seen == session.ask()
    for ask in (tcp_ask, udp_ask):
        with pytest.raises(ConnectionRefusedError) as refusal:
            ask(lab.client, ORIGIN1[family], 9)
        assert fate(refusal.value) == "refused"


@families
def test_a_capture_shows_who_sent(lab: Lab, services: Services, family: int) -> None:
    with Capture(lab.net, "gw0", lab.directory, direction="in") as capture:
        tcp_ask(lab.client, ORIGIN1[family])
        udp_ask(lab.gw, ORIGIN1[family])
    assert set(capture.sources()) == {EGRESS[family], topology.SHARED[family]}
    assert len(capture.packets()) == sum(capture.sources().values())


def test_iperf_and_offloads(lab: Lab, services: Services) -> None:
    for on in (False, True):
        lab.client.offload("eth0", on)
        result = services.iperf["origin1"].measure(lab.client, ORIGIN1[4])
        assert result["end"]["sum_received"]["bytes"] > 10_000_000


@families
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_hammer(lab: Lab, family: int, protocol: str) -> None:
    number = 2000
    sources = client_sources(family)
    with (
        Holders(lab.origin1, capacity=number) as holders,
        Hammer(lab.client, ORIGIN1[family], sources=sources, protocol=protocol, capacity=number) as hammer,
    ):
        opened = hammer.open(number)
        assert (opened.opened, opened.failed) == (number, {})
        assert holders.addresses(protocol) == {EGRESS[family]: number}
        assert len(set(holders.peers(protocol))) == number
        assert hammer.probe().answered == number
        assert hammer.close(300) == 300
        assert hammer.reset(200) == 200
        assert hammer.count() == number - 500
        if protocol == "tcp":
            wait_for(lambda: holders.count().tcp == number - 500)
            assert holders.close(100) == holders.reset(100) == 100
            wait_for(lambda: hammer.count() == number - 700)
        assert hammer.open(10).opened == 10


def test_hammer_counts_refusals(lab: Lab) -> None:
    with Hammer(lab.client, ORIGIN1[4], 9, sources=client_sources(4), capacity=10) as hammer:
        assert hammer.open(10).failed == {"ECONNREFUSED": 10}


def test_an_untranslated_client_gets_no_answer_from_the_internet(lab: Lab, services: Services) -> None:
    lab.gw.run("nft", "delete", "table", "inet", "plain")
    try:
        with pytest.raises(OSError, match=r"timed out|unreachable"):
            tcp_ask(lab.client, ORIGIN1[4], timeout=0.3)
    finally:
        lab.gw.run("nft", "-f", "-", text=MASQUERADE)


def test_programs_that_fail_say_why(lab: Lab) -> None:
    broken = Program(
        lab.client, ["sh", "-c", "echo no luck; exit 3"], lab.directory, "broken", ready=lambda: False
    )
    with pytest.raises(LabError, match="no luck"):
        broken.start()


@pytest.fixture
def own_lab(machine: None) -> Iterator[Lab]:
    lab = Lab(f"lab{os.getpid()}-own", outside=2)
    yield lab
    lab.down()


@families
def test_two_outside_interfaces(own_lab: Lab, family: int) -> None:
    lab = own_lab.up()
    translate(lab)
    with Capture(lab.net, "gw1", lab.directory, direction="in") as capture:
        assert ping(lab.client, ORIGIN1[family])
        assert ping(lab.client, ORIGIN2[family])
    assert capture.sources() == {EGRESS[family]: 1}


def test_it_builds_twice_and_leaves_nothing(own_lab: Lab) -> None:
    own_lab.up()
    sleeper = Program(own_lab.client, ["sleep", "60"], own_lab.directory, "sleeper").start()
    wait_for(lambda: sleeper.pid in processes_in([own_lab.client]))
    own_lab.up()
    assert not sleeper.alive
    pins = Path(f"/run/enforcer/{own_lab.gw.cookie():x}")
    pins.mkdir(parents=True)
    Lab(own_lab.prefix).down()
    assert not pins.exists()
    assert not own_lab.directory.exists()
    assert not any(namespace.exists for namespace in own_lab.namespaces.values())
    own_lab.down()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_lab_is_taken_away(own_lab: Lab, number: signal.Signals) -> None:
    script = (
        "import time; from lab.topology import Lab; from lab.program import Program\n"
        f"with Lab({own_lab.prefix!r}) as lab:\n"
        "    Program(lab.gw, ['sleep', '60'], lab.directory, 'sleeper').start()\n"
        "    print('up', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        wait_for(lambda: len(processes_in([own_lab.gw])) == 1)
        process.send_signal(number)
        assert process.wait(10) != 0
    assert not any(namespace.exists for namespace in own_lab.namespaces.values())


def test_a_killed_run_leaves_a_lab_that_is_found(own_lab: Lab) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    lab = Lab(f"labx{gone.pid}-0").up()
    try:
        assert topology.stale_labs("labx") == [lab.prefix]
        assert own_lab.prefix not in topology.stale_labs("lab")
    finally:
        lab.down()


def test_the_standing_lab(own_lab: Lab) -> None:
    command = module("__main__", "up", "--bare", "--prefix", own_lab.prefix)
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"nsenter --net={own_lab.client.path}" in said
    assert tcp_ask(own_lab.client, CLIENT2[4]).address == CLIENT[4]
    subprocess.run(module("__main__", "down", "--prefix", own_lab.prefix), check=True)
    assert not own_lab.gw.exists


def wait_for(condition: Callable[[], bool], patience: float = 3.0) -> None:
    """Wait until the condition is true; AssertionError after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it never became so"
        time.sleep(0.01)
