"""What the kernel holds of what a plan is about, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Network

from enforcer.gateway.forwarding import Forwarding
from enforcer.kernel.addresses import InterfaceAddress
from enforcer.kernel.filters import Direction
from enforcer.kernel.links import Link
from enforcer.kernel.nft.ruleset import Ruleset


@dataclass(frozen=True)
class Actual:
    """What the kernel holds of what we care about."""

    links: Mapping[str, Link]
    held: frozenset[InterfaceAddress]
    ranges: frozenset[IPv6Network]
    """Those that are local by a route."""
    table: str | None
    hooks: Mapping[tuple[str, Direction], int]
    """Ids of our programs by interface and direction; 0: attached, but not as it should be."""
    sysctls: Mapping[str, str]
    programs: Mapping[str, int] = field(default_factory=dict)
    """Ids of the pinned programs by name; empty if what is loaded is out of date, lost or nothing."""
    lost: tuple[str, ...] = ()
    """Names of the maps and programs in force whose pins are gone."""
    tables: str = ""
    """Digest of the policy bank in force."""
    settings: tuple[int, ...] = ()
    """Settings in force, as `settings_of` gives them for the desired ones."""
    our_addresses: frozenset[InterfaceAddress] = frozenset()
    """Those of ``held`` that the enforcer put there."""
    our_ranges: frozenset[IPv6Network] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    """The names by which links got their role, by the present ones, where these differ."""
    was: Mapping[str, str] = field(default_factory=dict)
    """Settings as the enforcer found them, of those that it has changed."""
    noted_as: tuple[tuple[str, str], ...] = ()
    """Interfaces by their present name, each with another one under which settings of it were noted."""
    forgotten: bool = False
    """Whether what it found was in a state file that is lost."""

    @property
    def forwarding(self) -> Forwarding:
        """What of it is about forwarding."""
        bridges = tuple(sorted(link.name for link in self.links.values() if link.kind == "bridge"))
        return Forwarding(self.sysctls, self.was, self.forgotten, bridges, self.noted_as)

    def completed(self, ruleset: Ruleset) -> Ruleset:
        """The table for the links that are there, which drops what would be forwarded for others.

        Links that were renamed are not others.
        """
        renamed = tuple(sorted(now for now, listed in self.renamed.items() if listed in ruleset.inside))
        listed = (*ruleset.inside, *ruleset.outside)
        indexes = {name: self.links[name].index for name in listed if name in self.links}
        return self.forwarding.with_forward_drops(replace(ruleset, renamed=renamed, indexes=indexes))
