"""Live connections through reload, kill and restart of the daemon, and what `down` leaves on the gateway."""

from __future__ import annotations

import contextlib
import time
from contextlib import ExitStack
from pathlib import Path

from enforcer.datapath import tcx
from enforcer.kernel import links
from lab import clients
from lab.configuration import LAX1, LAX2, changed
from lab.demo.screen import Screen
from lab.demo.stage import FAMILIES, Stage
from lab.netns import Namespace
from lab.topology import ORIGIN1

_BY_HAND = {
    change: (f"addr {change} {LAX1[4]}/32 dev out0", f"route {change} local {LAX1[6]} dev lo table local")
    for change in ("add", "del")
}
PATIENCE = 10.0  # seconds within which a change of addresses must take effect


def addresses_away(stage: Stage, screen: Screen) -> None:
    """Remove lax-1's addresses from the gateway, as an administrator might."""
    stage.lab.gw.ip(*_BY_HAND["del"])
    _noticed(stage, screen, "lax-1's addresses were taken off the gateway", LAX2)


def addresses_back(stage: Stage, screen: Screen) -> None:
    """Add them by hand: the administrator then owns them, and `enforcer down` does not remove them."""
    stage.lab.gw.ip(*_BY_HAND["add"])
    _noticed(stage, screen, "lax-1's addresses are back", LAX1)


def show(stage: Stage, screen: Screen) -> None:
    """Hold a session in each family through reload, kill -9 and restart."""
    screen.heading("A live connection through the daemon's life")
    moved = changed(stage.config, "policies", "bank", egress={"ipv4": LAX2[4], "ipv6": LAX2[6]})
    with ExitStack() as stack:
        sessions = {
            family: stack.enter_context(clients.Session(stage.lab.client, ORIGIN1[family]))
            for family in FAMILIES
        }
        first = {family: session.seen.address for family, session in sessions.items()}

        def keeps(event: str) -> None:
            for family, session in sessions.items():
                old, new = _address(session), _new(stage, family)
                screen.check(
                    old == first[family] and _is(new, LAX2),
                    f"IPv{family} {event}: the live session stays {old}, a new one leaves from {new}",
                )

        screen.line(f"sessions from {' and '.join(first.values())}")
        stage.gateway.reload(moved)
        keeps("after a reload that moved policy bank to lax-2")
        stage.gateway.kill()
        state = stage.gateway.json("status")["state"]
        screen.check(state == "unattended", f"kill -9 of the daemon: status says {state}")
        keeps("while the daemon is dead")
        with screen.working("starting the daemon again"):
            stage.gateway.start()
        keeps("after the restart")
    stage.gateway.reload(stage.config)


def footprint(gateway: Namespace) -> dict[str, list[str]]:
    """The state that `enforcer down` must restore, as sorted lines by subject."""
    commands = {
        "addresses": "ip -o addr",
        "IPv4 routes": "ip -4 route show table all",
        "IPv6 routes": "ip -6 route show table all",
        "nftables": "nft list ruleset",
        "TC": "tc qdisc show",
    }
    found = {what: gateway.run(*command.split()).stdout.splitlines() for what, command in commands.items()}
    found["programs"] = gateway.call(_programs)
    found["settings"] = gateway.call(_settings)
    return {what: sorted(lines) for what, lines in found.items()}


def _programs() -> list[str]:
    if not tcx.supported():
        return []
    return [
        f"{name} {direction}: {len(tcx.programs(link.index, direction))}"
        for name, link in links.links().items()
        for direction in tcx.ATTACH_TYPES
    ]


def _settings() -> list[str]:
    lines = []
    for path in Path("/proc/sys/net").glob("ipv[46]/conf/*/*"):
        with contextlib.suppress(OSError):  # some cannot be read
            lines.append(f"{path} = {path.read_text(encoding='ascii')}")
    return lines


def down(stage: Stage, screen: Screen, found: dict[str, list[str]]) -> None:
    """Compare the state after `enforcer down` with that before the first `run`."""
    with screen.working("enforcer down"):
        stage.gateway.down()
    stage.lab.gw.ip(*_BY_HAND["del"])
    left = footprint(stage.lab.gw)
    different = [what for what in found if found[what] != left[what]]
    screen.check(
        not different,
        f"`enforcer down` left {', '.join(different)} not as it was found"
        if different
        else f"`enforcer down` left {', '.join(found)} as they were found",
    )


def _address(session: clients.Session) -> str:
    try:
        return session.ask().address
    except OSError as error:
        return clients.fate(error)


def _new(stage: Stage, family: int, timeout: float = clients.TIMEOUT) -> str:
    try:
        return clients.tcp_ask(stage.lab.client, ORIGIN1[family], timeout=timeout).address
    except OSError as error:
        return clients.fate(error)


def _is(address: str, egress: dict[int, str]) -> bool:
    return address == egress[4] or address.startswith(egress[6].removesuffix(":/64"))


def _noticed(stage: Stage, screen: Screen, event: str, egress: dict[int, str]) -> None:
    began = time.monotonic()
    while not all(_is(_new(stage, family, timeout=0.3), egress) for family in FAMILIES):
        if time.monotonic() > began + PATIENCE:
            screen.check(False, f"{event}: not noticed within {PATIENCE:.0f} s")
            return
    screen.check(True, f"{event}: noticed within {(time.monotonic() - began) * 1000:.0f} ms")
