"""Tests of invalidation by every kind of event in the middle of transfers, which go on byte by byte.

Transfers run in both families and both directions. The entries are fresh when the event occurs and valid for
four seconds: a packet that takes the new path earlier proves the invalidation.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from transfer import PATIENCE, PORT, Transfer
from truth import agree, look, running, stopped, wait_for

from enforcer.datapath import fast_path
from enforcer.inspect.flows import flows as view_flows
from enforcer.inspect.status import status as view_status
from lab.capture import Capture
from lab.configuration import LAX1
from lab.gateway import LabGateway
from lab.netns import Namespace, execute, veth
from lab.topology import GATEWAY, HOSTS, ORIGIN1, ORIGIN2, SHARED, Lab

# Bytes in each family and direction: MANY makes a gigabyte in all, for tests with many events.
MANY, SOME = 1 << 28, 1 << 25
AT_ONCE = fast_path.LIFETIME / 2
NEXT = {4: "198.51.100.254", 6: "2001:db8:ffff::fe"}  # the router's addresses on out0; NEXT1: on out1
NEXT1 = {4: "198.19.0.254", 6: "2001:db8:fffe::fe"}
TO_ORIGIN2 = {4: "198.18.2.0/24", 6: "2001:db8:a2::/64"}


@pytest.fixture(scope="module")
def lab(machine: None) -> Iterator[Lab]:
    """A lab with two uplinks; origin2 is behind out1."""
    with Lab(f"lab{os.getpid()}-events", outside=2) as built:
        yield built


@pytest.fixture(scope="module")
def gateway(lab: Lab) -> Iterator[LabGateway]:
    """Port 7100 of the transfers matches no policy at origin2: they leave by the nearest egress IP."""
    with running(lab) as enforced:
        yield enforced


@contextmanager
def transfers(
    gateway: LabGateway, origin: str, addresses: dict[int, str], least: int = MANY
) -> Iterator[list[Transfer]]:
    """One transfer in each family, on the fast path; at the end all bytes must arrive and counts agree."""
    lab = gateway.lab
    # A failed transfer ends with a reset, which conntrack may not have accepted.
    lab.gw.run("conntrack", "-F")
    with ExitStack() as stack:
        pair = [
            stack.enter_context(Transfer(lab.client, lab.namespaces[origin], address, least))
            for address in addresses.values()
        ]
        on_fast_path(gateway, pair)
        yield pair
        on_fast_path(gateway, pair)
        assert sum(transfer.finish() for transfer in pair) >= 4 * least
    agree(gateway)


def rows_of(gateway: LabGateway, pair: list[Transfer]) -> list[dict[str, Any]]:
    ports = {transfer.client_port for transfer in pair}
    return [
        row for row in look(gateway, view_flows) if row["client_port"] in ports and row["protocol"] == "tcp"
    ]


def on_fast_path(gateway: LabGateway, pair: list[Transfer]) -> None:
    """Wait until packets of both transfers take the fast path from now on."""
    before = {row["client_ip"]: row["fast_packets"] for row in rows_of(gateway, pair)}

    def taken() -> bool:
        now = rows_of(gateway, pair)
        return len(now) == len(pair) and all(
            row["path"] == "fast" and row["fast_packets"] > before.get(row["client_ip"], 0) for row in now
        )

    wait_for(taken, "the fast path")


def fast_path(source: Any) -> dict[str, Any]:
    return dict(view_status(source.instance)["fast_path"])


def generation(gateway: LabGateway) -> int:
    return look(gateway, lambda source: int(source.maps.fast_path.get(0)["generation"]))


@contextmanager
def stale_at_once(gateway: LabGateway, pair: list[Transfer], *, fresh: bool = True) -> Iterator[None]:
    """The block must invalidate all entries at once; with ``fresh`` all are learnt again before it."""
    if fresh:
        gateway.run("relearn")
        on_fast_path(gateway, pair)
    # The daemon may still have to handle earlier events.
    time.sleep(0.3)
    before = generation(gateway)
    yield
    wait_for(lambda: generation(gateway) != before, "what was learnt stale", AT_ONCE)


def ends(counted: Callable[[], int], what: str) -> None:
    """Assert that a count stops growing long before the entries would have expired."""
    deadline = time.monotonic() + AT_ONCE
    before = counted()
    while True:
        time.sleep(0.2)
        after = counted()
        # Neighbour discovery may add a few packets.
        if after - before <= 4:
            return
        assert time.monotonic() < deadline, f"{what}: {after - before} packets more"
        before = after


def arrived(namespace: Namespace, interface: str) -> int:
    """Packets that an interface has received."""
    return int(namespace.call(lambda: _statistics(interface)))


def _statistics(interface: str) -> int:
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == interface:
            return int(numbers.split()[1])
    raise AssertionError(f"no interface {interface}")


# --- by command


def test_relearn_by_hand(gateway: LabGateway) -> None:
    with transfers(gateway, "origin1", ORIGIN1) as pair:
        for _ in range(5):
            before = generation(gateway)
            assert gateway.run("relearn").stdout == "invalidated the fast-path entries of 2 flows\n"
            assert generation(gateway) != before
            on_fast_path(gateway, pair)


def test_the_fast_path_is_switched_off_and_on_live(gateway: LabGateway) -> None:
    """The switch takes effect at once, loses no packet and changes nothing else."""
    with transfers(gateway, "origin1", ORIGIN1, SOME) as pair:
        config = gateway.lab.config(fast_path=False)
        gateway.write(config)
        assert gateway.run("plan").stdout == "switch the fast path off\n"
        assert gateway.reload() == "switch the fast path off\n"
        assert look(gateway, fast_path) == {"on": False, "flows": 0}
        off = rows_of(gateway, pair)
        assert {row["path"] for row in off} == {"kernel"}
        # Events do not switch the fast path on.
        gateway.lab.gw.ip("route add 192.0.2.0/24 dev out0", "route del 192.0.2.0/24 dev out0")
        assert gateway.run("relearn").stdout == "the fast path is off: it has no entries\n"
        time.sleep(0.3)
        later = rows_of(gateway, pair)
        for before, after in zip(off, later, strict=True):
            assert after["path"] == "kernel"
            assert after["fast_packets"] == before["fast_packets"] > 0
            assert after["kernel_packets"] > before["kernel_packets"]
            assert after["packets"] == after["fast_packets"] + after["kernel_packets"]
        assert gateway.reload(gateway.lab.config()) == "switch the fast path on\n"
        on_fast_path(gateway, pair)
        assert look(gateway, fast_path) == {"on": True, "flows": 2}


# --- routes


def test_a_route_leads_elsewhere(gateway: LabGateway) -> None:
    """Covers routes in the main table and a rule that selects another table, there and back."""
    lab = gateway.lab
    with transfers(gateway, "origin2", ORIGIN2) as pair:
        changes = [
            [f"route replace {TO_ORIGIN2[family]} via {NEXT[family]}" for family in (4, 6)],
            [f"route replace {TO_ORIGIN2[family]} via {NEXT1[family]}" for family in (4, 6)],
            [f"route add {TO_ORIGIN2[family]} via {NEXT[family]} table 100" for family in (4, 6)]
            + [f"{flag} rule add iif in0 lookup 100" for flag in ("-4", "-6")],
            [f"{flag} rule del iif in0 lookup 100" for flag in ("-4", "-6")],
        ]
        for number, lines in enumerate(changes):
            left = "gw1" if number % 2 == 0 else "gw0"
            with stale_at_once(gateway, pair):
                for line in lines:
                    lab.gw.run("ip", *line.split())
            ends(lambda left=left: arrived(lab.net, left), left)
        on_fast_path(gateway, pair)


def test_an_event_is_heeded_while_a_reload_is_under_way(gateway: LabGateway) -> None:
    """The test stops the process that applies the file in the middle of the reload."""
    lab = gateway.lab
    with transfers(gateway, "origin2", ORIGIN2, SOME) as pair, ThreadPoolExecutor(1) as pool:
        gateway.run("relearn")
        on_fast_path(gateway, pair)
        reload = pool.submit(gateway.reload)
        wait_for(lambda: bool(children(gateway)), "a reload")
        (applying,) = children(gateway)
        with stopped(applying):
            with stale_at_once(gateway, pair, fresh=False):
                lab.gw.ip(*(f"route replace {TO_ORIGIN2[family]} via {NEXT[family]}" for family in (4, 6)))
            ends(lambda: arrived(lab.net, "gw1"), "gw1")
            lab.gw.ip(*(f"route replace {TO_ORIGIN2[family]} via {NEXT1[family]}" for family in (4, 6)))
        assert reload.result(PATIENCE) == "nothing changed\n"


def children(gateway: LabGateway) -> list[int]:
    """The daemon's child processes."""
    return [int(pid) for pid in Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()]


# --- nftables


def test_somebody_forbids_it(gateway: LabGateway) -> None:
    """The rule is in a table of other software, which the fast path does not evaluate."""
    lab = gateway.lab
    rules = f"""table inet others {{
        chain forward {{
            type filter hook forward priority 0
            tcp dport {PORT} drop
        }}
    }}"""
    with transfers(gateway, "origin1", ORIGIN1, SOME) as pair:
        with stale_at_once(gateway, pair):
            lab.gw.run("nft", "-f", "-", text=rules)
        ends(lambda: arrived(lab.origin1, "eth0"), "to the origin")
        lab.gw.run("nft", "delete", "table", "inet", "others")
        on_fast_path(gateway, pair)


# --- neighbours


def mac_of(namespace: Namespace, interface: str) -> str:
    (link,) = json.loads(namespace.run("ip", "-j", "link", "show", interface).stdout)
    return str(link["address"])


@pytest.mark.parametrize(("who", "interface"), [("net", "gw0"), ("client", "eth0")])
def test_a_neighbour_has_another_mac(gateway: LabGateway, who: str, interface: str) -> None:
    """The neighbour announces its new address itself, as a standby router does after a takeover."""
    lab = gateway.lab
    namespace = lab.namespaces[who]
    namespace.sysctls(
        {f"net.ipv4.conf.{interface}.arp_notify": 1, f"net.ipv6.conf.{interface}.ndisc_notify": 1}
    )
    old = mac_of(namespace, interface)
    with (
        transfers(gateway, "origin1", ORIGIN1) as pair,
        Capture(namespace, interface, lab.directory, expression=f"ether dst {old}", direction="in") as caught,
    ):
        with stale_at_once(gateway, pair):
            namespace.ip(f"link set {interface} address 02:00:00:00:77:{len(who):02x}")
        ends(lambda: sum(1 for _ in caught.frames()), f"to {old}")
        on_fast_path(gateway, pair)
        frames = sum(1 for _ in caught.frames())
        on_fast_path(gateway, pair)
        assert sum(1 for _ in caught.frames()) <= frames + 4


def test_a_neighbour_is_forgotten(gateway: LabGateway) -> None:
    """The gateway resolves the neighbour at once, as without the fast path."""
    lab = gateway.lab
    with transfers(gateway, "origin1", ORIGIN1, SOME) as pair:
        for family, router in NEXT.items():
            with stale_at_once(gateway, pair):
                lab.gw.ip(f"neigh del {router} dev out0")
            wait_for(
                lambda family=family, router=router: (
                    "lladdr" in lab.gw.run("ip", f"-{family}", "neigh", "show", router, "dev", "out0").stdout
                ),
                "the neighbour known",
                AT_ONCE,
            )


# --- interfaces


def test_an_outside_interface_is_deleted_and_made_again(gateway: LabGateway) -> None:
    """Without the interface the traffic follows the default route."""
    lab = gateway.lab
    said = len(gateway.said())
    with transfers(gateway, "origin2", ORIGIN2) as pair:
        with stale_at_once(gateway, pair):
            lab.gw.ip("link del out1")
        on_fast_path(gateway, pair)
        with stale_at_once(gateway, pair):
            execute(["ip", "-batch", "-"], "\n".join(_pair(lab, "gw", "out1", "net", "gw1")) + "\n")
            lab.net.ip(
                "link set gw1 up",
                "addr add 198.19.0.254/24 dev gw1",
                "addr add 2001:db8:fffe::fe/64 dev gw1 nodad",
            )
            lab.gw.ip(
                "link set out1 up",
                "addr add 198.19.0.1/24 dev out1",
                "addr add 2001:db8:fffe::1/64 dev out1 nodad",
                *(f"route add {TO_ORIGIN2[family]} via {NEXT1[family]}" for family in (4, 6)),
            )
        ends(lambda: arrived(lab.net, "gw0"), "gw0")
        wait_for(lambda: "restored: attach to_origin to out1 egress" in gateway.said()[said:])
        on_fast_path(gateway, pair)


def _pair(lab: Lab, role: str, name: str, peer: str, peer_name: str) -> list[str]:
    return [veth(name, lab.namespaces[role], peer_name, lab.namespaces[peer])]


def test_an_inside_interface_is_deleted_and_made_again(gateway: LabGateway) -> None:
    """The client's end goes with it and gets its addresses back; TCP retransmits what is lost meanwhile."""
    lab = gateway.lab
    said = len(gateway.said())
    with transfers(gateway, "origin1", ORIGIN1) as pair:
        with stale_at_once(gateway, pair):
            lab.gw.ip("link del in0")
            execute(["ip", "-batch", "-"], "\n".join(_pair(lab, "client", "eth0", "gw", "in0")) + "\n")
            lab.gw.ip(
                "link set in0 up", "addr add 10.0.1.1/24 dev in0", "addr add fd00:1::1/64 dev in0 nodad"
            )
            lab.client.ip(
                "link set eth0 up",
                *(f"addr add 10.0.1.{host}/24 dev eth0" for host in HOSTS),
                *(f"addr add fd00:1::{host:x}/64 dev eth0 nodad" for host in reversed(HOSTS)),
                f"route add default via {GATEWAY[4]}",
                f"route add default via {GATEWAY[6]}",
            )
        wait_for(lambda: "restored: attach from_client to in0 ingress" in gateway.said()[said:])
        on_fast_path(gateway, pair)


# --- addresses


def test_addresses_come_and_go(gateway: LabGateway) -> None:
    """Covers egress addresses, and the gateway's own addresses with the routes that depend on them."""
    lab = gateway.lab
    with transfers(gateway, "origin1", ORIGIN1) as pair:
        with stale_at_once(gateway, pair):
            lab.gw.ip(f"addr del {LAX1[4]}/32 dev out0")
        with stale_at_once(gateway, pair):
            lab.gw.ip(f"addr add {LAX1[4]}/32 dev out0")
        with stale_at_once(gateway, pair):
            lab.gw.ip(f"route del local {LAX1[6]} dev lo table local")
        with stale_at_once(gateway, pair):
            lab.gw.ip(f"route add local {LAX1[6]} dev lo table local")
        before = arrived(lab.net, "gw0")
        with stale_at_once(gateway, pair):
            lab.gw.ip(f"addr del {SHARED[4]}/24 dev out0", f"addr del {SHARED[6]}/64 dev out0")
            assert arrived(lab.net, "gw0") > before
        # IPv4 has no route left; the remaining IPv6 route leads to a neighbour.
        lab.gw.ip(
            f"addr add {SHARED[4]}/24 dev out0",
            f"addr add {SHARED[6]}/64 dev out0 nodad",
            f"route replace default via {NEXT[4]}",
            f"route replace default via {NEXT[6]}",
        )
        on_fast_path(gateway, pair)
