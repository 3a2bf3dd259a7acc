"""A gateway whose applying process is killed between two of its effects, and checks for that case."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from truth import wait_for
from versions import program_copy, use_copy

from enforcer.control import protocol
from enforcer.control.protocol import ReportedError
from enforcer.gateway.desired import Desired, desired
from enforcer.gateway.state import State
from enforcer.inspect.status import status
from enforcer.instance import Instance
from enforcer.kernel import addresses
from lab.capture import Capture
from lab.clients import Session, UdpFlow, family_of, tcp_ask
from lab.configuration import LAX1, LAX2, Document, added, without
from lab.gateway import LabGateway
from lab.services import Services
from lab.topology import ORIGIN1, ORIGIN2, SHARED, Lab

LAX3 = {4: "203.0.113.12", 6: "2001:db8:9::/64"}
PORT = 7777
"""UDP port of a service on the gateway itself."""
PATIENCE = 5.0
"""Seconds for a connection; the retransmission of a lost SYN adds one second."""

Egress = dict[int, str]


def before(lab: Lab) -> Document:
    """A configuration: origin 1 leaves by lax-1, origin 2 by the shared address."""
    policies = lab.config()["policies"][:1]
    rest: dict[str, Any] = {"name": "rest", "precedence": 1000, "egress": "default"}
    return lab.config(policies=[*policies, rest], timers={"udp": 350})


def after(lab: Lab, **limits: int) -> Document:
    """A configuration without lax-2, with lax-3 for origin 2, another inside interface and other settings."""
    config = without(before(lab), "egress_ips", "lax-2")
    new = {"name": "lax-3", "location": "lax", "ipv4": LAX3[4], "ipv6": LAX3[6], "on_link": True}
    config = added(config, "egress_ips", new)
    config["interfaces"]["inside"] = ["in0", "in2"]
    config["policies"][1]["egress"] = {"ipv4": LAX3[4], "ipv6": LAX3[6]}
    config["timers"] = {"udp": 360}
    config["fast_path"] = False
    config["limits"] |= limits
    return config


def is_of(address: str, egress: Egress) -> bool:
    found = ip_address(address)
    return found in ip_network(egress[found.version])


class Live:
    """Connections that stay open: each must keep its address and port."""

    def __init__(self, lab: Lab):
        self._open = contextlib.ExitStack()
        self.flows: list[Session | UdpFlow] = []
        for family in (4, 6):
            for kind in (Session, UdpFlow):
                self.flows.append(self._open.enter_context(kind(lab.client, ORIGIN1[family])))
                self.flows.append(self._open.enter_context(kind(lab.client, ORIGIN2[family])))
        self.seen = [flow.ask() for flow in self.flows]

    def check(self, when: str) -> None:
        for flow, seen in zip(self.flows, self.seen, strict=True):
            assert flow.ask() == seen, when

    def close(self) -> None:
        self._open.close()


class Knocking:
    """An outside host that keeps sending datagrams to every egress address; a gateway service receives."""

    def __init__(self, lab: Lab):
        self._services = {family: self._service(lab, family) for family in (4, 6)}
        self._outside = {
            family: lab.origin1.socket(family_of(SHARED[family]), socket.SOCK_DGRAM) for family in (4, 6)
        }
        self._going = True
        self._thread = threading.Thread(target=self._knock)
        self._thread.start()

    @staticmethod
    def _service(lab: Lab, family: int) -> socket.socket:
        service = lab.gw.socket(family_of(SHARED[family]), socket.SOCK_DGRAM)
        if family == 6:
            service.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        service.bind(({4: "0.0.0.0", 6: "::"}[family], PORT))
        service.setblocking(False)
        return service

    def _knock(self) -> None:
        while self._going:
            for family, outside in self._outside.items():
                for egress in (LAX1, LAX2, LAX3):
                    address = ip_network(egress[family]).network_address + (5 if family == 6 else 0)
                    with contextlib.suppress(OSError):
                        outside.sendto(f"{address}".encode(), (f"{address}", PORT))
            time.sleep(0.01)

    def heard(self) -> list[str]:
        """The egress addresses at which datagrams reached the gateway's service."""
        found = []
        for service in self._services.values():
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.append(service.recv(100).decode())
        return found

    def check_reachable(self) -> None:
        """Assert that the service receives a datagram sent to the gateway's own address."""
        for family, outside in self._outside.items():
            outside.sendto(b"own", (SHARED[family], PORT))
            service = self._services[family]
            service.settimeout(PATIENCE)
            assert service.recv(100) == b"own"
            service.setblocking(False)

    def close(self) -> None:
        self._going = False
        self._thread.join()
        for each in (*self._services.values(), *self._outside.values()):
            each.close()


class Enforced:
    """A gateway whose applying processes can be interrupted."""

    def __init__(self, lab: Lab, gateway: LabGateway, place: Path):
        self.lab = lab
        self.gateway = gateway
        self.place = program_copy(place, lambda bpf: _interruptible(bpf.parent))
        use_copy(gateway, self.place)
        self.instance = Instance(lab.gw.cookie())

    def interrupt(self, number: int, what: str = "SIGKILL") -> None:
        (self.place / "interrupt").write_text(f"{number} {what}")

    @property
    def interrupted(self) -> bool:
        """Whether the last requested interruption has happened."""
        return not (self.place / "interrupt").exists()

    def effects(self) -> list[str]:
        """The effects of the last process that applied a configuration."""
        return (self.place / "effects").read_text().split()

    def reload(self) -> None:
        """Run `enforcer reload` without the half second that starting the command takes."""
        protocol.ask(self.instance.control_socket, "reload")

    def state(self) -> State:
        return State.load(self.instance.state_file) or State()

    def status(self) -> dict[str, Any]:
        return self.lab.gw.call(lambda: status(self.instance))

    def in_force(self) -> Desired:
        state = self.state()
        return desired(state.config, state.slots)

    def healed(self) -> None:
        """Wait until the plan is repaired; assert that the gateway holds exactly what is in force."""
        wait_for(lambda: self.state().half_done is None, "healed")
        wanted = self.in_force()
        held = self.lab.gw.call(lambda: addresses.held(ours=True))
        assert held == set(wanted.addresses())
        assert self.lab.gw.call(lambda: addresses.ranges(ours=True)) == set(wanted.ranges())
        wait_for(lambda: self.lab.gw.call(self._is_hooked), "hooked")

    def _is_hooked(self) -> bool:
        from enforcer.gateway.gateway import Gateway

        found = Gateway(self.instance)
        assert found.previous is not None
        return found.hooked(found.previous)


def _interruptible(package: Path) -> None:
    shutil.copy(Path(__file__).parent / "interrupted.py", package / "interrupted.py")
    applying = package / "workers" / "apply.py"
    text = applying.read_text()
    entry = 'if __name__ == "__main__":\n'
    assert text.count(entry) == 1
    inserted = f"{entry}    from enforcer import interrupted\n\n    interrupted.install()\n"
    applying.write_text(text.replace(entry, inserted))


@pytest.fixture
def enforced(lab: Lab, services: Services, gateway: LabGateway, tmp_path: Path) -> Iterator[Enforced]:
    lab.gw.ip("link add in2 type veth peer name in2peer")
    try:
        yield Enforced(lab, gateway, tmp_path)
    finally:
        gateway.stop()
        gateway.run("down", check=False)
        lab.gw.ip("link del in2")


@pytest.fixture
def knocking(lab: Lab) -> Iterator[Knocking]:
    with contextlib.closing(Knocking(lab)) as knocking:
        yield knocking


def check_new(lab: Lab, second: tuple[Egress, ...], when: str) -> None:
    """Assert that new connections leave by lax-1 to origin 1, and by one of `second` to origin 2."""
    for family in (4, 6):
        seen = tcp_ask(lab.client, ORIGIN1[family], timeout=PATIENCE).address
        assert is_of(seen, LAX1), (seen, when)
        seen = tcp_ask(lab.client, ORIGIN2[family], timeout=PATIENCE).address
        assert any(is_of(seen, egress) for egress in second), (seen, when)


def second_of(enforced: Enforced) -> Egress:
    """The egress IP of new connections to origin 2, according to the state file."""
    return LAX3 if any(egress.name == "lax-3" for egress in enforced.in_force().ours) else SHARED


@contextlib.contextmanager
def watched(lab: Lab, knocking: Knocking) -> Iterator[None]:
    """Assert that every source seen outside is planned and that no datagram reaches the gateway's service."""
    # The gateway routes back what origin 1 sends to an egress address that it does not hold yet.
    own = {*ORIGIN1.values(), *SHARED.values()}
    capture = Capture(lab.net, "gw0", lab.directory, direction="in", expression="tcp or udp")
    with capture:
        yield
    planned = (SHARED, LAX1, LAX2, LAX3)
    strange = {
        source
        for source in capture.sources()
        if source not in own and not any(is_of(source, egress) for egress in planned)
    }
    assert not strange
    assert knocking.heard() == []
    knocking.check_reachable()


def kill_at_every_effect(lab: Lab, enforced: Enforced, knocking: Knocking, limits: dict[str, int]) -> None:
    """Kill a reload before each of its effects; with other maps, only before those that concern them."""
    gateway = enforced.gateway
    old, new = before(lab), after(lab, **limits)
    gateway.write(old)
    gateway.start()
    with watched(lab, knocking), contextlib.closing(Live(lab)) as live:
        for document in (new, old, new):  # some effects of the first reload persist
            gateway.reload(document)
        effects = enforced.effects()
        assert {"load", "carry_over"} <= set(effects) if limits else "load" not in effects
        live.check("the new file")
        gateway.reload(old)
        for number, effect in enumerate(effects):
            if limits and not effects.index("load") <= number < effects.index("detach"):
                continue  # same effect as without new maps
            when = f"killed before effect {number}, {effect}, of {effects}"
            enforced.interrupt(number)
            said = len(gateway.said())
            gateway.write(new)
            with pytest.raises(ReportedError, match="was killed by signal 9"):
                enforced.reload()
            assert enforced.interrupted, when
            half = "the configuration in force is restored" in gateway.said()[said:]
            assert half is (number > 0), when
            check_new(lab, (SHARED, LAX3), when)
            live.check(when)
            enforced.healed()
            check_new(lab, (second_of(enforced),), f"healed, {when}")
            live.check(f"healed, {when}")
            assert knocking.heard() == [], when
            gateway.write(old)
            if second_of(enforced) is LAX3:
                enforced.reload()
        assert gateway.json("plan") == []
        assert gateway.json("status")["half_done"] is None
