"""Tests of the benchmark's rig: generated packets arrive, and the peers forward and limit them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.figures.established import stream_of
from bench.rig import rulesets
from bench.rig.answering import establish
from bench.rig.generator import STAMPED_PORT, Generator, Stream
from bench.rig.hosts import ORIGIN, Hosts
from bench.rig.peers import Connlimit, Count, Floor, Limited, Peer, Snat
from bench.rig.programs import Programs
from enforcer.constants import TCP, UDP
from lab.netns import execute


@pytest.mark.parametrize("ruleset", [rulesets.chain, rulesets.maps])
def test_rulesets_are_taken_by_nft(netns: str, ruleset: Callable[[int], str]) -> None:
    execute(["nft", "-f", "-"], ruleset(200))


def test_every_packet_that_is_generated_arrives_and_is_told_apart() -> None:
    with Programs() as programs:
        generator = Generator(programs, 0)
        for kind in (Floor, Peer, Snat):
            with kind(programs) as peer:
                for family in (4, 6):
                    for protocol in (UDP, TCP):
                        run = generator.send(peer.wire, Stream(family, protocol), 1000)
                        assert peer.delivered(run) == run.sent == 1000, (kind, family, protocol)
                        assert run.translated == (1000 if kind is Snat else 0)
                        assert run.each > 0


def test_flows_are_answered_by_their_origins() -> None:
    with Programs() as programs, Snat(programs) as peer:
        generator = Generator(programs, 0)
        for family in (4, 6):
            for protocol in (UDP, TCP):
                stream = stream_of(family, protocol, 200)
                later = establish(generator, peer, stream)
                assert peer.delivered(generator.send(peer.wire, later, 400)) == 400
                known_flows = peer.wire.gateway.run("conntrack", "-L", "-f", f"ipv{family}").stdout
                assert known_flows.count("[ASSURED]" if protocol == TCP else "src=") >= 200
                assert "SYN_" not in known_flows
                assert "UNREPLIED" not in known_flows
                peer.reset()


def test_a_stream_within_another_is_stamped() -> None:
    with Programs() as programs, Peer(programs) as peer:
        generator = Generator(programs, 0)
        for family in (4, 6):
            stamped = Stream(family, UDP, clients=1, origins=1, flows=1, origin_port=STAMPED_PORT)
            run, delays = generator.delays(
                peer.wire,
                lambda family=family, stamped=stamped: generator.send(  # type: ignore[misc]
                    peer.wire, Stream(family, TCP), 1300, within=(stamped, 13)
                ),
            )
            assert (run.untranslated, len(delays)) == (1300, 100)
            assert 0 < delays.max() < 1e9


@pytest.mark.parametrize("kind", [Count, Connlimit])
def test_peers_that_limit_do(kind: type[Limited]) -> None:
    with Programs() as programs, kind(programs, 100) as peer:
        generator = Generator(programs, 0)
        for family in (4, 6):
            stream = Stream(family, TCP, origins=1, one_source=True)
            assert generator.send(peer.wire, stream, 300).translated == 100
            peer.relax()
            assert generator.send(peer.wire, stream, 300, start=300).translated == 300
            peer.restrict()
            peer.reset()


def test_hosts_reach_each_other_through_the_gateway() -> None:
    with Programs() as programs, Snat(programs) as peer:
        peer.wire.__exit__()
        hosts = peer.wire = Hosts("hosts", programs)
        with peer:
            for address in ORIGIN.values():
                hosts.client.run("ping", "-c1", "-W2", address)
