"""Plans for lost pins and for a lost state, and the contents that are carried into new maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from layouts import FLOW_KEY
from plain import PLAIN
from somelinks import some_links

from enforcer.datapath.adopt import adopt
from enforcer.datapath.carry import carry_over
from enforcer.datapath.maps import lost_pin
from enforcer.gateway.actual import Actual
from enforcer.gateway.operations import (
    Attach,
    Detach,
    InstallTable,
    LoadPrograms,
    SwitchTables,
)
from enforcer.gateway.plan import (
    HOOKS,
    plan,
)

from ..datapath.test_adopt import FLOW, SLOTS, TIMEOUTS, entry

WANTED = replace(PLAIN, settings=replace(PLAIN.settings, proxy_udp=True, limit=1))
HOOKED = {
    ("in0", "ingress"): 1,
    ("in0", "egress"): 2,
    ("out0", "ingress"): 3,
    ("out0", "egress"): 4,
}
ACTUAL = Actual(
    links=some_links("lo", "in0", "out0"),
    held=frozenset(),
    ranges=frozenset(),
    table=WANTED.ruleset().digest(),
    hooks=cast(Any, HOOKED),
    sysctls={},
)


def test_lost_pins_are_loaded_again_before_anything_is_attached() -> None:
    operations = plan(
        WANTED, replace(ACTUAL, lost=("flows", "origins", "hosts", "reap")), WANTED, "", unfinished=None
    )
    kinds = [type(operation) for operation in operations]
    assert kinds.index(LoadPrograms) < kinds.index(SwitchTables) < kinds.index(Attach)
    assert kinds.count(Attach) == len(HOOKS) and Detach not in kinds
    (load,) = (operation for operation in operations if isinstance(operation, LoadPrograms))
    assert str(load) == "load BPF programs in place of lost ones (flows, origins, hosts and 1 more)"
    assert str(LoadPrograms(first=False, lost=("flows",))).endswith("lost ones (flows)")


def test_programs_of_a_gateway_whose_state_is_lost_are_taken_off_first() -> None:
    """Slots and marks are numbered again; attached programs may use other numbers."""
    operations = plan(WANTED, replace(ACTUAL, table=""), None, "", unfinished=None)
    first = operations[: len(HOOKED)]
    assert {(one.interface, one.direction) for one in first if isinstance(one, Detach)} == set(HOOKED)
    assert isinstance(operations[len(HOOKED)], InstallTable)
    assert sum(isinstance(operation, Detach) for operation in operations) == len(HOOKED)
    assert sum(isinstance(operation, Attach) for operation in operations) == len(HOOKS)


# --- carrying over

ORIGIN_KEY = np.dtype(
    [
        ("egress_address", "<u4", 4),
        ("origin", "<u4", 4),
        ("origin_port", "<u2"),
        ("protocol", "u1"),
        ("pad", "u1"),
    ]
)
ORIGIN = np.dtype(
    [
        ("active", "<u4"),
        ("peak", "<u4"),
        ("slot", "<u4"),
        ("deleting", "<u4"),
        ("total", "<u8"),
        ("refused", "<u8"),
        ("used", "<u8"),
    ]
)
CLIENT_KEY = np.dtype([("client", "<u4", 4)])
CLIENT = np.dtype(
    [("flows", "<u4"), ("unanswered", "<u4"), ("total", "<u8"), ("refused", "<u8"), ("used", "<u8")]
)
NUMBER = np.dtype("<u4")
COPIED = ("clients", "policy_hits", "reasons", "events")


class Table:
    """A map in memory."""

    def __init__(self, key: np.dtype, value: np.dtype):
        self.key, self.value = key, value
        self.rows: dict[bytes, np.ndarray] = {}
        self.info = SimpleNamespace(entries=1024)

    def put(self, key: Any, value: Any) -> None:
        self.rows[np.array(key, dtype=self.key).tobytes()] = np.array(value, dtype=self.value)

    def put_many(self, keys: np.ndarray, values: np.ndarray) -> None:
        for key, value in zip(keys, values, strict=True):
            self.put(key, value)

    def get(self, key: Any) -> np.ndarray | None:
        return self.rows.get(np.array(key, dtype=self.key).tobytes())

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self.rows:
            keys = np.frombuffer(b"".join(self.rows), dtype=self.key)
            yield keys, np.array(list(self.rows.values()), dtype=self.value)

    def items(self) -> tuple[np.ndarray, np.ndarray]:
        for keys, values in self.chunks():
            return keys, values
        return np.empty(0, dtype=self.key), np.empty(0, dtype=self.value)


class Tables:
    """Maps in memory; the pins of the named ones are lost."""

    def __init__(self, *lost: str):
        self._lost = lost
        self._tables = {name: Table(NUMBER, NUMBER) for name in COPIED}
        self._tables |= {"settings": Table(NUMBER, NUMBER), "flows": Table(FLOW_KEY, FLOW)}
        self._tables |= {"origins": Table(ORIGIN_KEY, ORIGIN), "client_prefixes": Table(CLIENT_KEY, CLIENT)}

    def __getattr__(self, name: str) -> Table:
        if name in self._lost:
            raise lost_pin(name)
        return self._tables[name]


def flows_of(*sources: str, state: str = "ESTABLISHED") -> Any:
    entries = [entry(source, state=state) for source in sources]
    entries = [
        one._replace(original=one.original._replace(source_port=number)) for number, one in enumerate(entries)
    ]
    return adopt(entries, SLOTS, (FLOW_KEY, FLOW), TIMEOUTS, 10**12)


def carried(old: Tables | None, adopted: Any = None) -> Tables:
    def give() -> Any:
        assert adopted is not None, "conntrack was asked although there are flows"
        return adopted

    new = Tables()
    carry_over(cast(Any, old), cast(Any, new), give)
    return new


def active(tables: Tables) -> list[tuple[int, int, int, int]]:
    rows = [row for _, values in tables.origins.chunks() for row in values]
    return sorted(
        (int(row["slot"]), int(row["active"]), int(row["total"]), int(row["deleting"])) for row in rows
    )


SOURCES = ("203.0.113.10", "203.0.113.10", "2001:db8:1::2", "203.0.113.11", "198.51.100.1")
COUNTS = [(0, 1, 1, 0), (1, 1, 1, 0), (1, 2, 2, 0), (2, 1, 1, 0)]


def test_without_maps_flows_come_from_conntrack_and_origins_add_up() -> None:
    new = carried(None, flows_of(*SOURCES))
    assert len(new.flows.rows) == len(SOURCES)
    assert active(new) == COUNTS


def test_what_is_over_is_not_counted() -> None:
    new = carried(None, flows_of(*SOURCES, state="TIME_WAIT"))
    assert len(new.flows.rows) == len(SOURCES)
    assert active(new) == []


def old(*lost: str) -> Tables:
    """Maps with flows and counters; each origin counts one flow too many."""
    whole = carried(None, flows_of(*SOURCES))
    for name in COPIED:
        getattr(whole, name).put(0, 7)
    for row in whole.origins.rows.values():
        row["active"] += 1
        row["total"] = 9
    whole._lost = lost
    return whole


@pytest.mark.parametrize("lost", [(), ("clients",), ("policy_hits", "reasons")])
def test_what_is_left_is_carried_over(lost: tuple[str, ...]) -> None:
    new = carried(old(*lost))
    for name in COPIED:
        assert (new._tables[name].get(0) is None) is (name in lost), name
    assert len(new.flows.rows) == len(SOURCES)
    assert active(new) == [(slot, count, 9, dead) for slot, count, _, dead in COUNTS]


def test_without_origins_the_flows_are_counted() -> None:
    assert active(carried(old("origins"))) == COUNTS


def test_without_flows_conntrack_is_counted_and_the_origins_keep_their_totals() -> None:
    new = carried(old("flows"), flows_of(*SOURCES[1:]))
    assert len(new.flows.rows) == len(SOURCES) - 1
    assert active(new) == [(0, 1, 9, 0), (1, 1, 9, 0), (1, 1, 9, 0), (2, 1, 9, 0)]
