"""Conversion of addresses, prefixes and ports to the form in the maps and back."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcer import address
from enforcer.datapath.banks import prefix_of

ADDRESSES = st.ip_addresses()
PREFIX = np.dtype([("length", "<u4"), ("address", "<u4", 4)])


def is_mapped(value: IPv4Address | IPv6Address) -> bool:
    return value.version == 6 and value.ipv4_mapped is not None


@given(ADDRESSES)
def test_what_is_packed_is_unpacked(value: IPv4Address | IPv6Address) -> None:
    assert len(address.pack(value)) == 16
    assert address.words(value).tobytes() == address.pack(value)
    if not is_mapped(value):
        assert address.unpack(address.words(value)) == value


def test_the_mapped_form() -> None:
    assert address.pack(ip_address("192.0.2.1")) == bytes(10) + b"\xff\xff\xc0\x00\x02\x01"
    assert address.unpack(np.frombuffer(bytes(10) + b"\xff\xff\xc0\x00\x02\x01", "<u4")) == ip_address(
        "192.0.2.1"
    )
    # With another bit in the prefix it is no mapped IPv4 address.
    assert address.unpack(np.frombuffer(bytes(10) + b"\xff\xfe\xc0\x00\x02\x01", "<u4")).version == 6


@given(st.integers(0, 128))
def test_mask_words(length: int) -> None:
    mask = int.from_bytes(address.mask_words(length).tobytes(), "big")
    assert mask == int(IPv6Network((0, length)).netmask)


@pytest.mark.parametrize("value", [0, 1, 53, 255, 256, 443, 65535])
def test_port(value: int) -> None:
    stored = int.from_bytes(value.to_bytes(2, "big"), "little")
    assert address.port(stored) == value
    assert address.port(np.uint16(stored)) == value


@given(ADDRESSES, st.integers(0, 128))
def test_an_address_lies_in_its_mapped_network(value: IPv4Address | IPv6Address, length: int) -> None:
    length = min(length, value.max_prefixlen)
    network = ip_network((value, length), strict=False)
    mapped = address.mapped(network)
    assert IPv6Address(address.pack(value)) in mapped
    assert mapped.prefixlen == length + (96 if network.version == 4 else 0)
    assert IPv6Address(address.pack(network.broadcast_address)) == mapped.broadcast_address


def test_the_key_of_a_prefix() -> None:
    for network, length in ((IPv4Network("10.0.0.0/8"), 104), (IPv6Network("fd00::/8"), 8)):
        key = prefix_of(network, PREFIX)
        assert key["length"] == length
        assert key["address"].tobytes() == address.pack(network.network_address)
