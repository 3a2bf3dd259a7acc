"""The programs' settings except policies: one type from the configuration to the map `settings`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from enforcer.constants.bpf import BankBits
from enforcer.datapath.maps import Maps


@dataclass(frozen=True)
class Settings:
    """The settings; they compare equal if the configuration's parts are equal, whichever bank is in force."""

    mark_mask: int
    limit: int
    """Connections per origin."""
    flows_per_client: int
    unanswered_per_client: int
    proxy_tcp: bool
    proxy_udp: bool
    bank: int = field(default=0, compare=False)
    """The policy bank in force, and the dimensions that its rules use (BankBits)."""
    ready: bool = field(default=False, compare=False)
    """False: the tables are not filled, and no packet may leave."""

    @property
    def mark_shift(self) -> int:
        """Bits by which a mark value is shifted to lie under the mask."""
        return (self.mark_mask & -self.mark_mask).bit_length() - 1

    def mark(self, slot: int) -> int:
        """The packet mark of a slot (bpf/mark.h, set_mark)."""
        return (slot + 1) << self.mark_shift & self.mark_mask

    @property
    def bank_number(self) -> int:
        """Which of the two policy banks is in force."""
        return self.bank & BankBits.BANK

    @classmethod
    def from_row(cls, row: np.ndarray) -> Settings:
        """The settings of a row; fields that an earlier version's layout lacks are 0."""
        known = row.dtype.names or ()

        def value(name: str) -> int:
            return int(row[name]) if name in known else 0

        return cls(
            mark_mask=value("mark_mask"),
            limit=value("limit"),
            flows_per_client=value("flows_per_client"),
            unanswered_per_client=value("unanswered_per_client"),
            proxy_tcp=bool(value("proxy_tcp")),
            proxy_udp=bool(value("proxy_udp")),
            bank=value("bank"),
            ready=bool(value("ready")),
        )

    def to_row(self, kind: np.dtype) -> np.ndarray:
        """The row in the map's type."""
        row = np.zeros((), dtype=kind)
        for name in (*(each.name for each in fields(self)), "mark_shift"):
            row[name] = getattr(self, name)
        return row


def read(maps: Maps) -> Settings:
    """The settings in force; not ``ready`` before the first switch. Raises LostPinError."""
    row = maps.settings.get(0)
    assert row is not None  # an array has all its elements
    return Settings.from_row(row)


def write(maps: Maps, settings: Settings) -> None:
    """Puts settings in force, and with them a policy bank."""
    maps.settings.put(0, settings.to_row(maps.settings.value))
