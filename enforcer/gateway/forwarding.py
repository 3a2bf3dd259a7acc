"""Decides which forwarding sysctls to set: on for the listed interfaces, unchanged for all others. Pure.

IPv4: the kernel checks the ingress interface's setting (net/ipv4/route.c, ip_route_input_slow), so each
listed interface is switched on. ``ip_forward`` is not written: that would write the setting of every
interface (net/ipv4/devinet.c, inet_forward_change).

IPv6: the kernel checks ``conf/all`` (net/ipv6/ip6_output.c, ip6_forward; since Linux 6.17 also the
interface's force_forwarding). An interface's own setting makes it a router interface or a host interface:
Linux accepts router advertisements on a host interface, and on a router interface with accept_ra = 2
(ip-sysctl.rst). So ``conf/all`` is set and the settings that the kernel changes with it are restored, the
listed interfaces become router interfaces, and the others keep their role.

The loopback interface is switched on with the listed ones: the source check looks routes up from there where
an uplink's setting is off (route.h).

The nftables table drops what these settings would let the kernel forward for other interfaces
(:meth:`Forwarding.with_forward_drops`). A family that was forwarded for all before the first start keeps its
settings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from enforcer.gateway.desired import Desired
from enforcer.kernel.addresses import LOOPBACK
from enforcer.kernel.nft.ruleset import Ruleset

FOR_ALL = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
"""Names of the sysctls that forward for all interfaces, by family."""
DEFAULT = "default"
"""In place of an interface's name: the setting that new interfaces start with."""

Sysctls = Iterator[tuple[str, str]]
"""(name, value) of sysctls to write, in order."""


def forwards(family: int, interface: str) -> str:
    """The name of an interface's forwarding sysctl."""
    return f"net/ipv{family}/conf/{interface}/forwarding"


def accept_ra(interface: str) -> str:
    """The sysctl's name: 1 accepts router advertisements on a host interface, 2 on a router interface too."""
    return f"net/ipv6/conf/{interface}/accept_ra"


def accept_redirects(interface: str) -> str:
    """The sysctl's name. A router ignores redirects (RFC 1812, 5.2.7.2); Linux accepts them by default."""
    return f"net/ipv4/conf/{interface}/accept_redirects"


def sysctls(desired: Desired, interfaces: Iterable[str]) -> list[str]:
    """Names of the sysctls that the decisions depend on; an interface may lack some."""
    interfaces = list(interfaces)
    names = [*FOR_ALL.values(), *map(accept_redirects, desired.listed), *map(accept_ra, interfaces)]
    return names + [forwards(family, name) for family in FOR_ALL for name in [*interfaces, DEFAULT]]


@dataclass(frozen=True)
class Forwarding:
    """Sysctls by name: present values (``now``) and original values of the changed ones (``was``)."""

    now: Mapping[str, str]
    was: Mapping[str, str] = field(default_factory=dict)
    forgotten: bool = False
    """Whether original values were lost with the state file."""
    bridges: tuple[str, ...] = ()
    """Names of the bridges."""
    noted_as: tuple[tuple[str, str], ...] = ()
    """(present name, name in ``was``) of interfaces that were renamed since."""

    def is_ours(self, family: int) -> bool:
        """Whether forwarding was off for all interfaces before the enforcer switched it on."""
        name = FOR_ALL[family]
        if self.forgotten and family == 6 and self._now(forwards(6, DEFAULT)) == "0":
            return True  # `all` on and `default` off is what the enforcer leaves
        return self.was.get(name, self._now(name)) == "0"

    def with_forward_drops(self, ruleset: Ruleset) -> Ruleset:
        """Adds the rules that drop forwarding from and to unlisted interfaces.

        Frames that a bridge passes from port to port are accepted: the chain sees them once other software
        loads br_netfilter (Docker, Kubernetes, libvirt), which no event reports.
        """
        listed = self._called(ruleset.listed)
        opened = [name for name in listed if self.forgotten or self._before(4, name) == "0"]
        return replace(
            ruleset,
            opened4=tuple(opened) if self.is_ours(4) else (),
            closed6=self.is_ours(6),
            bridged6=tuple(name for name in self.bridges if self.is_ours(6) and name not in ruleset.listed),
        )

    def switch_off(self, desired: Desired, before: Iterable[Desired], interfaces: Iterable[str]) -> Sysctls:
        """Restores the settings of interfaces that are no longer listed."""
        listed = self._called(desired.listed)
        gone = dict.fromkeys(
            name for each in before for name in self._called(each.listed) if name not in listed
        )
        for family in filter(self.is_ours, FOR_ALL):
            # An earlier version switched every interface on. IPv4's ip_forward stays on until `down`: the
            # kernel would switch off the listed interfaces with it for a moment.
            all_on = self._now(forwards(family, DEFAULT)) != "0" and self._before(family, DEFAULT) == "0"
            others = [name for name in [*interfaces, DEFAULT] if name not in (*listed, LOOPBACK)]
            for interface in others if all_on else gone:
                now = self._now(forwards(family, interface))
                if now not in ("0", "") and self._before(family, interface) == "0":
                    yield forwards(family, interface), "0"
        for name in map(accept_redirects, gone):
            if self.was.get(name) == "1" and self._now(name) == "0":
                yield name, "1"

    def switch_on(self, desired: Desired, interfaces: Iterable[str]) -> Sysctls:
        """Switches forwarding on, IPv6 first."""
        if self.is_ours(6):
            yield from self._switch_on6(desired, interfaces)
        if self.is_ours(4):
            for interface in (*desired.listed, LOOPBACK):
                if self._now(accept_redirects(interface)) == "1" and self._before(4, interface) == "0":
                    yield accept_redirects(interface), "0"
                if self._now(forwards(4, interface)) == "0":
                    yield forwards(4, interface), "1"

    def _switch_on6(self, desired: Desired, interfaces: Iterable[str]) -> Sysctls:
        names = [FOR_ALL[6], *(forwards(6, interface) for interface in (*desired.listed, LOOPBACK))]
        off = [name for name in names if self._now(name) == "0"]
        for interface in interfaces:
            value = self._accept_ra(desired, interface, forgets=bool(off))
            if value != self._now(accept_ra(interface)) and interface != LOOPBACK:
                yield accept_ra(interface), value
        yield from ((name, "1") for name in off)

    def _accept_ra(self, desired: Desired, interface: str, *, forgets: bool) -> str:
        """The desired accept_ra of an interface.

        ``forgets``: an interface becomes a router interface, on which the kernel purges the advertised routes
        of all interfaces whose accept_ra is not 2 (net/ipv6/route.c, rt6_purge_dflt_routers).
        """
        now, listed = self._now(accept_ra(interface)), interface in self._called(desired.listed)
        host = self._now(forwards(6, interface)) == "0"
        if interface in self._called(desired.inside) or not (listed or host or forgets):
            # It was in another list before, or other software made it a router interface, which accepts none.
            return "1" if now == "2" and self.was.get(accept_ra(interface)) == "1" else now
        believes = forgets if host else listed and self._before(6, interface) == "0"
        return "2" if now == "1" and believes else now

    def _called(self, listed: Collection[str]) -> list[str]:
        """These interfaces, and the present names of those that were renamed."""
        renamed = (now for now, noted in self.noted_as if noted in listed)
        return list(dict.fromkeys([*listed, *renamed]))

    def _now(self, name: str) -> str:
        """The present value; empty if the sysctl does not exist."""
        return self.now.get(name, "")

    def _before(self, family: int, interface: str) -> str:
        """An interface's forwarding setting before the enforcer changed it."""
        name, default = forwards(family, interface), forwards(family, DEFAULT)
        if name in self.was:
            return self.was[name]
        # After an earlier version had switched forwarding on for all, new interfaces started with it on.
        if FOR_ALL[family] in self.was and self.was.get(default) == "0":
            return "0"
        return self.now.get(name, "0")
