"""The operations of a plan: each describes one step and prints as what it does. Pure."""

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
    """Whether it only adds what nothing uses yet, so that the former state stays in force."""

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(frozen=True)
class InstallTable(Operation):
    """Installs the whole nftables table in one transaction.

    ``trusted``: the present table is ours and unchanged, so connections have been translated.
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
    """Adds an IPv4 egress address to an outside interface, or a shared address."""

    prepares = True
    held: InterfaceAddress

    def __str__(self) -> str:
        return f"add address {self.held[1]} to {self.held[0]}"


@dataclass(frozen=True)
class RemoveAddress(Operation):
    """Removes an address that the enforcer added and the file does not name."""

    held: InterfaceAddress

    def __str__(self) -> str:
        return f"remove address {self.held[1]} from {self.held[0]}"


@dataclass(frozen=True)
class AddRange(Operation):
    """Adds an IPv6 egress range as a local route."""

    prepares = True
    network: IPv6Network

    def __str__(self) -> str:
        return f"add local range {self.network}"


@dataclass(frozen=True)
class RemoveRange(Operation):
    """Removes a range that the enforcer added and the file does not name."""

    network: IPv6Network

    def __str__(self) -> str:
        return f"remove local range {self.network}"


@dataclass(frozen=True)
class LoadPrograms(Operation):
    """Compiles and loads the BPF programs; maps of the same layout are kept, others are carried over.

    ``lost``: names of maps and programs whose pins are missing. Lost flows are adopted from conntrack.
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
    """Writes egress IPs, settings and policies into the maps, then switches the bank."""

    def __str__(self) -> str:
        return "switch policies and settings"


@dataclass(frozen=True)
class Attach(Operation):
    """Attaches a program to an interface's hook."""

    interface: str
    direction: Direction
    program: str

    def __str__(self) -> str:
        return f"attach {self.program} to {self.interface} {self.direction}"


@dataclass(frozen=True)
class Detach(Operation):
    """Detaches our program from an interface that no longer has this role."""

    interface: str
    direction: Direction

    def __str__(self) -> str:
        return f"detach from {self.interface} {self.direction}"


@dataclass(frozen=True)
class DetachUnknown(Detach):
    """Detaches a program of ours that no state file describes, first of all: nothing passes there then."""

    prepares = True


@dataclass(frozen=True)
class EndFlows(Operation):
    """Ends the connections of removed egress IPs, which have no source address left and must not count."""

    egresses: tuple[Egress, ...]

    def __str__(self) -> str:
        return f"end the connections of {', '.join(egress.name for egress in self.egresses)}"


@dataclass(frozen=True)
class TakeMulticast(Operation):
    """Sets allmulti on an outside interface: solicitations for an on-link range go to many groups."""

    interface: str

    def __str__(self) -> str:
        return f"set allmulti on {self.interface}"


@dataclass(frozen=True)
class SetSysctl(Operation):
    """Writes a sysctl."""

    prepares = True
    name: str
    value: str

    def __str__(self) -> str:
        return f"set {self.name.replace('/', '.')} = {self.value}"


@dataclass(frozen=True)
class SwitchFastPath(Operation):
    """Switches the fast path on or off; live flows continue."""

    on: bool

    def __str__(self) -> str:
        return f"switch the fast path {'on' if self.on else 'off'}"
