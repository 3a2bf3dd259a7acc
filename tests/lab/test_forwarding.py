"""Tests of forwarding: the enforcer enables it for the file's interfaces alone, not for other networks.

The gateway's unlisted interfaces here are in1; lan0, with a second network behind it; and ra0 and ra1, which
serve to manage the gateway and whose router advertises itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from snapshot import difference, snapshot
from truth import dedicated, packets, running, wait_for

from enforcer.instance import Instance
from lab import topology
from lab.clients import family_of, ping, tcp_ask, udp_ask
from lab.configuration import LAX1, LAX2, Document
from lab.gateway import LabGateway
from lab.netns import Namespace
from lab.services import Services
from lab.topology import CLIENT, CLIENT2, ORIGIN1, SHARED, Lab

LAN = {4: "10.30.0.2", 6: "fd30::2"}
NETWORKS = {4: ("10.0.2.0/24", "10.30.0.0/24"), 6: ("fd00:2::/64", "fd30::/64")}
GATEWAY_OUTSIDE = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}
OFF, ON = ({"net.ipv4.ip_forward": on, "net.ipv6.conf.all.forwarding": on} for on in (0, 1))
SIDES = {"inside": ["in0"], "outside": ["out0"]}
DEFAULT6 = "default via 2001:db8:ffff::fe"
PORT = 9100
SENT = 2

Way = tuple[int, str, str]
"""A family, and the interfaces by which packets arrive and leave."""
WAYS = {(family, *way) for family in (4, 6) for way in itertools.permutations(("in1", "lan0", "out0"), 2)}


@pytest.fixture(scope="module")
def wide(machine: None) -> Iterator[Lab]:
    """A lab with a second network behind lan0, and routes from outside to the unlisted networks."""
    with Lab(f"lab{os.getpid()}-wide") as lab, Services(lab):
        link(lab, "lan0", lab.private, "10.30.0.1/24", "fd30::1/64")
        lab.private.ip("addr add 10.30.0.2/24 dev lan0", "addr add fd30::2/64 dev lan0 nodad")
        for family, networks in NETWORKS.items():
            near = {4: "10.30.0.1", 6: "fd30::1"}[family]
            lab.private.ip(*(f"route add {to} via {near}" for to in (networks[0], ORIGIN1[family])))
            router = topology.SERVERS["origin1"][1 if family == 4 else 2]
            lab.origin1.ip(*(f"route add {to} via {router}" for to in networks))
        lead_inwards(lab)
        # The default route must not be the one that ra0's router advertises.
        lab.gw.ip(f"route del {DEFAULT6}", f"route add {DEFAULT6} metric 100")
        yield lab


def lead_inwards(lab: Lab) -> None:
    """Add the internet's routes to the unlisted networks."""
    for family, networks in NETWORKS.items():
        lab.net.ip(*(f"route replace {to} via {GATEWAY_OUTSIDE[family]}" for to in networks))


@pytest.fixture
def closed(wide: Lab) -> Lab:
    """A gateway that forwards nothing yet."""
    wide.gw.sysctls(OFF)
    return wide


def link(lab: Lab, name: str, to: Namespace, *addresses: str) -> None:
    lab.gw.ip(f"link add {name} type veth peer name {name} netns {to.name}")
    to.ip(f"link set {name} up")
    lab.gw.ip(*topology._interface(name, *addresses))


def config(lab: Lab, sides: dict[str, list[str]] = SIDES, **changes: object) -> Document:
    return lab.config(interfaces=sides, policies=[], **changes)


def passing(lab: Lab) -> set[Way]:
    """The ways by which datagrams of unlisted networks arrive with their own sources."""
    hosts = {"in1": (lab.client2, CLIENT2), "lan0": (lab.private, LAN), "out0": (lab.origin1, ORIGIN1)}
    found = set()
    with contextlib.ExitStack() as stack:
        sockets = {}
        for (name, (namespace, addresses)), family in itertools.product(hosts.items(), (4, 6)):
            made = namespace.socket(family_of(addresses[family]), socket.SOCK_DGRAM)
            sockets[family, name] = stack.enter_context(made)
            made.bind((addresses[family], PORT))
            made.setblocking(False)
        for _ in range(SENT):
            for family, start, end in WAYS:
                sockets[family, start].sendto(start.encode(), (hosts[end][1][family], PORT))
            time.sleep(0.1)
        for (family, end), receiver in sockets.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    start, sender = receiver.recvfrom(64)
                    assert sender[0] == hosts[start.decode()][1][family]
                    found.add((family, start.decode(), end))
    return found


def check_client(lab: Lab) -> None:
    for family, ask in itertools.product((4, 6), (tcp_ask, udp_ask)):
        assert ask(lab.client, ORIGIN1[family]).address in dedicated(family, CLIENT[family])


def is_settled(gateway: LabGateway) -> bool:
    return gateway.run("plan").stdout.startswith("nothing to do")


def is_served(lab: Lab, family: int) -> bool:
    try:
        return udp_ask(lab.client, ORIGIN1[family], timeout=0.5).address in dedicated(family, CLIENT[family])
    except OSError:
        return False


@pytest.mark.parametrize("before", [OFF, ON], ids=["off", "on"])
def test_networks_that_are_in_no_list(wide: Lab, before: dict[str, int]) -> None:
    """The gateway forwards them if it did before, through reload, kill, restart and end."""
    wide.gw.sysctls(before)
    expected = WAYS if before is ON else set()
    assert passing(wide) == expected
    with running(wide, config(wide)) as gateway:
        assert passing(wide) == expected
        # The kernel itself refuses IPv4 packets from in1 and lan0.
        assert packets(gateway)["not-forwarded"] == (0 if before is ON else SENT * (2 + 6))
        check_client(wide)
        gateway.reload(config(wide, limits={"connections_per_origin": 30000}))
        assert passing(wide) == expected
        gateway.kill()
        assert passing(wide) == expected
        gateway.start()
        assert passing(wide) == expected
        assert is_settled(gateway)
        check_client(wide)
    assert passing(wide) == expected


def test_networks_that_other_lists(closed: Lab) -> None:
    """`interfaces.other` forwards them from and to all other networks, until they leave the list."""
    lists: dict[str, tuple[dict[str, list[str]], set[Way]]] = {
        "both": (SIDES | {"other": ["in1", "lan0"]}, WAYS),
        "one": (SIDES | {"other": ["in1"]}, {way for way in WAYS if "lan0" not in way}),
        "none": (SIDES, set()),
    }
    with running(closed, config(closed, lists["both"][0])) as gateway:
        assert passing(closed) == WAYS
        for name in ("one", "none", "both", "none"):
            sides, expected = lists[name]
            gateway.reload(config(closed, sides))
            assert passing(closed) == expected, name
        # An inside interface leaves the lists: packets that its programs no longer see do not get out.
        gateway.reload(config(closed, SIDES | {"inside": ["in0", "in1"]}))
        gateway.reload(config(closed))
        assert passing(closed) == set()
        check_client(closed)


def test_forwarding_that_others_switch_on_later(closed: Lab) -> None:
    """Other software may set ip_forward; IPv6's switch is in use, so it lists its interfaces in `other`."""
    with running(closed, config(closed)):
        assert passing(closed) == set()
        closed.gw.sysctl("net.ipv4.ip_forward", 1)
        wait_for(lambda: passing(closed) == {way for way in WAYS if way[0] == 4}, "forwarding for all")
        closed.gw.sysctls(OFF)
        wait_for(
            lambda: all(is_served(closed, family) for family in (4, 6)), "forwarding for the listed ones"
        )
        assert passing(closed) == set()


def test_what_a_bridge_passes_is_not_forwarded(closed: Lab) -> None:
    """br_netfilter, which Docker enables, shows bridged packets to nftables; no event reports that change."""
    hosts = (closed.private, closed.resolver)
    setting = "net.bridge.bridge-nf-call-ip6tables"
    shown = value(closed, setting.replace(".", "/"))
    if not shown:
        pytest.skip("this kernel has no br_netfilter")
    closed.gw.ip("link add br0 type bridge", "link set br0 up")
    try:
        for number, host in enumerate(hosts, 1):
            link(closed, f"port{number}", host)
            closed.gw.ip(f"link set port{number} master br0")
            host.ip(f"addr add 10.40.0.{number}/24 dev port{number}")
            host.ip(f"addr add fd40::{number}/64 dev port{number} nodad")
        closed.gw.sysctl(setting, 0)
        with running(closed, config(closed)) as gateway:
            closed.gw.sysctl(setting, 1)
            for address in ("10.40.0.2", "fd40::2"):
                assert ping(closed.private, address, count=3).received == 3
            assert packets(gateway)["not-forwarded"] == 0
            assert passing(closed) == set()
    finally:
        closed.gw.sysctl(setting, shown)
        closed.gw.ip("link del br0", "link del port1", "link del port2")


# --- router advertisements


def advertise(router: Namespace, interface: str) -> None:
    """Send a router advertisement, as radvd does."""
    from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, IPv6
    from scapy.layers.l2 import Ether

    (shown,) = json.loads(router.run("ip", "-j", "address", "show", "dev", interface).stdout)
    address = next(each["local"] for each in shown["addr_info"] if each["local"].startswith("fe80:"))
    frame = (
        Ether(src=shown["address"], dst="33:33:00:00:00:01")
        / IPv6(src=address, dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=1800)
        / ICMPv6NDOptPrefixInfo(prefix="2001:db8:4a::", prefixlen=64)
    )
    with router.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        raw.send(bytes(frame))


def learnt(lab: Lab) -> set[str]:
    """The interfaces by which the gateway has a default route from a router advertisement."""
    routes = json.loads(lab.gw.run("ip", "-6", "-j", "route", "show", "default").stdout)
    return {route["dev"] for route in routes if route.get("protocol") == "ra"}


def learns(lab: Lab, interface: str, router: Namespace, there: str = "") -> bool:
    """Whether the gateway accepts advertisements now; ``there`` is the router's name of its interface."""
    lab.gw.run("ip", "-6", "route", "flush", "proto", "ra", "dev", interface)
    deadline = time.monotonic() + 2
    while interface not in learnt(lab):
        if time.monotonic() > deadline:
            return False
        advertise(router, there or interface)
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def advertised(lab: Lab, name: str) -> Iterator[None]:
    """A new interface that accepts advertisements by the kernel's default, and a router behind it."""
    lab.gw.sysctls({"net.ipv6.conf.default.accept_ra": 1})
    link(lab, name, lab.resolver)
    try:
        yield
    finally:
        lab.gw.ip(f"link del {name}")
        lab.gw.sysctls({"net.ipv6.conf.default.accept_ra": 0})


def test_a_managing_interface_keeps_its_router(closed: Lab) -> None:
    with advertised(closed, "ra0"):
        assert learns(closed, "ra0", closed.resolver)
        with running(closed, config(closed)) as gateway:
            assert learnt(closed) == {"ra0"}
            assert learns(closed, "ra0", closed.resolver)
            # Covers a later interface and an inside interface that is created again.
            with advertised(closed, "ra1"):
                assert learns(closed, "ra1", closed.resolver)
                make_again(closed, "in0")
                wait_for(lambda: is_settled(gateway), "all that belongs to in0")
                assert learnt(closed) == {"ra0", "ra1"}
                assert learns(closed, "ra1", closed.resolver)
            check_client(closed)
        assert learnt(closed) == {"ra0"}
        assert learns(closed, "ra0", closed.resolver)
        assert value(closed, "net/ipv6/conf/ra0/accept_ra") == "1"


def make_again(lab: Lab, name: str) -> None:
    """Replace an interface by a new one, as PPPoE, USB and networkd do."""
    lab.gw.ip(f"link del {name}")
    if name == "in0":
        lab.gw.ip(
            f"link add in0 type veth peer name eth0 netns {lab.client.name}",
            *topology._interface("in0", "10.0.1.1/24", "fd00:1::1/64"),
        )
        lab.client.ip(*topology._client(1))
    else:
        lab.gw.ip(f"link add out0 type veth peer name gw0 netns {lab.net.name}")
        lab.net.ip(*(line for line in lab._router() if "gw0" in line or GATEWAY_OUTSIDE[6] in line))
        lead_inwards(lab)
        lab.gw.ip(
            *topology._interface("out0", "198.51.100.1/24", f"{SHARED[6]}/64"),
            "route add default via 198.51.100.254",
            *(f"addr add {egress[4]}/32 dev out0" for egress in (LAX1, LAX2)),
        )


def test_an_uplink_that_is_made_again(closed: Lab) -> None:
    """The new link forwards at once and accepts advertisements as the old one did."""
    closed.gw.sysctl("net.ipv6.conf.default.accept_ra", 1)
    try:
        with running(closed, config(closed)):
            for _ in range(2):
                make_again(closed, "out0")
                wait_for(lambda: value(closed, "net/ipv4/conf/out0/forwarding") == "1", "IPv4", 5)
                wait_for(lambda: value(closed, "net/ipv6/conf/out0/forwarding") == "1", "IPv6", 5)
                assert learns(closed, "out0", closed.net, "gw0")
                for family in (4, 6):
                    wait_for(lambda family=family: is_served(closed, family), f"IPv{family}", 10)
                assert learnt(closed) == {"out0"}
            assert passing(closed) == set()
    finally:
        closed.gw.sysctl("net.ipv6.conf.default.accept_ra", 0)
        closed.gw.run("ip", "-6", "route", "flush", "proto", "ra", check=False)
        closed.gw.ip(f"route add {DEFAULT6} metric 100")


# --- down, and an upgrade from the version before


def value(lab: Lab, name: str) -> str:
    path = Path("/proc/sys", name)
    return lab.gw.call(lambda: path.read_text().strip() if path.exists() else "")


def written(lab: Lab, before: dict[str, str]) -> set[str]:
    """The interface settings that differ from the earlier snapshot."""
    lines = difference(before, snapshot(lab.gw)).splitlines()
    return {
        line.split()[0][1:].removeprefix("/proc/sys/net/")
        for line in lines
        if line.startswith("+/proc/sys/net/ipv")
    }


def test_down_puts_each_setting_back(closed: Lab) -> None:
    lived_in: dict[str, str | int] = {
        "net.ipv4.conf.lan0.forwarding": 1,
        "net.ipv4.conf.in1.accept_redirects": 0,
        "net.ipv6.conf.lan0.forwarding": 1,
        "net.ipv6.conf.out0.forwarding": 1,
        "net.ipv6.conf.in1.accept_ra": 1,
        "net.ipv6.conf.out0.accept_ra": 1,
        "net.ipv6.conf.in0.accept_ra": 1,
    }
    with advertised(closed, "ra0"):
        closed.gw.sysctls(lived_in)
        before = snapshot(closed.gw)
        with running(closed, config(closed, SIDES | {"other": ["in1", "lan0"]})) as gateway:
            gateway.reload(config(closed, SIDES | {"other": ["in1"]}))
            assert written(closed, before) == {
                *(f"ipv4/conf/{name}/forwarding" for name in ("in0", "in1", "lo", "out0")),
                *(f"ipv4/conf/{name}/accept_redirects" for name in ("in0", "out0")),
                *(f"ipv6/conf/{name}/forwarding" for name in ("all", "in0", "in1", "lo")),
                *(f"ipv6/conf/{name}/accept_ra" for name in ("in1", "ra0")),
            }
            gateway.reload(config(closed))
            gateway.kill()
            gateway.start()
            closed.gw.sysctl("net.ipv6.conf.all.forwarding", 0)  # this clears every interface's setting, too
            wait_for(lambda: is_settled(gateway), "forwarding")
            gateway.down()
        assert not written(closed, before)
    closed.gw.sysctls(ON | dict.fromkeys((name for name in lived_in if "accept_ra" in name), 0))
    closed.gw.sysctl("net.ipv4.conf.in1.accept_redirects", 1)


def forwarding(lab: Lab, *names: str) -> set[str]:
    """The forwarding settings of interfaces in both families."""
    return {value(lab, f"net/ipv{family}/conf/{name}/forwarding") for name in names for family in (4, 6)}


def call(lab: Lab, **names: str) -> None:
    """Rename those of the interfaces that exist."""
    for name, other in names.items():
        lab.gw.run("ip", "link", "set", name, "name", other, check=False)


def test_down_puts_back_what_renamed_interfaces_have(closed: Lab) -> None:
    """Each setting belongs to its link; another link with its name keeps its own settings."""
    closed.gw.sysctl("net.ipv6.conf.out0.accept_ra", 1)
    before = snapshot(closed.gw)
    try:
        with running(closed, config(closed)) as gateway:
            assert value(closed, "net/ipv6/conf/out0/accept_ra") == "2"
            assert forwarding(closed, "in0", "out0") == {"1"}
            gateway.kill()
            call(closed, in0="new0", out0="wan0")
            closed.gw.ip("link add in0 type veth peer name peer0")
            closed.gw.sysctl("net.ipv4.conf.in0.forwarding", 1)
            gateway.down()
            assert forwarding(closed, "new0", "wan0") == {"0"}
            assert value(closed, "net/ipv6/conf/wan0/accept_ra") == "1"
            assert value(closed, "net/ipv4/conf/in0/forwarding") == "1"
        assert passing(closed) == set()
    finally:
        closed.gw.run("ip", "link", "del", "peer0", check=False)
        call(closed, new0="in0", wan0="out0")
    assert not written(closed, before)
    closed.gw.sysctl("net.ipv6.conf.out0.accept_ra", 0)


def test_a_new_name_in_the_file_closes_as_the_old_one(closed: Lab) -> None:
    """Packets from a renamed interface reach no other network, whether the file lists the new name or not."""
    before = snapshot(closed.gw)
    lists = SIDES | {"other": ["in1"]}
    to_outside = {(4, "in1", "out0")}
    try:
        with running(closed, config(closed, lists)) as gateway:
            call(closed, out0="wan0")
            gateway.reload(config(closed, lists | {"outside": ["wan0"]}))
            assert passing(closed) == {way for way in WAYS if "lan0" not in way}
            gateway.reload(config(closed, SIDES | {"outside": ["wan0"]}))
            assert passing(closed) == set()
            check_client(closed)
            gateway.reload(config(closed, lists | {"outside": ["wan0"]}))
            call(closed, in1="vpn1")
            wait_for(lambda: passing(closed) == to_outside, "closed")
            gateway.reload(config(closed, SIDES | {"outside": ["wan0"]}))
            assert forwarding(closed, "vpn1") == {"0"}
            assert passing(closed) == set()
            gateway.down()
            assert forwarding(closed, "wan0") == {"0"}
    finally:
        call(closed, vpn1="in1", wan0="out0")
    assert not written(closed, before)


def as_the_version_before(lab: Lab, gateway: LabGateway, found: dict[str, str]) -> None:
    """Settings and state of an earlier version, which wrote ip_forward and IPv6's `all` setting.

    ``found`` has the settings from before the enforcer.
    """
    ours = ("/forwarding", "/force_forwarding", "/accept_ra", "/accept_redirects", "ip_forward")
    file = Instance(lab.gw.cookie()).state_file
    state = json.loads(file.read_text())
    undo = [entry for entry in state["undo"] if not entry.get("name", "").endswith(ours)]
    names = ["net/ipv4/conf/all/accept_redirects"]
    for family, switch in ((4, "net/ipv4/ip_forward"), (6, "net/ipv6/conf/all/forwarding")):
        start = f"net/ipv{family}/conf/"
        names += [
            name
            for name in found
            if name.startswith(start) and name.endswith("/forwarding") and "/all/" not in name
        ]
        names.append(switch)
    undo += [{"kind": "sysctl", "name": name, "was": found[name]} for name in names]
    file.write_text(json.dumps(state | {"undo": undo}))
    now = settings(lab)
    lab.gw.sysctls(
        {name: found[name] for name in found if name.endswith(ours[2:4]) and found[name] != now[name]}
    )
    lab.gw.sysctls(ON)
    assert set(settings(lab, "forwarding").values()) == {"1"}


def settings(lab: Lab, last: str = "*") -> dict[str, str]:
    def read() -> dict[str, str]:
        root = Path("/proc/sys")
        paths = [root / "net/ipv4/ip_forward"] if last == "*" else []
        for kind in ("forwarding", "accept_ra", "accept_redirects") if last == "*" else (last,):
            paths += root.glob(f"net/ipv[46]/conf/*/{kind}")
        return {str(path.relative_to(root)): path.read_text().strip() for path in paths}

    return lab.gw.call(read)


class Asking(threading.Thread):
    """A client that opens one connection after another and counts those without an answer."""

    def __init__(self, lab: Lab, family: int):
        super().__init__()
        self._lab, self._family = lab, family
        self.asked = self.lost = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            self.asked += 1
            self.lost += not is_served(self._lab, self._family)


def test_an_upgrade_of_the_version_that_switched_all_on(closed: Lab) -> None:
    with advertised(closed, "ra0"):
        before, found = snapshot(closed.gw), settings(closed)
        with running(closed, config(closed, fast_path=False)) as gateway:
            gateway.kill()
            as_the_version_before(closed, gateway, found)
            closed.gw.run("nft", "flush chain inet enforcer forward")  # that version drops nothing in forward
            assert passing(closed) == WAYS
            asking = [Asking(closed, family) for family in (4, 6)]
            for each in asking:
                each.start()
            gateway.start()
            for each in asking:
                each.over.set()
                each.join()
            assert [each.lost for each in asking] == [0, 0]
            assert min(each.asked for each in asking) > 20
            assert passing(closed) == set()
            on = {name for name, value in settings(closed, "forwarding").items() if value == "1"}
            assert on == {
                f"net/ipv{n}/conf/{name}/forwarding" for n in (4, 6) for name in ("all", "in0", "lo", "out0")
            }
            assert learns(closed, "ra0", closed.resolver)
            gateway.down()
        assert not written(closed, before)
