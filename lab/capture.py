"""tcpdump on an interface of the lab, and readers of its captures."""

from __future__ import annotations

import itertools
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.netns import LabError, Namespace
from lab.program import Program

IPV4 = 0x0800
IPV6 = 0x86DD
_HEADER = 24  # bytes of struct pcap_file_header
_RECORD = struct.Struct("=IIII")  # seconds, microseconds, bytes kept, bytes on the wire
_numbers = itertools.count()  # of captures: each has its own file and its own output


class Capture(Program):
    """A running capture. ``direction`` is seen from the interface: in, out or inout.

    To capture what a gateway sends, capture what arrives at the other end of its link:
    ``Capture(lab.net, "gw0", lab.directory, direction="in")``.
    """

    def __init__(
        self,
        namespace: Namespace,
        interface: str,
        directory: Path,
        *,
        expression: str = "ip or ip6",
        direction: str = "inout",
        snap: int = 128,
    ):
        number = next(_numbers)
        self.pcap = directory / f"{namespace.name.rpartition('-')[2]}-{interface}-{number}.pcap"
        super().__init__(
            namespace,
            # -Z root: otherwise tcpdump becomes a user that may not write here.
            f"tcpdump -i {interface} -w {self.pcap} -Q {direction} -s {snap} -n -p -U --immediate-mode "
            f"-B 32768 -Z root {expression}".split(),
            directory,
            f"tcpdump-{interface}-{number}",
            ready=lambda: "listening on" in self.said(),
        )

    def stop(self, patience: float = 10.0) -> int | None:
        """End it; LabError if the kernel dropped packets, as an incomplete capture proves nothing."""
        self._drain(patience)
        code = super().stop(patience)
        if "\n0 packets dropped by kernel" not in self.said():
            raise LabError(f"the capture lost packets: {self.said()[-500:]}")
        return code

    def _drain(self, patience: float) -> None:
        """Wait until tcpdump sleeps: each packet wakes it, so it has then read all that was sent so far."""
        deadline = time.monotonic() + patience
        while self.alive and time.monotonic() < deadline:
            state = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
            if state == "S":
                return
            time.sleep(0.005)

    def frames(self) -> Iterator[bytes]:
        """Each frame from the Ethernet header on, as far as tcpdump kept it."""
        data = self.pcap.read_bytes()
        offset = _HEADER
        while offset + _RECORD.size <= len(data):
            _, _, kept, _ = _RECORD.unpack_from(data, offset)
            offset += _RECORD.size
            yield data[offset : offset + kept]
            offset += kept

    def sources(self) -> Counter[str]:
        """Packets by IP source address, without link-local and unspecified ones (neighbour discovery).

        About 1 µs per packet: fast enough for captures of many connections.
        """
        seen: Counter[bytes] = Counter()
        for frame in self.frames():
            kind = int.from_bytes(frame[12:14], "big")
            if kind == IPV4:
                seen[frame[26:30]] += 1
            elif kind == IPV6 and frame[22:24] != b"\xfe\x80" and frame[22:38] != bytes(16):
                seen[frame[22:38]] += 1
        return Counter(
            {
                socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw): count
                for raw, count in seen.items()
            }
        )

    def packets(self) -> list[Any]:
        """All frames as scapy packets; slow (0.1 ms per frame), for captures of a few packets."""
        from scapy.layers.l2 import Ether

        return [Ether(frame) for frame in self.frames()]
