"""What is not as the file has it, or meets it badly, in sentences: `status` shows them."""

from __future__ import annotations

from collections.abc import Iterator

from enforcer.errors import LayoutError
from enforcer.gateway import roles, surroundings
from enforcer.gateway.desired import desired
from enforcer.inspect.source import Source
from enforcer.kernel import addresses, links


def warnings(source: Source) -> list[str]:
    """Of links, the shared addresses, and what other software has set."""
    config = source.config
    around = surroundings.said_of(config["mark_mask"], config["interfaces"]["outside"])
    return [*_of_links(source), *_of_shared(source), *around]


def _of_links(source: Source) -> Iterator[str]:
    found, sides = links.links(), source.config["interfaces"]
    wanted = desired(source.config, source.state.slots)
    for name, taker in roles.taken(wanted, found).items():
        yield roles.take(name, taker)
    try:
        renamed = roles.formerly(source.maps.interfaces, wanted, found)
    except LayoutError:  # an earlier version's
        renamed = {}
    for present, listed in renamed.items():
        yield roles.rename(present, listed)
    for side in ("inside", "outside"):
        for name in sides[side]:
            if name not in found and name not in renamed.values():
                yield f"{name} ({side}) does not exist at present"


def _of_shared(source: Source) -> Iterator[str]:
    held = {str(interface.ip) for _, interface in addresses.held()}
    for address in source.config["shared"].values():
        if address not in held:
            yield (
                f"no interface has the shared address {address}: what should leave by it is refused; "
                "add it, or name another one in `shared`, then reload"
            )
