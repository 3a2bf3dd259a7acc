"""Checks across entries of the configuration file, which are each valid alone; warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface
from pathlib import Path
from typing import Any

from enforcer.config.document import KeyPath
from enforcer.config.draft import Draft
from enforcer.config.expressions import check_expressions
from enforcer.config.fields import UNSPECIFIED
from enforcer.config.messages import listed, nearest
from enforcer.config.models import Configuration, PolicyEgress
from enforcer.constants import TCP, UDP
from enforcer.kernel.addresses import LOOPBACK
from enforcer.kernel.links import Link, below
from enforcer.policy.rules import MAX_POLICIES
from enforcer.policy.shadow import scope_of_policies, shadowed


def check(draft: Draft, interfaces: Mapping[str, Link] | None) -> None:
    """Note every fault across entries; ``interfaces`` as in :func:`enforcer.config.load`."""
    _check_location(draft, ("location",), draft.values.get("location"))
    _check_interfaces(draft, interfaces)
    _check_check_source(draft)
    _check_egress_ips(draft)
    _check_blocks(draft)
    _check_limits(draft)
    _check_mark_mask(draft)
    _check_policies(draft)
    _check_database(draft)
    check_expressions(draft)


def _check_location(draft: Draft, path: KeyPath, location: str | None) -> None:
    known = draft.document.data.get("locations")
    if location is not None and isinstance(known, dict) and known and location not in known:
        draft.fault(path, "is no key of `locations`", nearest(location, known))


# Programs at a VRF see no packets of its ports; the master of an Open vSwitch port is not its bridge.
_INSTEAD = {"vrf": "an interface in no VRF", "openvswitch": "an internal port of the switch"}
# These have the MAC address of the lower interface: the programs cannot tell their frames apart.
_SAME_MAC = ("ipvlan", "ipvtap")


def _check_interfaces(draft: Draft, existing: Mapping[str, Link] | None) -> None:
    listed = {name for side in ("inside", "outside", "other") for name in draft.interfaces.get(side, ())}
    seen: dict[str, KeyPath] = {}
    for side in ("inside", "outside", "other"):
        for index, name in enumerate(draft.interfaces.get(side, ())):
            path = ("interfaces", side, index)
            first = seen.setdefault(name, path)
            if first[1] != side:
                draft.fault(path, "stands on both sides", f"an interface that is not {first[1]} as well")
            elif first != path:
                draft.fault(path, "stands here twice", "each interface once")
            elif existing is not None:
                _check_link(draft, path, name, existing, listed)


def _check_link(
    draft: Draft, path: KeyPath, name: str, existing: Mapping[str, Link], listed: AbstractSet[str]
) -> None:
    """Note why an interface cannot be used."""
    if name not in existing:
        draft.fault(path, "does not exist", nearest(name, sorted(set(existing) - {LOOPBACK})))
        return
    link = existing[name]
    if link.port_of is not None:
        taker = existing.get(link.port_of)
        instead = _INSTEAD.get(taker.kind, link.port_of) if taker else link.port_of
        draft.fault(path, f"is a port of {link.port_of}, which takes its packets", instead)
    if link.kind == "vrf":
        draft.fault(path, "is a VRF, at which no program sees its ports' packets arrive", _INSTEAD["vrf"])
    for lower in below(link, existing) if link.kind in _SAME_MAC else ():
        if lower.name in listed:
            draft.fault(
                path,
                f"lies on {lower.name}, which is listed too, with the same MAC address ({link.kind})",
                "an interface with a MAC address of its own (macvlan), or a VLAN",
            )


def _check_check_source(draft: Draft) -> None:
    named, inside = draft.values.get("check_source"), draft.interfaces.get("inside")
    if isinstance(named, dict) and inside is not None:
        for name in named:
            if name not in inside:
                message = (
                    f'check_source: "{name}" is no inside interface; expected {nearest(str(name), inside)}'
                )
                draft.note(("check_source", name), message, key=True)


def _check_unique(draft: Draft, entries: dict[int, dict[str, Any]], key: str, field: str, noun: str) -> None:
    seen: dict[Any, int] = {}
    for index, fields in entries.items():
        if field in fields:
            first = seen.setdefault(fields[field], index)
            if first != index:
                line = draft.line((key, first, field))
                draft.fault((key, index, field), f"stands on line {line} already", f"{noun} of its own")


def _check_egress_ips(draft: Draft) -> None:
    _check_unique(draft, draft.egress_ips, "egress_ips", "name", "a name")
    for index, fields in draft.egress_ips.items():
        _check_location(draft, ("egress_ips", index, "location"), fields.get("location"))


@dataclass(frozen=True, slots=True)
class _Block:
    """The addresses of one entry. Of two overlapping blocks the one of higher ``rank`` has the fault."""

    network: IPv4Network | IPv6Network
    path: KeyPath
    owner: str
    rank: int

    @property
    def sort_key(self) -> tuple[int, int, int]:
        return self.network.version, int(self.network.network_address), self.network.prefixlen


def _single(address: IPv4Address | IPv6Address) -> IPv4Network | IPv6Network:
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


def _blocks(draft: Draft) -> Iterator[_Block]:
    for index, fields in draft.egress_ips.items():
        name = fields.get("name", f"egress_ips[{index}]")
        for family in ("ipv4", "ipv6"):
            if family in fields:
                value = fields[family]
                network = value if isinstance(value, IPv6Network) else _single(value)
                yield _Block(network, ("egress_ips", index, family), f"the egress IP {name}", 0)
    for family, address in draft.shared.items():
        yield _Block(_single(address), ("shared", family), "the shared address", 1)
    for index, network in draft.private_networks.items():
        yield _Block(network, ("private_networks", index), "a private network", 2)


def _check_blocks(draft: Draft) -> None:
    """Note overlaps: in order of address, the stack has all blocks that contain the current one."""
    clashes: dict[KeyPath, list[tuple[_Block, _Block]]] = {}
    stack: list[_Block] = []
    for block in sorted(_blocks(draft), key=lambda each: each.sort_key):
        while stack and not _contains(stack[-1].network, block.network):
            stack.pop()
        for outer in stack:
            first, second = sorted((outer, block), key=lambda each: (each.rank, each.path[1]))
            if first.rank == second.rank == 2 and first.network != second.network:
                continue  # private networks may contain each other
            clashes.setdefault(second.path, []).append((first, second))
        stack.append(block)
    for path, pairs in clashes.items():
        first, second = min(pairs, key=lambda pair: draft.line(pair[0].path))
        more = f" (and {len(pairs) - 1} more)" if len(pairs) > 1 else ""
        draft.fault(path, _clash(draft, first, second) + more, _remedy(second))


def _contains(outer: IPv4Network | IPv6Network, inner: IPv4Network | IPv6Network) -> bool:
    if outer.version != inner.version or outer.prefixlen > inner.prefixlen:
        return False
    shift = outer.max_prefixlen - outer.prefixlen
    return int(outer.network_address) >> shift == int(inner.network_address) >> shift


def _clash(draft: Draft, first: _Block, second: _Block) -> str:
    where = f"{first.owner} (line {draft.line(first.path)})"
    if first.network == second.network:
        return f"is also {where}" if first.rank else f"belongs to {where} already"
    if first.network.num_addresses == 1:
        return f"contains {first.network.network_address}, {where}"
    if second.network.num_addresses == 1:
        return f"lies in {first.network} of {where}"
    return f"overlaps {first.network} of {where}"


def _remedy(block: _Block) -> str:
    if block.rank == 0:
        return "an address of its own" if block.network.version == 4 else "a range that overlaps no other"
    return (
        "an address that is not dedicated" if block.rank == 1 else "a prefix without egress addresses, once"
    )


def _check_limits(draft: Draft) -> None:
    limits = draft.values.get("limits")
    if limits is None:
        return
    for name in ("flows_per_client", "unanswered_per_client"):
        most = getattr(limits, name)
        if most is not None and most > limits.flows:
            wrong = f"is more than the gateway can hold: limits.flows is {limits.flows:,}"
            draft.fault(("limits", name), wrong, f"{limits.flows:,} at most")


def _check_mark_mask(draft: Draft) -> None:
    mask = draft.values.get("mark_mask", Configuration.model_fields["mark_mask"].default)
    if mask is None:
        return
    width = mask.bit_count()
    # Marks: 0 other traffic, 1 the shared address, all ones a refusal, the others egress IPs.
    most = (1 << width) - 3
    count = len(draft.egress_ips)
    if count > most:
        needed = (count + 2).bit_length()
        path = ("mark_mask",) if "mark_mask" in draft.document.data else ("egress_ips",)
        draft.fault(
            path,
            f"is too narrow: {width} bits tell {most:,} egress IPs apart, here are {count:,}",
            f"{needed} bits, such as 0x{(1 << needed) - 1:x}",
        )


def _check_policies(draft: Draft) -> None:
    count = len(draft.policies)
    if count > MAX_POLICIES:
        draft.note(("policies",), f"policies: are {count:,}; expected {MAX_POLICIES:,} at most", key=True)
    _check_unique(draft, draft.policies, "policies", "name", "a name")
    _check_unique(draft, draft.policies, "policies", "precedence", "a precedence")
    owners: dict[Any, int] = {}
    for index, fields in draft.egress_ips.items():
        for family in ("ipv4", "ipv6"):
            if family in fields:
                owners.setdefault(fields[family], index)
    for index, fields in draft.policies.items():
        path, egress = ("policies", index, "egress"), fields.get("egress", "default")
        if isinstance(egress, PolicyEgress):
            _check_policy_egress(draft, path, egress, owners)
        elif egress != "default":
            _check_policy_egress_name(draft, path, egress)


def _check_policy_egress_name(draft: Draft, path: KeyPath, name: str) -> None:
    known = [fields.get("name") for fields in draft.egress_ips.values()]
    if name in known:
        return
    if name == "shared":
        draft.fault(path, "is no egress IP", "`default` for the shared address")
        return
    with suppress(ValueError):
        family = f"ipv{ip_interface(name).version}"
        draft.fault(path, "is an address where a name stands", f'{{{family}: "{name}"}}')
        return
    if None not in known:
        # An entry without a valid name, which has its own fault, may be the one that is meant.
        draft.fault(path, "is the name of no egress IP", nearest(name, ["default", *filter(None, known)]))


def _check_policy_egress(draft: Draft, path: KeyPath, egress: PolicyEgress, owners: dict[Any, int]) -> None:
    if egress.ipv4 is None and egress.ipv6 is None:
        draft.fault(path, "names no egress IP", "`default`, or one of the keys ipv4 and ipv6")
        return
    for field, value in egress:
        if value is not None and value not in owners and (field, value) != ("ipv4_fallback", UNSPECIFIED):
            _note_unowned(draft, (*path, field), field, value)
    primary = egress.ipv4 if egress.ipv4 is not None else egress.ipv6
    fallback = egress.ipv4_fallback
    if fallback in owners and owners[fallback] == owners.get(primary):
        draft.fault(
            (*path, "ipv4_fallback"),
            "is the policy's own egress IP",
            "another egress IP, or 0.0.0.0 (shared)",
        )


def _note_unowned(draft: Draft, path: KeyPath, field: str, value: IPv4Address | IPv6Network) -> None:
    if value == draft.shared.get("ipv4"):
        right = "0.0.0.0 for it" if field == "ipv4_fallback" else "`egress: default` for it"
        draft.fault(path, "is the shared address", right)
        return
    family = "ipv6" if isinstance(value, IPv6Network) else "ipv4"
    known = {each[family]: each.get("name") for each in draft.egress_ips.values() if family in each}
    for block, name in known.items():
        if isinstance(value, IPv6Network) and value.overlaps(block):
            draft.fault(path, f"is not the range of {name}", str(block))
            return
    if known and all(family in each for each in draft.egress_ips.values()):
        # An entry without a valid address, which has its own fault, may be the one that is meant.
        draft.fault(path, "belongs to no egress IP", nearest(str(value), map(str, known)))


def _check_database(draft: Draft) -> None:
    """Note a missing MaxMind DB file; loading it finds other faults."""
    path = draft.geoip.get("database")
    if path and not Path(path).is_file():
        wrong = "is no file" if Path(path).exists() else "does not exist"
        draft.fault(
            ("geoip", "database"), wrong, "a MaxMind DB, such as /var/lib/GeoIP/GeoLite2-Country.mmdb"
        )


def warnings(draft: Draft, configuration: Configuration) -> Iterator[tuple[KeyPath, str]]:
    """Yield warnings with their key paths; TooManyRulesError if the policies do not fit the match tables."""
    cities: dict[tuple[str, str], None] = {}
    for fields in draft.egress_ips.values():
        location = draft.locations[fields["location"]]
        cities[location["country"], location["city"]] = None
    if len(cities) < 2:
        names = listed(city for _, city in cities)
        yield (
            ("egress_ips",),
            f"egress_ips: all in one city ({names}); expected two egress IPs at least, in different "
            "cities, so that one can take over from the other",
        )
    here = draft.values["location"]
    if all(fields["location"] != here for fields in draft.egress_ips.values()):
        yield (
            ("egress_ips",),
            f"egress_ips: none at {here}, where this gateway stands; expected one at least, for "
            "traffic that no policy matches",
        )
    yield from _shadowed_policies(draft, configuration)


def _shadowed_policies(draft: Draft, configuration: Configuration) -> Iterator[tuple[KeyPath, str]]:
    """Yield a warning for each policy that never applies, with the policies that apply instead."""
    proxy, policies = configuration.proxy, configuration.policies
    protocols = [number for number, on in ((TCP, proxy.tcp), (UDP, proxy.udp)) if on]
    index = {policy.name: position for position, policy in enumerate(policies)}
    asked = scope_of_policies(protocols, configuration.private_networks)
    for one in shadowed(policies, configuration.named_lists, asked, configuration.tables):
        path = ("policies", index[one.name])
        lines = [f"{name} (line {draft.line(('policies', index[name]))})" for name in one.by]
        reason = one.reason
        if lines:
            reason = f"{listed(lines)} {'matches' if len(lines) == 1 else 'match'} all of its traffic first"
        yield path, f"policies[{path[1]}]: {one.name} never applies: {reason}"
