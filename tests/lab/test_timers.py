"""Tests of conntrack's timers: the RFCs' values or the file's, kept in force and restored at the end."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from snapshot import difference, snapshot
from truth import families, look, running, wait_for
from versions import program_copy, use_copy

from enforcer.config.models import Timers
from enforcer.gateway.availability import GRACE, TIMEOUT_NAMES
from enforcer.gateway.timers import REFRESH, sysctls
from lab.clients import UdpFlow, family_of, ping
from lab.gateway import LabGateway
from lab.load import Hammer, Holders
from lab.topology import CLIENT, ORIGIN1, Lab

DEFAULTS = Timers().model_dump()
PORT = 7000
CONNTRACK = "net.netfilter.nf_conntrack_"
# conntrack counts whole seconds, and some pass before the test reads a timer.
PASSED = 10


@pytest.fixture(scope="module")
def enforced(lab: Lab) -> Iterator[LabGateway]:
    with running(lab) as gateway:
        yield gateway


def in_force(gateway: LabGateway, timers: dict[str, int]) -> dict[str, str]:
    """The values in force of the sysctls for these timers."""

    def read() -> dict[str, str]:
        return {name: (Path("/proc/sys") / name).read_text().strip() for name in sysctls(timers)}

    return gateway.lab.gw.call(read)


def idle_times(gateway: LabGateway) -> dict[str, int]:
    """The map `timeouts`: the seconds that a flow may be idle, by conntrack's names."""

    def read(source: Any) -> dict[str, int]:
        _, rows = source.maps.timeouts.items()
        return {name: int(row) // 10**9 for name, row in zip(TIMEOUT_NAMES.values(), rows, strict=True)}

    return look(gateway, read)


def expected(timers: dict[str, int]) -> dict[str, int]:
    """The map's expected content for the file's timers."""
    found = {"tcp_syn_sent2": 120 + int(GRACE)}  # conntrack has no setting for it
    for path, value in sysctls(timers).items():
        name = path.rpartition("nf_conntrack_")[2]
        protocol, _, state = name.partition("_timeout")
        found[protocol + state] = int(value) + int(GRACE)
    return {name: found[name] for name in TIMEOUT_NAMES.values()}


def left(lab: Lab, family: int, protocol: str, state: str = "") -> int:
    """The seconds until conntrack forgets the newest connection in this state."""
    said = lab.gw.run("conntrack", "-L", "-f", f"ipv{family}", "-p", protocol).stdout
    pattern = rf"^{protocol}\s+\d+ (\d+) {state}\b" if state else rf"^{protocol}\s+\d+ (\d+) "
    return max(int(seconds) for seconds in re.findall(pattern, said, re.MULTILINE))


def about(seconds: int) -> Any:
    """A timer that started a moment ago."""
    return pytest.approx(seconds - PASSED / 2, abs=PASSED / 2)


@pytest.mark.rfc4787_req5c
@families
def test_rfc4787_req5_udp_mappings_live_for_five_minutes(enforced: LabGateway, family: int) -> None:
    with (
        Holders(enforced.lab.origin1, PORT, capacity=10),
        UdpFlow(enforced.lab.client, ORIGIN1[family], PORT) as flow,
    ):
        flow.socket.send(b"?")
        assert flow.socket.recv(16) == b"?"
        assert left(enforced.lab, family, "udp") == about(300 + REFRESH)


@families
def test_rfc5382_req5_connections_live_for_two_hours_and_four_minutes(
    enforced: LabGateway, family: int
) -> None:
    """Covers half-closed connections, too: the other direction may still send data."""
    lab = enforced.lab
    with (
        Holders(lab.origin1, PORT, capacity=10) as holders,
        Hammer(lab.client, ORIGIN1[family], PORT, sources=[CLIENT[family]], capacity=10) as hammer,
    ):
        assert hammer.open(2).opened == 2
        assert left(lab, family, "tcp", "ESTABLISHED") == about(7440 + REFRESH)
        assert holders.close(1) == 1
        wait_for(lambda: "CLOSE_WAIT" in lab.gw.run("conntrack", "-L", "-f", f"ipv{family}").stdout)
        assert left(lab, family, "tcp", "CLOSE_WAIT") == about(7440 + REFRESH)


@pytest.mark.rfc7857_2_1
@families
def test_rfc5382_req5_connections_that_open_live_for_four_minutes(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    nobody = {4: "198.18.1.99", 6: "2001:db8:a1::99"}[family]
    with closing(lab.client.socket(family_of(nobody), socket.SOCK_STREAM)) as attempt:
        attempt.setblocking(False)
        attempt.connect_ex((nobody, PORT))
        wait_for(lambda: "SYN_SENT" in lab.gw.run("conntrack", "-L", "-f", f"ipv{family}").stdout)
        assert left(lab, family, "tcp", "SYN_SENT") == about(240)


@families
def test_rfc5508_req2_queries_live_for_a_minute(enforced: LabGateway, family: int) -> None:
    assert ping(enforced.lab.client, ORIGIN1[family])
    assert left(enforced.lab, family, "icmp" if family == 4 else "icmpv6") == about(60)


@families
def test_rfc7857_2_2_after_a_reset_four_minutes(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with (
        Holders(lab.origin1, PORT, capacity=10) as holders,
        Hammer(lab.client, ORIGIN1[family], PORT, sources=[CLIENT[family]], capacity=10) as hammer,
    ):
        assert hammer.open(1).opened == 1
        assert holders.reset(1) == 1
        wait_for(lambda: hammer.count() == 0)
        assert left(lab, family, "tcp", "CLOSE") == about(240)


@families
def test_closed_connections_hold_their_port_for_a_minute(enforced: LabGateway, family: int) -> None:
    lab = enforced.lab
    with (
        Holders(lab.origin1, PORT, capacity=10) as holders,
        Hammer(lab.client, ORIGIN1[family], PORT, sources=[CLIENT[family]], capacity=10) as hammer,
    ):
        assert hammer.open(1).opened == 1
        assert hammer.close(1) == 1
        wait_for(lambda: holders.count().tcp == 0)
        wait_for(lambda: "TIME_WAIT" in lab.gw.run("conntrack", "-L", "-f", f"ipv{family}").stdout)
        assert left(lab, family, "tcp", "TIME_WAIT") == about(60)


@pytest.mark.rfc4787_req5b
@pytest.mark.rfc5382_req5a
@pytest.mark.rfc5508_req2a
@pytest.mark.rfc7857_2_1
def test_the_files_timers_are_conntracks_and_ours(enforced: LabGateway) -> None:
    assert in_force(enforced, DEFAULTS) == sysctls(DEFAULTS)
    assert idle_times(enforced) == expected(DEFAULTS)
    timers = {name: seconds + 60 * number for number, (name, seconds) in enumerate(DEFAULTS.items(), 1)}
    try:
        said = enforced.reload(enforced.lab.config(timers=timers))
        assert f"set {CONNTRACK}udp_timeout = {timers['udp'] + REFRESH}" in said.splitlines()
        assert in_force(enforced, timers) == sysctls(timers)
        assert idle_times(enforced) == expected(timers)
        one = DEFAULTS | {"udp": 120}
        said = enforced.reload(enforced.lab.config(timers={"udp": 120}))
        assert in_force(enforced, one) == sysctls(one)
        assert idle_times(enforced) == expected(one)
    finally:
        enforced.reload(enforced.lab.config())
    assert in_force(enforced, DEFAULTS) == sysctls(DEFAULTS)


@pytest.mark.rfc4787_req5
@pytest.mark.rfc5382_req5
@pytest.mark.rfc5508_req2
def test_timers_below_the_rfcs_minima_are_refused_with_their_line(enforced: LabGateway) -> None:
    timers = {"tcp_established": 7439, "tcp_transitory": 239, "udp": 119, "icmp": 59}
    enforced.write(enforced.lab.config(timers=timers))
    lines = enforced.config.read_text().splitlines()
    try:
        for command in ("check", "reload"):
            refused = enforced.run(command, check=False)
            assert refused.returncode == 2
            for name, seconds in timers.items():
                # `proxy` has a key of the same name on an earlier line.
                line = max(number for number, text in enumerate(lines, 1) if f"{name}:" in text)
                (said,) = [text for text in refused.stderr.splitlines() if f"timers.{name}:" in text]
                assert said.startswith(f"{enforced.config}:{line}:")
                assert f"{seconds} is too short; expected {seconds + 1:,} seconds at least (RFC " in said
        assert in_force(enforced, DEFAULTS) == sysctls(DEFAULTS)
    finally:
        enforced.reload(enforced.lab.config())


def test_a_timer_that_somebody_changed_is_put_back(enforced: LabGateway) -> None:
    """The daemon restores it and the map's idle times at the next event at the latest."""
    gw = enforced.lab.gw
    said = len(enforced.said())
    gw.sysctls({f"{CONNTRACK}udp_timeout": 10, f"{CONNTRACK}tcp_be_liberal": 0})
    gw.ip("addr add 192.0.2.1/32 dev lo", "addr del 192.0.2.1/32 dev lo")
    wait_for(lambda: in_force(enforced, DEFAULTS) == sysctls(DEFAULTS), "the timer put back")
    wait_for(lambda: idle_times(enforced) == expected(DEFAULTS), "the idle times put back")
    for line in (f"{CONNTRACK}udp_timeout = 305", f"{CONNTRACK}tcp_be_liberal = 1"):
        assert f"restored: set {line}" in enforced.said()[said:]


def often(bpf: Path) -> None:
    """A version that audits the settings every second instead of every minute."""
    reconciler = bpf.parent / "daemon" / "reconciler.py"
    text = reconciler.read_text()
    assert text.count("_AUDIT_EVERY = 60.0") == 1
    reconciler.write_text(text.replace("_AUDIT_EVERY = 60.0", "_AUDIT_EVERY = 1.0"))


@pytest.fixture
def apart(machine: None, tmp_path: Path) -> Iterator[LabGateway]:
    """A gateway in a lab of its own, not started."""
    with Lab(f"lab-timers-{tmp_path.name[-12:]}") as lab:
        gateway = LabGateway(lab)
        yield gateway
        gateway.stop()


def test_no_event_is_needed_for_that(apart: LabGateway, tmp_path: Path) -> None:
    use_copy(apart, program_copy(tmp_path, often))
    apart.start()
    apart.lab.gw.sysctls({f"{CONNTRACK}icmp_timeout": 10})
    wait_for(lambda: in_force(apart, DEFAULTS) == sysctls(DEFAULTS), "the timer put back")
    assert f"restored: set {CONNTRACK}icmp_timeout = 60" in apart.said()


@pytest.mark.parametrize("end", ["down", "kill -9"])
def test_down_puts_timers_back_as_they_were_found(apart: LabGateway, end: str) -> None:
    """Neither the file's changes nor those of other software matter."""
    gw = apart.lab.gw
    gw.sysctls({f"{CONNTRACK}udp_timeout": 77, f"{CONNTRACK}tcp_timeout_fin_wait": 7445})
    before = snapshot(gw)
    apart.start()
    assert in_force(apart, DEFAULTS) == sysctls(DEFAULTS)
    apart.reload(apart.lab.config(timers={"udp": 400, "tcp_time_wait": 90, "tcp_established": 8000}))
    gw.sysctls({f"{CONNTRACK}udp_timeout": 11})
    apart.reload()
    assert in_force(apart, DEFAULTS)["net/netfilter/nf_conntrack_udp_timeout"] == str(400 + REFRESH)
    if end == "kill -9":
        apart.kill()
        gw.sysctls({f"{CONNTRACK}udp_timeout": 12})
    said = apart.run("down").stdout
    assert f"{CONNTRACK}udp_timeout = 77" in said.splitlines()
    assert difference(before, snapshot(gw)) == ""
