"""Tests of lost pins, state files and facts, with connections that live through the loss.

The origins' view and a capture on the outside wire judge: nothing leaves with an unplanned source.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from snapshot import difference, snapshot
from test_lifecycle import NEAREST, check_new, eventually, fate_of, living, otherwise
from test_outlived import NOBODY
from test_unit import Confined
from truth import agree, inject, tracked, wait_for
from versions import impatient, use_copy

from enforcer.datapath import bpffs, tcx
from enforcer.instance import Instance
from lab.capture import Capture
from lab.clients import Session, tcp_ask, udp_ask
from lab.configuration import LAX1, LAX2
from lab.gateway import LabGateway
from lab.netns import execute
from lab.program import Program
from lab.services import Services
from lab.topology import CLIENT, ORIGIN1, SHARED, Lab

PLANNED = [ip_network(address) for owner in (SHARED, LAX1, LAX2) for address in owner.values()]
NOUNS = ("status", "policies", "egress", "origins", "flows", "reasons", "sessions", "hosts", "dns", "plan")
needs_tcx = pytest.mark.skipif(not tcx.supported(), reason="this kernel lacks TCX (Linux 6.6)")


def directory(lab: Lab) -> Path:
    """The directory of this gateway's pins."""
    mount = bpffs.find_bpffs()
    assert mount is not None
    return bpffs.directory(mount, lab.gw.cookie())


def state_directory(lab: Lab) -> Path:
    return Instance(lab.gw.cookie()).directory


def lose(place: Path, pattern: str) -> None:
    """Remove what matches the pattern below the directory; "." is the directory itself."""
    found = [place] if pattern == "." else list(place.glob(pattern))
    assert found, pattern
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def nothing_unplanned(lab: Lab) -> Iterator[None]:
    """Assert that everything that leaves has a planned source, as the next router sees it."""
    with Capture(lab.net, "gw0", lab.directory, direction="in") as capture:
        yield
    own = {"198.51.100.1", "2001:db8:ffff::1"}
    for source in capture.sources():
        assert source in own or any(ip_address(source) in network for network in PLANNED), source


class Log:
    """The daemon's output from the creation of this object on."""

    def __init__(self, gateway: LabGateway):
        self._gateway = gateway
        self._before = len(gateway.said())

    def wait_for(self, text: str) -> None:
        assert eventually(lambda: text in self.said()), f"{text!r} was never said: {self.said()}"

    def said(self) -> str:
        return self._gateway.said()[self._before :]


def whole(gateway: LabGateway) -> bool:
    """Whether nothing is left to do and `plan` reports no error."""
    done = gateway.run("plan", check=False)
    return done.returncode == 0 and done.stdout.startswith("nothing to do")


def check_all(lab: Lab, gateway: LabGateway) -> None:
    """Assert that new connections and counts are as before the loss."""
    for family in (4, 6):
        check_new(lab, family, (LAX1,), NEAREST)
    agree(gateway)


def check_commands(gateway: LabGateway) -> None:
    for noun in NOUNS:
        gateway.json(noun)


# --- while the daemon runs

OTHERS = (
    "add table inet others; "
    "add chain inet others out { type nat hook postrouting priority 100; }; "
    f"add rule inet others out ip saddr 10.77.0.1 snat to {SHARED[4]}; "
    f"add rule inet others out ip6 saddr fd77::1 snat to {SHARED[6]}"
)
PINS = ("maps-*/flows", "maps-*/rule_sets_?", "load-*/stages", "load-*", ".")
LINKS = ("links", "links/*-egress") if tcx.supported() else ()


def test_a_daemon_pins_again_what_it_holds(lab: Lab, services: Services, gateway: LabGateway) -> None:
    """The gateway is never interrupted: descriptors keep programs at their hooks."""
    gateway.start()
    with nothing_unplanned(lab), living(lab) as live:
        dropped = gateway.json("status")["leaks_prevented"]
        for pattern in (*PINS, *LINKS):
            log = Log(gateway)
            lose(directory(lab), pattern)
            live.check(f"{pattern} lost")
            log.wait_for("restored: the pins")
            assert whole(gateway), pattern
            live.check(pattern)
        check_all(lab, gateway)
        check_commands(gateway)
        assert gateway.json("status")["leaks_prevented"] == dropped
        assert gateway.reload() == "nothing changed\n"
        live.check("a reload")
        gateway.reload(otherwise(lab.config()))
        live.check("a reload with other policies")


def test_a_daemon_writes_the_state_file_again(lab: Lab, services: Services, gateway: LabGateway) -> None:
    gateway.start()
    file = state_directory(lab) / "state.json"
    before = file.read_text()
    for content in (None, b"", b"{", b'{"format": 1, "slots": 3}', b"\xff\xfe"):
        log = Log(gateway)
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        log.wait_for("restored: the state file")
        assert file.read_text() == before
    check_all(lab, gateway)


def test_a_daemon_writes_the_facts_again(lab: Lab, services: Services, gateway: LabGateway) -> None:
    gateway.start()
    gateway.run("session", "add", "10.0.1.2", "--email", "ann@example.com")
    before = gateway.json("sessions")
    log = Log(gateway)
    lose(state_directory(lab), "facts.db*")
    log.wait_for("restored: the facts")
    assert gateway.json("sessions") == before
    gateway.run("session", "add", "fd00:1::2", "--email", "ann@example.com")
    gateway.reload(otherwise(lab.config()))
    assert len(gateway.json("sessions")) == 2
    gateway.stop()
    gateway.start()
    assert len(gateway.json("sessions")) == 2


# --- while no daemon runs


def test_a_start_without_pins(lab: Lab, services: Services, gateway: LabGateway) -> None:
    """Existing maps are carried over, lost ones rebuilt from conntrack; new policies apply to new flows."""
    gateway.start()
    configs = itertools.cycle(
        [(otherwise(lab.config()), (LAX2,), (SHARED,)), (lab.config(), (LAX1,), NEAREST)]
    )
    with nothing_unplanned(lab), living(lab) as live:
        for pattern in PINS:
            before = agree(gateway)
            gateway.kill()
            lose(directory(lab), pattern)
            log = Log(gateway)
            config, first, second = next(configs)
            gateway.write(config)
            gateway.start()
            assert "in place of lost ones" in log.said(), pattern
            live.check(pattern)
            assert agree(gateway) == before, pattern
            for family in (4, 6):
                check_new(lab, family, first, second)
            assert whole(gateway), pattern


def test_commands_without_pins_and_daemon(lab: Lab, gateway: LabGateway) -> None:
    gateway.start()
    gateway.kill()
    lose(directory(lab), "maps-*")
    for noun in NOUNS:
        done = gateway.run(noun, check=False)
        assert "Traceback" not in done.stderr, noun
        known = "out of reach" in done.stderr or "no daemon runs" in done.stderr
        assert done.returncode == 0 or known, (noun, done)


@needs_tcx
def test_without_links_and_daemon_nothing_leaves(lab: Lab, services: Services, gateway: LabGateway) -> None:
    """Without links the kernel detaches the programs; the table keeps the gateway closed."""
    gateway.start()
    gateway.kill()
    lose(directory(lab), "links")
    assert eventually(lambda: not any(chains(lab)))
    with Capture(lab.net, "gw0", lab.directory, direction="in", expression="tcp or udp") as capture:
        for family in (4, 6):
            for ask in (tcp_ask, udp_ask):
                with pytest.raises(OSError):
                    ask(lab.client, ORIGIN1[family], timeout=0.5)
    assert capture.sources() == {}
    assert "not attached     out0 egress, out0 ingress, in0 egress" in gateway.run("status").stdout
    gateway.start()
    check_all(lab, gateway)
    assert gateway.json("status")["not_attached"] == []


def test_adopted_connections_count_against_the_limit(
    lab: Lab, services: Services, gateway: LabGateway
) -> None:
    gateway.write(lab.config(limits={"connections_per_origin": 3}))
    gateway.start()
    with contextlib.ExitStack() as held:
        for family in (4, 6):
            held.enter_context(Session(lab.client, ORIGIN1[family]))
            held.enter_context(Session(lab.client, ORIGIN1[family]))
        gateway.kill()
        lose(directory(lab), ".")
        gateway.start()
        for family in (4, 6):
            third = held.enter_context(Session(lab.client, ORIGIN1[family]))
            assert fate_of(lambda family=family: tcp_ask(lab.client, ORIGIN1[family])) == "refused"
            third.close()
        agree(gateway)
    agree(gateway)
    assert not [row for row in gateway.json("origins") if row["active"]]


def test_connections_that_others_translate_are_not_adopted(
    lab: Lab, services: Services, gateway: LabGateway
) -> None:
    """For example the gateway's own: no inside interface leads to their source."""
    gateway.start()
    gateway.kill()
    lab.gw.ip("addr add 10.77.0.1/32 dev lo", "addr add fd77::1/128 dev lo")
    lab.gw.run("nft", OTHERS)
    with contextlib.ExitStack() as held:
        for family, source in ((4, "10.77.0.1"), (6, "fd77::1")):
            seen = held.enter_context(Session(lab.gw, ORIGIN1[family], source=source)).seen
            assert seen.address == SHARED[family]
        lose(directory(lab), ".")
        gateway.start()
        assert gateway.json("flows") == []
    lab.gw.run("nft", "delete", "table", "inet", "others")
    lab.gw.ip("addr del 10.77.0.1/32 dev lo", "addr del fd77::1/128 dev lo")


@pytest.mark.parametrize("file", ["state.json", "."])
def test_a_start_without_the_state(lab: Lab, services: Services, gateway: LabGateway, file: str) -> None:
    """Slots may get other numbers; connections keep their addresses."""
    gateway.start()
    with nothing_unplanned(lab), living(lab) as live:
        gateway.kill()
        lose(state_directory(lab), file)
        done = gateway.run("status", check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert "its state file is lost or unreadable" in done.stderr
        config = lab.config()
        config["egress_ips"] = list(reversed(config["egress_ips"]))
        gateway.write(config)
        gateway.start()
        live.check(file)
        check_all(lab, gateway)
    left = gateway.down()
    assert "how they were before was in a state file that is lost" in left


def test_a_start_without_the_state_that_fails_leaves_the_gateway_closed(
    lab: Lab, services: Services, gateway: LabGateway, tmp_path: Path
) -> None:
    gateway.start()
    gateway.kill()
    lose(state_directory(lab), "state.json")
    broken = impatient(tmp_path)
    header = broken / "enforcer/bpf/mark.h"
    header.write_text(header.read_text() + "this does not compile\n")
    enforcer, argv = gateway.enforcer, gateway.argv
    use_copy(gateway, broken)
    done = gateway.run("run", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    gateway.enforcer, gateway.argv = enforcer, argv
    with Capture(lab.net, "gw0", lab.directory, direction="in", expression="tcp or udp") as capture:
        for family in (4, 6):
            with pytest.raises(OSError):
                tcp_ask(lab.client, ORIGIN1[family], timeout=0.5)
    assert capture.sources() == {}
    gateway.start()
    check_all(lab, gateway)


def test_a_start_without_the_facts(lab: Lab, services: Services, gateway: LabGateway) -> None:
    gateway.start()
    gateway.run("session", "add", "10.0.1.2", "--email", "ann@example.com")
    with living(lab) as live:
        gateway.kill()
        lose(state_directory(lab), "facts.db*")
        gateway.start()
        live.check("facts lost")
        assert gateway.json("sessions") == []
        check_all(lab, gateway)


# --- the file system of the pins


class Mounts:
    """A mount namespace with its own BPF file system, which holds the enforcer's pins."""

    def __init__(self, lab: Lab):
        self.keeper = Program(
            lab.gw,
            ["unshare", "--mount", "--propagation", "private", "sleep", "infinity"],
            lab.directory,
            "mounts",
            stop_signal=signal.SIGKILL,
        )

    @property
    def entry(self) -> list[str]:
        """The arguments that run a program in the namespace."""
        return ["nsenter", f"--mount=/proc/{self.keeper.pid}/ns/mnt", "--"]

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return execute([*self.entry, *argv], check=check)

    def mount(self) -> None:
        """Mount a new, empty BPF file system over the present one."""
        self.run("mount", "-t", "bpf", "-o", "mode=700", "bpf", "/sys/fs/bpf")

    def unmount(self) -> None:
        """Unmount the topmost one, which reveals the machine's."""
        self.run("umount", "/sys/fs/bpf")

    def unmount_all(self) -> None:
        """Unmount all, so a daemon that cannot enter other processes' namespaces finds none."""
        self.unmount()
        while self.run("findmnt", "-t", "bpf", "/sys/fs/bpf", check=False).returncode == 0:
            self.unmount()

    def use(self, gateway: LabGateway) -> None:
        """Make the gateway's daemon and commands run in the namespace."""
        gateway.enforcer = [*self.entry, *gateway.enforcer]
        gateway.argv = [*gateway.enforcer, "run"]


@pytest.fixture
def mounts(lab: Lab) -> Iterator[Mounts]:
    made = Mounts(lab)
    with made.keeper:
        own = Path("/proc/self/ns/mnt").readlink()
        wait_for(lambda: Path(f"/proc/{made.keeper.pid}/ns/mnt").readlink() != own, "the namespace")
        made.mount()
        yield made


@pytest.fixture
def apart(lab: Lab, mounts: Mounts) -> Iterator[LabGateway]:
    """An enforcer whose pins are in a BPF file system of its own."""
    gateway = LabGateway(lab)
    mounts.use(gateway)
    yield gateway
    gateway.stop()
    gateway.run("down", check=False)


@pytest.fixture
def confined(lab: Lab, mounts: Mounts) -> Iterator[Confined]:
    """The same with the systemd unit's capabilities: the daemon can neither mount nor open objects by id."""
    gateway = Confined(lab)
    mounts.use(gateway)
    yield gateway
    gateway.stop()
    gateway.run("down", check=False)


Change = Callable[[Mounts], None]
CHANGES = pytest.mark.parametrize("change", [Mounts.unmount, Mounts.mount], ids=["unmounted", "hidden"])


@CHANGES
def test_a_daemon_pins_in_the_file_system_that_is_there_now(
    lab: Lab, services: Services, mounts: Mounts, apart: LabGateway, change: Change
) -> None:
    apart.start()
    with nothing_unplanned(lab), living(lab) as live:
        log = Log(apart)
        change(mounts)
        log.wait_for("restored: the pins")
        assert whole(apart)
        live.check("another file system")
        apart.reload(otherwise(lab.config()))
        live.check("a reload")
        for family in (4, 6):
            check_new(lab, family, (LAX2,), (SHARED,))
        if change is Mounts.mount:
            log = Log(apart)
            mounts.unmount()
            log.wait_for("restored: the pins")
            live.check("the first one again")
            assert whole(apart)
        apart.reload(lab.config())
        live.check("one more reload")
        for family in (4, 6):
            check_new(lab, family, (LAX1,), NEAREST)
        assert sum(row["active"] for row in apart.json("origins")) == sum(tracked(lab).values())


@CHANGES
def test_a_start_without_the_file_system(
    lab: Lab, services: Services, mounts: Mounts, apart: LabGateway, change: Change
) -> None:
    apart.start()
    with nothing_unplanned(lab), living(lab) as live:
        apart.kill()
        change(mounts)
        done = apart.run("status", check=False)
        assert "Traceback" not in done.stderr and "out of reach" in done.stderr
        apart.write(otherwise(lab.config()))
        apart.start()
        live.check("a start")
        assert all(len(chain) == 1 for chain in chains(lab))
        assert sum(row["active"] for row in apart.json("origins")) == sum(tracked(lab).values())
        for family in (4, 6):
            check_new(lab, family, (LAX2,), (SHARED,))
        assert whole(apart)


def chains(lab: Lab) -> list[list[int]]:
    """The programs at each hook."""
    if not tcx.supported():
        return []
    found = lab.gw.run("ip", "-o", "link").stdout.splitlines()
    indexes = [int(line.split(":")[0]) for line in found if line.split()[1][:2] in ("in", "ou")]
    return [lab.gw.call(lambda i=i, d=d: tcx.programs(i, d)) for i in indexes for d in tcx.ATTACH_TYPES]


@needs_tcx
def test_a_start_that_cannot_reach_the_programs_says_so_and_changes_nothing(
    lab: Lab, services: Services, mounts: Mounts, confined: Confined
) -> None:
    confined.start()
    with nothing_unplanned(lab), living(lab) as live:
        confined.kill()
        mounts.mount()
        before = chains(lab), lab.gw.run("nft", "-s", "list", "ruleset").stdout
        confined.write(otherwise(lab.config()))
        done = confined.run("run", check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: programs are attached whose pins are out of reach")
        assert "umount /sys/fs/bpf" in done.stderr
        assert (chains(lab), lab.gw.run("nft", "-s", "list", "ruleset").stdout) == before
        live.check("a start that was refused")
        for family in (4, 6):
            check_new(lab, family, (LAX1,), NEAREST)
        mounts.unmount()
        confined.start()
        live.check("what the message says")
        for family in (4, 6):
            check_new(lab, family, (LAX2,), (SHARED,))


@needs_tcx
def test_a_daemon_without_file_system_goes_on(
    lab: Lab, services: Services, mounts: Mounts, confined: Confined, tmp_path: Path
) -> None:
    """Without the file system the daemon cannot pin; it goes on, sweeps, and pins later."""
    use_copy(confined, impatient(tmp_path))
    confined.write(lab.config(timers={"tcp_transitory": 1, "tcp_close": 5}))
    confined.start()
    mac = lab.gw.run("ip", "-br", "link", "show", "in0").stdout.split()[2]
    with nothing_unplanned(lab), living(lab) as live:
        log = Log(confined)
        mounts.unmount_all()
        log.wait_for("no BPF file system is mounted")
        done = confined.run("reload", check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        live.check("a reload that cannot be")
        held = set(tracked(lab))
        for family in (4, 6):
            check_new(lab, family, (LAX1,), NEAREST)
            acknowledge(lab, family, mac)
        assert any(origin.address in NOBODY.values() for origin in tracked(lab))
        wait_for(lambda: not set(tracked(lab)) - held, "unanswered flows swept")
        mounts.mount()
        log.wait_for("restored: the pins")
        assert whole(confined)
        live.check("mounted again")
        confined.reload(otherwise(lab.config()))
        live.check("a reload")


def acknowledge(lab: Lab, family: int, mac: str) -> None:
    """A segment that conntrack picks up midway and that stays unanswered: its entry would live for hours."""
    network = (IP if family == 4 else IPv6)(src=CLIENT[family], dst=NOBODY[family])
    segment = TCP(sport=40000, dport=7000, flags="A", seq=1000, ack=1000)
    inject(lab, [bytes(Ether(dst=mac) / network / segment)])


# --- down


@pytest.mark.parametrize("loss", ["maps-*", "."])
def test_down_without_pins(lab: Lab, gateway: LabGateway, loss: str) -> None:
    before = snapshot(lab.gw)
    gateway.start()
    gateway.kill()
    lose(directory(lab), loss)
    gateway.run("down")
    assert eventually(lambda: difference(before, snapshot(lab.gw)) == ""), difference(
        before, snapshot(lab.gw)
    )


def test_down_without_the_state(lab: Lab, gateway: LabGateway) -> None:
    before = snapshot(lab.gw)
    gateway.start()
    gateway.kill()
    lose(state_directory(lab), "state.json")
    said = gateway.run("down").stdout
    assert "removed nftables table" in said and "a state file that is lost" in said
    left = difference(before, snapshot(lab.gw))
    lines = [line for line in left.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert all("/proc/sys/" in line for line in lines), left
    assert gateway.json("status")["state"] == "down"


@needs_tcx
def test_down_of_programs_out_of_reach(lab: Lab, mounts: Mounts, apart: LabGateway) -> None:
    before = snapshot(lab.gw)
    apart.start()
    apart.kill()
    mounts.mount()
    said = apart.run("down").stdout
    assert "detached programs whose pins were out of reach" in said
    assert difference(before, snapshot(lab.gw)) == ""


@needs_tcx
def test_down_that_cannot_reach_the_programs(lab: Lab, mounts: Mounts, confined: Confined) -> None:
    before = snapshot(lab.gw)
    confined.start()
    confined.kill()
    mounts.mount()
    done = confined.run("down", check=False)
    assert done.returncode == 1
    assert "not done: programs are attached whose pins are out of reach" in done.stderr
    assert "removed nftables table" in done.stderr
    assert "Traceback" not in done.stderr
    mounts.unmount()
    confined.run("down")
    assert difference(before, snapshot(lab.gw)) == ""
