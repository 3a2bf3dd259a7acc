"""Starts and commands hammer processes: both sides of tens of thousands of real connections.

::

    with Holders(lab.origin1) as holders, Hammer(lab.client, ORIGIN1[4], sources=client_sources(4)) as hammer:
        result = hammer.open(40_000)
        assert result.opened == 40_000 == holders.count().tcp
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from lab.hammer import CAPACITY, shares
from lab.netns import LabError, Namespace
from lab.program import module
from lab.topology import HOSTS

PORT = 7000


@dataclass(frozen=True)
class Opened:
    """The outcome of attempts: connections opened, failures by cause, and the slowest process's time."""

    opened: int
    failed: Counter[str]
    seconds: float


@dataclass(frozen=True)
class Probed:
    """Connections on which a byte came back, and failures of the others by cause."""

    answered: int
    failed: Counter[str]


@dataclass(frozen=True)
class Held:
    """What origins hold: TCP connections that are open, UDP peers that have sent a datagram."""

    tcp: int
    udp: int


class Workers:
    """Processes in one namespace that take commands together. They end when their stdin closes."""

    def __init__(self, namespace: Namespace, arguments: Iterable[Sequence[str]]):
        self.processes: list[subprocess.Popen[str]] = []
        try:
            for each in arguments:
                self.processes.append(
                    subprocess.Popen(
                        namespace.command(module("hammer", *each)),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                        start_new_session=True,
                    )
                )
            for process in self.processes:
                self._answer(process)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def tell(self, commands: str | Sequence[str]) -> list[Any]:
        """Send each process its command (or all the same) and return the answers; they work in parallel."""
        if isinstance(commands, str):
            commands = [commands] * len(self.processes)
        for process, command in zip(self.processes, commands, strict=True):
            if process.stdin is None:
                raise LabError("a hammer process has no stdin")
            try:
                process.stdin.write(command + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                raise LabError(f"a hammer process ended with exit code {process.wait()}") from None
        return [self._answer(process) for process in self.processes]

    def stop(self) -> None:
        """End all processes; their connections are closed with them."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()
        self.processes = []

    def _answer(self, process: subprocess.Popen[str]) -> Any:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise LabError(f"a hammer process ended with exit code {process.wait()}")
        return json.loads(line)

    def _split(self, command: str, held: Sequence[int], count: int) -> list[Any]:
        """Send each process its share of ``count``, at most the number of connections that it holds."""
        parts = shares(min(count, sum(held)), list(held))
        return self.tell([f"{command} {part}" for part in parts])


class Hammer(Workers):
    """A client's side: connections from ``sources`` of a namespace to one origin.

    ``capacity`` is the number of connections that it can hold; it determines the number of processes.
    """

    def __init__(
        self,
        namespace: Namespace,
        address: str,
        port: int = PORT,
        *,
        sources: Sequence[str],
        protocol: str = "tcp",
        capacity: int = 40_000,
    ):
        # Room for one connection more; on two cores, more processes would not be faster.
        count = -(-(capacity + 1) // CAPACITY)
        super().__init__(namespace, [("client", protocol, address, str(port), *sources)] * count)

    def open(self, count: int) -> Opened:
        """Open ``count`` more connections; returns when each has succeeded or failed."""
        rooms = [CAPACITY - each["held"] for each in self.tell("count")]
        if count > sum(rooms):
            raise LabError(f"no room for {count} connections, only for {sum(rooms)}")
        answers = self.tell([f"open {part}" for part in shares(count, rooms)])
        failed: Counter[str] = Counter()
        for answer in answers:
            failed.update(answer["failed"])
        return Opened(
            sum(answer["opened"] for answer in answers), failed, max(answer["seconds"] for answer in answers)
        )

    def probe(self) -> Probed:
        """Send a byte each way on every connection."""
        failed: Counter[str] = Counter()
        answers = self.tell("probe")
        for answer in answers:
            failed.update(answer["failed"])
        return Probed(sum(answer["answered"] for answer in answers), failed)

    def count(self) -> int:
        """Connections that are alive: neither closed nor reset by the other side."""
        return sum(self._held())

    def close(self, count: int) -> int:
        """Close the oldest ``count`` with a FIN; returns the number that existed."""
        return sum(answer["closed"] for answer in self._split("close", self._held(), count))

    def reset(self, count: int) -> int:
        """Close the oldest ``count`` with a RST; returns the number that existed."""
        return sum(answer["closed"] for answer in self._split("reset", self._held(), count))

    def _held(self) -> list[int]:
        return [answer["held"] for answer in self.tell("count")]


class Holders(Workers):
    """An origin's side: accepts and holds TCP connections, answers datagrams and records their peers."""

    def __init__(self, namespace: Namespace, port: int = PORT, capacity: int = 40_000):
        # The kernel spreads connections over the processes by hash: each has a tenth of its room to spare.
        count = -(-capacity * 11 // (10 * CAPACITY))
        super().__init__(namespace, [("origin", str(port))] * count)

    def count(self) -> Held:
        answers = self.tell("count")
        return Held(sum(answer["tcp"] for answer in answers), sum(answer["udp"] for answer in answers))

    def peers(self, protocol: str = "tcp") -> list[tuple[str, int]]:
        """Address and port of every peer as the origin sees them, duplicates included."""
        return [(peer[0], peer[1]) for answer in self.tell("peers") for peer in answer[protocol]]

    def addresses(self, protocol: str = "tcp") -> Counter[str]:
        """The number of connections from each address."""
        return Counter(address for address, _ in self.peers(protocol))

    def close(self, count: int) -> int:
        """Close the oldest ``count`` with a FIN, from this side."""
        return sum(answer["closed"] for answer in self._split("close", self._held(), count))

    def reset(self, count: int) -> int:
        """Close the oldest ``count`` with a RST, from this side."""
        return sum(answer["closed"] for answer in self._split("reset", self._held(), count))

    def _held(self) -> list[int]:
        return [answer["tcp"] for answer in self.tell("count")]


def client_sources(family: int, network: int = 1) -> list[str]:
    """All addresses of a client: ``network`` 1 belongs to client, 2 to client2; ``family`` is 4 or 6."""
    return [f"10.0.{network}.{host}" if family == 4 else f"fd00:{network}::{host:x}" for host in HOSTS]
