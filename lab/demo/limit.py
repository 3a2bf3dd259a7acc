"""The limit with real connections: two origins reach it, the next is refused, one closed admits one."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

from lab import clients
from lab.configuration import LAX1
from lab.demo.screen import Screen
from lab.demo.stage import Stage
from lab.load import PORT, Hammer, Holders
from lab.netns import Namespace
from lab.topology import CLIENT, ORIGIN1, ORIGIN2

DEFAULT_LIMIT = 40_000
UDP_LIMIT = 1_000
ATTEMPTS = 5
PROMPT = 100.0  # milliseconds; a time-out would take 1,000 and more
PATIENCE = 10.0  # seconds for an origin to accept, and for a closed connection to be released
_RIGHT = {"tcp": "refused", "udp": "prohibited"}
_WORDS = {"refused": "TCP reset", "prohibited": "ICMP administratively prohibited"}


def show(stage: Stage, screen: Screen, limit: int) -> None:
    """Show the UDP and the TCP part; afterwards the stage's configuration is in force again."""
    screen.heading(f"The limit: {limit:,} connections per egress address and origin")
    if limit < DEFAULT_LIMIT:
        screen.line(
            f"lowered for a short demo; `make test` opens {DEFAULT_LIMIT:,} to each of two origins", "dim"
        )
    _udp(stage, screen)
    _reload(stage, limit)
    _tcp(stage, screen, limit)
    stage.gateway.reload(stage.config)


def _reload(stage: Stage, limit: int) -> None:
    stage.gateway.reload({**stage.config, "limits": {"connections_per_origin": limit}})


def _udp(stage: Stage, screen: Screen) -> None:
    _reload(stage, UDP_LIMIT)
    with (
        Holders(stage.lab.origin1, capacity=UDP_LIMIT),
        Hammer(
            stage.lab.client, ORIGIN1[6], sources=[CLIENT[6]], protocol="udp", capacity=UDP_LIMIT
        ) as hammer,
    ):
        opened = hammer.open(UDP_LIMIT).opened
        screen.check(
            opened == UDP_LIMIT,
            f"IPv6 UDP, limit {UDP_LIMIT:,} by reload: {opened:,} flows opened from one address",
        )
        _next_is_refused(stage, screen, "udp", ORIGIN1[6])


def _tcp(stage: Stage, screen: Screen, limit: int) -> None:
    origins = {"origin1": ORIGIN1[4], "origin2": ORIGIN2[4]}
    with ExitStack() as stack:
        holders = [
            stack.enter_context(Holders(stage.lab.namespaces[role], capacity=limit)) for role in origins
        ]
        hammers = [
            stack.enter_context(Hammer(stage.lab.client, address, sources=[CLIENT[4]], capacity=limit))
            for address in origins.values()
        ]
        for role, holder, hammer in zip(origins, holders, hammers, strict=True):
            with screen.working(f"opening {limit:,} TCP connections to {role}"):
                opened = hammer.open(limit).opened
            sources = _accepted(holder, limit)
            screen.check(
                opened == limit and sources == {LAX1[4]: limit},
                f"IPv4 TCP: {opened:,} connections opened; {role} holds "
                + ", ".join(f"{count:,} from {address}" for address, count in sources.items()),
            )
        for address in origins.values():
            _next_is_refused(stage, screen, "tcp", address)
            _agrees_with_conntrack(stage, screen, address, limit)
        _one_for_one(stage, screen, hammers[0])
        living = sum(hammer.count() for hammer in hammers)
        screen.check(living == 2 * limit, f"none was evicted: {living:,} of {2 * limit:,} still live")
        with screen.working("closing them"):
            for hammer in hammers:
                hammer.reset(limit)


def _accepted(holder: Holders, count: int) -> dict[str, int]:
    """Connections that the origin holds by source address, once it has accepted ``count``."""
    deadline = time.monotonic() + PATIENCE
    while holder.count().tcp < count and time.monotonic() < deadline:
        time.sleep(0.05)
    return dict(holder.addresses())


def _next_is_refused(stage: Stage, screen: Screen, protocol: str, address: str) -> None:
    tried = [_attempt(stage.lab.client, protocol, address) for _ in range(ATTEMPTS)]
    words = sorted({word for word, _ in tried})
    median = sorted(taken for _, taken in tried)[ATTEMPTS // 2]
    shown = ", ".join(_WORDS.get(word, word) for word in words)
    screen.check(
        words == [_RIGHT[protocol]] and median < PROMPT,
        f"the next to {address} port {PORT}: {shown} after {median:.2f} ms (median of {ATTEMPTS})",
    )


def _attempt(client: Namespace, protocol: str, address: str) -> tuple[str, float]:
    """The outcome of one more connection in one word, and the milliseconds until it is known."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with client.socket(clients.family_of(address), kind) as attempt:
        attempt.settimeout(clients.TIMEOUT)
        began = time.perf_counter()
        try:
            attempt.connect((address, PORT))
            if protocol == "udp":
                attempt.send(b"?")
                attempt.recv(16)
            word = "admitted"
        except OSError as error:
            word = clients.fate(error)
        return word, (time.perf_counter() - began) * 1000


def _agrees_with_conntrack(stage: Stage, screen: Screen, address: str, limit: int) -> None:
    """Compare `enforcer origins` with conntrack's table."""
    [row] = [
        row
        for row in stage.gateway.json("origins")
        if (row["origin_ip"], row["origin_port"], row["protocol"]) == (address, PORT, "tcp")
    ]
    asked = f"conntrack -L -f ipv4 -p tcp --orig-dst {address} --orig-port-dst {PORT} --state ESTABLISHED"
    known = len(stage.lab.gw.run(*asked.split()).stdout.splitlines())
    screen.check(
        row["active"] == known == limit,
        f"`enforcer origins` counts {row['active']:,} at {address}, {row['refused']} refused; "
        f"conntrack knows {known:,}",
    )


def _one_for_one(stage: Stage, screen: Screen, hammer: Hammer) -> None:
    hammer.close(1)
    deadline = time.monotonic() + PATIENCE
    admitted = 0
    while not admitted and time.monotonic() < deadline:
        admitted = hammer.open(1).opened
    again, _ = _attempt(stage.lab.client, "tcp", ORIGIN1[4])
    screen.check(
        admitted == 1 and again == "refused",
        f"one closed: {admitted} admitted; the one after that: {_WORDS.get(again, again)}",
    )
