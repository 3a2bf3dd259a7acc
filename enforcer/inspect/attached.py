"""Finds hooks whose program is not attached; nothing is forwarded there until it is."""

from __future__ import annotations

from enforcer.gateway import attach
from enforcer.gateway.plan import (
    HOOKS,
)
from enforcer.gateway.reader import GatewayReader
from enforcer.kernel import links


def unattached(reader: GatewayReader) -> list[str]:
    """The hooks ("in0 ingress") of existing interfaces that lack their program."""
    found, ids = links.links(), reader.pins.program_ids()
    there = attach.attached(reader.pins, [link.index for link in found.values()])
    return [
        f"{name} {direction}"
        for role, direction, program in HOOKS
        for name in reader.config["interfaces"][role]
        if name in found and (program not in ids or there.get((found[name].index, direction)) != ids[program])
    ]
