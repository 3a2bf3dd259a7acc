"""Helpers that show which packets of the lab's connections took the fast path."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from truth import OVER, look, wait_for

from enforcer.gateway.reader import GatewayReader
from enforcer.inspect.flows import flows as view_flows
from lab.gateway import LabGateway

Row = dict[str, Any]


def rows(gateway: LabGateway, ports: Iterable[int], protocol: str = "tcp") -> list[Row]:
    """The live flows with these client ports, as `enforcer flows` shows them."""
    wanted = set(ports)
    return [
        row
        for row in look(gateway, view_flows)
        if row["client_port"] in wanted and row["protocol"] == protocol and row["state"] not in OVER
    ]


def share(found: list[Row]) -> float:
    """The share of these flows' packets that took the fast path, 0 to 1."""
    return sum(row["fast_packets"] for row in found) / sum(row["packets"] for row in found)


def wait_until_fast(gateway: LabGateway, ports: Iterable[int], protocol: str = "tcp") -> None:
    """Wait until each of these flows has more fast-path packets than at the time of the call."""
    wanted = set(ports)
    before = {_end(row): row["fast_packets"] for row in rows(gateway, wanted, protocol)}

    def taken() -> bool:
        now = rows(gateway, wanted, protocol)
        return {row["client_port"] for row in now} == wanted and all(
            row["fast_packets"] > before.get(_end(row), 0) for row in now
        )

    wait_for(taken, "the fast path")


def _end(row: Row) -> tuple[str, int]:
    return row["client_ip"], row["client_port"]


def learnt(gateway: LabGateway) -> int:
    """The number of fast-path entries in use, including expired ones."""

    def count(reader: GatewayReader) -> int:
        _, sets = reader.maps.fast_buckets.items()
        return int(np.count_nonzero(sets["entry"]["until"]))

    return look(gateway, count)


def actives(gateway: LabGateway) -> list[int]:
    """`active` of all origins. The counter is unsigned: a count below zero shows as a huge number."""

    def read(reader: GatewayReader) -> list[int]:
        return [int(value) for value in reader.maps.origins.items()[1]["active"]]

    return look(gateway, read)
