"""The ways through a gateway that are compared."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import ClassVar

from enforcer.bench import known
from enforcer.bench.generator import Run
from enforcer.bench.programs import Programs
from enforcer.bench.wire import INSIDE_INDEX, Wire
from enforcer.datapath import syscall
from enforcer.datapath.maps import Map, Maps
from enforcer.facts.store import Store
from enforcer.gateway import Gateway
from enforcer.instance import Instance
from enforcer.kernel import filters
from enforcer.lab.configuration import Document, dump
from enforcer.lab.netns import LabError

_SNAT = """
table inet bench {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    meta nfproto ipv4 oifname "out0" snat ip to 203.0.113.10 fully-random
    meta nfproto ipv6 oifname "out0" snat ip6 to 2001:db8:1::10 fully-random
  }
}
"""
_COUNT = """
table inet bench {
  set origins4 { type ipv4_addr . inet_proto . inet_service; size 65535; flags dynamic; }
  set origins6 { type ipv6_addr . inet_proto . inet_service; size 65535; flags dynamic; }
  chain forward {
    type filter hook forward priority filter;
    ct state new add @origins4 { ip daddr . meta l4proto . th dport ct count over 40000 } drop
    ct state new add @origins6 { ip6 daddr . meta l4proto . th dport ct count over 40000 } drop
  }
}
"""


class Peer:
    """A gateway that forwards in its way; the base class forwards plainly."""

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
        """Installs what this way needs."""

    def reset(self) -> None:
        """Forgets all flows."""
        if self.tracks:
            self.wire.gateway.run("conntrack", "-F")

    def delivered(self, run: Run) -> int:
        """Packets that left as they should."""
        return run.translated if self.translates else run.untranslated


class Floor(Peer):
    """A program that redirects and knows nothing: what the generator, both devices and the sink cost."""

    name = "bare bpf_redirect (the floor)"
    key = "floor"

    def prepare(self) -> None:
        """Attaches the program."""
        fd = self.programs.fds["redirect"]

        def attach() -> None:
            filters.ensure_clsact(INSIDE_INDEX)
            filters.attach(INSIDE_INDEX, "ingress", fd, "enforcer/redirect")

        self.wire.gateway.call(attach)


class Snat(Peer):
    """One nftables rule: source NAT with random ports."""

    name = "nft SNAT"
    key = "nft"
    translates = True
    tracks = True
    rules: ClassVar[str] = _SNAT

    def prepare(self) -> None:
        """Installs the table."""
        self.wire.gateway.run("nft", "-f", "-", text=self.rules)


class Count(Snat):
    """The same, and a limit per origin as nftables has it."""

    name = "nft SNAT + ct count"
    key = "count"
    rules = _SNAT + _COUNT


class Ruleset(Snat):
    """Some ruleset of nftables."""

    def __init__(self, programs: Programs, suffix: str, name: str, text: str):
        super().__init__(programs, suffix)
        self.name = name
        self.text = text

    def prepare(self) -> None:
        """Installs it."""
        self.wire.gateway.run("nft", "-f", "-", text=self.text)


class Enforcer(Peer):
    """This program, its daemon not running: packets don't meet it."""

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
        """``informed``: with the sessions and names of :mod:`enforcer.bench.known`."""
        super().__init__(programs, suffix)
        self.name = name or self.name
        self.file = directory / f"{self.wire.gateway.name}.yaml"
        self.document = document
        self.informed = informed

    def prepare(self) -> None:
        """Applies the configuration."""
        self.file.write_text(dump(self.document))
        if self.informed:
            self.instance.create()
            with Store(self.instance.facts_file) as store:
                known.remember(store)
        done = self.wire.gateway.run(sys.executable, "-m", "enforcer.apply", str(self.file), check=False)
        if done.returncode:
            raise LabError(f"applying {self.file.name}: {done.stdout}{done.stderr}")

    @property
    def instance(self) -> Instance:
        """The gateway's places."""
        return Instance(self.wire.gateway.cookie())

    def maps(self) -> Maps:
        """The gateway's maps, to be closed."""
        return Gateway(self.instance).maps()

    def reset(self) -> None:
        """Forgets all flows and counts."""
        super().reset()
        maps = self.maps()
        for name in ("flows", "origins", "clients"):
            clear(getattr(maps, name))
        maps.close()


def clear(table: Map) -> None:
    """Deletes every element of a hash map."""
    keys, _ = table.items()
    if len(keys):
        attributes = struct.pack("<QQQQIIQQ", 0, 0, keys.ctypes.data, 0, len(keys), table.fd, 0, 0)
        syscall.call(syscall.MAP_DELETE_BATCH, attributes)
