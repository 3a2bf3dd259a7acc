"""The peers that are compared: gateways that forward, translate or limit in different ways."""

from __future__ import annotations

import os
import struct
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from bench.rig import traffic_facts
from bench.rig.generator import Run
from bench.rig.programs import Programs
from bench.rig.wire import INSIDE_INDEX, Wire
from enforcer.control.interpreter import PYTHON
from enforcer.datapath import fast_path, syscall, tcx
from enforcer.datapath.maps import Map, Maps
from enforcer.facts.store import Store
from enforcer.gateway.gateway import Gateway
from enforcer.instance import Instance
from enforcer.kernel import filters
from lab.configuration import Document, dump
from lab.netns import LabError


def _snat(how: str = "") -> str:
    return f"""
table inet bench {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    meta nfproto ipv4 oifname "out0" snat ip to 203.0.113.10 {how}
    meta nfproto ipv6 oifname "out0" snat ip6 to 2001:db8:1::10 {how}
  }}
}}
"""


_STATES = """
table inet bench {
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname "in0" ct state new accept
  }
}
"""


def _count(limit: int) -> str:
    return f"""
table inet bench_limit {{
  set origins4 {{ type ipv4_addr . inet_proto . inet_service; size 65535; flags dynamic; }}
  set origins6 {{ type ipv6_addr . inet_proto . inet_service; size 65535; flags dynamic; }}
  chain forward {{
    type filter hook forward priority filter;
    ct state new add @origins4 {{ ip daddr . meta l4proto . th dport ct count over {limit} }} drop
    ct state new add @origins6 {{ ip6 daddr . meta l4proto . th dport ct count over {limit} }} drop
  }}
}}
"""


class Peer:
    """A gateway that forwards in one way; the base class forwards without translation."""

    name = "plain forwarding"
    key = "plain"
    translates: ClassVar[bool] = False
    tracks: ClassVar[bool] = False

    def __init__(self, programs: Programs, suffix: str = ""):
        self.programs = programs
        self.wire = Wire(f"{self.key}{suffix}", programs)

    def __enter__(self) -> Peer:
        self.wire.__enter__()
        try:
            self.prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.__exit__()

    def prepare(self) -> None:
        """Installs what the peer needs in its gateway."""

    def reset(self) -> None:
        """Deletes all flows."""
        if self.tracks:
            self.wire.gateway.run("conntrack", "-F")

    def delivered(self, run: Run) -> int:
        """Packets that left as they should: translated, or unchanged if the peer does not translate."""
        return run.translated if self.translates else run.untranslated


class Floor(Peer):
    """A program that only redirects: the cost of the generator, both devices and the sink.

    It is attached as the enforcer's programs are.
    """

    name = "bare bpf_redirect (the floor)"
    key = "floor"
    _link: int | None = None

    def prepare(self) -> None:
        fd = self.programs.fds["redirect"]

        if tcx.supported():
            self._link = self.wire.gateway.call(lambda: tcx.link(INSIDE_INDEX, "ingress", fd))
        else:
            self.wire.gateway.call(lambda: by_clsact(fd))

    def __exit__(self, *_: object) -> None:
        if self._link is not None:
            os.close(self._link)
            self._link = None
        super().__exit__()


class ClassifierFloor(Floor):
    """The same program as a filter of a clsact qdisc: a redirect as tc(8) attaches it."""

    name = "bare bpf_redirect, by clsact"
    key = "clsact"

    def prepare(self) -> None:
        fd = self.programs.fds["redirect"]

        self.wire.gateway.call(lambda: by_clsact(fd))


def by_clsact(program: int) -> None:
    """Attaches a program to the inside interface of this namespace, as a clsact filter."""
    filters.ensure_clsact(INSIDE_INDEX)
    filters.attach(INSIDE_INDEX, "ingress", program, "enforcer/redirect")


class Snat(Peer):
    """One nftables rule: source NAT that keeps the client's port if it is free."""

    name = "nft SNAT"
    key = "nft"
    translates = True
    tracks = True

    @property
    def rules(self) -> str:
        """The ruleset, as nft reads it."""
        return _snat()

    def prepare(self) -> None:
        self.wire.gateway.run("nft", "-f", "-", text=self.rules)


class RandomSnat(Snat):
    """The same with nft's flag ``random``."""

    name = "nft SNAT random"
    key = "random"

    @property
    def rules(self) -> str:
        return _snat("random")


class FullyRandomSnat(Snat):
    """The same with ports that are always random, as the enforcer's are; its targets refer to this peer."""

    name = "nft SNAT fully-random"
    key = "fully"

    @property
    def rules(self) -> str:
        return _snat("fully-random")


class Stateful(Snat):
    """The same behind a forward chain that checks conntrack's state, as firewalls do."""

    name = "nft SNAT fully-random, ct state"
    key = "states"

    @property
    def rules(self) -> str:
        return _snat("fully-random") + _STATES


class Limited(FullyRandomSnat):
    """Base of the peers that limit an origin's connections."""

    def __init__(self, programs: Programs, limit: int = 40000):
        super().__init__(programs)
        self.limit = limit

    def prepare(self) -> None:
        super().prepare()
        self.restrict()

    def restrict(self) -> None:
        """Installs the limit."""

    def relax(self) -> None:
        """Removes the limit, without which many flows open fast; :meth:`restrict` installs it again."""


class Count(Limited):
    """A limit per origin with ct count of nftables."""

    name = "nft SNAT fully-random, ct count"
    key = "count"

    def restrict(self) -> None:
        self.wire.gateway.run("nft", "-f", "-", text=_count(self.limit))

    def relax(self) -> None:
        self.wire.gateway.run("nft", "delete table inet bench_limit")


class Connlimit(Limited):
    """A limit per origin with connlimit of iptables, which counts by address; a port is another condition."""

    name = "iptables SNAT --random-fully, connlimit"
    key = "iptables"

    def prepare(self) -> None:
        """Installs the rules with Debian's default iptables."""
        for command, source in (("iptables", "203.0.113.10"), ("ip6tables", "2001:db8:1::10")):
            snat = f"-t nat -A POSTROUTING -o out0 -j SNAT --to-source {source} --random-fully"
            self.wire.gateway.run(command, *snat.split())
        self.restrict()

    def restrict(self) -> None:
        rule = (
            "-A FORWARD -i in0 -m conntrack --ctstate NEW -m connlimit --connlimit-daddr"
            f" --connlimit-above {self.limit} -j DROP"
        )
        for command in ("iptables", "ip6tables"):
            self.wire.gateway.run(command, *rule.split())

    def relax(self) -> None:
        for command in ("iptables", "ip6tables"):
            self.wire.gateway.run(command, "-F", "FORWARD")


class Ruleset(Snat):
    """A given nftables ruleset."""

    def __init__(self, programs: Programs, suffix: str, name: str, text: str):
        super().__init__(programs, suffix)
        self.name = name
        self.text = text

    def prepare(self) -> None:
        self.wire.gateway.run("nft", "-f", "-", text=self.text)


class Enforcer(Peer):
    """The enforcer; its daemon does not run, as packets do not pass it."""

    name = "enforcer"
    key = "enforcer"
    translates = True
    tracks = True

    def __init__(
        self,
        programs: Programs,
        directory: Path,
        document: Document,
        suffix: str = "",
        name: str = "",
        *,
        informed: bool = False,
    ):
        """``informed``: with the sessions and names of :mod:`bench.rig.traffic_facts`."""
        super().__init__(programs, suffix)
        self.name = name or self.name
        self.file = directory / f"{self.wire.gateway.name}.yaml"
        self.document = document
        self.informed = informed

    def prepare(self) -> None:
        self.file.write_text(dump(self.document))
        if self.informed:
            self.instance.create()
            with Store(self.instance.facts_file) as store:
                traffic_facts.remember(store)
        done = self.wire.gateway.run(*PYTHON, "-m", "enforcer.workers.apply", str(self.file), check=False)
        if done.returncode:
            raise LabError(f"applying {self.file.name}: {done.stdout}{done.stderr}")

    @property
    def instance(self) -> Instance:
        """The gateway's cookie, directories and locks."""
        return Instance(self.wire.gateway.cookie())

    def maps(self) -> Maps:
        """The gateway's maps; the caller closes them."""
        return Gateway(self.instance).maps()

    def reset(self) -> None:
        """Deletes all flows and counts."""
        super().reset()
        with closing(self.maps()) as maps:
            for name in ("flows", "origins", "client_prefixes", "clients"):
                clear(getattr(maps, name))
            fast_path.invalidate(maps)


def clear(table: Map) -> None:
    """Deletes every element of a hash map."""
    keys, _ = table.items()
    if len(keys):
        attributes = struct.pack("<QQQQIIQQ", 0, 0, keys.ctypes.data, 0, len(keys), table.fd, 0, 0)
        syscall.call(syscall.MAP_DELETE_BATCH, attributes)
