"""Links of other kinds than veth, over a link between two namespaces: tunnels, VLANs, MACsec, bonds.

The kernel must have them as modules, as Debian's kernel does.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from lab.netns import Namespace

WIREGUARD_PORT = 51820
KEPT_ALIVE = 25  # seconds


@dataclass(frozen=True)
class End:
    """One end of the existing link: a namespace, its device, and its addresses on that link."""

    namespace: Namespace
    device: str
    addresses: dict[int, str]


Builder = Callable[[str, int, End, End], None]


def build(kind: str, name: str, number: int, one: End, other: End) -> None:
    """Create a link ``name`` at both ends and set it up; ``number`` differs between links of a kind."""
    KINDS[kind][0](name, number, one, other)
    for end in (one, other):
        end.namespace.ip(f"link set {name} up")


def remove(kind: str, name: str, one: End, other: End) -> None:
    """Remove what :func:`build` made."""
    for end in (one, other):
        end.namespace.ip(f"link del {name}")
    if kind == "bond":
        one.namespace.ip(f"link del {_port(name)}")


def families(kind: str) -> tuple[int, ...]:
    """The address families that a link of this kind carries."""
    return KINDS[kind][1]


def has_ethernet(kind: str) -> bool:
    """Whether its packets have Ethernet headers."""
    return kind in ("vlan", "macsec", "bond")


def _vlan(name: str, number: int, *ends: End) -> None:
    for end in ends:
        end.namespace.ip(f"link add link {end.device} name {name} type vlan id {number}")


def _macsec(name: str, number: int, *ends: End) -> None:
    """One key in each direction; ``number`` is the 16-bit port, so a device can have many such links."""
    keys = [secrets.token_hex(16) for _ in ends]
    macs = [_mac(end) for end in ends]
    for here, mine, theirs, far in zip(ends, keys, reversed(keys), reversed(macs), strict=True):
        channel = f"port {number} address {far}"
        here.namespace.ip(
            f"link add link {here.device} name {name} type macsec port {number} encrypt on",
            f"macsec add {name} tx sa 0 pn 1 on key 00 {mine}",
            f"macsec add {name} rx {channel}",
            f"macsec add {name} rx {channel} sa 0 pn 1 on key 00 {theirs}",
        )


def _mac(end: End) -> str:
    (link,) = json.loads(end.namespace.run("ip", "-json", "link", "show", "dev", end.device).stdout)
    return str(link["address"])


def _port(name: str) -> str:
    return f"p-{name}"


def _bond(name: str, number: int, one: End, other: End) -> None:
    port = _port(name)
    one.namespace.ip(f"link add {port} type veth peer name {port} netns {other.namespace.name}")
    for end in (one, other):
        end.namespace.ip(
            f"link add {name} type bond mode active-backup miimon 100",
            f"link set {port} master {name}",
            f"link set {port} up",
        )


def _tunnel(options: str, family: int) -> Builder:
    def build_tunnel(name: str, number: int, one: End, other: End) -> None:
        for here, there in ((one, other), (other, one)):
            outer = f"local {here.addresses[family]} remote {there.addresses[family]}"
            here.namespace.ip(f"link add {name} type {options} {outer}")

    return build_tunnel


def _wireguard(name: str, number: int, *ends: End) -> None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from pyroute2 import WireGuard

    keys = [X25519PrivateKey.generate() for _ in ends]
    for here, key, there, other in zip(ends, keys, reversed(ends), reversed(keys), strict=True):
        here.namespace.ip(f"link add {name} type wireguard")
        peer = {
            "public_key": base64.b64encode(other.public_key().public_bytes_raw()).decode(),
            "endpoint_addr": there.addresses[4],
            "endpoint_port": WIREGUARD_PORT + number,
            "persistent_keepalive": KEPT_ALIVE,
            "allowed_ips": ["0.0.0.0/0", "::/0"],
        }
        private = base64.b64encode(key.private_bytes_raw()).decode()

        def configure(private: str = private, peer: dict[str, object] = peer) -> None:
            with WireGuard() as socket:
                socket.set(name, private_key=private, listen_port=WIREGUARD_PORT + number, peer=peer)

        here.namespace.call(configure)


KINDS: dict[str, tuple[Builder, tuple[int, ...]]] = {
    "wireguard": (_wireguard, (4, 6)),
    "vlan": (_vlan, (4, 6)),
    "macsec": (_macsec, (4, 6)),
    "bond": (_bond, (4, 6)),
    "ipip": (_tunnel("ipip", 4), (4,)),
    "sit": (_tunnel("sit", 4), (6,)),
    "ip6tnl": (_tunnel("ip6tnl mode any encaplimit none", 6), (4, 6)),
}
