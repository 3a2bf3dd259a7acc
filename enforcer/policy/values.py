"""Readers of the values in expressions, by kind of field; WrongValueError says what is expected."""

from __future__ import annotations

import re
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
    summarize_address_range,
)

from enforcer.constants import ICMP, ICMPV6, MAPPED_NETWORK, TCP, UDP
from enforcer.policy.error import WrongValueError, cut
from enforcer.policy.expression import Network

PROTOCOLS = {
    "tcp": frozenset({TCP}),
    "udp": frozenset({UDP}),
    "icmp": frozenset({ICMP, ICMPV6}),
}
"""Protocol numbers by name. ``icmp`` includes ICMPv6: a policy means the same in both families."""


def protocol_name(number: int) -> str:
    """Return a protocol's name in expressions, or its number as text."""
    return next((name for name, numbers in PROTOCOLS.items() if number in numbers), str(number))


CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}

ADDRESS = "an IP address, such as 192.0.2.1 or 2001:db8::1"
PORT = "a port from 0 to 65535"
PROTOCOL = 'one of "tcp", "udp", "icmp"'
_CONTINENT = f"one of {', '.join(CONTINENTS)}"
_COUNTRY = 'two letters (ISO 3166), such as "US"'
_HOST = 'a name, such as "www.example.com"'
_RANGE = f"{PORT}, or a range such as 8000..8999 in {{…}}"

_NOT_COUNTRIES = {
    "UK": ("is no country code", '"GB"'),
    "EU": ("is a continent", 'net.….geo.continent == "EU"'),
    "XX": ("stands for countries that are not known, of which no comparison is true", "a country"),
    "T1": ("stands for the Tor network, which no MaxMind DB knows as a country", "a country"),
}

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def protocol(text: str) -> frozenset[int]:
    """Read a protocol's name; return its numbers."""
    name = text.lower()
    if name not in PROTOCOLS:
        raise WrongValueError("is no known protocol", PROTOCOL)
    return PROTOCOLS[name]


def ports(text: str) -> tuple[int, int]:
    """Read a port or a range; return first and last port."""
    first_text, dots, last_text = text.partition("..")
    first = _port(text, first_text)
    last = _port(text, last_text) if dots else first
    if first > last:
        raise WrongValueError("ends before it begins", f"{last}..{first}")
    return first, last


def port(text: str) -> int:
    """Read one port."""
    if ".." in text:
        raise WrongValueError("is a range", PORT)
    return _port(text, text)


def _port(whole: str, text: str) -> int:
    if re.fullmatch("0[xX][0-9a-fA-F]{1,8}", text):
        value = int(text, 16)
    elif re.fullmatch("[0-9]{1,9}", text):
        value = int(text)
        if len(text) > 1 and text.startswith("0"):
            raise WrongValueError("begins with a zero, which makes it octal", f"{value}, if that is meant")
    else:
        if _is_address(whole):
            raise WrongValueError("is an IP address", _RANGE)
        if re.fullmatch("[0-9]+-[0-9]+", whole):
            raise WrongValueError("is no port", f"a range of ports as in {{{whole.replace('-', '..')}}}")
        raise WrongValueError("is no port", _RANGE)
    if value > 0xFFFF:
        raise WrongValueError("is no port", _RANGE)
    return value


def _is_address(text: str) -> bool:
    try:
        ip_interface(text)
    except ValueError:
        return False
    return not text.isdigit()


def address(text: str) -> IPv4Address | IPv6Address:
    """Read one address."""
    if "/" in text or ".." in text:
        raise WrongValueError(f"is a {'prefix' if '/' in text else 'range'}", ADDRESS)
    (network,) = networks(text)
    return network.network_address


def networks(text: str) -> list[Network]:
    """Read an address, a prefix or a range of addresses; return its prefixes."""
    if "%" in text:
        raise WrongValueError("has a zone", "an address without %…")
    if ".." in text:
        return _address_range(text)
    try:
        network: Network = ip_network(text)
    except ValueError:
        raise _no_network(text) from None
    _refuse_mapped(network)
    return [network]


def _no_network(text: str) -> WrongValueError:
    try:
        prefix = ip_interface(text)
    except ValueError:
        what = "is a number" if text.isdigit() else "is no IP address"
        return WrongValueError(what, f"{ADDRESS}, or a prefix such as 192.0.2.0/24 in {{…}}")
    return WrongValueError(f"has bits set after the first {prefix.network.prefixlen}", str(prefix.network))


def _address_range(text: str) -> list[Network]:
    first_text, last_text = text.split("..", 1)
    try:
        first, last = ip_address(first_text), ip_address(last_text)
    except ValueError:
        raise WrongValueError("is no range of IP addresses", "a range such as 192.0.2.1..192.0.2.9") from None
    if first.version != last.version:
        raise WrongValueError("mixes IPv4 and IPv6", "two addresses of one family")
    if int(first) > int(last):
        raise WrongValueError("ends before it begins", f"{last}..{first}")
    found: list[Network] = list(summarize_address_range(first, last))
    for network in found:
        _refuse_mapped(network)
    return found


def _refuse_mapped(network: Network) -> None:
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.subnet_of(MAPPED_NETWORK):
        right = f"the IPv4 address, {network.network_address.ipv4_mapped}"
        raise WrongValueError("has IPv4-mapped addresses in it", right)


def ordered_networks(operator: str, bound: IPv4Address | IPv6Address) -> tuple[Network, ...]:
    """Return the addresses of the bound's family for which the comparison with it is true."""
    everything: Network = IPv4Network((0, 0)) if bound.version == 4 else IPv6Network((0, 0))
    number, top = int(bound), int(everything.broadcast_address)
    first, last = ordered(operator, number, top)
    if first > last:
        return ()
    kind = type(bound)
    return tuple(summarize_address_range(kind(first), kind(last)))


def ordered(operator: str, bound: int, top: int) -> tuple[int, int]:
    """Return the range within 0 … ``top`` for which the comparison is true; first > last if it is empty."""
    return {
        "<": (0, bound - 1),
        "<=": (0, bound),
        ">": (bound + 1, top),
        ">=": (bound, top),
    }[operator]


def country(text: str) -> str:
    """Read an ISO 3166-1 alpha-2 code."""
    code = text.upper()
    if code in _NOT_COUNTRIES:
        raise WrongValueError(*_NOT_COUNTRIES[code])
    if not re.fullmatch("[A-Z]{2}", code):
        raise WrongValueError("is no country code", _COUNTRY)
    return code


def continent(text: str) -> str:
    """Read a continent's code or English name; return its code."""
    code = next((code for code, name in CONTINENTS.items() if text.lower() == name.lower()), text.upper())
    if code == "T1":
        raise WrongValueError("stands for the Tor network, which no MaxMind DB knows", _CONTINENT)
    if code not in CONTINENTS:
        raise WrongValueError("is no continent", _CONTINENT)
    return code


def host(text: str) -> str:
    """Read a DNS name; return it in lower case without a final dot."""
    if not text.isascii():
        raise WrongValueError("is not ASCII, as DNS names are", _a_label(text))
    name = text.lower().removesuffix(".")
    if all(map(_LABEL.fullmatch, name.split("."))) and len(name) <= 253:
        if _is_address(name):
            raise WrongValueError("is an IP address", f"{_HOST} (net.dst.ip compares addresses)")
        return name
    if name.startswith(("*.", ".")):
        rest = name.lstrip("*.")
        raise WrongValueError(
            "stands for many names", f'any(net.fqdn.domains[*] == "{rest}"), which has them all'
        )
    raise WrongValueError("is a URL" if "/" in name else "is no DNS name", _HOST)


def _a_label(text: str) -> str:
    try:
        return f'the A-label, "{text.encode("idna").decode("ascii").lower()}"'
    except UnicodeError:
        return "the name's A-labels (xn--…)"


def text(value: str) -> str:
    """Return the text unchanged."""
    return value


_STEP = re.compile(
    rb'\\(?:(?P<same>["\\])|x(?P<hex>[0-9a-fA-F]{2})|(?P<octal>[0-3][0-7]{2}))|(?P<other>\\[\s\S]{0,4})'
)


def unquoted(token: str) -> str:
    r"""Read a quoted or raw string as wirefilter does: ``\"``, ``\\``, ``\xHH`` and ``\OOO`` are escapes."""
    if token.startswith("r"):
        return token[1:].strip("#")[1:-1]
    body = token[1:-1]
    if "\\" not in body:
        return body

    try:
        return _STEP.sub(_escape, body.encode()).decode("utf-8")
    except UnicodeError:
        raise WrongValueError("is not UTF-8", "text whose \\x escapes are bytes of UTF-8") from None


def _escape(found: re.Match[bytes]) -> bytes:
    if found["same"]:
        return found["same"]
    if found["hex"]:
        return bytes([int(found["hex"], 16)])
    if found["octal"]:
        return bytes([int(found["octal"], 8)])
    wrong = cut(found["other"].decode("utf-8", "replace")[:2])
    raise WrongValueError(
        f"has {wrong} in it, which is no escape", r'\" or \\ or \xHH or \OOO, or a raw string, r"…"'
    )


def pattern(token: str) -> str:
    r"""Read a regular expression: backslashes stay, except in ``\"`` outside of ``[…]``."""
    if token.startswith("r"):
        return unquoted(token)
    found, in_class, position, body = [], False, 0, token[1:-1]
    while position < len(body):
        character = body[position]
        if character == "\\" and position + 1 < len(body):
            position += 1
            following = body[position]
            found.append(following if following == '"' and not in_class else f"\\{following}")
        else:
            in_class = (in_class or character == "[") and character != "]"
            found.append(character)
        position += 1
    return "".join(found)
