"""The operations of a plan: each is one step, and prints as what it does. Nothing is done here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from ipaddress import IPv6Network
from typing import ClassVar

from enforcer.errors import abridged
from enforcer.gateway.desired import Egress
from enforcer.kernel.addresses import InterfaceAddress
from enforcer.kernel.filters import Direction
from enforcer.kernel.nft.ruleset import Ruleset


@dataclass(frozen=True)
class Operation(ABC):
    """One step; `str()` is what `enforcer plan` prints."""

    prepares: ClassVar[bool] = False
    """Adds only what nothing uses yet: what was in force before is still in force after it."""

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(frozen=True)
class InstallTable(Operation):
    """The nftables table, as a whole in one transaction.

    ``trusted``: what is there is a table of ours, unchanged; connections passed through it translated.
    """

    prepares = True
    ruleset: Ruleset
    there: bool
    trusted: bool

    def __str__(self) -> str:
        done = "replace" if self.there else "install"
        return f"{done} nftables table inet enforcer ({len(self.ruleset.source4) - 1} egress IPs)"


@dataclass(frozen=True)
class AddAddress(Operation):
    """An IPv4 egress address or a shared address, on an outside interface."""

    prepares = True
    held: InterfaceAddress

    def __str__(self) -> str:
        return f"add address {self.held[1]} to {self.held[0]}"


@dataclass(frozen=True)
class RemoveAddress(Operation):
    """An address that the enforcer put there and that the file does not name."""

    held: InterfaceAddress

    def __str__(self) -> str:
        return f"remove address {self.held[1]} from {self.held[0]}"


@dataclass(frozen=True)
class AddRange(Operation):
    """An IPv6 egress range as a local route."""

    prepares = True
    network: IPv6Network

    def __str__(self) -> str:
        return f"add local range {self.network}"


@dataclass(frozen=True)
class RemoveRange(Operation):
    """A range that the enforcer put there and that the file does not name."""

    network: IPv6Network

    def __str__(self) -> str:
        return f"remove local range {self.network}"


@dataclass(frozen=True)
class LoadPrograms(Operation):
    """Compile and load the BPF programs; maps that fit are kept, others are carried over.

    ``lost``: names of maps and programs whose pins are gone. Lost flows are taken over from conntrack.
    """

    prepares = True
    first: bool
    lost: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.lost:
            return f"load BPF programs in place of lost ones ({abridged(self.lost)})"
        return "load BPF programs" if self.first else "upgrade BPF programs"


@dataclass(frozen=True)
class SwitchTables(Operation):
    """Egress IPs, settings and policies into the maps, then the switch."""

    def __str__(self) -> str:
        return "switch policies and settings"


@dataclass(frozen=True)
class Attach(Operation):
    """A program to an interface's hook."""

    interface: str
    direction: Direction
    program: str

    def __str__(self) -> str:
        return f"attach {self.program} to {self.interface} {self.direction}"


@dataclass(frozen=True)
class Detach(Operation):
    """Our program from an interface that no longer has this role."""

    interface: str
    direction: Direction

    def __str__(self) -> str:
        return f"detach from {self.interface} {self.direction}"


@dataclass(frozen=True)
class DetachUnknown(Detach):
    """Our program of which no state file tells, before anything else: nothing passes there from then on."""

    prepares = True


@dataclass(frozen=True)
class EndFlows(Operation):
    """The connections of egress IPs that are gone: they can't go on, and must not be counted on."""

    egresses: tuple[Egress, ...]

    def __str__(self) -> str:
        return f"end the connections of {', '.join(egress.name for egress in self.egresses)}"


@dataclass(frozen=True)
class TakeMulticast(Operation):
    """An outside interface receives all multicast: solicitations for an on-link range go to many groups."""

    interface: str

    def __str__(self) -> str:
        return f"set allmulti on {self.interface}"


@dataclass(frozen=True)
class SetSysctl(Operation):
    """A kernel setting."""

    prepares = True
    name: str
    value: str

    def __str__(self) -> str:
        return f"set {self.name.replace('/', '.')} = {self.value}"


@dataclass(frozen=True)
class SwitchFastPath(Operation):
    """The fast path on or off: live, and with nothing lost."""

    on: bool

    def __str__(self) -> str:
        return f"switch the fast path {'on' if self.on else 'off'}"
