"""The packet generator in the kernel: BPF_PROG_TEST_RUN, live frames (Documentation/bpf/bpf_prog_run.rst).

Frames enter the receive path of the gateway's inside interface on the calling processor, pass the stack and
end in the sinks before the call returns. A timed run has the processor to itself (SCHED_FIFO), so the figure
does not include the work of other processes.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from statistics import median

import numpy as np

from bench.rig.programs import Programs
from bench.rig.wire import INSIDE_INDEX, INSIDE_MAC, NEAR_MAC, Wire
from enforcer.constants import TCP
from enforcer.datapath import syscall

IPAddress = IPv4Address | IPv6Address
FIRST_CLIENT = {4: "10.64.0.1", 6: "fd64::1"}
FIRST_ORIGIN = {4: "198.18.0.1", 6: "2001:db8:a::1"}
FIRST_PORT = 1024
_PORTS = 65536 - FIRST_PORT
_LIVE_FRAMES = 2
_ATTRIBUTES = 144  # bytes of union bpf_attr
_BATCH = 64
_PART = 65536
SYN, ACK = 0x02, 0x10
TRANSPORT = 20
"""Bytes of a TCP header, and the default length of the generator's UDP datagrams."""
STAMPED_PORT = 8002
"""The origin port whose packets carry a time stamp (traffic.c)."""
_STAMPS = 65536
_SETTLE = 0.05  # seconds to wait for the last packets at the sinks


@dataclass(frozen=True)
class Stream:
    """Packets that each begin a flow, or with ``flows`` belong to one of that number of flows.

    Flow n goes to origin n % origins, from client n // origins % clients and port
    FIRST_PORT + n // origins // clients.
    """

    family: int
    protocol: int
    clients: int = 64
    origins: int = 8
    flows: int = 0
    """0: as many as there are ports for."""
    first_origin: IPAddress | None = None
    origin_port: int = 8000
    flags: int = SYN
    """TCP flags: SYN, or ACK within connections that an origin has answered."""
    transport: int = TRANSPORT
    """Bytes after the IP header."""
    stride: int = 1
    """Packet n belongs to flow n * stride % flows, so that consecutive packets do not use neighbouring table
    entries. It is coprime to ``flows``, so that every flow gets packets."""
    one_source: bool = False
    """All clients leave a gateway by one address: their IPv6 host bits, which it keeps, are equal."""

    @property
    def case(self) -> str:
        """The stream's name in tables."""
        name = f"IPv{self.family} {'TCP' if self.protocol == TCP else 'UDP'}"
        return name if self.origins == 1 else f"{name}, {self.origins} origins"

    @property
    def capacity(self) -> int:
        """Number of different flows."""
        return self.flows or self.clients * self.origins * _PORTS

    @property
    def frame(self) -> int:
        """Bytes of a frame, Ethernet header included."""
        return 14 + (20 if self.family == 4 else 40) + self.transport

    def row(self, layout: np.dtype, start: int) -> np.ndarray:
        """The ``struct stream`` of traffic.c, beginning with flow ``start``."""
        row = np.zeros((), dtype=layout)
        row["client"] = _words(ip_address(FIRST_CLIENT[self.family]))
        row["origin"] = _words(self.first_origin or ip_address(FIRST_ORIGIN[self.family]))
        row["clients"], row["origins"], row["flows"] = self.clients, self.origins, self.capacity
        row["next"], row["stride"] = start, self.stride
        row["first_port"] = FIRST_PORT
        row["origin_port"] = int.from_bytes(self.origin_port.to_bytes(2, "big"), "little")
        row["gateway"], row["router"] = _mac(INSIDE_MAC), _mac(NEAR_MAC)
        row["ipv6"], row["protocol"] = self.family == 6, self.protocol
        row["flags"], row["transport"] = self.flags, self.transport
        row["by_network"] = self.one_source
        return row


def _words(address: IPAddress) -> np.ndarray:
    return np.frombuffer(address.packed.rjust(16, b"\0"), dtype="<u4")


def _mac(text: str) -> list[int]:
    return list(bytes.fromhex(text.replace(":", "")))


@dataclass(frozen=True)
class Run:
    """The packets that one run sent, as the sinks counted them, and the time per packet."""

    sent: int
    translated: int
    untranslated: int
    answered: int
    each: float
    """Nanoseconds per packet: the median of the run's parts, which excludes an interruption."""


class Generator:
    """Sends streams into gateways, one at a time; pinned to ``cpu``."""

    def __init__(self, programs: Programs, cpu: int):
        self._programs = programs
        self.cpu = cpu
        self.alone = True
        """Whether timed runs had the processor to themselves."""

    def send(
        self,
        wire: Wire,
        stream: Stream,
        count: int,
        *,
        start: int = 0,
        timed: bool = True,
        within: tuple[Stream, int] | None = None,
    ) -> Run:
        """Sends ``count`` packets from flow ``start`` on and counts them at the sinks.

        ``within``: another stream of frames of the same length, and n: every n-th packet belongs to it.
        """
        if not stream.flows and start + count > stream.capacity:
            raise ValueError(f"{start + count} flows of {stream.capacity}")
        maps = self._programs.maps
        row = stream.row(maps.stream.value, start)
        if within:
            other, row["every"] = within
            maps.stream.put(1, other.row(maps.stream.value, 0))
        maps.stream.put(0, row)
        before = self._seen()
        took = wire.gateway.call(lambda: self._run(stream.frame, count, timed))
        seen = self._settled(before, count) - before
        return Run(count, int(seen[0]), int(seen[1]), int(seen[2]), took)

    def delays(self, wire: Wire, send: Callable[[], Run]) -> tuple[Run, np.ndarray]:
        """Returns the run of ``send``, and the nanoseconds from writing to sink of each stamped packet that
        arrived (65,536 at most): through the generator, the gateway and both devices."""
        delays = self._programs.maps.delays
        numbers = np.arange(_STAMPS, dtype=np.uint32)
        delays.put_many(numbers, np.zeros(_STAMPS, dtype=np.uint64))
        wire.attach("far", "sink_timed")
        try:
            run = send()
        finally:
            wire.attach("far", "sink_far")
        _, found = delays.items()
        return run, found[found > 0]

    def _seen(self) -> np.ndarray:
        """Packets by kind (enum seen of traffic.c)."""
        seen = self._programs.maps.seen
        return np.array([np.asarray(seen.get(kind)).sum() for kind in range(4)], dtype=np.int64)

    def _settled(self, before: np.ndarray, count: int) -> np.ndarray:
        """The counters when ``count`` more packets have arrived, or after _SETTLE seconds."""
        deadline = time.monotonic() + _SETTLE
        while True:
            seen = self._seen()
            if (seen - before)[:3].sum() >= count or time.monotonic() > deadline:
                return seen
            time.sleep(0.002)

    def _run(self, size: int, count: int, timed: bool) -> float:
        """Runs in a thread of the gateway's namespace, where the kernel looks the interface index up."""
        os.sched_setaffinity(0, {self.cpu})
        if timed:
            try:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            except OSError:
                self.alone = False
        # Setting up the frames of a part takes 20 ms, so an untimed run is one part.
        shares = parts(count) if timed else [count]
        each = [live_frames(self._programs.fds["generate"], size, share) for share in shares]
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        return median(each)


def parts(count: int) -> list[int]:
    """``count`` divided into parts of about _PART."""
    number = max(1, count // _PART)
    return [count // number + (index < count % number) for index in range(number)]


def live_frames(program: int, size: int, count: int) -> int:
    """Runs an XDP program ``count`` times on frames of ``size`` bytes that arrive at the inside interface.

    Returns nanoseconds per frame as the kernel measures them: without setting up and releasing the pool of
    frames, which waits for RCU and takes 20 ms (net/bpf/test_run.c, bpf_test_run_xdp_live).
    """
    frame = np.zeros(size, dtype=np.uint8)
    # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    context = np.array([0, size, 0, INSIDE_INDEX, 0, 0], dtype="<u4")
    attributes = bytearray(_ATTRIBUTES)
    struct.pack_into(
        "<IIIIQQIIIIQQIII", attributes, 0,
        program, 0, size, 0, frame.ctypes.data, 0,
        count, 0, context.nbytes, 0, context.ctypes.data, 0,
        _LIVE_FRAMES, 0, _BATCH,
    )  # fmt: skip
    try:
        syscall.call(syscall.PROG_TEST_RUN, attributes)
    except OSError as error:
        raise syscall.explain_error(error, "running the packet generator") from error
    (duration,) = struct.unpack_from("<I", attributes, 36)
    return int(duration)
