"""Marks of requirements of RFCs (docs/rfc-compliance.md)."""

from __future__ import annotations

import pytest
from rfcs import KEYWORDS, label


def pytest_configure(config: pytest.Config) -> None:
    for mark, (rfc, number) in KEYWORDS.items():
        config.addinivalue_line("markers", f"{mark}: RFC {rfc}, {label(rfc, number)}")
