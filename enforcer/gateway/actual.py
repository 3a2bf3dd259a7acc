"""The actual state: what the kernel holds that a plan may change, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Network

from enforcer.datapath.settings import Settings
from enforcer.gateway.forwarding import Forwarding
from enforcer.kernel.addresses import InterfaceAddress
from enforcer.kernel.filters import Direction
from enforcer.kernel.links import Link
from enforcer.kernel.nft.ruleset import Ruleset


@dataclass(frozen=True)
class Actual:
    """The kernel's state at one moment."""

    links: Mapping[str, Link]
    held: frozenset[InterfaceAddress]
    ranges: frozenset[IPv6Network]
    """IPv6 ranges with a local route."""
    table: str | None
    hooks: Mapping[tuple[str, Direction], int]
    """Ids of the enforcer's programs by interface and direction; 0: attached by the wrong mechanism."""
    sysctls: Mapping[str, str]
    programs: Mapping[str, int] = field(default_factory=dict)
    """Ids of the pinned programs by name; empty if the programs are outdated, lost or not loaded."""
    lost: tuple[str, ...] = ()
    """Names of the maps and programs in force whose pins are missing."""
    tables: str = ""
    """Digest of the policy bank in force."""
    settings: Settings | None = None
    """The settings in force; None: none are, or their map is lost."""
    our_addresses: frozenset[InterfaceAddress] = frozenset()
    """Those of ``held`` that the enforcer added."""
    our_ranges: frozenset[IPv6Network] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Listed name by present name, for links that were renamed after they got their role."""
    was: Mapping[str, str] = field(default_factory=dict)
    """Original values of the sysctls that the enforcer has changed."""
    noted_as: tuple[tuple[str, str], ...] = ()
    """(present name, name in the undo list) of interfaces that were renamed after a sysctl was noted."""
    forgotten: bool = False
    """Whether a lost state file held some of the original values."""

    @property
    def forwarding(self) -> Forwarding:
        """The part that decides about forwarding."""
        bridges = tuple(sorted(link.name for link in self.links.values() if link.kind == "bridge"))
        return Forwarding(self.sysctls, self.was, self.forgotten, bridges, self.noted_as)

    def completed(self, ruleset: Ruleset) -> Ruleset:
        """The ruleset with the links' present indexes and names, and with the drops of ``Forwarding``."""
        renamed = tuple(sorted(now for now, listed in self.renamed.items() if listed in ruleset.inside))
        listed = (*ruleset.inside, *ruleset.outside)
        indexes = {name: self.links[name].index for name in listed if name in self.links}
        return self.forwarding.with_forward_drops(replace(ruleset, renamed=renamed, indexes=indexes))
