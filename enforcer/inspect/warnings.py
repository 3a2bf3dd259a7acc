"""Warnings about deviations from the configuration and conflicting kernel settings, for `status`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from enforcer.errors import LayoutError
from enforcer.gateway import host_warnings, roles
from enforcer.gateway.desired import desired
from enforcer.gateway.host_warnings import collect
from enforcer.gateway.reader import GatewayReader
from enforcer.kernel import addresses, links


def warnings(reader: GatewayReader) -> list[str]:
    """Warnings about links, the shared addresses, and other software's settings."""
    config = reader.config
    return [
        *collect("listed interfaces", lambda: _of_links(reader)),
        *collect("shared addresses", lambda: _of_shared(reader)),
        *host_warnings.kernel_warnings(config["mark_mask"], config["interfaces"]["outside"]),
    ]


def _of_links(reader: GatewayReader) -> Iterator[str]:
    found, sides = links.links(), reader.config["interfaces"]
    wanted = desired(reader.config, reader.state.slots)
    yield from sorted(map(str, roles.find_taken(wanted, found)))
    renamed: frozenset[roles.RenamedLink] = frozenset()
    with suppress(LayoutError):  # maps of an earlier version
        renamed = roles.find_renamed(reader.maps.interfaces, wanted, found)
    yield from sorted(map(str, renamed))
    for side in ("inside", "outside"):
        for name in sides[side]:
            if name not in found and name not in {link.listed for link in renamed}:
                yield f"{name} ({side}) does not exist at present"


def _of_shared(reader: GatewayReader) -> Iterator[str]:
    held = {str(interface.ip) for _, interface in addresses.held()}
    for address in reader.config["shared"].values():
        if address not in held:
            yield (
                f"no interface has the shared address {address}: what should leave by it is refused; "
                "add it, or name another one in `shared`, then reload"
            )
