"""The fields of the language: the kind of each field's values, its notation and its operators."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from enforcer.policy.facts import DIMENSIONS, SAML

Kind = Literal["address", "port", "protocol", "country", "continent", "host", "text"]

EQUALITY = ("==", "!=", "in", "not in")
ORDER = ("<", "<=", ">", ">=")

OPERATORS: dict[Kind, tuple[str, ...]] = {
    "address": (*EQUALITY, *ORDER),
    "port": (*EQUALITY, *ORDER),
    "protocol": EQUALITY,
    "country": (*EQUALITY, "matches"),
    "continent": (*EQUALITY, "matches"),
    "host": (*EQUALITY, "matches"),
    "text": (*EQUALITY, "matches"),
}

NOUNS: dict[Kind, str] = {
    "address": "an address",
    "port": "a port",
    "protocol": "a protocol",
    "country": "a country",
    "continent": "a continent",
    "host": "a name",
    "text": "text",
}


@dataclass(frozen=True, slots=True)
class Field:
    """A field. ``many``: it is a list, and any(…) or all(…) reduces the comparison to one result."""

    name: str
    """The name in :mod:`enforcer.policy.facts`."""
    kind: Kind
    many: bool = False

    @property
    def written(self) -> str:
        """The field's notation in an expression."""
        if not self.many or self.name.startswith(SAML):
            return self.name
        before, dot, last = self.name.rpartition(".")
        return f"{before}[*].{last}" if before == "identity.groups" else f"{before}{dot}{last}[*]"


_PACKET: dict[str, Kind] = {
    "net.src.ip": "address",
    "net.dst.ip": "address",
    "net.src.port": "port",
    "net.dst.port": "port",
    "net.protocol": "protocol",
}
_KINDS: dict[str, Kind] = {"country": "country", "continent": "continent", "host": "host", "domains": "host"}
_MANY = {
    "identity.groups.id",
    "identity.groups.name",
    "identity.groups.email",
    "device_posture.checks.passed",
    "net.fqdn.domains",
}

FIELDS: dict[str, Field] = {name: Field(name, kind) for name, kind in _PACKET.items()} | {
    name: Field(name, _KINDS.get(name.rpartition(".")[2], "text"), name in _MANY) for name in DIMENSIONS
}
"""Fields by name, without SAML attributes, whose names are free."""

_ATTRIBUTE = f'{SAML}["…"]'

WRITTEN = (*(field.written for field in FIELDS.values()), _ATTRIBUTE)
"""The notation of all fields, for messages and documents."""

# Cloudflare's selectors (or prefixes of several) that are no fields here, with the text of the message.
_ELSEWHERE = {
    "app.": "needs Cloudflare's catalogue of applications; expected their hosts, as in "
    'any(net.fqdn.domains[*] in {"example.com"}), or their addresses',
    "net.fqdn.content_category": "needs Cloudflare's catalogue of sites; expected hosts, as in "
    'any(net.fqdn.domains[*] in {"example.com"})',
    "net.fqdn.security_category": "needs Cloudflare's catalogue of sites; expected hosts, as in "
    'any(net.fqdn.domains[*] in {"example.com"})',
    "net.sni.host": "is read from a connection that is decided already; expected net.fqdn.host",
    "net.sni.domains": "is read from a connection that is decided already; expected net.fqdn.domains[*]",
    "net.detected_protocol": "is read from a connection that is decided already; expected net.protocol and "
    "net.dst.port",
    "net.src.internal_src_ip": "is the address behind Cloudflare's tunnel; expected net.src.ip, which is the "
    "client's here",
    "device_posture.checks.failed": "is not in sessions; expected not "
    'any(device_posture.checks.passed[*] in {"…"})',
    "http.": "is read from a request, which no gateway of addresses sees; expected net.fqdn.host",
    "dns.": "is of DNS policies; expected net.fqdn.host or net.fqdn.domains[*]",
    "dlp.": "is read from a request, which no gateway of addresses sees; expected other fields",
}

_GROUPS = "identity.groups"


def find(name: str) -> Field | None:
    """Return the field of this name (without ``[*]``), or None."""
    return FIELDS.get(name)


def unknown(name: str) -> str:
    """Return the message for an unknown field, with the likely one."""
    for start, reason in _ELSEWHERE.items():
        if name == start or (start.endswith(".") and name.startswith(start)):
            return f"{name} {reason}"
    if name == _GROUPS:
        return f"{name} is groups, not one of their texts; expected {_GROUPS}[*].id, .name or .email"
    if name == SAML:
        return f"{name} is all attributes; expected one of them, {_ATTRIBUTE}"
    close = difflib.get_close_matches(name.lower(), FIELDS, n=1)
    right = f"{FIELDS[close[0]].written} (did you mean that?)" if close else f"one of {', '.join(WRITTEN)}"
    return f"{name} is no known field; expected {right}"
