"""Tests of upgrades from the version with other names of maps and fields: connections and counts stay."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from fastpath import rows
from snapshot import difference, snapshot
from test_policies import write_regions
from truth import OVER, agree, families, wait_for
from versions import program_copy, use_copy, version_at

from enforcer.cli.app import NOUNS
from enforcer.instance import Instance
from lab.clients import Session, UdpFlow, dig, fate, tcp_ask, udp_ask
from lab.configuration import LAX1, LAX2, Document
from lab.gateway import LabGateway
from lab.netns import Namespace
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, ORIGIN1, ORIGIN2, RESOLVER, SHARED, Lab

BEFORE = "0bb1c29d4db6833aa131fbfcaa3e7b627604223b"
"""The last commit before the renaming of maps and fields (enforcer/datapath/former_names.py)."""
ANN, SITE = "ann@corp.example", "bank.lab"
OTHER = {4: "10.0.1.3", 6: "fd00:1::3"}
"""The client's second address, which has no session."""
LIMIT = 3
COUNTRIES = {
    "DE": ("EU", ["198.18.1.0/24", "2001:db8:a1::/48"]),
    "FR": ("EU", ["198.18.2.0/24", "2001:db8:a2::/48"]),
}
QUESTION = ("--src", CLIENT[4], "--dst", ORIGIN1[4], "--protocol", "tcp", "--dport", "9000")
# Columns that change without an event.
_VOLATILE = {
    "age",
    "idle",
    "packets",
    "bytes",
    "fast_packets",
    "kernel_packets",
    "path",
    "last_matched",
    "expires",
    "state",
}
Row = dict[str, Any]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of the version before."""
    return version_at(BEFORE, tmp_path_factory.mktemp("earlier"))


@pytest.fixture
def config(lab: Lab, tmp_path: Path) -> Document:
    """Policies by session, host and country; the rest takes the nearest egress IP."""
    database = tmp_path / "countries.mmdb"
    write_regions(database, COUNTRIES)
    lax1, lax2 = ({"ipv4": egress[4], "ipv6": egress[6]} for egress in (LAX1, LAX2))
    france = 'net.dst.geo.country == "FR" and net.src.ip in {10.0.2.0/24 fd00:2::/64}'
    return lab.config(
        geoip={"database": str(database)},
        limits={"connections_per_origin": LIMIT},
        policies=[
            {"name": "ann", "precedence": 10, "identity": f'identity.email == "{ANN}"', "egress": lax1},
            {"name": "site", "precedence": 20, "traffic": f'net.fqdn.host == "{SITE}"', "egress": lax2},
            {"name": "france", "precedence": 30, "traffic": france, "egress": "default"},
        ],
    )


@pytest.fixture
def before(lab: Lab, services: Services, gateway: LabGateway, config: Document, earlier: Path) -> LabGateway:
    """A gateway that the version before enforces, with sessions and a learnt name."""
    use_copy(gateway, earlier)
    gateway.write(config)
    gateway.start()
    for family in (4, 6):
        gateway.run("session", "add", CLIENT[family], "--email", ANN)
        assert dig(lab.client2, RESOLVER[family], SITE, "A" if family == 4 else "AAAA") == [ORIGIN1[family]]
    return gateway


def present(gateway: LabGateway) -> None:
    """Make the gateway's commands and its next daemon use this version."""
    gateway.enforcer = gateway.enforcer[4:]
    gateway.argv = [*gateway.enforcer, "run"]


class Live:
    """Connections of every policy, both protocols and families: each must keep its address and port."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack):
        self.flows: list[Session | UdpFlow] = []
        pairs: list[tuple[Namespace, dict[int, str], dict[int, str], tuple[dict[int, str], ...]]] = [
            (lab.client, CLIENT, ORIGIN1, (LAX1,)),
            (lab.client, CLIENT, ORIGIN2, (LAX1,)),
            (lab.client2, CLIENT2, ORIGIN1, (LAX2,)),
            (lab.client2, CLIENT2, ORIGIN2, (SHARED,)),
            (lab.client, OTHER, ORIGIN2, (LAX1, LAX2)),
        ]
        self.seen = []
        for namespace, source, origin, egresses in pairs:
            for family in (4, 6):
                for kind in (Session, UdpFlow):
                    flow = stack.enter_context(kind(namespace, origin[family], source=source[family]))
                    self.flows.append(flow)
                    self.seen.append(flow.ask())
                    assert leaves_from(self.seen[-1].address, *egresses)

    def check(self) -> None:
        """Assert that the origins see each connection from its first address and port."""
        assert [flow.ask() for flow in self.flows] == self.seen

    def wait_until_fast(self, gateway: LabGateway) -> None:
        """Wait until every connection is on the fast path."""

        def are_fast() -> bool:
            for _ in range(4):
                self.check()
            found = [*rows(gateway, self.ports), *rows(gateway, self.ports, "udp")]
            return len(found) >= len(self.flows) and all(row["path"] == "fast" for row in found)

        wait_for(are_fast, "all on the fast path")

    @property
    def ports(self) -> set[int]:
        return {flow.socket.getsockname()[1] for flow in self.flows}


@pytest.fixture
def live(lab: Lab, before: LabGateway) -> Iterator[Live]:
    """Connections that are open before the upgrade."""
    with contextlib.ExitStack() as stack:
        yield Live(lab, stack)


def leaves_from(address: str, *egresses: dict[int, str]) -> bool:
    found = ip_address(address)
    return any(found in ip_network(egress[found.version]) for egress in egresses)


def without_age(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in _VOLATILE}


def facts(gateway: LabGateway, live: Live) -> dict[str, list[Row]]:
    """The live flows, origins' counts, policies' hits, sessions and names."""
    found = {noun: gateway.json(noun) for noun in ("flows", "origins", "policies", "sessions", "hosts")}
    ports = live.ports
    found["flows"] = [
        row for row in found["flows"] if row["client_port"] in ports and row["state"] not in OVER
    ]
    assert len(found["flows"]) == len(live.flows)
    return {noun: sorted((without_age(row) for row in found[noun]), key=repr) for noun in found}


def sticky(lab: Lab) -> list[str]:
    """The source addresses of new connections of a client without a policy."""
    return [tcp_ask(lab.client, ORIGIN2[family], 9000, OTHER[family]).address for family in (4, 6)]


def check_new(lab: Lab) -> None:
    """Assert the egress of new connections by session, by name without another look-up, and by country."""
    for family in (4, 6):
        for ask in (tcp_ask, udp_ask):
            assert leaves_from(ask(lab.client, ORIGIN1[family]).address, LAX1)
            assert leaves_from(ask(lab.client2, ORIGIN1[family]).address, LAX2)
            assert leaves_from(ask(lab.client2, ORIGIN2[family]).address, SHARED)


def is_refused(lab: Lab, family: int) -> bool:
    """Whether the limit refuses another connection of the session's client to origin1."""
    try:
        tcp_ask(lab.client, ORIGIN1[family])
    except OSError as error:
        return fate(error) == "refused"
    return False


def test_an_upgrade_loses_nothing(lab: Lab, before: LabGateway, live: Live) -> None:
    gateway = before
    check_new(lab)
    where = sticky(lab)
    live.wait_until_fast(gateway)
    agree(gateway)
    known = facts(gateway, live)
    gateway.stop()
    live.check()
    present(gateway)
    gateway.start()
    assert "upgrade BPF programs" in gateway.said()
    live.check()
    assert facts(gateway, live) == known
    live.wait_until_fast(gateway)
    agree(gateway)
    assert sticky(lab) == where
    check_new(lab)
    live.check()
    assert "Traceback" not in gateway.said()


@families
def test_the_limit_goes_on(lab: Lab, before: LabGateway, live: Live, family: int) -> None:
    with Session(lab.client, ORIGIN1[family]):
        before.stop()
        present(before)
        before.start()
        with Session(lab.client, ORIGIN1[family]):
            assert is_refused(lab, family)
        live.check()


def test_commands_read_the_version_before(lab: Lab, before: LabGateway, live: Live) -> None:
    """Until the daemon restarts, this version's commands work on the earlier version's maps."""
    gateway = before
    live.wait_until_fast(gateway)
    agree(gateway)
    known = facts(gateway, live)
    gateway.enforcer = gateway.enforcer[4:]
    assert facts(gateway, live) == known
    assert gateway.json("status")["fast_path"]["on"]
    for noun in set(NOUNS) - {"explain"}:
        assert "Traceback" not in gateway.run(noun).stderr, noun
    done = gateway.run("explain", *QUESTION, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the programs in force are of an earlier version and have no map explained",
        "The daemon upgrades them when it starts: systemctl restart enforcer",
    ]
    gateway.run("relearn")
    live.check()
    gateway.run("session", "add", OTHER[4], "--email", ANN)
    assert leaves_from(tcp_ask(lab.client, ORIGIN2[4], 9000, OTHER[4]).address, LAX1)
    live.wait_until_fast(gateway)


def test_down_takes_the_version_before_away(
    lab: Lab, services: Services, gateway: LabGateway, earlier: Path
) -> None:
    clean = snapshot(lab.gw)
    use_copy(gateway, earlier)
    gateway.start()
    with Session(lab.client, ORIGIN1[4]), Session(lab.client, ORIGIN1[6]):
        present(gateway)
        gateway.run("down")
        assert difference(clean, snapshot(lab.gw)) == ""


def test_a_package_that_is_replaced_under_the_daemon(
    lab: Lab, before: LabGateway, live: Live, earlier: Path, tmp_path: Path
) -> None:
    """Its new processes are of this version and cannot upgrade for the old daemon; a restart can."""
    gateway = before
    gateway.stop()
    present(gateway)
    shutil.copytree(earlier, tmp_path / "package")
    use_copy(gateway, tmp_path / "package")
    gateway.start()
    shutil.rmtree(tmp_path / "package" / "enforcer")
    program_copy(tmp_path / "package", lambda bpf: None)
    done = gateway.run("reload", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the daemon that runs is of an earlier version and cannot take part in an upgrade",
        "Restart it, connections go on: systemctl restart enforcer",
    ]
    live.check()
    check_new(lab)
    gateway.stop()
    gateway.start()
    assert "upgrade BPF programs" in gateway.said()
    live.check()
    check_new(lab)


def test_the_version_before_refuses_what_it_cannot_read(
    lab: Lab, services: Services, gateway: LabGateway, earlier: Path
) -> None:
    clean = snapshot(lab.gw)
    gateway.start()
    with Session(lab.client, ORIGIN1[4]) as session:
        gateway.stop()
        use_copy(gateway, earlier)
        state = Instance(lab.gw.cookie()).state_file
        content = json.loads(state.read_text())
        for command in ("run", "status", "flows"):
            done = gateway.run(command, check=False)
            assert done.returncode == 1
            assert "state was written by a later version of the enforcer" in done.stderr.splitlines()[0]
            assert len(done.stderr.splitlines()) == 2
        assert json.loads(state.read_text()) == content
        assert session.ask() == session.seen
        present(gateway)
        gateway.start()
        assert session.ask() == session.seen
        gateway.stop()
        use_copy(gateway, earlier)
        gateway.run("down")
        assert difference(clean, snapshot(lab.gw)) == ""
