"""Tests that from_origin answers neighbour solicitations for on-link ranges only (RFC 4861, 7.2.4)."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from lab.configuration import Document

from .box import MAC, NO_FILTER, REDIRECT, ROUTER, ROUTER_MAC, Box
from .box import document as plain_document
from .wire import Wire

TARGET = "2001:db8:1::77:5"
GROUP = "ff02::1:ff77:5"
GROUP_MAC = "33:33:ff:77:00:05"


@pytest.fixture(scope="module")
def document() -> Document:
    egress_ips = plain_document()["egress_ips"]
    egress_ips[0]["on_link"] = True  # 2001:db8:1::/64
    return plain_document(egress_ips=egress_ips)


def solicitation(target: str = TARGET, **fields: object) -> Packet:
    head = {"src": ROUTER[6], "dst": GROUP, "hlim": 255, **fields}
    ask = IPv6(**head) / ICMPv6ND_NS(tgt=target)
    return Ether(src=ROUTER_MAC, dst=GROUP_MAC) / ask / ICMPv6NDOptSrcLLAddr(lladdr=ROUTER_MAC)


def bare(target: str = TARGET, **fields: object) -> Packet:
    """A solicitation without the option."""
    head = {"src": ROUTER[6], "dst": GROUP, "hlim": 255, **fields}
    return Ether(src=ROUTER_MAC, dst=GROUP_MAC) / IPv6(**head) / ICMPv6ND_NS(tgt=target)


def answered(box: Box, question: bytes) -> Packet | None:
    program = box.program("from_origin", "out0")
    with box.counted() as counted:
        returned = program(question)
    if returned == NO_FILTER:
        assert not counted.packets and program.frame == question
        return None
    assert returned == REDIRECT and counted.packets == {"neighbour": 1}
    return Ether(program.frame)


def check(answer: Packet, target: str, to: str, mac: str, solicited: bool) -> None:
    assert (answer.src, answer.dst) == (MAC["out0"], mac)
    ip = answer[IPv6]
    assert (ip.src, ip.dst, ip.hlim, ip.nh, ip.plen) == (target, to, 255, 58, 32)
    advertisement = answer[ICMPv6ND_NA]
    assert (1, int(solicited), 1) == (advertisement.R, advertisement.S, advertisement.O)
    assert (advertisement.tgt, advertisement.code, advertisement.res) == (target, 0, 0)
    assert answer[ICMPv6NDOptDstLLAddr].lladdr == MAC["out0"]
    assert len(bytes(answer)) == 14 + 40 + 32
    given = advertisement.cksum
    del advertisement.cksum
    assert Ether(bytes(answer))[ICMPv6ND_NA].cksum == given


@pytest.mark.parametrize("target", ["2001:db8:1::", TARGET, "2001:db8:1:0:ffff:ffff:ffff:ffff"])
def test_a_solicitation_is_answered(box: Box, target: str) -> None:
    for make in (solicitation, bare):
        answer = answered(box, bytes(make(target)))
        assert answer is not None
        check(answer, target, ROUTER[6], ROUTER_MAC, solicited=True)


def test_a_probe_of_reachability_is_answered(box: Box) -> None:
    """A unicast solicitation to the interface's link-layer address (RFC 4861, 7.3.3)."""
    question = solicitation(dst=TARGET)
    question.dst = MAC["out0"]
    answer = answered(box, bytes(question))
    assert answer is not None
    check(answer, TARGET, ROUTER[6], ROUTER_MAC, solicited=True)


def test_duplicate_address_detection_is_answered_to_all(box: Box) -> None:
    """A solicitation with an unspecified source and without the option (RFC 4862, 5.4.3)."""
    answer = answered(box, bytes(bare(src="::")))
    assert answer is not None
    check(answer, TARGET, "ff02::1", "33:33:00:00:00:01", solicited=False)


def test_other_targets(box: Box) -> None:
    for target in (
        "2001:db8:0:1::1",
        "2001:db8:2::5",
        "2001:db8:1:1::",
        "2001:db8:0:ffff::",
        "fe80::1",
        "::",
    ):
        assert answered(box, bytes(solicitation(target))) is None


def test_what_is_not_valid_is_left_to_the_kernel(box: Box) -> None:
    """Invalid solicitations (RFC 4861, 7.1.1), and other packets."""
    assert answered(box, bytes(solicitation(hlim=254))) is None
    ip = IPv6(src=ROUTER[6], dst=GROUP, hlim=255)
    head = Ether(src=ROUTER_MAC, dst=GROUP_MAC)
    for other in (
        head / ip / ICMPv6ND_NS(tgt=TARGET, code=1),
        head / ip / ICMPv6ND_NA(tgt=TARGET),
        head / ip / ICMPv6EchoRequest(data=bytes(24)),
        head / ip / IPv6ExtHdrHopByHop() / ICMPv6ND_NS(tgt=TARGET),
        head / Dot1Q() / ip / ICMPv6ND_NS(tgt=TARGET),
        head / ARP() / Raw(bytes(60)),
    ):
        assert answered(box, bytes(other)) is None


def test_cut_at_every_byte(box: Box) -> None:
    whole = bytes(bare())
    for length in range(14 + 40, len(whole)):
        assert answered(box, whole[:length]) is None
    assert answered(box, whole) is not None


NONCE = bytes([14, 1, 1, 2, 3, 4, 5, 6])  # RFC 7527


@pytest.mark.parametrize("options", [0, 1, 2])
def test_a_wrong_checksum_is_not_answered(box: Box, options: int) -> None:
    question = bytes([bare(), bare(src="::") / Raw(NONCE), solicitation() / Raw(NONCE)][options])
    assert answered(box, question) is not None
    for at in range(14 + 40, len(question)):
        broken = bytearray(question)
        broken[at] ^= 1
        assert answered(box, bytes(broken)) is None


def test_on_the_wire(box: Box, wire: Wire) -> None:
    """The solicitation arrives at out0, and the advertisement leaves on the same link."""
    wire.taken(wire.origin)
    wire.origin.send(bytes(solicitation()))
    wire.settle("in0")
    answers = [Ether(frame) for frame in wire.taken(wire.origin)]
    (answer,) = [frame for frame in answers if ICMPv6ND_NA in frame]
    check(answer, TARGET, ROUTER[6], ROUTER_MAC, solicited=True)
