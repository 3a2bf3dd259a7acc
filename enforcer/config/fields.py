"""Types of the configuration's fields: each validates one value; its error says what is expected."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from enforcer.constants import IFNAMSIZ, MAPPED_NETWORK
from enforcer.kernel.addresses import LOOPBACK
from enforcer.policy.language import MAX_LENGTH

UNSPECIFIED = IPv4Address("0.0.0.0")

# Special-purpose blocks (RFC 6890) that are never source addresses on the internet. Private and documentation
# addresses are allowed: a gateway may be behind another address translation.
_NEVER_A_SOURCE = {
    "an unroutable address": IPv4Network("0.0.0.0/8"),
    "a loopback address": IPv4Network("127.0.0.0/8"),
    "a link-local address": IPv4Network("169.254.0.0/16"),
    "a multicast address": IPv4Network("224.0.0.0/4"),
    "a reserved address": IPv4Network("240.0.0.0/4"),
}
_NEVER_A_SOURCE6 = {
    "loopback or unspecified": IPv6Network("::/96"),
    "IPv4-mapped": MAPPED_NETWORK,
    "link-local": IPv6Network("fe80::/10"),
    "multicast": IPv6Network("ff00::/8"),
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_WEEK = 604800


def _wrong(wrong: str, right: str) -> PydanticCustomError:
    """Return the error of a value: what is wrong, and what is expected."""
    return PydanticCustomError("wrong_value", "{wrong}; expected {right}", {"wrong": wrong, "right": right})


def _parse_address(value: object, right: str) -> IPv4Address | IPv6Address:
    if isinstance(value, IPv4Address | IPv6Address):
        return value
    if not isinstance(value, str):
        raise _wrong(f"is {type_name(value)}", right)
    try:
        return ip_address(value)
    except ValueError:
        pass
    try:
        prefix = ip_interface(value)
    except ValueError:
        raise _wrong("is not an IP address", right) from None
    raise _wrong(f"is a prefix of {prefix.network.num_addresses} addresses", right)


def _ipv4(value: object, right: str) -> IPv4Address:
    if isinstance(value, str) and ":" in value:
        raise _wrong("is an IPv6 range in an IPv4 field" if "/" in value else "is an IPv6 address", right)
    address = _parse_address(value, right)
    if isinstance(address, IPv6Address):
        raise _wrong("is an IPv6 address", right)
    return address


def _dedicated_ipv4(value: object) -> IPv4Address:
    right = "one IPv4 address, such as 203.0.113.10"
    address = _ipv4(value, right)
    for kind, network in _NEVER_A_SOURCE.items():
        if address in network:
            raise _wrong(f"is {kind} ({network})", right)
    return address


def _primary_ipv4(value: object) -> IPv4Address:
    right = "the IPv4 address of an egress IP, such as 203.0.113.10"
    address = _ipv4(value, right)
    if address == UNSPECIFIED:
        raise _wrong("means the shared address, which only ipv4_fallback may name", "`egress: default`")
    return address


def _fallback_ipv4(value: object) -> IPv4Address:
    return _ipv4(value, "the IPv4 address of another egress IP, or 0.0.0.0 for the shared address")


def _check_source6(network: IPv6Network, noun: str, right: str) -> None:
    for kind, special in _NEVER_A_SOURCE6.items():
        if network.overlaps(special):
            raise _wrong(f"is {noun} with {kind} addresses ({special})", right)


def _shared_ipv6(value: object) -> IPv6Address:
    right = "one IPv6 address, such as 2001:db8:ffff::1"
    address = _parse_address(value, right)
    if isinstance(address, IPv4Address):
        raise _wrong("is an IPv4 address", right)
    if address.scope_id is not None:
        raise _wrong("has a zone", right)
    _check_source6(IPv6Network(address), "an address in the block", right)
    return address


def _network(value: object, right: str) -> IPv4Network | IPv6Network:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise _wrong(f"is {type_name(value)}", right)
    try:
        prefix = ip_interface(value)
    except ValueError:
        raise _wrong("is not an IP prefix", right) from None
    if isinstance(prefix, IPv6Address) and prefix.scope_id is not None:
        raise _wrong("has a zone", right)
    if prefix.ip != prefix.network.network_address:
        raise _wrong(f"has bits set after the first {prefix.network.prefixlen}", str(prefix.network))
    return prefix.network


def _range6(value: object) -> IPv6Network:
    right = "an IPv6 range, such as 2001:db8:1::/64"
    network = _network(value, right)
    if isinstance(network, IPv4Network):
        raise _wrong("is IPv4 in an IPv6 field", right)
    return network


def _dedicated_range6(value: object) -> IPv6Network:
    network = _range6(value)
    _check_source6(network, "a range", "an IPv6 range, such as 2001:db8:1::/64")
    return network


def _private_network(value: object) -> IPv4Network | IPv6Network:
    network = _network(value, "a prefix, such as 10.20.0.0/16 or fd20::/48")
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        ipv4 = network.network_address.ipv4_mapped
        if ipv4 is not None:
            raise _wrong("is an IPv4-mapped prefix", str(IPv4Network((ipv4, network.prefixlen - 96))))
    return network


def _name(value: object) -> str:
    right = "letters, digits, '.', '_' and '-', 63 at most, beginning with a letter or digit"
    if not isinstance(value, str):
        raise _wrong(f"is {type_name(value)}", f'{right} (quote it: "{value}")')
    if not _NAME.fullmatch(value):
        raise _wrong("is empty" if not value else "is not a name", right)
    return value


def _egress_name(value: object) -> str:
    name = _name(value)
    if name in ("shared", "default"):
        raise _wrong("is reserved: it stands for the shared address", "another name")
    return name


def _title(value: object) -> str:
    right = "1 to 128 printable characters"
    if not isinstance(value, str):
        raise _wrong(f"is {type_name(value)}", f'{right} (quote it: "{value}")')
    if not value.strip() or len(value) > 128 or not value.isprintable() or value != value.strip():
        wrong = (
            "is empty"
            if not value.strip()
            else "is too long, or has blanks at its ends or unprintable characters"
        )
        raise _wrong(wrong, right)
    return value


def _interface(value: object) -> str:
    """Check as dev_valid_name() in net/core/dev.c; ``lo`` is refused."""
    right = "the name of a network interface, 15 bytes at most, such as eth0"
    if not isinstance(value, str):
        raise _wrong(f"is {type_name(value)}", f'{right} (quote it: "{value}")')
    if not value or value in (".", "..") or len(value.encode()) >= IFNAMSIZ or re.search(r"[\s/:]", value):
        raise _wrong("is no valid interface name", right)
    if value == LOOPBACK:
        raise _wrong("is the loopback interface", "an interface that forwards traffic")
    return value


def _country(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch("[A-Z]{2}", value):
        raise _wrong("is no country code", "two capital letters (ISO 3166), such as US")
    return value


def _mark_mask(value: object) -> int:
    right = "contiguous bits, 8 at least, within 32, such as 0x0000ffff"
    if isinstance(value, str):
        if not re.fullmatch("0[xX][0-9a-fA-F]{1,8}", value):
            raise _wrong("is not a mask", right)
        value = int(value, 16)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(f"is {type_name(value)}", right)
    if not 0 < value <= 0xFFFFFFFF:
        raise _wrong("does not fit into 32 bits", right)
    ones = value >> ((value & -value).bit_length() - 1)
    if ones & (ones + 1):
        raise _wrong("has a gap between its bits", right)
    if ones.bit_length() < 8:
        raise _wrong(f"is {ones.bit_length()} bits wide", right)
    return value


def _path(value: object) -> str:
    right = "the path of a file, such as /var/lib/GeoIP/GeoLite2-Country.mmdb"
    if not isinstance(value, str):
        raise _wrong(f"is {type_name(value)}", right)
    if not value.startswith("/"):
        raise _wrong("does not begin with /" if value else "is empty", right)
    if len(value) > 4095 or not value.isprintable():
        raise _wrong("is too long, or has unprintable characters", right)
    return value


def _list_value(value: object) -> str:
    right = "text, or a whole number"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _wrong(
            f"is {type_name(value)}", f'{right} (quote it: "{value}")' if value is not None else right
        )
    if not value.strip():
        raise _wrong("is empty", right)
    return value


def _resolver(value: object) -> IPv4Address | IPv6Address:
    return _parse_address(value, "the IP address of a resolver, such as 192.0.2.53")


def _expression(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(f"is {type_name(value)}", "an expression, such as 'net.dst.port in {80 443}'")
    return value


class Seconds:
    """The type of a timer: whole seconds, at least ``least``; ``rule`` is the reason for the minimum."""

    def __init__(self, least: int, rule: str):
        self._least = least
        self._rule = rule

    def __get_pydantic_core_schema__(self, *_: Any) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self._check, core_schema.int_schema(strict=True, ge=self._least, le=_WEEK)
        )

    def _check(self, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool) and value < self._least:
            raise _wrong("is too short", f"{self._least:,} seconds at least ({self._rule})")
        return value


def type_name(value: object) -> str:
    """Return the kind of a YAML value with its article, for messages."""
    names: dict[type, str] = {
        type(None): "empty",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        tuple: "a list",
        dict: "a group of keys",
    }
    return names.get(type(value), type(value).__name__)


_TEXT = PlainSerializer(str, return_type=str, when_used="json")
_PREFIX = "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"

DedicatedIPv4 = Annotated[
    IPv4Address, PlainValidator(_dedicated_ipv4), _TEXT, WithJsonSchema({"type": "string", "format": "ipv4"})
]
PrimaryIPv4 = Annotated[
    IPv4Address, PlainValidator(_primary_ipv4), _TEXT, WithJsonSchema({"type": "string", "format": "ipv4"})
]
FallbackIPv4 = Annotated[
    IPv4Address, PlainValidator(_fallback_ipv4), _TEXT, WithJsonSchema({"type": "string", "format": "ipv4"})
]
SharedIPv6 = Annotated[
    IPv6Address, PlainValidator(_shared_ipv6), _TEXT, WithJsonSchema({"type": "string", "format": "ipv6"})
]
Range6 = Annotated[
    IPv6Network, PlainValidator(_range6), _TEXT, WithJsonSchema({"type": "string", "pattern": _PREFIX})
]
DedicatedRange6 = Annotated[
    IPv6Network,
    PlainValidator(_dedicated_range6),
    _TEXT,
    WithJsonSchema({"type": "string", "pattern": _PREFIX}),
]
PrivateNetwork = Annotated[
    IPv4Network | IPv6Network,
    PlainValidator(_private_network),
    _TEXT,
    WithJsonSchema({"type": "string", "pattern": _PREFIX}),
]
Name = Annotated[
    str, PlainValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})
]
_EGRESS_NAME = WithJsonSchema(
    {"type": "string", "pattern": f"^{_NAME.pattern}$", "not": {"enum": ["shared", "default"]}}
)
EgressName = Annotated[str, PlainValidator(_egress_name), _EGRESS_NAME]
NamedEgress = Annotated[str, _EGRESS_NAME]
"""A policy's egress IP by name. enforcer/config/checks.py checks it, since it knows all names."""
Title = Annotated[
    str, PlainValidator(_title), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 128})
]
InterfaceName = Annotated[
    str,
    PlainValidator(_interface),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": IFNAMSIZ - 1, "pattern": r"^[^\s/:]+$"}),
]
Country = Annotated[
    str, PlainValidator(_country), WithJsonSchema({"type": "string", "pattern": "^[A-Z]{2}$"})
]
MarkMask = Annotated[
    int,
    PlainValidator(_mark_mask),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0xFF, "maximum": 0xFFFFFFFF},
                {"type": "string", "pattern": "^0[xX][0-9a-fA-F]{1,8}$"},
            ]
        }
    ),
]
Expression = Annotated[
    str, PlainValidator(_expression), WithJsonSchema({"type": ["string", "null"], "maxLength": MAX_LENGTH})
]
FilePath = Annotated[str, PlainValidator(_path), WithJsonSchema({"type": "string", "pattern": "^/"})]
ListValue = Annotated[
    str, PlainValidator(_list_value), WithJsonSchema({"type": ["string", "integer"], "minLength": 1})
]
Resolver = Annotated[
    IPv4Address | IPv6Address,
    PlainValidator(_resolver),
    _TEXT,
    WithJsonSchema({"type": "string", "pattern": "^[0-9A-Fa-f:.]+$"}),
]
Latitude = Annotated[float, Field(strict=True, ge=-90, le=90, allow_inf_nan=False)]
Longitude = Annotated[float, Field(strict=True, ge=-180, le=180, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
