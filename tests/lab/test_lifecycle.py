"""Tests of start, reload, restart, crash, upgrade and end, with connections that live through all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from sabotage import crowd, sabotage
from snapshot import difference, snapshot
from versions import program_copy, use_copy

from lab import topology
from lab.clients import Session, UdpFlow, fate, ping, tcp_ask, udp_ask
from lab.configuration import LAX1, LAX2, Document, added, changed, without
from lab.gateway import LabGateway
from lab.netns import LabError
from lab.program import Program
from lab.services import Services
from lab.topology import ORIGIN1, ORIGIN2, SHARED, Lab

Egresses = tuple[dict[int, str], ...]

families = pytest.mark.parametrize("family", [4, 6])

LAX3 = {
    "name": "lax-3",
    "location": "lax",
    "ipv4": "203.0.113.12",
    "ipv6": "2001:db8:9::/64",
    "on_link": True,
}
NEAREST = (LAX1, LAX2)
ANY_PACKET = "protocol ip u32 match u32 0 0 classid 1:1"
OTHERS = "add table inet others; add chain inet others forward { type filter hook forward priority 0; }"


def leaves_from(address: str, *egresses: dict[int, str]) -> bool:
    """Whether the address belongs to one of these egress IPs."""
    found = ip_address(address)
    return any(found in ip_network(egress[found.version]) for egress in egresses)


def eventually(check: Callable[[], bool], patience: float = 20.0) -> bool:
    """Whether ``check`` becomes true within ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class Live:
    """Open TCP and UDP connections and transfers: each must keep its address and port."""

    def __init__(self, lab: Lab):
        self._open = contextlib.ExitStack()
        client = lab.client
        self.flows: list[Session | UdpFlow] = []
        for family in (4, 6):
            for origin in (ORIGIN1[family], ORIGIN2[family]):
                self.flows.append(self._open.enter_context(Session(client, origin)))
                self.flows.append(self._open.enter_context(UdpFlow(client, origin)))
        self.seen = [flow.ask() for flow in self.flows]
        # Continuous transfers, in flight during every step.
        self.transfers = [
            Program(
                client,
                ["iperf3", "-c", target, "-t", "120", "-b", "2M", "-i", "0.2", "--forceflush"],
                lab.directory,
                f"iperf-{target}",
                stop_signal=signal.SIGKILL,
            ).start()
            for target in (ORIGIN1[4], ORIGIN2[6])
        ]
        self.check("opened")

    def check(self, after: str) -> None:
        """Assert that every connection keeps its address and port and that the transfers go on."""
        for flow, before in zip(self.flows, self.seen, strict=True):
            assert flow.ask() == before, f"after: {after}"
        for transfer in self.transfers:
            said = len(transfer.said())
            assert eventually(lambda said=said, transfer=transfer: moved(transfer.said()[said:])), after
            assert transfer.alive, f"after: {after}: {transfer.said()[-500:]}"

    def close(self) -> None:
        for transfer in self.transfers:
            transfer.stop()
        self._open.close()


def moved(said: str) -> bool:
    """Whether iperf3 reports an interval in which the network took bytes."""
    rows = [line.split() for line in said.splitlines() if "/sec" in line]
    return any(float(row[row.index("sec") + 1]) > 0 for row in rows if "sec" in row)


@contextlib.contextmanager
def living(lab: Lab) -> Iterator[Live]:
    live = Live(lab)
    try:
        yield live
    finally:
        live.close()


def otherwise(config: Document) -> Document:
    """Policies that send all traffic by other egress IPs than the lab's."""
    moved = changed(config, "policies", "bank", egress={"ipv4": LAX2[4], "ipv6": LAX2[6]})
    return added(moved, "policies", {"name": "rest", "precedence": 1000, "egress": "default"})


def check_new(
    lab: Lab, family: int, first: tuple[dict[int, str], ...], second: tuple[dict[int, str], ...]
) -> None:
    """New connections to origin1 and origin2 leave from one of ``first`` and ``second``."""
    for origin, expected in ((ORIGIN1, first), (ORIGIN2, second)):
        for ask in (tcp_ask, udp_ask):
            seen = ask(lab.client, origin[family])
            assert leaves_from(seen.address, *expected), (seen, expected)


@pytest.mark.rfc4787_req11
def test_connections_keep_their_address_through_everything(
    lab: Lab, services: Services, gateway: LabGateway, tmp_path: Path
) -> None:
    gateway.start()
    config = lab.config()
    with living(lab) as live:
        assert gateway.reload() == "nothing changed\n"
        live.check("reload of an unchanged file")

        gateway.reload(otherwise(config))
        live.check("reload with policies that would decide otherwise")
        for family in (4, 6):
            check_new(lab, family, (LAX2,), (SHARED,))

        grown = added(otherwise(config), "egress_ips", LAX3)
        assert "203.0.113.12" in gateway.reload(grown)
        live.check("an egress IP more")
        gateway.reload(otherwise(config))
        live.check("an egress IP less")

        sizes = config | {"limits": {"connections_per_origin": 40000, "flows": 4096, "origins": 2048}}
        gateway.reload(sizes)
        live.check("tables of another size")
        assert {row["egress"] for row in gateway.json("flows")} >= {"lax-1"}

        gateway.stop()
        live.check("the daemon's end")
        gateway.start()
        live.check("restart")

        gateway.kill()
        live.check("kill -9")
        for family in (4, 6):
            check_new(lab, family, (LAX1,), NEAREST)
        gateway.start()
        live.check("restart after kill -9")

        before = gateway.json("status")["versions"]["programs"]
        gateway.stop()
        other = program_copy(
            tmp_path / "comment", lambda bpf: append(bpf / "metrics.h", "/* another version */")
        )
        use_copy(gateway, other)
        gateway.start()
        assert "upgrade BPF programs" in gateway.said()
        live.check("upgrade of the programs")
        after = gateway.json("status")["versions"]["programs"]
        assert after != before

        gateway.stop()
        wider = program_copy(tmp_path / "layout", widen)
        gateway.enforcer = gateway.enforcer[4:]
        use_copy(gateway, wider)
        total = sum(row["total"] for row in gateway.json("origins"))
        gateway.start()
        live.check("upgrade to another layout of the maps")
        rows = gateway.json("origins")
        assert sum(row["total"] for row in rows) >= total
        assert sum(row["active"] for row in rows) == len(gateway.json("flows")) - sum(
            row["closed"] for row in rows
        )
        for family in (4, 6):
            check_new(lab, family, (LAX1,), NEAREST)


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text + "\n")


def widen(bpf: Path) -> None:
    """Another layout of the flow map: an additional field in the middle of the structure."""
    maps = bpf / "maps.h"
    old = "\tu64 created;\n"
    assert maps.read_text().count(old) == 1
    maps.write_text(maps.read_text().replace(old, "\tu64 added;\n" + old))


@families
def test_everything_is_enforced_while_the_daemon_is_dead(
    lab: Lab, services: Services, gateway: LabGateway, family: int
) -> None:
    gateway.write(lab.config(limits={"connections_per_origin": 3}))
    gateway.start()
    with contextlib.ExitStack() as held:
        held.enter_context(Session(lab.client, ORIGIN1[family]))
        gateway.kill()
        status = gateway.json("status")
        assert (status["state"], status["daemon_pid"]) == ("unattended", None)
        second = held.enter_context(Session(lab.client, ORIGIN1[family]))
        third = held.enter_context(Session(lab.client, ORIGIN1[family]))
        assert leaves_from(second.seen.address, LAX1)
        with pytest.raises(ConnectionRefusedError):
            Session(lab.client, ORIGIN1[family])
        third.close()
        # A connection ends when the origin has closed its side, too.
        assert eventually(lambda: gateway.json("origins")[0]["active"] == 2)
        assert leaves_from(tcp_ask(lab.client, ORIGIN1[family]).address, LAX1)
        assert fate_of(lambda: tcp_ask(lab.client, ORIGIN2[family], 8082)) == "refused"
        assert leaves_from(tcp_ask(lab.client, ORIGIN2[family]).address, *NEAREST)
        assert ping(lab.client, ORIGIN1[family])
        assert gateway.json("origins")[0]["refused"] == 1


def fate_of(attempt: Callable[[], object]) -> str:
    """The result of an attempt in one word; "answered" if it succeeds."""
    try:
        attempt()
    except OSError as error:
        return fate(error)
    return "answered"


# --- down


@pytest.fixture
def bare(machine: None) -> Iterator[Lab]:
    """A lab of its own without servers, for tests that compare the gateway's complete state."""
    with Lab(f"lab{os.getpid()}-bare") as built:
        yield built


def traffic_control(lab: Lab, command: str) -> None:
    """One command of tc(8) on the gateway."""
    lab.gw.run("tc", *command.split())


def prepare(lab: Lab, kind: str) -> None:
    """Give the gateway this kind of state from before the enforcer."""
    forwarding = int(kind != "off")
    lab.gw.sysctls({"net.ipv4.ip_forward": forwarding, "net.ipv6.conf.all.forwarding": forwarding})
    if kind == "lived-in":
        # The enforcer would set each of these itself, or change it as a side effect.
        lab.gw.sysctls(
            {
                "net.ipv4.ip_forward": 0,
                "net.ipv4.conf.in1.forwarding": 1,
                "net.ipv6.conf.all.forwarding": 0,
                "net.ipv6.conf.out0.forwarding": 1,
                "net.ipv4.conf.all.accept_redirects": 0,
                "net.ipv6.conf.out0.accept_ra": 1,
            }
        )
        lab.gw.ip(
            f"addr add {LAX1[4]}/32 dev out0",
            f"route add local {LAX1[6]} dev lo",
            "link set out0 allmulticast on",
        )
        traffic_control(lab, "qdisc add dev in0 clsact")
        traffic_control(lab, f"filter add dev in0 ingress prio 5 {ANY_PACKET}")
        lab.gw.run("nft", OTHERS)


@pytest.mark.parametrize("kind", ["off", "on", "lived-in"])
def test_down_leaves_the_machine_as_it_was_found(bare: Lab, kind: str) -> None:
    prepare(bare, kind)
    before = snapshot(bare.gw)
    gateway = LabGateway(bare, added(bare.config(), "egress_ips", LAX3))
    gateway.start()
    for family in (4, 6):
        ping(bare.client, ORIGIN1[family])
    assert "ALLMULTI" in bare.gw.run("ip", "link", "show", "out0").stdout
    if kind == "on":
        gateway.kill()
        said = gateway.run("down").stdout
    else:
        said = gateway.run("down").stdout
        assert f"ended the daemon (pid {gateway.pid})" in said
        assert gateway.process is not None
        assert gateway.process.wait(10) == 0
    assert "removed nftables table inet enforcer" in said
    assert difference(before, snapshot(bare.gw)) == ""
    again = gateway.run("down")
    assert (again.returncode, again.stderr) == (0, "")
    assert difference(before, snapshot(bare.gw)) == ""
    assert gateway.json("status")["state"] == "down"


def test_down_after_an_interface_has_gone_and_things_were_changed_by_hand(bare: Lab) -> None:
    before = snapshot(bare.gw)
    gateway = LabGateway(bare).start()
    gateway.kill()
    bare.gw.run("nft", "flush", "ruleset")
    sabotage(bare.gw, "unhook out0 egress")
    bare.gw.ip(f"addr del {LAX1[4]}/32 dev out0")
    gateway.run("down")
    assert difference(before, snapshot(bare.gw)) == ""
    gateway.start()
    gateway.kill()
    bare.gw.ip("link del in1")
    gateway.run("down")
    left = difference(before, snapshot(bare.gw))
    assert not [line for line in left.splitlines() if line.startswith("+") and not line.startswith("+++")], (
        left
    )


# --- one gateway, one daemon; several gateways


def test_a_second_run_is_refused_with_the_pid_of_the_first(lab: Lab, gateway: LabGateway) -> None:
    gateway.start()
    done = gateway.run("run", check=False)
    assert done.returncode == 1
    assert f"pid {gateway.pid}" in done.stderr
    assert "Traceback" not in done.stderr
    assert gateway.json("status")["daemon_pid"] == gateway.pid
    gateway.kill()
    gateway.start()
    assert gateway.json("status")["daemon_pid"] == gateway.pid


def test_gateways_do_not_know_of_each_other(
    bare: Lab, lab: Lab, services: Services, gateway: LabGateway
) -> None:
    neighbour = LabGateway(bare)
    gateway.start()
    neighbour.start()
    assert gateway.json("status")["daemon_pid"] == gateway.pid
    assert neighbour.json("status")["daemon_pid"] == neighbour.pid
    for family in (4, 6):
        with Session(lab.client, ORIGIN1[family]):
            assert len(gateway.json("flows")) >= 1
            assert neighbour.json("flows") == []
    neighbour.run("down")
    assert neighbour.json("status")["state"] == "down"
    for family in (4, 6):
        check_new(lab, family, (LAX1,), NEAREST)
    assert gateway.json("status")["state"] == "running"
    assert gateway.run("plan").stdout.startswith("nothing to do")


# --- the daemon restores what others change


def nothing_to_do(gateway: LabGateway) -> bool:
    return gateway.run("plan").stdout.startswith("nothing to do")


def test_an_interface_that_comes_back_is_enforced_again(
    lab: Lab, services: Services, gateway: LabGateway
) -> None:
    gateway.start()
    check_client2(lab)
    lab.gw.ip("link del in1")
    assert eventually(lambda: "in1" not in lab.gw.run("ip", "link").stdout)
    lab.gw.ip(
        f"link add in1 type veth peer name eth0 netns {lab.client2.name}",
        *topology._interface("in1", "10.0.2.1/24", "fd00:2::1/64"),
    )
    lab.client2.ip(*topology._client(2))
    assert eventually(lambda: nothing_to_do(gateway)), gateway.said()
    check_client2(lab)
    assert "restored: attach from_client to in1 ingress" in gateway.said()


def check_client2(lab: Lab) -> None:
    for family in (4, 6):
        assert leaves_from(tcp_ask(lab.client2, ORIGIN1[family]).address, LAX1)


def test_what_others_take_away_is_put_back(lab: Lab, services: Services, gateway: LabGateway) -> None:
    gateway.start()
    with living(lab) as live:
        for line in (
            "nft flush ruleset",
            "nft flush chain inet enforcer translate",
            "unhook in0 ingress",
            "unhook out0 egress",
            "sysctl -qw net.ipv4.ip_forward=0",
            "sysctl -qw net.ipv6.conf.all.forwarding=0",
        ):
            said = len(gateway.said())
            sabotage(lab.gw, line)
            assert eventually(lambda said=said: "restored" in gateway.said()[said:]), (
                line,
                gateway.said(),
            )
            assert nothing_to_do(gateway), line
            live.check(line)
            for family in (4, 6):
                check_new(lab, family, (LAX1,), NEAREST)


def test_newer_sources_on_the_disk_wait_for_the_next_start(
    lab: Lab, services: Services, gateway: LabGateway, tmp_path: Path
) -> None:
    place = program_copy(tmp_path, lambda bpf: None)
    use_copy(gateway, place)
    gateway.start()
    loaded = gateway.json("status")["versions"]["programs"]
    widen(place / "enforcer" / "bpf")
    with living(lab) as live:
        said = len(gateway.said())
        sabotage(lab.gw, "unhook in0 ingress")
        assert eventually(lambda: "restored: attach from_client" in gateway.said()[said:]), gateway.said()
        assert "upgrade" not in gateway.said()[said:]
        assert gateway.json("status")["versions"]["programs"] == loaded
        live.check("newer sources on the disk")
        for family in (4, 6):
            check_new(lab, family, (LAX1,), NEAREST)


def test_rules_that_were_changed_while_no_daemon_ran_are_put_back_by_the_next(
    lab: Lab, services: Services, gateway: LabGateway
) -> None:
    gateway.start()
    whole = lab.gw.run("nft", "-s", "list", "table", "inet", "enforcer").stdout
    with living(lab) as live:
        gateway.kill()
        lab.gw.run("nft", "flush", "chain", "inet", "enforcer", "forward")
        lab.gw.run("nft", "flush", "chain", "inet", "enforcer", "guard")
        gateway.start()
        live.check("rules flushed and a restart")
    assert lab.gw.run("nft", "-s", "list", "table", "inet", "enforcer").stdout == whole


@families
def test_an_address_that_is_taken_away_is_unavailable_and_comes_back(
    lab: Lab, services: Services, gateway: LabGateway, family: int
) -> None:
    gateway.start()
    what = {4: f"addr {{}} {LAX1[4]}/32 dev out0", 6: f"route {{}} local {LAX1[6]} dev lo table local"}[
        family
    ]
    lab.gw.ip(what.format("del"))
    assert eventually(lambda: not gateway.json("egress")[0][f"available_ipv{family}"])
    assert fate_of(lambda: tcp_ask(lab.client, ORIGIN1[family])) == "refused"
    assert leaves_from(tcp_ask(lab.client, ORIGIN2[family]).address, LAX2)
    other = 10 - family
    assert leaves_from(tcp_ask(lab.client, ORIGIN1[other]).address, LAX1)
    lab.gw.ip(what.format("add"))
    assert eventually(lambda: fate_of(lambda: tcp_ask(lab.client, ORIGIN1[family])) == "answered")
    assert leaves_from(tcp_ask(lab.client, ORIGIN1[family]).address, LAX1)
    assert "egress lax-1" in gateway.said()
    lab.gw.ip(what.format("del"))  # the test added it, so `down` would leave it


# --- signals, systemd


def test_systemd_is_told(lab: Lab, gateway: LabGateway, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(30)
        gateway.argv = ["env", f"NOTIFY_SOCKET={tmp_path / 'notify'}", "WATCHDOG_USEC=2000000", *gateway.argv]
        gateway.start()
        assert listener.recv(4096).startswith(b"READY=1")
        assert wait_for(listener, b"WATCHDOG=1") and wait_for(listener, b"WATCHDOG=1")
        gateway.write(otherwise(lab.config()))
        os.kill(gateway.pid, signal.SIGHUP)
        reloading = wait_for(listener, b"RELOADING=1")
        assert b"MONOTONIC_USEC=" in reloading
        assert wait_for(listener, b"READY=1")
        assert "switch policies and settings" in gateway.said()
        assert [row["name"] for row in gateway.json("policies")][-1] == "rest"
        assert gateway.stop() == 0
        assert wait_for(listener, b"STOPPING=1")
    assert "ended; enforcement continues" in gateway.said()


def wait_for(listener: socket.socket, start: bytes) -> bytes:
    """The next message that starts with ``start``; TimeoutError if none arrives."""
    while True:
        message = listener.recv(4096)
        if message.startswith(start):
            return message


# --- reload and plan


def test_a_wrong_file_changes_nothing_on_reload(lab: Lab, services: Services, gateway: LabGateway) -> None:
    gateway.start()
    before = snapshot(lab.gw)
    with living(lab) as live:
        for document, words in (
            (lab.config(location="mars"), ("enforcer.yaml:", "mars")),
            (lab.config() | {"surprise": 1}, ("surprise",)),
            ("{", ("enforcer.yaml:1",)),
        ):
            gateway.write(document)
            done = gateway.run("reload", check=False)
            assert (done.returncode, done.stdout) == (2, "")
            assert all(word in done.stderr for word in words)
            assert "Traceback" not in done.stderr + gateway.said()
            assert gateway.alive
        assert difference(before, snapshot(lab.gw)) == ""
        live.check("reload of wrong files")
        os.kill(gateway.pid, signal.SIGHUP)
        assert eventually(
            lambda: gateway.said().count("reload failed, the configuration in force stays") == 4
        )
        gateway.write(lab.config())
        assert gateway.run("reload").stdout == "nothing changed\n"


def test_plan_says_what_run_and_reload_do(bare: Lab) -> None:
    gateway = LabGateway(bare)
    before = snapshot(bare.gw)
    planned = gateway.json("plan")
    assert difference(before, snapshot(bare.gw)) == ""
    operations = [row["operation"] for row in planned]
    assert operations[0].startswith("install nftables table inet enforcer")
    assert "load BPF programs" in operations
    gateway.start()
    assert gateway.said().splitlines()[: len(operations)] == operations
    assert gateway.json("plan") == []
    assert gateway.run("plan").stdout == "nothing to do: the file is in force\n"

    gateway.write(added(bare.config(), "egress_ips", {**LAX3, "on_link": False}))
    planned = [row["operation"] for row in gateway.json("plan")]
    assert planned == [
        "replace nftables table inet enforcer (3 egress IPs)",
        "add address 203.0.113.12/32 to out0",
        "add local range 2001:db8:9::/64",
        "switch policies and settings",
    ]
    assert gateway.reload().splitlines() == planned
    gateway.write(changed(bare.config(), "policies", "bank", precedence=11))
    gateway.reload()
    assert gateway.json("plan") == []
    gateway.write(changed(bare.config(), "policies", "bank", precedence=12))
    assert [row["operation"] for row in gateway.json("plan")] == ["switch policies and settings"]
    bare.gw.ip(f"addr del {LAX1[4]}/32 dev out0")
    assert "add address 203.0.113.10/32 to out0" in gateway.run("plan").stdout
    gateway.run("down")


def test_an_egress_ip_that_leaves_the_file_is_taken_away(
    lab: Lab, services: Services, gateway: LabGateway
) -> None:
    gateway.start()
    fewer = without(without(lab.config(), "policies", "bank", "travel"), "egress_ips", "lax-1")
    said = gateway.reload(fewer)
    assert "remove address 203.0.113.10/32 from out0" in said
    assert "remove local range 2001:db8:1::/64" in said
    for family in (4, 6):
        check_new(lab, family, (LAX2,), (LAX2,))
    assert LAX1[4] not in lab.gw.run("ip", "address").stdout
    assert gateway.json("plan") == []


# --- failure half-way


def test_a_hook_without_room_stops_a_start_without_a_trace(bare: Lab) -> None:
    crowd(bare.gw, "in0", "ingress")
    bare.gw.sysctl("net.ipv4.ip_forward", 0)
    before = snapshot(bare.gw)
    gateway = LabGateway(bare)
    done = gateway.run("run", check=False)
    assert done.returncode == 1
    assert "attaching a program to ingress of interface" in done.stderr
    assert "Traceback" not in done.stderr
    assert difference(before, snapshot(bare.gw)) == ""


def test_a_reload_that_fails_half_way_is_taken_back(bare: Lab) -> None:
    bare.gw.ip(*(f"link add {name} type veth peer name {name}peer" for name in ("in2", "in3")))
    gateway = LabGateway(bare).start()
    crowd(bare.gw, "in3", "egress")
    before = snapshot(bare.gw)
    more = added(bare.config(), "egress_ips", LAX3)
    more["interfaces"]["inside"] += ["in2", "in3"]
    more = changed(more, "policies", "bank", egress={"ipv4": LAX2[4], "ipv6": LAX2[6]})
    gateway.write(more)
    done = gateway.run("reload", check=False)
    assert done.returncode == 1
    assert "attaching a program to egress of interface" in done.stderr
    assert difference(before, snapshot(bare.gw)) == ""
    for family in (4, 6):  # the failure came after the switch, so the old policies must be restored
        question = (
            "--src",
            topology.CLIENT[family],
            "--dst",
            ORIGIN1[family],
            "--protocol",
            "tcp",
            "--dport",
            "80",
        )
        assert gateway.json("explain", *question)["egress"] == "lax-1"
    gateway.write(bare.config())
    assert gateway.run("reload").stdout == "nothing changed\n"
    gateway.run("down")


def test_programs_that_do_not_compile_change_nothing(
    lab: Lab, services: Services, gateway: LabGateway, bare: Lab, tmp_path: Path
) -> None:
    broken = program_copy(tmp_path, lambda bpf: append(bpf / "metrics.h", "#error broken on purpose"))
    fresh = LabGateway(bare)
    use_copy(fresh, broken)
    before = snapshot(bare.gw)
    done = fresh.run("run", check=False)
    assert done.returncode == 1
    assert "compiling or loading the BPF programs" in done.stderr
    assert "broken on purpose" in done.stderr
    assert "Traceback" not in done.stderr
    assert difference(before, snapshot(bare.gw)) == ""

    gateway.start()
    with living(lab) as live:
        gateway.stop()
        before = snapshot(lab.gw)
        enforcing = gateway.enforcer
        use_copy(gateway, broken)
        with pytest.raises(LabError, match="broken on purpose"):
            gateway.start()
        assert difference(before, snapshot(lab.gw)) == ""
        live.check("an upgrade that failed")
        for family in (4, 6):
            check_new(lab, family, (LAX1,), NEAREST)
        gateway.enforcer = enforcing
        gateway.argv = [*enforcing, "run"]
        gateway.start()
        live.check("the old version again")


def test_a_state_file_that_cannot_be_read_is_a_fresh_start(
    lab: Lab, services: Services, gateway: LabGateway
) -> None:
    gateway.start()
    gateway.kill()
    state = Path("/run/enforcer") / f"{lab.gw.cookie():x}" / "state.json"
    state.write_text(state.read_text()[:100])
    gateway.start()
    for family in (4, 6):
        check_new(lab, family, (LAX1,), NEAREST)
