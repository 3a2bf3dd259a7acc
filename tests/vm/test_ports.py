"""Tests of ports of a VRF and of Open vSwitch: no traffic leaves by them, and `check` refuses them."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from truth import packets, wait_for

from enforcer.config import load
from enforcer.errors import ConfigError
from enforcer.kernel import links, netlink
from enforcer.kernel.netlink import ACK, REQUEST, Channel, Message
from lab.capture import Capture
from lab.clients import udp_ask
from lab.configuration import dump
from lab.gateway import LabGateway
from lab.netns import LabError, Namespace
from lab.services import Services
from lab.topology import CLIENT2, ORIGIN1, Lab

PORT = "in1"
IPV6 = "fd00:2::1/64"
INSTEAD = {"vrf": "an interface in no VRF", "openvswitch": "an internal port of the switch"}

# include/uapi/linux/netlink.h, genetlink.h, openvswitch.h
NETLINK_GENERIC = 16
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
CMD_NEW, CMD_DEL = 1, 2
OVS_DP_ATTR_NAME, OVS_DP_ATTR_UPCALL_PID = 1, 2
OVS_VPORT_ATTR_TYPE, OVS_VPORT_ATTR_NAME, OVS_VPORT_ATTR_UPCALL_PID = 2, 3, 5
OVS_VPORT_TYPE_NETDEV = 1
DATAPATH, VPORT = ("ovs_datapath", 2), ("ovs_vport", 1)  # names and versions of the generic netlink families


def number(kind: int, value: int) -> bytes:
    return netlink.attribute(kind, struct.pack("=I", value))


def name(kind: int, value: str) -> bytes:
    return netlink.attribute(kind, value.encode() + b"\0")


def switch(family: tuple[str, int], command: int, datapath: int, *attributes: bytes) -> None:
    """Send one command to Open vSwitch's kernel module in the present namespace; skip without the module."""
    with Channel(NETLINK_GENERIC, "asking Open vSwitch") as channel:
        asked = struct.pack("=BBH", CTRL_CMD_GETFAMILY, 1, 0) + name(CTRL_ATTR_FAMILY_NAME, family[0])
        (answer,) = channel.ask([Message(GENL_ID_CTRL, REQUEST, asked)])
        if isinstance(answer, int):
            pytest.skip(f"missing: Open vSwitch ({os.strerror(answer)})")
        (number_of_family,) = struct.unpack("=H", netlink.attributes(answer, 4)[CTRL_ATTR_FAMILY_ID])
        head = struct.pack("=BBHi", command, family[1], 0, datapath)
        message = Message(number_of_family, REQUEST | ACK, head + b"".join(attributes))
        refused = channel.change([message])
        assert not refused, refused


@contextmanager
def taken(namespace: Namespace, kind: str) -> Iterator[str]:
    """Make the interface a port of a link of this kind; yields that link's name."""
    if kind == "vrf":
        try:
            namespace.ip("link add vrf9 type vrf table 99")
        except LabError as error:
            pytest.skip(f"missing: VRF ({error})")
        namespace.ip("link set vrf9 up", f"link set {PORT} master vrf9")
        try:
            yield "vrf9"
        finally:
            namespace.ip("link del vrf9")
        return

    def connect() -> None:
        switch(DATAPATH, CMD_NEW, 0, name(OVS_DP_ATTR_NAME, "ovs9"), number(OVS_DP_ATTR_UPCALL_PID, 0))
        index = links.links()["ovs9"].index
        port = [number(OVS_VPORT_ATTR_TYPE, OVS_VPORT_TYPE_NETDEV), name(OVS_VPORT_ATTR_NAME, PORT)]
        switch(VPORT, CMD_NEW, index, *port, number(OVS_VPORT_ATTR_UPCALL_PID, 0))

    namespace.call(connect)
    try:
        yield "ovs9"
    finally:
        namespace.call(lambda: switch(DATAPATH, CMD_DEL, 0, name(OVS_DP_ATTR_NAME, "ovs9")))


@pytest.mark.parametrize("kind", INSTEAD)
def test_a_port_is_refused_in_the_file(lab: Lab, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "enforcer.yaml"
    file.write_text(dump(lab.config()))
    assert load(file, interfaces=lab.gw.call(links.links))
    with taken(lab.gw, kind) as taker, pytest.raises(ConfigError) as refused:
        load(file, interfaces=lab.gw.call(links.links))
    wrong = f'"{PORT}" is a port of {taker}, which takes its packets; expected {INSTEAD[kind]}'
    assert wrong in str(refused.value)
    lab.gw.ip(f"addr replace {IPV6} dev {PORT} nodad")  # leaving a VRF removed them
    assert load(file, interfaces=lab.gw.call(links.links))


@pytest.mark.parametrize("kind", INSTEAD)
def test_a_port(gateway: LabGateway, services: Services, kind: str) -> None:
    lab = gateway.lab
    before, said = packets(gateway)["taken"], gateway.said()
    with (
        Capture(lab.net, "gw0", lab.directory, direction="in") as leaving,
        taken(lab.gw, kind) as taker,
    ):
        wait_for(lambda: f"{PORT} is a port of {taker} now" in gateway.said().removeprefix(said), patience=60)
        for family in (4, 6):
            with pytest.raises(OSError):  # the kernel may send an error: the VRF has no route
                udp_ask(lab.client2, ORIGIN1[family], timeout=2)
        assert kind == "vrf" or packets(gateway)["taken"] >= before + 2
        with pytest.raises(LabError) as refused:
            gateway.run("check")
        assert f"is a port of {taker}, which takes its packets; expected {INSTEAD[kind]}" in str(
            refused.value
        )
    assert not {source for source in leaving.sources() if source in CLIENT2.values()}
    # An interface that leaves a VRF loses its IPv6 addresses.
    lab.gw.ip(f"addr replace {IPV6} dev {PORT} nodad")
    wait_for(lambda: f"{PORT} is no port of {taker} any more" in gateway.said(), patience=60)
    for family in (4, 6):
        assert udp_ask(lab.client2, ORIGIN1[family], timeout=30).address not in CLIENT2.values()
