"""A gateway in a network namespace of its own, for test runs of programs (BPF_PROG_TEST_RUN) and raw frames.

::

    client0 ── in0  10.1.0.1/16 fd01::1/64 │ gateway │ out0  192.0.2.1/24 2001:db8:0:1::1/64 ── origin0

The far ends of both links lie in the same namespace without an IP stack of their own: packet sockets send
and receive their frames. The default routes lead to origin0 through static neighbours.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from enforcer.datapath import counts, syscall
from enforcer.datapath.maps import Map, Maps
from enforcer.datapath.programs import Pins
from enforcer.gateway.gateway import Gateway
from enforcer.gateway.teardown import tear_down
from enforcer.instance import Instance
from enforcer.kernel import namespace
from enforcer.reasons import by_name, reasons
from lab import configuration
from lab.configuration import Document
from lab.netns import Namespace, inside, temporary

CLIENT = {4: "10.1.0.2", 6: "fd01::2"}
ORIGIN = {4: "198.18.1.10", 6: "2001:db8:a1::10"}
ROUTER = {4: "192.0.2.2", 6: "2001:db8:0:1::2"}
FAR = {"in0": "client0", "out0": "origin0"}
MAC = {"in0": "02:00:00:00:01:01", "out0": "02:00:00:00:02:01"}
CLIENT_MAC, ROUTER_MAC = "02:00:00:00:01:99", "02:00:00:00:02:99"
LARGEST = 4096

NO_FILTER, BLOCKED, REDIRECT = 0xFFFFFFFF, 2, 7
"""Return values of the programs: TC_ACT_UNSPEC (the next filter decides), TC_ACT_SHOT, TC_ACT_REDIRECT."""
OURS = REFUSED = 0xFFFF
"""The enforcer's bits of the mark; all of them set: refused."""

_number = itertools.count()


def document(**changes: object) -> Document:
    """The lab's configuration for the two interfaces here."""
    return configuration.document(
        **{  # type: ignore[arg-type]
            "interfaces": {"inside": ["in0"], "outside": ["out0"]},
            "mark_mask": OURS,
            **changes,
        },
    )


class _Context(ctypes.Structure):
    """The part of ``struct __sk_buff`` that a test run reads."""

    _fields_ = [
        ("len", ctypes.c_uint32),
        ("pkt_type", ctypes.c_uint32),
        ("mark", ctypes.c_uint32),
        ("queue_mapping", ctypes.c_uint32),
        ("protocol", ctypes.c_uint32),
        ("vlan", ctypes.c_uint32 * 3),
        ("priority", ctypes.c_uint32),
        ("ingress_ifindex", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("rest", ctypes.c_uint32 * 37),
    ]


class _Attributes(ctypes.Structure):
    """The part of ``union bpf_attr`` for BPF_PROG_TEST_RUN."""

    _fields_ = [
        ("program", ctypes.c_uint32),
        ("returned", ctypes.c_uint32),
        ("size_in", ctypes.c_uint32),
        ("size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
        ("context_size_in", ctypes.c_uint32),
        ("context_size_out", ctypes.c_uint32),
        ("context_in", ctypes.c_uint64),
        ("context_out", ctypes.c_uint64),
        ("rest", ctypes.c_uint32 * 20),
    ]


class Program:
    """One loaded program; a call with a frame runs it once and takes a few microseconds."""

    def __init__(self, fd: int, ifindex: int):
        self.fd = fd
        self._in = ctypes.create_string_buffer(LARGEST)
        self._out = ctypes.create_string_buffer(LARGEST)
        self.context, self.after = _Context(ifindex=ifindex), _Context()
        self._attributes = _Attributes(
            program=fd,
            data_in=ctypes.addressof(self._in),
            data_out=ctypes.addressof(self._out),
            repeat=1,
            context_size_in=ctypes.sizeof(_Context),
            context_in=ctypes.addressof(self.context),
            context_out=ctypes.addressof(self.after),
        )
        libc = ctypes.CDLL(None, use_errno=True)
        self._syscall = libc.syscall
        self._syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint]
        self._syscall.restype = ctypes.c_long
        self._number = {"x86_64": 321}.get(platform.machine(), 280)
        self._where = ctypes.addressof(self._attributes)

    def __call__(self, frame: bytes, mark: int = 0) -> int:
        """The return value; ``mark`` is the packet's mark before the run, ``self.mark`` the one after it."""
        attributes = self._attributes
        ctypes.memmove(self._in, frame, len(frame))
        attributes.size_in = len(frame)
        attributes.size_out = LARGEST
        attributes.context_size_out = 192
        self.context.mark = mark
        if self._syscall(self._number, syscall.PROG_TEST_RUN, self._where, ctypes.sizeof(_Attributes)) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(attributes.returned)

    @property
    def mark(self) -> int:
        return int(self.after.mark)

    @property
    def frame(self) -> bytes:
        """The frame as the program left it."""
        return self._out.raw[: self._attributes.size_out]

    def head(self, length: int) -> bytes:
        """The first bytes of the frame as the program left it."""
        return ctypes.string_at(self._out, length)


class Tallies:
    """The counters of reasons, read in one system call."""

    def __init__(self, fd: int):
        cpus = Path("/sys/devices/system/cpu/possible").read_text().strip().rpartition("-")[2]
        self._count = syscall.map_info(fd).entries
        self._values = np.zeros((self._count, int(cpus) + 1, 2), dtype="<u8")
        self._keys = np.zeros(self._count, dtype="<u4")
        self._cursor = ctypes.create_string_buffer(16)
        self.fd = fd

    def read(self) -> np.ndarray:
        """(packets, flows) by reason."""
        where = [int(array.ctypes.data) for array in (self._keys, self._values)]
        attributes = np.array([0, ctypes.addressof(self._cursor), *where, 0, 0, 0], dtype="<u8").view("<u4")
        attributes[8], attributes[9] = self._count, self.fd
        try:
            syscall.call(syscall.MAP_LOOKUP_BATCH, attributes.tobytes())
        except OSError as error:
            if error.errno != 2:  # ENOENT: the end was reached
                raise
        return self._values.sum(axis=1)


class Counted:
    """The counts within a ``with`` block, by the reasons' names."""

    packets: dict[str, int]
    flows: dict[str, int]

    def __init__(self, tallies: Tallies):
        self._tallies = tallies

    def __enter__(self) -> Counted:
        self._before = self._tallies.read()
        return self

    def __exit__(self, *_: object) -> None:
        difference = self._tallies.read() - self._before
        names = reasons()
        self.packets = {names[int(i)].name: int(difference[i, 0]) for i in np.flatnonzero(difference[:, 0])}
        self.flows = {names[int(i)].name: int(difference[i, 1]) for i in np.flatnonzero(difference[:, 1])}


class Box:
    """The gateway; the calling thread is inside its namespace."""

    def __init__(self, name: str, directory: Path):
        self.name = name
        self.directory = directory
        self.instance = Instance(namespace.netns_cookie())
        self.index = {name: socket.if_nametoindex(name) for name in (*FAR, *FAR.values())}
        self._programs: dict[tuple[str, str], Program] = {}

    def apply(self, config: Document) -> None:
        """Applies a configuration, as the daemon does."""
        file = self.directory / "enforcer.yaml"
        file.write_text(configuration.dump(config))
        done = subprocess.run(
            [sys.executable, "-m", "enforcer.workers.apply", str(file)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        result = json.loads(done.stdout)
        assert "error" not in result, result
        self.config = config
        self._programs.clear()
        self.gateway = Gateway(self.instance)
        self.maps: Maps = self.gateway.maps()
        assert self.gateway.pins is not None
        self.pins: Pins = self.gateway.pins
        self.tallies = Tallies(self.maps.reasons.fd)

    def program(self, name: str, interface: str = "in0") -> Program:
        """A program that runs as on this interface."""
        if (name, interface) not in self._programs:
            self._programs[name, interface] = Program(self.pins.program(name), self.index[interface])
        return self._programs[name, interface]

    def counted(self) -> Counted:
        return Counted(self.tallies)

    def slot(self, egress: str) -> int:
        assert self.gateway.state is not None
        return self.gateway.state.slots[egress]

    def forget_everything(self) -> None:
        """Empties the maps of flows, origins and clients."""
        for part in (self.maps.flows, self.maps.origins, self.maps.client_prefixes, self.maps.clients):
            for key in part.items()[0]:
                part.delete(key)

    def miscounted(self) -> list[str]:
        """The counters of origins and clients that differ from the sum of the flows; none may differ."""
        keys, flows = self.maps.flows.items()
        origins, clients = self.maps.origins, self.maps.client_prefixes
        return [
            *_differing(counts.of_origins(keys, flows, origins.key), origins, "active"),
            *_differing(counts.of_clients(keys, flows, clients.key), clients, "flows", "unanswered"),
        ]


def _differing(counted: counts.Counts, table: Map, *names: str) -> list[str]:
    wanted = {key.tobytes(): row.tolist() for key, row in zip(*counted, strict=True)}
    found = {
        key.tobytes(): [int(row[name]) for name in names]
        for key, row in zip(*table.items(), strict=True)
        if any(row[name] for name in names)
    }
    return [
        f"{table.name} {np.frombuffer(raw, table.key)[0]}: {names} {found.get(raw)}, flows {wanted.get(raw)}"
        for raw in wanted.keys() | found.keys()
        if wanted.get(raw) != found.get(raw)
    ]


def _wire(gateway: Namespace) -> None:
    lines = ["link set lo up"]
    for near, far in FAR.items():
        lines.append(f"link add {near} address {MAC[near]} type veth peer name {far}")
    lines += [
        "addr add 10.1.0.1/16 dev in0",
        "addr add fd01::1/64 dev in0 nodad",
        "addr add 192.0.2.1/24 dev out0",
        "addr add 2001:db8:0:1::1/64 dev out0 nodad",
    ]
    lines += [f"link set {name} up" for name in (*FAR, *FAR.values())]
    for family in (4, 6):
        lines.append(f"neigh add {CLIENT[family]} lladdr {CLIENT_MAC} dev in0 nud permanent")
        lines.append(f"neigh add {ROUTER[family]} lladdr {ROUTER_MAC} dev out0 nud permanent")
        lines.append(f"route add default via {ROUTER[family]}")
    settings = {"ipv6.conf.default.accept_dad": 0, "ipv6.conf.default.accept_ra": 0}
    settings |= {"ipv4.conf.default.rp_filter": 0, "ipv4.conf.all.rp_filter": 0}
    gateway.sysctls({f"net.{name}": value for name, value in settings.items()})
    gateway.ip(*lines)
    gateway.sysctls({f"net.ipv6.conf.{far}.disable_ipv6": 1 for far in FAR.values()})


@contextmanager
def new_box(config: Document) -> Iterator[Box]:
    """A gateway with this configuration in force; the end of the block removes all of it."""
    name = f"datapath-{os.getpid()}-{next(_number)}"
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    gateway = Namespace(name)
    try:
        with temporary(gateway), inside(name):
            _wire(gateway)
            box = Box(name, directory)
            try:
                box.apply(config)
                yield box
            finally:
                tear_down(box.instance)
                shutil.rmtree(box.instance.directory, ignore_errors=True)
    finally:
        shutil.rmtree(directory)


def number(reason: str) -> int:
    """A reason's number by its name."""
    return by_name()[reason].number
