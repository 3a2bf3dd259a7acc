"""The rounds of a measurement: each measures all compared subjects, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bench.report.results import Claim, Results, Row, Sample, rotated
from bench.rig.generator import Generator, Run, Stream
from bench.rig.peers import Peer
from bench.rig.programs import Programs

Subject = TypeVar("Subject")
Measured = TypeVar("Measured")
FLOWS = 16384


@dataclass
class Bench:
    """Programs, generator, options and results, which all figures share."""

    programs: Programs
    generator: Generator
    directory: Path
    results: Results
    rounds: int
    quick: bool
    say: Callable[[str], None]
    previous: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """Medians of the run that was written last, by figure, case and subject."""

    def add(self, rows: Sequence[Row] = (), claims: Sequence[Claim] = ()) -> None:
        self.results.rows += rows
        self.results.claims += claims

    def interleave(
        self,
        subjects: Sequence[Subject],
        measure: Callable[[Subject], Measured],
        *,
        warm: bool = True,
        rounds: int | None = None,
    ) -> list[tuple[Measured, ...]]:
        """Measures all subjects in each round; returns their samples. ``warm``: an uncounted round first."""
        samples: list[list[Measured]] = [[] for _ in subjects]
        for number in range(-1 if warm else 0, rounds or self.rounds):
            for index in rotated(range(len(subjects)), number):
                sample = measure(subjects[index])
                if number >= 0:
                    samples[index].append(sample)
        return [tuple(found) for found in samples]

    @property
    def few(self) -> int:
        """Rounds of a figure that has no target."""
        return min(self.rounds, 3)

    def new_flows(
        self,
        figure: str,
        stream: Stream,
        peers: Sequence[Peer],
        flows: int = FLOWS,
        rounds: int | None = None,
    ) -> list[Row]:
        """Measures nanoseconds per new flow; a peer's tables are empty before each run."""
        self.say(f"{figure}: {stream.case}")

        def measure(peer: Peer) -> Sample:
            peer.reset()
            return sample(peer, self.generator.send(peer.wire, stream, flows))

        found = self.interleave(peers, measure, rounds=rounds)
        for peer in peers:
            peer.reset()
        return [
            Row(figure, stream.case, peer.name, "ns", samples)
            for peer, samples in zip(peers, found, strict=True)
        ]


def sample(peer: Peer, run: Run) -> Sample:
    """The run's time per packet and the share of packets that the peer lost."""
    return Sample(run.each, 1 - peer.delivered(run) / run.sent)


def entered(peers: Sequence[Peer], stack: ExitStack) -> Sequence[Peer]:
    """Enters the peers, which are left when the stack unwinds; returns them."""
    for peer in peers:
        stack.enter_context(peer)
    return peers
