"""A gateway's kernel state as text that tests compare; it leaves out counters and ages."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from enforcer.datapath import tcx
from enforcer.kernel import links
from lab.netns import Namespace

_COMMANDS = (
    "ip -d address show",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "ip -4 rule show",
    "ip -6 rule show",
    "tc qdisc show",
    "nft -s list ruleset",
)
# Without net/ipv*/neigh: the kernel redraws reachable times every few hours (RFC 4861).
_SETTINGS = ("net/ipv4/conf", "net/ipv6/conf", "net/ipv4/ip_forward", "net/netfilter")
# Maps of the two policy banks: the first switch to the second bank pins its maps, and they stay.
_BANK = re.compile(r"/maps-\w+/\w+_[01]$")
_COUNTS = ("nf_conntrack_count",)


def snapshot(namespace: Namespace) -> dict[str, str]:
    """Addresses, routes, rules, qdiscs, filters, nftables, settings, pins and files of a gateway."""
    found = {command: namespace.run(*command.split()).stdout for command in _COMMANDS}
    names = re.findall(r"^\d+: ([^:@]+)", found["ip -d address show"], re.MULTILINE)
    for name in names:
        for hook in ("ingress", "egress"):
            command = f"tc filter show dev {name} {hook}"
            found[command] = namespace.run(*command.split(), check=False).stdout
    found["programs"] = namespace.call(_programs)
    found["settings"] = namespace.call(_settings)
    cookie = f"{namespace.cookie():x}"
    for root in ("/sys/fs/bpf/enforcer", "/run/enforcer"):
        place = Path(root) / cookie
        paths = sorted(str(path) for path in place.rglob("*") if not _BANK.search(str(path)))
        found[str(place)] = "\n".join(paths) if place.exists() else "none"
    return found


def difference(before: dict[str, str], after: dict[str, str]) -> str:
    """A unified diff of two snapshots; empty if they are equal."""
    lines = []
    for name in {**before, **after}:
        one, other = before.get(name, "").splitlines(), after.get(name, "").splitlines()
        lines += difflib.unified_diff(one, other, f"{name} (before)", f"{name} (after)", lineterm="", n=0)
    return "\n".join(lines)


def _programs() -> str:
    if not tcx.supported():
        return ""
    return "\n".join(
        f"{name} {direction} {len(tcx.programs(link.index, direction))}"
        for name, link in links.links().items()
        for direction in tcx.ATTACH_TYPES
    )


def _settings() -> str:
    lines = []
    for root in _SETTINGS:
        top = Path("/proc/sys") / root
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.name not in _COUNTS:
                try:
                    lines.append(f"{path} = {path.read_text().strip()}")
                except OSError:  # stable_secret is unreadable until it is set
                    continue
    return "\n".join(lines)
