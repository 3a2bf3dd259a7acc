"""The generator inside the kernel: BPF_PROG_TEST_RUN with live frames (Documentation/bpf/bpf_prog_run.rst).

Frames enter the receive path of the gateway's inside interface on the calling processor, pass the stack and
end in the sinks before the call returns. A timed run has the processor for itself (SCHED_FIFO): what others
do on the machine is not in the figure.
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
"""Bytes of a TCP header; the generator's UDP datagrams are as long if nothing is said."""
STAMPED_PORT = 8002
"""Packets to it are stamped (traffic.c)."""
_STAMPS = 65536
_SETTLE = 0.05  # seconds that a straggler may take to the sink


@dataclass(frozen=True)
class Stream:
    """Packets each of which begins a flow, or with ``flows`` belongs to one of so many.

    Flow n goes to origin n % origins, from client n // origins % clients; ports follow.
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
    """Of TCP: SYN, or ACK within connections that an origin has answered."""
    transport: int = TRANSPORT
    """Bytes after the IP header."""
    stride: int = 1
    """Packet n belongs to flow n * stride % flows, so that what comes one after the other does not lie so in
    tables. It has no divisor in common with ``flows``: every flow has its turn."""
    one_source: bool = False
    """All clients leave a gateway by one address: those of IPv6 have the same host bits, which it keeps."""

    @property
    def case(self) -> str:
        """As tables name it."""
        name = f"IPv{self.family} {'TCP' if self.protocol == TCP else 'UDP'}"
        return name if self.origins == 1 else f"{name}, {self.origins} origins"

    @property
    def capacity(self) -> int:
        """Flows before the first comes again."""
        return self.flows or self.clients * self.origins * _PORTS

    @property
    def frame(self) -> int:
        """Bytes of a frame."""
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
    """What one run sent, what became of it, and the time it took."""

    sent: int
    translated: int
    untranslated: int
    answered: int
    each: float
    """Nanoseconds a packet: the median of its parts, so that an interruption is not in it."""


class Generator:
    """Sends streams into gateways, one at a time; pinned to ``cpu``."""

    def __init__(self, programs: Programs, cpu: int):
        self._programs = programs
        self.cpu = cpu
        self.alone = True
        """Whether timed runs had the processor for themselves."""

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

        ``within``: another stream, of frames as long, and that every so many-th packet is one of its own.
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
        """What ``send`` returns, and of its stamped packets that arrived (65,536 at most) the nanoseconds
        from their writing to the sink: generator, gateway and both devices."""
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
        """The counters when all packets have come, or no more will."""
        deadline = time.monotonic() + _SETTLE
        while True:
            seen = self._seen()
            if (seen - before)[:3].sum() >= count or time.monotonic() > deadline:
                return seen
            time.sleep(0.002)

    def _run(self, size: int, count: int, timed: bool) -> float:
        """In a thread of the gateway's namespace: interface indexes are the caller's."""
        os.sched_setaffinity(0, {self.cpu})
        if timed:
            try:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            except OSError:
                self.alone = False
        # Setting up a part's frames takes 20 ms: what is not timed is one part.
        shares = parts(count) if timed else [count]
        each = [live_frames(self._programs.fds["generate"], size, share) for share in shares]
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        return median(each)


def parts(count: int) -> list[int]:
    """``count`` in parts of about _PART."""
    number = max(1, count // _PART)
    return [count // number + (index < count % number) for index in range(number)]


def live_frames(program: int, size: int, count: int) -> int:
    """Runs an XDP program ``count`` times on frames of ``size`` bytes that arrive at the inside interface.

    Returns nanoseconds a frame as the kernel measures them: without setting up and taking down the frames'
    pool, which waits for RCU and takes 20 ms (net/bpf/test_run.c, bpf_test_run_xdp_live).
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
