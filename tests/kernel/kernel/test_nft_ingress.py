"""Tests of the interfaces at which ingress chains of other software handle arriving packets."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest

from enforcer.kernel import netlink, nft_ingress
from enforcer.kernel.netlink import ACK, CREATE, REQUEST, Channel, Message
from enforcer.kernel.nft import protocol
from enforcer.kernel.nft_ingress import (
    NFPROTO_NETDEV,
    NFTA_CHAIN_HOOK,
    NFTA_DEVICE_NAME,
    NFTA_DEVICE_PREFIX,
    NFTA_HOOK_DEVS,
    NFTA_HOOK_HOOKNUM,
    NUMBERS,
    Devices,
)
from enforcer.kernel.nft_marks import NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE
from lab.netns import run

# include/uapi/linux/netfilter/nf_tables.h
NEWCHAIN, NFTA_HOOK_PRIORITY, NFTA_CHAIN_TYPE = protocol.SUBSYSTEM | 3, 2, 7
FAMILIES = {"netdev": NFPROTO_NETDEV, "inet": protocol.NFPROTO_INET}


@pytest.fixture(autouse=True)
def links(netns: str) -> None:
    for pair in ("eth0 type veth peer name eth1", "in0 type veth peer name out0"):
        run(f"ip link add {pair}")


def found(*names: str) -> set[str]:
    devices = nft_ingress.devices()
    assert devices is not None
    return {name for name in names if name in devices}


def add_chain(family: str, name: str, *devices: bytes) -> bool:
    """Adds a chain with device attributes that nft(8) may not support; whether the kernel accepts it."""
    hook = netlink.nested(
        NFTA_CHAIN_HOOK,
        netlink.attribute(NFTA_HOOK_HOOKNUM, struct.pack(">I", NUMBERS[FAMILIES[family]])),
        netlink.attribute(NFTA_HOOK_PRIORITY, struct.pack(">i", 0)),
        netlink.nested(NFTA_HOOK_DEVS, *devices),
    )
    head = struct.pack(">BBH", FAMILIES[family], 0, 0)
    names = netlink.attribute(NFTA_CHAIN_TABLE, b"t\0") + netlink.attribute(
        NFTA_CHAIN_NAME, name.encode() + b"\0"
    )
    chain = Message(
        NEWCHAIN,
        REQUEST | CREATE | ACK,
        head + names + hook + netlink.attribute(NFTA_CHAIN_TYPE, b"filter\0"),
    )
    begin, end = (
        Message(kind, REQUEST, protocol.NFGEN_BATCH)
        for kind in (protocol.NFNL_MSG_BATCH_BEGIN, protocol.NFNL_MSG_BATCH_END)
    )
    with Channel(netlink.NETLINK_NETFILTER, "adding a chain") as channel:
        return not channel.transact([begin, chain, end])


@pytest.mark.parametrize("family", FAMILIES)
def test_chains_of_named_devices(family: str) -> None:
    run(f"nft add table {family} t")
    assert found("eth0", "eth1", "in0") == set()
    run(f"nft add chain {family} t one '{{ type filter hook ingress device eth0 priority 0; }}'")
    assert found("eth0", "eth1", "in0") == {"eth0"}
    run(
        f"nft add chain {family} t two '{{ type filter hook ingress devices = {{ eth1, in0 }} priority 0; }}'"
    )
    assert found("eth0", "eth1", "in0", "out0") == {"eth0", "eth1", "in0"}


@pytest.mark.parametrize("family", FAMILIES)
def test_chains_of_devices_by_a_prefix(family: str) -> None:
    """``devices = { "eth*", in0 }`` applies to present links and to later ones."""
    run(f"nft add table {family} t")
    prefix = netlink.attribute(NFTA_DEVICE_PREFIX, b"eth\0")
    if not add_chain(family, "one", prefix, netlink.attribute(NFTA_DEVICE_NAME, b"in0\0")):
        pytest.skip("this kernel lacks wildcards of devices (Linux 6.17)")
    assert found("eth0", "eth1", "eth2", "in0", "out0", "et") == {"eth0", "eth1", "eth2", "in0"}


def hook(*devices: bytes) -> Devices:
    return nft_ingress._devices({NFTA_HOOK_DEVS: b"".join(devices)})


def test_a_prefix_of_linux_6_16() -> None:
    """Linux 6.16 writes a prefix as a name without the terminating zero."""
    devices = hook(netlink.attribute(NFTA_DEVICE_NAME, b"eth"), netlink.attribute(NFTA_DEVICE_NAME, b"in0\0"))
    assert "eth7" in devices and "in0" in devices
    assert "in01" not in devices and "out0" not in devices


def chain(family: int, number: int, *devices: bytes) -> bytes:
    """The kernel's message of a chain, without its header."""
    hook = netlink.attribute(NFTA_HOOK_HOOKNUM, struct.pack(">I", number)) + netlink.nested(
        NFTA_HOOK_DEVS, *devices
    )
    names = netlink.attribute(NFTA_CHAIN_TABLE, b"t\0") + netlink.attribute(NFTA_CHAIN_NAME, b"c\0")
    return struct.pack(">BBH", family, 0, 0) + names + netlink.nested(NFTA_CHAIN_HOOK, hook)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize(
    "prefix",
    [netlink.attribute(NFTA_DEVICE_NAME, b"eth"), netlink.attribute(NFTA_DEVICE_PREFIX, b"eth\0")],
    ids=["6.16", "6.17"],
)
def test_messages_of_chains_with_a_prefix(
    monkeypatch: pytest.MonkeyPatch, family: int, prefix: bytes
) -> None:
    """Chains of other hooks, and of families without devices, do not count."""
    named = netlink.attribute(NFTA_DEVICE_NAME, b"in0\0")
    egress = netlink.attribute(NFTA_DEVICE_NAME, b"out0\0")
    told = [
        chain(family, NUMBERS[family], prefix, named),
        chain(family, 1, egress),
        chain(protocol.NFPROTO_IPV4, NUMBERS[family], egress),
    ]
    monkeypatch.setattr(Channel, "dump", lambda *_: iter(told))
    assert found("eth0", "eth7", "eth", "et", "in0", "in01", "out0") == {"eth0", "eth7", "eth", "in0"}


def test_a_list_of_devices_that_makes_no_sense_has_an_end() -> None:
    devices = hook(netlink.attribute(NFTA_DEVICE_NAME, b"in0\0"), struct.pack("=HH", 0, NFTA_DEVICE_NAME))
    assert devices == Devices(frozenset({"in0"}))


def test_chains_that_change_while_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function returns None without a retry or a wait: an incomplete list is not used."""
    chains = "".join(f"add chain inet t number{number}\n" for number in range(2000))
    run(f"nft -f - <<'END'\nadd table inet t\n{chains}END")
    receive, changed = Channel._receive, []

    def change_and_receive(channel: Channel) -> bytes:
        if len(changed) < 2:
            changed.append(run(f"nft add chain inet t change{len(changed)}"))
        return receive(channel)

    monkeypatch.setattr(Channel, "_receive", change_and_receive)
    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append)
    monkeypatch.setattr(netlink, "time", clock)
    assert nft_ingress.devices() is None
    assert waited == []
    monkeypatch.undo()
    assert nft_ingress.devices() == Devices()
